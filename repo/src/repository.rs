//! A repository on a local file system, and what it offers.

mod clear_up;
mod open;
pub(crate) mod rebuild;
mod watch;

pub use open::Parts;
pub use rebuild::RebuildReport;
pub use watch::PointWatch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::format;
use crate::format::geometry::{ChunkSize, FanOut};
use crate::format::point::POINT_BYTES_MAX;
use crate::lease::{LeaseStore, ReaderLease, Roots};
use crate::pin::PinStore;
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::{
    Backup, ByteLen, Codec, Disk, DiskReader, DomainLock, DomainUuid, Error, Point, PointId,
    RepoId, Result, RootId, StoredFile,
};

/// How `init` sets a repository up.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Bytes per chunk: a power of two from 4 KiB to 4 MiB; 64 KiB by default.
    pub chunk_size: ByteLen,
    /// Children per manifest node: 64, or 256.
    pub fan_out: u16,
    /// How new records are compressed.
    pub codec: Codec,
    /// Accept a network file system.
    pub unsafe_network_fs: bool,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            chunk_size: ByteLen(ChunkSize::DEFAULT.as_u64()),
            fan_out: FanOut::DEFAULT.as_u16(),
            codec: Codec::Lz4,
            unsafe_network_fs: false,
        }
    }
}

/// How a repository is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The caller only reads. Works on read-only media.
    pub read_only: bool,
    /// With `read_only`: take no locks where locks are forbidden.
    pub no_lock: bool,
    /// Accept a network file system.
    pub unsafe_network_fs: bool,
    /// A new pack is finished when it has this many bytes; 64 MiB by default and at most.
    pub pack_size: Option<ByteLen>,
}

/// An open repository. Cheap to share; many processes may have one open at once.
pub struct Repository {
    path: PathBuf,
    config: Config,
    store: Arc<Store>,
    pub(crate) leases: LeaseStore,
    pub(crate) pins: PinStore,
    /// Neither locks nor leases are taken: nothing can be written here anyway.
    pub(crate) lockless: bool,
    read_only: bool,
    warnings: Vec<String>,
}

/// What a repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Number of points.
    pub points: u64,
    /// Sum of all disk sizes of all points.
    pub disk_bytes: u64,
    /// Number of distinct chunks.
    pub chunks: u64,
    /// Number of packs.
    pub packs: u64,
    /// Bytes in packs.
    pub pack_bytes: u64,
    /// Bytes in the index file.
    pub index_bytes: u64,
}

impl Repository {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What whoever edits the settings should hear of: settings that do not exist.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Its random name; checkpoints carry the first 8 digits.
    pub fn id(&self) -> RepoId {
        self.config.id
    }

    /// Lets go of files that were read and have been deleted since: the space of a pruned pack is free only
    /// then. Reading does so by itself; whoever stays without reading should call this now and then.
    pub fn let_go_of_deleted(&self) {
        self.store.storage.let_go();
    }

    /// Bytes per chunk.
    pub fn chunk_size(&self) -> ByteLen {
        ByteLen(self.config.chunk_size.as_u64())
    }

    /// How new records are compressed.
    pub fn codec(&self) -> Codec {
        self.config.codec
    }

    /// All points, oldest first.
    ///
    /// The records in `points/` say which there are; the index only spares reading them. A record
    /// that is damaged hides no other point: [`damaged_points`](Self::damaged_points) tells of it.
    pub fn points(&self) -> Result<Vec<Point>> {
        Ok(self.scan_points()?.sound)
    }

    /// The points whose records cannot be read, and why.
    pub fn damaged_points(&self) -> Result<Vec<(PointId, Error)>> {
        Ok(self.scan_points()?.damaged)
    }

    /// One point.
    pub fn point(&self, id: PointId) -> Result<Point> {
        let record = self.record(id)?;
        format::point::decode(&record, id, &self.store.keys)
    }

