//! Whether reads wait for a device or find everything in memory.
//!
//! Where they wait, the more of them are under way the better. Where they do not, what they cost is
//! unpacking, and more of them than there are cores only drive each other out of the caches. Time does
//! not tell one from the other: on a busy machine a read also waits for its core.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many of the last 32 reads must have waited: where most of what is read lies in memory, a few that
/// do not are no reason to change.
const WAITS_MIN: u32 = 3;

/// How the last reads went: a bit for each that waited.
#[derive(Default)]
pub(crate) struct Pace(AtomicU32);

impl Pace {
    /// A read has waited, or not. Reads at the same moment may count as one.
    pub(super) fn note(&self, waited: bool) {
        let waits = self.0.load(Ordering::Relaxed) << 1 | u32::from(waited);
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
    fn a_few_reads_of_the_last_that_waited_tell_of_a_slow_disk_and_are_forgotten_in_time() {
        let pace = Pace::default();
        pace.note(true);
        pace.note(true);
        assert!(!pace.waits());
        pace.note(false);
        pace.note(true);
        assert!(pace.waits());
        (0..32).for_each(|_| pace.note(false));
        assert!(!pace.waits());
    }
}
