//! Bringing a recovery to its end: the data is moved in, proved to be on the disk, and the server let go.

use anyhow::{Context as _, Result, anyhow, bail};
use virtkeep_repo::{ByteLen, Cancel, Repository};

use super::claim::Claim;
use super::damage;
use super::machine::{Machine, State};
use super::pull::{self, Outcome};
use super::record::{Pinned, RecoveredDisk};
use super::server::remove;
use super::work::Work;
use super::{overlay, server};
use crate::context::Context;
use crate::define::backing::Place;
use crate::output::shown;

/// Whether the images of a running guest hold all its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complete {
    /// They do, durably.
    Yes,
    /// The guest does not run any more.
    Stopped,
    /// We were asked to stop.
    Interrupted,
}

/// How bringing a recovery to its end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// All is there, and the domain stands on it.
    Yes,
    /// All is there, but libvirt's domain of that name, if there is one, does not use it.
    WithoutDomain,
    /// We were asked to stop. It goes on by itself as long as the guest runs; one that is off is left alone.
    Interrupted {
        /// Whether it does now.
        by_itself: bool,
    },
}

/// Brings it to its end, from wherever it is. With `salvage`, what cannot be read is given up.
pub(crate) fn finish(
    context: &Context,
    repo: &Repository,
    pinned: &Pinned,
    mut work: Work,
    salvage: bool,
    cancel: &Cancel,
) -> Result<Finished> {
    let recovery = &pinned.recovery;
    // Whoever has no claim there must not touch what is there. Perhaps it is only not mounted.
    Claim::of(pinned).check(recovery)?;
    let mut machine = Machine::connect(recovery)?;
    if machine.state()? == State::Gone && !recovery.definition().exists() {
        bail!(
            "the recovery of {} was interrupted before its guest was started: `virtkeep boot --abort` removes what \
             was made for it",
            shown(&recovery.domain)
        );
    }
    work.set_moving()?;
    if salvage {
        damage::salvage(recovery)?;
    }
    let is_ours = loop {
        let state = machine.settled_state()?;
        let is_ours = state != State::Gone && machine.is_ours()?;
        if !is_ours || state == State::ShutOff {
            if is_ours {
                check_no_saved_state(context, pinned, &mut machine)?;
            }
            // Each of them, wherever it is in a chain: filled or not, it reads the same.
            if !fill(context, pinned, &recovery.disks, cancel)? {
                return Ok(Finished::Interrupted { by_itself: false });
            }
            break is_ours;
        }
        match running(context, pinned, &mut machine, &mut work, cancel)? {
            Complete::Yes => break true,
            Complete::Stopped => {}
            Complete::Interrupted => return Ok(Finished::Interrupted { by_itself: true }),
        }
    };
    if is_ours {
        machine.free_definition()?;
    }
    server::stop(pinned)?;
    let_go(repo, pinned, work, is_ours)?;
    Ok(if is_ours {
        Finished::Yes
    } else {
        Finished::WithoutDomain
    })
}

/// Moves the data in beneath a guest that runs, and proves that it is there.
pub(crate) fn running(
    context: &Context,
    pinned: &Pinned,
    machine: &mut Machine<'_>,
    work: &mut Work,
    cancel: &Cancel,
) -> Result<Complete> {
    let recovery = &pinned.recovery;
    go_on(machine, work)?;
    for disk in &recovery.disks {
        overlay::check_snapshots(&disk.overlay)?;
    }
    check_places(pinned, &machine.places()?)?;
    match pull::pull(context, pinned, machine, cancel)? {
        Outcome::Interrupted => return Ok(Complete::Interrupted),
        Outcome::Stopped => return Ok(Complete::Stopped),
        Outcome::Complete => {}
    }
    let places = machine.places()?;
    check_places(pinned, &places)?;
    let of = |place| {
        let disks = recovery.disks.iter().zip(&places);
        disks.filter(move |(_, there)| **there == place)
    };
    let detached = of(Place::Nowhere).map(|(disk, _)| disk);
    if !fill(context, pinned, detached, cancel)? {
        return Ok(Complete::Interrupted);
    }
    let state = machine.settled_state()?;
    match state {
        State::Running => settle(machine, work)?,
        State::Paused => {}
        State::Waiting | State::NoSpace | State::Ending | State::ShutOff | State::Gone => {
            return Ok(Complete::Stopped);
        }
    }
    for (disk, _) in of(Place::Top) {
        overlay::sync(&disk.overlay)?;
        overlay::check_snapshots(&disk.overlay)?;
        if overlay::is_complete(&disk.overlay)? {
            continue;
        }
        let name = shown(&recovery.domain);
        match machine.settled_state()? {
            State::Running => bail!(
                "{} does not hold all of its disk: shut {name} down, then run `virtkeep boot --finish`",
                disk.overlay.display()
            ),
            State::Paused => bail!(
                "all data is there, but the guest stands still, and QEMU writes out what it still holds only \
                 when it runs: resume {name} (`virsh dompmwakeup` where it sleeps) or end it, then run `virtkeep boot \
                 --finish`"
            ),
            _ => return Ok(Complete::Stopped),
        }
    }
    Ok(Complete::Yes)
}

