//! The index lock: many readers or one writer, between processes, and nobody starves.
//!
//! Four lock files make one fair lock:
//!
//! - `index`: the lock itself, shared by readers, exclusive for the writer;
//! - `index-gate`: readers pass through it (shared, for an instant); a writer closes it (exclusive),
//!   so that the readers inside drain away and no stream of readers keeps the writer out;
//! - `index-queue`: the writers' turn: one at a time stands at the gate;
//! - `index-waiting`: shared by the readers who found the gate closed. The writer whose turn comes
//!   next lets them through before it closes the gate again, so that no queue of writers keeps a
//!   reader out: a reader waits for two writers at most.
//!
//! Waiting is polling (a `flock` cannot wait with a limit), so order within one kind is left to
//! chance; between the kinds it is not. Letting readers pass is a courtesy with a limit of its own: a
//! reader that was stopped while it waited delays writers by that limit and no more.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lock::{LockedFile, Mode, describe_process, holder_of};
use crate::{Error, Result};

/// How long anybody waits for the index before giving up. Nobody holds it for more than about
/// 100 ms, so this means trouble: a stopped process, or a disk that does not answer.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// How long a writer lets readers pass that found the gate closed.
const COURTESY_MAX: Duration = Duration::from_millis(100);

/// Held while something is locked; dropping it unlocks.
pub trait Held {}

/// A lock for many readers or one writer.
pub trait IndexLock: Send + Sync {
    /// Waits until no writer is inside.
    fn shared(&self) -> Result<Box<dyn Held>>;

    /// Waits until nobody is inside.
    fn exclusive(&self) -> Result<Box<dyn Held>>;
}

/// The lock between processes.
#[derive(Debug)]
pub struct FileGate {
    lock: PathBuf,
    gate: PathBuf,
    queue: PathBuf,
    waiting: PathBuf,
    holder: String,
    wait_max: Duration,
}

struct Inside {
    // In the order of release: the lock before the gate, the gate before the turn.
    _lock: LockedFile,
    _gate: Option<LockedFile>,
    _turn: Option<LockedFile>,
}

impl Held for Inside {}

impl FileGate {
    /// The lock of the repository whose lock files are in `locks`. `command` is shown to those who
    /// waited in vain.
    pub fn new(locks: &Path, command: &str) -> Self {
        Self {
            lock: locks.join("index"),
            gate: locks.join("index-gate"),
            queue: locks.join("index-queue"),
            waiting: locks.join("index-waiting"),
            holder: describe_process(command),
            wait_max: WAIT_MAX,
        }
    }

    /// The same with another limit on waiting.
    #[cfg(test)]
    pub fn with_wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    fn busy(&self) -> Error {
        Error::Busy {
            what: "the index".to_owned(),
            holder: holder_of(&self.queue),
        }
    }

    fn lock(&self, path: &Path, mode: Mode, deadline: Instant) -> Result<LockedFile> {
        LockedFile::lock_until(path, mode, deadline)?.ok_or_else(|| self.busy())
    }
}

impl IndexLock for FileGate {
    fn shared(&self) -> Result<Box<dyn Held>> {
        let deadline = Instant::now() + self.wait_max;
        let (gate, waiting) = match LockedFile::try_lock(&self.gate, Mode::Shared)? {
            Some(gate) => (gate, None),
            None => {
                let waiting = self.lock(&self.waiting, Mode::Shared, deadline)?;
                (
                    self.lock(&self.gate, Mode::Shared, deadline)?,
                    Some(waiting),
                )
            }
        };
        let lock = self.lock(&self.lock, Mode::Shared, deadline)?;
        drop((gate, waiting));
        Ok(Box::new(Inside {
            _lock: lock,
            _gate: None,
            _turn: None,
        }))
    }

    fn exclusive(&self) -> Result<Box<dyn Held>> {
        let deadline = Instant::now() + self.wait_max;
        let turn = self.lock(&self.queue, Mode::Exclusive, deadline)?;
        turn.describe(&self.holder);
        let courtesy = deadline.min(Instant::now() + COURTESY_MAX);
        drop(LockedFile::lock_until(
            &self.waiting,
            Mode::Exclusive,
            courtesy,
        )?);
        let gate = self.lock(&self.gate, Mode::Exclusive, deadline)?;
        let lock = self.lock(&self.lock, Mode::Exclusive, deadline)?;
        Ok(Box::new(Inside {
            _lock: lock,
            _gate: Some(gate),
            _turn: Some(turn),
        }))
    }
}

/// No lock: for file systems that are read-only, and where `--no-lock` says so. Nothing is written.
#[derive(Debug)]
pub struct NoLock {
    repository: PathBuf,
}

impl NoLock {
    /// For the repository in this directory.
    pub fn new(repository: &Path) -> Self {
        Self {
            repository: repository.to_owned(),
        }
    }
}

struct Nothing;

impl Held for Nothing {}

impl IndexLock for NoLock {
    fn shared(&self) -> Result<Box<dyn Held>> {
        Ok(Box::new(Nothing))
    }

    fn exclusive(&self) -> Result<Box<dyn Held>> {
        Err(Error::ReadOnly {
            path: self.repository.clone(),
            why: "it was opened without locks".to_owned(),
        })
    }
}
