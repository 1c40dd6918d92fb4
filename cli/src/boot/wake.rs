//! Letting a guest go on that QEMU has paused since a disk failed it: each one, as soon as it makes sense.
//!
//! libvirt does not tell which failure was the last: once there was no space, a guest that waits for the server
//! looks the same. So what decides is whether there is room now.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::damage;
use super::machine::{Machine, State};
use super::record::Pinned;
use super::space::Space;

/// How long a guest has to wait at least. QEMU tells of failures once a second; libvirt takes one that it hears of
/// after the guest was resumed for a new one, and counts a guest that runs as paused from then on.
const CALM: Duration = Duration::from_millis(1200);
/// How often a guest without space is let go on although nothing comes of it: quotas are not seen here.
const TRIES_MAX: u32 = 5;

/// One who looks after a guest for a while.
#[derive(Default)]
pub(super) struct Waker {
    tries: u32,
}

impl Waker {
    /// Lets a guest in this state go on, if it waits and can.
    ///
    /// # Errors
    /// [`Full`](super::space::Full) and [`Unreadable`](super::damage::Unreadable) when it cannot.
    pub(super) fn look(
        &mut self,
        pinned: &Pinned,
        machine: &mut Machine<'_>,
        state: State,
    ) -> Result<()> {
        match state {
            State::Waiting => {
                if let Some(unreadable) = damage::take(&pinned.recovery) {
                    return Err(unreadable.into());
                }
            }
            State::NoSpace => {
                let space = Space::of(&pinned.recovery)?;
                if self.tries == TRIES_MAX || !space.is_enough_to_go_on() {
                    return Err(space.full(&pinned.recovery.domain).into());
                }
                self.tries += 1;
            }
            _ => return Ok(()),
        }
        sleep(CALM);
        // Somebody else may have ended it meanwhile, or paused it on purpose.
        match machine.state()? {
            State::Waiting | State::NoSpace => machine.resume(),
            _ => Ok(()),
        }
    }
}
