//! Walking from roots to everything that hangs below them.
//!
//! Nodes are read many at a time, in the order of their packs. A node that was visited is not read
//! again: points share most of theirs.
//!
//! Invariant: everything below a visited node has been reached. So a walk in which something may be lost
//! leaves nothing behind: what is lost may be stored anew, and be needed by somebody who comes later.

use std::collections::HashMap;

use rayon::prelude::*;

use super::Reach;
use crate::format::node::{Node, Root};
use crate::format::record;
use crate::ids::ContentId;
use crate::index::Location;
use crate::manifest::Shape;
use crate::seen::Seen;
use crate::storage::ObjectName;
use crate::store::Store;
use crate::{BlobId, Cancel, Error, NodeId, RawId, RecordKind, Result, RootId};

/// How many nodes are looked up and read at once.
const NODES_AT_ONCE: usize = 1024;

/// Something everything of which is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Target {
    /// A disk.
    Disk(RootId),
    /// A piece of a file.
    Piece(BlobId),
}

impl Target {
    /// Its id.
    pub(crate) fn id(self) -> RawId {
        match self {
            Self::Disk(id) => id.raw(),
            Self::Piece(id) => id.raw(),
        }
    }
}

/// The id of a record, and what it holds.
type Encoded = (RawId, Vec<u8>);

/// What to think of a node that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absence {
    /// Damage: what hangs below it is unknown.
    IsDamage,
    /// Of a point that was forgotten, something may be gone already. Nobody can rely on what is below.
    IsLoss,
}

/// Walks, and remembers where it has been.
pub(crate) struct Walker<'a> {
    store: &'a Store,
    cancel: &'a Cancel,
    visited: Seen,
    /// Visited by this walk, in which something may turn out to be lost.
    doubtful: Seen,
}

impl<'a> Walker<'a> {
    /// A walker that has been nowhere.
    pub(crate) fn new(store: &'a Store, cancel: &'a Cancel) -> Self {
        Self {
            store,
            cancel,
            visited: Seen::default(),
            doubtful: Seen::default(),
        }
    }

    /// Forgets where it has been.
    pub(crate) fn start_anew(&mut self) {
        self.visited = Seen::default();
    }

    /// Tells `reach` of the targets and of everything below them, but not again of what is below nodes
    /// that were visited before. After an error the walker is of no use any more.
    pub(crate) fn walk(
        &mut self,
        targets: &[Target],
        absence: Absence,
        reach: &mut dyn Reach,
    ) -> Result<()> {
        let ids: Vec<RawId> = targets.iter().map(|target| target.id()).collect();
        reach.reach(&ids)?;
        let disks: Vec<RawId> = targets
            .iter()
            .filter(|target| matches!(target, Target::Disk(_)))
            .map(|target| target.id())
            .collect();
        for disks in disks.chunks(NODES_AT_ONCE) {
            let mut pending: Vec<(NodeId, u8)> = Vec::new();
            for (id, encoded) in self.read(RecordKind::Root, disks, absence)? {
                let root = Root::decode(&encoded)
                    .map_err(|damage| damage.at(format!("disk root {id}")))?;
                pending.extend(root.top.map(|top| (top, Shape::of(&root).height() - 1)));
            }
            self.walk_nodes(pending, absence, reach)?;
        }
        self.doubtful = Seen::default();
        Ok(())
    }

    /// Walks from the last to the first, so that what is pending stays little.
    fn walk_nodes(
        &mut self,
        mut pending: Vec<(NodeId, u8)>,
        absence: Absence,
        reach: &mut dyn Reach,
    ) -> Result<()> {
        let mut levels = HashMap::new();
        while !pending.is_empty() {
            self.cancel.check()?;
            levels.clear();
            let batch = pending.split_off(pending.len().saturating_sub(NODES_AT_ONCE));
            let mut ids = Vec::with_capacity(batch.len());
            for (id, level) in batch {
                let id = id.raw();
                if self.visit(id, absence) {
                    levels.insert(id, level);
                    ids.push(id);
                }
            }
            reach.reach(&ids)?;
            for (id, encoded) in self.read(RecordKind::Node, &ids, absence)? {
                let what = || format!("manifest node {id}");
                let node = Node::decode(&encoded, self.store.fan_out)
                    .map_err(|damage| damage.at(what()))?;
                let level = levels[&id];
                if node.level != level {
                    return Err(Error::Corrupt {
                        what: what(),
                        expected: format!("level {level}"),
                        found: format!("level {}", node.level),
                    });
                }
                let children: Vec<RawId> = node.children.iter().flatten().copied().collect();
                if level == 0 {
                    reach.reach(&children)?;
                } else {
                    let below = children.into_iter();
                    let new = below.filter(|child| !self.visited.contains(*child));
                    pending.extend(new.map(|child| (NodeId::from_raw(child), level - 1)));
                }
            }
        }
        Ok(())
    }

    /// Whether the node was not visited before.
    fn visit(&mut self, id: RawId, absence: Absence) -> bool {
        if self.visited.contains(id) || self.doubtful.contains(id) {
            return false;
        }
        match absence {
            Absence::IsDamage => self.visited.insert(id),
            Absence::IsLoss => self.doubtful.insert(id),
        }
        true
    }

    /// The verified records with these ids; without those that are lost, where that is no damage.
    fn read(&self, kind: RecordKind, ids: &[RawId], absence: Absence) -> Result<Vec<Encoded>> {
        let mut places: Vec<(RawId, Option<Location>)> = ids
            .iter()
            .copied()
            .zip(self.store.index.locate(ids)?)
            .collect();
        places.sort_unstable_by_key(|(_, at)| at.map(|at| (at.pack, at.offset)));
        let read = places.par_iter().map(|(id, at)| {
            let bytes = match at {
                Some(at) => self.read_moving(kind, *id, *at),
                None => Err(Error::missing(kind, *id)),
            };
            match bytes {
                Err(Error::Missing { .. }) if absence == Absence::IsLoss => Ok(None),
                bytes => Ok(Some((*id, bytes?))),
            }
        });
        let read = read.collect::<Result<Vec<Option<Encoded>>>>()?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Looks again where the pack is gone: a dry run has no lock that keeps another prune out.
    fn read_moving(&self, kind: RecordKind, id: RawId, at: Location) -> Result<Vec<u8>> {
        match self.read_at(kind, id, at) {
            Err(error @ Error::Missing { .. }) => match self.store.index.locate(&[id])?[0] {
                Some(now) if now != at => self.read_at(kind, id, now),
                _ => Err(error),
            },
            read => read,
        }
    }

    fn read_at(&self, kind: RecordKind, id: RawId, at: Location) -> Result<Vec<u8>> {
        let mut sealed = vec![0; at.len as usize];
        let name = ObjectName::Pack(at.pack);
        self.store
            .storage
            .read_at(&name, at.offset.into(), &mut sealed)?;
        record::open(&self.store.keys, kind, id, &sealed).map_err(|damage| {
            let Location { pack, offset, .. } = at;
            damage.at(format!(
                "{} {id} in pack {pack} at offset {offset}",
                kind.name()
            ))
        })
    }
}
