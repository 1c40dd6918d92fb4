//! Stories of the program, told to the real one: every test runs `virtkeep` as a user would, and
//! looks at files, output and exit codes. None needs libvirtd; QEMU's tools and `nbdkit` are used
//! for real. Points of domains are put into the repository through the engine.

#![allow(clippy::unwrap_used)]

mod at_rest;
#[path = "../../../server/tests/common/authority.rs"]
mod authority;
mod bad_input;
mod clients;
mod define;
mod directory;
mod forget;
mod interrupted;
mod listing;
mod manual;
mod mount;
mod onto;
mod repair;
mod salvage;
mod serve;
mod serving;
mod stream;
mod way_out;
mod world;
