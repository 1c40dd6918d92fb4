//! A machine with two disks, its repository on a simulated disk, and what every point must hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use virtkeep_repo::file_system::FileSystem;
use virtkeep_repo::index::LocalFiles;
use virtkeep_repo::pin::{PinKind, PinStore};
use virtkeep_repo::storage::LocalStorage;
use virtkeep_repo::{
    ByteLen, Cancel, CheckOptions, CheckProgress, CheckReport, Clock, Codec, Env, Error, FileRole,
    InitOptions, NoProgress, OpenOptions, Parts, Point, PointId, PruneOptions, PruneProgress,
    PruneReport, PruneStage, Random, ReadData, RepairOptions, RepairReport, Repository, Result,
    UnixMillis,
};

use crate::disk::{MemoryDisk, draft, restore_disk};
use crate::model::{Model, Survival};
use crate::power::SimDisk;

pub(crate) const KIB: usize = 1 << 10;

/// Where the repository is on the simulated disk.
pub(crate) const ROOT: &str = "/repo";

/// A lease as found in the file system: name and content.
type LeaseFile = (String, Vec<u8>);

/// A repository on a simulated disk. Leases and locks are on the real one: they need not outlive
/// their holders, so of each lease either nothing, a part or all is found after a loss of power.
pub(crate) struct World {
    pub(crate) disk: SimDisk,
    host: TempDir,
    seed: u64,
    leases_at_power_loss: Arc<Mutex<Vec<LeaseFile>>>,
}

impl World {
    /// A disk with a directory for the repository, and nothing else.
    pub(crate) fn empty(seed: u64) -> Self {
        let mut model = Model::new();
        let root = Path::new(ROOT);
        for directory in [
            root.to_owned(),
            root.join("packs"),
            root.join("points"),
            root.join("pins"),
        ] {
            model.create_directory(&directory).unwrap();
            model.sync_directory(directory.parent().unwrap()).unwrap();
        }
        Self::on(SimDisk::new(model), &[], seed)
    }

    /// A new repository: small chunks, narrow nodes.
    pub(crate) fn new(seed: u64) -> Self {
        let world = Self::empty(seed);
        world.init().unwrap();
        world
    }

    pub(crate) fn init(&self) -> Result<Repository> {
        let options = InitOptions {
            chunk_size: ByteLen(4096),
            fan_out: 64,
            codec: Codec::Lz4,
            unsafe_network_fs: false,
        };
        Repository::init_on(self.parts(), &options, self.env())
    }

    fn on(disk: SimDisk, leases: &[LeaseFile], seed: u64) -> Self {
        let host = tempfile::tempdir().unwrap();
        for folder in ["leases", "locks"] {
            fs::create_dir(host.path().join(folder)).unwrap();
        }
        for (name, content) in leases {
            fs::write(host.path().join("leases").join(name), content).unwrap();
        }
        Self {
            disk,
            host,
            seed,
            leases_at_power_loss: Arc::default(),
        }
    }

    /// The same once more.
    pub(crate) fn copy(&self, seed: u64) -> Self {
        Self::on(self.disk.copy(), &lease_files(&self.leases()), seed)
    }

    fn leases(&self) -> PathBuf {
        self.host.path().join("leases")
    }

