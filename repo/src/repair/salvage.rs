//! Copying what is good out of damaged packs.
//!
//! The order: copies are durable; then the index finds the records there; then what is left in the
//! damaged pack, and is not wanted, is wanted, since a running backup may have found it, and is found no
//! more, so that no other backup relies on it; then the pack is condemned. It stays until prune finds that nothing needs it, or is removed here on request.
//!
//! A medium that could not be read may be read the next time, and rights may be given back: of a pack
//! where that happened nothing is dropped, and it is not removed, not even on request.

use std::collections::{HashMap, HashSet};

use super::damaged;
use crate::check::packs::{Records, records_of};
use crate::check::{Health, PackHealth};
use crate::format::pack::{FinishedPack, PackEntry, PackWriter, read_table};
use crate::format::record;
use crate::index::{Move, PackNumber, PackRow, View, following};
use crate::storage::ObjectName;
use crate::store::Store;
use crate::{Cancel, Error, LeaseId, PackId, PackKind, RawId, Repository, Result};

/// Entries of the index that are looked through under one hold of its lock.
const SCAN: usize = 16 << 10;

/// Ids that become wanted in one transaction.
const WANTED_AT_ONCE: usize = 4096;

/// What came of it.
#[derive(Default)]
pub(super) struct Salvaged {
    pub(super) records: u64,
    pub(super) packs_removed: u64,
}

/// Takes all damaged packs out of use. `remove` says to delete them afterwards.
pub(super) fn salvage(
    repo: &Repository,
    health: &Health,
    lease: LeaseId,
    remove: bool,
    cancel: &Cancel,
) -> Result<Salvaged> {
    let store = &**repo.store();
    let mut copier = Copier {
        store,
        lease,
        open: HashMap::new(),
        records: 0,
    };
    let rows = store.index.read(View::numbered_packs)?;
    let is_damaged = |row: &PackRow| health.get(&row.id).is_some_and(PackHealth::is_damaged);
    let mut hurt: Vec<(PackNumber, PackRow)> = rows
        .into_iter()
        .filter(|(_, row)| is_damaged(row))
        .collect();
    let mut gone = Vec::new();
    let mut unread: HashSet<PackNumber> = HashSet::new();
    for (number, row) in &hurt {
        cancel.check()?;
        match store.storage.len(&ObjectName::Pack(row.id)) {
            Ok(None) => gone.push((*number, row.id)),
            _ => {
                if !copier.copy_from(row.id)? {
                    unread.insert(*number);
                }
            }
        }
    }
    copier.finish()?;
    let records = copier.records;
    hurt.retain(|(number, _)| !unread.contains(number));

    let removed: Vec<(PackNumber, PackId)> = if remove {
        hurt.iter().map(|(number, row)| (*number, row.id)).collect()
    } else {
        gone
    };
    drop_entries(store, &hurt, &removed)?;
    store.index.write(|edit| edit.condemn(&damaged(health)))?;
    let mut packs_removed = 0;
    for (_, pack) in &removed {
        store.index.write(|edit| edit.bury(&[*pack]))?;
        match store.storage.delete(&ObjectName::Pack(*pack)) {
            // Something else than a file has its name: it stays, and stays dead.
            Err(error) if error.is_damage() => continue,
            deleted => drop(deleted?),
        }
        store.index.write(|edit| edit.remove_packs(&[*pack]))?;
        packs_removed += 1;
    }
    Ok(Salvaged {
        records,
        packs_removed,
    })
}

/// Makes the index find nothing in packs that are `removed`, and in those that are `hurt` only what was
/// wanted before, for messages: a damaged record must never be taken for a known one.
fn drop_entries(
    store: &Store,
    hurt: &[(PackNumber, PackRow)],
    removed: &[(PackNumber, PackId)],
) -> Result<()> {
    let hurt: HashSet<PackNumber> = hurt.iter().map(|(number, _)| *number).collect();
    let removed: HashSet<PackNumber> = removed.iter().map(|(number, _)| *number).collect();
    let mut from = Some(RawId::from_bytes([0; 32]));
    while let Some(start) = from {
        let (next, located) = store.index.read(|view| {
            let slice = view.scan(start, SCAN)?;
            let next = slice.last().and_then(|last| following(last.id));
            let located: Vec<(RawId, PackNumber)> = slice
                .into_iter()
                .filter(|entry| hurt.contains(&entry.pack))
                .map(|entry| (entry.id, entry.pack))
                .collect();
            let ids: Vec<RawId> = located.iter().map(|(id, _)| *id).collect();
            let wanted = view.are_wanted(&ids)?;
            let located = located.into_iter().zip(wanted);
            let dropped = located.filter(|((_, pack), wanted)| !wanted || removed.contains(pack));
            Ok((
                next,
                dropped.map(|(located, _)| located).collect::<Vec<_>>(),
            ))
        })?;
        let ids: Vec<RawId> = located.iter().map(|(id, _)| *id).collect();
        want(store, &ids)?;
        if !located.is_empty() {
            store.index.drop_located(&located)?;
        }
        from = next;
    }
    Ok(())
}

