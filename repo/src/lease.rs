//! Leases: what running commands rely on, told to whoever wants to delete something.
//!
//! A lease is a file in `leases/` that its holder keeps locked while it lives; the kernel unlocks it
//! when the holder ends, however that happens. It appears under its name already locked (locked under a
//! temporary name, then renamed in), so a lease that can be locked by another is dead.
//!
//! The order that makes leases safe against prune: the lease exists; then, under the shared index lock,
//! its holder records the epoch and checks that what it relies on still exists; only then it looks
//! anything up. A writer's lease delays the deletion of packs condemned after its epoch, since it may
//! have found ids in them before. A reader's lease only adds its roots to what is alive.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::index::{Fault, Index, View};
use crate::lock::{Mode, try_flock};
use crate::{BlobId, Env, Error, LeaseId, Point, PointId, Result, RootId, UnixMillis};

/// The largest lease file that is read, in bytes.
const LEASE_BYTES_MAX: u64 = 64 << 20;

/// How often a lease is tried to be created while others sweep.
const APPEAR_TRIES: usize = 10;

/// What a lease says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseContent {
    /// Whether its holder stores anything.
    pub kind: LeaseKind,
    /// The epoch under which its holder looks things up; none before it has begun to.
    pub epoch: Option<u64>,
    /// What its holder relies on.
    pub roots: Roots,
    /// Name of the holder's host.
    pub host: String,
    /// The command, for people.
    pub command: String,
    /// When it started.
    pub started: UnixMillis,
}

/// What a lease is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKind {
    /// Stores chunks, and relies on whatever the index knows.
    Writer,
    /// Reads what hangs below its roots.
    Reader,
    /// Moves records from pack to pack, under the maintenance lock; relies on nothing.
    Mover,
}

/// What must stay alive. Disks and files say all of it; the points they belong to are for people, and
/// for the holder to look at again, since a record may be gone while its disks are still read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roots {
    /// The points.
    pub points: Vec<PointId>,
    /// Disks: everything below them.
    pub disks: Vec<RootId>,
    /// Pieces of files kept with points.
    pub files: Vec<BlobId>,
}

impl Roots {
    /// Everything of these points.
    pub fn of<'a>(points: impl IntoIterator<Item = &'a Point>) -> Self {
        let mut roots = Self::default();
        for point in points {
            roots.points.push(point.id);
            roots.disks.extend(point.disks.iter().map(|disk| disk.root));
            let files = point.files.iter();
            roots.files.extend(files.flat_map(|file| &file.pieces));
        }
        roots
    }
}

/// The leases of one repository.
#[derive(Clone)]
pub struct LeaseStore {
    dir: PathBuf,
    env: Env,
}

/// The lease of a command that stores things. Dropping it ends it: not before its last pack is in the
/// index and its point record in place.
#[derive(Debug)]
pub struct WriterLease(Lease);

/// The lease of a prune that copies records into packs of its own. Dropping it ends it.
#[derive(Debug)]
pub struct MoverLease(Lease);

/// The lease of a command that only reads. Dropping it ends it.
#[derive(Debug)]
pub struct ReaderLease(Lease);

#[derive(Debug)]
struct Lease {
    id: LeaseId,
    path: PathBuf,
    content: LeaseContent,
    // Locked. Closed, and thereby unlocked, after the name is gone.
    file: File,
}

/// A lease as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenLease {
    /// Its name.
    pub id: LeaseId,
    /// Whether its holder lives.
    pub alive: bool,
    /// What it says; none when it cannot be understood. Of a living one, assume the worst then: a
    /// writer of epoch 0 with unknown roots.
    pub content: Option<LeaseContent>,
}

impl LeaseStore {
    /// The leases in `dir`.
    pub fn new(dir: &Path, env: Env) -> Self {
        Self {
            dir: dir.to_owned(),
            env,
        }
    }

    /// Takes a lease for a command that stores things. `recheck` is run under the shared index lock,
    /// after the epoch has been recorded: it must fail if `roots` do not exist any more.
    pub fn writer(
        &self,
        command: &str,
        roots: Roots,
        index: &Index,
        recheck: impl FnOnce(&View) -> Result<()>,
    ) -> Result<WriterLease> {
        self.take(LeaseKind::Writer, command, roots, index, recheck)
            .map(WriterLease)
    }

