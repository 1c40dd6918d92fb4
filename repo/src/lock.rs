//! Locks between processes: one file per lock in `locks/`, held with `flock`.
//!
//! The kernel gives a lock up when its holder ends, however it ends, so there is no pid logic and
//! nothing to clean. Every file is close-on-exec: a child (`qemu-nbd`, `ssh`) never inherits a lock.
//! Lock files stay where they are: to delete one would let two processes lock two files of one name.
//! Each holder writes who it is into the file, for the one that is refused.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::{DomainUuid, Error, Result};

/// The longest description of a holder that is kept.
const HOLDER_BYTES_MAX: usize = 200;

/// How long to sleep between two tries: short at first, since most locks are held for milliseconds.
const POLL_FIRST: Duration = Duration::from_micros(100);
const POLL_LAST: Duration = Duration::from_millis(2);

/// How a file is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Together with others that share.
    Shared,
    /// Alone.
    Exclusive,
}

/// A locked file. Dropping it unlocks.
#[derive(Debug)]
pub(crate) struct LockedFile {
    file: File,
}

impl LockedFile {
    /// Opens `path`, creating it when missing, and locks it. `None` when someone else has it.
    ///
    /// The file is opened anew each time: a `flock` belongs to the open file, so that two threads of
    /// one process keep each other out just as two processes do.
    pub(crate) fn try_lock(path: &Path, mode: Mode) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open the lock", path))?;
        match try_flock(&file, mode) {
            Ok(true) => Ok(Some(Self { file })),
            Ok(false) => Ok(None),
            Err(error) => Err(Error::io("lock", path)(error)),
        }
    }

    /// As [`try_lock`](Self::try_lock), trying again until `deadline`.
    pub(crate) fn lock_until(path: &Path, mode: Mode, deadline: Instant) -> Result<Option<Self>> {
        let mut pause = POLL_FIRST;
        loop {
            if let Some(locked) = Self::try_lock(path, mode)? {
                return Ok(Some(locked));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL_LAST);
        }
    }

    /// Writes who holds the lock. A courtesy: it failing does not matter.
    pub(crate) fn describe(&self, holder: &str) {
        let mut line = [b' '; HOLDER_BYTES_MAX];
        let text = clip(holder, HOLDER_BYTES_MAX - 1).as_bytes();
        line[..text.len()].copy_from_slice(text);
        line[HOLDER_BYTES_MAX - 1] = b'\n';
        let _ = self.file.write_all_at(&line, 0);
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Closing would do, but for a child that another thread is starting this very moment: between
        // its fork and its exec it holds a copy of the open file.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Locks an open file without waiting; false when someone else has it.
pub(crate) fn try_flock(file: &File, mode: Mode) -> io::Result<bool> {
    let operation = match mode {
        Mode::Shared => FlockOperation::NonBlockingLockShared,
        Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the last holder of the lock at `path` wrote about itself.
pub(crate) fn holder_of(path: &Path) -> String {
    let mut line = vec![0; HOLDER_BYTES_MAX];
    let read = File::open(path).and_then(|file| file.read_at(&mut line, 0));
    line.truncate(read.unwrap_or(0));
    let text = String::from_utf8_lossy(&line);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() {
        "another process".to_owned()
    } else {
        text
    }
}

/// This process, for the ones who have to wait for it: `virtkeep backup vm1 (process 4711)`.
pub(crate) fn describe_process(command: &str) -> String {
    format!("{command} (process {})", std::process::id())
}

fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Keeps a second backup of the same domain out, until dropped.
#[derive(Debug)]
pub struct DomainLock {
    _locked: LockedFile,
}

impl DomainLock {
    /// Takes the lock of one domain; [`Error::Busy`] at once, naming the holder, when it is taken.
    /// `command` is what the next one will be told about this holder.
    pub(crate) fn take(locks: &Path, domain: DomainUuid, command: &str) -> Result<Self> {
        let path = locks.join(format!("domain-{domain}"));
        take(&path, command, || format!("the backup of domain {domain}"))
            .map(|locked| Self { _locked: locked })
    }
}

/// Keeps a second prune, forget or repair out, until dropped.
#[derive(Debug)]
pub struct MaintenanceLock {
    _locked: LockedFile,
}

impl MaintenanceLock {
    /// Takes the lock; [`Error::Busy`] at once, naming the holder, when it is taken.
    pub fn take(locks: &Path, command: &str) -> Result<Self> {
        let path = locks.join("maintenance");
        take(&path, command, || {
            "the maintenance of this repository".to_owned()
        })
        .map(|locked| Self { _locked: locked })
    }
}

fn take(path: &Path, command: &str, what: impl Fn() -> String) -> Result<LockedFile> {
    match LockedFile::try_lock(path, Mode::Exclusive)? {
        Some(locked) => {
            locked.describe(&describe_process(command));
            Ok(locked)
        }
        None => Err(Error::Busy {
            what: what(),
            holder: holder_of(path),
        }),
    }
}
