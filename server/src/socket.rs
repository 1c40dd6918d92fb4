//! A connected socket, unix or TCP, read and written by several threads at once.
//!
//! What a client has sent before the server stops reading is read, and nothing after that. A unix
//! socket does that by itself. One of TCP goes on receiving, even when its reading side is shut down,
//! and throws away unsent replies as soon as something comes that nobody will read: so there is
//! counted what may still be read, and listened until the client has seen the end.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::limits::Limits;
use crate::stream_io::is_timeout;

/// How long a read of TCP may take to notice that reading was stopped.
const TCP_TICK_MAX: Duration = Duration::from_millis(500);

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

impl Socket {
    pub(crate) fn unix(stream: UnixStream, limits: &Limits) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limits.tick()))?;
        stream.set_write_timeout(Some(limits.tick()))?;
        Ok(Self::new(Stream::Unix(stream)))
    }

    pub(crate) fn tcp(stream: TcpStream, limits: &Limits) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limits.tick().min(TCP_TICK_MAX)))?;
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
    pub(crate) fn stop_reading(&self) {
        match &self.0.stream {
            Stream::Unix(_) => self.shutdown(Shutdown::Read),
            Stream::Tcp(stream) => {
                let received = rustix::io::ioctl_fionread(stream).unwrap_or(0);
                self.0.readable.store(received, Ordering::Relaxed);
            }
        }
    }

    fn has_stopped_reading(&self) -> bool {
        self.0.readable.load(Ordering::Relaxed) != ENDLESS
    }

    /// Ends the connection when all has been said. A client that may not know yet that nothing more
    /// is read has until `patience` ends to take the replies.
    pub(crate) fn part(&self, patience: Duration) {
        if let Stream::Tcp(stream) = &self.0.stream
            && self.has_stopped_reading()
        {
            self.shutdown(Shutdown::Write);
            let deadline = Instant::now() + patience;
            let mut ignored = [0; 4096];
            while Instant::now() < deadline {
                match (&*stream).read(&mut ignored) {
                    Ok(0) => break,
                    Err(error) if !is_timeout(error.kind()) => break,
                    _ => {}
                }
            }
        }
        self.hang_up();
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
        let stream = match &self.0.stream {
            Stream::Unix(stream) => return (&*stream).read(buffer),
            Stream::Tcp(stream) => stream,
        };
        let readable = self.0.readable.load(Ordering::Relaxed);
        if readable == 0 {
            return Ok(0);
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(readable).unwrap_or(usize::MAX));
        match (&*stream).read(&mut buffer[..wanted]) {
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
