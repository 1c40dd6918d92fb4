//! The engine through its public face: what goes in comes out, from every point, whatever the
//! history.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap fails the test, which is the point"
)]

mod check;
mod damage;
mod disk;
mod forget;
mod golden;
mod hardship;
mod healing;
mod histories;
mod hooked;
mod last_copy;
mod leases;
mod moved;
mod note;
mod parents;
mod prune;
mod prune_counts;
mod prune_full;
mod prune_races;
mod rebuild;
mod restore;
mod resume;
mod rows;
mod salvage;
