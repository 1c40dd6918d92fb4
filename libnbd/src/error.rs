//! What can go wrong, as a type: who refused (we, the C library, the server) and during what.

use std::time::Duration;

/// The operation during which an [`Error`] arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Setting up a handle before connecting.
    Configure,
    /// Connecting and the handshake.
    Connect,
    /// Listing exports or metadata contexts, or asking about an export.
    List,
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Writing zeroes.
    Zero,
    /// Trimming (discarding).
    Trim,
    /// Flushing the server's caches to stable storage.
    Flush,
    /// Asking for block status.
    BlockStatus,
    /// Waiting for replies.
    Poll,
    /// Ending the connection in order.
    Shutdown,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Operation::Configure => "configure",
            Operation::Connect => "connect",
            Operation::List => "list",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Zero => "write zeroes",
            Operation::Trim => "trim",
            Operation::Flush => "flush",
            Operation::BlockStatus => "block status",
            Operation::Poll => "poll",
            Operation::Shutdown => "shutdown",
        })
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The C library reported a failure outside a single request.
    #[error("{operation}: {message}")]
    Library {
        /// What was being done.
        operation: Operation,
        /// The library's own words, without the name of its function.
        message: String,
        /// The system error number, where there is one.
        errno: Option<i32>,
    },

    /// The server failed one request, or the connection ended before its reply.
    #[error("{operation} of {length} bytes at offset {offset}: {message}")]
    Request {
        /// What was asked for.
        operation: Operation,
        /// Start of the request in bytes.
        offset: u64,
        /// Length of the request in bytes.
        length: u64,
        /// Why it failed.
        message: String,
        /// The system error number.
        errno: i32,
    },

    /// The server's reply breaks the protocol, or says nothing where it must say something.
    #[error("{operation} at offset {offset}: the server's reply is not acceptable: {reason}")]
    Protocol {
        /// What was asked for.
        operation: Operation,
        /// Start of the request in bytes.
        offset: u64,
        /// Which rule was broken.
        reason: String,
    },

    /// A request or setting that this crate refuses before it reaches the server.
    #[error("{operation}: {reason}")]
    Refused {
        /// What was asked for.
        operation: Operation,
        /// Why it is refused.
        reason: String,
    },

    /// TLS was asked for in a way that would not authenticate the server.
    #[error("TLS: {0}")]
    Tls(String),

    /// A metadata context that the caller needs was not negotiated with the server.
    #[error("the server does not offer the metadata context '{0}' on this export")]
    MissingContext(String),

    /// The operation did not finish within its time limit.
    #[error("{operation}: no answer within {} s", limit.as_secs_f64())]
    TimedOut {
        /// What was being done.
        operation: Operation,
        /// The limit that passed.
        limit: Duration,
    },

    /// A [`Waker`](crate::Waker) ended a blocking call.
    #[error("{0}: interrupted")]
    Interrupted(Operation),
}

impl Error {
    /// The system error number behind this error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Library { errno, .. } => *errno,
            Error::Request { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The operation during which this error arose, where it is known.
    pub fn operation(&self) -> Option<Operation> {
        match self {
            Error::Library { operation, .. }
            | Error::Request { operation, .. }
            | Error::Protocol { operation, .. }
            | Error::Refused { operation, .. }
            | Error::TimedOut { operation, .. }
            | Error::Interrupted(operation) => Some(*operation),
            Error::MissingContext(_) => Some(Operation::BlockStatus),
            Error::Tls(_) => Some(Operation::Connect),
        }
    }

    pub(crate) fn refused(operation: Operation, reason: impl Into<String>) -> Error {
        Error::Refused {
            operation,
            reason: reason.into(),
        }
    }

    /// The same library error, arisen during another operation.
    pub(crate) fn during(mut self, operation: Operation) -> Error {
        if let Error::Library { operation: was, .. } = &mut self {
            *was = operation;
        }
        self
    }

    pub(crate) fn system(operation: Operation, errno: rustix::io::Errno) -> Error {
        Error::Library {
            operation,
            message: errno.to_string(),
            errno: Some(errno.raw_os_error()),
        }
    }
}
