//! Stories of virtkeep as its users live them, each told by its name. They need a libvirtd of their
//! own: `tests/stack/with-libvirt cargo test -p virtkeep-tests --test stories`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod boot;
mod boot_by_hand;
mod boot_early;
mod boot_space;
mod boot_trouble;
mod cost;
mod defined;
mod from_disk;
mod guest;
mod moment;
mod names;
mod trial;
mod trouble;
mod world;
