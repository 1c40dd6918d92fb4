//! Forgetting points, and taking that back.
//!
//! A point is forgotten by moving its record from `points/` to `forgotten/`. There it stays until prune
//! removes it; so long the point can be restored, and its forgetting be undone. A storage cannot rename:
//! a copy is put in the new place, then the old record is deleted, and that deletion is what counts.
//! A crash between the two leaves both; then `points/` wins, and the copy is of no account.
//!
//! Invariants:
//!
//! - A record is deleted under the exclusive index lock only, after a look under that lock at what
//!   forbids it. From `points/`: a pin, or no copy in `forgotten/`. From `forgotten/`, except by prune: no
//!   record in `points/`. So a record never vanishes from both places, whoever forgets, undoes and
//!   prunes at the same time.
//! - Nobody pins a point and loses it. A pin is durable before its holder looks for the record, under the
//!   shared index lock; forgetting looks for pins and deletes the record under one hold of the
//!   exclusive one. Whichever comes first, the other one sees it and gives up.
//! - A point comes back only as a whole: undoing holds a lease on all of it, which prune respects, before it
//!   looks whether all of it is there.

use std::collections::HashSet;

use crate::format;
use crate::format::point::POINT_BYTES_MAX;
use crate::index::Fault;
use crate::reserve::Reserve;
use crate::storage::{Folder, ObjectName};
use crate::{Cancel, Error, Point, PointId, Repository, Result};

/// How often forgetting is tried again when the copy it had made is gone: others clear away copies of
/// points that are not forgotten.
const COPY_TRIES: usize = 10;

/// Forgotten points.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// Those that can be read, oldest first.
    pub points: Vec<Point>,
    /// Those whose records cannot be read, and why.
    pub damaged: Vec<(PointId, Error)>,
}

impl Repository {
    /// Forgets points: durable when this returns. Refused, before anything is changed, when one does not
    /// exist or is pinned. To forget a forgotten point again changes nothing, so that this can be
    /// repeated after a crash. An error on the way leaves those forgotten that came before.
    pub fn forget(&self, points: &[PointId]) -> Result<()> {
        self.check_may_remove()?;
        self.store().index.read(|_| {
            for point in points {
                self.check_unpinned(*point)?;
                self.check_readable(*point)?;
            }
            Ok(())
        })?;
        let reserve = Reserve::of(self.path());
        for point in points {
            reserve.with_room(|| self.forget_one(*point))?;
        }
        reserve.with_room(|| self.clear_copies())
    }

