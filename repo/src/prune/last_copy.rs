//! The last good copy of what is needed stays, whatever the index says.
//!
//! A pack looks unused where the index finds nothing needed in it. But what the pack's own table names and
//! the index finds elsewhere may be needed, too: two backups stored it at once, damage was healed, prune
//! was killed after copying; or the index is wrong. So the other copy is read before this one goes. Whether
//! there is such a thing at all is seen by comparing the table with what was counted.

use std::collections::HashSet;

use rayon::prelude::*;

use super::Prune;
use super::plan::PackUse;
use crate::check::packs::{Records, records_of};
use crate::check::reason;
use crate::format::pack::{PackEntry, read_table};
use crate::index::Location;
use crate::{Error, PackId, RawId, Result};

/// Packs whose tables are read at once.
const PACKS_AT_ONCE: usize = 64;

impl Prune<'_> {
    /// Takes the packs out of the plan to remove that hold the last good copy of something, and tells of
    /// them. Those that were condemned earlier, too: what was copied or found elsewhere then may have
    /// been damaged since.
    pub(super) fn spare_last_copies(&mut self) -> Result<()> {
        let condemned = self.condemned.values().map(|(_, pack)| *pack);
        let emptied = condemned.filter(|pack| pack.live_records == 0);
        let to_go: Vec<PackUse> = self.plan.unused.iter().copied().chain(emptied).collect();
        let mut spared = HashSet::new();
        for packs in to_go.chunks(PACKS_AT_ONCE) {
            self.cancel.check()?;
            let doubts = packs.par_iter().map(|pack| self.last_copy_in(pack));
            for (pack, doubt) in packs.iter().zip(doubts.collect::<Result<Vec<_>>>()?) {
                if let Some(why) = doubt {
                    spared.insert(pack.id);
                    self.report.bytes_unused += pack.bytes;
                    let why = format!("the pack {} is kept: {why}", pack.id);
                    self.report.damage.push(why);
                }
            }
        }
        self.plan.unused.retain(|pack| !spared.contains(&pack.id));
        self.condemned.retain(|pack, _| !spared.contains(pack));
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
        let ids: Vec<RawId> = entries.iter().map(|entry| entry.id).collect();
        let places = self.store.index.locate(&ids)?;
        self.doubt(pack.id, &entries, &places)
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

    /// Why one of these records must not go with its pack, if one must not, where the index finds them at
    /// these places. Of what is nowhere, points need nothing but what is wanted: that would have ended
    /// the prune.
    pub(super) fn doubt(
        &self,
        pack: PackId,
        entries: &[PackEntry],
        places: &[Option<Location>],
    ) -> Result<Option<String>> {
        let placed = entries.iter().zip(places);
        let nowhere = placed.filter(|(_, at)| at.is_none());
        let nowhere: Vec<RawId> = nowhere.map(|(entry, _)| entry.id).collect();
        let wanted = self.store.index.read(|view| view.are_wanted(&nowhere))?;
        let wanted = nowhere.into_iter().zip(wanted);
        let wanted: HashSet<RawId> = wanted.filter_map(|(id, is)| is.then_some(id)).collect();
        let placed = entries.par_iter().zip(places);
        Ok(placed.find_map_any(|(entry, at)| {
            let (kind, id) = (entry.kind.name(), entry.id);
            match *at {
                Some(at) if at.pack == pack => None,
                Some(at) => {
                    let why = reason(&self.store.verify_at(id, at).err()?);
                    Some(format!(
                        "it holds {kind} {id}, and where the index finds that: {why}"
                    ))
                }
                None if wanted.contains(&id) && !self.is_corrupt(pack, entry) => {
                    Some(format!("it holds {kind} {id}, which is missed elsewhere"))
                }
                None => None,
            }
        }))
    }

    /// Whether a record is known to be of no use to anybody.
    fn is_corrupt(&self, pack: PackId, entry: &PackEntry) -> bool {
        let PackEntry { offset, len, .. } = *entry;
        let at = Location { pack, offset, len };
        let verified = self.store.verify_at(entry.id, at);
        matches!(verified, Err(Error::Corrupt { .. }))
    }
}
