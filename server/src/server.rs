//! Accepting clients, keeping their number within limits, and stopping in good order.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::channel::TlsMode;
use crate::error::Error;
use crate::exports::Exports;
use crate::limits::Limits;
use crate::listener::Listener;
use crate::negotiation::Connection;
use crate::socket::{Peer, Socket};
use crate::transmission::Helpers;

/// How long to leave clients waiting when the system has no room for another.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections have to end once they were hung up.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);

/// A server that is not running yet.
pub struct Server {
    exports: Arc<dyn Exports>,
    limits: Limits,
    observer: Box<Observer>,
}

type Observer = dyn Fn(Event<'_>) + Send + Sync;

/// What happens in a server, for a log. Connections are numbered from 1.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A client has chosen an export.
    Opened {
        /// Number of the connection.
        connection: u64,
        /// Who it is.
        peer: &'a Peer,
        /// The export's name.
        export: &'a str,
    },
    /// A connection has ended; an error says why the client was lost.
    Closed {
        /// Number of the connection.
        connection: u64,
        /// Who it was.
        peer: &'a Peer,
        /// How it ended.
        outcome: &'a Result<(), Error>,
    },
    /// A client was turned away: too many are being served.
    TurnedAway {
        /// Who it is.
        peer: &'a Peer,
    },
    /// No client could be accepted; it is tried again.
    AcceptFailed {
        /// The system's error.
        error: &'a io::Error,
    },
}

