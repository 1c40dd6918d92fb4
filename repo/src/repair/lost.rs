//! The ids that points need and that cannot be had: noted as wanted as they are met.

use std::collections::HashSet;

use crate::check::Health;
use crate::format::pack::PackEntry;
use crate::index::{Index, Location};
use crate::lease::LeaseKind;
use crate::{LeaseId, PackId, PointId, RawId, Repository, Result};

/// Ids held in memory, about 50 MB. More than that are wanted all the same; then the index is asked
/// which ones are.
const HELD_MAX: usize = 1 << 20;

/// Ids that become wanted in one transaction.
const BATCH: usize = 4096;

pub(super) struct Lost<'a> {
    index: &'a Index,
    ids: HashSet<RawId>,
    held_max: usize,
    pending: Vec<RawId>,
    overflown: bool,
}

impl<'a> Lost<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            ids: HashSet::new(),
            held_max: HELD_MAX,
            pending: Vec::new(),
            overflown: false,
        }
    }

    /// Takes note of an id, which may have been met before.
    pub(super) fn note(&mut self, id: RawId) -> Result<()> {
        if self.ids.contains(&id) {
            return Ok(());
        }
        if self.ids.len() < self.held_max {
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

    /// Those of the good records of a pack that are lost elsewhere. They count as found from here on.
    pub(super) fn take(
        &mut self,
        pack: PackId,
        mut entries: Vec<PackEntry>,
    ) -> Result<Vec<PackEntry>> {
        if !self.overflown {
            entries.retain(|entry| self.ids.remove(&entry.id));
            return Ok(entries);
        }
        let ids: Vec<RawId> = entries.iter().map(|entry| entry.id).collect();
        let (wanted, places) = self
            .index
            .read(|view| Ok((view.are_wanted(&ids)?, view.locate(&ids)?)))?;
        let mut found = wanted.into_iter().zip(places);
        entries.retain(|entry| {
            found.next().is_some_and(|(wanted, at)| {
                wanted && at.is_none_or(|at| (at.pack, at.offset) != (pack, entry.offset))
            })
        });
        Ok(entries)
    }

    /// Lets go of all other wanted ids, which none of the `walked` points needs, so that they keep nobody
    /// waiting.
    ///
    /// Not of those that the index still finds where they are damaged: they would count as known again
    /// once a point comes to need that pack. And of none while a backup is running, or when one has
    /// ended whose point was not walked: it may rely on any of them.
    pub(super) fn forget_others(
        &self,
        repo: &Repository,
        health: &Health,
        walked: &HashSet<PointId>,
        own: LeaseId,
    ) -> Result<()> {
        if self.overflown {
            return Ok(());
        }
        let wanted = self.index.wanted(HELD_MAX)?;
        let others: Vec<RawId> = wanted.difference(&self.ids).copied().collect();
        let places = self.index.locate(&others)?.into_iter();
        let is_good = |at: Location| health.get(&at.pack).is_none_or(|pack| pack.holds(at));
        let others: Vec<RawId> = others
            .into_iter()
            .zip(places)
            .filter_map(|(id, place)| place.is_none_or(is_good).then_some(id))
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        self.index.write(|edit| {
            // In this order: a backup puts its point before it drops its lease.
            let leases = repo.leases.list()?;
            let mut others_leases = leases.iter().filter(|lease| lease.alive && lease.id != own);
            let is_writing = others_leases.any(|lease| {
                let content = lease.content.as_ref();
                content.is_none_or(|content| content.kind == LeaseKind::Writer)
            });
            if is_writing || !repo.point_ids()?.iter().all(|id| walked.contains(id)) {
                return Ok(());
            }
            edit.want_no_more(&others)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::{create, id, pack};

    #[test]
    fn copies_are_taken_also_of_what_is_not_held_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let index = create(dir.path());
        let damaged = pack(1, [1, 2, 3]);
        index.add_packs(std::slice::from_ref(&damaged)).unwrap();
        for held_max in [1, HELD_MAX] {
            let mut lost = Lost::new(&index);
            lost.held_max = held_max;
            for number in 1..=3 {
                lost.note(id(number)).unwrap();
            }
            lost.flush().unwrap();
            assert_eq!(lost.overflown, held_max == 1);
            let copies = pack(2, [1, 2, 3, 4]);
            let taken = lost.take(copies.id, copies.entries.clone()).unwrap();
            assert_eq!(taken, copies.entries[..3]);
            // What is found here already is not found once more.
            let none = lost.take(damaged.id, damaged.entries.clone()).unwrap();
            assert_eq!(none, []);
        }
    }
}
