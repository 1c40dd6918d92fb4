//! A backup in progress: from disks to a committed point.

use std::io;

use crate::{
    Cancel, Consistency, Disk, DiskSource, DiskStats, Domain, FileRole, Point, PointId, Progress,
    Result, RootId, SourceKind, StoredFile, UnixMillis,
};

/// A backup in progress. Holds a writer lease; dropping it commits nothing and loses nothing.
pub struct Backup {
    point: PointId,
}

/// What [`Backup::store_disk`] stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDisk {
    /// Names the whole content of the disk.
    pub root: RootId,
    /// What it took.
    pub stats: DiskStats,
}

/// Everything of a point that the engine does not know by itself.
#[derive(Clone, Debug)]
pub struct PointDraft {
    /// Whose moment it is.
    pub domain: Domain,
    /// What was backed up.
    pub source: SourceKind,
    /// Name of the host that ran the domain.
    pub host: String,
    /// The moment the disks show.
    pub time: UnixMillis,
    /// How far the guest's file systems were settled.
    pub consistency: Consistency,
    /// The libvirt checkpoint made together with the point.
    pub checkpoint: Option<String>,
    /// The disks, in the order of the domain XML.
    pub disks: Vec<Disk>,
    /// Stored with [`Backup::store_file`].
    pub files: Vec<StoredFile>,
    /// Labels given by the user.
    pub tags: Vec<String>,
}

impl Backup {
    /// The name the point will have. Known from the start: the checkpoint carries it.
    pub fn point_id(&self) -> PointId {
        self.point
    }

    /// Reads a disk and stores what is new of it. Several disks may be stored at once from several
    /// threads; they share the limits on memory.
    ///
    /// `parent` is the disk as the previous point holds it. `ExtentState::Unchanged` refers to it;
    /// a full read passes it too, to spare look-ups. Nothing is visible until [`commit`](Self::commit).
    pub fn store_disk(
        &self,
        source: &dyn DiskSource,
        parent: Option<&Disk>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<StoredDisk> {
        let _ = (source, parent, progress, cancel);
        unimplemented!()
    }

    /// Stores a file to be kept with the point.
    pub fn store_file(
        &self,
        role: FileRole,
        name: &str,
        content: &mut dyn io::Read,
    ) -> Result<StoredFile> {
        let _ = (role, name, content);
        unimplemented!()
    }

    /// Makes everything durable, then the point: when this returns, power may fail.
    pub fn commit(self, draft: PointDraft) -> Result<Point> {
        let _ = draft;
        unimplemented!()
    }
}
