//! A repository on a local file system: making one, opening one, and what it offers.

use std::path::{Path, PathBuf};

use crate::{
    Backup, ByteLen, Disk, DiskReader, DomainLock, DomainUuid, Env, Point, PointId, RepoId, Result,
    StoredFile,
};

/// How `init` sets a repository up.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Bytes per chunk: a power of two from 4 KiB to 4 MiB; 64 KiB by default.
    pub chunk_size: ByteLen,
    /// How new records are compressed.
    pub codec: Codec,
    /// Accept a network file system.
    pub unsafe_network_fs: bool,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            chunk_size: ByteLen(64 << 10),
            codec: Codec::Lz4,
            unsafe_network_fs: false,
        }
    }
}

/// How records are compressed. Parses from and prints as `lz4`, `zstd:3`, `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Stored as they are.
    None,
    /// LZ4 block format.
    Lz4,
    /// Zstandard at this level, 1 to 22 (`zstd` alone means 3).
    Zstd(u8),
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
}

/// An open repository. Cheap to share; many processes may have one open at once.
pub struct Repository {
    path: PathBuf,
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
    /// Makes a new repository in `path`, which must be missing or an empty directory.
    pub fn init(path: &Path, options: &InitOptions, env: Env) -> Result<Self> {
        let _ = (path, options, env);
        unimplemented!()
    }

    /// Opens the repository at `path`.
    pub fn open(path: &Path, options: &OpenOptions, env: Env) -> Result<Self> {
        let _ = (path, options, env);
        unimplemented!()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its random name; checkpoints carry the first 8 digits.
    pub fn id(&self) -> RepoId {
        unimplemented!()
    }

    /// Bytes per chunk.
    pub fn chunk_size(&self) -> ByteLen {
        unimplemented!()
    }

    /// How new records are compressed.
    pub fn codec(&self) -> Codec {
        unimplemented!()
    }

    /// All points, oldest first.
    pub fn points(&self) -> Result<Vec<Point>> {
        unimplemented!()
    }

    /// One point.
    pub fn point(&self, id: PointId) -> Result<Point> {
        let _ = id;
        unimplemented!()
    }

    /// The uuid that stands for `name` where there is no libvirt domain (`--image`, `--nbd`): the
    /// same name always gives the same uuid in one repository.
    pub fn uuid_for_name(&self, name: &str) -> DomainUuid {
        let _ = name;
        unimplemented!()
    }

    /// Keeps a second backup of the domain out. `Error::Busy` at once when one is running.
    pub fn lock_domain(&self, domain: DomainUuid) -> Result<DomainLock> {
        let _ = domain;
        unimplemented!()
    }

    /// Starts a backup. `parents` are the points whose disks it will refer to: held by its lease,
    /// `Error::NoSuchPoint` when one is gone. `command` is shown to others who have to wait.
    pub fn begin_backup(&self, parents: &[PointId], command: &str) -> Result<Backup> {
        let _ = (parents, command);
        unimplemented!()
    }

    /// Opens a disk of a point for reading.
    pub fn read_disk(&self, point: &Point, disk: &Disk) -> Result<DiskReader> {
        let _ = (point, disk);
        unimplemented!()
    }

    /// The content of a file kept with a point.
    pub fn read_file(&self, file: &StoredFile) -> Result<Vec<u8>> {
        let _ = file;
        unimplemented!()
    }

    /// What the repository holds.
    pub fn stats(&self) -> Result<Stats> {
        unimplemented!()
    }
}
