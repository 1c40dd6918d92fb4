//! Counting how much of each pack is needed.
//!
//! The live ids, sorted, are compared with the ids of the index, which are sorted, too: one pass over
//! both. When the live ids do not fit in memory, this is done range by range.

use std::collections::{HashMap, HashSet};

use super::live::{LiveSet, first_id, prefix};
use crate::index::{Indexed, PackNumber};
use crate::store::Store;
use crate::{Cancel, Error, Result};

/// How many entries are looked at under one hold of the index lock.
const SCAN_ENTRIES: usize = 16 << 10;

/// What of a pack is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Number of records.
    pub(super) records: u32,
    /// Bytes of them.
    pub(super) bytes: u64,
}

/// How the packs are used, as far as counted.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// By pack; one that is missing here holds nothing that is needed.
    pub(super) packs: HashMap<PackNumber, Usage>,
    /// Ids that are needed and in no pack that the index knows: how many, those aside that are known
    /// to be lost.
    pub(super) lost: u64,
}

impl Census {
    /// Counts what `live`, which is settled, covers. `wanted` are known to be damaged or lost.
    pub(super) fn count(
        &mut self,
        store: &Store,
        live: &LiveSet,
        wanted: &HashSet<u64>,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut ids = live.prefixes();
        let mut found = 0;
        scan(store, live.from(), live.until(), cancel, |entry| {
            let at = prefix(entry.id);
            let passed = ids.partition_point(|id| *id < at);
            self.lose(&ids[..passed], found, wanted);
            found = if passed > 0 { 0 } else { found };
            ids = &ids[passed..];
            if ids.first() == Some(&at) {
                found = 1;
                let usage = self.packs.entry(entry.pack).or_default();
                usage.records += 1;
                usage.bytes += u64::from(entry.len);
            }
        })?;
        self.lose(ids, found, wanted);
        Ok(())
    }

    /// Of these live ids only the first `found` are in the index.
    fn lose(&mut self, ids: &[u64], found: usize, wanted: &HashSet<u64>) {
        let lost = ids.iter().skip(found).filter(|id| !wanted.contains(id));
        self.lost += lost.count() as u64;
    }
}

/// Passes over all entries of the index whose ids have a prefix from `from` to `until`.
pub(super) fn scan(
    store: &Store,
    from: u64,
    until: u64,
    cancel: &Cancel,
    mut visit: impl FnMut(Indexed),
) -> Result<()> {
    let mut next = Some(first_id(from));
    while let Some(from) = next {
        cancel.check()?;
        let entries = store.index.read(|view| view.scan(from, SCAN_ENTRIES))?;
        next = match entries.last() {
            Some(last) if entries.len() == SCAN_ENTRIES && prefix(last.id) <= until => {
                following(last.id)
            }
            _ => None,
        };
        let inside = entries
            .into_iter()
            .take_while(|entry| prefix(entry.id) <= until);
        inside.for_each(&mut visit);
    }
    Ok::<_, Error>(())
}

/// The next id after this one; none after the last.
fn following(id: crate::RawId) -> Option<crate::RawId> {
    let mut bytes = *id.as_bytes();
    for byte in bytes.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(crate::RawId::from_bytes(bytes));
        }
    }
    None
}
