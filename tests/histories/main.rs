//! Random histories of a domain: whatever happens to its disks between and during backups, every
//! point restores bit for bit what they held at its moment.
//!
//! `VIRTKEEP_HISTORIES` is how many there are (default 4), `VIRTKEEP_SEED` the seed of the first,
//! the next ones follow it. What fails is repeated with its seed alone:
//!
//! ```text
//! VIRTKEEP_SEED=17 VIRTKEEP_HISTORIES=1 tests/stack/with-libvirt \
//!     cargo test -p virtkeep-tests --test histories -- --nocapture
//! ```
//!
//! A seed fixes all events and what they write. How far a backup has come when it is interrupted is
//! the machine's affair, and whatever it is, the same must hold.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod event;
mod history;

use std::panic::{AssertUnwindSafe, catch_unwind};

use history::History;

#[test]
fn every_point_of_a_random_history_restores_what_the_disks_held() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let count: u64 = number("VIRTKEEP_HISTORIES").unwrap_or(4);
    let first: u64 = number("VIRTKEEP_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let mut failed = Vec::new();
    for seed in first..first + count {
        println!("history {seed}:");
        let done = catch_unwind(AssertUnwindSafe(|| History::new(seed).live()));
        match done {
            Ok(summary) => println!("history {seed}: fine: {summary}"),
            Err(_) => {
                println!("history {seed}: FAILED");
                failed.push(seed);
            }
        }
    }
    println!("{} of {count} histories failed", failed.len());
    assert!(
        failed.is_empty(),
        "histories that failed, by VIRTKEEP_SEED: {failed:?}"
    );
}
