//! Every bound of the server, by name.
//!
//! What a client can make a server hold follows from these alone: a connection has one thread and
//! borrows helpers from a pool, each thread has one buffer of at most [`PIECE_BYTES`] (and the
//! extents of one block status reply), and requests for which no thread is free stay in the
//! client's socket. See [`Limits::bytes_in_flight_max`], and
//! [`Limits::connection_bytes_max`] for one connection.

use std::time::Duration;

/// The most bytes of a request or reply held in memory at once by one thread. Longer reads and
/// writes pass through in pieces of this size.
pub const PIECE_BYTES: usize = 512 << 10;

/// The longest read or write of one request, announced as the maximum payload ("Size constraints"
/// asks for at least 2^25).
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// The longest string of the protocol ("Conventions").
pub const STRING_BYTES_MAX: usize = 4096;

/// The longest data of one option that is read into memory.
pub const OPTION_BYTES_MAX: usize = 64 << 10;

/// The longest data of one option that is skipped, to answer it with an error; beyond it the
/// connection is dropped.
pub const OPTION_SKIPPED_BYTES_MAX: u32 = 1 << 20;

/// The most options of one negotiation.
pub const OPTIONS_MAX: usize = 100_000;

/// The most queries in one option about metadata contexts.
pub const QUERIES_MAX: usize = 1024;

/// The most metadata contexts a client may select.
pub const CONTEXTS_MAX: usize = 16;

/// The most extents in one block status reply, per context.
pub const EXTENTS_MAX: usize = 32 << 10;

/// The shortest hole worth a chunk of its own in a structured reply; shorter ones are sent as
/// zeroes.
pub const HOLE_BYTES_MIN: usize = 4096;

/// What is buffered of requests that have arrived and were not yet looked at, per connection.
pub const INTAKE_BYTES: usize = 4096;

/// The most bytes that TLS encrypts at once, and that it takes from the client at once, per
/// connection.
pub const TLS_PIECE_BYTES: usize = 64 << 10;

/// What one TLS connection holds in memory at most: what was received, what is decrypted of it, a
/// message of the TLS handshake, and twice what is to be sent.
pub const TLS_BYTES: usize = 5 * TLS_PIECE_BYTES;

/// What one thread holds at most, and one connection beside its threads.
const THREAD_BYTES: u64 = (PIECE_BYTES + EXTENTS_MAX * 8) as u64;
// An option is there as it came and decoded, and each of its queries is a string of its own.
const CONNECTION_BYTES: u64 = (INTAKE_BYTES + 3 * OPTION_BYTES_MAX + TLS_BYTES) as u64;

/// The bounds a program may choose. The default suits a server of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at one time. At the limit, a new client takes the place of the one that has
    /// been negotiating longest; if none is negotiating, of the one that has been idle longest; if
    /// none has been idle for [`idle`](Limits::idle), it is turned away.
    pub connections_max: usize,
    /// Connections at one time from one TCP address other than loopback. At the limit, a new client
    /// takes the place of another from its address, as above.
    pub address_connections_max: usize,
    /// Threads at one time beyond the one that every connection has. A half of them is kept so that
    /// each connection can have its share.
    pub helpers_max: usize,
    /// Requests of one connection that are worked on at one time.
    pub connection_requests_max: usize,
    /// The whole handshake, from accepting the connection to the transmission phase.
    pub handshake: Duration,
    /// The time for a request to arrive once its first byte has, and for a piece of a reply to be
    /// taken by the client. A client may be idle between requests as long as nobody else needs its
    /// place.
    pub stall: Duration,
    /// How long a client must have been idle to lose its place to a new one.
    pub idle: Duration,
    /// How long a helper thread without work is kept.
    pub helper_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 64,
            address_connections_max: 32,
            helpers_max: 128,
            connection_requests_max: 16,
            handshake: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            helper_idle: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// The most memory, in bytes, that the requests and replies of all clients together can take
    /// (thread stacks and what the exports allocate not counted).
    pub fn bytes_in_flight_max(&self) -> u64 {
        let threads = self.connections_max.saturating_add(self.helpers_max) as u64;
        // A client that was displaced while negotiating may be about to leave.
        let connections = 2 * self.connections_max as u64;
        let per_connection = connections.saturating_mul(CONNECTION_BYTES);
        threads
            .saturating_mul(THREAD_BYTES)
            .saturating_add(per_connection)
    }

    /// The most of it that one client can take.
    pub fn connection_bytes_max(&self) -> u64 {
        let threads = self.connection_requests_max.min(1 + self.helpers_max) as u64;
        CONNECTION_BYTES.saturating_add(threads.saturating_mul(THREAD_BYTES))
    }

    /// How long one read or write of a socket may block before the time limits are looked at.
    pub(crate) fn tick(&self) -> Duration {
        (self.handshake.min(self.stall) / 4).max(Duration::from_millis(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_hold_all_clients_together_within_210_mib() {
        assert!(Limits::default().bytes_in_flight_max() < 210 << 20);
    }
}
