//! Power fails during every single write, sync and change of a name, on a simulated disk beneath
//! packs, point records, pins and the index; and every one of them fails with an error.
//!
//! By default a part of all moments is tried. `VIRTKEEP_CRASH_SEEDS=8` tries every moment, each with
//! that many fates of what was not synced.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap fails the test, which is the point"
)]

#[allow(dead_code, reason = "shared with the tests of the engine")]
#[path = "../engine/disk.rs"]
mod disk;
mod effort;
mod every_fault;
mod every_moment;
mod model;
mod power;
mod scenarios;
mod world;
