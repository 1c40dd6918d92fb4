//! What happens during a capture, as told to whoever watches.
//!
//! Everything but progress is also a line of the run's log, which is kept in the point.

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;

use virtkeep_repo::{ByteLen, CaptureMode, Clock, DiskStats, Env, PointId, Progress, UnixMillis};

/// Hears what a capture does. Called from several threads.
pub trait Observer: Send + Sync {
    /// Something happened. `event.to_string()` is a line for people.
    fn event(&self, event: &Event);

    /// `bytes` more of the disk (by position) are dealt with.
    fn passed(&self, target: &str, bytes: u64) {
        let _ = (target, bytes);
    }

    /// `bytes` more of the disk were really read.
    fn moved(&self, target: &str, bytes: u64) {
        let _ = (target, bytes);
    }
}

/// Nobody is watching.
pub struct NoObserver;

impl Observer for NoObserver {
    fn event(&self, _: &Event) {}
}

/// Something that happened during a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The backup has begun under this name.
    Started {
        /// Name of the domain or image.
        domain: String,
        /// The point to be.
        point: PointId,
    },
    /// A disk is left out.
    LeftOut {
        /// Its target name.
        target: String,
        /// Why.
        reason: String,
    },
    /// How a disk will be read.
    DiskPlanned {
        /// Its target name.
        target: String,
        /// Its size.
        size: ByteLen,
        /// Whole or only what changed.
        mode: CaptureMode,
        /// Why.
        reason: String,
    },
    /// Where a disk's scratch file goes.
    Scratch {
        /// The disk's target name.
        target: String,
        /// The directory.
        dir: PathBuf,
        /// Bytes free there.
        free: u64,
    },
    /// Something that a dead run had left was removed.
    Cleared {
        /// What it was.
        what: String,
    },
    /// The guest's file systems were frozen.
    Frozen {
        /// How many.
        filesystems: u32,
    },
    /// The guest was not frozen.
    FreezeSkipped {
        /// Why.
        reason: String,
    },
    /// The guest runs on.
    Thawed {
        /// How long it had been frozen.
        millis: u64,
    },
    /// The moment that the point will show has been fixed.
    Begun {
        /// The checkpoint made with it.
        checkpoint: Option<String>,
    },
    /// A disk has been read and stored.
    DiskDone {
        /// Its target name.
        target: String,
        /// What it took.
        stats: DiskStats,
    },
    /// The point is durable.
    Committed {
        /// Its name.
        point: PointId,
    },
    /// A checkpoint of ours was removed.
    CheckpointDeleted {
        /// Its name.
        name: String,
    },
    /// Worth knowing, nothing to do about.
    Note(String),
    /// Worth doing something about.
    Warning(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { domain, point } => write!(f, "backing up {domain} as {point}"),
            Self::LeftOut { target, reason } => write!(f, "{target}: left out: {reason}"),
            Self::DiskPlanned {
                target,
                size,
                mode,
                reason,
            } => {
                let mode = match mode {
                    CaptureMode::Full => "full",
                    CaptureMode::Incremental => "incremental",
                };
                write!(f, "{target}: {mode}, {size}: {reason}")
            }
            Self::Scratch { target, dir, free } => {
                let dir = dir.display();
                write!(f, "{target}: scratch file in {dir}, {free} bytes free")
            }
            Self::Cleared { what } => write!(f, "removed what an earlier run left: {what}"),
            Self::Frozen { filesystems: 1 } => write!(f, "guest frozen, 1 file system"),
            Self::Frozen { filesystems } => write!(f, "guest frozen, {filesystems} file systems"),
            Self::FreezeSkipped { reason } => write!(f, "guest not frozen: {reason}"),
            Self::Thawed { millis } => write!(f, "guest thawed after {millis} ms"),
            Self::Begun {
                checkpoint: Some(name),
            } => write!(f, "backup begun with checkpoint {name}"),
            Self::Begun { checkpoint: None } => write!(f, "backup begun without a checkpoint"),
            Self::DiskDone { target, stats } => write!(
                f,
                "{target}: done: {} bytes dirty, {} read, {} new, {} stored",
                stats.dirty_bytes, stats.read_bytes, stats.new_bytes, stats.stored_bytes
            ),
            Self::Committed { point } => write!(f, "point {point} committed"),
            Self::CheckpointDeleted { name } => write!(f, "checkpoint {name} deleted"),
            Self::Note(text) => write!(f, "note: {text}"),
            Self::Warning(text) => write!(f, "warning: {text}"),
        }
    }
}

/// Passes events on and keeps them as the log of the run.
pub(crate) struct Journal<'a> {
    observer: &'a dyn Observer,
    clock: std::sync::Arc<dyn Clock>,
    lines: Mutex<String>,
}

impl<'a> Journal<'a> {
    pub(crate) fn new(observer: &'a dyn Observer) -> Self {
        Self {
            observer,
            clock: Env::system().clock,
            lines: Mutex::default(),
        }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// The lines so far: milliseconds since 1970 and the text of the event.
    pub(crate) fn text(&self) -> String {
        self.lock().clone()
    }

    pub(crate) fn event(&self, event: Event) {
        use fmt::Write;
        // Writing to a String cannot fail.
        let _ = writeln!(self.lock(), "{} {event}", self.clock.now().0);
        self.observer.event(&event);
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.event(Event::Note(text.into()));
    }

    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.event(Event::Warning(text.into()));
    }

    /// The engine's progress on one disk, passed on.
    pub(crate) fn progress<'b>(&'b self, target: &'b str) -> DiskProgress<'b> {
        DiskProgress {
            observer: self.observer,
            target,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.lines
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) struct DiskProgress<'a> {
    observer: &'a dyn Observer,
    target: &'a str,
}

impl Progress for DiskProgress<'_> {
    fn passed(&self, bytes: u64) {
        self.observer.passed(self.target, bytes);
    }

    fn moved(&self, bytes: u64) {
        self.observer.moved(self.target, bytes);
    }
}
