//! Format version 1, as a whole: what is written is read back, what is damaged is refused, and
//! `doc/format.md` says what the code does.
#![allow(clippy::unwrap_used)]

mod config;
mod document;
mod nodes;
mod packs;
mod points;
mod reader;
mod records;
mod storage;

use virtkeep_repo::format::geometry::ChunkSize;
use virtkeep_repo::keys::{IdKey, Keys};

/// The id key 00 01 02 … 1f, which the document uses, too.
fn id_key() -> IdKey {
    IdKey::from_bytes(std::array::from_fn(|index| index as u8))
}

/// Keys of a repository with chunks of 4 KiB.
fn keys() -> Keys {
    Keys::new(&id_key(), chunk_size())
}

fn chunk_size() -> ChunkSize {
    ChunkSize::new(4096).unwrap()
}

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}
