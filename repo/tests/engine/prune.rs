//! The life cycle: points come and go, prune gives the space back, and all other points stay what
//! they are.

use std::time::Duration;

use virtkeep_repo::{
    ByteLen, Cancel, CheckOptions, CheckProgress, Env, Error, InitOptions, OpenOptions, Point,
    PruneOptions, PruneProgress, PruneReport, PruneStage, ReadData, RepairOptions, Repository,
};

use crate::disk::{MemoryDisk, backup, repository, restore};
use crate::last_copy::{pack_ids, path_of};
use crate::prune_races::index_of;

pub(crate) struct Quiet;

impl PruneProgress for Quiet {
    fn begin(&self, _: PruneStage, _: u64) {}
    fn done(&self) {}
}

impl CheckProgress for Quiet {
    fn packs(&self, _: u64) {}
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

/// As thorough as can be, without waiting for backups.
pub(crate) fn now() -> PruneOptions {
    PruneOptions {
        unused_max_percent: 0.0,
        keep_unfinished: Duration::ZERO,
        ..PruneOptions::default()
    }
}

pub(crate) fn prune(repo: &Repository, options: PruneOptions) -> PruneReport {
    repo.prune(options, &Quiet, &Cancel::new()).unwrap()
}

pub(crate) fn assert_clean(repo: &Repository) {
    let report = repo
        .check(
            CheckOptions {
                read_data: ReadData::ALL,
            },
            &Quiet,
            &Cancel::new(),
        )
        .unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Bytes that neither repeat nor compress.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A repository with small chunks and small packs.
pub(crate) fn small() -> (tempfile::TempDir, Repository) {
    let (dir, repo) = repository(&InitOptions {
        chunk_size: ByteLen(4096),
        ..InitOptions::default()
    });
    let repo = reopen(&repo);
    (dir, repo)
}

pub(crate) fn reopen(repo: &Repository) -> Repository {
    let options = OpenOptions {
        pack_size: Some(ByteLen(256 << 10)),
        ..OpenOptions::default()
    };
    Repository::open(repo.path(), &options, Env::system()).unwrap()
}

/// A history of points: each writes `chunks` chunks somewhere.
pub(crate) struct History {
    pub(crate) disk: MemoryDisk,
    pub(crate) points: Vec<(Point, Vec<u8>)>,
    seed: u64,
}

impl History {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            disk: MemoryDisk::new(bytes),
            points: Vec::new(),
            seed: 0,
        }
    }

    pub(crate) fn write(&mut self, at: usize, len: usize) {
        self.seed += 1;
        self.disk.write(at, &noise(self.seed, len));
    }

    pub(crate) fn back_up(&mut self, repo: &Repository) {
        let parent = self.points.last().map(|(point, _)| point.clone());
        let source = if parent.is_some() {
            self.disk.changes()
        } else {
            self.disk.whole()
        };
        let point = backup(repo, &source, parent.as_ref());
        self.points.push((point, self.disk.bytes.clone()));
    }

    /// `count` points; each after the first changes 64 KiB, which the third after it overwrites.
    pub(crate) fn grow(&mut self, repo: &Repository, count: usize) {
        if self.points.is_empty() {
            let len = self.disk.bytes.len();
            self.write(0, len / 2);
            self.back_up(repo);
        }
        for number in 1..count {
            self.write(number % 3 * 65536, 65536);
            self.back_up(repo);
        }
    }

    /// Forgets the points at these positions.
    pub(crate) fn forget(&mut self, repo: &Repository, positions: &[usize]) {
        let ids: Vec<_> = positions.iter().map(|at| self.points[*at].0.id).collect();
        repo.forget(&ids).unwrap();
        self.points.retain(|(point, _)| !ids.contains(&point.id));
    }

    pub(crate) fn assert_restores(&self, repo: &Repository) {
        for (point, bytes) in &self.points {
            assert!(restore(repo, point) == *bytes, "{}", point.id);
        }
    }
}

#[test]
fn pruning_frees_what_forgotten_points_alone_needed_and_touches_no_other() {
    let (_dir, repo) = small();
    let mut history = History::new(4 << 20);
    history.grow(&repo, 12);
    let before = repo.stats().unwrap().pack_bytes;
    history.forget(&repo, &[3, 4, 5, 6, 7, 8]);

    let forecast = repo.prune_dry_run(now(), &Quiet, &Cancel::new()).unwrap();
    assert_eq!(repo.stats().unwrap().pack_bytes, before);
    let report = prune(&repo, now());
    assert_eq!(report.points, 6);
    assert_eq!(report.forgotten_removed, 6);
    assert!(report.bytes_freed() > 200 << 10, "{report:?}");
    // The new packs may share headers: the forecast is a little too low.
    let freed = before - repo.stats().unwrap().pack_bytes;
    assert_eq!(report.bytes_freed(), freed);
    assert!(forecast.bytes_freed() <= freed);
    assert!(forecast.bytes_freed() > freed / 10 * 9, "{forecast:?}");
    history.assert_restores(&repo);
    assert_clean(&repo);
    assert!(repo.forgotten().unwrap().points.is_empty());

    let again = prune(&repo, now());
    assert_eq!(
        (again.packs_removed, again.packs_rewritten),
        (0, 0),
        "{again:?}"
    );
    history.back_up(&repo);
    history.assert_restores(&repo);
}

