//! Prune: giving back the space of what nothing needs, while everybody works on.
//!
//! Packs are condemned, never ids; marking never happens under a lock; and every step can be repeated
//! after a crash. A [`Prune`] has a method per step; [`Repository::prune`] calls them in order:
//!
//! 1. [`begin`](Prune::begin): the maintenance lock keeps a second prune, repair and adoption by
//!    backups out. What killed commands left is adopted; what is dead since an earlier prune is removed.
//! 2. [`mark`](Prune::mark) (`roots`, `census`, `usage`): walks from all roots, and counts
//!    what of each pack is needed. Packs of living leases are no candidates: rows are read before leases, so
//!    a pack whose lease is not among the living has no writer any more.
//! 3. [`condemn`](Prune::condemn): the exclusive lock, and only if no root is unmarked by now. A backup
//!    that found garbage before, and commits afterwards, is a writer of a smaller epoch; one that committed
//!    before is an unmarked root; one that looks afterwards finds nothing in a condemned pack.
//! 4. [`settle`](Prune::settle): condemned packs that no living writer of a smaller epoch may rely on are
//!    dead from here on, again only if no root is unmarked: whoever wants something of them back, as
//!    `forget --undo` does, either holds a lease already, which is a root, or sees that they are dead.
//!    Then their ids are dropped, their files deleted, their rows removed (`remove`).
//! 5. [`rewrite`](Prune::rewrite), after the space of unused packs was given back: what is needed of
//!    sparse and of small packs is copied. Until the old packs are condemned and dead, by 3 and 4, both
//!    copies exist, so readers find one or the other at any moment.
//!
//! After a crash: before 3 nothing has changed, but for copies that nothing points to, which the next
//! prune removes as unused. Condemned packs are marked anew by the next prune, and either revived or
//! settled. Dead ones are removed by it without marking: the decision holds. Building the index anew
//! makes all of them live packs again, which is harmless. A removal that stops half-way has dropped ids
//! of records that nothing needs.

mod census;
mod condemn;
mod forgotten;
mod last_copy;
mod mark;
mod plan;
mod remove;
mod rewrite;
mod roots;
mod usage;

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::Duration;

use plan::PackUse;
use roots::{Listing, Marked};
use usage::Usage;

use crate::index::{PackNumber, View};
use crate::lease::MoverLease;
use crate::reach::{LIVE_IDS_MAX, Walker};
use crate::reserve::Reserve;
use crate::store::Store;
use crate::{Cancel, Error, MaintenanceLock, PackId, PointId, Repository, Result};

/// How often a dry run begins anew when others change what it looks at.
const DRY_RUNS_MAX: usize = 10;

/// How long to sleep between two looks at running backups.
const WRITERS_PAUSE: Duration = Duration::from_millis(200);

/// What to prune, and how thoroughly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PruneOptions {
    /// Of all bytes in packs, this many percent may be left unused rather than copy what is around them.
    pub unused_max_percent: f64,
    /// How long what interrupted backups stored is kept for the next try.
    pub keep_unfinished: Duration,
    /// Leave nothing that no point needs: waits for running backups, and goes by `unused_max_percent`
    /// 0 and `keep_unfinished` 0.
    pub exact: bool,
    /// How many live ids are kept in memory; more are marked in several passes.
    #[doc(hidden)]
    pub live_ids_max: usize,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            unused_max_percent: 5.0,
            keep_unfinished: Duration::from_secs(7 * 24 * 60 * 60),
            exact: false,
            live_ids_max: LIVE_IDS_MAX,
        }
    }
}

impl PruneOptions {
    fn normalized(self) -> Self {
        if self.exact {
            Self {
                unused_max_percent: 0.0,
                keep_unfinished: Duration::ZERO,
                ..self
            }
        } else {
            self
        }
    }
}

/// What a prune is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneStage {
    /// Walking what points need; counted in nothing known beforehand.
    Marking,
    /// Copying what is needed of sparse and small packs; counted in packs.
    Rewriting,
    /// Deleting packs; counted in packs.
    Removing,
    /// Waiting for running backups.
    Waiting,
}

