//! Changing the index: one transaction under the exclusive lock.

use std::collections::HashMap;

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};

use super::fault::Fault;
use super::row_of;
use super::tables::*;
use super::view::{Location, decode};
use crate::format::pack::FinishedPack;
use crate::{PackId, PointId, RawId, RepoId};

/// One id and its place.
pub(super) struct Entry {
    pub(super) id: RawId,
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// An id that was met in a second place, and keeps the first one.
#[derive(Clone, Copy, Debug)]
pub struct Rival {
    /// The id.
    pub id: RawId,
    /// The place it keeps.
    pub kept: Location,
    /// The other one.
    pub other: Location,
}

/// A transaction that may change things. Nothing counts until it is committed.
pub struct Edit {
    pub(super) transaction: WriteTransaction,
}

impl Edit {
    pub(super) fn new(transaction: WriteTransaction) -> Self {
        Self { transaction }
    }

    pub(super) fn commit(self) -> Result<(), Fault> {
        Ok(self.transaction.commit()?)
    }

    /// Makes all tables of a new index.
    pub(super) fn lay_out(&self, repo: RepoId, owner: u64) -> Result<(), Fault> {
        self.transaction.open_table(IDS)?;
        self.transaction.open_table(PACKS)?;
        self.transaction.open_table(PACK_NUMBERS)?;
        self.transaction.open_table(POINTS)?;
        self.transaction.open_table(WANTED)?;
        self.transaction.open_table(UNFINISHED)?;
        let mut numbers = self.transaction.open_table(NUMBERS)?;
        numbers.insert(N_SCHEMA, SCHEMA)?;
        numbers.insert(N_EPOCH, 1)?;
        numbers.insert(N_NEXT_PACK, 1)?;
        numbers.insert(N_OWNER, owner)?;
        for (name, half) in N_REPO.into_iter().zip(halves(repo.as_bytes())) {
            numbers.insert(name, half)?;
        }
        Ok(())
    }

    /// The row and number of a pack; adds it in state [`PackState::Entering`] when it is new.
    pub(super) fn enter_pack(&self, row: PackRow) -> Result<u32, Fault> {
        let mut pack_numbers = self.transaction.open_table(PACK_NUMBERS)?;
        if let Some(number) = pack_numbers.get(row.id.as_bytes())? {
            return Ok(number.value());
        }
        let mut numbers = self.transaction.open_table(NUMBERS)?;
        let next = numbers
            .get(N_NEXT_PACK)?
            .ok_or(Fault::Damaged("a number is missing"))?
            .value();
        let number =
            u32::try_from(next).map_err(|_| Fault::Damaged("the pack numbers are used up"))?;
        numbers.insert(N_NEXT_PACK, next + 1)?;
        pack_numbers.insert(row.id.as_bytes(), number)?;
        let entering = PackRow {
            state: PackState::Entering,
            ..row
        };
        let mut packs = self.transaction.open_table(PACKS)?;
        packs.insert(number, entering.encode().as_slice())?;
        Ok(number)
    }

    /// All entries of these packs are in: packs that were entering are live now.
    pub(super) fn packs_entered(&self, numbers: &[u32]) -> Result<(), Fault> {
        let mut packs = self.transaction.open_table(PACKS)?;
        for number in numbers {
            let row = packs.get(number)?.map(|row| decode(row.value()));
            let Some(row) = row.transpose()? else {
                continue;
            };
            if row.state == PackState::Entering {
                let live = PackRow {
                    state: PackState::Live,
                    ..row
                };
                packs.insert(number, live.encode().as_slice())?;
            }
        }
        Ok(())
    }

    /// Adds a few packs and their entries at once, as [`Index::add_packs`](super::Index::add_packs)
    /// does it with many. Answers with what is found elsewhere.
    pub fn add_packs(&self, packs: &[FinishedPack]) -> Result<Vec<Rival>, Fault> {
        let mut rivals = Vec::new();
        for pack in packs {
            let number = self.enter_pack(row_of(pack))?;
            let entries = pack.entries.iter().map(|entry| Entry {
                id: entry.id,
                pack: number,
                offset: entry.offset,
                len: entry.len,
            });
            rivals.append(&mut self.add_entries(entries)?);
            self.packs_entered(&[number])?;
        }
        Ok(rivals)
    }

