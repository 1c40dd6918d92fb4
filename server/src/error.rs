//! What ends a connection other than by the client's wish, and what keeps a server from starting.
//!
//! An error of one request is none of these: it is an [`ExportError`](crate::ExportError) and
//! goes to the client.

use std::io;
use std::path::PathBuf;

use crate::wire::Malformed;

/// Why a connection was dropped, or a server could not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection failed, or the client left in the middle of a message.
    #[error("cannot {verb}: {source}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The client does not speak the protocol.
    #[error("malformed {message}: {source}")]
    Malformed {
        /// Which message.
        message: &'static str,
        /// What is wrong with it.
        source: Malformed,
    },
    /// The handshake took longer than [`Limits::handshake`](crate::Limits::handshake).
    #[error("the client did not finish the handshake in time")]
    HandshakeTimeout,
    /// A request did not arrive, or a reply was not taken, within
    /// [`Limits::stall`](crate::Limits::stall).
    #[error("the client stalled in the middle of a message")]
    Stalled,
    /// Too many were connected, and this client made room for a new one: it had not chosen an export
    /// yet, or was idle.
    #[error("the client was not busy, and made room for another")]
    Displaced,
    /// An option is longer than any sensible one.
    #[error("the client sent an option of {bytes} bytes")]
    OptionTooLong {
        /// The length it announced.
        bytes: u32,
    },
    /// The client kept asking without ever choosing an export.
    #[error("the client sent too many options")]
    TooManyOptions,
    /// The payload of a write is longer than the announced maximum.
    #[error("the client announced a write of {bytes} bytes")]
    WriteTooLong {
        /// The length it announced.
        bytes: u32,
    },
    /// `NBD_OPT_EXPORT_NAME` named an export that is not available; that option has no error reply.
    #[error("the client chose an export that is not available: {reason}")]
    NoSuchExport {
        /// The registry's words.
        reason: String,
    },
    /// A long read failed after its reply had begun, and the client did not negotiate structured
    /// replies, so that there is no way to tell it.
    #[error("a read failed after its reply had begun: {reason}")]
    ReadFailedLate {
        /// The export's words.
        reason: String,
    },
    /// The client asked for TLS and the TLS handshake failed; for instance it has no certificate,
    /// or one of an unknown authority.
    #[error("cannot start TLS: {reason}")]
    TlsHandshake {
        /// The words of the TLS library.
        reason: String,
    },
    /// The client went on in plain text behind `NBD_OPT_STARTTLS`, or somebody in between did.
    #[error("the client went on in plain text after asking for TLS")]
    PlainTextAfterStartTls,
    /// The client chose an export in plain text by `NBD_OPT_EXPORT_NAME`, which has no error reply,
    /// on a connection that requires TLS.
    #[error("the client did not start TLS, which is required here")]
    TlsRequired,
    /// A certificate or key cannot be used.
    #[error("cannot {verb} {path}: {reason}")]
    TlsSetup {
        /// What was being done.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The export panicked.
    #[error("the export panicked")]
    ExportPanicked,
    /// An address other than loopback, and no TLS required there.
    #[error(
        "{address} can be reached from other machines, and without TLS whoever reaches it can read \
         the disks: require TLS, or listen on 127.0.0.1, [::1] or a unix socket"
    )]
    NotLoopback {
        /// The address.
        address: std::net::SocketAddr,
    },
    /// A socket passed to this process is not one that a server can use.
    #[error("socket {number} passed to this process is no listening unix or TCP socket: {source}")]
    Passed {
        /// Which, from 1 on.
        number: usize,
        /// The system's error.
        source: io::Error,
    },
    /// The server cannot listen there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address or path.
        address: String,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(verb: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { verb, source }
    }

    pub(crate) fn listen(address: impl ToString) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Listen {
            address: address.to_string(),
            source,
        }
    }

    pub(crate) fn malformed(message: &'static str) -> impl FnOnce(Malformed) -> Error {
        move |source| Error::Malformed { message, source }
    }
}
