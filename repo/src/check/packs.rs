//! Looking at packs: their sizes and tables, on demand every byte, and whether the index has them.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::share::choose;
use super::tally::Tally;
use super::{CheckProgress, CheckReport, Health, ReadData};
use crate::format::inspect::inspect;
use crate::format::pack::{FinishedPack, PackEntry, read_table};
use crate::format::walk::{Found, walk};
use crate::index::{Location, PackRow, PackState, View};
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::sync::{into_inner, lock};
use crate::{Cancel, Error, MaintenanceLock, PackId, RawId, Repository, Result};

/// What is known of a pack.
#[derive(Debug)]
pub(crate) enum PackHealth {
    /// All of its first `bytes` bytes may be relied on, as far as was looked.
    Sound { bytes: u64 },
    /// Only the records at these offsets, in order, are good.
    Damaged { good: Box<[u32]> },
}

impl PackHealth {
    /// Whether the record there can be relied on.
    pub(crate) fn holds(&self, location: Location) -> bool {
        self.holds_at(location.offset, location.len)
    }

    /// Whether a record at this place in the pack can be relied on.
    pub(crate) fn holds_at(&self, offset: u32, len: u32) -> bool {
        match self {
            Self::Sound { bytes } => u64::from(offset) + u64::from(len) <= *bytes,
            Self::Damaged { good } => good.binary_search(&offset).is_ok(),
        }
    }

    /// Whether nothing of it is good.
    pub(crate) fn is_worthless(&self) -> bool {
        matches!(self, Self::Damaged { good } if good.is_empty())
    }

    /// Whether not all of it is good.
    pub(crate) fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// The packs, looked at.
pub(crate) struct Packs {
    /// What was found, as far as packs and index go.
    pub(crate) report: CheckReport,
    /// Which records can be relied on.
    pub(crate) health: Health,
}

/// What all threads share.
struct Look<'a> {
    store: &'a Store,
    /// The packs to be read in full.
    chosen: HashSet<PackId>,
    /// What the index held of each pack.
    tallies: HashMap<PackId, Tally>,
    damage: Mutex<Vec<String>>,
    health: Mutex<Health>,
    packs_read: AtomicU64,
    bytes_read: AtomicU64,
    /// Records that the index finds just where they are.
    confirmed: AtomicU64,
}

/// Looks at every pack, and says which records can be relied on. `alone` is the maintenance lock, if the
/// caller holds it.
pub(crate) fn check(
    repo: &Repository,
    read: ReadData,
    alone: Option<&MaintenanceLock>,
    progress: &dyn CheckProgress,
    cancel: &Cancel,
) -> Result<Packs> {
    let store = &**repo.store();
    // Before the packs are listed: what others add from here on shows as a change.
    let before = store.index.read(|view| view.changes())?;
    let numbered = store.index.read(View::numbered_packs)?;
    let tallies = Tally::of_index(store, cancel)?;
    let tallies = numbered.iter().map(|(number, row)| {
        let tally = tallies.get(number).copied();
        (row.id, tally.unwrap_or_default())
    });
    let tallies = tallies.collect();
    let rows: Vec<PackRow> = numbered.into_iter().map(|(_, row)| row).collect();
    let chosen = choose(&rows, read, repo.checked_until()?);
    progress.packs(rows.len() as u64);
    let look = Look {
        store,
        chosen: chosen.iter().copied().collect(),
        tallies,
        damage: Mutex::default(),
        health: Mutex::default(),
        packs_read: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        confirmed: AtomicU64::new(0),
    };
    rows.par_iter().try_for_each(|row| {
        cancel.check()?;
        let bytes = look.at(row)?;
        progress.pack_done(bytes);
        Ok::<_, Error>(())
    })?;
    if let Some(last) = chosen.last() {
        repo.remember_checked(*last);
    }
    look.compare_totals(repo, before, alone)?;
    let mut report = CheckReport {
        packs: rows.len() as u64,
        packs_read: look.packs_read.into_inner(),
        bytes_read: look.bytes_read.into_inner(),
        damage: into_inner(look.damage),
        ..CheckReport::default()
    };
    report.damage.sort_unstable();
    let named: HashSet<PackId> = rows.iter().map(|row| row.id).collect();
    for name in store.storage.list(Folder::Packs)? {
        if let ObjectName::Pack(id) = name
            && !named.contains(&id)
        {
            report.unindexed_bytes += store.storage.len(&name)?.unwrap_or(0);
        }
    }
    let health = into_inner(look.health);
    Ok(Packs { report, health })
}

