//! The ground on which the end-to-end tests stand: [`Program`], virtkeep as users run it;
//! [`Machine`], a domain of a private libvirtd; [`Images`], what its disks held at some moment; and
//! [`Debris`], what a backup may not leave behind.
//!
//! Nothing here links any crate of virtkeep: what is proved, is proved of the program.
//!
//! All of it is test code: what does not go as expected panics, and that is the failed test.

#![allow(
    clippy::unwrap_used,
    reason = "test code: a failed unwrap is a failed test"
)]

mod debris;
mod images;
mod machine;
mod program;
mod tool;

pub use debris::Debris;
pub use images::{Content, Images};
pub use machine::{DiskSpec, Machine};
pub use program::{Program, Ran, Running};
pub use tool::{lines, run, stack, text, wait_until};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