    /// The uuid that stands for `name` where there is no libvirt domain (`--image`, `--nbd`): the
    /// same name always gives the same uuid in one repository.
    pub fn uuid_for_name(&self, name: &str) -> DomainUuid {
        let hash = self
            .store
            .keys
            .blob_id(format!("uuid of {name}").as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        // Version 8 (made by rules of one's own) and variant 1, RFC 9562 section 5.8.
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        DomainUuid::from_bytes(bytes)
    }

    /// Keeps a second backup of the domain out. `Error::Busy` at once when one is running.
    pub fn lock_domain(&self, domain: DomainUuid) -> Result<DomainLock> {
        self.check_writable()?;
        DomainLock::take(&self.path.join("locks"), domain, "virtkeep backup")
    }

    /// Starts a backup. `parents` are the points whose disks it will refer to: held by its lease,
    /// `Error::NoSuchPoint` when one is gone. `command` is shown to others who have to wait.
    pub fn begin_backup(&self, parents: &[PointId], command: &str) -> Result<Backup> {
        self.check_writable()?;
        self.clear_up()?;
        let roots = self.roots_of(parents)?;
        let lease = self.leases.writer(command, roots, &self.store.index, |_| {
            parents
                .iter()
                .try_for_each(|point| self.check_exists(*point))
        })?;
        Backup::start(Arc::clone(&self.store), lease)
    }

    /// What a backup with these parents refers to. A parent whose record is damaged still has its
    /// copy in the index, maybe; if not, there is nothing to refer to.
    fn roots_of(&self, parents: &[PointId]) -> Result<Roots> {
        let cached = self.store.index.read(|view| view.point_records(parents))?;
        let mut points = Vec::with_capacity(parents.len());
        for (id, record) in parents.iter().zip(cached) {
            let cached = record
                .and_then(|record| format::point::decode(&record, *id, &self.store.keys).ok());
            points.push(cached.map_or_else(|| self.point(*id), Ok)?);
        }
        Ok(Roots::of(&points))
    }

    /// Opens a disk of a point, which may be forgotten, for reading.
    pub fn read_disk(&self, point: &Point, disk: &Disk) -> Result<DiskReader> {
        let lease = self.lease_on(point.id, disk.root)?;
        DiskReader::open(Arc::clone(&self.store), disk.root, lease).map_err(|error| {
            match error.is_damage() {
                true => Error::disk_damage(0..disk.size.0, &error),
                false => error,
            }
        })
    }

    /// Opens a disk of a point to save what can be saved of it: [`DiskReader::copy_to`] hands zeroes
    /// over where it cannot read, and [`DiskReader::losses`] tells where that was.
    pub fn salvage_disk(&self, point: &Point, disk: &Disk) -> Result<DiskReader> {
        let lease = self.lease_on(point.id, disk.root)?;
        DiskReader::open_to_salvage(Arc::clone(&self.store), disk, lease)
    }

    fn lease_on(&self, point: PointId, disk: RootId) -> Result<Option<ReaderLease>> {
        let roots = Roots {
            points: vec![point],
            disks: vec![disk],
            files: Vec::new(),
        };
        self.reader_lease_if_space(point, roots)
    }

    /// The content of a file kept with a point, which may be forgotten.
    pub fn read_file(&self, point: &Point, file: &StoredFile) -> Result<Vec<u8>> {
        let roots = Roots {
            points: vec![point.id],
            disks: Vec::new(),
            files: file.pieces.clone(),
        };
        let _lease = self.reader_lease_if_space(point.id, roots)?;
        let mut content = Vec::new();
        for piece in &file.pieces {
            content.append(&mut self.store.fetch(*piece)?);
        }
        if content.len() as u64 != file.size.0 {
            return Err(Error::Corrupt {
                what: format!("the stored file {}", file.name),
                expected: file.size.to_string(),
                found: ByteLen(content.len() as u64).to_string(),
            });
        }
        Ok(content)
    }

    /// What the repository holds.
    pub fn stats(&self) -> Result<Stats> {
        let points = self.points()?;
        let index = self.store.index.stats()?;
        let disks = points.iter().flat_map(|point| &point.disks);
        Ok(Stats {
            points: points.len() as u64,
            disk_bytes: disks.map(|disk| disk.size.0).sum(),
            chunks: index.data_records,
            packs: index.packs,
            pack_bytes: index.pack_bytes,
            index_bytes: index.file_bytes,
        })
    }

    /// Its pins.
    pub fn pins(&self) -> &PinStore {
        &self.pins
    }

    /// What reading and writing share.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn scan_points(&self) -> Result<PointScan> {
        let mut cached: HashMap<PointId, Vec<u8>> =
            self.store.index.points()?.into_iter().collect();
        let mut scan = PointScan::default();
        for name in self.store.storage.list(Folder::Points)? {
            let ObjectName::Point(id) = name else {
                continue;
            };
            let point = cached
                .remove(&id)
                .and_then(|record| format::point::decode(&record, id, &self.store.keys).ok());
            match point.map_or_else(|| self.load_uncached(id), |point| Ok(Some(point))) {
                Ok(point) => scan.sound.extend(point),
                Err(error @ Error::Corrupt { .. }) => scan.damaged.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        scan.sound.sort_by_key(|point| (point.time, point.id));
        Ok(scan)
    }

    /// Reads a point that the index has no row for, and gives it one. A point that has been
    /// forgotten meanwhile is none.
    fn load_uncached(&self, id: PointId) -> Result<Option<Point>> {
        let record = match self.record(id) {
            Err(Error::NoSuchPoint { .. }) => return Ok(None),
            record => record?,
        };
        let point = format::point::decode(&record, id, &self.store.keys)?;
        if !self.read_only {
            // A cache: that it cannot be written is no reason to hide a point.
            let settled = self.store.storage.settle(Folder::Points);
            settled
                .and_then(|()| self.store.cache_point(id, &record))
                .ok();
        }
        Ok(Some(point))
    }

    pub(crate) fn record(&self, id: PointId) -> Result<Vec<u8>> {
        let name = ObjectName::Point(id);
        self.store
            .storage
            .read_whole(&name, POINT_BYTES_MAX as u64)
            .map_err(|error| match error {
                Error::Missing { .. } => Error::NoSuchPoint { point: id },
                error => error,
            })
    }

    pub(crate) fn check_exists(&self, point: PointId) -> Result<()> {
        let len = self.store.storage.len(&ObjectName::Point(point))?;
        len.map(drop).ok_or(Error::NoSuchPoint { point })
    }

    /// Refuses to delete anything where the settings or the way it was opened forbid that.
    pub fn check_may_remove(&self) -> Result<()> {
        self.check_writable()?;
        if self.config.append_only {
            return Err(Error::AppendOnly {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            let why = "it was opened for reading only".to_owned();
            return Err(Error::ReadOnly {
                path: self.path.clone(),
                why,
            });
        }
        Ok(())
    }
}

/// The points there are.
#[derive(Default)]
struct PointScan {
    sound: Vec<Point>,
    damaged: Vec<(PointId, Error)>,
}