impl Repository {
    /// Where the last check of a share ended; anywhere if there was none.
    fn checked_until(&self) -> Result<PackId> {
        let store = self.store();
        let remembered = store.index.read(|view| view.checked_until())?;
        Ok(remembered.unwrap_or_else(|| PackId::from_bytes(store.env.random_bytes())))
    }

    /// A courtesy to the next check: where nothing can be written it begins anywhere.
    fn remember_checked(&self, pack: PackId) {
        if !self.lockless {
            let index = &self.store().index;
            index.write(|edit| edit.set_checked_until(pack)).ok();
        }
    }
}

/// Whether what a pack holds is counted on. Of one that is about to be deleted nothing is damage:
/// nobody needs it any more, or the points that do will tell.
fn is_counted_on(state: PackState) -> bool {
    matches!(state, PackState::Entering | PackState::Live)
}

impl Look<'_> {
    /// Looks at one pack; the answer is how much of it was read.
    fn at(&self, row: &PackRow) -> Result<u64> {
        let id = row.id;
        let name = ObjectName::Pack(id);
        let bytes = match self.store.storage.len(&name) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.damaged(id, format!("pack {id} is missing"), Vec::new())?;
                return Ok(0);
            }
            Err(error) if error.is_damage() => {
                self.damaged(id, reason(&error), Vec::new())?;
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        if bytes != row.bytes {
            let what = format!("pack {id} has {bytes} bytes instead of {}", row.bytes);
            self.damaged(id, what, good_records(self.store, id)?)?;
            return Ok(bytes);
        }
        let read = self.chosen.contains(&id);
        let pack = if read { self.read(id) } else { self.table(id) };
        match pack {
            Ok(pack) => {
                let confirmed = if self.tallies.get(&id) == Some(&Tally::of_table(&pack)) {
                    pack.entries.len() as u64
                } else {
                    self.found_by_index(&pack)?
                };
                self.confirmed.fetch_add(confirmed, Ordering::Relaxed);
            }
            Err(Error::Missing { .. }) => {
                self.damaged(id, format!("pack {id} is missing"), Vec::new())?;
            }
            // A medium that cannot be read any more is damage like any other.
            Err(error) if error.is_damage() => {
                self.damaged(id, reason(&error), good_records(self.store, id)?)?;
            }
            Err(error) => return Err(error),
        }
        Ok(if read { bytes } else { 0 })
    }

    fn table(&self, id: PackId) -> Result<FinishedPack> {
        let pack = read_table(&*self.store.storage, id, &self.store.keys)?;
        self.note(id, PackHealth::Sound { bytes: pack.bytes });
        Ok(pack)
    }

    /// Reads all of a pack.
    fn read(&self, id: PackId) -> Result<FinishedPack> {
        let inspection = inspect(&*self.store.storage, id, &self.store.keys)?;
        let pack = inspection.pack;
        self.packs_read.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(pack.bytes, Ordering::Relaxed);
        if !inspection.bad.is_empty() {
            let bad: HashSet<u32> = inspection.bad.iter().map(|entry| entry.offset).collect();
            let offsets = pack.entries.iter().map(|entry| entry.offset);
            let good = offsets.filter(|offset| !bad.contains(offset)).collect();
            let what = format!(
                "pack {id} has {} damaged records of {}, the first at offset {}",
                bad.len(),
                pack.entries.len(),
                inspection.bad[0].offset
            );
            self.damaged(id, what, good)?;
        } else if !inspection.checksum_holds {
            let what =
                format!("the checksum of pack {id} is wrong, though all of its records are good");
            let good = pack.entries.iter().map(|entry| entry.offset).collect();
            self.damaged(id, what, good)?;
        } else {
            self.note(id, PackHealth::Sound { bytes: pack.bytes });
        }
        Ok(pack)
    }

    /// How many records of a pack the index finds just where they are.
    ///
    /// Those that it does not find at all are no damage: prune drops the id of a record that nothing
    /// needs, and a copy of it may lie in a pack that is kept. What a point needs and the index
    /// lacks is told with the point.
    fn found_by_index(&self, pack: &FinishedPack) -> Result<u64> {
        let ids: Vec<RawId> = pack.entries.iter().map(|entry| entry.id).collect();
        let places = self.store.index.locate(&ids)?;
        let confirmed = pack.entries.iter().zip(places).filter(|(entry, place)| {
            place.is_some_and(|at| {
                (at.pack, at.offset, at.len) == (pack.id, entry.offset, entry.len)
            })
        });
        Ok(confirmed.count() as u64)
    }

    /// An entry of the index that no pack confirms points to a wrong place. Only told where nothing
    /// else is wrong, and where nobody changed the index meanwhile.
    fn compare_totals(
        &self,
        repo: &Repository,
        before: [u64; 3],
        alone: Option<&MaintenanceLock>,
    ) -> Result<()> {
        let entries = before[2];
        let clean = lock(&self.damage).is_empty();
        if !clean || self.confirmed.load(Ordering::Relaxed) >= entries {
            return Ok(());
        }
        // Prune moves ids between packs without changing their number: counted again while it cannot.
        let _alone = if repo.lockless || alone.is_some() {
            None
        } else {
            match MaintenanceLock::take(&repo.path().join("locks"), "virtkeep check") {
                Err(Error::Busy { .. }) => return Ok(()),
                alone => Some(alone?),
            }
        };
        let (mut confirmed, start) = (0, self.store.index.read(|view| view.changes())?);
        for row in self.store.index.packs()? {
            let pack = match read_table(&*self.store.storage, row.id, &self.store.keys) {
                Err(error) if error.is_damage() => continue,
                pack => pack?,
            };
            confirmed += self.found_by_index(&pack)?;
        }
        let end = self.store.index.read(|view| view.changes())?;
        if start == end && confirmed < end[2] {
            let wrong = end[2] - confirmed;
            lock(&self.damage).push(format!(
                "the index has {wrong} records at places where they are not"
            ));
        }
        Ok(())
    }

    /// Notes damage, and tells of it if the pack is still counted on: prune may have been at it.
    fn damaged(&self, id: PackId, what: String, good: Vec<u32>) -> Result<()> {
        let Some(state) = self.state(id)? else {
            return Ok(());
        };
        if is_counted_on(state) {
            lock(&self.damage).push(what);
        }
        let good = good.into_boxed_slice();
        self.note(id, PackHealth::Damaged { good });
        Ok(())
    }

    /// The state of a pack now; none when it has been deleted.
    fn state(&self, id: PackId) -> Result<Option<PackState>> {
        let row = self.store.index.read(|view| view.pack(id))?;
        Ok(row.map(|row| row.state))
    }

    fn note(&self, id: PackId, health: PackHealth) {
        lock(&self.health).insert(id, health);
    }
}

