//! What a repository asks of a local file system: few calls, whose order makes it survive a crash.
//!
//! Behind a trait, so that tests can put a simulated disk beneath all that must be durable: objects,
//! index and pins. Locks and leases end with their process and stay on the real one. Nothing is
//! promised to be durable but by the calls that say so.

pub(crate) mod kind;
mod local;

pub use local::LocalFileSystem;

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use redb::StorageBackend;

/// A local file system. Errors are those of the operating system; paths lead to what they name, or
/// the error is `NotFound`.
pub trait FileSystem: Send + Sync {
    /// Creates a file for its owner alone; `AlreadyExists` when the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Opens a file for redb.
    fn open_index(&self, path: &Path, access: Access) -> io::Result<Box<dyn StorageBackend>>;

    /// Renames a file over whatever has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file; `AlreadyExists` when the new name is taken.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory for its owner alone.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable: what was created, renamed and removed in it.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// The paths in a directory, in any order.
    fn entries(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;

    /// The length of a file in bytes.
    fn len(&self, path: &Path) -> io::Result<u64>;

    /// Whether there is a directory at this path.
    fn is_directory(&self, path: &Path) -> bool;
}

/// How the index is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// For reading only.
    Read,
    /// For reading and writing; it exists.
    Write,
    /// For reading and writing; emptied, or created when it is missing.
    StartAnew,
}

/// An open file. Closing it gives its lock up.
pub trait OpenFile: Send + Sync {
    /// Writes all of `bytes` behind what was written before. On an error some may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Fills `buffer` from `offset` on; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset` on, if the page cache holds all of it; otherwise `buffer` holds nothing of
    /// use.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        let _ = (buffer, offset);
        false
    }

    /// Makes content and length durable, not the name. After an error nothing that was written
    /// before may be relied on, whatever a second call says.
    fn sync(&self) -> io::Result<()>;

    /// The length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Whether the file still has a name.
    fn is_linked(&self) -> io::Result<bool>;

    /// Locks the file (`flock`); false when somebody else has locked it.
    fn try_lock(&self) -> io::Result<bool>;

    /// Asks for this range to be written out soon. Advice: nothing depends on it.
    fn begin_write_out(&self, offset: u64, len: NonZeroU64);
}
