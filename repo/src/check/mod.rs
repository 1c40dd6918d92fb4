//! Checking a repository: is everything there that the points need, and is it what it should be?
//!
//! First the packs: present, whole, and known to the index; with [`ReadData`] every byte of them is
//! read and verified. Then the points: every disk is walked down to the places of its chunks. Damage
//! to a pack that no point needs is reported, but hurts nobody; what a damaged record means for
//! points is told as ranges of their disks.
//!
//! Others go on working meanwhile. Points are listed first, so that all they need is durable and
//! indexed from then on; what looks like damage is only told when the pack is still counted on, and
//! the point still there, after it was seen. Memory is bounded: what is found is handed to the
//! caller as it is found, and only packs are remembered.

pub(crate) mod packs;
mod points;
mod quick;
mod share;
mod tally;

use std::collections::HashMap;
use std::ops::Range;

pub(crate) use packs::PackHealth;
pub(crate) use packs::reason;
use points::PointWalk;
pub use share::ReadData;

use crate::storage::{Folder, ObjectName};
use crate::{
    Cancel, Domain, DomainUuid, Error, PackId, PointId, RawId, Repository, Result, UnixMillis,
};

/// How thorough a check is.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// How much of the packs is read and verified. Tables and sizes are looked at, and manifest
    /// nodes verified, in any case.
    pub read_data: ReadData,
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
    /// Ids that were found damaged by `repair` and have not been stored anew since.
    pub wanted: u64,
    /// Forgotten points whose records are damaged, so that they cannot be brought back: no damage to
    /// what is to be kept.
    pub forgotten_damaged: u64,
    /// What is wrong with packs, index and pins, and which records are lost: a few lines per pack at most.
    pub damage: Vec<String>,
    /// How many of those lines are about pins.
    pub pins_damaged: u64,
    /// How many parts of points cannot be restored whole; each was told to
    /// [`CheckProgress::affected`].
    pub affected: u64,
}

/// The part of a point of which nothing else is known: its record cannot be read.
pub const POINT_RECORD: &str = "point record";

/// A disk or file of a point that cannot be restored whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affected {
    /// The point.
    pub point: PointId,
    /// Its domain; none when the record of the point itself is damaged.
    pub domain: Option<Domain>,
    /// The target of the disk, or the name of the file; or [`POINT_RECORD`].
    pub part: String,
    /// The bytes of the disk that are lost, in order; empty where it is all of it, or a file. A disk
    /// with very many ranges comes in several parts.
    pub ranges: Vec<Range<u64>>,
    /// Why, for the first of them.
    pub why: String,
}

/// Hears how a check or a repair advances. Called from several threads.
pub trait CheckProgress: Sync {
    /// There are this many packs to look at.
    fn packs(&self, count: u64);
    /// One more was looked at; this many bytes of it were read.
    fn pack_done(&self, bytes: u64);
    /// There are this many points to walk.
    fn points(&self, count: u64);
    /// One more was walked.
    fn point_done(&self);
    /// This is wrong with packs or index.
    fn damage(&self, _what: &str) {}
    /// This cannot be restored whole.
    fn affected(&self, _part: &Affected) {}
}

impl CheckReport {
    /// Whether everything that was looked at is as it should be.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.affected == 0
    }
}

impl Repository {
    /// Checks the repository. Damage is not an error but the report's content. Everything else may
    /// go on meanwhile; what is added is not looked at.
    pub fn check(
        &self,
        options: CheckOptions,
        progress: &dyn CheckProgress,
        cancel: &Cancel,
    ) -> Result<CheckReport> {
        // The points come first: whatever they need is durable and indexed from then on.
        let points = self.points_in_order()?;
        let packs = packs::check(self, options.read_data, None, progress, cancel)?;
        let mut report = packs.report;
        let lost = self.lost_records()?.into_iter();
        report.damage.extend(lost.map(|(id, _)| {
            format!(
                "the record of point {id} is lost, though nobody has forgotten it: `virtkeep repair` puts it back, or tells if it cannot"
            )
        }));
        self.check_pins(&mut report)?;
        report.damage.iter().for_each(|what| progress.damage(what));
        report.forgotten_damaged = self.forgotten()?.damaged.len() as u64;
        self.check_points(
            &points,
            &packs.health,
            progress,
            cancel,
            &mut report,
            &mut |_| Ok(()),
        )?;
        report.wanted = self.wanted()?;
        Ok(report)
    }

    /// Adds what is wrong with pins.
    pub(crate) fn check_pins(&self, report: &mut CheckReport) -> Result<()> {
        let damaged = self.pins.scan()?.damaged;
        report.pins_damaged = damaged.len() as u64;
        report.damage.extend(damaged.into_iter().map(|pin| {
            format!(
                "the pin {} cannot be read ({}): put a copy of it back, or pin the points that must stay, then `virtkeep unpin {}`; until then nothing can be forgotten or pruned",
                pin.path.display(),
                pin.why,
                pin.name
            )
        }));
        Ok(())
    }

    /// How many ids that `repair` found damaged have not been stored anew since.
    pub fn wanted(&self) -> Result<u64> {
        self.store().index.read(|view| view.wanted_count())
    }

    /// Walks the points; `lost` hears of every id that one of them needs and that cannot be had.
    pub(crate) fn check_points(
        &self,
        points: &[PointId],
        health: &Health,
        progress: &dyn CheckProgress,
        cancel: &Cancel,
        report: &mut CheckReport,
        lost: &mut dyn FnMut(RawId) -> Result<()>,
    ) -> Result<()> {
        progress.points(points.len() as u64);
        let sound = quick::sound_points(self, points, health, cancel)?;
        let mut walk = PointWalk::new(self, health, cancel, progress, lost)?;
        for id in points {
            cancel.check()?;
            match self.point(*id) {
                Ok(point) => {
                    report.points += 1;
                    report.disks += point.disks.len() as u64;
                    if !sound.contains(id) {
                        walk.disks(&point)?;
                    }
                    walk.files(&point)?;
                }
                // Forgotten meanwhile.
                Err(Error::NoSuchPoint { .. }) => {}
                Err(error) if error.is_damage() => {
                    report.affected += 1;
                    progress.affected(&Affected {
                        point: *id,
                        domain: None,
                        part: POINT_RECORD.to_owned(),
                        ranges: Vec::new(),
                        why: reason(&error),
                    });
                }
                Err(error) => return Err(error),
            }
            progress.point_done();
        }
        report.affected += walk.told;
        Ok(())
    }

    /// All points, those of one domain together and by time: neighbours share most of their trees.
    pub(crate) fn points_in_order(&self) -> Result<Vec<PointId>> {
        let mut order: Vec<(Option<(DomainUuid, UnixMillis)>, PointId)> = Vec::new();
        for name in self.store().storage.list(Folder::Points)? {
            if let ObjectName::Point(id) = name {
                let point = self.point(id).ok();
                order.push((point.map(|point| (point.domain.uuid, point.time)), id));
            }
        }
        order.sort_unstable();
        Ok(order.into_iter().map(|(_, id)| id).collect())
    }
}

/// What is known of the packs that the index names.
pub(crate) type Health = HashMap<PackId, PackHealth>;
