//! Removing dead packs: first the ids that point to them, then their files, then their rows.
//!
//! In this order a crash leaves a row whose pack is dead, and the next prune does the same once more. A
//! file without a row would be adopted, ids without a file would be found and not read.

use std::collections::{HashMap, HashSet};

use super::{Prune, PruneStage};
use crate::check::reason;
use crate::format::pack::read_table;
use crate::index::{PackNumber, PackState, View};
use crate::storage::ObjectName;
use crate::{Error, PackId, RawId, Result};

/// Ids gathered before they are dropped, 36 bytes each.
const IDS_AT_ONCE: usize = 256 << 10;

/// Packs whose rows are removed at once.
const ROWS_AT_ONCE: usize = 256;

impl Prune<'_> {
    /// Removes what an earlier prune had decided upon.
    pub(super) fn remove_dead(&mut self) -> Result<()> {
        let rows = self.store.index.read(View::numbered_packs)?;
        let mut dead = Vec::new();
        for (number, row) in rows {
            if row.state == PackState::Dead {
                self.numbers.insert(row.id, number);
                dead.push(row.id);
            }
        }
        self.remove(&dead)
    }

    /// Removes packs that are dead by now.
    pub(super) fn remove(&mut self, dead: &[PackId]) -> Result<()> {
        if dead.is_empty() {
            return Ok(());
        }
        self.progress.begin(PruneStage::Removing, dead.len() as u64);
        for packs in dead.chunks(ROWS_AT_ONCE) {
            self.drop_ids(packs)?;
            let mut removed = Vec::with_capacity(packs.len());
            for pack in packs {
                self.cancel.check()?;
                match self.delete(*pack) {
                    Ok(bytes) => {
                        removed.push(*pack);
                        self.report.packs_removed += 1;
                        self.report.bytes_removed += bytes;
                    }
                    // Something else than a file may have its name: it stays, and stays dead.
                    Err(error) if error.is_damage() && !error.is_no_space() => {
                        let why = format!("the pack {pack} cannot be deleted: {}", reason(&error));
                        self.report.damage.push(why);
                    }
                    Err(error) => return Err(error),
                }
                self.progress.done();
            }
            self.with_room(|| self.store.index.write(|edit| edit.remove_packs(&removed)))?;
        }
        Ok(())
    }

    /// Deletes the file of a pack; its bytes.
    fn delete(&self, pack: PackId) -> Result<u64> {
        let name = ObjectName::Pack(pack);
        let bytes = self.store.storage.len(&name)?.unwrap_or(0);
        self.store.storage.delete(&name)?;
        Ok(bytes)
    }

    fn drop_ids(&self, packs: &[PackId]) -> Result<()> {
        let mut located: Vec<(RawId, PackNumber)> = Vec::new();
        let mut unreadable: HashSet<PackNumber> = HashSet::new();
        let numbers: HashMap<PackId, PackNumber> = packs
            .iter()
            .filter_map(|pack| Some((*pack, *self.numbers.get(pack)?)))
            .collect();
        for (pack, number) in numbers {
            self.cancel.check()?;
            match read_table(&*self.store.storage, pack, &self.store.keys) {
                Ok(pack) => located.extend(pack.entries.iter().map(|entry| (entry.id, number))),
                Err(Error::Corrupt { .. } | Error::Missing { .. } | Error::Io { .. }) => {
                    unreadable.insert(number);
                }
                Err(error) => return Err(error),
            }
            if located.len() >= IDS_AT_ONCE {
                self.drop_located(&mut located)?;
            }
        }
        if !unreadable.is_empty() {
            let mut found = Vec::new();
            self.store.index.scan(0..=u64::MAX, self.cancel, |entry| {
                if unreadable.contains(&entry.pack) {
                    found.push((entry.id, entry.pack));
                }
            })?;
            located.append(&mut found);
        }
        self.drop_located(&mut located)
    }

    fn drop_located(&self, located: &mut Vec<(RawId, PackNumber)>) -> Result<()> {
        located.sort_unstable();
        self.with_room(|| self.store.index.drop_located(located))?;
        located.clear();
        Ok(())
    }
}
