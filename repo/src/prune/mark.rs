//! Marking: what is needed, and how much of each pack.

use std::collections::HashSet;

use super::census::Census;
use super::plan::{PackUse, plan};
use super::roots::{Listing, Unmarked};
use super::{Prune, PruneStage, unprunable};
use crate::index::{PackNumber, PackRow, PackState, View};
use crate::reach::{Absence, LiveSet, Reach, Target};
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::{Error, LeaseId, PackId, RawId, Result};

/// Ids that are looked up at once, 32 bytes each.
const IDS_AT_ONCE: usize = 64 << 10;

impl Prune<'_> {
    /// Walks from all roots and counts what of each pack is needed. Without a lock: it may take long.
    pub fn mark(&mut self) -> Result<()> {
        self.progress.begin(PruneStage::Marking, 0);
        // In this order: see `mod` and `roots`. A point that is forgotten after this has its record left.
        self.forgotten = self.repo.forgotten_ids()?;
        let rows = self.store.index.read(View::numbered_packs)?;
        let listing = Listing::take(self.repo)?;
        if self.alone.is_some() {
            // A forgetting that was killed may be seen and not be durable yet: a point must not come back
            // from a power failure after its packs have gone.
            self.store.storage.settle(Folder::Points)?;
        }
        self.repo.check_no_record_lost()?;
        let young = self.young_unfinished()?;
        let unmarked = self.marked.missing(&listing);
        let walks = self.marked.take(self.repo, &unmarked).map_err(unprunable)?;
        let census = self.census(&walks)?;
        self.check_present(&rows, &census)?;
        self.sort_packs(rows, census, &listing.alive(), &young);
        self.spare_last_copies()
    }

    /// Leases that ended without a point not long ago. Rows that are older go.
    fn young_unfinished(&self) -> Result<HashSet<LeaseId>> {
        let now = self.store.env.clock.now().0;
        let keep = u64::try_from(self.options.keep_unfinished.as_millis()).unwrap_or(u64::MAX);
        let all = self.store.index.read(View::unfinished)?;
        let (young, old): (Vec<_>, Vec<_>) = all
            .into_iter()
            // A clock that was wrong then, or is now, shall not keep them for ever.
            .partition(|(_, noticed)| now.abs_diff(noticed.0) < keep);
        if !old.is_empty() && self.alone.is_some() {
            let old: Vec<LeaseId> = old.into_iter().map(|(lease, _)| lease).collect();
            self.with_room(|| self.store.index.write(|edit| edit.forget_unfinished(&old)))?;
        }
        Ok(young.into_iter().map(|(lease, _)| lease).collect())
    }

    /// Counts what is needed; an error when something is lost that points need.
    fn census(&mut self, walks: &[(Absence, Vec<Target>)]) -> Result<Census> {
        let census = self.count(walks)?;
        if census.lost == 0 {
            return Ok(census);
        }
        // Of what only leases rely on, something may be gone.
        let of_points = walks
            .iter()
            .filter(|(absence, _)| *absence == Absence::IsDamage);
        let of_points: Vec<_> = of_points.cloned().collect();
        match self.count(&of_points)?.lost {
            0 => Ok(census),
            lost => Err(Error::Unprunable {
                why: format!("{lost} records that points need are in no pack known to the index"),
            }),
        }
    }

    fn count(&mut self, walks: &[(Absence, Vec<Target>)]) -> Result<Census> {
        let wanted = self.wanted()?;
        let mut census = Census::default();
        let mut from = 0;
        loop {
            let mut live = LiveSet::new(from, self.options.live_ids_max);
            self.walker.start_anew();
            for (absence, targets) in walks {
                let walked = self.walker.walk(targets, *absence, &mut live);
                walked.map_err(unprunable)?;
            }
            live.settle();
            census.count(self.store, &live, &wanted, self.cancel)?;
            match live.rest() {
                Some(rest) => from = rest,
                None => return Ok(census),
            }
        }
    }

    /// The index may be wrong about where things are; then the packs that look unused may hold the only
    /// copies. Packs that hold what is needed must be there at least, those aside of which repair knows that
    /// they do not.
    fn check_present(&self, rows: &[(PackNumber, PackRow)], census: &Census) -> Result<()> {
        let relied_on = census.relied_on();
        let known: HashSet<PackNumber> = rows.iter().map(|(number, _)| *number).collect();
        if !relied_on.is_subset(&known) {
            // Others have stored something meanwhile; or the index points to packs that it does not know.
            let now = self.store.index.read(View::numbered_packs)?;
            let now: HashSet<PackNumber> = now.iter().map(|(number, _)| *number).collect();
            if !relied_on.is_subset(&now) {
                let why = "the index points to packs that it does not know".to_owned();
                return Err(Error::Unprunable { why });
            }
        }
        let counted_on = rows.iter().filter(|(number, _)| relied_on.contains(number));
        for (_, row) in counted_on {
            let found = self.store.storage.len(&ObjectName::Pack(row.id))?;
            if found != Some(row.bytes) && self.is_counted_on(row.id)? {
                let found = found.map_or("nothing".to_owned(), |bytes| format!("{bytes} bytes"));
                let (pack, bytes) = (row.id, row.bytes);
                let why =
                    format!("where the pack {pack} of {bytes} bytes should be, there is {found}");
                return Err(Error::Unprunable { why });
            }
        }
        Ok(())
    }

    /// Whether a pack is not being deleted now: a dry run has no lock that keeps another prune out.
    fn is_counted_on(&self, pack: PackId) -> Result<bool> {
        let row = self.store.index.read(|view| view.pack(pack))?;
        Ok(row.is_some_and(|row| row.state != PackState::Dead))
    }

    /// Sets candidates, condemned packs and the others apart, and makes the plan.
    fn sort_packs(
        &mut self,
        rows: Vec<(PackNumber, PackRow)>,
        mut census: Census,
        alive: &HashSet<LeaseId>,
        young: &HashSet<LeaseId>,
    ) {
        let mut other_bytes = 0;
        for (number, row) in rows {
            self.numbers.insert(row.id, number);
            let usage = census.packs.entry(number).or_default();
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
        let condemned = self.condemned.values().map(|(_, pack)| pack);
        let emptied = condemned.filter(|pack| pack.live_records == 0);
        let planned = self.plan.rewrite.iter().chain(&self.plan.unused);
        for pack in planned.chain(emptied) {
            let usage = census.packs.remove(&self.numbers[&pack.id]);
            self.usages.insert(pack.id, usage.unwrap_or_default());
        }
    }

    /// Marks roots that came after the others, and notes which packs they reach.
    pub(super) fn mark_more(&mut self, unmarked: &Unmarked) -> Result<()> {
        let walks = self.marked.take(self.repo, unmarked).map_err(unprunable)?;
        let mut reached = ReachedPacks::new(self.store);
        for (absence, targets) in walks {
            let walked = self.walker.walk(&targets, absence, &mut reached);
            walked.map_err(unprunable)?;
        }
        self.reached.extend(reached.finish()?);
        Ok(())
    }
}

/// The packs in which reached ids are.
struct ReachedPacks<'a> {
    store: &'a Store,
    packs: HashSet<PackId>,
    /// Ids that are not looked up yet.
    ids: Vec<RawId>,
}

impl<'a> ReachedPacks<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            packs: HashSet::new(),
            ids: Vec::new(),
        }
    }

    fn look_up(&mut self) -> Result<()> {
        // In order and each once: neighbours share pages of the index.
        self.ids.sort_unstable();
        self.ids.dedup();
        let places = self.store.index.locate(&self.ids)?;
        let packs = places.into_iter().flatten().map(|place| place.pack);
        self.packs.extend(packs);
        self.ids.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<HashSet<PackId>> {
        self.look_up()?;
        Ok(self.packs)
    }
}

impl Reach for ReachedPacks<'_> {
    fn reach(&mut self, ids: &[RawId]) -> Result<()> {
        self.ids.extend_from_slice(ids);
        if self.ids.len() >= IDS_AT_ONCE {
            self.look_up()?;
        }
        Ok(())
    }
}
