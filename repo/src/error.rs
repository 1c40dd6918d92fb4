//! What can go wrong in the engine, typed so that the program can tell the cases apart.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::check::reason;
use crate::{PointId, RawId, RecordKind, SourceError};

/// Result of the engine's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the engine could not do what was asked. Every message names the file or object and, where
/// there is one, the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file of the repository.
    #[error("cannot {verb} {}{}", path.display(), offset.map(|o| format!(" at offset {o}")).unwrap_or_default())]
    Io {
        /// What was tried, as in "cannot {verb}": `read`, `create`, `sync`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: Option<u64>,
        /// What the system said.
        source: io::Error,
    },

    /// There is nothing at this path.
    #[error("no repository at {}: create one with `virtkeep -r {} init`", path.display(), path.display())]
    NoRepository {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// There is something, but it is no repository.
    #[error("{} is not a virtkeep repository: {why}", path.display())]
    NotARepository {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },

    /// The settings cannot be used.
    #[error("{}{}: {why}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: Option<usize>,
        /// What is wrong and what to do.
        why: String,
    },

    /// `init` was pointed at something that exists.
    #[error("{} already exists: {why}", path.display())]
    AlreadyExists {
        /// Where it is.
        path: PathBuf,
        /// What is there and what to do.
        why: String,
    },

    /// The repository was made by a newer virtkeep.
    #[error(
        "repository format version {found} is newer than this virtkeep understands ({known}): update virtkeep"
    )]
    NewerFormat {
        /// The version in `config.toml`.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },

    /// The repository uses something this program does not know.
    #[error(
        "the repository uses the feature {feature:?}, which this virtkeep does not know: update virtkeep"
    )]
    UnknownFeature {
        /// Its name in `config.toml`.
        feature: String,
    },

    /// The repository is on a file system that several hosts may share.
    #[error("{} is on a network file system ({kind}): locks are not safe there. Run virtkeep on the host that holds the disks, or pass --unsafe-network-fs if no other host ever opens the repository", path.display())]
    NetworkFileSystem {
        /// The repository.
        path: PathBuf,
        /// Name of the file system's type.
        kind: &'static str,
    },

    /// Someone else holds a lock that this command needs.
    #[error("{what} is locked by {holder}: wait for it, then try again")]
    Busy {
        /// What is locked.
        what: String,
        /// Who holds it, as far as is known.
        holder: String,
    },

    /// The repository cannot be written to, and the command has to.
    #[error("the repository at {} is read-only: {why}", path.display())]
    ReadOnly {
        /// The repository.
        path: PathBuf,
        /// What makes it so.
        why: String,
    },

    /// A point that is not (or no longer) there.
    #[error("no restore point {point}: `virtkeep list` shows the points there are")]
    NoSuchPoint {
        /// The point asked for.
        point: PointId,
    },

    /// The point must not be forgotten.
    #[error("the restore point {point} is pinned ({reason}): `virtkeep unpin {point}` first")]
    Pinned {
        /// The point.
        point: PointId,
        /// Why, in the words of whoever pinned it.
        reason: String,
    },

    /// A pin that cannot be read: what it keeps is not known.
    #[error("the pin {} is damaged ({why}), so that nobody knows which points it keeps, and nothing may be forgotten or pruned. Put a copy of the file back; or `virtkeep pin` the points that must stay, then `virtkeep unpin {name}`", path.display())]
    DamagedPin {
        /// What it is removed by.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// A point that was forgotten, and of which prune has taken something.
    #[error(
        "the restore point {point} was forgotten, and prune has taken bytes of it: it cannot be restored whole any more. `virtkeep restore --salvage` gives back what is left"
    )]
    Pruned {
        /// The point.
        point: PointId,
    },

    /// The repository only takes in, by its own settings.
    #[error("the repository at {} is append-only: nothing in it may be forgotten, pruned or repaired. Whoever may edit its config.toml can allow it there, with `append_only = false`", path.display())]
    AppendOnly {
        /// The repository.
        path: PathBuf,
    },

    /// Stored bytes are not what they should be.
    #[error(
        "damage in {what}: {found}, expected {expected}. Run `virtkeep check --read-data` for the extent of it"
    )]
    Corrupt {
        /// The object and place.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },

    /// An id that a point needs is in no pack.
    #[error("the repository has lost {what}: run `virtkeep check` for the extent of the damage")]
    Missing {
        /// Kind and id.
        what: String,
    },

    /// A range of a disk cannot be read.
    #[error(
        "its bytes {start} to {end} cannot be read: {why}. `virtkeep restore --salvage` gives back all the rest"
    )]
    DiskDamage {
        /// The first byte of the disk that is lost.
        start: u64,
        /// The first behind it that is not.
        end: u64,
        /// What is wrong with the repository.
        why: String,
    },

    /// Damage hides what is still needed.
    #[error(
        "cannot prune, and nothing was removed: {why}. Run `virtkeep repair`; back the domains up again, or forget the points that cannot be saved"
    )]
    Unprunable {
        /// What cannot be read.
        why: String,
    },

    /// No pack can be verified at all.
    #[error(
        "none of the packs in {} ({packs}) can be verified, and nothing was changed: the id_key or chunk_size in config.toml is wrong, or all of them are damaged. Put a copy of the right config.toml back, then try again; if it is right, put a copy of packs/ back, or move that away and run `virtkeep repair --index` to go on without any",
        path.display()
    )]
    NothingVerifies {
        /// The repository.
        path: PathBuf,
        /// How many packs there are.
        packs: u64,
    },

    /// All packs are gone.
    #[error(
        "every pack that the index names ({packs}) is gone from {}, and nothing was changed: mount what belongs there, or put a copy back, then try again. If there is none, nothing can be restored any more: `virtkeep repair --index` goes on without them, and the next backups store everything anew",
        path.display()
    )]
    PacksGone {
        /// The directory of the packs.
        path: PathBuf,
        /// How many packs there were.
        packs: u64,
    },

    /// The index is missing or damaged. Nothing is lost: it is a cache.
    #[error("the index {} cannot be used: {why}. Nothing is lost, it is only a cache: run `virtkeep repair` to build it anew", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// A disk could not be read.
    #[error("{0}")]
    Source(#[source] SourceError),

    /// A disk of a size that cannot be backed up.
    #[error(
        "a disk of {bytes} bytes cannot be backed up: the size must be a multiple of 512, at most 2^63"
    )]
    DiskSize {
        /// Its size.
        bytes: u64,
    },

    /// Stopped on request.
    #[error("interrupted")]
    Cancelled,

    /// An earlier write failed; nothing more is written by this command.
    #[error("an earlier write to the repository failed")]
    Poisoned,
}