    /// Takes a lease for a command that only reads. As [`writer`](Self::writer).
    pub fn reader(
        &self,
        command: &str,
        roots: Roots,
        index: &Index,
        recheck: impl FnOnce(&View) -> Result<()>,
    ) -> Result<ReaderLease> {
        self.take(LeaseKind::Reader, command, roots, index, recheck)
            .map(ReaderLease)
    }

    /// Takes a lease for a prune, whose packs shall be told from those of the dead.
    pub fn mover(&self, command: &str, index: &Index) -> Result<MoverLease> {
        self.take(LeaseKind::Mover, command, Roots::default(), index, |_| {
            Ok(())
        })
        .map(MoverLease)
    }

    fn take(
        &self,
        kind: LeaseKind,
        command: &str,
        roots: Roots,
        index: &Index,
        recheck: impl FnOnce(&View) -> Result<()>,
    ) -> Result<Lease> {
        let mut lease = self.appear(LeaseContent {
            kind,
            epoch: None,
            roots,
            host: host_name(),
            command: command.to_owned(),
            started: self.env.clock.now(),
        })?;
        index.read(|view| {
            lease.content.epoch = Some(view.epoch()?);
            lease.save()?;
            recheck(view).map_err(Fault::from)
        })?;
        Ok(lease)
    }

    /// Puts a lease with this content in its place, locked from the first moment it can be seen.
    fn appear(&self, content: LeaseContent) -> Result<Lease> {
        for _ in 0..APPEAR_TRIES {
            if let Some(lease) = self.try_appear(&content)? {
                return Ok(lease);
            }
        }
        Err(Error::Busy {
            what: "the directory of leases".to_owned(),
            holder: "a command that clears old leases away".to_owned(),
        })
    }

