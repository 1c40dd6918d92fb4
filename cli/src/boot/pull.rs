//! Moving the data of a recovery into its images beneath the running guest.
//!
//! QEMU does it by itself, one job per disk; here it is begun, begun again where it broke off, and
//! watched. Whoever watches may go at any time.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use virtkeep_repo::{ByteLen, Cancel, Progress};

use super::machine::{Machine, State};
use super::record::Pinned;
use super::server;
use crate::context::Context;
use crate::output::shown;
use crate::progress::DiskProgress;

/// How often it is looked how far the jobs are.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How often a job that broke off is begun again. It does break off when the server is away for long.
const TRIES_MAX: u32 = 20;

/// Why nothing more is being moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it has been.
    Complete,
    /// The guest does not run any more.
    Stopped(State),
    /// We were asked to stop watching.
    Interrupted,
}

/// A disk that is not complete.
#[derive(Default)]
struct Moving {
    progress: Option<DiskProgress>,
    passed: u64,
    tries: u32,
}

/// Moves the data of all disks in.
pub(crate) fn pull(
    context: &Context,
    pinned: &Pinned,
    machine: &mut Machine<'_>,
    cancel: &Cancel,
) -> Result<Outcome> {
    let mut moving: HashMap<String, Moving> = HashMap::new();
    loop {
        if cancel.check().is_err() {
            return Ok(Outcome::Interrupted);
        }
        match machine.state()? {
            State::Waiting => {
                server::ensure(context, pinned)?;
                machine.resume()?;
            }
            State::Running | State::Paused => {}
            stopped @ (State::ShutOff | State::Gone) => return Ok(Outcome::Stopped(stopped)),
        }
        let leaning = match machine.leaning() {
            // It may have been shut off in between.
            Err(_) if machine.state()? == State::ShutOff => {
                return Ok(Outcome::Stopped(State::ShutOff));
            }
            leaning => leaning?,
        };
        moving.retain(|target, _| leaning.contains(target));
        if leaning.is_empty() {
            return Ok(Outcome::Complete);
        }
        for target in leaning {
            let one = moving.entry(target.clone()).or_default();
            step(context, pinned, machine, &target, one)?;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn step(
    context: &Context,
    pinned: &Pinned,
    machine: &mut Machine<'_>,
    target: &str,
    one: &mut Moving,
) -> Result<()> {
    let disks = &pinned.recovery.disks;
    let disk = disks.iter().find(|disk| disk.target == target);
    let size_bytes = disk.map_or(0, |disk| disk.size_bytes);
    match machine.job(target) {
        Ok(Some(job)) => {
            let progress = one.progress.get_or_insert_with(|| {
                let len = ByteLen(size_bytes);
                context.reporter.disk(target, "moving its data in", len)
            });
            let share = job.done as f64 / job.total.max(1) as f64;
            let now = (size_bytes as f64 * share) as u64;
            progress.passed(now.saturating_sub(one.passed));
            one.passed = one.passed.max(now);
        }
        // Complete since we asked, or broken off, or not begun.
        Ok(None) if machine.leaning()?.iter().any(|still| still == target) => {
            one.tries += 1;
            if one.tries > TRIES_MAX {
                bail!(
                    "the data of {} cannot be moved in: the job breaks off each time. The guest goes \
                     on; look into {}, then run `virtkeep boot --finish`",
                    shown(target),
                    pinned.recovery.log().display()
                );
            }
            server::ensure(context, pinned)?;
            machine.pull(target)?;
        }
        Ok(None) => {}
        Err(_) if machine.state()? == State::ShutOff => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
