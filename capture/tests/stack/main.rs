//! Captures of real domains: libvirt, QEMU and the storage engine together.
//!
//! Run beside a private libvirtd: `tests/stack/with-libvirt cargo test -p virtkeep-capture`. The
//! domains have no operating system and stand still (but for those of `guest`); writes go through QEMU's own block layer, so
//! that dirty bitmaps see them.

mod guest;
mod live;
mod rest;
mod trouble;
mod world;
