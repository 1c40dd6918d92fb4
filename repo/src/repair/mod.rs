//! Mending a damaged repository, as far as what is left of it allows.
//!
//! Every byte is read. A record that is damaged in one place and good in another is found in the good
//! place from then on; what else is good in a damaged pack is copied into new packs; ids that points
//! need and that are nowhere to be had become *wanted*: the next backup that meets their content
//! stores it again, which heals every point that needs it, and no point that is made from then on
//! inherits the damage.
//!
//! Invariants: nothing is removed but on request, and then only after everything good in it is durable
//! elsewhere; each step can be repeated after a crash; an id whose bytes are damaged never counts
//! as known again before it was stored anew.

mod copies;
mod lost;
mod records;
mod salvage;

use lost::Lost;

use crate::check::packs::records_of;
use crate::check::{Health, PackHealth, packs};
use crate::lease::Roots;
use crate::repository::rebuild::salvage as salvage_without_table;
use crate::storage::{Folder, ObjectName};
use crate::{
    Affected, Cancel, CheckProgress, CheckReport, Error, MaintenanceLock, PackId, PointId,
    ReadData, Repository, Result,
};

/// Rounds of looking for copies: a root, as many levels of nodes as a tree can have, chunks.
const COPY_ROUNDS_MAX: usize = 16;

/// How a repository is mended.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairOptions {
    /// Only look, and tell what cannot be restored.
    pub dry_run: bool,
    /// Remove damaged packs once all that is good in them is elsewhere, and set aside point records
    /// that nothing can be made of.
    pub remove: bool,
}

/// What a repair found and did.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// What was found in the beginning, as far as packs and index go, and what cannot be restored in
    /// the end.
    pub found: CheckReport,
    /// Damaged packs. They are kept, though nothing is looked for in them any more that is good
    /// elsewhere.
    pub packs_damaged: u64,
    /// Those of them that were removed, or whose files were lost.
    pub packs_removed: u64,
    /// Good records that were copied out of damaged packs.
    pub records_salvaged: u64,
    /// Damaged records of which a good copy was found in another pack.
    pub records_found: u64,
    /// Points whose damaged record was replaced with the copy in the index.
    pub points_healed: Vec<PointId>,
    /// Points whose damaged record was set aside.
    pub points_set_aside: Vec<PointId>,
    /// Points whose record was lost, and whose copy in the index is damaged.
    pub points_given_up: Vec<PointId>,
}

impl RepairReport {
    /// Whether everything can be restored now, and every pin be read.
    pub fn is_whole(&self) -> bool {
        self.found.affected == 0 && self.found.pins_damaged == 0
    }
}

