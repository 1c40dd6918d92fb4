//! Checking a repository: is everything there that the points need, and is it what it should be?
//!
//! First the packs: present, whole, and known to the index; with `read_data` every record is read
//! and verified. Then the points: every disk is walked down to the places of its chunks. Damage to a
//! pack that no point needs is reported, but hurts nobody; what a damaged record means for points is
//! told as ranges of their disks.

mod packs;
mod points;

use std::collections::HashMap;
use std::ops::Range;

use packs::PackHealth;
pub(crate) use packs::reason;
use points::PointWalk;

use crate::storage::{Folder, ObjectName};
use crate::{Cancel, Domain, Error, PackId, PointId, Repository, Result};

/// How thorough a check is.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read and verify this share of the packs, in percent: 0 looks at tables and sizes only.
    /// Manifest nodes are verified in any case.
    pub read_data_percent: u8,
}

/// What a check looked at and found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Points walked.
    pub points: u64,
    /// Disks walked.
    pub disks: u64,
    /// Packs looked at.
    pub packs: u64,
    /// Packs read and verified in full.
    pub packs_read: u64,
    /// Bytes of those packs.
    pub bytes_read: u64,
    /// Bytes in packs that the index does not name: left by killed runs, no damage.
    pub unindexed_bytes: u64,
    /// What is wrong with packs and index.
    pub damage: Vec<String>,
    /// What that means for points.
    pub affected: Vec<Affected>,
}

/// A disk or file of a point that cannot be restored whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affected {
    /// The point.
    pub point: PointId,
    /// Its domain; none when the record of the point itself is damaged.
    pub domain: Option<Domain>,
    /// The target of the disk, or the name of the file.
    pub part: String,
    /// The bytes of the disk that are lost; empty where it is all of it, or a file.
    pub ranges: Vec<Range<u64>>,
    /// Why.
    pub why: String,
}

/// Hears how a check or the rebuilding of the index advances. Called from several threads.
pub trait CheckProgress: Sync {
    /// There are this many packs to look at.
    fn packs(&self, count: u64);
    /// One more was looked at; this many bytes of it were read.
    fn pack_done(&self, bytes: u64);
    /// There are this many points to walk.
    fn points(&self, count: u64);
    /// One more was walked.
    fn point_done(&self);
}

impl CheckReport {
    /// Whether everything that was looked at is as it should be.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.affected.is_empty()
    }
}

impl Repository {
    /// Checks the repository. Damage is not an error but the report's content. Backups may run
    /// meanwhile; what they add is not looked at.
    pub fn check(
        &self,
        options: CheckOptions,
        progress: &dyn CheckProgress,
        cancel: &Cancel,
    ) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        // The points come first: whatever they need is durable and indexed from then on.
        let points = self.store().storage.list(Folder::Points)?;
        let health = packs::check(self, options, progress, cancel, &mut report)?;
        progress.points(points.len() as u64);
        let mut walk = PointWalk::new(self, &health);
        for name in points {
            cancel.check()?;
            let ObjectName::Point(id) = name else {
                continue;
            };
            match self.point(id) {
                Ok(point) => walk.point(&point, &mut report)?,
                // Forgotten meanwhile.
                Err(Error::NoSuchPoint { .. }) => {}
                Err(error @ Error::Corrupt { .. }) => report.affected.push(Affected {
                    point: id,
                    domain: None,
                    part: "point record".to_owned(),
                    ranges: Vec::new(),
                    why: error.to_string(),
                }),
                Err(error) => return Err(error),
            }
            progress.point_done();
        }
        Ok(report)
    }
}

/// What is known of the packs that the index names.
type Health = HashMap<PackId, PackHealth>;
