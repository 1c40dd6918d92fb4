//! The index: where each id lives, what each pack is, and a cache of the points.
//!
//! It is a cache with a warranty: packs and point records alone rebuild it. Its file is opened for
//! short transactions only, under a lock of our own (`gate`), since redb locks its file per process
//! and refuses a second opener instead of waiting. Invariants:
//!
//! - A pack is durable before an entry names it (the caller's duty, in the order of the write path).
//! - Nobody holds the lock for longer than about 100 ms: large batches are cut into slices.
//! - Every commit is durable and saves redb's allocator state ("quick repair"), so that after a kill
//!   the next one to open the index sets it right at once, without reading it all.
//! - A damaged index never gives a wrong answer that is not noticed later (every record read is
//!   verified against its id), and never brings the program down.

mod edit;
mod fault;
mod files;
mod gate;
mod moves;
mod overlay;
mod scan;
mod tables;
mod view;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, ReadableDatabase};

pub use edit::{Edit, Rival};
pub use fault::Fault;
pub use files::{IndexFiles, LocalFiles};
pub use gate::{FileGate, Held, IndexLock, NoLock};
pub use moves::Move;
pub(crate) use scan::{following, prefix};
pub use tables::{PackNumber, PackRow, PackState};
pub use view::{IndexStats, Indexed, Location, View};

use edit::{Entry, halves};
use fault::{damaged, from_io};
use files::AnyBackend;
use overlay::Overlay;
use tables::{N_OWNER, N_REPO, N_SCHEMA, SCHEMA};

use crate::format::pack::FinishedPack;
use crate::{Error, PointId, RawId, RepoId, Result};

/// Memory redb may use for its cache, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// How many entries are added in one transaction at most.
const SLICE_ENTRIES_MAX: usize = 16 << 10;

/// How many leaf pages one transaction may touch, more or less: what a slice costs is set by the
/// pages it rewrites (about 30 µs each) and not by its entries. A whole pack fits.
const SLICE_LEAVES_MAX: usize = 2560;

/// Entries in a leaf page of the table of ids, roughly: 76 bytes each, pages two thirds full.
const LEAF_ENTRIES: usize = 36;

/// How often a read is tried again after the mark of a killed writer was taken away: writers killed
/// one after the other could go on leaving one.
const RECOVERIES_MAX: usize = 10;

/// How many points are reconciled under one hold of the lock.
const POINTS_AT_ONCE: usize = 32;

/// How many ids are looked up under one hold of the lock.
const LOOK_UP_IDS_MAX: usize = 2048;

/// Which repository an index belongs to, and under which owner it was built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The repository.
    pub repo: RepoId,
    /// `index_owner` of `config.toml`: fences off an index that was left behind by another host.
    pub owner: u64,
}

/// The index of one repository. Shared between threads.
pub struct Index {
    files: Arc<dyn IndexFiles>,
    lock: Arc<dyn IndexLock>,
    identity: Identity,
}

impl Index {
    /// Makes the index of a new repository, or an empty one in place of what is there.
    pub fn create(
        files: Arc<dyn IndexFiles>,
        lock: Arc<dyn IndexLock>,
        identity: Identity,
    ) -> Result<Self> {
        let index = Self {
            files,
            lock,
            identity,
        };
        index.start_rebuild()?.publish(|_| Ok(()))?;
        Ok(index)
    }

    /// The index of a repository, of which nothing is asked yet.
    pub fn at(files: Arc<dyn IndexFiles>, lock: Arc<dyn IndexLock>, identity: Identity) -> Self {
        Self {
            files,
            lock,
            identity,
        }
    }

    /// Opens the index, looking only whether it is one and this repository's.
    pub fn open(
        files: Arc<dyn IndexFiles>,
        lock: Arc<dyn IndexLock>,
        identity: Identity,
    ) -> Result<Self> {
        let index = Self::at(files, lock, identity);
        index.check_identity()?;
        Ok(index)
    }

    /// An error unless this is an index, and this repository's.
    pub fn check_identity(&self) -> Result<()> {
        self.read(|view| self.verify(view))
    }

