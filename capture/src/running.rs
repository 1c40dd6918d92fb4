//! A backup job under way: looking after its guest, ending it, undoing it.
//!
//! However a capture ends, the job does, and without a point its checkpoint goes, too. What libvirt
//! or QEMU keep from being cleared is a warning; the next run clears it.

use std::time::{Duration, Instant};

use virtkeep_repo::Cancel;

use crate::checkpoints;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::job::{self, Found, JobFiles};
use crate::libvirt::{ErrorKind, RunState};
use crate::live::Capture;
use crate::plan::Plan;

/// How long a daemon that has been stopped is waited for.
const REACH_LIMIT: Duration = Duration::from_secs(30);
const REACH_RETRY: Duration = Duration::from_millis(200);

/// A job that has been asked for. Dropped, it undoes everything: job, files, checkpoint.
pub(crate) struct Running<'a> {
    capture: &'a Capture<'a>,
    pub(crate) files: JobFiles,
    /// The checkpoint that exists, or may exist, since the job was asked for.
    pub(crate) checkpoint: Option<String>,
    pub(crate) all_disks: Vec<String>,
    pub(crate) was_running: bool,
    ended: bool,
    /// QEMU or libvirt did not answer when the job was to end: nothing more is asked of them.
    pub(crate) is_stuck: bool,
}

impl<'a> Running<'a> {
    /// To be made before the job is asked for: whatever comes of that is undone.
    pub(crate) fn new(
        capture: &'a Capture<'a>,
        files: JobFiles,
        checkpoint: Option<String>,
        all_disks: Vec<String>,
        state: RunState,
    ) -> Self {
        Self {
            capture,
            files,
            checkpoint,
            all_disks,
            was_running: state == RunState::Running,
            ended: false,
            is_stuck: false,
        }
    }

    /// Ends the job; whether the guest had to be resumed.
    pub(crate) fn end(&mut self) -> bool {
        if std::mem::replace(&mut self.ended, true) {
            return false;
        }
        let capture = self.capture;
        reach(capture);
        if let Err(error) = job::end(&capture.domain.handle, &capture.names, &self.files) {
            self.is_stuck = true;
            capture.journal.warn(format!(
                "the backup job could not be ended, the next backup clears it: {error}"
            ));
        }
        resume_after_io_error(capture, self.was_running)
    }

    /// Undoes everything, and completes the error with what came of it.
    pub(crate) fn give_up(mut self, mut error: Error) -> Error {
        let was_resumed = self.end();
        if let Error::GuestPaused { resumed, .. } = &mut error {
            *resumed = was_resumed;
        }
        error
    }

    /// Deletes the new checkpoint, if it exists.
    fn undo_checkpoint(&mut self) {
        let Some(name) = self.checkpoint.take() else {
            return;
        };
        let capture = self.capture;
        if self.is_stuck {
            let text = format!("checkpoint {name} stays until the next backup deletes it");
            capture.journal.warn(text);
            return;
        }
        let all = self.all_disks.clone();
        let wanted = name.clone();
        let removed = job::bounded(&capture.domain.handle, move |handle| {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            checkpoints::remove(handle, &wanted, &all)
        });
        match removed {
            Err(error) if error.kind() == ErrorKind::Unsupported => capture.journal.note(format!(
                "checkpoint {name} stays until the next backup: the domain is shut off"
            )),
            Err(error) => capture.journal.warn(format!(
                "checkpoint {name} could not be deleted, the next backup does it: {error}"
            )),
            Ok(()) => {}
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.end();
        self.undo_checkpoint();
    }
}

/// One look at what may hurt the guest.
pub(crate) fn look_after(capture: &Capture<'_>, plan: &Plan, was_running: bool) -> Result<()> {
    let domain = || capture.domain.name().to_owned();
    match capture.domain.handle.state() {
        Ok(RunState::ShutOff) => return Err(Error::DomainStopped { domain: domain() }),
        Ok(RunState::PausedByIoError) if was_running => {
            return Err(Error::GuestPaused {
                domain: domain(),
                resumed: false,
            });
        }
        Err(error) if error.kind() == ErrorKind::NoDomain => {
            return Err(Error::DomainStopped { domain: domain() });
        }
        // Other failures pass, or show in the reading.
        Err(_) => drop(capture.domain.handle.renew(capture.host.uri())),
        Ok(_) => {}
    }
    for disk in &plan.disks {
        if let Some(scratch) = &disk.scratch {
            scratch.check()?;
        }
    }
    Ok(())
}

/// A connection that broke is the consequence of something; this finds out of what.
pub(crate) fn explain(capture: &Capture<'_>, running: &Running<'_>, error: Error) -> Error {
    if !matches!(error, Error::Nbd { .. }) {
        return error;
    }
    let domain = capture.domain.name().to_owned();
    match capture.domain.settled_state(&Cancel::new()) {
        Ok(RunState::ShutOff) | Err(_) => return Error::DomainStopped { domain },
        Ok(RunState::PausedByIoError) if running.was_running => {
            return Error::GuestPaused {
                domain,
                resumed: false,
            };
        }
        Ok(_) => {}
    }
    match job::current(capture.domain, &capture.names) {
        Ok(Found::Nothing) => Error::JobEnded { domain },
        _ => error,
    }
}

/// Lets a guest run again that QEMU paused for want of scratch space.
pub(crate) fn resume_after_io_error(capture: &Capture<'_>, was_running: bool) -> bool {
    let handle = &capture.domain.handle;
    if !was_running || handle.state() != Ok(RunState::PausedByIoError) {
        return false;
    }
    match handle.resume() {
        Ok(()) => {
            capture
                .journal
                .warn("the guest had been paused by an I/O error and runs again");
            true
        }
        Err(error) => {
            capture.journal.warn(format!(
                "the guest is paused by an I/O error and could not be resumed: {error}"
            ));
            false
        }
    }
}

/// Deletes all our checkpoints but one. Failures are warnings: the next run tries again.
pub(crate) fn delete_checkpoints_but(
    capture: &Capture<'_>,
    kept: Option<&str>,
    all_disks: &[String],
) {
    let handle = &capture.domain.handle;
    let all: Vec<&str> = all_disks.iter().map(String::as_str).collect();
    let ours = checkpoints::ours(handle, &capture.names).unwrap_or_default();
    for name in ours {
        if Some(&*name) == kept {
            continue;
        }
        match checkpoints::remove(handle, &name, &all) {
            Ok(()) => capture.journal.event(Event::CheckpointDeleted { name }),
            Err(error) => capture.journal.warn(format!(
                "checkpoint {name} could not be deleted, the next backup tries again: {error}"
            )),
        }
    }
}

/// Renews a connection that was cut by a restart of the daemon, which the job has survived.
fn reach(capture: &Capture<'_>) {
    let deadline = Instant::now() + REACH_LIMIT;
    loop {
        let uri = capture.host.uri().to_owned();
        let reached = job::bounded(&capture.domain.handle, move |handle| match handle.state() {
            Ok(_) => Ok(()),
            Err(_) => handle.renew(&uri).map(drop),
        });
        if reached.is_ok() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(REACH_RETRY);
    }
}
