//! Sets of live ids that stay within a limit of memory.
//!
//! Ids are kept by their first 8 bytes. Two that agree in these only make prune keep a record that
//! nothing needs; no record that is needed is ever taken for garbage.

use crate::{RawId, Result};

/// What hears of every id that is reached.
pub(super) trait Reach {
    /// These ids are needed.
    fn reach(&mut self, ids: &[RawId]) -> Result<()>;
}

/// Answers whether an id is needed.
pub(super) trait Liveness: Sync {
    /// Whether it is; also true, rarely, where it is not.
    fn is_live(&self, id: RawId) -> bool;
}

/// The first 8 bytes of an id, in the order of ids.
pub(super) fn prefix(id: RawId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// The smallest id with these first bytes.
pub(super) fn first_id(prefix: u64) -> RawId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&prefix.to_be_bytes());
    RawId::from_bytes(id)
}

/// The live ids from one prefix on, as many as fit: when there are more, the upper half of the range is
/// left to a later pass.
pub(super) struct LiveSet {
    from: u64,
    until: u64,
    ids: Vec<u64>,
    ids_max: usize,
}

impl LiveSet {
    /// A set of at most `ids_max` ids, from prefix `from` on.
    pub(super) fn new(from: u64, ids_max: usize) -> Self {
        Self {
            from,
            until: u64::MAX,
            ids: Vec::new(),
            ids_max: ids_max.max(16),
        }
    }

    /// Brings the set in order; to be called once all ids were reached.
    pub(super) fn settle(&mut self) {
        self.ids.sort_unstable();
        self.ids.dedup();
    }

    /// The first prefix it covers.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// The last prefix it covers.
    pub(super) fn until(&self) -> u64 {
        self.until
    }

    /// Whether it covers all ids.
    pub(super) fn is_whole(&self) -> bool {
        (self.from, self.until) == (0, u64::MAX)
    }

    /// The prefixes in it, sorted once it is settled.
    pub(super) fn prefixes(&self) -> &[u64] {
        &self.ids
    }

    /// Makes room for a good part of the limit, so that sorting is rare.
    fn make_room(&mut self) {
        self.settle();
        while self.ids.len() > self.ids_max / 4 * 3 {
            self.until = self.from + (self.until - self.from) / 2;
            let kept = self.ids.partition_point(|id| *id <= self.until);
            self.ids.truncate(kept);
        }
    }
}

impl Reach for LiveSet {
    fn reach(&mut self, ids: &[RawId]) -> Result<()> {
        for id in ids {
            let id = prefix(*id);
            if !(self.from..=self.until).contains(&id) {
                continue;
            }
            if self.ids.len() >= self.ids_max {
                self.make_room();
            }
            if id <= self.until {
                self.ids.push(id);
            }
        }
        Ok(())
    }
}

impl Liveness for LiveSet {
    fn is_live(&self, id: RawId) -> bool {
        self.ids.binary_search(&prefix(id)).is_ok()
    }
}

/// Which of a few ids are live.
pub(super) struct Selected {
    ids: Vec<u64>,
    live: Vec<bool>,
}

impl Selected {
    /// None of these ids has been reached yet.
    pub(super) fn among(ids: impl IntoIterator<Item = RawId>) -> Self {
        let mut ids: Vec<u64> = ids.into_iter().map(prefix).collect();
        ids.sort_unstable();
        ids.dedup();
        let live = vec![false; ids.len()];
        Self { ids, live }
    }
}

impl Reach for Selected {
    fn reach(&mut self, ids: &[RawId]) -> Result<()> {
        for id in ids {
            if let Ok(place) = self.ids.binary_search(&prefix(*id)) {
                self.live[place] = true;
            }
        }
        Ok(())
    }
}

impl Liveness for Selected {
    fn is_live(&self, id: RawId) -> bool {
        let place = self.ids.binary_search(&prefix(id));
        place.is_ok_and(|place| self.live[place])
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
            for _ in 0..3 {
                set.reach(&all).unwrap();
            }
            set.settle();
            assert!(set.ids.len() <= 100);
            assert!(!set.is_whole());
            seen.extend_from_slice(set.prefixes());
            passes += 1;
            if set.until() == u64::MAX {
                break;
            }
            from = set.until() + 1;
        }
        let mut expected: Vec<u64> = all.iter().map(|id| prefix(*id)).collect();
        expected.sort_unstable();
        assert_eq!(seen, expected);
        assert!(passes > 5, "{passes}");
    }

    #[test]
    fn repeated_ids_take_no_room() {
        let mut set = LiveSet::new(0, 100);
        for n in 0..10_000 {
            set.reach(&[id(n % 50)]).unwrap();
        }
        set.settle();
        assert!(set.is_whole());
        assert_eq!(set.prefixes().len(), 50);
        assert!(set.is_live(id(7)) && !set.is_live(id(77)));
    }

    #[test]
    fn of_selected_ids_those_that_were_reached_are_live() {
        let mut selected = Selected::among([id(1), id(2)]);
        selected.reach(&[id(2), id(3)]).unwrap();
        assert_eq!(
            [1, 2, 3].map(|n| selected.is_live(id(n))),
            [false, true, false]
        );
    }
}
