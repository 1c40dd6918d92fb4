//! Walking points: every node verified, every chunk in a place that can be relied on.
//!
//! A disk is walked level by level, many nodes at once, so that records are looked up and read in
//! bulk; a level that is too wide is walked in batches, each down to the chunks before the next.

use std::collections::HashSet;
use std::ops::Range;

use super::packs::reason;
use super::{Affected, CheckProgress, Health};
use crate::format::node::Node;
use crate::ids::ContentId;
use crate::manifest::{NodeSource, Shape};
use crate::read::fetch_many;
use crate::seen::Seen;
use crate::store::Store;
use crate::{Cancel, ChunkId, Disk, Error, NodeId, Point, RawId, Repository, Result, StoredFile};

/// Nodes of one level that are read at once.
const NODES_AT_ONCE: usize = 1024;

/// Lost ranges of one disk that are held before they are told.
const RANGES_MAX: usize = 16 << 10;

/// Wanted ids that are looked at, some 50 bytes of memory each.
const WANTED_MAX: usize = 1 << 20;

/// Walks points one after the other. Subtrees found sound are remembered: points share most of
/// theirs.
pub(super) struct PointWalk<'a> {
    repo: &'a Repository,
    store: &'a Store,
    health: &'a Health,
    /// Ids that repair found damaged; whether they still are is seen by reading them.
    wanted: HashSet<RawId>,
    cancel: &'a Cancel,
    progress: &'a dyn CheckProgress,
    on_lost: &'a mut dyn FnMut(RawId) -> Result<()>,
    sound: Seen,
    /// How much was told to `progress`.
    pub(super) told: u64,
}

/// What is lost of one disk.
struct Lost<'a> {
    point: &'a Point,
    part: &'a str,
    ranges: Vec<Range<u64>>,
    /// Reason of the first.
    why: Option<String>,
}

impl<'a> PointWalk<'a> {
    /// A walk that knows what to think of each pack.
    pub(super) fn new(
        repo: &'a Repository,
        health: &'a Health,
        cancel: &'a Cancel,
        progress: &'a dyn CheckProgress,
        on_lost: &'a mut dyn FnMut(RawId) -> Result<()>,
    ) -> Result<Self> {
        let store = repo.store();
        Ok(Self {
            repo,
            store,
            health,
            wanted: store.index.wanted(WANTED_MAX)?,
            cancel,
            progress,
            on_lost,
            sound: Seen::default(),
            told: 0,
        })
    }

    /// Walks the disks of a point and tells what of them is lost.
    pub(super) fn disks(&mut self, point: &Point) -> Result<()> {
        for disk in &point.disks {
            let mut lost = Lost::new(point, &disk.target);
            self.disk(disk, &mut lost)?;
            self.tell(&mut lost)?;
        }
        Ok(())
    }

    /// Reads the files of a point and tells which are lost.
    pub(super) fn files(&mut self, point: &Point) -> Result<()> {
        for file in &point.files {
            let mut lost = Lost::new(point, &file.name);
            self.file(file, &mut lost)?;
            self.tell(&mut lost)?;
        }
        Ok(())
    }

    /// Notes that a range below `id` cannot be had.
    fn lose(
        &mut self,
        lost: &mut Lost<'_>,
        id: RawId,
        range: Range<u64>,
        why: String,
    ) -> Result<()> {
        (self.on_lost)(id)?;
        lost.add(range, why);
        if lost.ranges.len() >= RANGES_MAX {
            self.tell(lost)?;
        }
        Ok(())
    }

    /// Tells what was found so far; nothing if nothing is lost.
    fn tell(&mut self, lost: &mut Lost<'_>) -> Result<()> {
        let Some(affected) = lost.take() else {
            return Ok(());
        };
        match self.repo.check_exists(affected.point) {
            // What only a point that was forgotten meanwhile needs may be gone.
            Err(Error::NoSuchPoint { .. }) => return Ok(()),
            exists => exists?,
        }
        self.told += 1;
        self.progress.affected(&affected);
        Ok(())
    }

    fn disk(&mut self, disk: &Disk, lost: &mut Lost<'_>) -> Result<()> {
        let id = disk.root.raw();
        if self.sound.contains(id) {
            return Ok(());
        }
        match self.store.root(disk.root) {
            Ok(root) if root.size != disk.size.0 => {
                let why = format!("its root record is of a disk of {} bytes", root.size);
                self.lose(lost, id, 0..disk.size.0, why)?;
            }
            Ok(root) => {
                let shape = Shape::of(&root);
                let top: Vec<_> = root.top.map(|top| (0, top)).into_iter().collect();
                let whole = self.nodes(&shape, shape.height() - 1, &top, lost)?;
                if whole.into_iter().all(|whole| whole) {
                    self.sound.insert(id);
                }
            }
            Err(error) => {
                let why = damage(error)?;
                self.lose(lost, id, 0..disk.size.0, why)?;
            }
        }
        Ok(())
    }

