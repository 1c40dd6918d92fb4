//! How a command ended: the exit code for the caller, the stable code of its error for programs.
//!
//! Commands return an [`Exit`] or an error; only `main` turns either into an exit code.

use std::fmt;
use std::io::ErrorKind;

use virtkeep_capture::Error as Capture;
use virtkeep_repo::Error as Engine;

use crate::boot::damage::Unreadable;
use crate::boot::space::{Full, NoRoom};
use crate::boot::work::AtWork;
use crate::context::NoRepositoryGiven;
use crate::output::{OutputError, shown, shown_lines};
use crate::point_spec::PointError;
use crate::signals;

/// What the exit code of the program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All was done, notes included.
    Done,
    /// Nothing came of it.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// Some of it was done: a domain of several failed.
    Partly,
    /// Stored bytes are not what they should be.
    Damage,
    /// There is no repository there.
    NoRepository,
    /// Someone else is at work on the same thing.
    Busy,
    /// Ended by this signal.
    Signal(i32),
}

impl Exit {
    /// The number for the caller.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partly => 3,
            Self::Damage => 4,
            Self::NoRepository => 10,
            Self::Busy => 11,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(1),
        }
    }
}

/// The command line makes no sense, in a way that the parser cannot see.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A mistake in usage, as an error.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(text.into()))
}

/// A policy would take the last point of a domain.
#[derive(Debug, thiserror::Error)]
#[error(
    "nothing was forgotten: the policy keeps no point of {}. Keep more, leave the domain out with --domain, or name its points to forget all of them",
    shown(domain)
)]
pub(crate) struct WouldEmpty {
    /// The domain.
    pub(crate) domain: String,
}

/// An error, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For the exit code.
    pub(crate) exit: Exit,
    /// The stable code of `"type":"error"` lines.
    pub(crate) code: &'static str,
    /// What failed, on which disk or file, and what to do next.
    pub(crate) message: String,
}

impl Failure {
    /// Looks through an error for what the caller has to know.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let (exit, code) = error
            .chain()
            .find_map(classify)
            .unwrap_or((Exit::Failed, "failed"));
        Self {
            exit,
            code,
            message: message(error, advice(error, code)),
        }
    }
}

fn classify(error: &(dyn std::error::Error + 'static)) -> Option<(Exit, &'static str)> {
    if let Some(error) = error.downcast_ref::<Engine>() {
        return engine(error);
    }
    if let Some(error) = error.downcast_ref::<Capture>() {
        return Some(capture(error));
    }
    if error.is::<NoRoom>() || error.is::<Full>() {
        return Some((Exit::Failed, "image-space"));
    }
    if error.is::<Unreadable>() {
        return Some((Exit::Damage, "damage"));
    }
    if error.is::<AtWork>() {
        return Some((Exit::Busy, "busy"));
    }
    if error.is::<NoRepositoryGiven>() {
        return Some((Exit::NoRepository, "no-repository"));
    }
    if let Some(error) = error.downcast_ref::<PointError>() {
        return Some(match error {
            PointError::Syntax(_) => (Exit::Usage, "usage"),
            PointError::NotFound(_) => (Exit::Failed, "not-found"),
            PointError::Ambiguous(_) => (Exit::Failed, "ambiguous"),
        });
    }
    if error.is::<WouldEmpty>() {
        return Some((Exit::Failed, "would-empty"));
    }
    if error.is::<Usage>() {
        return Some((Exit::Usage, "usage"));
    }
    if let Some(OutputError(error)) = error.downcast_ref::<OutputError>()
        && error.kind() == std::io::ErrorKind::BrokenPipe
    {
        return Some((Exit::Done, "closed"));
    }
    if let Some(error) = error.downcast_ref::<libnbd::Error>() {
        let errno = error.errno().map(std::io::Error::from_raw_os_error);
        return errno.as_ref().and_then(system);
    }
    error.downcast_ref::<std::io::Error>().and_then(system)
}

fn system(io: &std::io::Error) -> Option<(Exit, &'static str)> {
    match io.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Some((Exit::Failed, "no-space"))
        }
        std::io::ErrorKind::PermissionDenied => Some((Exit::Failed, "no-permission")),
        std::io::ErrorKind::AlreadyExists => Some((Exit::Failed, "exists")),
        _ => None,
    }
}

fn capture(error: &Capture) -> (Exit, &'static str) {
    match error {
        Capture::Repo(error) => engine(error).unwrap_or((Exit::Failed, "repository")),
        Capture::Cancelled => interrupted(),
        Capture::ForeignJob { .. } | Capture::DomainBusy { .. } => (Exit::Busy, error.code()),
        _ => (Exit::Failed, error.code()),
    }
}

/// Stopped on request: by a signal, as far as this program goes.
fn interrupted() -> (Exit, &'static str) {
    match signals::caught() {
        Some(number) => (Exit::Signal(number), "interrupted"),
        None => (Exit::Failed, "interrupted"),
    }
}

