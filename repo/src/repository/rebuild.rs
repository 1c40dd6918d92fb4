//! Building the index anew from packs and point records alone.
//!
//! The new index grows in a file of its own while the old one serves, if it still can; it is renamed
//! into its place under the exclusive lock, after taking in what was stored meanwhile. Nothing but
//! `index.redb` is touched, so this can be repeated, and loses nothing that the packs hold.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;

use super::{OpenOptions, Parts, Repository};
use crate::check::packs::records_of;
use crate::check::reason;
use crate::format::pack::{FinishedPack, read_header, read_table};
use crate::format::point::{self, POINT_BYTES_MAX};
use crate::index::{Edit, Fault, Rebuild, Rival};
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::{
    Cancel, CheckProgress, Env, Error, LeaseId, MaintenanceLock, PackId, PackKind, PointId, RawId,
    Result,
};

/// Entries gathered before they are added.
const BATCH_ENTRIES: usize = 256 << 10;

/// How often packs are looked for that came meanwhile, before the index is locked.
const CATCH_UPS_MAX: usize = 3;

/// Wanted ids taken over from the old index. What is left out, the next repair finds again.
const WANTED_MAX: usize = 1 << 20;

/// What a rebuilt index holds.
#[derive(Clone, Debug, Default)]
pub struct RebuildReport {
    /// Packs that were read.
    pub packs: u64,
    /// Records found in them.
    pub records: u64,
    /// Points found.
    pub points: u64,
    /// What could not be read, or only in part. Empty when all is well.
    pub damage: Vec<String>,
}

/// What the old index knew that packs do not tell, as far as it can still be read.
struct Memory {
    epoch: u64,
    wanted: Vec<RawId>,
    /// Copies of the point records.
    records: HashMap<PointId, Vec<u8>>,
    /// Those of them that are nowhere else, though nobody has forgotten their points.
    lost: Vec<(PointId, Vec<u8>)>,
}

impl Repository {
    /// Builds the index of the repository at `path` anew, also where it is missing or damaged.
    pub fn rebuild_index(
        path: &Path,
        options: &OpenOptions,
        env: Env,
        progress: &dyn CheckProgress,
        cancel: &Cancel,
    ) -> Result<RebuildReport> {
        Self::assemble(path, options, env)?.rebuild(progress, cancel)
    }

    /// The same for a repository that consists of these parts.
    pub fn rebuild_index_on(
        parts: Parts,
        options: &OpenOptions,
        env: Env,
        progress: &dyn CheckProgress,
        cancel: &Cancel,
    ) -> Result<RebuildReport> {
        Self::assemble_on(parts, options, env)?.rebuild(progress, cancel)
    }

    fn rebuild(&self, progress: &dyn CheckProgress, cancel: &Cancel) -> Result<RebuildReport> {
        self.check_writable()?;
        let locks = self.path.join("locks");
        std::fs::create_dir_all(&locks).map_err(Error::io("create", &locks))?;
        let _alone = MaintenanceLock::take(&locks, "virtkeep repair")?;
        let memory = self.memory()?;
        let store = &**self.store();
        let mut report = RebuildReport::default();

        let rebuild = store.index.start_rebuild()?;
        let packs = list_packs(store)?;
        progress.packs(packs.len() as u64);
        report.add_packs(store, &rebuild, &packs, progress, cancel)?;
        if report.packs == 0 && !packs.is_empty() {
            return Err(Error::NothingVerifies {
                path: self.path.join("packs"),
                packs: packs.len() as u64,
            });
        }
        // What others stored meanwhile, most of it: the rest is read under the lock.
        let mut known: HashSet<PackId> = packs.into_iter().collect();
        for _ in 0..CATCH_UPS_MAX {
            let mut new = list_packs(store)?;
            new.retain(|id| known.insert(*id));
            if new.is_empty() {
                break;
            }
            report.add_packs(store, &rebuild, &new, progress, cancel)?;
        }

        let mut points = HashSet::new();
        rebuild.write(|edit| report.add_points(store, edit, &memory, &mut points))?;

        // What others stored since the packs were listed; nobody can add to the index from here on.
        let mut late = Vec::new();
        rebuild.publish(|edit| {
            for id in list_packs(store)? {
                if !known.contains(&id) {
                    late.extend(report.read_pack(store, id)?);
                }
            }
            if !late.is_empty() {
                store.storage.settle(Folder::Packs)?;
            }
            let rivals = edit.add_packs(&late)?;
            edit.prefer_others(&better(store, rivals))?;
            report.add_points(store, edit, &memory, &mut points)?;
            for (id, record) in &memory.lost {
                edit.put_point(*id, record)?;
            }
            edit.raise_epoch(memory.epoch)?;
            // A running backup may have found damage, or healed it.
            match store.index.read_locked(|old| old.wanted(WANTED_MAX)) {
                Some(wanted) => edit.want(&wanted.into_iter().collect::<Vec<_>>()),
                None => edit.want(&memory.wanted),
            }
        })?;
        Ok(report)
    }

