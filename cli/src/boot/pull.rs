//! Moving the data of a recovery into its images beneath the running guest.
//!
//! QEMU does it by itself, disk after disk; here it is begun, begun again where it broke off, and
//! watched. Whoever watches may go at any time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use virtkeep_repo::{ByteLen, Cancel, Progress};

use super::damage;
use super::machine::{Machine, State};
use super::record::Pinned;
use super::server;
use super::space::Space;
use super::wake::Waker;
use crate::context::Context;
use crate::output::shown;
use crate::progress::DiskProgress;

/// How often it is looked how far the jobs are.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How often the server is looked at.
const LOOK_AT_SERVER: Duration = Duration::from_secs(1);
/// How often a job that broke off is begun again before it has got further. It does break off
/// when the server is away for long.
const TRIES_MAX: u32 = 20;

/// Why nothing more is being moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it has been.
    Complete,
    /// The guest does not run any more.
    Stopped,
    /// We were asked to stop watching.
    Interrupted,
}

/// A disk that is not complete.
#[derive(Default)]
struct Moving {
    progress: Option<DiskProgress>,
    has_begun: bool,
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
    let mut served: Option<Instant> = None;
    let mut waker = Waker::default();
    let mut leaning = None;
    loop {
        if cancel.check().is_err() {
            return Ok(Outcome::Interrupted);
        }
        if served.is_none_or(|served| served.elapsed() > LOOK_AT_SERVER) {
            server::ensure(context, pinned)?;
            served = Some(Instant::now());
        }
        match machine.settled_state()? {
            State::ShutOff | State::Gone | State::Ending => return Ok(Outcome::Stopped),
            state => {
                if let Err(error) = waker.look(pinned, machine, state) {
                    stop(machine)?;
                    return Err(error);
                }
            }
        }
        let looked = look(context, pinned, machine, &mut moving, &mut leaning);
        match looked {
            Ok(true) => return Ok(Outcome::Complete),
            Ok(false) => {}
            // It may have ended in between.
            Err(_) if !machine.settled_state()?.is_active() => return Ok(Outcome::Stopped),
            Err(error) => return Err(error),
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Lets what is free be the guest's.
fn stop(machine: &mut Machine<'_>) -> Result<()> {
    for target in machine.leaning()? {
        machine.stop_pull(&target)?;
    }
    Ok(())
}

/// Looks after the jobs; whether all data has been moved.
fn look(
    context: &Context,
    pinned: &Pinned,
    machine: &mut Machine<'_>,
    moving: &mut HashMap<String, Moving>,
    before: &mut Option<usize>,
) -> Result<bool> {
    let leaning = machine.leaning()?;
    if *before != Some(leaning.len()) {
        *before = Some(leaning.len());
        machine.lean_definition(pinned)?;
    }
    moving.retain(|target, _| leaning.contains(target));
    // One after the other: QEMU 10.0 has been seen to crash where a second job began beside the first.
    if let Some(target) = leaning.first() {
        if let Err(no_room) = Space::of(&pinned.recovery)?.check_pull() {
            stop(machine)?;
            return Err(no_room.into());
        }
        let one = moving.entry(target.clone()).or_default();
        step(context, pinned, machine, target, one)?;
    }
    Ok(leaning.is_empty())
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
    if let Some(job) = machine.job(target)? {
        let progress = one.progress.get_or_insert_with(|| {
            let len = ByteLen(size_bytes);
            context.reporter.disk(target, "moving its data in", len)
        });
        let share = job.done as f64 / job.total.max(1) as f64;
        let now = (size_bytes as f64 * share) as u64;
        if now > one.passed {
            progress.passed(now - one.passed);
            (one.passed, one.tries) = (now, 0);
        }
        return Ok(());
    }
    // Complete since we asked, or broken off, or not begun.
    if !machine.leaning()?.iter().any(|still| still == target) {
        return Ok(());
    }
    match damage::take(&pinned.recovery) {
        Some(unreadable) if one.has_begun => return Err(unreadable.into()),
        _ => one.has_begun = true,
    }
    one.tries += 1;
    if one.tries > TRIES_MAX {
        bail!(
            "the data of {} cannot be moved in: the job breaks off each time. The guest goes \
             on; look into {}, then run `virtkeep boot --finish`",
            shown(target),
            pinned.recovery.log().display()
        );
    }
    machine.pull(target)
}
