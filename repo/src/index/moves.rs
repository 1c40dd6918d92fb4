//! What prune does to entries: pointing them from one pack to another, and dropping them.
//!
//! Both go by where an entry points *now*: one that was stored anew elsewhere meanwhile is left
//! alone. So every slice can be repeated after a crash.

use std::collections::HashMap;

use redb::ReadableTable;

use super::edit::{Edit, Rival};
use super::fault::Fault;
use super::tables::*;
use super::{Index, SLICE_LEAVES_MAX, View, row_of, slice_len};
use crate::format::pack::FinishedPack;
use crate::{LeaseId, PackId, RawId, Result, UnixMillis};

/// How many leaf pages one transaction that drops entries may touch: few, since it has to succeed on
/// a file system with hardly any room.
const DROP_LEAVES_MAX: usize = SLICE_LEAVES_MAX / 4;

/// A record that was copied: the pack it was copied from, and the position of the copy in the list of
/// new packs and among its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Where the original is.
    pub from: PackId,
    /// Which of the new packs holds the copy.
    pub pack: usize,
    /// Which of that pack's entries it is.
    pub entry: usize,
}

/// An id, the pack it is expected in, and its new place.
struct Moved {
    id: RawId,
    from: Option<PackNumber>,
    to: (u32, u32, u32),
}

impl Edit {
    /// Points entries to their new places, those that point where they are expected to. An id that
    /// was wanted is wanted no more: its copy was verified.
    fn repoint(&self, moved: &[Moved]) -> Result<(), Fault> {
        let mut ids = self.transaction.open_table(IDS)?;
        let mut wanted = self.transaction.open_table(WANTED)?;
        for moved in moved {
            let id = moved.id.as_bytes();
            let now = ids.get(id)?.map(|place| PackNumber(place.value().0));
            if now.is_some() && now == moved.from {
                ids.insert(id, moved.to)?;
                wanted.remove(id)?;
            }
        }
        Ok(())
    }

    /// Points ids from the place they kept to the other one, which is known to be good.
    pub fn prefer_others(&self, rivals: &[Rival]) -> Result<(), Fault> {
        let mut moved = Vec::with_capacity(rivals.len());
        for Rival { id, kept, other } in rivals {
            if let Some(number) = self.number_of(other.pack)? {
                moved.push(Moved {
                    id: *id,
                    from: self.number_of(kept.pack)?,
                    to: (number.0, other.offset, other.len),
                });
            }
        }
        self.repoint(&moved)
    }

    /// Drops the entries of `ids` that point to the pack named with each.
    fn drop_located(&self, located: &[(RawId, PackNumber)]) -> Result<(), Fault> {
        let mut ids = self.transaction.open_table(IDS)?;
        for (id, number) in located {
            let id = id.as_bytes();
            if ids
                .get(id)?
                .is_some_and(|place| place.value().0 == number.0)
            {
                ids.remove(id)?;
            }
        }
        Ok(())
    }

    /// The number of a pack; none when the index does not know it.
    fn number_of(&self, pack: PackId) -> Result<Option<PackNumber>, Fault> {
        let numbers = self.transaction.open_table(PACK_NUMBERS)?;
        let number = numbers.get(pack.as_bytes())?;
        Ok(number.map(|number| PackNumber(number.value())))
    }

    /// Removes the rows of packs that nothing points to any more and whose files are gone.
    pub fn remove_packs(&self, packs: &[PackId]) -> Result<(), Fault> {
        let mut numbers = self.transaction.open_table(PACK_NUMBERS)?;
        let mut rows = self.transaction.open_table(PACKS)?;
        for pack in packs {
            if let Some(number) = numbers.remove(pack.as_bytes())? {
                rows.remove(number.value())?;
            }
        }
        Ok(())
    }

    /// The decision: these packs, which are condemned, are dead. Others stay as they are.
    pub fn bury(&self, packs: &[PackId]) -> Result<(), Fault> {
        for pack in packs {
            self.change_state(*pack, |state| match state {
                PackState::Condemned(_) => PackState::Dead,
                other => other,
            })?;
        }
        Ok(())
    }

    /// Remembers that a lease ended without a point.
    pub fn note_unfinished(&self, lease: LeaseId, noticed: UnixMillis) -> Result<(), Fault> {
        let mut unfinished = self.transaction.open_table(UNFINISHED)?;
        if unfinished.get(lease.as_bytes())?.is_none() {
            unfinished.insert(lease.as_bytes(), noticed.0)?;
        }
        Ok(())
    }

    /// Forgets that these leases ended without a point: what they stored is kept no longer than
    /// anything else.
    pub fn forget_unfinished(&self, leases: &[LeaseId]) -> Result<(), Fault> {
        let mut unfinished = self.transaction.open_table(UNFINISHED)?;
        for lease in leases {
            unfinished.remove(lease.as_bytes())?;
        }
        Ok(())
    }
}

impl View {
    /// The leases that ended without a point, and when that was noticed.
    pub fn unfinished(&self) -> Result<Vec<(LeaseId, UnixMillis)>, Fault> {
        let table = self.transaction.open_table(UNFINISHED)?;
        let mut all = Vec::new();
        for row in table.iter()? {
            let (lease, noticed) = row?;
            all.push((
                LeaseId::from_bytes(lease.value()),
                UnixMillis(noticed.value()),
            ));
        }
        Ok(all)
    }
}

impl Index {
    /// Enters new packs, which must be durable, and points to them whatever was copied into them and
    /// is still found where it was copied from.
    ///
    /// In slices. Until the last one the new packs are entering: after a crash they are adopted like
    /// those of a backup. Both copies exist all the while.
    pub fn move_records(&self, packs: &[FinishedPack], moves: &[Move]) -> Result<()> {
        let mut moves: Vec<(RawId, Move)> = moves
            .iter()
            .map(|record| (packs[record.pack].entries[record.entry].id, *record))
            .collect();
        moves.sort_unstable_by_key(|(id, _)| *id);
        let present = self.read(View::entries)?;
        let mut numbers: Vec<u32> = Vec::new();
        let mut slices = moves.chunks(slice_len(moves.len(), present)).peekable();
        loop {
            let slice = slices.next().unwrap_or_default();
            let is_last = slices.peek().is_none();
            self.write(|edit| {
                if numbers.is_empty() {
                    for pack in packs {
                        numbers.push(edit.enter_pack(row_of(pack))?);
                    }
                }
                let mut located = Vec::with_capacity(slice.len());
                let mut sources: HashMap<PackId, Option<PackNumber>> = HashMap::new();
                for (id, record) in slice {
                    let from = match sources.get(&record.from) {
                        Some(number) => *number,
                        None => {
                            let number = edit.number_of(record.from)?;
                            sources.insert(record.from, number);
                            number
                        }
                    };
                    let entry = &packs[record.pack].entries[record.entry];
                    let to = (numbers[record.pack], entry.offset, entry.len);
                    located.push(Moved { id: *id, from, to });
                }
                edit.repoint(&located)?;
                if is_last {
                    edit.packs_entered(&numbers)?;
                }
                Ok(())
            })?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Drops, in slices, the entries of these ids, which should be sorted, that point to the pack named
    /// with each.
    pub fn drop_located(&self, located: &[(RawId, PackNumber)]) -> Result<()> {
        let present = self.read(View::entries)?;
        let len = slice_len(located.len(), present).min(DROP_LEAVES_MAX);
        for slice in located.chunks(len) {
            self.write(|edit| edit.drop_located(slice))?;
        }
        Ok(())
    }
}
