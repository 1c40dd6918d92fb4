//! Condemning packs, and deciding that condemned ones are dead.
//!
//! Both look at the roots once more, under the exclusive index lock, and change nothing while there
//! is one that is not marked. Marking it happens without the lock; then they look again.

use std::collections::HashSet;

use super::Prune;
use super::plan::PackUse;
use super::roots::{Listing, Unmarked};
use crate::index::{Edit, Fault};
use crate::{Error, PackId, Result};

/// How often roots are marked and looked at again. Each time others must have committed meanwhile.
const LOOKS_MAX: usize = 100;

/// How many packs are condemned, or decided upon, under one hold of the index lock. Each pack stands for
/// itself, so that a part of them is as good as all.
const PACKS_AT_ONCE: usize = 1024;

impl Prune<'_> {
    /// Condemns those of `packs` that no root reaches that was marked later. From then on nobody finds
    /// anything in them that he did not find before.
    pub fn condemn(&mut self, packs: &[PackId]) -> Result<()> {
        for packs in packs.chunks(PACKS_AT_ONCE) {
            let (epoch, doomed) = self.with_all_marked(|prune, edit, _| {
                let mut doomed = packs.to_vec();
                doomed.retain(|pack| !prune.reached.contains(pack));
                let epoch = edit.condemn(&doomed)?;
                Ok((epoch, doomed))
            })?;
            let doomed: HashSet<PackId> = doomed.into_iter().collect();
            for pack in self.packs.iter().filter(|pack| doomed.contains(&pack.id)) {
                let emptied = PackUse {
                    live_records: 0,
                    live_bytes: 0,
                    ..*pack
                };
                self.condemned.insert(pack.id, (epoch, emptied));
            }
        }
        Ok(())
    }

    /// Decides what of the condemned packs is dead, and removes it. Packs that a root reaches are revived;
    /// those that a running backup may rely on stay condemned: the next call, or the next prune, goes on
    /// there.
    pub fn settle(&mut self) -> Result<()> {
        loop {
            let condemned: Vec<PackId> = self.condemned.keys().copied().collect();
            for packs in condemned.chunks(PACKS_AT_ONCE) {
                self.settle_some(packs)?;
            }
            if self.condemned.is_empty() || !self.options.exact {
                return Ok(());
            }
            self.wait_for_writers()?;
        }
    }

    fn settle_some(&mut self, packs: &[PackId]) -> Result<()> {
        let (revived, dead) = self.with_all_marked(|prune, edit, listing| {
            let (revived, rest): (Vec<PackId>, Vec<PackId>) =
                packs.iter().partition(|pack| prune.is_needed(pack));
            edit.revive(&revived)?;
            let oldest = listing.oldest_writer();
            let dead = rest.into_iter().filter(|pack| {
                let (epoch, _) = prune.condemned[pack];
                oldest.is_none_or(|oldest| oldest >= epoch)
            });
            let dead: Vec<PackId> = dead.collect();
            edit.bury(&dead)?;
            Ok((revived, dead))
        })?;
        for pack in revived.iter().chain(&dead) {
            self.condemned.remove(pack);
        }
        self.remove(&dead)
    }

    /// Whether something in a condemned pack is needed.
    fn is_needed(&self, pack: &PackId) -> bool {
        self.condemned[pack].1.live_records > 0 || self.reached.contains(pack)
    }

    /// Runs `decide` under the exclusive index lock at a moment at which all roots are marked.
    fn with_all_marked<T>(
        &mut self,
        decide: impl Fn(&Self, &Edit, &Listing) -> Result<T, Fault>,
    ) -> Result<T> {
        for _ in 0..LOOKS_MAX {
            self.cancel.check()?;
            let looked = self.with_room(|| {
                self.store.index.write(|edit| {
                    let listing = Listing::take_exact(self.repo)?;
                    let unmarked = self.marked.missing(&listing);
                    if unmarked.is_empty() {
                        decide(self, edit, &listing).map(Look::Decided)
                    } else {
                        Ok(Look::Unmarked(unmarked))
                    }
                })
            })?;
            match looked {
                Look::Decided(decision) => return Ok(decision),
                Look::Unmarked(unmarked) => self.mark_more(&unmarked)?,
            }
        }
        Err(Error::Busy {
            what: "the repository".to_owned(),
            holder: "backups that end one after the other".to_owned(),
        })
    }
}

enum Look<T> {
    Decided(T),
    Unmarked(Unmarked),
}
