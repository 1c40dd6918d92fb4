//! Points as read-only files: which names there are ([`tree`]), what partitions a disk has
//! ([`partitions`]), and the answers to the kernel ([`filesystem`]).

pub(crate) mod filesystem;
mod inodes;
mod partitions;
mod tree;
