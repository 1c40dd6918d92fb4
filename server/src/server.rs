//! Accepting clients, keeping their number within limits, and stopping in good order.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
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
use crate::pulse::Pulse;
use crate::socket::{Peer, Socket};
use crate::transmission::Helpers;

/// How long to leave clients waiting when the system has no room for another.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections have to end once they were hung up, and clients to notice that one ends.
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
    /// No client could be accepted. It is tried again, and told again only if it fails after it
    /// succeeded.
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

    /// Calls `observer` for each [`Event`], from several threads at once. It must not block; that
    /// it panics makes no difference to the clients.
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
            helpers: Helpers::new(self.limits.helpers_max).shared_by(self.limits.connections_max),
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

/// Connections that had not ended when the time was up: an export had not returned, or a client had
/// not taken its replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{connections} connections were cut, as they did not end")]
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
    /// those that have arrived. What a client asks after that is not answered: it sees the connection
    /// end, and may ask another server.
    ///
    /// # Errors
    /// [`Unfinished`] if there were clients left after `grace`. They were cut.
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
                guest.socket.stop_reading(guest.pulse.idle());
            }
        }
        match self.house.wait_until_empty(grace) {
            0 => Ok(()),
            connections => {
                for guest in self.house.guests().present.values() {
                    guest.socket.hang_up();
                }
                self.house.wait_until_empty(HANG_UP_GRACE);
                Err(Unfinished { connections })
            }
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
    /// Of another machine.
    address: Option<IpAddr>,
    negotiating: bool,
    pulse: Arc<Pulse>,
}

impl Guest {
    fn new(socket: Socket, peer: &Peer) -> Self {
        let address = match peer {
            Peer::Tcp(address) if !address.ip().is_loopback() => Some(address.ip()),
            _ => None,
        };
        Guest {
            socket,
            address,
            negotiating: true,
            pulse: Arc::new(Pulse::new()),
        }
    }
}

impl Guests {
    /// Whether no thread may be started for another client, as too many clients that were
    /// displaced have not quite left yet.
    fn must_wait(&self, limits: &Limits) -> bool {
        !self.closing && self.threads >= 2 * limits.connections_max
    }

    /// Takes a client in, displacing another if there are too many, of its address or at all.
    fn admit(&mut self, guest: Guest, limits: &Limits) -> Option<u64> {
        if self.closing || self.must_wait(limits) {
            return None;
        }
        let neighbour = |other: &Guest| guest.address.is_some() && other.address == guest.address;
        let neighbours = self.present.values().filter(|other| neighbour(other));
        if neighbours.count() >= limits.address_connections_max {
            self.make_room(neighbour, limits)?;
        }
        if self.present.len() >= limits.connections_max {
            self.make_room(|_| true, limits)?;
        }
        self.admitted += 1;
        self.threads += 1;
        self.present.insert(self.admitted, guest);
        Some(self.admitted)
    }

    /// Displaces one of those `among` whom it costs least: who has been negotiating longest, or else
    /// has been idle longest. None if all are busy.
    fn make_room(&mut self, among: impl Fn(&Guest) -> bool, limits: &Limits) -> Option<()> {
        let guests = || self.present.iter().filter(|(_, guest)| among(guest));
        let negotiating = guests().find(|(_, guest)| guest.negotiating);
        let idle = || {
            guests()
                .filter_map(|(&number, guest)| Some((guest.pulse.idle()?, number)))
                .filter(|(idle, _)| *idle >= limits.idle)
                .max()
        };
        let number = match negotiating {
            Some((&number, _)) => number,
            None => idle()?.1,
        };
        self.present.remove(&number)?.socket.hang_up();
        Some(())
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
        let guest = Guest::new(socket.clone(), &peer);
        let pulse = guest.pulse.clone();
        let admitted = guests.admit(guest, &self.limits);
        drop(guests);
        let Some(number) = admitted else {
            socket.hang_up();
            self.tell(Event::TurnedAway { peer: &peer });
            return;
        };
        let stay = Stay {
            house: self.clone(),
            number,
        };
        let spawned = thread::Builder::new()
            .name(format!("nbd-{number}"))
            .spawn(move || {
                let house = &stay.house;
                let served = catch_unwind(AssertUnwindSafe(|| {
                    house.serve(number, &socket, &peer, tls, pulse)
                }));
                let outcome = match served {
                    Err(_) => Err(Error::ExportPanicked),
                    _ if !house.guests().present.contains_key(&number) => Err(Error::Displaced),
                    Ok(outcome) => outcome,
                };
                socket.part(HANG_UP_GRACE);
                house.tell(Event::Closed {
                    connection: number,
                    peer: &peer,
                    outcome: &outcome,
                });
            });
        if let Err(error) = spawned {
            self.tell(Event::AcceptFailed { error: &error });
        }
    }

