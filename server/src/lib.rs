//! A Network Block Device server as a library: implement a trait, serve it on a socket.
//!
//! - An [`Export`] is a disk: a size, reads, and what else it can do: writes, zeroes, trims, holes,
//!   block status. [`MemoryDisk`] is one.
//! - [`Exports`] lists disks and opens them by name, at every client's request, and may look at who the
//!   [`Client`] is; [`ExportMap`] is a fixed set, for everybody.
//! - A [`Server`] accepts clients on [`Listener`]s, unix sockets or TCP, and stops in good order.
//! - [`Tls`] is a certificate and its key, and which clients are let in.
//! - A [`Connection`] serves one client over any reader and writer, without a server.
//! - [`wire`] holds the messages of the protocol as plain values, without any I/O.
//! - [`limits`] holds every bound, by name.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//! use nbd_server::{ExportMap, Listener, MemoryDisk, Server};
//!
//! # fn main() -> Result<(), nbd_server::Error> {
//! let disk = Arc::new(MemoryDisk::new(1 << 30));
//! let exports = ExportMap::new().with("scratch", disk);
//! let server = Server::new(Arc::new(exports)).start(vec![Listener::unix("/run/scratch.sock")?])?;
//! // … nbdinfo 'nbd+unix:///scratch?socket=/run/scratch.sock'
//! server.stop(Duration::from_secs(10));
//! # Ok(())
//! # }
//! ```
//!
//! # What it speaks
//!
//! Fixed newstyle negotiation with the options list, info, go, export name, abort, structured reply
//! and metadata contexts (list and set); the commands read, write, write zeroes, trim, flush, cache,
//! block status and disconnect, with the flags FUA, no-hole, don't-fragment, one-extent and
//! fast-zero; simple and structured replies; size constraints; several connections to one export.
//! FUA is a flush after the write.
//!
//! TLS, started by the client with `NBD_OPT_STARTTLS`: a [`Listener`] offers it, requires it, or
//! does without ([`TlsMode`]). One that can be reached from other machines always requires it.
//!
//! Not spoken: extended headers, resizing, oldstyle negotiation.
//!
//! # Features
//!
//! Both are on by default:
//!
//! - `tls`: TLS, by [rustls](https://docs.rs/rustls) and ring, which needs a C compiler to build.
//! - `socket-activation`: [`PassedSocket`], sockets passed by systemd.
//!
//! # What a client can count on
//!
//! - The requests of one connection run at the same time and are answered as they get done.
//! - A range that the export reports as a hole is sent as a hole, without its zeroes, to a client
//!   that negotiated structured replies.
//! - A read that fails is answered with an error and no data. Only a client that did *not* negotiate
//!   structured replies, and reads more than [`limits::PIECE_BYTES`] in one request, may instead see
//!   the connection break off.
//! - When the server stops, every request that has reached it whole is carried out and answered.
//!
//! # What a client cannot do
//!
//! Make the server hold more than [`Limits::bytes_in_flight_max`], or a thread for longer than the
//! time limits while a message is half sent or half taken, or keep others from being served.
//!
//! Protocol violations that have an error reply get it; others end the connection.

#![forbid(unsafe_code)]

#[cfg(feature = "socket-activation")]
mod activation;
mod channel;
mod client;
mod context;
mod error;
mod export;
mod exports;
pub mod limits;
mod listener;
mod memory;
mod negotiation;
mod pulse;
mod server;
mod socket;
mod stream_io;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod transmission;
pub mod wire;

#[cfg(feature = "socket-activation")]
pub use activation::PassedSocket;
pub use channel::TlsMode;
pub use client::Client;
pub use context::{Context, Extents, HOLE, ZERO};
pub use error::Error;
pub use export::{BlockSizes, ErrorCode, Export, ExportError, Features, Holes, ZeroMode};
pub use exports::{ExportMap, Exports, Listing, OpenError};
pub use limits::Limits;
pub use listener::Listener;
pub use memory::MemoryDisk;
pub use negotiation::Connection;
pub use server::{Event, Running, Server, Unfinished};
pub use socket::Peer;
pub use tls::Tls;
pub use transmission::{Helpers, Session};

/// The example of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