    fn verify(&self, view: &View) -> Result<(), Fault> {
        let [high, low] = halves(self.identity.repo.as_bytes());
        if view.number(N_SCHEMA)? != SCHEMA {
            return Err(Fault::Damaged("it has another schema version"));
        }
        if view.number(N_REPO[0])? != high || view.number(N_REPO[1])? != low {
            return Err(Fault::Damaged("it belongs to another repository"));
        }
        if view.number(N_OWNER)? != self.identity.owner {
            return Err(Fault::Damaged(
                "config.toml names another index_owner: the index was left behind",
            ));
        }
        Ok(())
    }

    /// Runs `work` on one moment of the index, under the shared lock: what it does is over before
    /// the next change. It must be short.
    pub fn read<T>(&self, work: impl FnOnce(&View) -> Result<T, Fault>) -> Result<T> {
        for _ in 0..RECOVERIES_MAX {
            let held = self.lock.shared()?;
            if let Some(database) = self.guarded(|| self.open_to_read())? {
                return self.guarded(|| work(&View::new(database.begin_read()?)));
            }
            drop(held);
            match self.recover() {
                // Where nothing can be written, for want of space perhaps, it can still be read.
                Err(Error::ReadOnly { .. } | Error::Io { .. }) => {
                    return self.read_unfinished(work);
                }
                recovered => recovered?,
            }
        }
        Err(damaged(
            self.files.path(),
            "it is left unfinished again and again".to_owned(),
        ))
    }

    /// None when a writer was killed and left its mark in the file.
    fn open_to_read(&self) -> Result<Option<ReadOnlyDatabase>, Fault> {
        let backend = AnyBackend(self.files.open_read()?);
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        match builder.open_read_only_with_backend(backend) {
            Ok(database) => Ok(Some(database)),
            Err(DatabaseError::RepairAborted) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the mark of a killed writer away. Every commit saved the allocator's state, so this costs
    /// no more than any other write.
    fn recover(&self) -> Result<()> {
        let _held = self.lock.exclusive()?;
        self.guarded(|| Ok(self.open_to_write()?.close()?))
    }

    /// As [`read`](Self::read), where the mark of a killed writer must stay.
    fn read_unfinished<T>(&self, work: impl FnOnce(&View) -> Result<T, Fault>) -> Result<T> {
        let _held = self.lock.shared()?;
        self.guarded(|| {
            let overlay = Overlay::new(self.files.open_read()?)?;
            let database = open_writable(Box::new(overlay))?;
            work(&View::new(database.begin_read()?))
        })
    }

    fn open_to_write(&self) -> Result<Database, Fault> {
        let backend = self.files.open_write()?;
        if backend.len()? == 0 {
            // redb would make a new database of it.
            return Err(Fault::Damaged("the file is empty"));
        }
        open_writable(backend)
    }

    /// Runs `work` in a transaction of its own, under the exclusive lock, and commits it durably. It
    /// must be short. On an error nothing has changed.
    pub fn write<T>(&self, work: impl FnOnce(&Edit) -> Result<T, Fault>) -> Result<T> {
        let _held = self.lock.exclusive()?;
        self.guarded(|| {
            let database = self.open_to_write()?;
            let done = transact(&database, work)?;
            database.close()?;
            Ok(done)
        })
    }

    /// As [`read`](Self::read), for whoever holds the lock. None where a killed writer left its mark, or
    /// where this is no index of this repository.
    pub(crate) fn read_locked<T>(&self, work: impl FnOnce(&View) -> Result<T, Fault>) -> Option<T> {
        let read = self.guarded(|| {
            let Some(database) = self.open_to_read()? else {
                return Ok(None);
            };
            let view = View::new(database.begin_read()?);
            self.verify(&view)?;
            work(&view).map(Some)
        });
        read.ok().flatten()
    }

    /// Runs `work`, turning what redb says into our errors, and its panics too: it trusts what it
    /// reads of an existing file, and a damaged cache must not bring a backup down.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Result<T> {
        let path = self.files.path();
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => result.map_err(|fault| fault.into_error(path)),
            Err(panic) => {
                let why = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("it cannot be read");
                Err(damaged(path, why.to_owned()))
            }
        }
    }

    /// Where each id is, for reading: also finds what lies in condemned packs.
    pub fn locate(&self, ids: &[RawId]) -> Result<Vec<Option<Location>>> {
        self.look_up(ids, View::locate)
    }

