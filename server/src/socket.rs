//! A connected socket, unix or TCP, read and written by several threads at once.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::limits::Limits;

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
pub(crate) struct Socket(Arc<Stream>);

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
        Ok(Socket(Arc::new(Stream::Unix(stream))))
    }

    pub(crate) fn tcp(stream: TcpStream, limits: &Limits) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limits.tick()))?;
        stream.set_write_timeout(Some(limits.tick()))?;
        stream.set_nodelay(true)?;
        // A client whose machine has gone would otherwise be waited for forever.
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Socket(Arc::new(Stream::Tcp(stream))))
    }

    /// Reads return at once from now on; what was received can still be answered.
    pub(crate) fn stop_reading(&self) {
        self.shutdown(Shutdown::Read);
    }

    /// Ends the connection, in both directions.
    pub(crate) fn hang_up(&self) {
        self.shutdown(Shutdown::Both);
    }

    fn shutdown(&self, how: Shutdown) {
        // Fails only if the client has shut it down before.
        let _ = match &*self.0 {
            Stream::Unix(stream) => stream.shutdown(how),
            Stream::Tcp(stream) => stream.shutdown(how),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &*self.0 {
            Stream::Unix(stream) => (&*stream).read(buffer),
            Stream::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &*self.0 {
            Stream::Unix(stream) => (&*stream).write_vectored(slices),
            Stream::Tcp(stream) => (&*stream).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
