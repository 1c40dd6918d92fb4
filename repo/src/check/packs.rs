//! Looking at packs: their sizes and tables, on demand every record, and whether the index has them.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::{CheckOptions, CheckProgress, CheckReport, Health};
use crate::format::pack::{FinishedPack, read_table, verify_pack};
use crate::format::walk::{Found, walk};
use crate::index::{Location, PackRow, PackState};
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::sync::{into_inner, lock};
use crate::{Cancel, Error, PackId, RawId, Repository, Result};

/// What is known of a pack.
pub(super) enum PackHealth {
    /// All of its first `bytes` bytes may be relied on, as far as was looked.
    Sound { bytes: u64 },
    /// Only the records at these offsets are good.
    Damaged { good: HashSet<u32> },
}

impl PackHealth {
    /// Whether the record there can be relied on.
    pub(super) fn holds(&self, location: Location) -> bool {
        match self {
            Self::Sound { bytes } => u64::from(location.offset) + u64::from(location.len) <= *bytes,
            Self::Damaged { good } => good.contains(&location.offset),
        }
    }
}

/// What all threads add to.
struct Findings {
    damage: Mutex<Vec<String>>,
    health: Mutex<Health>,
    packs_read: AtomicU64,
    bytes_read: AtomicU64,
    /// Records that the index finds just where they are.
    confirmed: AtomicU64,
}

/// Looks at every pack, and says which records can be relied on.
pub(super) fn check(
    repo: &Repository,
    options: CheckOptions,
    progress: &dyn CheckProgress,
    cancel: &Cancel,
    report: &mut CheckReport,
) -> Result<Health> {
    let store = &**repo.store();
    // Counted before the packs are listed: what a backup adds from here on shows as a change.
    let entries = store.index.stats()?.entries;
    let rows = store.index.packs()?;
    progress.packs(rows.len() as u64);
    let findings = Findings {
        damage: Mutex::default(),
        health: Mutex::default(),
        packs_read: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        confirmed: AtomicU64::new(0),
    };
    rows.par_iter().enumerate().try_for_each(|(number, row)| {
        cancel.check()?;
        let read = is_in_share(number, options.read_data_percent);
        let bytes = findings.look_at(store, row, read)?;
        progress.pack_done(bytes);
        Ok::<_, Error>(())
    })?;
    let named: HashSet<PackId> = rows.iter().map(|row| row.id).collect();
    for name in store.storage.list(Folder::Packs)? {
        if let ObjectName::Pack(id) = name
            && !named.contains(&id)
        {
            report.unindexed_bytes += store.storage.len(&name)?.unwrap_or(0);
        }
    }
    findings.compare_totals(entries, store)?;
    report.packs = rows.len() as u64;
    report.packs_read = findings.packs_read.into_inner();
    report.bytes_read = findings.bytes_read.into_inner();
    report.damage = into_inner(findings.damage);
    report.damage.sort();
    Ok(into_inner(findings.health))
}

/// Spreads `percent` of all packs evenly.
fn is_in_share(number: usize, percent: u8) -> bool {
    let percent = usize::from(percent.min(100));
    (number + 1) * percent / 100 > number * percent / 100
}

impl Findings {
    /// Looks at one pack; the answer is how much of it was read.
    fn look_at(&self, store: &Store, row: &PackRow, read: bool) -> Result<u64> {
        let id = row.id;
        let Some(bytes) = store.storage.len(&ObjectName::Pack(id))? else {
            // Pruned since the rows were read, or lost.
            if store.index.packs()?.iter().any(|row| row.id == id) {
                self.damaged(format!("pack {id} is missing"), id, HashSet::new());
            }
            return Ok(0);
        };
        if bytes != row.bytes {
            let what = format!("pack {id} has {bytes} bytes instead of {}", row.bytes);
            self.damaged(what, id, good_records(store, id)?);
            return Ok(bytes);
        }
        let table = if read {
            self.packs_read.fetch_add(1, Ordering::Relaxed);
            self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
            verify_pack(&*store.storage, id, &store.keys)
        } else {
            read_table(&*store.storage, id, &store.keys)
        };
        match table {
            // A medium that cannot be read any more is damage like any other.
            Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                self.damaged(reason(&error), id, good_records(store, id)?);
                return Ok(bytes);
            }
            table => self.compare_with_index(store, &table?, row.state)?,
        }
        // The checksum of the whole pack proves the bytes; records are verified one by one as well,
        // since the checksum may have been made over bytes that were wrong already.
        if read {
            let good = good_records(store, id)?;
            if good.len() != row.records as usize {
                let bad = row.records as usize - good.len().min(row.records as usize);
                self.damaged(format!("pack {id} has {bad} damaged records"), id, good);
                return Ok(bytes);
            }
        }
        self.note(id, PackHealth::Sound { bytes });
        Ok(if read { bytes } else { 0 })
    }

    /// Everything that a pack holds must be found through the index, here or in another pack.
    /// Not all of one that was entering the index when its writer was killed: that is no damage, the
    /// next backup completes it.
    fn compare_with_index(
        &self,
        store: &Store,
        pack: &FinishedPack,
        state: PackState,
    ) -> Result<()> {
        let ids: Vec<RawId> = pack.entries.iter().map(|entry| entry.id).collect();
        let (mut absent, mut confirmed) = (0, 0);
        for (entry, place) in pack.entries.iter().zip(store.index.locate(&ids)?) {
            match place {
                None => absent += 1,
                Some(at) if at.pack != pack.id => {}
                Some(at) => {
                    confirmed += u64::from((at.offset, at.len) == (entry.offset, entry.len))
                }
            }
        }
        self.confirmed.fetch_add(confirmed, Ordering::Relaxed);
        if absent > 0 && state != PackState::Entering {
            let what = format!("the index lacks {absent} records of pack {}", pack.id);
            lock(&self.damage).push(what);
        }
        Ok(())
    }

    /// An entry of the index that no pack confirms points to a wrong place. Only told where nothing
    /// else is wrong, and where nobody changed the index meanwhile.
    fn compare_totals(&self, entries: u64, store: &Store) -> Result<()> {
        let confirmed = self.confirmed.load(Ordering::Relaxed);
        let mut damage = lock(&self.damage);
        let unchanged = store.index.stats()?.entries == entries;
        if damage.is_empty() && unchanged && confirmed < entries {
            let wrong = entries - confirmed;
            damage.push(format!(
                "the index has {wrong} records at places where they are not"
            ));
        }
        Ok(())
    }

    fn damaged(&self, what: String, id: PackId, good: HashSet<u32>) {
        lock(&self.damage).push(what);
        self.note(id, PackHealth::Damaged { good });
    }

    fn note(&self, id: PackId, health: PackHealth) {
        lock(&self.health).insert(id, health);
    }
}

/// Offsets of the records of a pack that are what they claim to be.
fn good_records(store: &Store, id: PackId) -> Result<HashSet<u32>> {
    let mut good = HashSet::new();
    let walked = walk(&*store.storage, id, &store.keys, &mut |found| {
        if let Found::Record { entry, .. } = found {
            good.insert(entry.offset);
        }
        Ok(())
    });
    match walked {
        Ok(()) | Err(Error::Corrupt { .. } | Error::Missing { .. } | Error::Io { .. }) => Ok(good),
        Err(error) => Err(error),
    }
}

/// What a damage consists of, without the advice to run the check that found it.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Corrupt {
            what,
            expected,
            found,
        } => {
            format!("damage in {what}: {found}, expected {expected}")
        }
        Error::Missing { what } => format!("{what} is lost"),
        other => other.to_string(),
    }
}
