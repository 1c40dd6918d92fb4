//! Counting how much of each pack is needed.
//!
//! The live ids, sorted, are compared with the ids of the index, which are sorted, too: one pass over
//! both. When the live ids do not fit in memory, this is done range by range.

use std::collections::{HashMap, HashSet};

use super::usage::Usage;
use crate::index::{PackNumber, prefix};
use crate::reach::LiveSet;
use crate::store::Store;
use crate::{Cancel, Result};

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
    /// The packs in which something is needed that is not wanted anyway.
    pub(super) fn relied_on(&self) -> HashSet<PackNumber> {
        let used = self.packs.iter().filter(|(_, usage)| usage.relied_on);
        used.map(|(number, _)| *number).collect()
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
        store.index.scan(live.range(), cancel, |entry| {
            let at = prefix(entry.id);
            while let Some(passed) = ids.next_if(|id| **id < at) {
                self.lost += u64::from(!found && !wanted.contains(passed));
                found = false;
            }
            let needed = ids.peek() == Some(&&at);
            found |= needed;
            let usage = self.packs.entry(entry.pack).or_default();
            usage.count(entry.id, entry.len, needed);
            usage.relied_on |= needed && !wanted.contains(&at);
        })?;
        let rest = ids.skip(usize::from(found));
        self.lost += rest.filter(|id| !wanted.contains(id)).count() as u64;
        Ok(())
    }
}
