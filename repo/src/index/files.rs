//! Where the index file lives: the one thing the index asks of the world beside its lock.
//!
//! Behind a trait, so that tests can put a simulated disk beneath redb.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// The file of the index, and one that is being built to take its place.
pub trait IndexFiles: Send + Sync {
    /// Opens the index for reading only; `NotFound` when there is none.
    fn open_read(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens the index for reading and writing; `NotFound` when there is none.
    fn open_write(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Starts a new, empty file; an unfinished one left by an earlier try is thrown away.
    fn start_new(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens the unfinished new file again.
    fn continue_new(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Puts the new file in the place of the index, atomically and durably.
    fn publish_new(&self) -> io::Result<()>;

    /// The size of the index in bytes.
    fn size(&self) -> io::Result<u64>;

    /// What to call the index in messages.
    fn path(&self) -> &Path;
}

/// The index on a local file system: `index.redb`, built as `index.redb.new`.
#[derive(Debug)]
pub struct LocalFiles {
    dir: PathBuf,
    index: PathBuf,
    new: PathBuf,
}

impl LocalFiles {
    /// The index of the repository in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            index: dir.join("index.redb"),
            new: dir.join("index.redb.new"),
        }
    }

    fn backend(file: File) -> io::Result<Box<dyn StorageBackend>> {
        FileBackend::new(file)
            .map(|backend| Box::new(backend) as Box<dyn StorageBackend>)
            .map_err(io::Error::other)
    }
}

impl IndexFiles for LocalFiles {
    fn open_read(&self) -> io::Result<Box<dyn StorageBackend>> {
        Self::backend(File::open(&self.index)?)
    }

    fn open_write(&self) -> io::Result<Box<dyn StorageBackend>> {
        Self::backend(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&self.index)?,
        )
    }

    fn start_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        Self::backend(
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&self.new)?,
        )
    }

    fn continue_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        Self::backend(OpenOptions::new().read(true).write(true).open(&self.new)?)
    }

    fn publish_new(&self) -> io::Result<()> {
        File::open(&self.new)?.sync_all()?;
        fs::rename(&self.new, &self.index)?;
        File::open(&self.dir)?.sync_all()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.index)?.len())
    }

    fn path(&self) -> &Path {
        &self.index
    }
}

/// Lets redb use a backend chosen at run time.
#[derive(Debug)]
pub(super) struct AnyBackend(pub(super) Box<dyn StorageBackend>);

impl StorageBackend for AnyBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