    /// Adds entries, which should be sorted by id.
    ///
    /// An id that is there keeps its place, so that adding is idempotent and readers keep finding
    /// what they found, except where that place cannot be relied on: its pack is condemned, dead or gone,
    /// or the id is wanted. The id is wanted no more when it now lives elsewhere than where it was found damaged.
    /// Answers with the entries whose ids keep another place.
    pub(super) fn add_entries(
        &self,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<Vec<Rival>, Fault> {
        let mut rivals = Vec::new();
        let mut ids = self.transaction.open_table(IDS)?;
        let packs = self.transaction.open_table(PACKS)?;
        let mut wanted = self.transaction.open_table(WANTED)?;
        let any_wanted = !wanted.is_empty()?;
        let mut relied_on: HashMap<u32, bool> = HashMap::new();
        for entry in entries {
            let id = entry.id.as_bytes();
            let place = ids.get(id)?.map(|place| place.value());
            let is_wanted = any_wanted && wanted.get(id)?.is_some();
            if let Some((number, offset, len)) = place {
                let reliable = match relied_on.get(&number) {
                    Some(reliable) => *reliable,
                    None => {
                        let row = packs.get(number)?.map(|row| decode(row.value()));
                        let reliable = row.transpose()?.is_some_and(|row| row.state.is_relied_on());
                        relied_on.insert(number, reliable);
                        reliable
                    }
                };
                if number == entry.pack || (reliable && !is_wanted) {
                    if (number, offset) != (entry.pack, entry.offset) {
                        let location = |number: u32, offset, len| {
                            let row = packs.get(number)?.map(|row| decode(row.value()));
                            let row = row.transpose()?;
                            Ok::<_, Fault>(row.map(|PackRow { id: pack, .. }| Location {
                                pack,
                                offset,
                                len,
                            }))
                        };
                        let kept = location(number, offset, len)?;
                        let other = location(entry.pack, entry.offset, entry.len)?;
                        let id = entry.id;
                        let rival = kept.zip(other);
                        rivals.extend(rival.map(|(kept, other)| Rival { id, kept, other }));
                    }
                    continue;
                }
            }
            ids.insert(id, (entry.pack, entry.offset, entry.len))?;
            if is_wanted {
                wanted.remove(id)?;
            }
        }
        Ok(rivals)
    }

    /// Caches a point record.
    pub fn put_point(&self, id: PointId, record: &[u8]) -> Result<(), Fault> {
        let mut points = self.transaction.open_table(POINTS)?;
        points.insert(id.as_bytes(), record)?;
        Ok(())
    }

    /// Forgets a cached point record; whether there was one.
    pub fn remove_point(&self, id: PointId) -> Result<bool, Fault> {
        let mut points = self.transaction.open_table(POINTS)?;
        Ok(points.remove(id.as_bytes())?.is_some())
    }

    /// Marks ids as damaged: they must be stored anew.
    pub fn want(&self, ids: &[RawId]) -> Result<(), Fault> {
        let mut wanted = self.transaction.open_table(WANTED)?;
        for id in ids {
            wanted.insert(id.as_bytes(), ())?;
        }
        Ok(())
    }

    /// Makes these ids wanted no more.
    pub fn want_no_more(&self, ids: &[RawId]) -> Result<(), Fault> {
        let mut wanted = self.transaction.open_table(WANTED)?;
        for id in ids {
            wanted.remove(id.as_bytes())?;
        }
        Ok(())
    }

    /// Remembers up to which pack a check of a share of the packs has read.
    pub fn set_checked_until(&self, pack: PackId) -> Result<(), Fault> {
        let mut numbers = self.transaction.open_table(NUMBERS)?;
        for (name, half) in N_CHECKED.into_iter().zip(halves(pack.as_bytes())) {
            numbers.insert(name, half)?;
        }
        Ok(())
    }

    /// Makes the epoch at least `epoch`.
    pub fn raise_epoch(&self, epoch: u64) -> Result<(), Fault> {
        let mut numbers = self.transaction.open_table(NUMBERS)?;
        let now = numbers.get(N_EPOCH)?.map_or(0, |now| now.value());
        numbers.insert(N_EPOCH, now.max(epoch))?;
        Ok(())
    }

    /// Condemns packs under a new epoch, which is returned. Packs that are not in the index, or not
    /// live, stay as they are.
    pub fn condemn(&self, ids: &[PackId]) -> Result<u64, Fault> {
        let epoch = {
            let mut numbers = self.transaction.open_table(NUMBERS)?;
            let epoch = numbers
                .get(N_EPOCH)?
                .ok_or(Fault::Damaged("a number is missing"))?
                .value()
                + 1;
            numbers.insert(N_EPOCH, epoch)?;
            epoch
        };
        for id in ids {
            self.change_state(*id, |state| match state {
                PackState::Live => PackState::Condemned(epoch),
                other => other,
            })?;
        }
        Ok(epoch)
    }

    /// Makes condemned packs live again.
    pub fn revive(&self, ids: &[PackId]) -> Result<(), Fault> {
        for id in ids {
            self.change_state(*id, |state| match state {
                PackState::Condemned(_) => PackState::Live,
                other => other,
            })?;
        }
        Ok(())
    }

    pub(super) fn change_state(
        &self,
        id: PackId,
        change: impl FnOnce(PackState) -> PackState,
    ) -> Result<(), Fault> {
        let pack_numbers = self.transaction.open_table(PACK_NUMBERS)?;
        let Some(number) = pack_numbers.get(id.as_bytes())?.map(|n| n.value()) else {
            return Ok(());
        };
        let mut packs = self.transaction.open_table(PACKS)?;
        let row = packs.get(number)?.map(|row| decode(row.value()));
        if let Some(mut row) = row.transpose()? {
            row.state = change(row.state);
            packs.insert(number, row.encode().as_slice())?;
        }
        Ok(())
    }
}

/// An id as two numbers.
pub(super) fn halves(id: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_be_bytes(*id);
    [(whole >> 64) as u64, whole as u64]
}
