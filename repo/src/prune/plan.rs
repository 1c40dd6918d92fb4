//! Choosing packs: a pure function of numbers.
//!
//! Packs that nothing needs go. Of the others, the sparsest are rewritten until what is unused is
//! within the limit. Small packs are merged by size classes, each eight times the one before: only when a
//! class has eight packs are they merged, into one of the next class. So a byte is rewritten once per
//! class at most, however many incrementals come, and few small packs are left at any time.

use std::collections::BTreeMap;

use crate::format::pack::{PACK_HEADER_BYTES, TABLE_ENTRY_BYTES, TABLE_MAGIC, TRAILER_BYTES};
use crate::{PackId, PackKind};

/// How many packs of a size class are merged, and how much larger one class is than the one before.
const MERGE_PACKS: usize = 8;

/// How a pack is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackUse {
    /// The pack.
    pub(super) id: PackId,
    /// What it holds.
    pub(super) kind: PackKind,
    /// Size of its file.
    pub(super) bytes: u64,
    /// Records in it, needed or not.
    pub(super) records: u32,
    /// Records in it that are needed.
    pub(super) live_records: u32,
    /// Their bytes.
    pub(super) live_bytes: u64,
}

/// What to do with packs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Nothing in them is needed.
    pub(super) unused: Vec<PackUse>,
    /// What is needed of them is worth copying into new packs; data first, then meta packs.
    pub(super) rewrite: Vec<PackUse>,
    /// Bytes that nothing needs and that stay where they are.
    pub(super) left_bytes: u64,
}

impl PackUse {
    /// The size of a pack that holds just what is needed of this one.
    pub(super) fn compact_bytes(&self) -> u64 {
        let overhead = PACK_HEADER_BYTES + TABLE_MAGIC.len() + TRAILER_BYTES;
        let table = u64::from(self.live_records) * TABLE_ENTRY_BYTES as u64;
        overhead as u64 + self.live_bytes + table
    }

    fn unused_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.compact_bytes())
    }

    fn is_sparser_than(&self, other: &Self) -> std::cmp::Ordering {
        let share = |a: &Self, b: &Self| u128::from(a.unused_bytes()) * u128::from(b.bytes);
        share(other, self)
            .cmp(&share(self, other))
            .then(self.id.cmp(&other.id))
    }
}

/// Chooses among `packs`. Of all bytes afterwards, `other_bytes` in further packs included, at most
/// `unused_max` percent shall be unused. Full packs have `target_bytes`.
pub(super) fn plan(
    packs: &[PackUse],
    other_bytes: u64,
    unused_max: f64,
    target_bytes: u64,
) -> Plan {
    let mut plan = Plan::default();
    let (unused, mut used): (Vec<PackUse>, Vec<PackUse>) =
        packs.iter().partition(|pack| pack.live_records == 0);
    plan.unused = unused;
    used.sort_by(PackUse::is_sparser_than);

    let live: u64 = used.iter().map(PackUse::compact_bytes).sum::<u64>() + other_bytes;
    let mut left: u64 = used.iter().map(PackUse::unused_bytes).sum();
    let too_much = |left: u64| left as f64 > (live + left) as f64 * unused_max / 100.0;
    let sparse = used
        .iter()
        .take_while(|pack| {
            let rewrite = pack.unused_bytes() > 0 && too_much(left);
            if rewrite {
                left -= pack.unused_bytes();
            }
            rewrite
        })
        .count();
    let dense = used.split_off(sparse);
    plan.rewrite = used;

    let mut classes: BTreeMap<(PackKind, u32), Vec<PackUse>> = BTreeMap::new();
    for pack in dense {
        if pack.compact_bytes() < target_bytes / 2 {
            let class = size_class(pack.compact_bytes());
            classes.entry((pack.kind, class)).or_default().push(pack);
        }
    }
    for packs in classes
        .into_values()
        .filter(|packs| packs.len() >= MERGE_PACKS)
    {
        left -= packs.iter().map(PackUse::unused_bytes).sum::<u64>();
        plan.rewrite.extend(packs);
    }
    plan.rewrite.sort_by_key(|pack| (pack.kind, pack.id));
    plan.left_bytes = left;
    plan
}