/// Hears how a prune advances.
pub trait PruneProgress: Sync {
    /// A stage begins, with `count` things to do, 0 if that is not known. Stages come again.
    fn begin(&self, stage: PruneStage, count: u64);
    /// One of them is done.
    fn done(&self);
}

/// What a prune did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Points that are kept, and all they need.
    pub points: u64,
    /// Packs deleted.
    pub packs_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// Packs whose needed records were copied into new ones.
    pub packs_rewritten: u64,
    /// Bytes of the new packs.
    pub bytes_rewritten: u64,
    /// Packs that nothing needs and that cannot be deleted yet: a running backup may rely on them.
    pub packs_waiting: u64,
    /// Their bytes.
    pub bytes_waiting: u64,
    /// Bytes in packs of interrupted backups, kept for the next try.
    pub bytes_unfinished: u64,
    /// Bytes that nothing needs, left in packs where it does not pay to copy the rest.
    pub bytes_unused: u64,
    /// Forgotten points that cannot be brought back any more.
    pub forgotten_removed: u64,
    /// No space was left for copying: unused packs were removed, sparse ones stay as they are.
    pub out_of_space: bool,
    /// Packs that were left alone because something in them cannot be read.
    pub damage: Vec<String>,
}

impl PruneReport {
    /// Bytes given back to the file system.
    pub fn bytes_freed(&self) -> u64 {
        self.bytes_removed.saturating_sub(self.bytes_rewritten)
    }
}

impl Repository {
    /// Removes what nothing needs. `Error::Busy` while other maintenance is under way;
    /// `Error::Unprunable` when damage hides what is needed: then nothing is removed.
    pub fn prune(
        &self,
        options: PruneOptions,
        progress: &dyn PruneProgress,
        cancel: &Cancel,
    ) -> Result<PruneReport> {
        let mut prune = Prune::begin(self, options, progress, cancel)?;
        prune.mark()?;
        // What an earlier prune had to leave; needs no space.
        prune.settle()?;
        let unused = prune.unused();
        prune.condemn(&unused)?;
        prune.remove_forgotten()?;
        prune.settle()?;
        for batch in prune.batches() {
            let emptied = prune.rewrite(&batch)?;
            prune.condemn(&emptied)?;
            prune.settle()?;
        }
        prune.finish()
    }

    /// What [`prune`](Self::prune) would do. Writes nothing and takes no lock; what killed commands left
    /// and nobody has adopted yet is not seen.
    pub fn prune_dry_run(
        &self,
        options: PruneOptions,
        progress: &dyn PruneProgress,
        cancel: &Cancel,
    ) -> Result<PruneReport> {
        for _ in 0..DRY_RUNS_MAX {
            let before = self.store().index.read(View::changes)?;
            let mut prune = Prune::new(self, options, progress, cancel, None);
            let marked = prune.mark();
            let changed = self.store().index.read(View::changes)? != before;
            match marked {
                // Another prune may have taken what a point needed that was forgotten since,
                Err(Error::Unprunable { .. }) if changed => {}
                // or moved what was about to be compared.
                Ok(()) if changed && !prune.report.damage.is_empty() => {}
                marked => return marked.map(|()| prune.forecast()),
            }
        }
        Err(Error::Busy {
            what: "the repository".to_owned(),
            holder: "a command that removes what is being looked at".to_owned(),
        })
    }
}

/// A prune under way, step by step.
#[doc(hidden)]
pub struct Prune<'a> {
    repo: &'a Repository,
    store: &'a Store,
    options: PruneOptions,
    progress: &'a dyn PruneProgress,
    cancel: &'a Cancel,
    reserve: Reserve,
    marked: Marked,
    walker: Walker<'a>,
    /// How candidates are used.
    packs: Vec<PackUse>,
    plan: plan::Plan,
    /// What is needed of the packs that are to be rewritten, or removed, or were condemned earlier.
    usages: HashMap<PackId, Usage>,
    numbers: HashMap<PackId, PackNumber>,
    /// Packs condemned now or earlier, with their epochs.
    condemned: HashMap<PackId, (u64, PackUse)>,
    /// Packs that roots reach which were marked later than the others.
    reached: HashSet<PackId>,
    /// Points that were forgotten before marking began.
    forgotten: Vec<PointId>,
    report: PruneReport,
    lease: Option<MoverLease>,
    alone: Option<MaintenanceLock>,
}