#[test]
fn a_repository_without_points_is_empty_after_a_prune() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 3);
    history.forget(&repo, &[0, 1, 2]);
    let report = prune(&repo, now());
    assert_eq!(report.points, 0);
    let stats = repo.stats().unwrap();
    assert_eq!((stats.packs, stats.pack_bytes, stats.chunks), (0, 0, 0));
    assert_clean(&repo);
}

#[test]
fn a_dead_pack_that_cannot_be_deleted_is_told_and_keeps_nobody_from_pruning() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 3);
    // As a prune leaves it that was killed after its decision.
    let mut disk = MemoryDisk::new(64 << 10);
    disk.write(0, &noise(77, 64 << 10));
    let before = pack_ids(&repo);
    let point = backup(&repo, &disk.whole(), None);
    let mut dead = pack_ids(&repo);
    dead.retain(|pack| !before.contains(pack));
    repo.forget(&[point.id]).unwrap();
    let index = index_of(&repo);
    index.write(|edit| edit.condemn(&dead)).unwrap();
    index.write(|edit| edit.bury(&dead)).unwrap();
    let path = path_of(&repo, dead[0]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();

    let repo = reopen(&repo);
    for packs in 0..2 {
        let report = prune(&repo, now());
        assert_eq!(report.damage.len(), 1, "{report:?}");
        assert_eq!(report.packs_removed > 0, packs == 0, "{report:?}");
    }
    std::fs::remove_dir(&path).unwrap();
    assert!(prune(&repo, now()).damage.is_empty());
    assert!(index.packs().unwrap().iter().all(|row| row.id != dead[0]));
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn nothing_is_pruned_while_a_record_is_lost_that_repair_can_put_back() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 3);
    for (point, _) in &history.points {
        let record = repo.path().join("points").join(point.id.to_string());
        std::fs::remove_file(record).unwrap();
    }
    for pruned in [
        repo.prune_dry_run(now(), &Quiet, &Cancel::new()),
        repo.prune(now(), &Quiet, &Cancel::new()),
    ] {
        assert!(
            matches!(pruned, Err(Error::Unprunable { .. })),
            "{pruned:?}"
        );
    }

    // Nor is the index's copy lost when its other contents are built anew.
    let options = OpenOptions::default();
    Repository::rebuild_index(repo.path(), &options, Env::system(), &Quiet, &Cancel::new())
        .unwrap();
    let repo = reopen(&repo);
    let healed = repo.repair(RepairOptions::default(), &Quiet, &Cancel::new());
    assert_eq!(healed.unwrap().points_healed.len(), 3);
    prune(&repo, now());
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn several_passes_with_little_memory_come_to_the_same_result_as_one() {
    let kept = |live_ids_max: usize| {
        let (_dir, repo) = small();
        let mut history = History::new(4 << 20);
        history.grow(&repo, 12);
        history.forget(&repo, &[1, 2, 5, 6, 7]);
        let options = PruneOptions {
            live_ids_max,
            ..now()
        };
        let report = prune(&repo, options);
        history.assert_restores(&repo);
        assert_clean(&repo);
        let stats = repo.stats().unwrap();
        assert!(report.packs_rewritten > 0, "{report:?}");
        (stats.chunks, stats.pack_bytes)
    };
    assert_eq!(kept(50), kept(1 << 20));
}

#[test]
fn after_an_exact_prune_only_what_points_need_is_left() {
    let (_dir, repo) = small();
    let mut history = History::new(4 << 20);
    history.grow(&repo, 12);
    history.forget(&repo, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let options = PruneOptions {
        exact: true,
        ..PruneOptions::default()
    };
    prune(&repo, options);

    // The same disk alone, in a repository of its own, holds as many records.
    let (_dir, alone) = small();
    backup(&alone, &history.disk.whole(), None);
    let (left, needed) = (repo.stats().unwrap(), alone.stats().unwrap());
    assert_eq!(left.chunks, needed.chunks);
    let difference = left.pack_bytes.abs_diff(needed.pack_bytes);
    assert!(difference < 4096, "{left:?} {needed:?}");
    history.assert_restores(&repo);
}

#[test]
fn what_an_interrupted_backup_stored_is_kept_for_a_while_and_then_goes() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 1);
    let other = noise(99, 1 << 20);
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &other);
    let running = repo.begin_backup(&[], "test").unwrap();
    running
        .store_disk(
            &disk.whole(),
            None,
            &virtkeep_repo::NoProgress,
            &Cancel::new(),
        )
        .unwrap();
    drop(running);

    let kept = prune(&repo, PruneOptions::default());
    assert!(kept.bytes_unfinished > 500 << 10, "{kept:?}");
    assert_eq!(kept.packs_removed, 0);
    let gone = prune(&repo, now());
    assert!(gone.bytes_removed > 500 << 10, "{gone:?}");
    assert_eq!(gone.bytes_unfinished, 0);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn many_incrementals_do_not_leave_many_packs() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 40);
    let before = repo.stats().unwrap().packs;
    let report = prune(&repo, PruneOptions::default());
    let after = repo.stats().unwrap().packs;
    assert!(before > 80 && after < 30, "{before} then {after} packs");
    assert!(report.packs_rewritten > 50, "{report:?}");
    history.assert_restores(&repo);
    let again = prune(&repo, PruneOptions::default());
    assert_eq!(again.packs_rewritten, 0, "{again:?}");
    assert_clean(&repo);
}
