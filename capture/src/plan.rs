//! What a backup of a domain would do, decided disk by disk before anything is touched.
use std::path::PathBuf;

use virtkeep_repo::{ByteLen, CaptureMode, Disk, Domain, PointId, Repository, SourceKind};

use crate::error::Result;
use crate::host::{DomainRef, Host};
use crate::options::Options;

/// What a backup would do. Plain data: making one touches nothing.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The domain.
    pub domain: Domain,
    /// `Live` for a running or paused domain, `Offline` for one that is shut off.
    pub source: SourceKind,
    /// The disks that will be read, in the order of the domain XML.
    pub disks: Vec<DiskPlan>,
    /// Disks that no backup needs: CD-ROM, floppy, read-only.
    pub left_out: Vec<LeftOut>,
    /// Disks that cannot be backed up; without `skip_unsupported` the backup fails.
    pub unsupported: Vec<LeftOut>,
    /// Whether the guest will be frozen, and if not, why.
    pub freeze: FreezePlan,
    /// Whether a checkpoint will be made.
    pub checkpoint: bool,
    /// Where the socket of the job goes (live only).
    pub socket_dir: Option<PathBuf>,
    /// What earlier runs left and this one will clear.
    pub leftovers: Vec<String>,
    /// Why the backup would fail if it were started now.
    pub obstacle: Option<String>,
}

/// How one disk will be read.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// Target name in the domain XML, for example `vda`.
    pub target: String,
    /// Size in bytes.
    pub size: ByteLen,
    /// Format of the image: `qcow2`, `raw`.
    pub format: String,
    /// Path or address of the image.
    pub location: String,
    /// Whole or only what changed.
    pub mode: CaptureMode,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// The point that the disk is compared with, and the disk there.
    pub parent: Option<(PointId, Disk)>,
    /// The checkpoint whose bitmap says what changed; only for `Incremental`.
    pub since: Option<String>,
    /// Whether the disk can carry a bitmap.
    pub bitmap: bool,
    /// Where the scratch file goes (live only).
    pub scratch: Option<ScratchPlan>,
}

/// A directory for scratch files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchPlan {
    /// The directory.
    pub dir: PathBuf,
    /// Bytes free there.
    pub free: u64,
    /// Bytes that must stay free; the backup is given up before less is left.
    pub reserve: u64,
}

/// A disk that is not backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its target name.
    pub target: String,
    /// Why.
    pub reason: String,
}

/// What will be asked of the guest agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreezePlan {
    /// The guest will be frozen for the moment of the checkpoint.
    Freeze,
    /// It will not, for this reason.
    Skip(String),
}

/// Decides how a backup would go. Touches neither the domain nor the repository.
///
/// # Errors
/// Only where nothing can be planned. What would make the backup fail is [`Plan::obstacle`].
pub fn plan(host: &Host, domain: &DomainRef, repo: &Repository, options: &Options) -> Result<Plan> {
    let _ = (host, domain, repo, options);
    unimplemented!()
}
