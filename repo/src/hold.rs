//! Holding on to a point while it is read as a whole.
//!
//! A disk reader leases its own disk. Whoever reads several disks and files of a point one after the
//! other needs all of them from the beginning: the point may be forgotten and pruned meanwhile.
//!
//! A forgotten point can be held, too, until prune has taken something of it. So what a forgotten point
//! needs is looked for piece by piece, once the lease is there: from then on, nothing more of it goes.

use crate::ids::ContentId;
use crate::lease::{ReaderLease, Roots};
use crate::manifest::{NodeSource, Shape};
use crate::storage::ObjectName;
use crate::store::Store;
use crate::{Cancel, Error, NodeId, Point, PointId, RawId, Repository, Result, RootId};

/// Keeps all that a point needs where it is. Dropping it lets go.
#[derive(Debug)]
pub struct Hold {
    _lease: Option<ReaderLease>,
}

impl Repository {
    /// Holds on to all disks and files of a point. [`Error::NoSuchPoint`] when it is neither there nor
    /// forgotten, [`Error::Pruned`] when it is forgotten and something of it is gone.
    ///
    /// Of a forgotten point all manifest nodes are read, and every chunk is looked up. Damage is no reason
    /// not to hold the rest: whoever reads it will meet it.
    pub fn hold(&self, point: &Point, cancel: &Cancel) -> Result<Hold> {
        let hold = Hold {
            _lease: self.reader_lease_if_space(point.id, Roots::of([point]))?,
        };
        let record = ObjectName::Point(point.id);
        if self.store().storage.len(&record)?.is_none() {
            match self.check_all_there(point, cancel) {
                Err(error) if error.is_damage() => {}
                there => there?,
            }
        }
        Ok(hold)
    }

    /// As [`hold`](Self::hold), for whoever wants what is left of the point, however little.
    pub fn hold_to_salvage(&self, point: &Point) -> Result<Hold> {
        Ok(Hold {
            _lease: self.reader_lease_if_space(point.id, Roots::of([point]))?,
        })
    }

    /// As [`hold`](Self::hold), but fails where there can be no lease, and looks in any case whether all
    /// of the point is there: for bringing a point back.
    pub(crate) fn hold_strictly(&self, point: &Point, cancel: &Cancel) -> Result<Hold> {
        let lease = self.reader_lease(point.id, Roots::of([point]))?;
        self.check_all_there(point, cancel)?;
        Ok(Hold {
            _lease: Some(lease),
        })
    }

    /// Whether what is read is held by leases: not on read-only media, nor where locks were declined.
    pub fn takes_leases(&self) -> bool {
        !self.lockless
    }

    /// A lease on something of a point, which may be forgotten. A full file system is no reason not to
    /// restore: then there is none, and what is read stays readable as long as the point is not
    /// forgotten and pruned meanwhile.
    pub(crate) fn reader_lease_if_space(
        &self,
        point: PointId,
        roots: Roots,
    ) -> Result<Option<ReaderLease>> {
        if !self.takes_leases() {
            return self.check_readable(point).map(|()| None);
        }
        match self.reader_lease(point, roots) {
            Err(error) if error.is_no_space() => Ok(None),
            lease => lease.map(Some),
        }
    }

    fn reader_lease(&self, point: PointId, roots: Roots) -> Result<ReaderLease> {
        let recheck = |_: &_| self.check_readable(point);
        let index = &self.store().index;
        self.leases.reader("virtkeep", roots, index, recheck)
    }

    pub(crate) fn check_all_there(&self, point: &Point, cancel: &Cancel) -> Result<()> {
        let store = self.store();
        let walk = Walk {
            store,
            cancel,
            point: point.id,
        };
        walk.point(point)
    }

    /// [`Error::NoSuchPoint`] when there is no record of the point, forgotten or not. To be asked under the
    /// index lock: no record goes from one place to the other meanwhile.
    pub(crate) fn check_readable(&self, point: PointId) -> Result<()> {
        let storage = &self.store().storage;
        for name in [ObjectName::Point(point), ObjectName::Forgotten(point)] {
            if storage.len(&name)?.is_some() {
                return Ok(());
            }
        }
        Err(Error::NoSuchPoint { point })
    }
}

/// Looks whether all that a point needs is located, in packs that prune has not decided to remove. The
/// content of chunks is not looked at.
struct Walk<'a> {
    store: &'a Store,
    cancel: &'a Cancel,
    point: PointId,
}

impl Walk<'_> {
    fn point(&self, point: &Point) -> Result<()> {
        for disk in &point.disks {
            self.disk(disk.root)?;
        }
        for file in &point.files {
            let pieces: Vec<RawId> = file.pieces.iter().map(|piece| piece.raw()).collect();
            self.located(&pieces)?;
        }
        Ok(())
    }

    fn disk(&self, id: RootId) -> Result<()> {
        self.located(&[id.raw()])?;
        let root = self.store.root(id)?;
        match root.top {
            Some(top) => {
                self.located(&[top.raw()])?;
                self.subtree(top, Shape::of(&root).height() - 1)
            }
            None => Ok(()),
        }
    }

    fn subtree(&self, id: NodeId, level: u8) -> Result<()> {
        self.cancel.check()?;
        let node = self.store.node(id)?;
        let children: Vec<RawId> = node.children.iter().flatten().copied().collect();
        self.located(&children)?;
        if level > 0 {
            for child in children {
                self.subtree(NodeId::from_raw(child), level - 1)?;
            }
        }
        Ok(())
    }

    fn located(&self, ids: &[RawId]) -> Result<()> {
        let standing = self.store.index.standing(ids)?;
        match standing.into_iter().all(|standing| standing) {
            true => Ok(()),
            false => Err(Error::Pruned { point: self.point }),
        }
    }
}