    /// None when a sweep took the file for debris before it was locked.
    fn try_appear(&self, content: &LeaseContent) -> Result<Option<Lease>> {
        let id = LeaseId::from_bytes(self.env.random_bytes());
        let path = self.dir.join(id.to_string());
        let temporary = self.dir.join(format!("{id}.new"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(Error::io("create the lease", &temporary))?;
        if !try_flock(&file, Mode::Exclusive).map_err(Error::io("lock", &temporary))? {
            return Ok(None);
        }
        let mut lease = Lease {
            id,
            path: temporary.clone(),
            content: content.clone(),
            file,
        };
        lease.save()?;
        match fs::rename(&temporary, &path) {
            Ok(()) => {
                lease.path = path;
                Ok(Some(lease))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("create the lease", &path)(error)),
        }
    }

    /// Every lease there is, dead or alive. To be exact it has to be asked for under the exclusive
    /// index lock; without it, leases may come and go meanwhile.
    pub fn list(&self) -> Result<Vec<SeenLease>> {
        let mut seen = Vec::new();
        for (id, path) in self.files("")? {
            let Some(file) = open_existing(&path)? else {
                continue;
            };
            let alive =
                !try_flock(&file, Mode::Shared).map_err(Error::io("examine the lock of", &path))?;
            let content = read_content(&file);
            seen.push(SeenLease { id, alive, content });
        }
        Ok(seen)
    }

    /// Removes the leases in `dead` that are, and what is left of ones that never came to be.
    pub fn sweep(&self, dead: &HashSet<LeaseId>) -> Result<()> {
        let mut leases = self.files("")?;
        leases.retain(|(id, _)| dead.contains(id));
        for (_, path) in leases.into_iter().chain(self.files(".new")?) {
            let Some(file) = open_existing(&path)? else {
                continue;
            };
            if try_flock(&file, Mode::Exclusive).map_err(Error::io("lock", &path))? {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The files whose name is a lease id followed by `suffix`.
    fn files(&self, suffix: &str) -> Result<Vec<(LeaseId, PathBuf)>> {
        let mut files = Vec::new();
        let listing = || Error::io("list", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(listing())? {
            let entry = entry.map_err(listing())?;
            // Nobody's lease, and no reason to fail.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(suffix))
                .and_then(|name| name.parse().ok());
            files.extend(id.map(|id| (id, entry.path())));
        }
        Ok(files)
    }
}

impl WriterLease {
    /// Its name; packs carry it.
    pub fn id(&self) -> LeaseId {
        self.0.id
    }
}

impl MoverLease {
    /// Its name; packs carry it.
    pub fn id(&self) -> LeaseId {
        self.0.id
    }
}

impl ReaderLease {
    /// Relies on more. As at the beginning, `recheck` runs under the shared index lock after the new
    /// roots are written down.
    pub fn add_roots(
        &mut self,
        more: Roots,
        index: &Index,
        recheck: impl FnOnce(&View) -> Result<()>,
    ) -> Result<()> {
        let Self(lease) = self;
        lease.content.roots.points.extend(more.points);
        lease.content.roots.disks.extend(more.disks);
        lease.content.roots.files.extend(more.files);
        index.read(|view| {
            lease.save()?;
            recheck(view).map_err(Fault::from)
        })
    }
}

impl Lease {
    /// Writes the content, which only ever grows, in place: the lock hangs on this very file.
    fn save(&self) -> Result<()> {
        let writing = || Error::io("write the lease", &self.path);
        let mut json = serde_json::to_vec(&self.content)
            .map_err(io::Error::from)
            .map_err(writing())?;
        json.push(b'\n');
        self.file.write_all_at(&json, 0).map_err(writing())?;
        self.file.set_len(json.len() as u64).map_err(writing())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Left behind, it is a dead lease that the next sweep removes. Unlocked by hand, since a child
        // that another thread is just starting may hold a copy of the open file until its exec.
        let _ = fs::remove_file(&self.path);
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

/// None when it has gone meanwhile.
fn open_existing(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open the lease", path)(error)),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove the lease", path)(error))
        }
        _ => Ok(()),
    }
}

fn read_content(file: &File) -> Option<LeaseContent> {
    let mut json = Vec::new();
    file.take(LEASE_BYTES_MAX).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The name of this host, for people.
pub fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::create;

    fn point(n: u8) -> PointId {
        PointId::from_bytes([n; 10])
    }

    fn on(points: &[PointId]) -> Roots {
        Roots {
            points: points.to_vec(),
            disks: vec![RootId::from_bytes([9; 32])],
            files: vec![BlobId::from_bytes([8; 32])],
        }
    }

    #[test]
    fn a_lease_is_there_with_its_epoch_when_the_parent_is_checked_again_and_gone_when_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let index = create(dir.path());
        let leases = LeaseStore::new(dir.path(), Env::system());
        let refused = leases.writer("backup", on(&[point(1)]), &index, |view| {
            let seen = leases.list()?;
            assert_eq!(seen.len(), 1);
            assert!(seen[0].alive);
            let content = seen[0].content.as_ref().unwrap();
            assert_eq!(content.epoch, Some(view.epoch().unwrap()));
            Err(Error::NoSuchPoint { point: point(1) })
        });
        assert!(matches!(refused, Err(Error::NoSuchPoint { .. })));
        assert_eq!(leases.list().unwrap(), []);
    }

    #[test]
    fn a_reader_may_come_to_rely_on_more() {
        let dir = tempfile::tempdir().unwrap();
        let index = create(dir.path());
        let leases = LeaseStore::new(dir.path(), Env::system());
        let mut lease = leases
            .reader("serve", on(&[point(1)]), &index, |_| Ok(()))
            .unwrap();
        lease
            .add_roots(on(&[point(2)]), &index, |_| Ok(()))
            .unwrap();
        let content = leases.list().unwrap()[0].content.clone().unwrap();
        assert_eq!(content.kind, LeaseKind::Reader);
        assert_eq!(content.roots.points, [point(1), point(2)]);
        drop(lease);
        assert_eq!(leases.list().unwrap(), []);
    }

    #[test]
    fn a_living_lease_that_cannot_be_understood_still_counts_as_living() {
        let dir = tempfile::tempdir().unwrap();
        let index = create(dir.path());
        let leases = LeaseStore::new(dir.path(), Env::system());
        let lease = leases
            .writer("backup", on(&[]), &index, |_| Ok(()))
            .unwrap();
        fs::write(dir.path().join(lease.id().to_string()), "{ from the future").unwrap();
        let seen = leases.list().unwrap();
        assert_eq!((seen[0].alive, &seen[0].content), (true, &None));
    }

    #[test]
    fn what_is_left_of_a_lease_that_never_came_to_be_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let leases = LeaseStore::new(dir.path(), Env::system());
        let debris = dir
            .path()
            .join(format!("{}.new", LeaseId::from_bytes([1; 16])));
        let foreign = dir.path().join("notes.txt");
        fs::write(&debris, "").unwrap();
        fs::write(&foreign, "").unwrap();
        leases.sweep(&HashSet::new()).unwrap();
        assert!(!debris.exists());
        assert!(foreign.exists());
    }
}
