//! Taking over what killed commands left behind.
//!
//! The order: first the packs of the dead are adopted, then it is noted that their leases ended
//! without a point, and only then the leases go. So whatever a dead command stored is in the index
//! before its lease can no longer be told from one that never was, and a crash in between only
//! means that all of it is done again.

use std::collections::HashSet;

use super::Repository;
use crate::adopt::adopt_packs;
use crate::lease::{LeaseKind, SeenLease};
use crate::storage::{Folder, ObjectName};
use crate::{Error, LeaseId, MaintenanceLock, PackId, PointId, Result};

impl Repository {
    /// Takes over what killed backups left. While somebody else does maintenance, it waits for the
    /// next backup.
    pub(crate) fn clear_up(&self) -> Result<()> {
        if self.leases.list()?.iter().all(|lease| lease.alive) {
            return Ok(());
        }
        let locks = self.path.join("locks");
        let _alone = match MaintenanceLock::take(&locks, "virtkeep backup") {
            Err(Error::Busy { .. }) => return Ok(()),
            alone => alone?,
        };
        self.take_over().map(drop)
    }

    /// Takes over whatever dead leases left. The caller holds the maintenance lock. Answers with
    /// the packs that nobody living wrote and that cannot be read.
    pub(crate) fn take_over(&self) -> Result<Vec<PackId>> {
        let seen = self.leases.list()?;
        let (alive, dead): (Vec<SeenLease>, Vec<SeenLease>) =
            seen.into_iter().partition(|lease| lease.alive);
        let alive: HashSet<LeaseId> = alive.iter().map(|lease| lease.id).collect();
        let unreadable = adopt_packs(&self.store, &alive)?;
        self.note_unfinished(&dead)?;
        self.reconcile_points()?;
        self.store.storage.remove_debris()?;
        self.pins.remove_debris()?;
        // One that died since they were listed may have left packs that are not adopted yet.
        let dead: HashSet<LeaseId> = dead.iter().map(|lease| lease.id).collect();
        self.leases.sweep(&dead)?;
        Ok(unreadable)
    }

    /// What dead backups stored is kept for the next try, for a while.
    fn note_unfinished(&self, dead: &[SeenLease]) -> Result<()> {
        let backups: Vec<LeaseId> = dead
            .iter()
            .filter(|lease| {
                let content = lease.content.as_ref();
                content.is_none_or(|content| content.kind == LeaseKind::Writer)
            })
            .map(|lease| lease.id)
            .collect();
        if backups.is_empty() {
            return Ok(());
        }
        let now = self.store.env.clock.now();
        self.store.index.write(|edit| {
            backups
                .iter()
                .try_for_each(|lease| edit.note_unfinished(*lease, now))
        })
    }

    /// Makes the index's cache of points hold the records there are, after somebody was killed between
    /// the one and the other. What it holds of a record that is lost stays, for `repair`.
    fn reconcile_points(&self) -> Result<()> {
        // A row stands for a durable record.
        self.store.storage.settle(Folder::Points)?;
        let names = self.store.storage.list(Folder::Points)?;
        let present: Vec<PointId> = names
            .into_iter()
            .filter_map(|name| match name {
                ObjectName::Point(id) => Some(id),
                _ => None,
            })
            .collect();
        let load = |id| match self.record(id) {
            Err(Error::NoSuchPoint { .. }) => Ok(None),
            record => record.map(Some),
        };
        let index = &self.store.index;
        index.reconcile_points(&present, load, |id| self.is_forgotten(id))
    }
}
