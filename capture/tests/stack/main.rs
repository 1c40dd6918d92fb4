//! Captures of real domains: libvirt, QEMU and the storage engine together.
//!
//! Run beside a private libvirtd: `tests/stack/with-libvirt cargo test -p virtkeep-capture`. The
//! domains have no operating system and stand still (but for those of `guest`); writes go through QEMU's own block layer, so
//! that dirty bitmaps see them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod guest;
mod live;
mod rest;
mod trouble;
mod world;
