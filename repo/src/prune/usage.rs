//! What of a pack is needed, record by record, kept in a bit each.
//!
//! The bits are in the order of the ids, of all entries of the index that pointed to the pack when they
//! were counted. To ask about others would give a wrong answer, so the ids counted are summed up, and
//! whoever asks has to bring the same.

use crate::RawId;
use crate::format::pack::PackEntry;
use crate::index::prefix;

/// How many entries share a word of bits.
const WORD_BITS: usize = u64::BITS as usize;

/// What of one pack is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// How many records are.
    pub(super) records: u32,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// Whether one of them is not known to be damaged or lost.
    pub(super) relied_on: bool,
    entries: usize,
    sum: u64,
    bits: Vec<u64>,
}

impl Usage {
    /// Counts the next entry, in the order of ids, whose record has `len` bytes.
    pub(super) fn count(&mut self, id: RawId, len: u32, needed: bool) {
        if self.entries.is_multiple_of(WORD_BITS) {
            self.bits.push(0);
        }
        if needed {
            self.records += 1;
            self.bytes += u64::from(len);
            self.bits[self.entries / WORD_BITS] |= 1 << (self.entries % WORD_BITS);
        }
        self.entries += 1;
        self.sum = self.sum.wrapping_add(prefix(id));
    }

    /// Whether just these entries were counted.
    pub(super) fn is_of(&self, entries: &[PackEntry]) -> bool {
        let sums = entries.iter().map(|entry| prefix(entry.id));
        let sum = sums.fold(0, u64::wrapping_add);
        (entries.len(), sum) == (self.entries, self.sum)
    }

    /// Which of these entries are needed, in the order of their offsets. None unless just these were
    /// counted.
    pub(super) fn needed(&self, entries: &[PackEntry]) -> Option<Vec<PackEntry>> {
        if !self.is_of(entries) {
            return None;
        }
        let mut needed = entries.to_vec();
        needed.sort_unstable_by_key(|entry| entry.id);
        let mut places = 0..self.entries;
        needed.retain(|_| places.next().is_some_and(|place| self.is_needed(place)));
        needed.sort_unstable_by_key(|entry| entry.offset);
        Some(needed)
    }

    fn is_needed(&self, place: usize) -> bool {
        self.bits[place / WORD_BITS] & 1 << (place % WORD_BITS) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordKind;

    fn entry(n: u8) -> PackEntry {
        PackEntry {
            id: RawId::from_bytes([n; 32]),
            kind: RecordKind::Chunk,
            offset: 1000 - u32::from(n),
            len: 10,
        }
    }

    #[test]
    fn what_was_counted_as_needed_is_and_of_other_entries_nothing_is_said() {
        let entries: Vec<PackEntry> = (0..200).rev().map(entry).collect();
        let mut usage = Usage::default();
        for n in 0..200 {
            usage.count(entry(n).id, 10, n % 3 == 1);
        }
        assert_eq!((usage.records, usage.bytes), (67, 670));
        let mut expected = entries.clone();
        expected.retain(|entry| entry.id.as_bytes()[0] % 3 == 1);
        assert_eq!(usage.needed(&entries), Some(expected));

        assert_eq!(usage.needed(&entries[1..]), None);
        let mut others = entries;
        others[199] = entry(255);
        assert_eq!(usage.needed(&others), None);
    }
}
