//! Reading the index: one consistent moment of it, under the shared lock.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::fault::Fault;
use super::tables::*;
use crate::format::geometry::CHUNK_BYTES_MAX;
use crate::format::pack::PACK_BYTES_MAX;
use crate::format::record::HEADER_BYTES_MAX;
use crate::{PackId, PackKind, PointId, RawId};

/// No record of any repository is longer: a place that says so is damage, found before anything is
/// allocated for it. Blobs are shorter than the largest chunks.
const RECORD_BYTES_MAX: u64 = HEADER_BYTES_MAX as u64 + CHUNK_BYTES_MAX as u64;

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// In which pack.
    pub pack: PackId,
    /// Where the record starts, in bytes from the start of the pack.
    pub offset: u32,
    /// Length of the whole record in bytes.
    pub len: u32,
}

/// An entry, as a scan finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Indexed {
    /// The id.
    pub id: RawId,
    /// In which pack it is.
    pub pack: PackNumber,
    /// Where the record starts, in bytes from the start of the pack.
    pub offset: u32,
    /// Length of the whole record in bytes.
    pub len: u32,
}

/// What the index holds, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndexStats {
    /// Ids of all kinds.
    pub entries: u64,
    /// Packs, condemned ones included.
    pub packs: u64,
    /// Sum of their sizes.
    pub pack_bytes: u64,
    /// Records in data packs: chunks. Counts a chunk twice that two commands stored at once.
    pub data_records: u64,
    /// Records in meta packs: nodes, roots and blobs.
    pub meta_records: u64,
    /// Ids waiting to be stored anew.
    pub wanted: u64,
    /// Size of the index file.
    pub file_bytes: u64,
}

/// One moment of the index.
pub struct View {
    pub(super) transaction: ReadTransaction,
    rows: RefCell<HashMap<u32, PackRow>>,
}