    /// What remembers the leases there are when power fails.
    pub(crate) fn last_words(&self) -> impl FnOnce() + Send + 'static {
        let (leases, remembered) = (self.leases(), Arc::clone(&self.leases_at_power_loss));
        move || *remembered.lock().unwrap() = lease_files(&leases)
    }

    /// The world when power is back and all processes are gone.
    pub(crate) fn after_power_loss(&self, survival: Survival, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let disk = self.disk.after_power_loss(survival, &mut rng);
        let mut leases = self.leases_at_power_loss.lock().unwrap().clone();
        match survival {
            Survival::Nothing => leases.clear(),
            Survival::Everything => {}
            _ => {
                leases.retain(|_| rng.u8(0..3) > 0);
                for (_, content) in &mut leases {
                    content.truncate(rng.usize(0..=content.len()));
                }
            }
        }
        Self::on(disk, &leases, seed)
    }

    /// The world when all processes were killed, and power stayed: what they did can be seen, and what
    /// they did not sync can still be lost.
    pub(crate) fn after_kill(&self) -> Self {
        let disk = self.disk.copy();
        Self::on(disk, &self.leases_at_power_loss.lock().unwrap(), self.seed)
    }

    pub(crate) fn parts(&self) -> Parts {
        let files: Arc<dyn FileSystem> = Arc::new(self.disk.clone());
        let root = Path::new(ROOT);
        Parts {
            storage: Arc::new(LocalStorage::on(Arc::clone(&files), root)),
            index: Arc::new(LocalFiles::on(Arc::clone(&files), root)),
            pins: PinStore::on(files, &root.join("pins"), self.env()),
            directory: self.host.path().to_owned(),
        }
    }

    /// The objects of the repository.
    pub(crate) fn storage(&self) -> LocalStorage {
        LocalStorage::on(Arc::new(self.disk.clone()), Path::new(ROOT))
    }

    pub(crate) fn env(&self) -> Env {
        // Never the same names twice, not by chance of a seed either.
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let opened = OPENED.fetch_add(1, Ordering::Relaxed);
        let rng = Rng::with_seed(self.seed ^ opened << 32);
        Env {
            clock: Arc::new(Ticking(AtomicU64::new(1 + opened * 1000))),
            random: Arc::new(Chance(Mutex::new(rng))),
        }
    }

    /// Opens the repository as a command does; packs are small.
    pub(crate) fn open(&self) -> Result<Repository> {
        let options = OpenOptions {
            pack_size: Some(ByteLen(64 << 10)),
            ..OpenOptions::default()
        };
        Repository::open_on(self.parts(), &options, self.env())
    }

    /// Opens the repository as it is found on media that nobody can write to.
    pub(crate) fn open_read_only(&self) -> Result<Repository> {
        let options = OpenOptions {
            read_only: true,
            no_lock: true,
            ..OpenOptions::default()
        };
        Repository::open_on(self.parts(), &options, self.env())
    }
}

fn lease_files(leases: &Path) -> Vec<LeaseFile> {
    let mut files = Vec::new();
    for entry in fs::read_dir(leases).unwrap() {
        let entry = entry.unwrap();
        if let Ok(content) = fs::read(entry.path()) {
            files.push((entry.file_name().into_string().unwrap(), content));
        }
    }
    files.sort();
    files
}

struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

struct Chance(Mutex<Rng>);

impl Random for Chance {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap().fill(bytes);
    }
}

pub(crate) struct Quiet;

impl CheckProgress for Quiet {
    fn packs(&self, _: u64) {}
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

impl PruneProgress for Quiet {
    fn begin(&self, _: PruneStage, _: u64) {}
    fn done(&self) {}
}

/// Checks everything there is to check.
fn check(repo: &Repository) -> CheckReport {
    let options = CheckOptions {
        read_data: ReadData::ALL,
    };
    repo.check(options, &Quiet, &Cancel::new()).unwrap()
}

/// How far a point has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Its commit has not returned: it is there or not.
    UnderWay,
    /// Its commit has returned: it is there.
    Committed,
    /// Being forgotten, or that being taken back: it is there or among the forgotten.
    Moving,
    /// Among the forgotten.
    Forgotten,
    /// Forgotten, and perhaps pruned.
    Pruned,
    /// Being forgotten, or that being taken back, when prune came: it is there or may be pruned.
    MovingOrPruned,
}

/// A point that was made, or begun to be made.
#[derive(Clone)]
struct Expected {
    id: PointId,
    disks: Vec<Vec<u8>>,
    fate: Fate,
}

/// A machine and the points made of it.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) disks: Vec<MemoryDisk>,
    points: Vec<Expected>,
    /// Pins, and whether each must be there or must not.
    pins: BTreeMap<String, bool>,
    rng: Rng,
}

const FIRMWARE: &[u8] = b"firmware variables";

