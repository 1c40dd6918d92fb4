//! Format version 1: how everything in a repository but the index is laid out, byte by byte.
//!
//! `doc/format.md` is the norm; these modules are its only implementation, and a test holds the two
//! together. Encoding and decoding are pure functions of bytes; only [`pack`], [`inspect`] and [`walk`]
//! touch storage.
//! Invariants: integers are little-endian and of fixed width; every length is checked against a
//! named limit before anything is allocated; decoders answer any bytes whatever with a value or an
//! error, never a panic.

pub mod geometry;
pub mod inspect;
pub mod node;
pub mod pack;
pub mod point;
pub mod record;
pub mod walk;

mod bytes;

pub use bytes::Malformed;

/// The version of the format this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
