//! A way to end a blocked [`Handle::poll`](crate::Handle::poll) from another thread.
//!
//! It is an eventfd that the driver polls beside the NBD socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Operation};

/// Wakes the thread that drives a [`Handle`](crate::Handle).
///
/// Wake-ups are remembered: one that arrives between two polls ends the next poll. Several
/// wake-ups may end one poll only.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn new() -> Result<Waker, Error> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::system(Operation::Configure, errno))?;
        Ok(Waker(Arc::new(fd)))
    }

    /// Ends the current or the next poll of the handle.
    pub fn wake(&self) {
        // The only possible failure is a full counter, which means "already woken".
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Forgets the wake-ups so far.
    pub(crate) fn reset(&self) {
        let mut counter = [0u8; 8];
        let _ = rustix::io::read(&*self.0, &mut counter);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