/// Makes these ids wanted.
fn want(store: &Store, ids: &[RawId]) -> Result<()> {
    for ids in ids.chunks(WANTED_AT_ONCE) {
        store.index.write(|edit| edit.want(ids))?;
    }
    Ok(())
}

/// The records of a pack that were found good.
pub(super) fn good_entries(
    store: &Store,
    id: PackId,
    health: &PackHealth,
) -> Result<Vec<PackEntry>> {
    match read_table(&*store.storage, id, &store.keys) {
        Ok(mut pack) => {
            pack.entries
                .retain(|entry| health.holds_at(entry.offset, entry.len));
            Ok(pack.entries)
        }
        Err(error) if error.is_damage() => Ok(records_of(store, id)?.entries),
        Err(error) => Err(error),
    }
}

/// The records of a pack, good or not, as far as they can be told; and whether the medium could be read.
fn entries_of(store: &Store, id: PackId) -> Result<(Vec<PackEntry>, bool)> {
    match read_table(&*store.storage, id, &store.keys) {
        Ok(pack) => return Ok((pack.entries, true)),
        Err(Error::Io { .. }) => return Ok((Vec::new(), false)),
        Err(error) if error.is_damage() => {}
        Err(error) => return Err(error),
    }
    let Records { entries, readable } = records_of(store, id)?;
    Ok((entries, readable))
}

/// Why a record was not copied.
enum Unread {
    /// It is damaged, or the medium is.
    Bad(Error),
    /// Something else went wrong: the repair ends.
    Failed(Error),
}

/// Copies records as they are sealed, each verified, into new packs of their kind.
struct Copier<'a> {
    store: &'a Store,
    lease: LeaseId,
    /// The pack of each kind that is being filled, and where each of its records came from.
    open: HashMap<PackKind, (PackWriter, Vec<PackId>)>,
    records: u64,
}

impl Copier<'_> {
    /// Copies the good ones of the records that the index finds in this pack; the others become wanted,
    /// whatever was found of them before. Answers whether all of the pack could be read.
    fn copy_from(&mut self, pack: PackId) -> Result<bool> {
        let (entries, mut readable) = entries_of(self.store, pack)?;
        let ids: Vec<RawId> = entries.iter().map(|entry| entry.id).collect();
        let places = self.store.index.locate(&ids)?;
        let mut bad = Vec::new();
        for (entry, place) in entries.iter().zip(places) {
            let is_here = place.is_some_and(|at| (at.pack, at.offset) == (pack, entry.offset));
            if is_here {
                match self.copy(pack, entry) {
                    Ok(()) => {}
                    Err(Unread::Bad(error)) => {
                        readable &= !matches!(error, Error::Io { .. });
                        bad.push(entry.id);
                    }
                    Err(Unread::Failed(error)) => return Err(error),
                }
            }
        }
        want(self.store, &bad)?;
        Ok(readable)
    }

    fn copy(&mut self, from: PackId, entry: &PackEntry) -> Result<(), Unread> {
        let mut sealed = vec![0; entry.len as usize];
        let name = ObjectName::Pack(from);
        let read = self
            .store
            .storage
            .read_at(&name, entry.offset.into(), &mut sealed);
        let opened = read.and_then(|()| {
            record::open(&self.store.keys, entry.kind, entry.id, &sealed)
                .map_err(|damage| damage.at(format!("record {}", entry.id)))
        });
        match opened {
            Err(error) if error.is_damage() => Err(Unread::Bad(error)),
            opened => opened
                .and_then(|_| self.append(from, entry, &sealed))
                .map_err(Unread::Failed),
        }
    }

    fn append(&mut self, from: PackId, entry: &PackEntry, sealed: &[u8]) -> Result<()> {
        let kind = PackKind::holding(entry.kind);
        let (writer, origins) = match self.open.entry(kind) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let id = PackId::from_bytes(self.store.env.random_bytes());
                let (storage, keys) = (&*self.store.storage, &self.store.keys);
                let writer = PackWriter::create(storage, id, kind, self.lease, keys)?;
                place.insert((writer, Vec::new()))
            }
        };
        writer.append(entry.kind, entry.id, sealed)?;
        origins.push(from);
        self.records += 1;
        if writer.bytes() >= self.store.pack_bytes_target
            && let Some((writer, origins)) = self.open.remove(&kind)
        {
            self.enter(writer.finish()?, &origins)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for (_, (writer, origins)) in std::mem::take(&mut self.open) {
            self.enter(writer.finish()?, &origins)?;
        }
        Ok(())
    }

    /// Makes the index find the copies.
    fn enter(&self, pack: FinishedPack, origins: &[PackId]) -> Result<()> {
        let moves: Vec<Move> = (0..)
            .zip(origins)
            .map(|(entry, from)| Move {
                from: *from,
                pack: 0,
                entry,
            })
            .collect();
        self.store.index.move_records(&[pack], &moves)
    }
}
