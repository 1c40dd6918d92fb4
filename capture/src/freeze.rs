//! Freezing the guest's file systems for a moment, and thawing them whatever happens.
//!
//! Three things thaw: [`Frozen::thaw`] in the normal course, its `Drop` on every other way out of
//! the process's own code, and the guard program when the process is killed. Linux guests have no
//! time limit of their own.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::event::{Event, Journal};
use crate::host::{DomainRef, Host};
use crate::libvirt::{CallResult, DomainHandle, RunState};
use crate::options::Options;

/// How long the agent may take to freeze or thaw.
const AGENT_LIMIT_SECONDS: i32 = 10;
/// libvirt's own default: wait for the agent forever.
const AGENT_LIMIT_DEFAULT: i32 = -2;
const THAW_TRIES: u32 = 3;
/// How often the guard tries, which may have to wait for the daemon to come back.
const ORPHAN_TRIES: u32 = 60;
const RETRY: Duration = Duration::from_millis(500);
/// How long the guard is waited for.
const GUARD_LIMIT: Duration = Duration::from_secs(60);
/// What the guard is told when it is not needed any more.
const ALL_IS_WELL: &[u8] = b"thawed\n";

/// A guest that has been, or may have been, frozen. Dropping it thaws.
pub(crate) struct Frozen<'a> {
    domain: &'a DomainRef,
    journal: &'a Journal<'a>,
    uri: &'a str,
    guard: Option<Child>,
    since: Instant,
    is_frozen: bool,
    is_thawed: bool,
}

impl<'a> Frozen<'a> {
    /// Tries to freeze the guest. A failure is a warning: the backup goes on without.
    pub(crate) fn freeze(
        host: &'a Host,
        domain: &'a DomainRef,
        options: &Options,
        journal: &'a Journal<'a>,
    ) -> Self {
        let guard = options.thaw_guard.as_deref().and_then(|words| {
            match start_guard(words, host, domain) {
                Ok(child) => Some(child),
                Err(error) => {
                    journal.warn(format!(
                        "no guard thaws the guest should this process be killed: {error}"
                    ));
                    None
                }
            }
        });
        // From here on it thaws when dropped: a freeze that failed may still take effect later.
        let mut frozen = Self {
            domain,
            journal,
            uri: host.uri(),
            guard,
            since: Instant::now(),
            is_frozen: false,
            is_thawed: false,
        };
        let handle = &domain.handle;
        let result = handle
            .set_agent_timeout(AGENT_LIMIT_SECONDS)
            .and_then(|()| handle.freeze());
        match result {
            Ok(filesystems) => {
                frozen.is_frozen = true;
                journal.event(Event::Frozen { filesystems });
            }
            Err(error) => journal.event(Event::FreezeSkipped {
                reason: format!("the guest agent refused: {error}"),
            }),
        }
        frozen
    }

    /// Whether the guest agent said that it is frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Thaws now. Returns whether the guest had been frozen all the time.
    pub(crate) fn thaw(mut self) -> bool {
        self.thaw_once() && self.is_frozen
    }

    fn thaw_once(&mut self) -> bool {
        if std::mem::replace(&mut self.is_thawed, true) {
            return true;
        }
        // A freeze that was refused needs no insisting.
        let tries = if self.is_frozen { THAW_TRIES } else { 1 };
        let result = thaw(&self.domain.handle, self.uri, tries);
        match (&result, self.is_frozen) {
            (Ok(_), true) => self.journal.event(Event::Thawed {
                millis: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            (Err(error), true) => self.journal.warn(format!(
                "the guest may still be frozen, it did not answer: {error}. Run `virsh domfsthaw {}`",
                self.domain.uuid()
            )),
            // It never froze: an answer that there is nothing to thaw is what we want.
            (_, false) => {}
        }
        if let Some(mut guard) = self.guard.take() {
            if result.is_ok() || !self.is_frozen {
                let told = guard
                    .stdin
                    .take()
                    .map(|mut pipe| pipe.write_all(ALL_IS_WELL));
                drop(told);
            }
            drop(guard.stdin.take());
            // One that has something to do is left alone with it after a while.
            let deadline = Instant::now() + GUARD_LIMIT;
            while matches!(guard.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        result.is_ok()
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.thaw_once();
    }
}

fn thaw(handle: &DomainHandle, uri: &str, tries: u32) -> CallResult<u32> {
    let mut result = handle.thaw();
    for _ in 1..tries {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(RETRY);
        let _ = handle.renew(uri);
        result = handle.thaw();
    }
    // Others who use the agent shall find libvirt's own default.
    let _ = handle.set_agent_timeout(AGENT_LIMIT_DEFAULT);
    result
}

fn start_guard(
    words: &[std::ffi::OsString],
    host: &Host,
    domain: &DomainRef,
) -> std::io::Result<Child> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| std::io::Error::other("no program is named"))?;
    Command::new(program)
        .args(arguments)
        .arg(host.uri())
        .arg(domain.uuid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // A signal for our process group is not meant for it.
        .process_group(0)
        .spawn()
}

/// The body of the program that [`Options::thaw_guard`] names: waits for the end of standard input
/// and, unless told by then that all is well, thaws the domain.
///
/// # Errors
/// When the domain cannot be reached or thawed.
pub fn thaw_when_orphaned(uri: &str, uuid: &str) -> Result<()> {
    let mut told = Vec::new();
    // A pipe that breaks says the same as one that ends.
    let _ = std::io::stdin().read_to_end(&mut told);
    if told == ALL_IS_WELL {
        return Ok(());
    }
    let mut tries = 1..ORPHAN_TRIES;
    loop {
        match thaw_domain(uri, uuid) {
            Err(Error::NoDaemon { .. } | Error::Libvirt { .. }) if tries.next().is_some() => {
                std::thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}

fn thaw_domain(uri: &str, uuid: &str) -> Result<()> {
    let host = Host::connect(Some(uri))?;
    let domain = host.domain(uuid)?;
    if domain.state()? == RunState::ShutOff {
        return Ok(());
    }
    thaw(&domain.handle, uri, 1)
        .map(drop)
        .map_err(Error::libvirt(format!("thaw domain {}", domain.name())))
}
