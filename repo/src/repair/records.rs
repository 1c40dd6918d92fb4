//! Point records that are damaged or lost.
//!
//! The index keeps a copy of each record. One that stands up to its own checksum is as good as the
//! original, and is put back under the index lock. A crash half-way leaves a lost record, which the
//! next repair puts back; prune removes nothing until then.

use std::collections::{HashMap, HashSet};

use super::{RepairOptions, RepairReport};
use crate::check::POINT_RECORD;
use crate::format::point;
use crate::storage::{Folder, ObjectName};
use crate::{Affected, CheckProgress, CheckReport, Error, PointId, Repository, Result};

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
            if let Some(copy) = cached.get(&id).filter(|copy| self.is_record(id, copy)) {
                if self.put_back(id, copy)? {
                    report.points_healed.push(id);
                }
            } else if options.remove {
                match self.forget(&[id]) {
                    Ok(()) => report.points_set_aside.push(id),
                    // Something else than a file in its place, say.
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for (id, record) in lost {
            if !self.is_record(id, &record) {
                if options.remove {
                    self.store().index.remove_point(id)?;
                    report.points_given_up.push(id);
                }
            } else if self.put_back(id, &record)? {
                report.points_healed.push(id);
            }
        }
        Ok(())
    }

    /// Tells of the points whose records are lost.
    pub(super) fn tell_lost_records(
        &self,
        report: &mut CheckReport,
        progress: &dyn CheckProgress,
    ) -> Result<()> {
        for (id, record) in self.lost_records()? {
            let point = point::decode(&record, id, &self.store().keys).ok();
            report.affected += 1;
            progress.affected(&Affected {
                point: id,
                domain: point.map(|point| point.domain),
                part: POINT_RECORD.to_owned(),
                ranges: Vec::new(),
                why: "it is lost, though nobody has forgotten the point".to_owned(),
            });
        }
        Ok(())
    }

    /// Refuses when a record is lost: what its point needs would look unused.
    pub(crate) fn check_no_record_lost(&self) -> Result<()> {
        match self.lost_records()?.first() {
            Some((id, _)) => Err(Error::Unprunable {
                why: format!("the record of point {id} is lost, though nobody has forgotten it"),
            }),
            None => Ok(()),
        }
    }

    /// The points whose records are lost, though nobody has forgotten them.
    pub fn lost_points(&self) -> Result<Vec<PointId>> {
        let there: HashSet<PointId> = self.point_ids()?.into_iter().collect();
        let cached = self.store().index.points()?;
        if cached.iter().all(|(id, _)| there.contains(id)) {
            return Ok(Vec::new());
        }
        let lost = self.lost_records()?.into_iter();
        Ok(lost.map(|(id, _)| id).collect())
    }

    /// The points that the index remembers, and that have neither a record nor were forgotten; with what
    /// the index holds of their records. Whoever forgets a point removes its row before the last record
    /// of it, and nobody gives one a row but under the index lock, while its record is there.
    pub(crate) fn lost_records(&self) -> Result<Vec<(PointId, Vec<u8>)>> {
        self.store().index.read(|view| {
            let mut lost = Vec::new();
            for (id, record) in view.points()? {
                if !self.is_there(id)? && !self.is_forgotten(id)? {
                    lost.push((id, record));
                }
            }
            Ok(lost)
        })
    }

    /// Whether this is a whole record of the point.
    pub(crate) fn is_record(&self, id: PointId, record: &[u8]) -> bool {
        point::decode(record, id, &self.store().keys).is_ok()
    }

    /// Puts a good record in the place of a damaged or lost one. False when that cannot be done, or the point
    /// was forgotten meanwhile.
    fn put_back(&self, id: PointId, record: &[u8]) -> Result<bool> {
        let storage = &self.store().storage;
        let name = ObjectName::Point(id);
        // A crash half-way leaves a lost record and this row.
        self.store().cache_point(id, record)?;
        self.store().index.write(|_| {
            if self.is_there(id)? {
                // A copy left behind by somebody who was killed would make it a forgotten point.
                storage.delete(&ObjectName::Forgotten(id))?;
                if let Err(error) = storage.delete(&name) {
                    // Something else than a file in its place, say.
                    let stays = error.is_damage() && self.is_there(id)?;
                    return if stays { Ok(false) } else { Err(error.into()) };
                }
            } else if self.is_forgotten(id)? {
                return Ok(false);
            }
            storage.put(&name, record)?;
            Ok(true)
        })
    }
}
