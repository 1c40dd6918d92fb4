//! Passing over the entries of the index in the order of their ids.
//!
//! In slices: others may change the index between two of them.

use std::ops::RangeInclusive;

use super::{Index, Indexed};
use crate::{Cancel, RawId, Result};

/// How many entries are looked at under one hold of the index lock.
const SCAN_ENTRIES: usize = 16 << 10;

/// The first 8 bytes of an id, in the order of ids.
pub(crate) fn prefix(id: RawId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// The smallest id with these first bytes.
fn first_id(prefix: u64) -> RawId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&prefix.to_be_bytes());
    RawId::from_bytes(id)
}

impl Index {
    /// Passes over all entries whose ids have a prefix in this range.
    pub(crate) fn scan(
        &self,
        prefixes: RangeInclusive<u64>,
        cancel: &Cancel,
        mut visit: impl FnMut(Indexed),
    ) -> Result<()> {
        let mut next = Some(first_id(*prefixes.start()));
        while let Some(from) = next {
            cancel.check()?;
            let entries = self.read(|view| view.scan(from, SCAN_ENTRIES))?;
            next = match entries.last() {
                Some(last) if entries.len() == SCAN_ENTRIES => following(last.id),
                _ => None,
            };
            for entry in entries {
                if prefix(entry.id) > *prefixes.end() {
                    return Ok(());
                }
                visit(entry);
            }
        }
        Ok(())
    }
}

/// The next id after this one; none after the last.
pub(crate) fn following(id: RawId) -> Option<RawId> {
    let mut bytes = *id.as_bytes();
    for byte in bytes.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(RawId::from_bytes(bytes));
        }
    }
    None
}
