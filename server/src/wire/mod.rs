//! The messages of the NBD protocol as plain values: bytes in, values out, and back.
//!
//! Nothing here does I/O, keeps state, or allocates more than a message's own length, so that
//! every decoder can be fed arbitrary bytes. The rules and names are those of the
//! [protocol document](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), whose
//! sections are cited by name. All integers are big-endian.

pub mod handshake;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;
mod take;

pub(crate) use take::Take;

/// Why bytes are no valid message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The message ends before its last field.
    #[error("message ends before its last field")]
    Truncated,
    /// Bytes follow the last field.
    #[error("bytes follow the last field")]
    Trailing,
    /// The magic number is another one.
    #[error("wrong magic number {0:#x}")]
    Magic(u64),
    /// A string is longer than [`STRING_BYTES_MAX`](crate::limits::STRING_BYTES_MAX).
    #[error("string longer than 4096 bytes")]
    StringTooLong,
    /// A string is not UTF-8.
    #[error("string is not UTF-8")]
    NotUtf8,
    /// A string holds a NUL.
    #[error("string holds a NUL")]
    Nul,
    /// More metadata queries than [`QUERIES_MAX`](crate::limits::QUERIES_MAX).
    #[error("more than 1024 queries")]
    TooManyQueries,
    /// A flag or value that the protocol does not define in this place.
    #[error("undefined value {0:#x}")]
    Undefined(u64),
}

/// Any string that the protocol allows, as a pattern for property tests.
#[cfg(test)]
const ANY_STRING: &str = r"[^\x00]{0,40}";
