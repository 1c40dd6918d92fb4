//! Sets of live ids that stay within a limit of memory.
//!
//! Ids are kept by their first 8 bytes. Two that agree in these only make prune keep a record that
//! nothing needs, and check overlook that one of the two is missing; no record that is needed is ever taken for
//! garbage.

use std::ops::RangeInclusive;

use rayon::prelude::*;

use crate::index::prefix;
use crate::{RawId, Result};

/// Ids that are kept in memory at once, 9 bytes each.
pub(crate) const LIVE_IDS_MAX: usize = 12 << 20;

/// What part of the ids in a set may wait to be sorted in.
const FRESH_SHARE: usize = 8;

/// What hears of every id that is reached.
pub(crate) trait Reach {
    /// These ids are needed.
    fn reach(&mut self, ids: &[RawId]) -> Result<()>;
}

/// The live ids from one prefix on, as many as fit: when there are more, the uppermost are left to a
/// later pass.
pub(crate) struct LiveSet {
    from: u64,
    until: u64,
    /// Sorted.
    ids: Vec<u64>,
    ids_max: usize,
    /// Reached since these were sorted; in any order, and again and again.
    fresh: Vec<u64>,
}

impl LiveSet {
    /// A set of at most `ids_max` ids, from prefix `from` on.
    pub(crate) fn new(from: u64, ids_max: usize) -> Self {
        Self {
            from,
            until: u64::MAX,
            ids: Vec::new(),
            ids_max: ids_max.max(16),
            fresh: Vec::new(),
        }
    }

    /// The prefixes that it covers.
    pub(crate) fn range(&self) -> RangeInclusive<u64> {
        self.from..=self.until
    }

    /// The first prefix that is left to the next pass, if there is one.
    pub(crate) fn rest(&self) -> Option<u64> {
        self.until.checked_add(1)
    }

    /// The prefixes in it, sorted, up to the last time it was settled.
    pub(crate) fn prefixes(&self) -> &[u64] {
        &self.ids
    }

    /// Brings the set in order; to be called once all ids were reached.
    pub(crate) fn settle(&mut self) {
        self.merge();
        if self.ids.len() > self.ids_max {
            // A good part, so that this is rare.
            self.ids.truncate(self.ids_max / 4 * 3);
            self.until = self.ids.last().copied().unwrap_or(self.until);
        }
    }

    /// Puts what is new of the fresh ids to the others, from the greatest to the smallest.
    fn merge(&mut self) {
        self.fresh.par_sort_unstable();
        self.fresh.dedup();
        let mut others = self.ids.iter().peekable();
        self.fresh.retain(|id| {
            while others.next_if(|other| *other < id).is_some() {}
            others.peek() != Some(&id)
        });
        let mut others = self.ids.len();
        self.ids.resize(others + self.fresh.len(), 0);
        for place in (0..self.ids.len()).rev() {
            let Some(fresh) = self.fresh.last() else {
                break;
            };
            if others > 0 && self.ids[others - 1] > *fresh {
                others -= 1;
                self.ids[place] = self.ids[others];
            } else {
                self.ids[place] = *fresh;
                self.fresh.pop();
            }
        }
    }
}

impl Reach for LiveSet {
    fn reach(&mut self, ids: &[RawId]) -> Result<()> {
        let range = self.range();
        let ids = ids.iter().map(|id| prefix(*id));
        self.fresh.extend(ids.filter(|id| range.contains(id)));
        if self.fresh.len() > self.ids_max / FRESH_SHARE {
            self.settle();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> RawId {
        RawId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    #[test]
    fn ids_that_do_not_fit_are_met_again_in_later_passes_each_exactly_once() {
        let all: Vec<RawId> = (0..1000).map(id).collect();
        let (mut from, mut passes, mut seen) = (0, 0, Vec::new());
        loop {
            let mut set = LiveSet::new(from, 100);
            for ids in [&all[..], &all[300..], &all[..500]] {
                ids.chunks(7).for_each(|ids| set.reach(ids).unwrap());
            }
            set.settle();
            assert!(set.ids.len() <= 100);
            seen.extend_from_slice(set.prefixes());
            passes += 1;
            match set.rest() {
                Some(rest) => from = rest,
                None => break,
            }
        }
        let mut expected: Vec<u64> = all.iter().map(|id| prefix(*id)).collect();
        expected.sort_unstable();
        assert_eq!(seen, expected);
        assert!((10..=14).contains(&passes), "{passes}");
    }

    #[test]
    fn repeated_ids_take_no_room() {
        let mut set = LiveSet::new(0, 100);
        for n in 0..10_000 {
            set.reach(&[id(n % 50)]).unwrap();
        }
        set.settle();
        assert_eq!(set.range(), 0..=u64::MAX);
        assert_eq!(set.prefixes().len(), 50);
    }
}