impl View {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self {
            transaction,
            rows: RefCell::default(),
        }
    }

    /// The epoch: rises each time packs are condemned.
    pub fn epoch(&self) -> Result<u64, Fault> {
        self.number(N_EPOCH)
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, Fault> {
        let numbers = self.transaction.open_table(NUMBERS)?;
        let value = numbers.get(name)?;
        value
            .map(|value| value.value())
            .ok_or(Fault::Damaged("a number is missing"))
    }

    /// Where each id is; also finds what lies in condemned and dead packs.
    pub fn locate(&self, ids: &[RawId]) -> Result<Vec<Option<Location>>, Fault> {
        let table = self.transaction.open_table(IDS)?;
        let packs = self.transaction.open_table(PACKS)?;
        ids.iter()
            .map(|id| {
                let Some(entry) = table.get(id.as_bytes())? else {
                    return Ok(None);
                };
                let (number, offset, len) = entry.value();
                let end = u64::from(offset) + u64::from(len);
                if end > PACK_BYTES_MAX || u64::from(len) > RECORD_BYTES_MAX {
                    return Err(Fault::Damaged("a record's place is in no pack"));
                }
                let pack = self.row(&packs, number)?;
                Ok(pack.map(|pack| Location {
                    pack: pack.id,
                    offset,
                    len,
                }))
            })
            .collect()
    }

    /// Whether each id may be relied on: located, in a pack that is neither condemned nor dead, and
    /// not wanted.
    pub fn known(&self, ids: &[RawId]) -> Result<Vec<bool>, Fault> {
        let table = self.transaction.open_table(IDS)?;
        let packs = self.transaction.open_table(PACKS)?;
        let wanted = self.transaction.open_table(WANTED)?;
        let any_wanted = !wanted.is_empty()?;
        ids.iter()
            .map(|id| {
                let Some(entry) = table.get(id.as_bytes())? else {
                    return Ok(false);
                };
                let (number, ..) = entry.value();
                let relied_on = self
                    .row(&packs, number)?
                    .is_some_and(|pack| pack.state.is_relied_on());
                Ok(relied_on && !(any_wanted && wanted.get(id.as_bytes())?.is_some()))
            })
            .collect()
    }

    /// Whether each id is there to stay for whoever holds a lease on it: located, in a pack that is
    /// not dead.
    pub fn standing(&self, ids: &[RawId]) -> Result<Vec<bool>, Fault> {
        let table = self.transaction.open_table(IDS)?;
        let packs = self.transaction.open_table(PACKS)?;
        ids.iter()
            .map(|id| {
                let Some(entry) = table.get(id.as_bytes())? else {
                    return Ok(false);
                };
                let pack = self.row(&packs, entry.value().0)?;
                Ok(pack.is_some_and(|pack| pack.state != PackState::Dead))
            })
            .collect()
    }

    /// The entries from `from` on, in the order of their ids, at most `count`.
    pub fn scan(&self, from: RawId, count: usize) -> Result<Vec<Indexed>, Fault> {
        let table = self.transaction.open_table(IDS)?;
        let mut found = Vec::with_capacity(count);
        for entry in table.range(*from.as_bytes()..)?.take(count) {
            let (id, place) = entry?;
            let (pack, offset, len) = place.value();
            found.push(Indexed {
                id: RawId::from_bytes(id.value()),
                pack: PackNumber(pack),
                offset,
                len,
            });
        }
        Ok(found)
    }

    /// Every pack with its number.
    pub fn numbered_packs(&self) -> Result<Vec<(PackNumber, PackRow)>, Fault> {
        let packs = self.transaction.open_table(PACKS)?;
        let mut rows = Vec::new();
        for row in packs.iter()? {
            let (number, row) = row?;
            rows.push((PackNumber(number.value()), decode(row.value())?));
        }
        Ok(rows)
    }

    /// Every pack.
    pub fn packs(&self) -> Result<Vec<PackRow>, Fault> {
        let packs = self.transaction.open_table(PACKS)?;
        let mut rows = Vec::new();
        for row in packs.iter()? {
            rows.push(decode(row?.1.value())?);
        }
        Ok(rows)
    }

    /// What is known of one pack.
    pub fn pack(&self, id: PackId) -> Result<Option<PackRow>, Fault> {
        let numbers = self.transaction.open_table(PACK_NUMBERS)?;
        let packs = self.transaction.open_table(PACKS)?;
        match numbers.get(id.as_bytes())? {
            Some(number) => self.row(&packs, number.value()),
            None => Ok(None),
        }
    }

    /// The cached records of these points; none for one without a row.
    pub fn point_records(&self, ids: &[PointId]) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let points = self.transaction.open_table(POINTS)?;
        ids.iter()
            .map(|id| {
                let record = points.get(id.as_bytes())?;
                Ok(record.map(|record| record.value().to_vec()))
            })
            .collect()
    }

    /// The cached point records, by id.
    pub fn points(&self) -> Result<Vec<(PointId, Vec<u8>)>, Fault> {
        let points = self.transaction.open_table(POINTS)?;
        let mut all = Vec::new();
        for point in points.iter()? {
            let (id, record) = point?;
            all.push((PointId::from_bytes(id.value()), record.value().to_vec()));
        }
        Ok(all)
    }

    /// How many ids there are.
    pub fn entries(&self) -> Result<u64, Fault> {
        Ok(self.transaction.open_table(IDS)?.len()?)
    }

    /// What changes whenever somebody adds or removes something: packs condemned, packs entered, ids.
    pub fn changes(&self) -> Result<[u64; 3], Fault> {
        Ok([
            self.number(N_EPOCH)?,
            self.number(N_NEXT_PACK)?,
            self.entries()?,
        ])
    }

    /// The pack up to which the last check of a share of the packs has read.
    pub fn checked_until(&self) -> Result<Option<PackId>, Fault> {
        let numbers = self.transaction.open_table(NUMBERS)?;
        let half = |name| Ok::<_, Fault>(numbers.get(name)?.map(|half| half.value()));
        let (high, low) = (half(N_CHECKED[0])?, half(N_CHECKED[1])?);
        Ok(high.zip(low).map(|(high, low)| {
            let whole = u128::from(high) << 64 | u128::from(low);
            PackId::from_bytes(whole.to_be_bytes())
        }))
    }

    /// How many ids are wanted.
    pub fn wanted_count(&self) -> Result<u64, Fault> {
        Ok(self.transaction.open_table(WANTED)?.len()?)
    }

    /// The first `count` wanted ids.
    pub fn wanted(&self, count: usize) -> Result<HashSet<RawId>, Fault> {
        let wanted = self.transaction.open_table(WANTED)?;
        let mut ids = HashSet::new();
        for id in wanted.iter()?.take(count) {
            ids.insert(RawId::from_bytes(id?.0.value()));
        }
        Ok(ids)
    }

    /// Whether each id is wanted.
    pub fn are_wanted(&self, ids: &[RawId]) -> Result<Vec<bool>, Fault> {
        let wanted = self.transaction.open_table(WANTED)?;
        ids.iter()
            .map(|id| Ok(wanted.get(id.as_bytes())?.is_some()))
            .collect()
    }

    /// The index in numbers; the size of the file is left to the caller.
    pub(super) fn stats(&self) -> Result<IndexStats, Fault> {
        let mut stats = IndexStats {
            entries: self.entries()?,
            wanted: self.wanted_count()?,
            ..IndexStats::default()
        };
        for pack in self.packs()? {
            stats.packs += 1;
            stats.pack_bytes = stats.pack_bytes.saturating_add(pack.bytes);
            match pack.kind {
                PackKind::Data => stats.data_records += u64::from(pack.records),
                PackKind::Meta => stats.meta_records += u64::from(pack.records),
            }
        }
        Ok(stats)
    }

    /// A pack row, remembered: consecutive ids tend to live in few packs.
    fn row(
        &self,
        packs: &ReadOnlyTable<u32, &'static [u8]>,
        number: u32,
    ) -> Result<Option<PackRow>, Fault> {
        if let Some(row) = self.rows.borrow().get(&number) {
            return Ok(Some(*row));
        }
        let Some(bytes) = packs.get(number)? else {
            return Ok(None);
        };
        let row = decode(bytes.value())?;
        self.rows.borrow_mut().insert(number, row);
        Ok(Some(row))
    }
}

pub(super) fn decode(row: &[u8]) -> Result<PackRow, Fault> {
    PackRow::decode(row).ok_or(Fault::Damaged("a pack's row is not of the right form"))
}
