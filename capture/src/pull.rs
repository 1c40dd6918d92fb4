//! Reading disks into a backup, several at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtkeep_repo::{Backup, CaptureMode, Disk, DiskSource};

use crate::error::{Error, Result};
use crate::event::{Event, Journal};
use crate::plan::DiskPlan;
use crate::stop::{Stop, lock};

/// Disks read at the same time. All of a domain share one NBD server, which takes 100 connections.
const DISKS_MAX: usize = 16;

/// A disk ready to be read.
pub(crate) struct Opened {
    pub(crate) source: Box<dyn DiskSource>,
    /// Whether the source tells what is unchanged since the parent.
    pub(crate) incremental: bool,
}

/// How many connections each of so many disks may read with.
pub(crate) fn connections(disks: usize) -> usize {
    if disks <= 4 { 4 } else { 2 }
}

/// Stores all disks. The first error stops the others.
pub(crate) fn pull(
    backup: &Backup,
    plans: &[DiskPlan],
    checkpoint: Option<&str>,
    journal: &Journal<'_>,
    stop: &Stop,
    open: impl Fn(&DiskPlan) -> Result<Opened> + Sync,
) -> Result<Vec<Disk>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Disk)>> = Mutex::default();
    let errors: Mutex<Vec<Error>> = Mutex::default();
    let work = || {
        while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.is_stopping() {
                lock(&errors).push(Error::Cancelled);
                return;
            }
            match pull_disk(backup, plan, checkpoint, journal, stop, &open) {
                Ok(disk) => lock(&done).push((position(plans, plan), disk)),
                Err(error) => {
                    lock(&errors).push(error);
                    stop.stop();
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..plans.len().min(DISKS_MAX) {
            scope.spawn(work);
        }
        work();
    });
    let mut errors = std::mem::take(&mut *lock(&errors));
    // What went wrong first tells more than "stopped because another one failed".
    errors.sort_by_key(Error::is_cancelled);
    if let Some(error) = errors.into_iter().next() {
        return Err(error);
    }
    let mut done = std::mem::take(&mut *lock(&done));
    done.sort_by_key(|(position, _)| *position);
    Ok(done.into_iter().map(|(_, disk)| disk).collect())
}

fn position(plans: &[DiskPlan], plan: &DiskPlan) -> usize {
    plans
        .iter()
        .position(|other| other.target == plan.target)
        .unwrap_or(usize::MAX)
}

fn pull_disk(
    backup: &Backup,
    plan: &DiskPlan,
    checkpoint: Option<&str>,
    journal: &Journal<'_>,
    stop: &Stop,
    open: impl Fn(&DiskPlan) -> Result<Opened>,
) -> Result<Disk> {
    let opened = open(plan)?;
    let mut plan = plan.clone();
    if plan.mode == CaptureMode::Incremental && !opened.incremental {
        plan.read_in_full("the export offers no map of changes".into());
        journal.event(plan.event());
    }
    let parent = plan.parent.as_ref().map(|(_, disk)| disk);
    let progress = journal.progress(&plan.target);
    let source = &*opened.source;
    let stored = backup.store_disk(source, parent, &progress, stop.cancel())?;
    journal.event(Event::DiskDone {
        target: plan.target.clone(),
        stats: stored.stats,
    });
    Ok(Disk {
        size: source.size(),
        root: stored.root,
        mode: plan.mode,
        reason: plan.reason,
        checkpoint: checkpoint.filter(|_| plan.bitmap).map(str::to_owned),
        parent: plan.parent.map(|(point, _)| point),
        format: plan.format,
        location: plan.location,
        backing: plan.backing,
        stats: stored.stats,
        target: plan.target,
    })
}