/// What a snapshot covers, QEMU does not write to: the pull would fill the other image.
fn check_places(pinned: &Pinned, places: &[Place]) -> Result<()> {
    for (disk, place) in pinned.recovery.disks.iter().zip(places) {
        if *place == Place::Below {
            bail!(
                "{} lies beneath a snapshot, and data can be moved in only while no guest uses it: shut {} \
                 down, then run `virtkeep boot --finish`",
                disk.overlay.display(),
                shown(&pinned.recovery.domain)
            );
        }
    }
    Ok(())
}

fn check_no_saved_state(
    context: &Context,
    pinned: &Pinned,
    machine: &mut Machine<'_>,
) -> Result<()> {
    if machine.has_saved_state()? {
        // It refers to the server, and to images as they are now.
        server::ensure(context, pinned)?;
        bail!(
            "{name} has a saved state: start it with `virsh start {name}` (the server runs again), \
             then run `virtkeep boot --finish`",
            name = shown(&pinned.recovery.domain)
        );
    }
    Ok(())
}

/// Completes images that no guest uses. False when we were asked to stop.
fn fill<'a>(
    context: &Context,
    pinned: &Pinned,
    disks: impl IntoIterator<Item = &'a RecoveredDisk>,
    cancel: &Cancel,
) -> Result<bool> {
    for disk in disks {
        server::ensure(context, pinned)?;
        overlay::check_snapshots(&disk.overlay)?;
        let len = ByteLen(disk.size_bytes);
        let progress = context
            .reporter
            .disk(&disk.target, "moving its data in", len);
        let (path, socket) = (&disk.overlay, &pinned.recovery.socket);
        let size = disk.size_bytes;
        let export = pinned.export(disk);
        let filled = overlay::fill(path, socket, &export, &progress, size, cancel);
        if cancel.check().is_err() {
            return Ok(false);
        }
        filled.map_err(|error| match damage::take(&pinned.recovery) {
            Some(unreadable) => unreadable.into(),
            None => anyhow!(
                "{error:#}. What is not moved yet stays in the repository, and `virtkeep boot --finish` goes on from \
                 there"
            ),
        })?;
    }
    Ok(true)
}

/// Lets the guest go on if somebody was killed who had paused it for a moment.
pub(crate) fn go_on(machine: &mut Machine<'_>, work: &mut Work) -> Result<()> {
    if work.left_paused {
        if machine.settled_state()? == State::Paused {
            machine.resume()?;
        }
        work.set_pausing(false)?;
    }
    Ok(())
}

/// Makes QEMU write out what it holds of the images, which it does when the guest stands still.
fn settle(machine: &mut Machine<'_>, work: &mut Work) -> Result<()> {
    work.set_pausing(true)?;
    let paused = machine.suspend();
    machine
        .resume()
        .context("the guest was paused for a moment and does not go on: resume it")?;
    work.set_pausing(false)?;
    paused
}

/// Lets go of everything that only the recovery needed, the pin last. The server has ended, and the
/// definition is free of it.
pub(crate) fn let_go(
    repo: &Repository,
    pinned: &Pinned,
    work: Work,
    is_defined: bool,
) -> Result<()> {
    let recovery = &pinned.recovery;
    remove(&recovery.log())?;
    damage::remove_empty_list(recovery)?;
    // From here on the images are nobody's but the domain's.
    Claim::of(pinned).remove()?;
    if is_defined {
        remove(&recovery.definition())?;
    }
    repo.remove_pin(&pinned.pin)?;
    work.end()
}
