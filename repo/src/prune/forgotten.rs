//! Letting go of forgotten points for good.
//!
//! The order: the row in the index; the notes; the record. So a row without a record, forgotten or not,
//! is one whose record was lost, which repair puts back; and no note outlives what it is about.

use super::Prune;
use super::roots::Listing;
use crate::storage::{Folder, ObjectName};
use crate::{PointId, Result};

/// How many points are let go of under one hold of the index lock.
const POINTS_AT_ONCE: usize = 256;

impl Prune<'_> {
    /// Deletes the records of points that were forgotten before marking began: what only they need may
    /// be condemned now. Those that somebody still relies on stay, and those that came back for a while, so
    /// that they were marked.
    pub fn remove_forgotten(&mut self) -> Result<()> {
        let storage = &*self.store.storage;
        for points in self.forgotten.chunks(POINTS_AT_ONCE) {
            self.cancel.check()?;
            let free = self.with_room(|| {
                self.store.index.write(|edit| {
                    let free = self.unneeded(points)?;
                    for point in &free {
                        edit.remove_point(*point)?;
                    }
                    Ok(free)
                })
            })?;
            for point in &free {
                for note in storage.list(Folder::Notes(*point))? {
                    storage.delete(&note)?;
                }
            }
            let removed = self.with_room(|| {
                self.store.index.write(|_| {
                    let mut removed = 0;
                    for point in self.unneeded(&free)? {
                        let deleted = storage.delete_unsettled(&ObjectName::Forgotten(point))?;
                        removed += u64::from(deleted);
                    }
                    Ok(removed)
                })
            })?;
            self.report.forgotten_removed += removed;
        }
        if !self.forgotten.is_empty() {
            storage.settle(Folder::Forgotten)?;
        }
        Ok(())
    }

    /// Those of the points that nobody relies on. To be asked under the exclusive index lock.
    fn unneeded(&self, points: &[PointId]) -> Result<Vec<PointId>> {
        let listing = Listing::take_exact(self.repo)?;
        let mut points = points.to_vec();
        points.retain(|point| !listing.names(*point) && !self.marked.has(*point));
        Ok(points)
    }
}
