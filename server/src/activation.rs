//! Sockets that systemd, or whoever started this process, passed to it (`sd_listen_fds(3)`).

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::channel::TlsMode;
use crate::error::Error;
use crate::listener::Listener;

/// A listening socket that was passed to this process. It is closed when a child is executed.
#[derive(Debug)]
pub struct PassedSocket {
    name: Option<String>,
    socket: Passed,
}

#[derive(Debug)]
enum Passed {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl PassedSocket {
    /// Takes all sockets that were passed to this process; there are none if it was started in
    /// another way, or when they were taken before. Children see nothing of it: `LISTEN_PID` and
    /// `LISTEN_FDS` are removed from the environment, which is why this is to be called first in
    /// `main`, before there are other threads.
    ///
    /// # Errors
    /// [`Error::Passed`] if one of them is no listening unix or TCP socket.
    pub fn take_all() -> Result<Vec<PassedSocket>, Error> {
        let own_pid = std::process::id().to_string();
        if env::var("LISTEN_PID").ok().as_deref() != Some(own_pid.as_str()) {
            return Ok(Vec::new());
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut fds = ListenFd::from_env();
        let mut sockets = Vec::new();
        for number in 0..ListenFd::len(&fds) {
            let socket = take(&mut fds, number).map_err(|source| Error::Passed {
                number: number + 1,
                source,
            })?;
            let name = names.next().filter(|name| !name.is_empty());
            sockets.push(PassedSocket { name, socket });
        }
        Ok(sockets)
    }

    /// Its name: `FileDescriptorName=` of the socket unit.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Serves on it. The file of a unix socket stays when the server ends.
    ///
    /// # Errors
    /// [`Error::NotLoopback`] for a TCP address beyond this machine unless TLS is required.
    pub fn listen(self, tls: TlsMode) -> Result<Listener, Error> {
        match self.socket {
            Passed::Unix(socket) => Listener::from(socket).with_tls(tls),
            Passed::Tcp(socket) => Listener::from_tcp(socket, tls),
        }
    }
}

fn take(fds: &mut ListenFd, number: usize) -> io::Result<Passed> {
    let taken = match fds.take_unix_listener(number) {
        Ok(socket) => socket.map(Passed::Unix),
        // It is another kind of socket.
        Err(_) => fds.take_tcp_listener(number)?.map(Passed::Tcp),
    };
    let passed = taken.ok_or(io::ErrorKind::NotFound)?;
    let listens = match &passed {
        Passed::Unix(socket) => socket_acceptconn(socket)?,
        Passed::Tcp(socket) => socket_acceptconn(socket)?,
    };
    if !listens {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it does not listen",
        ));
    }
    Ok(passed)
}