    /// Whatever a log does, clients come, are served and leave.
    fn tell(&self, event: Event<'_>) {
        let _ = catch_unwind(AssertUnwindSafe(|| (self.observer)(event)));
    }

    fn serve(
        &self,
        number: u64,
        socket: &Socket,
        peer: &Peer,
        tls: TlsMode,
        pulse: Arc<Pulse>,
    ) -> Result<(), Error> {
        let connection = Connection::new(socket.clone(), socket.clone(), self.limits.clone());
        let connection = connection.with_tls(tls).with_peer(peer.clone());
        let may_start = || self.guests().settle(number);
        let Some(session) = connection.negotiate_if(&*self.exports, &may_start)? else {
            return Ok(());
        };
        self.tell(Event::Opened {
            connection: number,
            peer,
            export: session.export_name(),
        });
        let socket = socket.clone();
        session
            .hang_up_with(move || socket.hang_up())
            .with_pulse(pulse)
            .serve(&self.helpers)
    }
}

/// A client's stay in the house. Dropping it is the farewell.
struct Stay {
    house: Arc<House>,
    number: u64,
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut guests = self.house.guests();
        guests.present.remove(&self.number);
        guests.threads -= 1;
        drop(guests);
        self.house.one_has_left.notify_all();
    }
}

/// Accepts clients until woken.
fn accept_clients(house: &Arc<House>, listeners: &[Listener], woken: &UnixStream) {
    // Told once, not ten times a second for as long as it lasts.
    let mut fails = false;
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
                Ok((socket, peer)) => {
                    fails = false;
                    house.receive(socket, peer, listener.tls().clone());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        house.tell(Event::AcceptFailed { error: &error });
                    }
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(peer: &Peer, limits: &Limits) -> (Guest, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let socket = Socket::unix(ours, limits).expect("a socket");
        (Guest::new(socket, peer), theirs)
    }

    fn from(address: &str) -> Peer {
        Peer::Tcp(format!("{address}:1").parse().expect("an address"))
    }

    #[test]
    fn one_address_cannot_take_all_places_and_its_clients_displace_each_other() {
        let mut limits = Limits {
            connections_max: 4,
            address_connections_max: 2,
            ..Limits::default()
        };
        let mut guests = Guests::default();
        let mut admit = |peer: &Peer| {
            let (guest, _) = guest(peer, &limits);
            let number = guests.admit(guest, &limits)?;
            guests.settle(number);
            Some((number, guests.present.len()))
        };
        let (greedy, other) = (from("192.0.2.1"), from("192.0.2.2"));
        assert_eq!(admit(&greedy), Some((1, 1)));
        assert_eq!(admit(&greedy), Some((2, 2)));
        // Nobody has been idle for long.
        assert_eq!(admit(&greedy), None);
        assert_eq!(admit(&other), Some((3, 3)));
        limits.idle = Duration::ZERO;
        let mut admit = |peer: &Peer| {
            let (guest, _) = guest(peer, &limits);
            guests.admit(guest, &limits);
            guests.present.keys().copied().collect::<Vec<_>>()
        };
        assert_eq!(admit(&greedy), [2, 3, 4]);
        assert_eq!(admit(&from("127.0.0.1")), [2, 3, 4, 5]);
    }

    #[test]
    fn who_negotiates_makes_room_first_then_who_is_idle_and_never_who_is_busy() {
        let limits = Limits {
            connections_max: 3,
            idle: Duration::ZERO,
            ..Limits::default()
        };
        let mut guests = Guests::default();
        let pulses: Vec<_> = (1..=3)
            .map(|number| {
                let (guest, _) = guest(&Peer::Local, &limits);
                let pulse = guest.pulse.clone();
                assert_eq!(guests.admit(guest, &limits), Some(number));
                pulse
            })
            .collect();
        guests.settle(1);
        guests.settle(2);
        let mut admit = |settle| {
            let (guest, _) = guest(&Peer::Local, &limits);
            if let Some(number) = guests.admit(guest, &limits)
                && settle
            {
                guests.settle(number);
            }
            // The displaced have left.
            guests.threads = guests.present.len();
            guests.present.keys().copied().collect::<Vec<_>>()
        };
        let busy = pulses[0].beat();
        assert_eq!(admit(true), [1, 2, 4]);
        assert_eq!(admit(true), [1, 4, 5]);
        drop(busy);
        // The first was busy until just now.
        assert_eq!(admit(false), [1, 5, 6]);
        assert_eq!(admit(true), [1, 5, 7]);
    }
}
