//! Points as read-only files: which names there are ([`tree`]), what partitions a disk has
//! ([`partitions`]), the answers to the kernel ([`filesystem`]), and the mount itself ([`session`]).

mod access;
mod cursor;
mod entries;
pub(crate) mod filesystem;
mod inodes;
pub(crate) mod opened;
mod partitions;
pub(crate) mod session;
mod tree;
