//! What the fuzz targets share.
//!
//! Ids and checksums are keyed hashes, so random bytes bounce off the first of them and reach nothing
//! behind it. Therefore a target does not read the fuzzer's bytes as an object: it reads them as
//! [`Tampering`] with a valid one ([`objects`]), and as the wish to have checksums put right afterwards
//! or not. A valid object may be the empty one: then the object is all the fuzzer's.
//!
//! [`memory::within`] holds every decoder to the memory it may take.

#![forbid(unsafe_code)]

pub mod client;
pub mod disk;
pub mod index_file;
pub mod memory;
pub mod objects;
mod tampering;

pub use tampering::Tampering;