impl Server {
    /// A server with the default [`Limits`] that tells nobody what happens in it.
    pub fn new(exports: Arc<dyn Exports>) -> Self {
        Server {
            exports,
            limits: Limits::default(),
            observer: Box::new(|_| {}),
        }
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Calls `observer` for each [`Event`], from several threads at once. It must not block.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Starts serving, in threads of its own.
    pub fn start(self, listeners: Vec<Listener>) -> Result<Running, Error> {
        const VERB: &str = "start the server";
        for listener in &listeners {
            listener.set_nonblocking().map_err(Error::io(VERB))?;
        }
        let (waker, woken) = UnixStream::pair().map_err(Error::io(VERB))?;
        let house = Arc::new(House {
            helpers: Helpers::new(self.limits.helpers_max),
            exports: self.exports,
            limits: self.limits,
            observer: self.observer,
            guests: Mutex::default(),
            one_has_left: Condvar::new(),
        });
        let door = house.clone();
        let acceptor = thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept_clients(&door, &listeners, &woken))
            .map_err(Error::io(VERB))?;
        Ok(Running {
            house,
            waker,
            acceptor: Some(acceptor),
        })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A running server. Dropping it hangs up on all clients; [`stop`](Running::stop) is kinder.
pub struct Running {
    house: Arc<House>,
    waker: UnixStream,
    acceptor: Option<JoinHandle<()>>,
}

/// Connections that had not ended when the server was left: an export did not return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{connections} connections did not end")]
pub struct Unfinished {
    /// How many.
    pub connections: usize,
}

impl Running {
    /// The number of connections, those in negotiation included.
    pub fn connections(&self) -> usize {
        self.house.guests().present.len()
    }

    /// Stops in good order: accepts nobody, reads no further requests, and carries out and answers
    /// those that have arrived. What is not answered within `grace` is abandoned.
    pub fn stop(mut self, grace: Duration) -> Result<(), Unfinished> {
        self.stop_within(grace)
    }

    fn stop_within(&mut self, grace: Duration) -> Result<(), Unfinished> {
        let Some(acceptor) = self.acceptor.take() else {
            return Ok(());
        };
        self.house.guests().closing = true;
        self.house.one_has_left.notify_all();
        let _ = self.waker.write_all(&[0]);
        let _ = acceptor.join();
        for guest in self.house.guests().present.values() {
            if guest.negotiating {
                guest.socket.hang_up();
            } else {
                guest.socket.stop_reading();
            }
        }
        if self.house.wait_until_empty(grace) > 0 {
            for guest in self.house.guests().present.values() {
                guest.socket.hang_up();
            }
        }
        match self.house.wait_until_empty(HANG_UP_GRACE) {
            0 => Ok(()),
            connections => Err(Unfinished { connections }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop_within(Duration::ZERO);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// What the threads of a server share.
struct House {
    exports: Arc<dyn Exports>,
    limits: Limits,
    observer: Box<Observer>,
    helpers: Helpers,
    guests: Mutex<Guests>,
    one_has_left: Condvar,
}

#[derive(Default)]
struct Guests {
    /// By number, so the first is the oldest.
    present: BTreeMap<u64, Guest>,
    /// Connection threads, those of displaced clients included.
    threads: usize,
    admitted: u64,
    closing: bool,
}

struct Guest {
    socket: Socket,
    negotiating: bool,
}

impl Guests {
    /// Whether no thread may be started for another client, as too many clients that were
    /// displaced have not quite left yet.
    fn must_wait(&self, limits: &Limits) -> bool {
        !self.closing && self.threads >= 2 * limits.connections_max
    }

    /// Takes a client in, displacing one that is still negotiating if the house is full.
    fn admit(&mut self, socket: &Socket, limits: &Limits) -> Option<u64> {
        if self.closing || self.must_wait(limits) {
            return None;
        }
        if self.present.len() >= limits.connections_max {
            let (&oldest, _) = self.present.iter().find(|(_, guest)| guest.negotiating)?;
            if let Some(guest) = self.present.remove(&oldest) {
                guest.socket.hang_up();
            }
        }
        self.admitted += 1;
        self.threads += 1;
        let guest = Guest {
            socket: socket.clone(),
            negotiating: true,
        };
        self.present.insert(self.admitted, guest);
        Some(self.admitted)
    }

    /// The client has chosen an export; `false` if it is too late for that.
    fn settle(&mut self, number: u64) -> bool {
        match self.present.get_mut(&number) {
            Some(guest) if !self.closing => {
                guest.negotiating = false;
                true
            }
            _ => false,
        }
    }
}

impl House {
    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no connection is left, and returns how many are after `grace`.
    fn wait_until_empty(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let mut guests = self.guests();
        while guests.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guests = self
                .one_has_left
                .wait_timeout(guests, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        guests.threads
    }

    fn receive(self: &Arc<Self>, socket: Socket, peer: Peer, tls: TlsMode) {
        let (mut guests, _) = self
            .one_has_left
            .wait_timeout_while(self.guests(), HANG_UP_GRACE, |guests| {
                guests.must_wait(&self.limits)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let admitted = guests.admit(&socket, &self.limits);
        drop(guests);
        let Some(number) = admitted else {
            socket.hang_up();
            (self.observer)(Event::TurnedAway { peer: &peer });
            return;
        };
        let house = self.clone();
        let spawned = thread::Builder::new()
            .name(format!("nbd-{number}"))
            .spawn(move || {
                let served = catch_unwind(AssertUnwindSafe(|| {
                    house.serve(number, &socket, &peer, tls)
                }));
                let outcome = served.unwrap_or(Err(Error::ExportPanicked));
                socket.hang_up();
                let closed = Event::Closed {
                    connection: number,
                    peer: &peer,
                    outcome: &outcome,
                };
                (house.observer)(closed);
                house.farewell(number);
            });
        if let Err(error) = spawned {
            (self.observer)(Event::AcceptFailed { error: &error });
            self.farewell(number);
        }
    }

    fn serve(&self, number: u64, socket: &Socket, peer: &Peer, tls: TlsMode) -> Result<(), Error> {
        let connection =
            Connection::new(socket.clone(), socket.clone(), self.limits.clone()).with_tls(tls);
        let may_start = || self.guests().settle(number);
        let Some(session) = connection.negotiate_if(&*self.exports, &may_start)? else {
            return Ok(());
        };
        (self.observer)(Event::Opened {
            connection: number,
            peer,
            export: session.export_name(),
        });
        let socket = socket.clone();
        session
            .hang_up_with(move || socket.hang_up())
            .serve(&self.helpers)
    }

    fn farewell(&self, number: u64) {
        let mut guests = self.guests();
        guests.present.remove(&number);
        guests.threads -= 1;
        drop(guests);
        self.one_has_left.notify_all();
    }
}

/// Accepts clients until woken.
fn accept_clients(house: &Arc<House>, listeners: &[Listener], woken: &UnixStream) {
    loop {
        let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
        fds.extend(
            listeners
                .iter()
                .map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)),
        );
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        for listener in listeners {
            match listener.accept(&house.limits) {
                Ok((socket, peer)) => house.receive(socket, peer, listener.tls().clone()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    (house.observer)(Event::AcceptFailed { error: &error });
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}