impl Error {
    /// For `map_err` on file operations: an I/O error with its verb and path.
    pub(crate) fn io(
        verb: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            verb,
            path,
            offset: None,
            source,
        }
    }

    /// That an id is in no pack.
    pub(crate) fn missing(kind: RecordKind, id: RawId) -> Self {
        Self::Missing {
            what: format!("{} {id}", kind.name()),
        }
    }

    /// That `range` of a disk cannot be read because of `error`.
    pub(crate) fn disk_damage(range: Range<u64>, error: &Self) -> Self {
        Self::DiskDamage {
            start: range.start,
            end: range.end,
            why: reason(error),
        }
    }

    /// Whether stored bytes are wrong, gone, or cannot be read: what other copies of them help against.
    /// What another user may read is not damaged, nor what this process or this moment is to blame for.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. } => !passes(source),
            Self::Corrupt { .. } | Self::Missing { .. } | Self::DiskDamage { .. } => true,
            _ => false,
        }
    }

    /// What a damage consists of, without the advice to look for its extent.
    pub fn reason(&self) -> String {
        match self {
            Self::Corrupt {
                what,
                expected,
                found,
            } => format!("damage in {what}: {found}, expected {expected}"),
            Self::Missing { what } => format!("{what} is lost"),
            Self::Io { source, .. } => format!("{self}: {}", words(source)),
            other => other.to_string(),
        }
    }

    /// Whether the cause is that no space is left.
    pub fn is_no_space(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// What the system said, without the number that the standard library puts behind it, and the way out
/// where somebody has put something else in the place of a file.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text
        .rsplit_once(" (os error ")
        .map_or(&text[..], |(w, _)| w);
    match error.kind() {
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            format!("{words}; move away what stands in its place")
        }
        _ => words.to_owned(),
    }
}

/// Whether an error says nothing of what is stored: it may not be read, what it takes to read is short, or the
/// whole storage is away.
fn passes(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::OutOfMemory,
        io::ErrorKind::Interrupted,
        io::ErrorKind::TimedOut,
        io::ErrorKind::NotConnected,
        io::ErrorKind::StaleNetworkFileHandle,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::NetworkDown,
    ];
    let numbers = [Errno::MFILE, Errno::NFILE, Errno::NODEV, Errno::NXIO];
    kinds.contains(&error.kind())
        || Errno::from_io_error(error).is_some_and(|number| numbers.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_no_damage_and_what_a_medium_cannot_read_is() {
        let is_damage = |number: Errno| {
            let error = Error::Io {
                verb: "read",
                path: PathBuf::from("packs/0a/0a1b"),
                offset: Some(0),
                source: number.into(),
            };
            error.is_damage()
        };
        for number in [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA] {
            assert!(is_damage(number), "{number}");
        }
        for number in [
            Errno::MFILE,
            Errno::NOMEM,
            Errno::ACCESS,
            Errno::STALE,
            Errno::NODEV,
        ] {
            assert!(!is_damage(number), "{number}");
        }
    }
}