impl Machine {
    /// Two disks with data, zeroes and something in common.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut first = MemoryDisk::new(768 * KIB);
        let mut noise = vec![0; 200 * KIB];
        rng.fill(&mut noise);
        first.write(4 * KIB, &noise);
        first.write(400 * KIB, &[7; 60 * KIB]);
        let mut second = MemoryDisk::new(300 * KIB + 512);
        second.write(64 * KIB, &noise[60 * KIB..140 * KIB]);
        Self {
            disks: vec![first, second],
            points: Vec::new(),
            pins: BTreeMap::new(),
            rng,
        }
    }

    /// The guest writes here and there.
    pub(crate) fn works(&mut self) {
        for disk in &mut self.disks {
            for _ in 0..3 {
                let at = self.rng.usize(0..disk.bytes.len() / KIB - 20) * KIB;
                let mut bytes = vec![0; self.rng.usize(1..20 * KIB)];
                self.rng.fill(&mut bytes);
                disk.write(at, &bytes);
            }
            let at = self.rng.usize(0..disk.bytes.len() / KIB - 20) * KIB;
            disk.write(at, &[0; 9 * KIB]);
        }
    }

    /// The newest point that is surely there.
    pub(crate) fn last(&self) -> Option<PointId> {
        let committed = |point: &&Expected| point.fate == Fate::Committed;
        let last = self.points.iter().rev().find(committed);
        last.map(|point| point.id)
    }

    /// All points, oldest first.
    pub(crate) fn points(&self) -> Vec<PointId> {
        self.points.iter().map(|point| point.id).collect()
    }

    fn fate(&mut self, id: PointId) -> &mut Fate {
        let point = self.points.iter_mut().find(|point| point.id == id);
        &mut point.unwrap().fate
    }

    /// Backs all disks up without a parent.
    pub(crate) fn back_up(&mut self, repo: &Repository) -> Result<()> {
        self.back_up_since(repo, None)
    }

    /// Backs up what has changed since the last point.
    pub(crate) fn back_up_changes(&mut self, repo: &Repository) -> Result<()> {
        let parent = self.last().map(|id| repo.point(id)).transpose()?;
        self.back_up_since(repo, parent.as_ref())
    }

    fn back_up_since(&mut self, repo: &Repository, parent: Option<&Point>) -> Result<()> {
        let disks = self.disks.clone();
        let done = self.try_back_up_since(repo, parent);
        if done.is_err() {
            // The bitmap goes on from the last point that was committed.
            self.disks = disks;
        }
        done
    }

    fn try_back_up_since(&mut self, repo: &Repository, parent: Option<&Point>) -> Result<()> {
        let parents: Vec<PointId> = parent.iter().map(|point| point.id).collect();
        let backup = repo.begin_backup(&parents, "test")?;
        let nvram = backup.store_file(FileRole::Nvram, "nvram", &mut &*FIRMWARE)?;
        let mut filled = None;
        for (number, disk) in self.disks.iter_mut().enumerate() {
            let source = match parent {
                Some(_) => disk.changes(),
                None => disk.whole(),
            };
            let parent_disk = parent.map(|point| &point.disks[number]);
            let stored = backup.store_disk(&source, parent_disk, &NoProgress, &Cancel::new())?;
            let mut single = draft(&source, stored);
            single.disks[0].target = format!("vd{number}");
            match &mut filled {
                None => filled = Some(single),
                Some(draft) => draft.disks.append(&mut single.disks),
            }
        }
        let mut draft = filled.unwrap();
        draft.files.push(nvram);
        draft.time = UnixMillis(self.points.len() as u64);
        self.points.push(Expected {
            id: backup.point_id(),
            disks: self.disks.iter().map(|disk| disk.bytes.clone()).collect(),
            fate: Fate::UnderWay,
        });
        backup.commit(draft)?;
        self.points.last_mut().unwrap().fate = Fate::Committed;
        Ok(())
    }

    /// Forgets points.
    pub(crate) fn forget(&mut self, repo: &Repository, points: &[PointId]) -> Result<()> {
        points.iter().for_each(|id| *self.fate(*id) = Fate::Moving);
        repo.forget(points)?;
        points
            .iter()
            .for_each(|id| *self.fate(*id) = Fate::Forgotten);
        Ok(())
    }

    /// Takes the forgetting of a point back.
    pub(crate) fn undo_forget(&mut self, repo: &Repository, point: PointId) -> Result<()> {
        *self.fate(point) = Fate::Moving;
        repo.undo_forget(point, &Cancel::new())?;
        *self.fate(point) = Fate::Committed;
        Ok(())
    }

    /// Pins a point; the answer names the pin.
    pub(crate) fn pin(&mut self, repo: &Repository, point: PointId) -> Result<String> {
        let name = repo.pin(&[point], PinKind::User, "test")?;
        self.pins.insert(name.clone(), true);
        Ok(name)
    }

    pub(crate) fn unpin(&mut self, repo: &Repository, name: &str) -> Result<()> {
        self.pins.remove(name);
        repo.pins().remove(name)?;
        self.pins.insert(name.to_owned(), false);
        Ok(())
    }

    /// Takes all forgetting back, but for what is pruned.
    pub(crate) fn remember_all(&mut self, repo: &Repository) {
        for point in repo.forgotten().unwrap().points {
            let fate = *self.fate(point.id);
            match self.undo_forget(repo, point.id) {
                Err(Error::Pruned { .. })
                    if matches!(fate, Fate::Pruned | Fate::MovingOrPruned) =>
                {
                    *self.fate(point.id) = fate;
                }
                undone => undone.unwrap(),
            }
        }
    }

    /// Mends the repository, and removes what is of no use any more.
    pub(crate) fn repair(&self, repo: &Repository) -> Result<RepairReport> {
        let options = RepairOptions {
            remove: true,
            ..RepairOptions::default()
        };
        repo.repair(options, &Quiet, &Cancel::new())
    }

    /// Gives back all space that no point needs, as far as the disk lets it: what it cannot delete is
    /// told in the report.
    pub(crate) fn prune(&mut self, repo: &Repository) -> Result<PruneReport> {
        for point in &mut self.points {
            point.fate = match point.fate {
                Fate::Forgotten => Fate::Pruned,
                Fate::Moving => Fate::MovingOrPruned,
                fate => fate,
            };
        }
        let options = PruneOptions {
            unused_max_percent: 0.0,
            keep_unfinished: Duration::ZERO,
            ..PruneOptions::default()
        };
        repo.prune(options, &Quiet, &Cancel::new())
    }

    /// The same on a sound disk.
    pub(crate) fn prune_all(&mut self, repo: &Repository) -> PruneReport {
        let report = self.prune(repo).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        report
    }

    /// All points are as they must be, and check finds no damage.
    pub(crate) fn find_all_well(&self, repo: &Repository) {
        self.inspect(repo);
        let report = check(repo);
        assert!(
            report.is_clean(),
            "{:?} {:?}",
            report.damage,
            report.affected
        );
    }

    /// Compares every point with what it must hold.
    pub(crate) fn inspect(&self, repo: &Repository) {
        assert!(repo.damaged_points().unwrap().is_empty());
        let found = repo.points().unwrap();
        let forgotten = repo.forgotten().unwrap().points;
        for Expected { id, fate, .. } in &self.points {
            let place = (
                found.iter().any(|point| point.id == *id),
                forgotten.iter().any(|point| point.id == *id),
            );
            let is_right = match fate {
                Fate::UnderWay => !place.1,
                Fate::Committed => place == (true, false),
                Fate::Moving => place.0 != place.1,
                Fate::Forgotten => place == (false, true),
                Fate::Pruned => !place.0,
                Fate::MovingOrPruned => place != (true, true),
            };
            assert!(is_right, "{fate:?} point {id}: there, forgotten: {place:?}");
        }
        let pins = repo.pins().list().unwrap();
        for (name, must) in &self.pins {
            let is_there = pins.iter().any(|(pin, _)| pin == name);
            assert_eq!(is_there, *must, "the pin {name}");
        }
        for point in found {
            let expected = self.points.iter().find(|expected| expected.id == point.id);
            let expected = expected.unwrap_or_else(|| panic!("what is {}?", point.id));
            assert_eq!(point.disks.len(), expected.disks.len());
            for (disk, bytes) in point.disks.iter().zip(&expected.disks) {
                let target = &disk.target;
                assert!(
                    restore_disk(repo, &point, disk) == *bytes,
                    "{target} differs"
                );
            }
            assert_eq!(repo.read_file(&point, &point.files[0]).unwrap(), FIRMWARE);
        }
    }
}
