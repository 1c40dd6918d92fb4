//! Which packs a check reads when it does not read all of them.
//!
//! The packs stand in a ring, in the order of their random names, and each check goes on where the
//! last one ended; the index keeps the place. So checks of a tenth each have read everything after
//! ten of them, whatever came and went in between.

use crate::index::PackRow;
use crate::{ByteLen, PackId};

/// How much of the packs is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadData {
    /// Tables and sizes only.
    #[default]
    Nothing,
    /// This share of all bytes, at least one pack.
    Percent(u8),
    /// About this many bytes, at least one pack.
    Bytes(ByteLen),
}

impl ReadData {
    /// Every byte.
    pub const ALL: Self = Self::Percent(100);
}

/// The packs to be read, the last of them at the end.
pub(super) fn choose(rows: &[PackRow], read: ReadData, after: PackId) -> Vec<PackId> {
    let mut ring: Vec<(PackId, u64)> = rows.iter().map(|row| (row.id, row.bytes)).collect();
    ring.sort_unstable();
    let total: u64 = ring.iter().map(|(_, bytes)| bytes).sum();
    let share = match read {
        ReadData::Nothing => return Vec::new(),
        ReadData::Percent(percent) => {
            let share = u128::from(total) * u128::from(percent.min(100));
            u64::try_from(share.div_ceil(100)).unwrap_or(u64::MAX)
        }
        ReadData::Bytes(bytes) => bytes.0,
    };
    let start = ring.partition_point(|(id, _)| *id <= after);
    ring.rotate_left(start);
    let mut chosen = Vec::new();
    let mut bytes_chosen = 0;
    for (id, bytes) in ring {
        if !chosen.is_empty() && bytes_chosen >= share {
            break;
        }
        bytes_chosen += bytes;
        chosen.push(id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::index::PackState;
    use crate::{LeaseId, PackKind};

    fn rows(bytes: &[u64]) -> Vec<PackRow> {
        let row = |(n, bytes): (usize, &u64)| PackRow {
            id: PackId::from_bytes([n as u8 + 1; 16]),
            kind: PackKind::Data,
            lease: LeaseId::from_bytes([0; 16]),
            bytes: *bytes,
            records: 1,
            state: PackState::Live,
        };
        bytes.iter().enumerate().map(row).collect()
    }

    #[test]
    fn checks_of_a_share_each_go_round_all_packs() {
        let rows = rows(&[50, 10, 40, 30, 20, 50, 70, 10, 10, 10]);
        for read in [ReadData::Percent(20), ReadData::Bytes(ByteLen(60))] {
            let (mut seen, mut after) = (HashSet::new(), PackId::from_bytes([3; 16]));
            for _ in 0..5 {
                let chosen = choose(&rows, read, after);
                after = *chosen.last().unwrap();
                assert!(chosen.len() < rows.len());
                seen.extend(chosen);
            }
            assert_eq!(seen.len(), rows.len(), "{read:?}");
        }
    }

    #[test]
    fn everything_is_everything_and_a_little_is_one_pack() {
        let rows = rows(&[50, 10, 40]);
        let after = PackId::from_bytes([2; 16]);
        assert_eq!(choose(&rows, ReadData::ALL, after).len(), 3);
        let one = choose(&rows, ReadData::Bytes(ByteLen(1)), after);
        assert_eq!(one, [rows[2].id]);
        assert_eq!(choose(&rows, ReadData::Nothing, after), []);
        assert_eq!(choose(&[], ReadData::ALL, after), []);
    }
}
