//! A connected socket, unix or TCP, read and written by several threads at once.
//!
//! What a client has sent before the server stops reading is read, and nothing after that: it is counted
//! what may still be read, and listened until the client has seen the end. To shut down the reading side
//! would not do. TCP goes on receiving all the same, and throws away unsent replies as soon as something
//! comes that nobody will read. A unix socket refuses what comes, and there are clients that give up
//! everything when they are refused a request, also the replies they wait for; so it is shut down only
//! where nothing has been asked for a while.
//!
//! Replies that were written are not there yet: TCP may hold megabytes of them, and throws them away, too,
//! once the socket is closed and the client says one more word. So it is kept open until the client's
//! system has acknowledged them. What went into a unix socket is the client's to read in any case.

use std::fmt;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::limits::Limits;
use crate::stream_io::is_timeout;

/// How long a read may take to notice that reading was stopped.
const TICK_MAX: Duration = Duration::from_millis(500);

/// No end of what may be read.
const ENDLESS: u64 = u64::MAX;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A process on this machine, through a unix socket.
    Local,
    /// A TCP address.
    Tcp(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Local => f.write_str("unix socket"),
            Peer::Tcp(address) => address.fmt(f),
        }
    }
}

/// One socket, shared by its reader, its writer, and who may shut it down.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: Stream,
    /// How many bytes may still be read.
    readable: AtomicU64,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buffer),
            Stream::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Socket {
    pub(crate) fn unix(stream: UnixStream, limits: &Limits) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limits.tick().min(TICK_MAX)))?;
        stream.set_write_timeout(Some(limits.tick()))?;
        Ok(Self::new(Stream::Unix(stream)))
    }

    pub(crate) fn tcp(stream: TcpStream, limits: &Limits) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limits.tick().min(TICK_MAX)))?;
        stream.set_write_timeout(Some(limits.tick()))?;
        stream.set_nodelay(true)?;
        // A client whose machine has gone would otherwise be waited for forever: it is given two
        // minutes.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(&stream, 6)?;
        Ok(Self::new(Stream::Tcp(stream)))
    }

    fn new(stream: Stream) -> Self {
        Socket(Arc::new(Shared {
            stream,
            readable: AtomicU64::new(ENDLESS),
        }))
    }

    /// From now on only what has been received is read, and then the end; it can still be answered.
    /// `idle` is for how long the client has not asked for anything; none if it waits for an answer.
    pub(crate) fn stop_reading(&self, idle: Option<Duration>) {
        let is_idle = idle.is_some_and(|idle| idle >= TICK_MAX);
        let received = match &self.0.stream {
            Stream::Unix(_) if is_idle => return self.shutdown(Shutdown::Read),
            Stream::Unix(stream) => rustix::io::ioctl_fionread(stream),
            Stream::Tcp(stream) => rustix::io::ioctl_fionread(stream),
        };
        let received = received.unwrap_or(0);
        self.0.readable.store(received, Ordering::Relaxed);
    }

    fn has_stopped_reading(&self) -> bool {
        self.0.readable.load(Ordering::Relaxed) != ENDLESS
    }

    /// Ends the connection when all has been said. A client that may not know yet that nothing more
    /// is read has until `patience` ends to notice; and, until somebody hangs up, the time that it takes
    /// to receive the replies.
    pub(crate) fn part(&self, patience: Duration) {
        if self.has_stopped_reading() {
            self.shutdown(Shutdown::Write);
            while self.stays_for(patience) && self.has_replies_on_their_way() {}
        }
        self.hang_up();
    }

    /// Ignores what the client says for a while, and tells whether it is still there.
    fn stays_for(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut ignored = [0; 4096];
        while Instant::now() < deadline {
            match self.0.stream.read(&mut ignored) {
                Ok(0) => return false,
                Err(error) if !is_timeout(error.kind()) => return false,
                _ => {}
            }
        }
        true
    }

    fn has_replies_on_their_way(&self) -> bool {
        match &self.0.stream {
            Stream::Unix(_) => false,
            // Where the system does not tell, nobody is waited for.
            Stream::Tcp(stream) => unacknowledged(stream).is_ok_and(|bytes| bytes > 0),
        }
    }

    /// Ends the connection, in both directions.
    pub(crate) fn hang_up(&self) {
        self.shutdown(Shutdown::Both);
    }

    fn shutdown(&self, how: Shutdown) {
        // Fails only if the client has shut it down before.
        let _ = match &self.0.stream {
            Stream::Unix(stream) => stream.shutdown(how),
            Stream::Tcp(stream) => stream.shutdown(how),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let readable = self.0.readable.load(Ordering::Relaxed);
        if readable == 0 {
            return Ok(0);
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(readable).unwrap_or(usize::MAX));
        match self.0.stream.read(&mut buffer[..wanted]) {
            Ok(count) if readable != ENDLESS => {
                self.0
                    .readable
                    .store(readable - count as u64, Ordering::Relaxed);
                Ok(count)
            }
            // What was counted has been read meanwhile.
            Err(error) if is_timeout(error.kind()) && self.has_stopped_reading() => Ok(0),
            result => result,
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.0.stream {
            Stream::Unix(stream) => (&*stream).write_vectored(slices),
            Stream::Tcp(stream) => (&*stream).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes, the end among them, the other end has not acknowledged. The table of the kernel tells it
/// without `unsafe`, unlike `SIOCOUTQ`: tcp(7), proc_pid_net(5).
fn unacknowledged(stream: &TcpStream) -> io::Result<u64> {
    let table = match stream.local_addr()? {
        SocketAddr::V4(_) => "/proc/net/tcp",
        SocketAddr::V6(_) => "/proc/net/tcp6",
    };
    let inode = rustix::fs::fstat(stream)?.st_ino.to_string();
    let table = fs::read_to_string(table)?;
    let queue = table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_ours = fields.get(9) == Some(&&inode[..]);
        let (sent, _) = fields.get(4).filter(|_| is_ours)?.split_once(':')?;
        u64::from_str_radix(sent, 16).ok()
    });
    // One that is not in the table has been reset.
    Ok(queue.unwrap_or(0))
}
