//! Room for the images of a recovery.
//!
//! What is moved into them must not take what their guest needs for its own writes. So the pull neither begins
//! nor goes on once less is free than has to stay free, 5 %, but at least 2 GiB and at most 50 GiB: the same as
//! beside a backup's scratch files ([`ScratchReserve`]). A guest that is off writes nothing, and its images may
//! have what there is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use virtkeep_capture::ScratchReserve;
use virtkeep_repo::Point;

use super::record::Recovery;
use crate::output::{shown, size};

/// A guest that was paused for want of space goes on when this much is free.
const ENOUGH: u64 = 64 << 20;

/// The room where the images of a recovery are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    directory: PathBuf,
    /// Bytes that are free.
    pub(crate) free: u64,
    /// Bytes that have to stay free while the guest runs.
    reserve: u64,
}

/// There is too little of it to move data in.
#[derive(Debug, thiserror::Error)]
#[error(
    "no more data is moved in beneath the guest: {} has {} free, and {} must stay for what it writes. The rest is \
     safe in the repository, and the guest goes on. Make room there: the recovery then goes on by itself, or \
     with `virtkeep boot --finish`",
    shown(&.0.directory.to_string_lossy()),
    size(.0.free),
    size(.0.reserve)
)]
pub(crate) struct NoRoom(Space);

/// A guest stands still since there is none of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} stands still, since there is no space for what it writes to {}, which has {} free. Nothing is lost: make \
     room there, and it goes on by itself, or with `virtkeep boot --status`",
    shown(.domain),
    shown(&.space.directory.to_string_lossy()),
    size(.space.free)
)]
pub(crate) struct Full {
    domain: String,
    space: Space,
}

impl Space {
    /// What there is now.
    pub(crate) fn of(recovery: &Recovery) -> Result<Self> {
        Self::at(&recovery.directory)
    }

    /// Of a directory that need not be there yet.
    pub(super) fn at(dir: &Path) -> Result<Self> {
        let there = dir.ancestors().find(|dir| dir.is_dir());
        let there = there.with_context(|| format!("cannot find {}", dir.display()))?;
        let (free, total) = virtkeep_capture::space(there)
            .with_context(|| format!("cannot look at {}", there.display()))?;
        Ok(Self {
            directory: there.to_owned(),
            free,
            reserve: ScratchReserve::default().of(total),
        })
    }

    /// An error where the pull must leave the rest to the guest.
    pub(crate) fn check_pull(self) -> Result<(), NoRoom> {
        if self.free > self.reserve {
            Ok(())
        } else {
            Err(NoRoom(self))
        }
    }

    /// An error where what a guest on trial writes would take the space of what matters.
    pub(super) fn check_trial(&self) -> Result<()> {
        if self.free <= self.reserve {
            bail!(
                "no test with images in {}, which has {} free: {} must stay free there. Name another directory with --to",
                shown(&self.directory.to_string_lossy()),
                size(self.free),
                size(self.reserve)
            );
        }
        Ok(())
    }

    /// Whether a guest that was paused for want of space can go on.
    pub(crate) fn is_enough_to_go_on(&self) -> bool {
        self.free >= ENOUGH
    }

    /// What to say of a guest that QEMU has paused for want of it.
    pub(crate) fn full(self, domain: &str) -> Full {
        Full {
            domain: domain.to_owned(),
            space: self,
        }
    }

    /// What to say while the guest runs, but may soon not.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.free <= self.reserve).then(|| {
            format!(
                "{} has {} free: should nothing be left for what the guest writes, QEMU pauses it until there is",
                shown(&self.directory.to_string_lossy()),
                size(self.free)
            )
        })
    }
}

/// Makes sure that the images have room, and says if that may not last. Once the data has been moved, each may be
/// as large as its disk; what the point holds is the least.
pub(crate) fn check(
    dir: &Path,
    point: &Point,
    least: impl FnOnce() -> Result<u64>,
) -> Result<Option<String>> {
    let space = Space::at(dir)?;
    let dir = shown(&space.directory.to_string_lossy());
    let (free, reserve) = (size(space.free), size(space.reserve));
    let most: u64 = point.disks.iter().map(|disk| disk.size.0).sum();
    let usable = space.free.saturating_sub(space.reserve);
    if usable >= most {
        return Ok(None);
    }
    let least = least()?;
    if usable < least {
        bail!(
            "{dir} has {free} free, {reserve} of which must stay for what the guest writes, and the data of the \
             disks takes {}: name a larger place with --to, or pass --no-pull to let the data stay in the \
             repository",
            size(least)
        );
    }
    Ok(Some(format!(
        "warning: {dir} has {free} free. The data takes {} at first; should the guest fill its disks, it is {}",
        size(least),
        size(most)
    )))
}