/// Sizes that differ by less than eight times, roughly, share a class.
fn size_class(bytes: u64) -> u32 {
    bytes.max(1).ilog2() / MERGE_PACKS.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: u64 = 64 << 20;

    fn pack(name: u8, live_bytes: u64, dead_bytes: u64) -> PackUse {
        let live = PackUse {
            id: PackId::from_bytes([name; 16]),
            kind: PackKind::Data,
            bytes: 0,
            records: 20,
            live_records: if live_bytes == 0 { 0 } else { 10 },
            live_bytes,
        };
        PackUse {
            bytes: live.compact_bytes() + dead_bytes,
            ..live
        }
    }

    fn names(packs: &[PackUse]) -> Vec<u8> {
        packs.iter().map(|pack| pack.id.as_bytes()[0]).collect()
    }

    #[test]
    fn packs_that_nothing_needs_go_and_full_ones_stay() {
        let packs = [pack(1, 0, 1000), pack(2, 60 << 20, 0)];
        let plan = plan(&packs, 0, 5.0, TARGET);
        assert_eq!(names(&plan.unused), [1]);
        assert!(plan.rewrite.is_empty());
        assert_eq!(plan.left_bytes, 0);
    }

    #[test]
    fn the_sparsest_are_rewritten_until_what_is_unused_is_within_the_limit() {
        let mib = 1 << 20;
        let packs = [
            pack(1, 60 * mib, 4 * mib),
            pack(2, 40 * mib, 24 * mib),
            pack(3, 50 * mib, 14 * mib),
        ];
        // 42 MiB of 192 are unused; without pack 2 it is 18 of 168, without 3 as well 4 of 154.
        assert!(plan(&packs, 0, 25.0, TARGET).rewrite.is_empty());
        assert_eq!(names(&plan(&packs, 0, 20.0, TARGET).rewrite), [2]);
        let five = plan(&packs, 0, 5.0, TARGET);
        assert_eq!(names(&five.rewrite), [2, 3]);
        assert_eq!(five.left_bytes, 4 * mib);
        assert_eq!(names(&plan(&packs, 0, 0.0, TARGET).rewrite), [1, 2, 3]);
        // What others hold counts as used.
        assert!(plan(&packs, 800 * mib, 5.0, TARGET).rewrite.is_empty());
    }

    #[test]
    fn small_packs_are_merged_once_there_are_eight_of_a_size() {
        let seven: Vec<PackUse> = (1..=7).map(|name| pack(name, 70_000, 0)).collect();
        assert_eq!(plan(&seven, 0, 5.0, TARGET).rewrite, []);
        let mut eight = seven.clone();
        eight.push(pack(8, 80_000, 0));
        eight.push(pack(9, 3_000_000, 0));
        let plan = plan(&eight, 0, 5.0, TARGET);
        assert_eq!(names(&plan.rewrite), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_thousand_incrementals_leave_few_packs_and_rewrite_each_byte_a_few_times() {
        let mut packs: Vec<PackUse> = Vec::new();
        let mut rewritten = 0;
        for number in 0..1000u32 {
            let mut new = pack(0, 70_000, 0);
            new.id = PackId::from_bytes(
                *blake3::hash(&number.to_le_bytes())
                    .as_bytes()
                    .first_chunk()
                    .unwrap(),
            );
            packs.push(new);
            let plan = plan(&packs, 0, 5.0, TARGET);
            if plan.rewrite.is_empty() {
                continue;
            }
            packs.retain(|pack| !plan.rewrite.contains(pack));
            let mut merged = new;
            merged.live_bytes = plan.rewrite.iter().map(|pack| pack.live_bytes).sum();
            merged.live_records = plan.rewrite.iter().map(|pack| pack.live_records).sum();
            merged.bytes = merged.compact_bytes();
            rewritten += merged.live_bytes;
            packs.push(merged);
        }
        assert!(packs.len() < 30, "{} packs", packs.len());
        assert!(rewritten < 4 * 70_000 * 1000, "{rewritten} bytes rewritten");
    }
}
