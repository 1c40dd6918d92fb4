//! Bringing a recovery to its end: the data is moved in, made durable, and the server let go.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use virtkeep_repo::{ByteLen, Cancel, Repository};

use super::machine::{Machine, State};
use super::pull::{self, Outcome};
use super::record::{Pinned, Recovery};
use super::{overlay, server};
use crate::context::Context;
use crate::output::shown;

/// How long a paused QEMU is left to say that it stands still.
const SETTLE: Duration = Duration::from_millis(10);

/// Brings it to its end, from wherever it is. False when we were asked to stop: then it goes on by
/// itself, and can be finished later.
pub(crate) fn finish(
    context: &Context,
    repo: &Repository,
    pinned: &Pinned,
    cancel: &Cancel,
) -> Result<bool> {
    let recovery = &pinned.recovery;
    let mut machine = Machine::connect(recovery)?;
    loop {
        match machine.state()? {
            State::Gone => bail!(
                "libvirt has no domain {} any more; what its guest wrote is in {}. \
                 `virtkeep boot --abort` removes that",
                shown(&recovery.domain),
                recovery.directory.display()
            ),
            State::ShutOff => {
                if !fill(context, pinned, &mut machine, cancel)? {
                    return Ok(false);
                }
                break;
            }
            State::Running | State::Paused | State::Waiting => {}
        }
        match pull::pull(context, pinned, &mut machine, cancel)? {
            Outcome::Interrupted => return Ok(false),
            Outcome::Stopped(_) => continue,
            Outcome::Complete => {}
        }
        match machine.state()? {
            State::Running => {
                settle(recovery, &mut machine)?;
                break;
            }
            State::Paused => bail!(
                "all data is there, but the guest is paused, and QEMU writes out what it still holds only \
                 when it runs: resume {}, then run `virtkeep boot --finish`",
                shown(&recovery.domain)
            ),
            _ => {}
        }
    }
    let_go(repo, pinned, &mut machine)?;
    Ok(true)
}

/// Completes the images of a guest that is off. False when we were asked to stop.
fn fill(
    context: &Context,
    pinned: &Pinned,
    machine: &mut Machine<'_>,
    cancel: &Cancel,
) -> Result<bool> {
    let recovery = &pinned.recovery;
    if machine.has_saved_state()? {
        // It refers to the server, and to images as they are now.
        server::ensure(context, pinned)?;
        bail!(
            "{name} has a saved state: start it with `virsh start {name}` (the server runs again), \
             then run `virtkeep boot --finish`",
            name = shown(&recovery.domain)
        );
    }
    server::ensure(context, pinned)?;
    for disk in &recovery.disks {
        let len = ByteLen(disk.size_bytes);
        let progress = context
            .reporter
            .disk(&disk.target, "moving its data in", len);
        let (path, socket) = (&disk.overlay, &recovery.socket);
        let size = disk.size_bytes;
        let filled = overlay::fill(path, socket, &disk.target, &progress, size, cancel);
        if cancel.check().is_err() {
            return Ok(false);
        }
        filled?;
    }
    Ok(true)
}

/// Makes QEMU write out what it holds of the images, which it does when the guest stands still, and
/// makes the images durable.
fn settle(recovery: &Recovery, machine: &mut Machine<'_>) -> Result<()> {
    machine.suspend()?;
    std::thread::sleep(SETTLE);
    machine
        .resume()
        .context("the guest was paused for a moment and does not go on: resume it")?;
    for disk in &recovery.disks {
        overlay::sync(&disk.overlay)?;
    }
    Ok(())
}

/// Lets go of everything that only the recovery needed, the pin last.
fn let_go(repo: &Repository, pinned: &Pinned, machine: &mut Machine<'_>) -> Result<()> {
    machine.free_definition()?;
    server::stop(&pinned.recovery)?;
    server::remove(&pinned.recovery.log())?;
    repo.remove_pin(&pinned.pin)?;
    Ok(())
}
