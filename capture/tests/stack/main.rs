//! Captures of real domains: libvirt, QEMU and the storage engine together.
//!
//! Run beside a private libvirtd: `tests/stack/with-libvirt cargo test -p virtkeep-capture`. The
//! domains have no operating system and stand still; writes go through QEMU's own block layer, so
//! that dirty bitmaps see them.

mod live;
mod rest;
mod trouble;
mod world;