/// Offsets of the records of a pack that are what the index expects there, when its table cannot be
/// relied on: the file may hold sound records that belong elsewhere.
fn good_records(store: &Store, id: PackId) -> Result<Vec<u32>> {
    let entries = records_of(store, id)?.entries;
    let ids: Vec<RawId> = entries.iter().map(|entry| entry.id).collect();
    let places = store.index.locate(&ids)?;
    let good = entries.iter().zip(places).filter_map(|(entry, place)| {
        let is_here = place.is_some_and(|at| (at.pack, at.offset) == (id, entry.offset));
        is_here.then_some(entry.offset)
    });
    Ok(good.collect())
}

/// What can be found in a pack without its table.
pub(crate) struct Records {
    /// The records, all of them good.
    pub(crate) entries: Vec<PackEntry>,
    /// Whether the medium could be read as far as the pack goes.
    pub(crate) readable: bool,
}

/// Looks for records in a pack without its table.
pub(crate) fn records_of(store: &Store, id: PackId) -> Result<Records> {
    let mut entries = Vec::new();
    let walked = walk(&*store.storage, id, &store.keys, &mut |found| {
        if let Found::Record { entry, .. } = found {
            entries.push(entry);
        }
        Ok(())
    });
    match walked {
        Err(error) if !error.is_damage() => Err(error),
        walked => Ok(Records {
            entries,
            readable: !matches!(walked, Err(Error::Io { .. })),
        }),
    }
}

/// What a damage consists of.
pub(crate) fn reason(error: &Error) -> String {
    error.reason()
}
