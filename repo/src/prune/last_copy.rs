//! The last good copy of what is needed stays, whatever the index says.
//!
//! A pack looks unused where the index finds nothing needed in it. But what the pack's own table names and
//! the index finds elsewhere may be needed, too: two backups stored it at once, damage was healed, prune
//! was killed after copying; or the index is wrong. So the other copy is read before this one goes. Whether
//! there is such a thing at all is seen by comparing the table with what was counted.

use rayon::prelude::*;

use super::Prune;
use super::plan::PackUse;
use crate::check::packs::{Records, records_of};
use crate::check::reason;
use crate::format::pack::{PackEntry, read_table};
use crate::index::Location;
use crate::{Error, PackId, Result};

/// Packs whose tables are read at once.
const PACKS_AT_ONCE: usize = 64;

impl Prune<'_> {
    /// Takes the packs out of the plan to remove that hold the last good copy of something, and tells of
    /// them.
    pub(super) fn spare_last_copies(&mut self) -> Result<()> {
        let unused = std::mem::take(&mut self.plan.unused);
        for packs in unused.chunks(PACKS_AT_ONCE) {
            self.cancel.check()?;
            let doubts = packs.par_iter().map(|pack| self.last_copy_in(pack));
            for (pack, doubt) in packs.iter().zip(doubts.collect::<Result<Vec<_>>>()?) {
                match doubt {
                    None => self.plan.unused.push(*pack),
                    Some(why) => {
                        self.report.bytes_unused += pack.bytes;
                        let why = format!("the pack {} is kept: {why}", pack.id);
                        self.report.damage.push(why);
                    }
                }
            }
        }
        Ok(())
    }

    /// Why a pack has to stay in which the index finds nothing needed, if it has to.
    fn last_copy_in(&self, pack: &PackUse) -> Result<Option<String>> {
        let entries = match self.records_in(pack.id)? {
            Ok(entries) => entries,
            Err(why) => return Ok(Some(why)),
        };
        if self.usages[&pack.id].is_of(&entries) {
            return Ok(None);
        }
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let located = entries.par_iter().zip(self.store.index.locate(&ids)?);
        Ok(located.find_map_any(|(entry, at)| self.doubt(pack.id, entry, at)))
    }

    /// The records of a pack by its table or, if need be, without; or why they are not known.
    fn records_in(&self, id: PackId) -> Result<Result<Vec<PackEntry>, String>> {
        match read_table(&*self.store.storage, id, &self.store.keys) {
            Ok(pack) => Ok(Ok(pack.entries)),
            // Nothing that could be lost.
            Err(Error::Missing { .. }) => Ok(Ok(Vec::new())),
            Err(error @ Error::Io { .. }) => Ok(Err(reason(&error))),
            Err(error @ Error::Corrupt { .. }) => {
                let Records { entries, readable } = records_of(self.store, id)?;
                Ok(readable.then_some(entries).ok_or_else(|| reason(&error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Why a record must not go with its pack, if it must not, where the index finds it at this place.
    /// Of what is nowhere points need nothing: that would have ended the prune.
    pub(super) fn doubt(
        &self,
        pack: PackId,
        entry: &PackEntry,
        at: Option<Location>,
    ) -> Option<String> {
        let elsewhere = at.filter(|at| at.pack != pack)?;
        let error = self.store.verify_at(entry.id, elsewhere).err()?;
        let (kind, id, why) = (entry.kind.name(), entry.id, reason(&error));
        Some(format!(
            "it holds {kind} {id}, and where the index finds that: {why}"
        ))
    }
}