impl<'a> Prune<'a> {
    fn new(
        repo: &'a Repository,
        options: PruneOptions,
        progress: &'a dyn PruneProgress,
        cancel: &'a Cancel,
        alone: Option<MaintenanceLock>,
    ) -> Self {
        let store = &**repo.store();
        Self {
            repo,
            store,
            options: options.normalized(),
            progress,
            cancel,
            reserve: Reserve::of(repo.path()),
            marked: Marked::default(),
            walker: Walker::new(store, cancel),
            packs: Vec::new(),
            plan: plan::Plan::default(),
            usages: HashMap::new(),
            numbers: HashMap::new(),
            condemned: HashMap::new(),
            reached: HashSet::new(),
            forgotten: Vec::new(),
            report: PruneReport::default(),
            lease: None,
            alone,
        }
    }

    /// Takes the maintenance lock, and takes over what killed commands left.
    pub fn begin(
        repo: &'a Repository,
        options: PruneOptions,
        progress: &'a dyn PruneProgress,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        repo.check_may_remove()?;
        let locks = repo.path().join("locks");
        let alone = MaintenanceLock::take(&locks, "virtkeep prune")?;
        let mut prune = Self::new(repo, options, progress, cancel, Some(alone));
        let unreadable = prune.with_room(|| repo.take_over())?;
        for pack in unreadable {
            let damage = format!("the pack {pack} of a killed command cannot be read");
            prune.report.damage.push(damage);
        }
        prune.remove_dead()?;
        if prune.options.exact {
            prune.wait_for_writers()?;
        }
        Ok(prune)
    }

    /// The packs that nothing needs.
    pub fn unused(&self) -> Vec<PackId> {
        self.plan.unused.iter().map(|pack| pack.id).collect()
    }

    /// Brings the report to its end.
    pub fn finish(mut self) -> Result<PruneReport> {
        let waiting = self.condemned.values();
        self.report.packs_waiting = waiting.len() as u64;
        self.report.bytes_waiting = waiting.map(|(_, pack)| pack.bytes).sum();
        self.report.points = self.marked.points();
        self.reserve.make();
        Ok(self.report)
    }

    fn forecast(mut self) -> PruneReport {
        let rewrite = &self.plan.rewrite;
        let waiting = self.condemned.values();
        let removed = self.plan.unused.iter().chain(rewrite).copied();
        let removed: Vec<PackUse> = removed.chain(waiting.map(|(_, pack)| *pack)).collect();
        self.report.packs_removed = removed.len() as u64;
        self.report.bytes_removed = removed.iter().map(|pack| pack.bytes).sum();
        self.report.packs_rewritten = rewrite.len() as u64;
        self.report.bytes_rewritten = rewrite.iter().map(PackUse::compact_bytes).sum();
        self.report.forgotten_removed = self.forgotten.len() as u64;
        self.report.points = self.marked.points();
        self.report
    }

    /// Waits until the backups that run now have ended.
    fn wait_for_writers(&self) -> Result<()> {
        let writers: HashSet<_> = Listing::take(self.repo)?.writers().collect();
        if writers.is_empty() {
            return Ok(());
        }
        self.progress.begin(PruneStage::Waiting, 0);
        loop {
            self.cancel.check()?;
            if !Listing::take(self.repo)?
                .writers()
                .any(|lease| writers.contains(&lease))
            {
                // What they left when they were killed.
                return self.with_room(|| self.repo.take_over()).map(drop);
            }
            thread::sleep(WRITERS_PAUSE);
        }
    }

    /// Does something that writes a little; where no space is left, with the reserve.
    fn with_room<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        self.reserve.with_room(work)
    }

    fn wanted(&self) -> Result<HashSet<u64>> {
        let wanted = self.store.index.wanted(usize::MAX)?;
        Ok(wanted.into_iter().map(crate::index::prefix).collect())
    }
}

/// Says what keeps prune from going on, where that is damage.
fn unprunable(error: Error) -> Error {
    match error {
        Error::Corrupt { .. } | Error::Missing { .. } => Error::Unprunable {
            why: crate::check::reason(&error),
        },
        error => error,
    }
}