    /// Walks nodes of one level, given with their numbers within it; whether each is whole.
    fn nodes(
        &mut self,
        shape: &Shape,
        level: u8,
        nodes: &[(u64, NodeId)],
        lost: &mut Lost<'_>,
    ) -> Result<Vec<bool>> {
        let mut whole = vec![true; nodes.len()];
        let fan_out = shape.fan_out.children() as u64;
        let mut all: Vec<usize> = (0..nodes.len()).collect();
        while !all.is_empty() {
            self.cancel.check()?;
            let batch: Vec<usize> = all.drain(..all.len().min(NODES_AT_ONCE)).collect();
            let mut asked = batch;
            asked.retain(|n| !self.sound.contains(nodes[*n].1.raw()));
            let ids: Vec<NodeId> = asked.iter().map(|n| nodes[*n].1).collect();
            let mut children: Vec<(u64, RawId)> = Vec::new();
            let mut owners: Vec<usize> = Vec::new();
            for (n, encoded) in asked.iter().zip(fetch_many(self.store, &ids)?) {
                let (number, id) = nodes[*n];
                match encoded.and_then(|encoded| self.decode(&encoded, id, level)) {
                    Ok(node) => {
                        for (position, child) in (0..).zip(node.children) {
                            children.extend(child.map(|id| (number * fan_out + position, id)));
                        }
                        owners.resize(children.len(), *n);
                    }
                    Err(error) => {
                        let why = damage(error)?;
                        whole[*n] = false;
                        self.lose(lost, id.raw(), range_of(shape, level + 1, number), why)?;
                    }
                }
            }
            let fine = if level == 0 {
                self.chunks(shape, &children, lost)?
            } else {
                let nodes: Vec<_> = children
                    .into_iter()
                    .map(|(number, id)| (number, NodeId::from_raw(id)))
                    .collect();
                self.nodes(shape, level - 1, &nodes, lost)?
            };
            for (owner, fine) in owners.into_iter().zip(fine) {
                whole[owner] &= fine;
            }
            for n in asked {
                if whole[n] {
                    self.sound.insert(nodes[n].1.raw());
                }
            }
        }
        Ok(whole)
    }

    fn decode(&self, encoded: &[u8], id: NodeId, level: u8) -> Result<Node> {
        let corrupt = |expected: String, found: String| Error::Corrupt {
            what: format!("manifest node {id}"),
            expected,
            found,
        };
        let node = Node::decode(encoded, self.store.fan_out)
            .map_err(|damage| corrupt(damage.expected, damage.found))?;
        if node.level == level {
            Ok(node)
        } else {
            let found = format!("level {}", node.level);
            Err(corrupt(format!("level {level}"), found))
        }
    }

    /// Reads a chunk to see whether it is what it should be.
    fn is_damaged(&self, id: RawId) -> Result<bool> {
        match self.store.fetch(ChunkId::from_raw(id)) {
            Ok(_) => Ok(false),
            Err(error) => damage(error).map(|_| true),
        }
    }

    /// Whether each chunk, given with its number within the disk, is in a place to be relied on.
    fn chunks(
        &mut self,
        shape: &Shape,
        chunks: &[(u64, RawId)],
        lost: &mut Lost<'_>,
    ) -> Result<Vec<bool>> {
        let ids: Vec<RawId> = chunks.iter().map(|(_, id)| *id).collect();
        let places = self.store.index.locate(&ids)?;
        let mut fine = Vec::with_capacity(chunks.len());
        for ((number, id), place) in chunks.iter().zip(places) {
            let why = match place {
                None => Some("is in no pack"),
                Some(_) if self.wanted.contains(id) && self.is_damaged(*id)? => Some("is damaged"),
                // A pack that came or moved after the packs were looked at is not known here.
                Some(at) if self.health.get(&at.pack).is_none_or(|pack| pack.holds(at)) => None,
                Some(_) => Some("is damaged"),
            };
            fine.push(why.is_none());
            if let Some(why) = why {
                let why = format!("chunk {id} {why}");
                self.lose(lost, *id, range_of(shape, 0, *number), why)?;
            }
        }
        Ok(fine)
    }

    fn file(&mut self, file: &StoredFile, lost: &mut Lost<'_>) -> Result<()> {
        for piece in &file.pieces {
            if self.sound.contains(piece.raw()) {
                continue;
            }
            match self.store.fetch(*piece) {
                Ok(_) => self.sound.insert(piece.raw()),
                Err(error) => {
                    let why = damage(error)?;
                    (self.on_lost)(piece.raw())?;
                    lost.why.get_or_insert(why);
                }
            }
        }
        Ok(())
    }
}

/// The bytes of the disk below node `number` of the level below `level`; level 0 stands above chunks.
fn range_of(shape: &Shape, level: u8, number: u64) -> Range<u64> {
    let chunks = shape.fan_out.chunks_per_child(level);
    let bytes = chunks.saturating_mul(shape.chunk_size.as_u64());
    let start = number.saturating_mul(bytes);
    start.min(shape.size)..start.saturating_add(bytes).min(shape.size)
}

impl<'a> Lost<'a> {
    fn new(point: &'a Point, part: &'a str) -> Self {
        Self {
            point,
            part,
            ranges: Vec::new(),
            why: None,
        }
    }

    fn add(&mut self, range: Range<u64>, why: String) {
        self.why.get_or_insert(why);
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }

    /// All that was lost since the last call.
    fn take(&mut self) -> Option<Affected> {
        let why = self.why.take()?;
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in self.ranges.drain(..) {
            match ranges.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Some(Affected {
            point: self.point.id,
            domain: Some(self.point.domain.clone()),
            part: self.part.to_owned(),
            ranges,
            why,
        })
    }
}

/// Why something is lost, if damage is the reason; other errors end the check.
fn damage(error: Error) -> Result<String> {
    if error.is_damage() {
        Ok(reason(&error))
    } else {
        Err(error)
    }
}