    /// The forgotten points that prune has not removed yet, oldest first.
    pub fn forgotten(&self) -> Result<Forgotten> {
        let mut forgotten = Forgotten::default();
        for id in self.forgotten_ids()? {
            match self.forgotten_point(id) {
                Ok(point) => forgotten.points.push(point),
                // Undone or pruned meanwhile.
                Err(Error::NoSuchPoint { .. }) => {}
                Err(error) if error.is_damage() => forgotten.damaged.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        forgotten.points.sort_by_key(|point| (point.time, point.id));
        Ok(forgotten)
    }

    /// One forgotten point.
    pub fn forgotten_point(&self, id: PointId) -> Result<Point> {
        let record = self.forgotten_record(id)?;
        format::point::decode(&record, id, &self.store().keys)
    }

    /// Takes the forgetting of a point back: it is there again, durably, when this returns.
    /// [`Error::Pruned`] when prune has taken something of it. Of a point that is there, nothing changes.
    pub fn undo_forget(&self, id: PointId, cancel: &Cancel) -> Result<Point> {
        self.check_writable()?;
        let record = match self.forgotten_record(id) {
            Err(Error::NoSuchPoint { .. }) => return self.point(id),
            record => record?,
        };
        let point = format::point::decode(&record, id, &self.store().keys)?;
        let _hold = self.hold_strictly(&point, cancel)?;
        let store = self.store();
        match store.storage.put(&ObjectName::Point(id), &record) {
            // Somebody else undoes it as well, or was killed while doing so.
            Err(Error::AlreadyExists { .. }) => {}
            put => put?,
        }
        store.index.write(|edit| {
            if !self.is_there(id)? {
                // Forgotten again meanwhile: the copy is needed.
                return Ok(());
            }
            store.storage.delete(&ObjectName::Forgotten(id))?;
            edit.put_point(id, &record)
        })?;
        self.point(id)
    }

    /// The names of the forgotten points.
    pub(crate) fn forgotten_ids(&self) -> Result<Vec<PointId>> {
        // Copies first: one that is being undone is in both places, then only in the other.
        let copies = self.store().storage.list(Folder::Forgotten)?;
        let there: HashSet<PointId> = self.point_ids()?.into_iter().collect();
        let forgotten = copies.into_iter().filter_map(|name| match name {
            ObjectName::Forgotten(id) => Some(id).filter(|id| !there.contains(id)),
            _ => None,
        });
        Ok(forgotten.collect())
    }

    /// The names of the points there are.
    pub(crate) fn point_ids(&self) -> Result<Vec<PointId>> {
        let names = self.store().storage.list(Folder::Points)?;
        let points = names.into_iter().filter_map(|name| match name {
            ObjectName::Point(id) => Some(id),
            _ => None,
        });
        Ok(points.collect())
    }

    fn forget_one(&self, id: PointId) -> Result<()> {
        let store = self.store();
        for _ in 0..COPY_TRIES {
            match self.record(id) {
                Ok(record) => self.put_copy(id, &record)?,
                // Forgotten already; perhaps by somebody who was killed before he was done.
                Err(Error::NoSuchPoint { .. }) => {}
                Err(error) => return Err(error),
            }
            let forgotten = store.index.write(|edit| {
                self.check_unpinned(id)?;
                self.check_readable(id)?;
                if !self.is_forgotten(id)? {
                    return Ok(false);
                }
                store.storage.delete(&ObjectName::Point(id))?;
                edit.remove_point(id)?;
                Ok(true)
            })?;
            if forgotten {
                return Ok(());
            }
        }
        Err(Error::Busy {
            what: format!("the restore point {id}"),
            holder: "commands that forget and undo".to_owned(),
        })
    }

    /// Makes sure that there is a durable copy of the record of a point in `forgotten/`.
    fn put_copy(&self, id: PointId, record: &[u8]) -> Result<()> {
        let store = self.store();
        let copy = ObjectName::Forgotten(id);
        match store.storage.put(&copy, record) {
            Err(Error::AlreadyExists { .. }) => {}
            put => return put,
        }
        if self.forgotten_record(id).is_ok_and(|copy| copy == record) {
            return Ok(());
        }
        // Left behind by somebody who was killed, and damaged since.
        self.clear_copy(id)?;
        store.storage.put(&copy, record)
    }

    /// Removes copies of records that are in `points/`, left by somebody who was killed.
    fn clear_copies(&self) -> Result<()> {
        let there: HashSet<PointId> = self.point_ids()?.into_iter().collect();
        for name in self.store().storage.list(Folder::Forgotten)? {
            if let ObjectName::Forgotten(id) = name
                && there.contains(&id)
            {
                self.clear_copy(id)?;
            }
        }
        Ok(())
    }

    fn clear_copy(&self, id: PointId) -> Result<()> {
        self.store().index.write(|_| {
            if self.is_there(id)? {
                self.store().storage.delete(&ObjectName::Forgotten(id))?;
            }
            Ok::<_, Fault>(())
        })
    }

    fn forgotten_record(&self, id: PointId) -> Result<Vec<u8>> {
        let name = ObjectName::Forgotten(id);
        let record = self
            .store()
            .storage
            .read_whole(&name, POINT_BYTES_MAX as u64);
        record.map_err(|error| match error {
            Error::Missing { .. } => Error::NoSuchPoint { point: id },
            error => error,
        })
    }

    /// Whether there is a record of the point in `points/`.
    pub(crate) fn is_there(&self, id: PointId) -> Result<bool> {
        let len = self.store().storage.len(&ObjectName::Point(id))?;
        Ok(len.is_some())
    }

    /// Whether there is a record of the point in `forgotten/`.
    pub(crate) fn is_forgotten(&self, id: PointId) -> Result<bool> {
        let len = self.store().storage.len(&ObjectName::Forgotten(id))?;
        Ok(len.is_some())
    }
}
