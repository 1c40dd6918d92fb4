//! Working on a recovery: one process at a time, whichever it is.
//!
//! Whoever starts, finishes or undoes a recovery holds the lock on a file beside its socket, from before
//! the record is read until the last step is done. So no two can take each other's images away. The
//! socket is named after the domain: of two commands that would make the same domain, even from two
//! repositories, the second waits its turn, and then finds the name taken.
//!
//! When no command is at it, the keeper is ([`super::keeper`]); it stands back when a command wants to work.
//!
//! The file also tells whether the guest is being paused for a moment: whoever takes over from one that was
//! killed in that moment lets the guest go on. And it tells whether the data is to be moved in although the
//! recovery began without that, since `--finish` was said: then the keeper goes on with it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

use super::record::Recovery;
use super::server::{keeper, remove};
use crate::output::shown;

/// How long the keeper may take to stand back.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a command waits for another one.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What the file says while a guest is paused for a moment.
const PAUSING: &str = "pausing";
/// What it says once the data is to be moved in.
const MOVING: &str = "moving";

/// Another command is at it.
#[derive(Debug, thiserror::Error)]
#[error("another command works on the recovery of {} right now: wait until it has ended", shown(.0))]
pub(crate) struct AtWork(String);

/// The right to work on a recovery. It ends with this value, or with the process.
#[derive(Debug)]
pub(crate) struct Work {
    file: File,
    path: PathBuf,
    /// Whether whoever had it before was killed while he paused the guest.
    pub(crate) left_paused: bool,
    /// Whether `--finish` was said.
    pub(crate) is_moving: bool,
}

impl Work {
    /// Takes the work, from the keeper if need be. The directory of the socket is there.
    ///
    /// # Errors
    /// [`AtWork`], when another command has it and does not let go.
    pub(crate) fn take(recovery: &Recovery) -> Result<Self> {
        let began = Instant::now();
        let mut others = began;
        loop {
            if let Some(work) = Self::try_take(recovery)? {
                return Ok(work);
            }
            let holder = read_number(&recovery.work_file());
            match keeper(recovery)? {
                Some(keeper) if holder == Some(keeper.pid.as_raw_pid()) => {
                    // Gone meanwhile is as good.
                    let _ = kill_process(keeper.pid, Signal::USR1);
                    others = Instant::now();
                }
                _ => {}
            }
            if others.elapsed() > PATIENCE_WITH_OTHERS || began.elapsed() > PATIENCE {
                return Err(AtWork(recovery.domain.clone()).into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The same without waiting; none while somebody else works.
    pub(crate) fn try_take(recovery: &Recovery) -> Result<Option<Self>> {
        let path = recovery.work_file();
        let Some(mut file) = lock(&path)? else {
            return Ok(None);
        };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let says = |word| text.split(' ').any(|said| said == word);
        let mut work = Self {
            left_paused: says(PAUSING),
            is_moving: says(MOVING),
            file,
            path,
        };
        work.write()?;
        Ok(Some(work))
    }

    /// Notes that the guest is being paused for a moment, or is not any more.
    pub(crate) fn set_pausing(&mut self, pausing: bool) -> Result<()> {
        self.left_paused = pausing;
        self.write()
    }

    /// Notes that the data is to be moved in, whoever does it.
    pub(crate) fn set_moving(&mut self) -> Result<()> {
        self.is_moving = true;
        self.write()
    }

    /// Ends it for good: the recovery is over, and the file goes.
    pub(crate) fn end(self) -> Result<()> {
        remove(&self.path)
    }

    fn write(&mut self) -> Result<()> {
        let words = [(self.left_paused, PAUSING), (self.is_moving, MOVING)];
        let words: Vec<_> = words.iter().filter(|(is_so, _)| *is_so).collect();
        let words: Vec<_> = words.iter().map(|(_, word)| *word).collect();
        // Whoever is killed before the file is cut leaves the end of a longer line behind the last space.
        write_number(&mut self.file, &(words.join(" ") + " "))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Locks a file, which is made where it is missing; none while somebody else has it locked.
pub(super) fn lock(path: &Path) -> Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // Whoever had it before may have removed it at last.
        let locked = file.metadata()?;
        match path.metadata() {
            Ok(there) if there.dev() == locked.dev() && there.ino() == locked.ino() => {
                return Ok(Some(file));
            }
            _ => {}
        }
    }
}

/// Whether somebody has a file locked. To find that out locks it for a moment, shared.
pub(super) fn is_locked(path: &Path) -> Result<bool> {
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        file => {
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err())
        }
    }
}

/// Writes our number into a locked file, and a text behind it.
pub(super) fn write_number(file: &mut File, text: &str) -> std::io::Result<()> {
    let line = format!("{} {text}", std::process::id());
    file.rewind()?;
    file.write_all(line.as_bytes())?;
    file.set_len(line.len() as u64)
}

/// The number of the process that has written into a file.
pub(super) fn read_number(path: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok()?;
    text.split(' ').next()?.parse().ok()
}
