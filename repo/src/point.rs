//! Restore points: what one consistent moment of one domain consists of.
//!
//! These are the domain types; how a record is laid out on disk is the business of
//! `format::point`.

use serde::{Deserialize, Serialize};

use crate::{BlobId, ByteLen, DomainUuid, PointId, RootId, UnixMillis};

/// One consistent moment of one domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The name of the point; also of its record.
    pub id: PointId,
    /// Whose moment it is.
    pub domain: Domain,
    /// What was backed up.
    pub source: SourceKind,
    /// Name of the host that ran the domain.
    pub host: String,
    /// The moment the disks show: when the checkpoint was made, not when reading ended.
    pub time: UnixMillis,
    /// When the point was committed.
    pub committed: UnixMillis,
    /// How far the guest's file systems were settled at that moment.
    pub consistency: Consistency,
    /// The libvirt checkpoint made together with this point, if any.
    pub checkpoint: Option<String>,
    /// The disks, in the order of the domain XML.
    pub disks: Vec<Disk>,
    /// Domain XML, firmware variables, kernel, the run's log and the like.
    pub files: Vec<StoredFile>,
    /// Labels given by the user.
    pub tags: Vec<String>,
}

/// The identity of a domain: the uuid counts, the name is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// libvirt's uuid, or one derived from the name for `--image` and `--nbd`.
    pub uuid: DomainUuid,
    /// The name at the time of the backup.
    pub name: String,
}

/// What kind of thing was backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A libvirt domain that was running or paused.
    Live,
    /// A libvirt domain that was shut off.
    Offline,
    /// An image file or block device at rest.
    Image,
    /// An NBD export.
    Nbd,
}

/// How far the guest's file systems were settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Frozen by the guest agent.
    Frozen,
    /// As after a power cut at that moment.
    Crash,
    /// The domain was shut off, or the image at rest.
    Clean,
}

/// One disk of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The target name in the domain XML, for example `vda`.
    pub target: String,
    /// Size in bytes.
    pub size: ByteLen,
    /// Names the whole content of the disk.
    pub root: RootId,
    /// Whether all of it was read or only what had changed.
    pub mode: CaptureMode,
    /// Why that mode, for people.
    pub reason: String,
    /// The checkpoint whose bitmap this disk carries; none where it could not have one.
    pub checkpoint: Option<String>,
    /// The point this one was compared with.
    pub parent: Option<PointId>,
    /// Format of the source image: `qcow2`, `raw`.
    pub format: String,
    /// Path or address of the source image, to recognise a replaced disk.
    pub location: String,
    /// Paths or addresses of its backing images, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<String>,
    /// What it took.
    pub stats: DiskStats,
}

/// Whether a disk was read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureMode {
    /// All data was read.
    Full,
    /// Only what the dirty bitmap names was read.
    Incremental,
}

/// What storing one disk took, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Not proved unchanged: data and zeroes that had to be looked at.
    pub dirty_bytes: u64,
    /// Read from the source.
    pub read_bytes: u64,
    /// In chunks that the repository did not hold yet, before compression.
    pub new_bytes: u64,
    /// What those chunks and the new manifest nodes take in packs.
    pub stored_bytes: u64,
    /// Number of those chunks.
    pub new_chunks: u64,
    /// Number of new manifest nodes.
    pub new_nodes: u64,
}

/// A file kept with a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// What it is for.
    pub role: FileRole,
    /// Its name; for host files the absolute path, for a network the network's name.
    pub name: String,
    /// Length in bytes.
    pub size: ByteLen,
    /// Its content in order, in pieces.
    pub pieces: Vec<BlobId>,
}

/// What a stored file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileRole {
    /// The persistent (inactive) domain XML.
    DomainXml,
    /// The live domain XML.
    LiveXml,
    /// XML of a network the domain uses.
    NetworkXml,
    /// UEFI variables.
    Nvram,
    /// Firmware image.
    Loader,
    /// Directly booted kernel.
    Kernel,
    /// Its initial RAM disk.
    Initrd,
    /// State of an emulated TPM.
    Tpm,
    /// Log of the run that made the point.
    Log,
    /// Something that only a later version knows of.
    #[serde(other)]
    Unknown,
}
