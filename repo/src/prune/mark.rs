//! Marking: what is needed, and how much of each pack.

use std::collections::HashSet;

use super::census::Census;
use super::live::{LiveSet, Reach};
use super::plan::{PackUse, plan};
use super::roots::{Listing, Unmarked};
use super::walk::Absence;
use super::{Prune, PruneStage, unprunable};
use crate::index::{PackNumber, PackRow, PackState, View};
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::{Error, LeaseId, PackId, RawId, Result};

impl Prune<'_> {
    /// Walks from all roots and counts what of each pack is needed. Without a lock: it may take long.
    pub fn mark(&mut self) -> Result<()> {
        self.progress.begin(PruneStage::Marking, 0);
        // In this order: see `mod` and `roots`. A point that is forgotten after this has its record left.
        self.forgotten = self.repo.forgotten_ids()?;
        let rows = self.store.index.read(View::numbered_packs)?;
        let listing = Listing::take(self.repo)?;
        if self._alone.is_some() {
            // A forgetting that was killed may be seen and not be durable yet: a point must not come back
            // from a power failure after its packs have gone.
            self.store.storage.settle(Folder::Points)?;
        }
        self.repo.check_no_record_lost()?;
        let young = self.young_unfinished()?;
        let unmarked = self.marked.missing(&listing);
        let walks = self.marked.take(self.repo, &unmarked).map_err(unprunable)?;
        self.targets.extend(walks);
        let census = self.census()?;
        self.check_present(&rows, &census)?;
        self.sort_packs(&rows, &census, &listing.alive(), &young);
        Ok(())
    }

    /// Leases that ended without a point not long ago. Rows that are older go.
    fn young_unfinished(&self) -> Result<HashSet<LeaseId>> {
        let now = self.store.env.clock.now().0;
        let keep = u64::try_from(self.options.keep_unfinished.as_millis()).unwrap_or(u64::MAX);
        let all = self.store.index.read(View::unfinished)?;
        let (young, old): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(_, noticed)| now.saturating_sub(noticed.0) < keep);
        if !old.is_empty() && self._alone.is_some() {
            let old: Vec<LeaseId> = old.into_iter().map(|(lease, _)| lease).collect();
            self.with_room(|| self.store.index.write(|edit| edit.forget_unfinished(&old)))?;
        }
        Ok(young.into_iter().map(|(lease, _)| lease).collect())
    }

    fn census(&mut self) -> Result<Census> {
        let wanted = self.wanted()?;
        let mut census = Census::default();
        let mut from = 0;
        loop {
            let mut live = LiveSet::new(from, self.options.live_ids_max);
            self.walk_all(&mut live)?;
            live.settle();
            census.count(self.store, &live, &wanted, self.cancel)?;
            let until = live.until();
            if live.is_whole() {
                self.live = Some(live);
            }
            match until.checked_add(1) {
                Some(next) => from = next,
                None => break,
            }
        }
        // Of what only leases rely on, something may be gone.
        let certain = self
            .targets
            .iter()
            .all(|(absence, targets)| *absence == Absence::IsDamage || targets.is_empty());
        if census.lost > 0 && certain {
            let lost = census.lost;
            let why = format!("{lost} records that points need are in no pack known to the index");
            return Err(Error::Unprunable { why });
        }
        Ok(census)
    }

    /// Walks all roots from the beginning.
    pub(super) fn walk_all(&mut self, reach: &mut dyn Reach) -> Result<()> {
        self.walker.start_anew();
        for (absence, targets) in &self.targets {
            self.walker
                .walk(targets, *absence, reach)
                .map_err(unprunable)?;
        }
        Ok(())
    }

    /// The index may be wrong about where things are; then the packs that look unused may hold the only
    /// copies. Packs that hold what is needed must be there at least.
    fn check_present(&self, rows: &[(PackNumber, PackRow)], census: &Census) -> Result<()> {
        let known: HashSet<PackNumber> = rows.iter().map(|(number, _)| *number).collect();
        if census.packs.keys().any(|number| !known.contains(number)) {
            // Others have stored something meanwhile; or the index points to packs that it does not know.
            let now = self.store.index.read(View::numbered_packs)?;
            let now: HashSet<PackNumber> = now.iter().map(|(number, _)| *number).collect();
            if census.packs.keys().any(|number| !now.contains(number)) {
                let why = "the index points to packs that it does not know".to_owned();
                return Err(Error::Unprunable { why });
            }
        }
        for (number, row) in rows {
            if !census.packs.contains_key(number) {
                continue;
            }
            let found = self.store.storage.len(&ObjectName::Pack(row.id))?;
            if found != Some(row.bytes)
                && self.store.index.read(|view| view.pack(row.id))?.is_some()
            {
                let found = found.map_or("nothing".to_owned(), |bytes| format!("{bytes} bytes"));
                let (pack, bytes) = (row.id, row.bytes);
                let why =
                    format!("where the pack {pack} of {bytes} bytes should be, there is {found}");
                return Err(Error::Unprunable { why });
            }
        }
        Ok(())
    }

    /// Sets candidates, condemned packs and the others apart, and makes the plan.
    fn sort_packs(
        &mut self,
        rows: &[(PackNumber, PackRow)],
        census: &Census,
        alive: &HashSet<LeaseId>,
        young: &HashSet<LeaseId>,
    ) {
        let mut other_bytes = 0;
        for (number, row) in rows {
            self.numbers.insert(row.id, *number);
            let usage = census.packs.get(number).copied().unwrap_or_default();
            let pack = PackUse {
                id: row.id,
                kind: row.kind,
                bytes: row.bytes,
                records: row.records,
                live_records: usage.records,
                live_bytes: usage.bytes,
            };
            match row.state {
                PackState::Dead => {}
                PackState::Condemned(epoch) => {
                    self.condemned.insert(row.id, (epoch, pack));
                    if pack.live_records > 0 {
                        self.packs.push(pack);
                    }
                }
                PackState::Live if young.contains(&row.lease) => {
                    self.report.bytes_unfinished += row.bytes;
                    other_bytes += row.bytes;
                }
                PackState::Live if !alive.contains(&row.lease) => self.packs.push(pack),
                PackState::Live | PackState::Entering => other_bytes += row.bytes,
            }
        }
        let target = self.store.pack_bytes_target;
        let unused_max = self.options.unused_max_percent;
        self.plan = plan(&self.packs, other_bytes, unused_max, target);
        self.report.bytes_unused = self.plan.left_bytes;
    }

    /// Marks roots that came after the others, and notes which packs they reach.
    pub(super) fn mark_more(&mut self, unmarked: &Unmarked) -> Result<()> {
        let walks = self.marked.take(self.repo, unmarked).map_err(unprunable)?;
        let mut reached = ReachedPacks {
            store: self.store,
            packs: HashSet::new(),
        };
        for (absence, targets) in walks {
            self.walker
                .walk(&targets, absence, &mut reached)
                .map_err(unprunable)?;
            self.targets.push((absence, targets));
        }
        self.reached.extend(reached.packs);
        Ok(())
    }
}

/// The packs in which reached ids are.
struct ReachedPacks<'a> {
    store: &'a Store,
    packs: HashSet<PackId>,
}

impl Reach for ReachedPacks<'_> {
    fn reach(&mut self, ids: &[RawId]) -> Result<()> {
        let places = self.store.index.locate(ids)?;
        let packs = places.into_iter().flatten().map(|place| place.pack);
        self.packs.extend(packs);
        Ok(())
    }
}
