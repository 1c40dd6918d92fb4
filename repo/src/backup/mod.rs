//! A backup in progress: from disks to a committed point.
//!
//! What must hold, in this order: every chunk, node and file piece of the point is in a durable pack
//! that the index names; then the point record is put in place under its name, and that is the
//! commit; then the index gets its row for it, which is only a cache.

mod disk;
mod intake;
mod plan;
#[cfg(test)]
mod tests;
mod wanted;

use std::io::{self, Read};
use std::sync::Arc;

use disk::{DiskJob, Surroundings};
use intake::Intake;
use plan::Planner;
use wanted::Wanted;

use crate::budget::Budget;
use crate::format;
use crate::format::geometry::{DISK_BYTES_MAX, SECTOR_BYTES};
use crate::format::node::{Node, Root};
use crate::ids::ContentId;
use crate::lease::WriterLease;
use crate::limits::{BACKUP_BYTES_IN_FLIGHT_MAX, FILE_BYTES_MAX, FILE_PIECE_BYTES};
use crate::manifest::{NodeSource, Shape, Tree};
use crate::storage::ObjectName;
use crate::store::Store;
use crate::{
    ByteLen, Cancel, Consistency, Disk, DiskSource, DiskStats, Domain, Error, FileRole, LeaseId,
    NodeId, Point, PointId, Progress, RawId, RecordKind, Result, RootId, SourceKind, StoredFile,
    UnixMillis,
};

/// A backup in progress. Holds a writer lease; dropping it commits nothing and loses nothing.
pub struct Backup {
    point: PointId,
    // The order matters: the intake's last pack is finished before the lease is let go.
    intake: Intake,
    store: Arc<Store>,
    wanted: Wanted,
    budget: Arc<Budget>,
    unfinished: Unfinished,
    lease: WriterLease,
}

/// Notes, when it is dropped, that a lease ends without a point: what was stored under it is kept for
/// the next try.
struct Unfinished {
    store: Arc<Store>,
    lease: LeaseId,
    committed: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.committed {
            let now = self.store.env.clock.now();
            // It failing costs the next try some reading.
            self.store
                .index
                .write(|edit| edit.note_unfinished(self.lease, now))
                .ok();
        }
    }
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
    /// Starts taking in records under `lease`.
    pub(crate) fn start(store: Arc<Store>, lease: WriterLease) -> Result<Self> {
        Ok(Self {
            point: PointId::from_bytes(store.env.random_bytes()),
            intake: Intake::start(Arc::clone(&store), lease.id()),
            wanted: Wanted::load(&store.index)?,
            budget: Budget::new(BACKUP_BYTES_IN_FLIGHT_MAX),
            unfinished: Unfinished {
                store: Arc::clone(&store),
                lease: lease.id(),
                committed: false,
            },
            store,
            lease,
        })
    }

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
        let size = source.size().0;
        if !size.is_multiple_of(SECTOR_BYTES) || size > DISK_BYTES_MAX {
            return Err(Error::DiskSize { bytes: size });
        }
        let store = &*self.store;
        let shape = Shape {
            size,
            chunk_size: store.keys.chunk_size(),
            fan_out: store.fan_out,
        };
        let healing = HealingSource {
            store,
            intake: &self.intake,
        };
        // A parent that cannot be read costs a full read, not the backup.
        let parent = parent.and_then(|disk| Tree::open(disk.root, &healing).ok());
        let planner = Planner::new(shape, source, parent, &self.wanted);
        let around = Surroundings {
            store,
            intake: &self.intake,
            budget: &self.budget,
            wanted: &self.wanted,
            progress,
            cancel,
        };
        let job = DiskJob::new(around, shape, planner);
        let read = rayon::in_place_scope(|scope| source.read(&job.queue(scope)));
        let finished = job.finish(read.map_err(Error::Source));
        let (root, stats) = self.intake.explain(finished)?;
        Ok(StoredDisk { root, stats })
    }

    /// Stores a file to be kept with the point; at most 2 GiB.
    pub fn store_file(
        &self,
        role: FileRole,
        name: &str,
        content: &mut dyn io::Read,
    ) -> Result<StoredFile> {
        let mut pieces = Vec::new();
        let mut size = 0;
        loop {
            let mut piece = Vec::new();
            content
                .take(FILE_PIECE_BYTES as u64)
                .read_to_end(&mut piece)
                .map_err(Error::io("read", name))?;
            if piece.is_empty() {
                break;
            }
            size += piece.len() as u64;
            if size > FILE_BYTES_MAX {
                let reason = format!("{name} is larger than {FILE_BYTES_MAX} bytes");
                return Err(Error::Source(reason.into()));
            }
            let id = self.store.keys.blob_id(&piece);
            let stored = self.intake.put(RecordKind::Blob, &[(id.raw(), &piece)]);
            self.intake.explain(stored)?;
            pieces.push(id);
        }
        Ok(StoredFile {
            role,
            name: name.to_owned(),
            size: ByteLen(size),
            pieces,
        })
    }

    /// Makes everything durable, then the point: when this returns, power may fail.
    pub fn commit(self, draft: PointDraft) -> Result<Point> {
        let Self {
            point: id,
            intake,
            store,
            // Should it fail, the last one here goes first: noted before the lease ends.
            lease,
            mut unfinished,
            ..
        } = self;
        intake.finish()?;
        let point = Point {
            id,
            domain: draft.domain,
            source: draft.source,
            host: draft.host,
            time: draft.time,
            committed: store.env.clock.now(),
            consistency: draft.consistency,
            checkpoint: draft.checkpoint,
            disks: draft.disks,
            files: draft.files,
            tags: draft.tags,
        };
        let record = format::point::encode(&point, &store.keys)?;
        store.storage.put(&ObjectName::Point(id), &record)?;
        unfinished.committed = true;
        // The point exists now. Its row in the index is a cache that the next backup mends.
        store.cache_point(id, &record).ok();
        drop(lease);
        Ok(point)
    }
}

/// The nodes of a parent. What cannot be read of them is wanted from then on: the nodes this backup
/// builds in their place have the same ids, and must be stored anew to be of any use.
struct HealingSource<'a> {
    store: &'a Store,
    intake: &'a Intake,
}

impl HealingSource<'_> {
    fn heal_if_damaged<T>(&self, id: RawId, read: Result<T>) -> Result<T> {
        if let Err(Error::Corrupt { .. } | Error::Missing { .. }) = &read {
            self.intake.distrust_nodes();
            self.store.index.write(|edit| edit.want(&[id]))?;
        }
        read
    }
}

impl NodeSource for HealingSource<'_> {
    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.heal_if_damaged(id.raw(), self.store.node(id))
    }

    fn root(&self, id: RootId) -> Result<Root> {
        self.heal_if_damaged(id.raw(), self.store.root(id))
    }
}
