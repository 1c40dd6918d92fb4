//! Comparing tables of packs with the index, without looking up each id.
//!
//! One pass over the index sums up what points to each pack. Where the records of a table come to the
//! same sum, the index finds all of them, and just there: that damage comes to the same sum by chance is
//! one case in 2⁶⁴. The sum has no key, so it is no proof against whoever writes the index on purpose; the
//! tables have a keyed checksum. Where the sums differ, each record is looked up.

use std::collections::HashMap;

use crate::format::pack::FinishedPack;
use crate::index::PackNumber;
use crate::store::Store;
use crate::{Cancel, RawId, Result};

/// An odd number with an irregular pattern of bits: 2⁶⁴ divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sum of places of records, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    records: u64,
    sum: u64,
}

impl Tally {
    /// What the index holds, by pack.
    pub(super) fn of_index(store: &Store, cancel: &Cancel) -> Result<HashMap<PackNumber, Self>> {
        let mut tallies: HashMap<PackNumber, Self> = HashMap::new();
        store.index.scan(0..=u64::MAX, cancel, |entry| {
            let tally = tallies.entry(entry.pack).or_default();
            tally.add(entry.id, entry.offset, entry.len);
        })?;
        Ok(tallies)
    }

    /// What the table of a pack holds.
    pub(super) fn of_table(pack: &FinishedPack) -> Self {
        let mut tally = Self::default();
        for entry in &pack.entries {
            tally.add(entry.id, entry.offset, entry.len);
        }
        tally
    }

    fn add(&mut self, id: RawId, offset: u32, len: u32) {
        let mut mixed = u64::from(offset) << 32 | u64::from(len);
        for word in id.as_bytes().chunks_exact(8) {
            let word = word
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            mixed = (mixed ^ word).wrapping_mul(SPREAD).rotate_left(29);
        }
        self.records += 1;
        self.sum = self.sum.wrapping_add(mixed);
    }
}