    /// Whether each id may be relied on, for deduplication: not when it lies in a condemned pack,
    /// not when it is wanted.
    pub fn known(&self, ids: &[RawId]) -> Result<Vec<bool>> {
        self.look_up(ids, View::known)
    }

    /// Whether each id is there to stay for whoever holds a lease on it: also in a condemned pack,
    /// not in a dead one.
    pub fn standing(&self, ids: &[RawId]) -> Result<Vec<bool>> {
        self.look_up(ids, View::standing)
    }

    /// Looks many ids up, letting go of the lock now and then.
    fn look_up<T>(
        &self,
        ids: &[RawId],
        look_up: impl Fn(&View, &[RawId]) -> Result<Vec<T>, Fault>,
    ) -> Result<Vec<T>> {
        let mut answers = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOOK_UP_IDS_MAX) {
            answers.append(&mut self.read(|view| look_up(view, ids))?);
        }
        Ok(answers)
    }

    /// Adds packs, which must be durable, and their entries. Adding a pack again changes nothing.
    ///
    /// Entries are sorted and committed in slices, with the lock released between them: the larger
    /// the batch, the less an entry costs.
    pub fn add_packs(&self, packs: &[FinishedPack]) -> Result<()> {
        let present = self.read(View::entries)?;
        add_in_slices(packs, present, |slice| self.write(slice)).map(drop)
    }

    /// The cached point records.
    pub fn points(&self) -> Result<Vec<(PointId, Vec<u8>)>> {
        self.read(View::points)
    }

    /// Caches a point record.
    pub fn put_point(&self, id: PointId, record: &[u8]) -> Result<()> {
        self.write(|edit| edit.put_point(id, record))
    }

    /// Forgets a cached point record; whether there was one.
    pub fn remove_point(&self, id: PointId) -> Result<bool> {
        self.write(|edit| edit.remove_point(id))
    }

    /// The first `count` of the ids that must be stored anew: those that repair found damaged, normally
    /// none.
    pub fn wanted(&self, count: usize) -> Result<HashSet<RawId>> {
        self.read(|view| view.wanted(count))
    }

    /// Every pack.
    pub fn packs(&self) -> Result<Vec<PackRow>> {
        self.read(View::packs)
    }

    /// The epoch: rises each time packs are condemned.
    pub fn epoch(&self) -> Result<u64> {
        self.read(View::epoch)
    }

    /// The index in numbers.
    pub fn stats(&self) -> Result<IndexStats> {
        let mut stats = self.read(View::stats)?;
        let path = self.files.path();
        stats.file_bytes = self
            .files
            .size()
            .map_err(|error| from_io("examine", error, path))?;
        Ok(stats)
    }

    /// Makes the cache of points hold the records that exist. `present` are the names found in `points/`.
    /// The other two are asked under the exclusive lock: `load` reads a record, and answers none when
    /// there is none any more. What nobody has `forgotten` and is gone all the same stays cached: it is
    /// all that is left of that record.
    pub fn reconcile_points(
        &self,
        present: &[PointId],
        load: impl Fn(PointId) -> Result<Option<Vec<u8>>>,
        forgotten: impl Fn(PointId) -> Result<bool>,
    ) -> Result<()> {
        let mut cached: Vec<PointId> = self.points()?.into_iter().map(|(id, _)| id).collect();
        cached.sort_unstable();
        let mut present = present.to_vec();
        present.sort_unstable();
        let mut differing = present.clone();
        differing.retain(|id| cached.binary_search(id).is_err());
        cached.retain(|id| present.binary_search(id).is_err());
        differing.append(&mut cached);
        for few in differing.chunks(POINTS_AT_ONCE) {
            self.write(|edit| {
                for id in few {
                    match load(*id)? {
                        Some(record) => edit.put_point(*id, &record)?,
                        None if forgotten(*id)? => drop(edit.remove_point(*id)?),
                        None => {}
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Starts building the index anew, in a file of its own; the old one serves until the new one is
    /// published. The caller holds the maintenance lock, or is making the repository.
    pub fn start_rebuild(&self) -> Result<Rebuild<'_>> {
        let database = self.guarded(|| {
            let database = open_writable(self.files.start_new()?)?;
            transact(&database, |edit| {
                edit.lay_out(self.identity.repo, self.identity.owner)
            })?;
            Ok(database)
        })?;
        Ok(Rebuild {
            index: self,
            database,
        })
    }
}

/// A new index being built beside the old one.
pub struct Rebuild<'a> {
    index: &'a Index,
    database: Database,
}

impl Rebuild<'_> {
    /// Changes the new index.
    pub fn write<T>(&self, work: impl FnOnce(&Edit) -> Result<T, Fault>) -> Result<T> {
        self.index.guarded(|| transact(&self.database, work))
    }

    /// Adds packs; as [`Index::add_packs`]. Answers with ids that were met before, in other packs or in these.
    pub fn add_packs(&self, packs: &[FinishedPack]) -> Result<Vec<Rival>> {
        let present = self
            .index
            .guarded(|| View::new(self.database.begin_read()?).entries())?;
        add_in_slices(packs, present, |slice| self.write(slice))
    }

    /// Puts the new index in the place of the old one, under the exclusive lock. `last` is run under
    /// that lock, to bring in what happened since the building began.
    pub fn publish(self, last: impl FnOnce(&Edit) -> Result<(), Fault>) -> Result<()> {
        let Self { index, database } = self;
        let _held = index.lock.exclusive()?;
        index.guarded(|| {
            transact(&database, last)?;
            Ok(database.close()?)
        })?;
        let path = index.files.path();
        index
            .files
            .publish_new()
            .map_err(|error| from_io("replace", error, path))
    }
}

/// Part of the work on a batch: one transaction of its own.
type Slice<'a> = &'a mut dyn FnMut(&Edit) -> Result<(), Fault>;

/// Adds packs and their entries, sorted by id, in transactions of limited size, each run by `write`, to
/// an index with `present` entries. Answers with the entries whose ids keep another place.
fn add_in_slices(
    packs: &[FinishedPack],
    present: u64,
    mut write: impl FnMut(Slice) -> Result<()>,
) -> Result<Vec<Rival>> {
    let mut rivals = Vec::new();
    let mut entries: Vec<(RawId, usize, u32, u32)> = Vec::new();
    for (place, pack) in packs.iter().enumerate() {
        let located = pack.entries.iter();
        entries.extend(located.map(|entry| (entry.id, place, entry.offset, entry.len)));
    }
    entries.sort_unstable();
    let mut slices = entries.chunks(slice_len(entries.len(), present)).peekable();
    loop {
        let slice = slices.next().unwrap_or_default();
        let is_last = slices.peek().is_none();
        write(&mut |edit| {
            // Asked for each time: between two slices the index may have been built anew, with other numbers.
            let mut numbers: Vec<u32> = Vec::with_capacity(packs.len());
            for pack in packs {
                numbers.push(edit.enter_pack(row_of(pack))?);
            }
            rivals.append(&mut edit.add_entries(slice.iter().map(
                |(id, place, offset, len)| Entry {
                    id: *id,
                    pack: numbers[*place],
                    offset: *offset,
                    len: *len,
                },
            ))?);
            if is_last {
                edit.packs_entered(&numbers)?;
            }
            Ok(())
        })?;
        if is_last {
            return Ok(rivals);
        }
    }
}

/// How many entries of a sorted batch go into one transaction. Ids are random: between two neighbours
/// of the batch lie `present / batch` entries of the index, so the fuller the index, the fewer of them
/// share a leaf.
fn slice_len(batch: usize, present: u64) -> usize {
    let between = usize::try_from(present).unwrap_or(usize::MAX) / batch.max(1);
    let sharing_a_leaf = (LEAF_ENTRIES / between.saturating_add(1)).max(1);
    (SLICE_LEAVES_MAX * sharing_a_leaf).min(SLICE_ENTRIES_MAX)
}

fn row_of(pack: &FinishedPack) -> PackRow {
    PackRow {
        id: pack.id,
        kind: pack.kind,
        lease: pack.lease,
        bytes: pack.bytes,
        records: u32::try_from(pack.entries.len()).unwrap_or(u32::MAX),
        state: PackState::Entering,
    }
}

fn open_writable(backend: Box<dyn redb::StorageBackend>) -> Result<Database, Fault> {
    Ok(Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(AnyBackend(backend))?)
}

fn transact<T>(
    database: &Database,
    work: impl FnOnce(&Edit) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let edit = Edit::new(transaction);
    let done = work(&edit)?;
    edit.commit()?;
    Ok(done)
}
