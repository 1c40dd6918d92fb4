//! One step of the event loop: wait for the socket (and a waker), then let the library work.
//!
//! The library has a loop of its own (`nbd_poll`), but in 1.14 it waits for nothing beside
//! the socket, and its synchronous calls wait for ever.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, Operation};
use crate::raw::{Phase, RawHandle};
use crate::waker::Waker;

/// When waiting ends. `None` waits for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    pub(crate) fn after(limit: Option<Duration>) -> Deadline {
        // A limit too far away for the clock is no limit.
        Deadline(limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit))))
    }

    fn remaining(self) -> Option<Duration> {
        self.0
            .map(|(end, _)| end.saturating_duration_since(Instant::now()))
    }

    /// The error that says that this deadline has passed.
    pub(crate) fn error(self, operation: Operation) -> Error {
        Error::TimedOut {
            operation,
            limit: self.0.map_or(Duration::MAX, |(_, limit)| limit),
        }
    }
}

/// Why a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The library did some work.
    Worked,
    TimedOut,
    Woken,
}

/// Waits until the library can do something, and lets it.
pub(crate) fn step(
    handle: &RawHandle,
    deadline: Deadline,
    waker: Option<&Waker>,
) -> Result<Step, Error> {
    let direction = handle.direction();
    let mut interest = PollFlags::empty();
    interest.set(PollFlags::IN, direction.read);
    interest.set(PollFlags::OUT, direction.write);
    let socket = handle
        .socket()
        .filter(|_| !interest.is_empty())
        .ok_or_else(|| Error::Library {
            operation: Operation::Poll,
            message: "the connection has ended".to_owned(),
            errno: Some(Errno::NOTCONN.raw_os_error()),
        })?;

    let mut fds = Vec::with_capacity(2);
    fds.push(PollFd::new(&socket, interest));
    let waker_fd = waker.map(AsFd::as_fd);
    if let Some(fd) = &waker_fd {
        fds.push(PollFd::new(fd, PollFlags::IN));
    }
    let ready = loop {
        let timeout = deadline
            .remaining()
            .and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    }
    .map_err(|errno| Error::system(Operation::Poll, errno))?;

    if ready == 0 {
        return Ok(Step::TimedOut);
    }
    if let (Some(waker), false) = (waker, fds.get(1).is_none_or(|fd| fd.revents().is_empty())) {
        waker.reset();
        return Ok(Step::Woken);
    }
    // Hang-ups and errors go to whichever side the library waits for, which then learns the
    // reason from the socket. Reading first: a reply is older than what waits to be sent.
    let events = fds[0].revents();
    let trouble = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    if direction.read && events.intersects(PollFlags::IN | trouble) {
        handle.notify_read()?;
    } else if direction.write && events.intersects(PollFlags::OUT | trouble) {
        handle.notify_write()?;
    }
    Ok(Step::Worked)
}

/// Drives the handle until it is neither connecting nor negotiating an option.
pub(crate) fn settle(
    handle: &RawHandle,
    operation: Operation,
    deadline: Deadline,
) -> Result<(), Error> {
    while handle.phase() == Phase::Connecting {
        let step = step(handle, deadline, None).map_err(|error| error.during(operation))?;
        if step == Step::TimedOut {
            return Err(deadline.error(operation));
        }
    }
    match handle.phase() {
        Phase::Ready | Phase::Negotiating => Ok(()),
        _ => Err(Error::Library {
            operation,
            message: "the server closed the connection during the handshake".to_owned(),
            errno: None,
        }),
    }
}
