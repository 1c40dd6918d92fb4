//! Where the index file lives: the one thing the index asks of the world beside its lock.

use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{BackendError, StorageBackend};

use crate::file_system::{Access, FileSystem, LocalFileSystem};

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
pub struct LocalFiles {
    files: Arc<dyn FileSystem>,
    dir: PathBuf,
    index: PathBuf,
    new: PathBuf,
    /// Whether it is known that the name of the index is durable.
    settled: AtomicBool,
}

impl LocalFiles {
    /// The index of the repository in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self::on(Arc::new(LocalFileSystem), dir)
    }

    /// The same on a given file system.
    pub fn on(files: Arc<dyn FileSystem>, dir: &Path) -> Self {
        Self {
            files,
            dir: dir.to_owned(),
            index: dir.join("index.redb"),
            new: dir.join("index.redb.new"),
            settled: AtomicBool::new(false),
        }
    }
}

impl IndexFiles for LocalFiles {
    fn open_read(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.files.open_index(&self.index, Access::Read)
    }

    fn open_write(&self) -> io::Result<Box<dyn StorageBackend>> {
        // Whoever put the index in its place may have been killed before he had seen to that.
        if !self.settled.load(Ordering::Relaxed) {
            self.files.sync_directory(&self.dir)?;
            self.settled.store(true, Ordering::Relaxed);
        }
        self.files.open_index(&self.index, Access::Write)
    }

    fn start_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.files.open_index(&self.new, Access::StartAnew)
    }

    fn continue_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.files.open_index(&self.new, Access::Write)
    }

    fn publish_new(&self) -> io::Result<()> {
        self.files.open(&self.new)?.sync()?;
        self.files.rename(&self.new, &self.index)?;
        self.files.sync_directory(&self.dir)
    }

    fn size(&self) -> io::Result<u64> {
        self.files.len(&self.index)
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