fn engine(error: &Engine) -> Option<(Exit, &'static str)> {
    Some(match error {
        Engine::NoRepository { .. } => (Exit::NoRepository, "no-repository"),
        Engine::NotARepository { .. } => (Exit::NoRepository, "not-a-repository"),
        Engine::Settings { .. } => (Exit::Failed, "settings"),
        Engine::NewerFormat { .. } => (Exit::Failed, "newer-format"),
        Engine::UnknownFeature { .. } => (Exit::Failed, "unknown-feature"),
        Engine::NetworkFileSystem { .. } => (Exit::Failed, "network-file-system"),
        Engine::AlreadyExists { .. } => (Exit::Failed, "exists"),
        Engine::ReadOnly { .. } => (Exit::Failed, "read-only"),
        Engine::NoSuchPoint { .. } => (Exit::Failed, "not-found"),
        Engine::Pinned { .. } => (Exit::Failed, "pinned"),
        Engine::Pruned { .. } => (Exit::Failed, "pruned"),
        Engine::AppendOnly { .. } => (Exit::Failed, "append-only"),
        Engine::DiskSize { .. } => (Exit::Failed, "disk-size"),
        Engine::Busy { .. } => (Exit::Busy, "busy"),
        Engine::Index { .. } => (Exit::Damage, "index"),
        Engine::Corrupt { .. }
        | Engine::Missing { .. }
        | Engine::DamagedPin { .. }
        | Engine::PacksGone { .. }
        | Engine::DiskDamage { .. }
        | Engine::NothingVerifies { .. }
        | Engine::Unprunable { .. } => (Exit::Damage, "damage"),
        Engine::Cancelled => interrupted(),
        Engine::Io { source, .. } => return system(source),
        // The cause further down says more: the system's error, or the source's.
        _ => return None,
    })
}

/// What to do about what the system refused.
fn advice(error: &anyhow::Error, code: &str) -> &'static str {
    match (code, error.chain().find_map(refused_in_repository)) {
        ("no-space", Some(_)) => {
            ". Free some space there, then run the command again; `virtkeep forget` and `virtkeep prune` work without any"
        }
        ("no-space", None) => ". Free some space there, then run the command again",
        ("no-permission", Some((_, true))) => {
            ". Run virtkeep as a user who may do that, such as root; --no-lock reads without locks"
        }
        ("no-permission", _) => ". Run virtkeep as a user who may do that, such as root",
        (_, Some((ErrorKind::IsADirectory | ErrorKind::NotADirectory, _))) => {
            ". Something else is in the place of a file or directory of the repository: move it away, then run `virtkeep repair`"
        }
        _ => "",
    }
}

/// What the system said of a file of the repository, and whether that is a lock.
fn refused_in_repository(error: &(dyn std::error::Error + 'static)) -> Option<(ErrorKind, bool)> {
    let engine = match error.downcast_ref::<Capture>() {
        Some(Capture::Repo(engine)) => Some(engine),
        _ => error.downcast_ref::<Engine>(),
    };
    let Some(Engine::Io { path, source, .. }) = engine else {
        return None;
    };
    let folder = path.parent().and_then(|folder| folder.file_name());
    let is_lock = folder.is_some_and(|folder| folder == "locks" || folder == "leases");
    Some((source.kind(), is_lock))
}

/// The causes in one line, from the outside in, and what to do next. Some errors repeat their cause:
/// that is said once.
fn message(error: &anyhow::Error, advice: &str) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = without_number(&cause);
        if text.contains(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
    }
    text.push_str(advice);
    shown_lines(&text)
}

/// Cuts the number off that the standard library puts behind the system's own words.
pub(crate) fn without_number(text: &str) -> &str {
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_that_is_repeated_is_said_once() {
        let source: virtkeep_repo::SourceError = "vda: the server went away".into();
        let error = Err::<(), _>(Engine::Source(source))
            .context("cannot back up vm1")
            .unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(
            failure.message,
            "cannot back up vm1: vda: the server went away"
        );
        assert_eq!(failure.exit.code(), 1);
    }

    #[test]
    fn the_first_known_cause_decides_the_exit_code() {
        let busy = Engine::Busy {
            what: "domain vm1".to_owned(),
            holder: "pid 7".to_owned(),
        };
        let error = Err::<(), _>(busy).context("cannot begin").unwrap_err();
        assert_eq!(Failure::of(&error).exit, Exit::Busy);
        assert_eq!(Failure::of(&usage("no")).exit.code(), 2);
        assert_eq!(Exit::Signal(2).code(), 130);
        assert_eq!(Exit::Signal(15).code(), 143);
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = || std::io::Error::from_raw_os_error(28);
        let engine = Engine::Io {
            verb: "write",
            path: "/repo/pack".into(),
            offset: None,
            source: full(),
        };
        for error in [
            anyhow::Error::new(Engine::Source(full().into())),
            anyhow::Error::new(Capture::Repo(engine)),
        ] {
            let failure = Failure::of(&error);
            assert_eq!(failure.code, "no-space");
            assert!(
                failure.message.contains("No space left on device. Free"),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn hostile_bytes_in_a_message_do_not_reach_the_terminal() {
        let error = anyhow::anyhow!("no domain \x1b[31m");
        assert_eq!(Failure::of(&error).message, "no domain \\u{1b}[31m");
    }
}
