//! A file of a few mebibytes that holds nothing: room to forget and prune on a full file system.
//!
//! To forget points and to remove packs, records and the index have to be written, and that takes some
//! space before it gives any. Whoever does so gives the reserve up when he meets a full file system;
//! prune makes it again at its end.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::Result;

/// Its name in the repository.
pub(crate) const RESERVE: &str = "reserve";

/// Its size: what the largest transaction of a prune takes, and a lease.
const RESERVE_BYTES: u64 = 8 << 20;

/// The reserve of one repository. That there is none is never an error.
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    /// The reserve of the repository in `dir`.
    pub(crate) fn of(dir: &Path) -> Self {
        Self(dir.join(RESERVE))
    }

    /// Makes sure that it is there, as far as there is room.
    pub(crate) fn make(&self) {
        if fs::metadata(&self.0).is_ok_and(|file| file.len() >= RESERVE_BYTES) {
            return;
        }
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.0)
            .is_ok_and(|file| {
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).is_ok()
            });
        if !made {
            self.give_up();
        }
    }

    /// Does something that writes a little; where no space is left, once more without the reserve.
    pub(crate) fn with_room<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if error.is_no_space() && self.give_up() => work(),
            done => done,
        }
    }

    /// Gives its room to others; whether there was any.
    fn give_up(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}
