//! Safe bindings to the C library [libnbd](https://libguestfs.org/libnbd.3.html), a client of
//! the Network Block Device protocol.
//!
//! - A [`Builder`] holds the settings and connects to an [`Endpoint`] (or a socket) within a
//!   time limit, giving a [`Handle`]; or first to a [`Negotiation`], which lists what a
//!   server exports.
//! - A [`Handle`] keeps any number of requests in flight. `submit_…` takes ownership of the
//!   buffer and returns a [`Token`]; [`Handle::poll`] drives the connection; a
//!   [`Completion`] brings back the buffer or the error. There are synchronous forms of all.
//! - Reads report which parts of the buffer the server sent as holes ([`Piece`]).
//! - A [`StatusMap`] walks over the block status of an export and merges several metadata
//!   contexts, each of which may be answered in steps of its own.
//! - A [`Waker`] lets another thread end a blocked call, for instance to cancel.
//!
//! ```no_run
//! use libnbd::{Builder, Endpoint, StatusMap, STATE_ZERO};
//!
//! # fn main() -> Result<(), libnbd::Error> {
//! let mut nbd = Builder::new()
//!     .meta_context("base:allocation")
//!     .connect(&Endpoint::unix("/run/disk.sock"))?;
//! let mut map = StatusMap::new(&nbd, &["base:allocation"], 0..nbd.size())?;
//! while let Some(part) = map.next(&mut nbd)? {
//!     if part.flags[0] & STATE_ZERO == 0 {
//!         println!("data in {:?}", part.range);
//!     }
//! }
//! nbd.submit_read(0, vec![0; 65536])?;
//! nbd.submit_read(65536, vec![0; 65536])?;
//! while let Some(completion) = nbd.wait()? {
//!     println!("{:?}: {:?}", completion.token, completion.result);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What this crate guarantees
//!
//! - The bytes of a read are reachable only if the whole read succeeded, and only if the
//!   server's reply filled each byte of the buffer exactly once.
//! - Buffers stay in place until their request has completed or the connection is closed;
//!   dropping a [`Handle`] with requests in flight is safe.
//! - What a server says is checked: sizes of 2^63 and more, empty extents, extents beyond
//!   the end of the export and replies without progress are errors.
//! - TLS authenticates the server or is refused, see [`Tls`].
//! - No panic crosses into C. All `unsafe` code is in the modules `sys`, `raw`, `request`
//!   and `negotiation`.
//!
//! A handle is driven by one thread at a time: it is `Send`, but not `Sync`.

#![deny(unsafe_code)]

mod builder;
mod completion;
mod drive;
mod endpoint;
mod error;
mod handle;
mod info;
#[allow(unsafe_code)]
mod negotiation;
#[allow(unsafe_code)]
mod raw;
#[allow(unsafe_code)]
mod request;
mod status;
#[allow(unsafe_code)]
mod sys;
mod waker;

pub use builder::{Builder, CONNECT_TIMEOUT_DEFAULT};
pub use completion::{Completion, Piece, PieceKind, ReadReply, Reply, Token};
pub use endpoint::{Endpoint, Tls};
pub use error::{Error, Operation};
pub use handle::{Handle, Polled, WriteFlags, ZeroFlags};
pub use info::{BlockSize, ExportFlags, ExportInfo};
pub use negotiation::{Export, Negotiation};
pub use status::{
    ContextExtents, Extent, REQUEST_BYTES_MAX, STATE_DIRTY, STATE_HOLE, STATE_ZERO, StatusMap,
    StatusRange,
};
pub use waker::Waker;