impl Repository {
    /// Mends the repository. What cannot be restored when all is done is told to
    /// [`CheckProgress::affected`]. Backups and restores may run meanwhile: a point of a backup that
    /// began before may still refer to something damaged, and is healed by the next one.
    pub fn repair(
        &self,
        options: RepairOptions,
        progress: &dyn CheckProgress,
        cancel: &Cancel,
    ) -> Result<RepairReport> {
        let mut report = RepairReport::default();
        if options.dry_run {
            let points = self.points_in_order()?;
            let packs = packs::check(self, ReadData::ALL, None, progress, cancel)?;
            report.packs_damaged = damaged(&packs.health).len() as u64;
            report.found = packs.report;
            self.check_pins(&mut report.found)?;
            tell_damage(&report.found, progress);
            let found = &mut report.found;
            self.tell_lost_records(found, progress)?;
            let mut nothing = |_| Ok(());
            self.check_points(
                &points,
                &packs.health,
                progress,
                cancel,
                found,
                &mut nothing,
            )?;
            report.found.wanted = self.wanted()?;
            return Ok(report);
        }
        self.check_may_remove()?;
        let alone = MaintenanceLock::take(&self.path().join("locks"), "virtkeep repair")?;
        let worthless = self.take_in(self.take_over()?)?;
        let index = &self.store().index;
        let lease = self
            .leases
            .writer("virtkeep repair", Roots::default(), index, |_| Ok(()))?;

        let packs = packs::check(self, ReadData::ALL, Some(&alone), progress, cancel)?;
        self.refuse_wrong_key(&packs.health)?;
        self.heal_records(options, &mut report)?;
        let points = self.points_in_order()?;
        report.found = packs.report;
        self.check_pins(&mut report.found)?;
        tell_damage(&report.found, progress);
        self.tell_lost_records(&mut report.found, progress)?;
        let damaged = damaged(&packs.health);
        report.packs_damaged = (damaged.len() + worthless.len()) as u64;

        // What hangs below a lost node is known once a copy of the node was found.
        for _ in 0..COPY_ROUNDS_MAX {
            let mut lost = Lost::new(index);
            let (quiet, mut unused) = (Quiet(progress), CheckReport::default());
            let mut note = |id| lost.note(id);
            self.check_points(
                &points,
                &packs.health,
                &quiet,
                cancel,
                &mut unused,
                &mut note,
            )?;
            lost.flush()?;
            if lost.is_empty() {
                break;
            }
            let found = copies::find(self, &packs.health, &mut lost, cancel)?;
            report.records_found += found;
            if found == 0 {
                break;
            }
        }
        if !damaged.is_empty() {
            let salvaged =
                salvage::salvage(self, &packs.health, lease.id(), options.remove, cancel)?;
            report.records_salvaged = salvaged.records;
            report.packs_removed = salvaged.packs_removed;
        }

        if options.remove && packs.health.values().any(|pack| !pack.is_worthless()) {
            for pack in worthless {
                self.store().storage.delete(&ObjectName::Pack(pack))?;
                report.packs_removed += 1;
            }
        }

        let mut left = Lost::new(index);
        let mut note = |id| left.note(id);
        let found = &mut report.found;
        self.check_points(&points, &packs.health, progress, cancel, found, &mut note)?;
        left.flush()?;
        let walked = points.iter().copied().collect();
        left.forget_others(self, &packs.health, &walked, lease.id())?;
        report.found.wanted = self.wanted()?;
        drop(lease);
        drop(alone);
        Ok(report)
    }
}

impl Repository {
    /// Tells the index of packs that nobody living wrote and whose tables cannot be read, so that they are
    /// mended like others. Answers with those in which there is not one record, though all of them can
    /// be read.
    fn take_in(&self, unreadable: Vec<PackId>) -> Result<Vec<PackId>> {
        let store = self.store();
        let mut worthless = Vec::new();
        for id in unreadable {
            match salvage_without_table(store, id)? {
                Some(pack) if !pack.entries.is_empty() => store.index.add_packs(&[pack])?,
                _ if records_of(store, id)?.readable => worthless.push(id),
                _ => {}
            }
        }
        Ok(worthless)
    }

    /// Where not one record can be verified, the key is wrong rather than every pack; and where there is
    /// no pack, something else than the disk beneath them was mounted.
    fn refuse_wrong_key(&self, health: &Health) -> Result<()> {
        if health.is_empty() || !health.values().all(PackHealth::is_worthless) {
            return Ok(());
        }
        let packs = health.len() as u64;
        if self.store().storage.list(Folder::Packs)?.is_empty() {
            let path = self.path().join("packs");
            return Err(Error::PacksGone { path, packs });
        }
        Err(Error::NothingVerifies {
            path: self.path().join("packs"),
            packs,
        })
    }
}

fn tell_damage(report: &CheckReport, progress: &dyn CheckProgress) {
    report.damage.iter().for_each(|what| progress.damage(what));
}

/// The packs that not all of is good.
fn damaged(health: &Health) -> Vec<PackId> {
    let damaged = health.iter().filter(|(_, health)| health.is_damaged());
    let mut ids: Vec<PackId> = damaged.map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids
}

/// Passes on how far the work has come, and not what is found: that may still be mended.
struct Quiet<'a>(&'a dyn CheckProgress);

impl CheckProgress for Quiet<'_> {
    fn packs(&self, count: u64) {
        self.0.packs(count);
    }
    fn pack_done(&self, bytes: u64) {
        self.0.pack_done(bytes);
    }
    fn points(&self, count: u64) {
        self.0.points(count);
    }
    fn point_done(&self) {
        self.0.point_done();
    }
    fn affected(&self, _: &Affected) {}
}
