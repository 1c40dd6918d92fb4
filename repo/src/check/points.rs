//! Walking points: every node verified, every chunk in a place that can be relied on.

use std::collections::HashSet;
use std::ops::Range;

use super::packs::reason;
use super::{Affected, CheckReport, Health};
use crate::ids::ContentId;
use crate::manifest::{NodeSource, Shape};
use crate::store::Store;
use crate::{Disk, Error, NodeId, Point, RawId, Repository, Result, StoredFile};

/// Walks points one after the other. Subtrees found sound are remembered: points share most of
/// theirs.
pub(super) struct PointWalk<'a> {
    store: &'a Store,
    health: &'a Health,
    sound: HashSet<NodeId>,
}

/// What is lost of one disk.
#[derive(Default)]
struct Lost {
    ranges: Vec<Range<u64>>,
    /// Number of losses, before neighbours were joined.
    count: u64,
    /// Reason of the first.
    why: Option<String>,
}

impl<'a> PointWalk<'a> {
    /// A walk that knows what to think of each pack.
    pub(super) fn new(repo: &'a Repository, health: &'a Health) -> Self {
        Self {
            store: repo.store(),
            health,
            sound: HashSet::new(),
        }
    }

    /// Walks one point and reports what of it is lost.
    pub(super) fn point(&mut self, point: &Point, report: &mut CheckReport) -> Result<()> {
        report.points += 1;
        let affected = |part: &str, ranges, why| Affected {
            point: point.id,
            domain: Some(point.domain.clone()),
            part: part.to_owned(),
            ranges,
            why,
        };
        for disk in &point.disks {
            report.disks += 1;
            let lost = self.disk(disk)?;
            if let Some(why) = lost.why {
                report
                    .affected
                    .push(affected(&disk.target, lost.ranges, why));
            }
        }
        for file in &point.files {
            if let Some(why) = self.file(file)? {
                report.affected.push(affected(&file.name, Vec::new(), why));
            }
        }
        Ok(())
    }

    fn disk(&mut self, disk: &Disk) -> Result<Lost> {
        let mut lost = Lost::default();
        match self.store.root(disk.root) {
            Ok(root) if root.size != disk.size.0 => {
                let why = format!("its root record is of a disk of {} bytes", root.size);
                lost.add(0..disk.size.0, why);
            }
            Ok(root) => {
                let shape = Shape::of(&root);
                if let Some(top) = root.top {
                    self.subtree(&shape, shape.height() - 1, 0, top, &mut lost)?;
                }
            }
            Err(error) => lost.add(0..disk.size.0, damage(error)?),
        }
        Ok(lost)
    }

    /// Walks node `index` of `level`.
    fn subtree(
        &mut self,
        shape: &Shape,
        level: u8,
        index: u64,
        id: NodeId,
        lost: &mut Lost,
    ) -> Result<()> {
        if self.sound.contains(&id) {
            return Ok(());
        }
        let chunks_per_child = shape.fan_out.chunks_per_child(level);
        let child_bytes = chunks_per_child.saturating_mul(shape.chunk_size.as_u64());
        let child_range = |position: u64| {
            let number = index * shape.fan_out.children() as u64 + position;
            let start = number.saturating_mul(child_bytes);
            start.min(shape.size)..start.saturating_add(child_bytes).min(shape.size)
        };
        let whole = || child_range(0).start..child_range(shape.fan_out.children() as u64 - 1).end;
        let node = match self.store.node(id) {
            Ok(node) if node.level == level => node,
            Ok(_) => {
                lost.add(whole(), format!("manifest node {id} is at the wrong level"));
                return Ok(());
            }
            Err(error) => {
                lost.add(whole(), damage(error)?);
                return Ok(());
            }
        };
        let lost_before = lost.count;
        let children: Vec<(u64, RawId)> = (0..)
            .zip(&node.children)
            .filter_map(|(at, id)| Some((at, (*id)?)))
            .collect();
        if level == 0 {
            for ((position, id), why) in self.unreliable(&children)? {
                lost.add(child_range(position), format!("chunk {id} {why}"));
            }
        } else {
            for (position, child) in children {
                let number = index * shape.fan_out.children() as u64 + position;
                self.subtree(shape, level - 1, number, NodeId::from_raw(child), lost)?;
            }
        }
        if lost.count == lost_before {
            self.sound.insert(id);
        }
        Ok(())
    }

    /// The chunks among `children` that are nowhere, or in a place not to be relied on.
    fn unreliable(&self, children: &[(u64, RawId)]) -> Result<Vec<((u64, RawId), &'static str)>> {
        let ids: Vec<RawId> = children.iter().map(|(_, id)| *id).collect();
        let places = self.store.index.locate(&ids)?;
        let mut bad = Vec::new();
        for (child, place) in children.iter().zip(places) {
            match place {
                None => bad.push((*child, "is in no pack")),
                // A pack that came or moved after the packs were looked at is not known here.
                Some(at) if self.health.get(&at.pack).is_none_or(|pack| pack.holds(at)) => {}
                Some(_) => bad.push((*child, "is damaged")),
            }
        }
        Ok(bad)
    }

    fn file(&self, file: &StoredFile) -> Result<Option<String>> {
        for piece in &file.pieces {
            if let Err(error) = self.store.fetch(*piece) {
                return damage(error).map(Some);
            }
        }
        Ok(None)
    }
}

impl Lost {
    fn add(&mut self, range: Range<u64>, why: String) {
        self.count += 1;
        self.why.get_or_insert(why);
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}

/// Why something is lost, if damage is the reason; other errors end the check.
fn damage(error: Error) -> Result<String> {
    match error {
        Error::Corrupt { .. } | Error::Missing { .. } => Ok(reason(&error)),
        error => Err(error),
    }
}
