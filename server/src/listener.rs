//! Where a server can be reached: a unix socket for its own user only, TCP on loopback, or TCP
//! anywhere with TLS. A listener that can be reached from other machines without TLS cannot be made.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::channel::TlsMode;
use crate::error::Error;
use crate::limits::Limits;
use crate::socket::{Peer, Socket};
use crate::tls::Tls;

const BACKLOG: i32 = 128;

/// How often, and how soon again, the turn to listen is asked for.
const TURN_TRIES: usize = 500;
const TURN_PAUSE: Duration = Duration::from_millis(10);

/// A socket that clients connect to. A unix socket that was made here is removed when dropped.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    tls: TlsMode,
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket in the file system, known by device and inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Listens on a unix socket that only its owner (and root) can connect to: mode 0600 from the
    /// first moment it listens. A socket left over by a server that is gone is replaced; one that
    /// is in use, or any other file, is an error.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::try_unix(path).map_err(Error::listen(path.display()))
    }

    fn try_unix(path: &Path) -> io::Result<Self> {
        // Until it listens, nobody else takes it for one that was left over.
        let _turn = turn(path)?;
        remove_stale(path)?;
        let fd = new_socket(SocketFlags::CLOEXEC)?;
        bind(&fd, &SocketAddrUnix::new(path)?)?;
        let metadata = fs::symlink_metadata(path)?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        };
        // Nobody can connect between these two, as nobody listens yet.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&fd, BACKLOG)?;
        Ok(Listener {
            kind: Kind::Unix(UnixListener::from(fd)),
            tls: TlsMode::Off,
            _file: Some(file),
        })
    }

    /// Listens on a loopback address, in plain text: any process of this machine can connect.
    ///
    /// # Errors
    /// [`Error::NotLoopback`] for any other address.
    pub fn tcp(address: SocketAddr) -> Result<Self, Error> {
        Self::bind_tcp(address, TlsMode::Off)
    }

    /// Listens on any address, and requires TLS there.
    pub fn tcp_with_tls(address: SocketAddr, tls: Tls) -> Result<Self, Error> {
        Self::bind_tcp(address, TlsMode::Required(tls))
    }

    fn bind_tcp(address: SocketAddr, tls: TlsMode) -> Result<Self, Error> {
        may_listen(address, &tls)?;
        let listener = TcpListener::bind(address).map_err(Error::listen(address))?;
        Self::from_tcp(listener, tls)
    }

    /// A socket that was made elsewhere.
    ///
    /// # Errors
    /// [`Error::NotLoopback`] unless its address is loopback or TLS is required.
    pub fn from_tcp(listener: TcpListener, tls: TlsMode) -> Result<Self, Error> {
        let address = listener.local_addr().map_err(Error::listen("TCP socket"))?;
        may_listen(address, &tls)?;
        Ok(Listener {
            kind: Kind::Tcp(listener),
            tls,
            _file: None,
        })
    }

    /// Changes whether TLS is offered or required.
    ///
    /// # Errors
    /// [`Error::NotLoopback`] unless the address is loopback, a unix socket, or TLS is required.
    pub fn with_tls(mut self, tls: TlsMode) -> Result<Self, Error> {
        if let Kind::Tcp(listener) = &self.kind {
            let address = listener.local_addr().map_err(Error::listen("TCP socket"))?;
            may_listen(address, &tls)?;
        }
        self.tls = tls;
        Ok(self)
    }

    /// Whether TLS is offered or required.
    pub fn tls(&self) -> &TlsMode {
        &self.tls
    }

    /// The address of a TCP listener, with the port that the system chose if none was given.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Unix(_) => None,
            Kind::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// The path of a unix socket that has one.
    pub fn unix_path(&self) -> Option<PathBuf> {
        match &self.kind {
            Kind::Unix(listener) => {
                let address = listener.local_addr().ok()?;
                address.as_pathname().map(Path::to_owned)
            }
            Kind::Tcp(_) => None,
        }
    }

    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Unix(listener) => listener.set_nonblocking(true),
            Kind::Tcp(listener) => listener.set_nonblocking(true),
        }
    }

    pub(crate) fn accept(&self, limits: &Limits) -> io::Result<(Socket, Peer)> {
        Ok(match &self.kind {
            Kind::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                (Socket::unix(stream, limits)?, Peer::Local)
            }
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                (Socket::tcp(stream, limits)?, Peer::Tcp(address))
            }
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Unix(listener) => listener.as_fd(),
            Kind::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A socket that was made elsewhere, served in plain text. Who may connect is up to whoever made it.
impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Listener {
            kind: Kind::Unix(listener),
            tls: TlsMode::Off,
            _file: None,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Refuses an address beyond this machine, unless whoever connects there must start TLS.
fn may_listen(address: SocketAddr, tls: &TlsMode) -> Result<(), Error> {
    if address.ip().is_loopback() || matches!(tls, TlsMode::Required(_)) {
        return Ok(());
    }
    Err(Error::NotLoopback { address })
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Waits until no other server is about to listen in the same directory.
fn turn(path: &Path) -> io::Result<File> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory)?;
    for _ in 0..TURN_TRIES {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::WOULDBLOCK) => thread::sleep(TURN_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(
        ErrorKind::ResourceBusy,
        "somebody holds a lock on the directory",
    ))
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "a file that is no socket is in the way",
            ));
        }
        Ok(_) => {}
    }
    // A server that is so busy that one would have to wait for it listens, too.
    let fd = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match connect(&fd, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(Errno::AGAIN) => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn a_unix_socket_is_for_its_owner_only_and_vanishes_with_its_listener() {
        let dir = directory();
        let path = dir.path().join("socket");
        let listener = Listener::unix(&path).expect("listening");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_over_is_replaced_but_one_in_use_is_not() {
        let dir = directory();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let listener = Listener::unix(&path).expect("the stale socket is replaced");
        let second = Listener::unix(&path).expect_err("in use");
        assert!(second.to_string().contains("in use"), "{second}");
        drop(listener);
    }

    #[test]
    fn of_many_that_find_the_same_socket_left_over_one_gets_it_and_is_reached() {
        let dir = directory();
        let path = dir.path().join("socket");
        for _ in 0..100 {
            drop(UnixListener::bind(&path).expect("bound"));
            let all: Vec<_> = thread::scope(|scope| {
                let one = || scope.spawn(|| Listener::unix(&path));
                let all: Vec<_> = (0..8).map(|_| one()).collect();
                all.into_iter()
                    .map(|one| one.join().expect("no panic"))
                    .collect()
            });
            let listening: Vec<_> = all.iter().filter_map(|one| one.as_ref().ok()).collect();
            let [listener] = listening[..] else {
                panic!("{all:?}");
            };
            listener.set_nonblocking().expect("set");
            let _client = UnixStream::connect(&path).expect("it listens");
            listener.accept(&Limits::default()).expect("it is the one");
        }
    }

    #[test]
    fn a_server_too_busy_to_accept_is_in_use() {
        let dir = directory();
        let path = dir.path().join("socket");
        let fd = new_socket(SocketFlags::CLOEXEC).expect("a socket");
        bind(&fd, &SocketAddrUnix::new(&path).expect("a path")).expect("bound");
        listen(&fd, 0).expect("listening");
        let _waits = UnixStream::connect(&path).expect("room for one");
        let second = Listener::unix(&path).expect_err("in use");
        assert!(second.to_string().contains("in use"), "{second}");
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let dir = directory();
        let path = dir.path().join("notes");
        fs::write(&path, "precious").expect("written");
        Listener::unix(&path).expect_err("no socket");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[test]
    fn tcp_in_plain_text_is_for_loopback_however_the_socket_was_made() {
        let any = "0.0.0.0:0".parse().expect("an address");
        let refused = Listener::tcp(any).expect_err("not loopback");
        assert!(matches!(refused, Error::NotLoopback { .. }));
        assert!(refused.to_string().contains("require TLS"), "{refused}");
        let made = TcpListener::bind(any).expect("bound");
        let refused = Listener::from_tcp(made, TlsMode::Off).expect_err("not loopback");
        assert!(matches!(refused, Error::NotLoopback { .. }));
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::tcp(loopback).expect("listening");
        assert!(
            listener
                .tcp_address()
                .is_some_and(|address| address.port() != 0)
        );
    }
}
