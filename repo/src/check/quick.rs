//! Whether all is well with the disks of points, told without a look-up for each chunk that a leaf names.
//!
//! The trees are walked as prune walks them: each node is read and verified once, the ids of chunks are gathered
//! and compared with the index in the order of both. Most chunks are named by many leaves, so this takes a
//! small part of the time. Which disk is hit it cannot tell: where anything is wrong, the points are
//! walked one by one (`points`).

use std::collections::{HashMap, HashSet};

use super::{Health, PackHealth};
use crate::format::node::Root;
use crate::index::{PackNumber, View, prefix};
use crate::reach::{Absence, LIVE_IDS_MAX, LiveSet, Target, Walker};
use crate::read::fetch_many;
use crate::{Cancel, PointId, Repository, Result, RootId};

/// Points that are walked together.
const POINTS_AT_ONCE: usize = 256;

/// A disk, and how long it should be.
type SizedRoot = (RootId, u64);

/// The points of whose disks everything is there: all that could be read, or none when something is
/// wrong.
pub(super) fn sound_points(
    repo: &Repository,
    points: &[PointId],
    health: &Health,
    cancel: &Cancel,
) -> Result<HashSet<PointId>> {
    let store = &**repo.store();
    let suspicious = health.values().any(PackHealth::is_damaged);
    if suspicious || store.index.read(|view| view.wanted_count())? > 0 {
        return Ok(HashSet::new());
    }
    let mut looked_at = HashSet::new();
    let mut groups: Vec<Vec<Target>> = Vec::new();
    for ids in points.chunks(POINTS_AT_ONCE) {
        let mut roots: Vec<SizedRoot> = Vec::new();
        for id in ids {
            // What is wrong with a record is told by whoever walks the points.
            if let Ok(point) = repo.point(*id) {
                looked_at.insert(*id);
                roots.extend(point.disks.iter().map(|disk| (disk.root, disk.size.0)));
            }
        }
        if !are_as_long_as_they_should_be(repo, &roots)? {
            return Ok(HashSet::new());
        }
        let disks = roots.into_iter().map(|(root, _)| Target::Disk(root));
        groups.push(disks.collect());
    }
    let quick = Quick {
        repo,
        health: numbered(repo, health)?,
        cancel,
    };
    match quick.walk(&groups) {
        Ok(true) => Ok(looked_at),
        Ok(false) => Ok(HashSet::new()),
        Err(error) if error.is_damage() => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

fn are_as_long_as_they_should_be(repo: &Repository, roots: &[SizedRoot]) -> Result<bool> {
    let ids: Vec<RootId> = roots.iter().map(|(id, _)| *id).collect();
    let records = fetch_many(repo.store(), &ids)?;
    let is_right = |(_, size): &SizedRoot, record: Result<Vec<u8>>| match record {
        Ok(record) => Ok(Root::decode(&record).is_ok_and(|root| root.size == *size)),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    };
    let mut all = true;
    for (root, record) in roots.iter().zip(records) {
        all &= is_right(root, record)?;
    }
    Ok(all)
}

fn numbered<'a>(
    repo: &Repository,
    health: &'a Health,
) -> Result<HashMap<PackNumber, &'a PackHealth>> {
    let rows = repo.store().index.read(View::numbered_packs)?;
    let known = rows
        .into_iter()
        .filter_map(|(number, row)| Some((number, health.get(&row.id)?)));
    Ok(known.collect())
}

struct Quick<'a> {
    repo: &'a Repository,
    health: HashMap<PackNumber, &'a PackHealth>,
    cancel: &'a Cancel,
}

impl Quick<'_> {
    /// Whether all that hangs below these disks is there.
    fn walk(&self, groups: &[Vec<Target>]) -> Result<bool> {
        let store = &**self.repo.store();
        let mut from = Some(0);
        while let Some(first) = from {
            let mut live = LiveSet::new(first, LIVE_IDS_MAX);
            let mut walker = Walker::new(store, self.cancel);
            for disks in groups {
                walker.walk(disks, Absence::IsDamage, &mut live)?;
            }
            live.settle();
            if !self.are_there(&live)? {
                return Ok(false);
            }
            from = live.rest();
        }
        Ok(true)
    }

    fn are_there(&self, live: &LiveSet) -> Result<bool> {
        let mut ids = live.prefixes().iter().peekable();
        let mut all = true;
        // Whether the index has the next of them.
        let mut found = false;
        let mut unknown: HashSet<PackNumber> = HashSet::new();
        let index = &self.repo.store().index;
        index.scan(live.range(), self.cancel, |entry| {
            let at = prefix(entry.id);
            while ids.next_if(|id| **id < at).is_some() {
                all &= found;
                found = false;
            }
            if ids.peek() == Some(&&at) {
                found = true;
                match self.health.get(&entry.pack) {
                    Some(pack) => all &= pack.holds_at(entry.offset, entry.len),
                    None => drop(unknown.insert(entry.pack)),
                }
            }
        })?;
        let rest = ids.skip(usize::from(found)).count();
        Ok(all && rest == 0 && self.are_packs(&unknown)?)
    }

    /// Whether these are packs that came after the packs were looked at. What the index has in no pack is
    /// lost.
    fn are_packs(&self, numbers: &HashSet<PackNumber>) -> Result<bool> {
        if numbers.is_empty() {
            return Ok(true);
        }
        let rows = self.repo.store().index.read(View::numbered_packs)?;
        let known: HashSet<PackNumber> = rows.into_iter().map(|(number, _)| number).collect();
        Ok(numbers.is_subset(&known))
    }
}
