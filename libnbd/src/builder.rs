//! Settings made before connecting, and connecting within a time limit.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::drive::{Deadline, settle};
use crate::endpoint::{Endpoint, Tls};
use crate::error::{Error, Operation};
use crate::handle::Handle;
use crate::negotiation::Negotiation;
use crate::raw::{Phase, RawHandle};

/// How long connecting may take unless told otherwise.
///
/// QEMU accepts at most 100 connections; the next one is not refused, it just never gets an
/// answer.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Settings of connections to be made; any number of handles may be connected with one.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) export: String,
    pub(crate) contexts: Vec<String>,
    tls: Tls,
    connect_timeout: Option<Duration>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            export: String::new(),
            contexts: Vec::new(),
            tls: Tls::Off,
            connect_timeout: Some(CONNECT_TIMEOUT_DEFAULT),
        }
    }
}

impl Builder {
    /// The server's default export (empty name), no metadata contexts, no TLS.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Which export to open. The name in an [`Endpoint::Uri`] wins over this one.
    pub fn export(mut self, name: impl Into<String>) -> Builder {
        self.export = name.into();
        self
    }

    /// Asks for a metadata context as well, such as `base:allocation`. A server that does
    /// not have it says nothing: see [`Handle::has_context`].
    pub fn meta_context(mut self, name: impl Into<String>) -> Builder {
        self.contexts.push(name.into());
        self
    }

    /// Sets whether TLS is required.
    pub fn tls(mut self, tls: Tls) -> Builder {
        self.tls = tls;
        self
    }

    /// Limits the time until the handshake is done, and that of each step of a
    /// [`Negotiation`]; `None` waits for ever. The default is [`CONNECT_TIMEOUT_DEFAULT`].
    /// Resolving a host name is not covered.
    pub fn connect_timeout(mut self, limit: Option<Duration>) -> Builder {
        self.connect_timeout = limit;
        self
    }

    /// Connects and opens the export.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when the server does not answer in time, [`Error::Tls`] for
    /// settings that would not authenticate the server, [`Error::Library`] with the reason
    /// for all other failures, [`Error::Protocol`] for a size of 2^63 bytes or more.
    pub fn connect(&self, endpoint: &Endpoint) -> Result<Handle, Error> {
        let (raw, _) = self.establish(Target::Endpoint(endpoint), false)?;
        self.open(raw)
    }

    /// As [`connect`](Builder::connect), over a socket (or socket pair) that is connected
    /// already. TLS cannot be used with it: the host's name is not known.
    pub fn connect_socket(&self, socket: OwnedFd) -> Result<Handle, Error> {
        let (raw, _) = self.establish(Target::Socket(socket), false)?;
        self.open(raw)
    }

    /// Connects, but opens no export yet, so that the server's exports can be listed.
    ///
    /// # Errors
    /// As [`connect`](Builder::connect).
    pub fn negotiate(&self, endpoint: &Endpoint) -> Result<Negotiation, Error> {
        let (raw, phase) = self.establish(Target::Endpoint(endpoint), true)?;
        Negotiation::new(raw, phase, self.clone())
    }

    /// As [`negotiate`](Builder::negotiate), over a socket that is connected already.
    pub fn negotiate_socket(&self, socket: OwnedFd) -> Result<Negotiation, Error> {
        let (raw, phase) = self.establish(Target::Socket(socket), true)?;
        Negotiation::new(raw, phase, self.clone())
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.connect_timeout)
    }

    pub(crate) fn open(&self, raw: RawHandle) -> Result<Handle, Error> {
        self.tls.negotiated(&raw)?;
        Handle::new(raw, &self.contexts)
    }

    fn establish(&self, target: Target<'_>, opt_mode: bool) -> Result<(RawHandle, Phase), Error> {
        let raw = RawHandle::new()?;
        raw.set_export_name(self.export.as_str())?;
        for context in &self.contexts {
            raw.add_meta_context(context.as_str())?;
        }
        // Our buffers are initialised memory, and `Pieces` proves that a reply fills them.
        raw.set_pread_initialize(false)?;
        raw.set_opt_mode(opt_mode)?;
        self.tls.apply(&raw, target.endpoint())?;

        let deadline = self.deadline();
        let subprocess = target.endpoint().is_some_and(Endpoint::is_subprocess);
        let connected = target
            .start(&raw)
            .and_then(|()| self.tls.still_holds(&raw))
            .and_then(|()| settle(&raw, Operation::Connect, deadline));
        match connected {
            Ok(()) => {
                let phase = raw.phase();
                Ok((raw, phase))
            }
            Err(error) => {
                if subprocess {
                    // Closing the handle waits for the child, which may never end by itself.
                    let _ = raw.kill_subprocess(rustix::process::Signal::KILL.as_raw());
                }
                Err(error)
            }
        }
    }
}

/// What to connect to.
enum Target<'a> {
    Endpoint(&'a Endpoint),
    Socket(OwnedFd),
}

impl Target<'_> {
    fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Target::Endpoint(endpoint) => Some(endpoint),
            Target::Socket(_) => None,
        }
    }

    fn start(self, raw: &RawHandle) -> Result<(), Error> {
        match self {
            Target::Endpoint(endpoint) => endpoint.start(raw),
            Target::Socket(socket) => raw.connect_socket(socket),
        }
    }
}
