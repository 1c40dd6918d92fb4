//! Whether reads wait for a disk or find everything in memory.
//!
//! Where they wait, the more of them are under way the better. Where they do not, what they cost is
//! unpacking, and more of them than there are cores only drive each other out of the caches.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A read of packed records that takes longer has waited: from memory they come in some tens of
/// microseconds, from the fastest disks in a hundred.
const WAIT_MIN: Duration = Duration::from_micros(100);

/// How many of the last 32 reads must have waited: a single one may have lost its core to another
/// program.
const WAITS_MIN: u32 = 3;

/// How the last reads went: a bit for each that waited.
#[derive(Default)]
pub(crate) struct Pace(AtomicU32);

impl Pace {
    /// Carries out a read.
    pub(super) fn of<T>(&self, read: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = read();
        self.note(started.elapsed());
        done
    }

    /// Reads that are over at the same moment may count as one.
    fn note(&self, took: Duration) {
        let waits = self.0.load(Ordering::Relaxed) << 1 | u32::from(took > WAIT_MIN);
        self.0.store(waits, Ordering::Relaxed);
    }

    /// Whether reads wait.
    pub(super) fn waits(&self) -> bool {
        self.0.load(Ordering::Relaxed).count_ones() >= WAITS_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_slow_reads_among_the_last_tell_of_a_slow_disk_and_are_forgotten_in_time() {
        let pace = Pace::default();
        let (quick, slow) = (WAIT_MIN / 2, WAIT_MIN * 2);
        pace.note(slow);
        pace.note(slow);
        assert!(!pace.waits());
        pace.note(quick);
        pace.note(slow);
        assert!(pace.waits());
        (0..32).for_each(|_| pace.note(quick));
        assert!(!pace.waits());
    }
}
