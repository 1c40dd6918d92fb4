//! Counting how much of each pack is needed.
//!
//! The live ids, sorted, are compared with the ids of the index, which are sorted, too: one pass over
//! both. When the live ids do not fit in memory, this is done range by range.

use std::collections::{HashMap, HashSet};

use super::live::{LiveSet, first_id, prefix};
use super::usage::Usage;
use crate::index::{Indexed, PackNumber};
use crate::store::Store;
use crate::{Cancel, Error, Result};

/// How many entries are looked at under one hold of the index lock.
const SCAN_ENTRIES: usize = 16 << 10;

/// How the packs are used, as far as counted.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// By pack; to one that is missing here no entry points.
    pub(super) packs: HashMap<PackNumber, Usage>,
    /// Ids that are needed and in no pack that the index knows: how many, those aside that are known
    /// to be lost.
    pub(super) lost: u64,
}

impl Census {
    /// The packs in which something is needed.
    pub(super) fn needed(&self) -> impl Iterator<Item = PackNumber> {
        let used = self.packs.iter().filter(|(_, usage)| usage.records > 0);
        used.map(|(number, _)| *number)
    }

    /// Counts what `live`, which is settled, covers. `wanted` are known to be damaged or lost.
    pub(super) fn count(
        &mut self,
        store: &Store,
        live: &LiveSet,
        wanted: &HashSet<u64>,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut ids = live.prefixes().iter().peekable();
        // Whether the index has the next of them.
        let mut found = false;
        scan(store, live.from(), live.until(), cancel, |entry| {
            let at = prefix(entry.id);
            while let Some(passed) = ids.next_if(|id| **id < at) {
                self.lost += u64::from(!found && !wanted.contains(passed));
                found = false;
            }
            let needed = ids.peek() == Some(&&at);
            found |= needed;
            let usage = self.packs.entry(entry.pack).or_default();
            usage.count(entry.id, entry.len, needed);
        })?;
        let rest = ids.skip(usize::from(found));
        self.lost += rest.filter(|id| !wanted.contains(id)).count() as u64;
        Ok(())
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
