//! The ids that points need and that cannot be had: noted as wanted as they are met.

use std::collections::HashSet;

use crate::index::Index;
use crate::{RawId, Result};

/// Ids held in memory, about 50 MB. More than that are wanted all the same; other copies of them are
/// looked for when the repair is repeated.
const HELD_MAX: usize = 1 << 20;

/// Ids that become wanted in one transaction.
const BATCH: usize = 4096;

pub(super) struct Lost<'a> {
    index: &'a Index,
    ids: HashSet<RawId>,
    pending: Vec<RawId>,
    overflown: bool,
}

impl<'a> Lost<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            ids: HashSet::new(),
            pending: Vec::new(),
            overflown: false,
        }
    }

    /// Takes note of an id, which may have been met before.
    pub(super) fn note(&mut self, id: RawId) -> Result<()> {
        if self.ids.contains(&id) {
            return Ok(());
        }
        if self.ids.len() < HELD_MAX {
            self.ids.insert(id);
        } else {
            self.overflown = true;
        }
        self.pending.push(id);
        if self.pending.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes all of them wanted.
    pub(super) fn flush(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.index.write(|edit| edit.want(&self.pending))?;
            self.pending.clear();
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn contains(&self, id: RawId) -> bool {
        self.ids.contains(&id)
    }

    /// Makes only these wanted: what no point needs any more keeps nobody waiting.
    pub(super) fn forget_others(&self) -> Result<()> {
        if self.overflown || self.index.read(|view| view.wanted_count())? == self.ids.len() as u64 {
            return Ok(());
        }
        self.index.write(|edit| edit.want_only(&self.ids))
    }
}
