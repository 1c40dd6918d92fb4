//! Point records that are damaged or lost.
//!
//! The index keeps a copy of each record. One that stands up to its own checksum is as good as the
//! original, and is put back: under the index lock, and with a copy in `forgotten/` meanwhile, so that
//! a crash half-way leaves a forgotten point, which can be brought back.

use std::collections::HashMap;

use super::{RepairOptions, RepairReport};
use crate::format::point;
use crate::storage::{Folder, ObjectName};
use crate::{Cancel, Error, PointId, Repository, Result};

impl Repository {
    /// Mends what it can, sets the rest aside on request, and leaves it otherwise: the walk over the
    /// points tells of it.
    pub(super) fn heal_records(
        &self,
        options: RepairOptions,
        report: &mut RepairReport,
    ) -> Result<()> {
        let mut hurt = Vec::new();
        for name in self.store().storage.list(Folder::Points)? {
            if let ObjectName::Point(id) = name {
                match self.point(id) {
                    Err(Error::NoSuchPoint { .. }) => {}
                    Err(error) if error.is_damage() => hurt.push(id),
                    point => drop(point?),
                }
            }
        }
        let lost = self.lost_records()?;
        if hurt.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let cached: HashMap<PointId, Vec<u8>> = self.store().index.points()?.into_iter().collect();
        for id in hurt {
            let copy = cached
                .get(&id)
                .filter(|record| point::decode(record, id, &self.store().keys).is_ok());
            match copy {
                Some(record) => match self.put_back(id, record) {
                    Ok(()) => report.points_healed.push(id),
                    // Something else than a file in its place, say: told as damage.
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                },
                None if options.remove => match self.forget(&[id]) {
                    Ok(()) => report.points_set_aside.push(id),
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                },
                None => {}
            }
        }
        for (id, record) in lost {
            if self.is_whole(id, &record)? {
                self.put_back(id, &record)?;
                report.points_healed.push(id);
            }
        }
        Ok(())
    }

    /// Refuses when a record is lost that `repair` can put back: what its point needs would look unused.
    pub(crate) fn check_no_record_lost(&self) -> Result<()> {
        for (id, record) in self.lost_records()? {
            if self.is_whole(id, &record)? {
                let why =
                    format!("the record of point {id} is lost, though nobody has forgotten it");
                return Err(Error::Unprunable { why });
            }
        }
        Ok(())
    }

    /// Whether this is the record of a point of which everything is there. One that was forgotten and
    /// pruned lacks something; of that only the row is left over.
    fn is_whole(&self, id: PointId, record: &[u8]) -> Result<bool> {
        let Ok(point) = point::decode(record, id, &self.store().keys) else {
            return Ok(false);
        };
        match self.check_all_there(&point, &Cancel::new()) {
            Ok(()) => Ok(true),
            Err(error) if error.is_damage() || matches!(error, Error::Pruned { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The points that the index remembers, and that have neither a record nor were forgotten; with what
    /// the index holds of their records.
    pub(crate) fn lost_records(&self) -> Result<Vec<(PointId, Vec<u8>)>> {
        let storage = &self.store().storage;
        self.store().index.read(|view| {
            let mut lost = Vec::new();
            for (id, record) in view.points()? {
                let places = [ObjectName::Point(id), ObjectName::Forgotten(id)];
                let mut there = false;
                for place in places {
                    there |= storage.len(&place)?.is_some();
                }
                if !there {
                    lost.push((id, record));
                }
            }
            Ok(lost)
        })
    }

    fn put_back(&self, id: PointId, record: &[u8]) -> Result<()> {
        let storage = &self.store().storage;
        let (name, copy) = (ObjectName::Point(id), ObjectName::Forgotten(id));
        self.store().index.write(|edit| {
            // One left behind by somebody who was killed may be damaged, too.
            storage.delete(&copy)?;
            storage.put(&copy, record)?;
            storage.delete(&name)?;
            storage.put(&name, record)?;
            storage.delete(&copy)?;
            edit.put_point(id, record)
        })
    }
}