    /// Epochs order leases and condemned packs, so they must go on rising; the leases there are tell
    /// how far they had come.
    fn memory(&self) -> Result<Memory> {
        let mut memory = Memory {
            epoch: 1,
            wanted: Vec::new(),
            records: HashMap::new(),
            lost: Vec::new(),
        };
        let index = &self.store().index;
        if index.check_identity().is_ok() {
            memory.epoch = index.epoch()?;
            memory.wanted = index.wanted(WANTED_MAX)?.into_iter().collect();
            memory.records = index.points()?.into_iter().collect();
            memory.lost = self.lost_records()?;
            memory
                .lost
                .retain(|(id, record)| self.is_record(*id, record));
        }
        for lease in self.leases.list()? {
            let epoch = lease.content.and_then(|content| content.epoch);
            memory.epoch = memory.epoch.max(epoch.unwrap_or(0));
        }
        Ok(memory)
    }
}

impl RebuildReport {
    /// Reads packs and adds them. Of an id that is met twice, a good copy counts.
    fn add_packs(
        &mut self,
        store: &Store,
        rebuild: &Rebuild<'_>,
        packs: &[PackId],
        progress: &dyn CheckProgress,
        cancel: &Cancel,
    ) -> Result<()> {
        store.storage.settle(Folder::Packs)?;
        let mut packs = packs.iter();
        loop {
            let (mut batch, mut entries) = (Vec::new(), 0);
            for id in packs.by_ref() {
                cancel.check()?;
                let pack = self.read_pack(store, *id)?;
                entries += pack.as_ref().map_or(0, |pack| pack.entries.len());
                batch.extend(pack);
                progress.pack_done(0);
                if entries >= BATCH_ENTRIES {
                    break;
                }
            }
            let better = better(store, rebuild.add_packs(&batch)?);
            rebuild.write(|edit| edit.prefer_others(&better))?;
            if entries < BATCH_ENTRIES {
                return Ok(());
            }
        }
    }

    /// The table of a pack, or what can be found in it without; none when it is no pack at all.
    fn read_pack(&mut self, store: &Store, id: PackId) -> Result<Option<FinishedPack>> {
        let pack = match read_table(&*store.storage, id, &store.keys) {
            Ok(pack) => pack,
            // Pruned meanwhile.
            Err(Error::Missing { .. }) => return Ok(None),
            Err(error) if error.is_damage() => {
                self.damage.push(reason(&error));
                match salvage(store, id)? {
                    Some(pack) => pack,
                    None => return Ok(None),
                }
            }
            Err(error) => return Err(error),
        };
        self.packs += 1;
        self.records += pack.entries.len() as u64;
        Ok(Some(pack))
    }

    /// Adds the points that are not in `known` yet. Of a damaged record the old index's copy is kept.
    fn add_points(
        &mut self,
        store: &Store,
        edit: &Edit,
        memory: &Memory,
        known: &mut HashSet<ObjectName>,
    ) -> Result<(), Fault> {
        for name in store.storage.list(Folder::Points)? {
            let ObjectName::Point(id) = name else {
                continue;
            };
            if !known.insert(name) {
                continue;
            }
            let is_record = |record: &[u8]| point::decode(record, id, &store.keys).map(drop);
            let record = store.storage.read_whole(&name, POINT_BYTES_MAX as u64);
            match record.and_then(|record| is_record(&record).map(|()| record)) {
                Ok(record) => {
                    edit.put_point(id, &record)?;
                    self.points += 1;
                }
                // Forgotten meanwhile.
                Err(Error::Missing { .. }) => {}
                Err(error) if error.is_damage() => {
                    self.damage.push(reason(&error));
                    let copy = memory.records.get(&id);
                    if let Some(copy) = copy.filter(|copy| is_record(copy).is_ok()) {
                        edit.put_point(id, copy)?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Of ids that were met twice, those that are damaged in the place they keep and good in the other one: an
/// index does not tell which copy was damaged and healed by storing it anew.
fn better(store: &Store, mut rivals: Vec<Rival>) -> Vec<Rival> {
    rivals.sort_unstable_by_key(|rival| (rival.kept.pack, rival.kept.offset));
    let is_good = |id, at| store.verify_at(id, at).is_ok();
    rivals
        .into_par_iter()
        .filter(|rival| !is_good(rival.id, rival.kept) && is_good(rival.id, rival.other))
        .collect()
}

fn list_packs(store: &Store) -> Result<Vec<PackId>> {
    let names = store.storage.list(Folder::Packs)?;
    let pack = |name| match name {
        ObjectName::Pack(id) => Some(id),
        _ => None,
    };
    Ok(names.into_iter().filter_map(pack).collect())
}

/// What can be told of a pack whose table cannot be read: its records, if there are any. Where not
/// even the header can be read, they tell the kind, and nobody knows whose it was.
pub(crate) fn salvage(store: &Store, id: PackId) -> Result<Option<FinishedPack>> {
    let entries = records_of(store, id)?.entries;
    let (kind, lease) = match (
        read_header(&*store.storage, id, &store.keys),
        entries.first(),
    ) {
        (Ok(header), _) => (header.kind, header.lease),
        (Err(error), _) if !error.is_damage() => return Err(error),
        (Err(_), Some(first)) => {
            let nobody = LeaseId::from_bytes([0; 16]);
            (PackKind::holding(first.kind), nobody)
        }
        (Err(_), None) => return Ok(None),
    };
    let bytes = store.storage.len(&ObjectName::Pack(id))?.unwrap_or(0);
    Ok(Some(FinishedPack {
        id,
        kind,
        lease,
        bytes,
        entries,
    }))
}
