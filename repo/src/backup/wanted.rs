//! The ids that repair found damaged, as a backup sees them: what holds one of them is read again.
//!
//! Looked up once, when the backup begins. An id that becomes wanted later may still be inherited by
//! the point being made; it stays wanted, so the next backup heals that point with all the others.

use std::collections::HashSet;

use crate::index::Index;
use crate::{RawId, Result};

/// More are not held in memory (about 50 MB). Then everything counts as wanted, and every disk is read
/// in full: that costs a read, not space.
const WANTED_MAX: usize = 1 << 20;

/// Ids that a backup must not inherit.
pub(super) struct Wanted {
    ids: HashSet<RawId>,
    overflown: bool,
}

impl Wanted {
    /// Those there are now.
    pub(super) fn load(index: &Index) -> Result<Self> {
        let ids = index.wanted(WANTED_MAX + 1)?;
        let overflown = ids.len() > WANTED_MAX;
        Ok(Self { ids, overflown })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn contains(&self, id: RawId) -> bool {
        self.overflown || self.ids.contains(&id)
    }
}
