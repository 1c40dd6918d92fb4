//! What was found damaged stays known as damaged until it is stored anew; and once that has happened,
//! the good copy is what counts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtkeep_repo::{
    ByteLen, Cancel, Env, Error, InitOptions, NoProgress, OpenOptions, Point, Random,
    RepairOptions, Repository,
};

use crate::disk::{MemoryDisk, backup, draft, restore};
use crate::last_copy::{path_of, with_a_last_pack};
use crate::prune::{History, Quiet, assert_clean, noise, now, prune, reopen, small};
use crate::rebuild::rebuild;

/// The data packs there are.
pub(crate) fn data_packs(repo: &Repository) -> Vec<PathBuf> {
    fs::read_dir(repo.path().join("packs"))
        .unwrap()
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|path| fs::read(path).unwrap()[10] == 1)
        .collect()
}

/// Spoils the content of the first record.
pub(crate) fn spoil(pack: &Path) {
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(&[0xff; 16], 64 + 200).unwrap();
}

pub(crate) fn repair(repo: &Repository, remove: bool) {
    let options = RepairOptions {
        remove,
        ..RepairOptions::default()
    };
    repo.repair(options, &Quiet, &Cancel::new()).unwrap();
}

/// A disk that one point holds, which is forgotten: garbage.
fn garbage(repo: &Repository) -> (MemoryDisk, Point) {
    let mut disk = MemoryDisk::new(512 << 10);
    disk.write(0, &noise(4711, 512 << 10));
    let point = backup(repo, &disk.whole(), None);
    repo.forget(&[point.id]).unwrap();
    (disk, point)
}

/// A backup that has found all of its disk in garbage, which is damaged and repaired before it commits.
fn backup_over_damage(repo: &Repository, damage: fn(&Path), remove: bool) -> (MemoryDisk, Point) {
    let before = data_packs(repo);
    let (mut disk, _) = garbage(repo);
    let source = disk.whole();
    let running = repo.begin_backup(&[], "test").unwrap();
    let stored = running
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    assert_eq!(stored.stats.new_chunks, 0, "all of it was found");
    let of_garbage = data_packs(repo);
    let pack = of_garbage.iter().find(|pack| !before.contains(pack));
    damage(pack.unwrap());
    repair(&reopen(repo), remove);
    let point = running.commit(draft(&source, stored)).unwrap();
    (disk, point)
}

#[test]
fn what_a_running_backup_relies_on_stays_wanted_when_it_is_found_damaged() {
    for remove in [false, true] {
        let (_dir, repo) = small();
        let mut history = History::new(512 << 10);
        history.grow(&repo, 2);
        let (mut disk, point) = backup_over_damage(&repo, spoil, remove);

        let repo = reopen(&repo);
        prune(&repo, now());
        let next = backup(&repo, &disk.changes(), Some(&point));
        let repo = reopen(&repo);
        assert!(restore(&repo, &next) == disk.bytes, "remove: {remove}");
        assert!(restore(&repo, &point) == disk.bytes);
        repair(&repo, true);
        assert_eq!(repo.wanted().unwrap(), 0);
        history.assert_restores(&repo);
        assert_clean(&repo);
    }
}

#[test]
fn what_a_running_backup_relies_on_is_wanted_also_when_nothing_tells_any_more_that_it_was_there() {
    for remove in [false, true] {
        let (_dir, repo) = small();
        let mut history = History::new(512 << 10);
        history.grow(&repo, 2);
        let (mut disk, point) = backup_over_damage(&repo, spoil_record_and_table, remove);

        let repo = reopen(&repo);
        let next = backup(&repo, &disk.changes(), Some(&point));
        let repo = reopen(&repo);
        assert!(restore(&repo, &next) == disk.bytes, "remove: {remove}");
        assert!(restore(&repo, &point) == disk.bytes);
        prune(&repo, now());
        repair(&repo, true);
        assert_eq!(repo.wanted().unwrap(), 0);
        history.assert_restores(&repo);
        assert_clean(&repo);
    }
}

/// Spoils the header of the first record, and the table: nothing of that record is left.
fn spoil_record_and_table(pack: &Path) {
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    let len = file.metadata().unwrap().len();
    for at in [64, len - 100] {
        file.write_all_at(&[0xff; 48], at).unwrap();
    }
}

#[test]
fn prune_goes_on_beside_a_pack_that_was_cut_short_once_repair_knows_of_it() {
    let (_dir, repo, mut history, last) = with_a_last_pack();
    let pack = path_of(&repo, last.id);
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.set_len(100).unwrap();
    let repo = reopen(&repo);
    garbage(&repo);
    let pruned = repo.prune(now(), &Quiet, &Cancel::new());
    let is_refused = matches!(pruned, Err(Error::Unprunable { .. }));
    assert!(is_refused, "{pruned:?}");

    repair(&repo, false);
    assert!(repo.wanted().unwrap() > 0);
    assert!(prune(&repo, now()).packs_removed > 0);
    history.back_up(&reopen(&repo));
    let repo = reopen(&repo);
    history.assert_restores(&repo);
    prune(&repo, now());
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn what_a_point_that_comes_back_relies_on_is_still_known_as_damaged() {
    let (_dir, repo) = small();
    let mut history = History::new(512 << 10);
    history.grow(&repo, 2);
    let before = data_packs(&repo);
    let (mut disk, point) = garbage(&repo);
    let of_garbage = data_packs(&repo);
    spoil(
        of_garbage
            .iter()
            .find(|pack| !before.contains(pack))
            .unwrap(),
    );
    let repo = reopen(&repo);
    repair(&repo, false);
    repo.undo_forget(point.id, &Cancel::new()).unwrap();
    prune(&repo, now());
    let next = backup(&repo, &disk.changes(), Some(&point));
    let repo = reopen(&repo);
    assert!(restore(&repo, &next) == disk.bytes);
    repair(&repo, true);
    assert_eq!(repo.wanted().unwrap(), 0);
    assert_clean(&repo);
}

/// What is made later has a higher name.
struct Rising(AtomicU64);

impl Random for Rising {
    fn fill(&self, bytes: &mut [u8]) {
        let number = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let len = bytes.len().min(8);
        bytes[..len].copy_from_slice(&number[8 - len..]);
    }
}

#[test]
fn when_the_index_is_built_anew_the_good_copy_counts_and_not_the_damaged_one() {
    // The damaged pack is met first.
    let dir = tempfile::tempdir().unwrap();
    let mut env = Env::system();
    env.random = Arc::new(Rising(AtomicU64::new(1 << 32)));
    let options = InitOptions {
        chunk_size: ByteLen(4096),
        ..InitOptions::default()
    };
    let path = dir.path().join("repo");
    let repo = Repository::init(&path, &options, env.clone()).unwrap();
    let mut disk = MemoryDisk::new(256 << 10);
    disk.write(0, &noise(1, 256 << 10));
    let point = backup(&repo, &disk.whole(), None);
    spoil(&data_packs(&repo)[0]);
    let repo = Repository::open(&path, &OpenOptions::default(), env.clone()).unwrap();
    repair(&repo, false);
    let healing = backup(&repo, &disk.changes(), Some(&point));
    let repo = Repository::open(&path, &OpenOptions::default(), env).unwrap();
    assert!(restore(&repo, &point) == disk.bytes);
    assert_eq!(data_packs(&repo).len(), 3, "damaged, salvaged, healed");

    for spoiled in [false, true] {
        if spoiled {
            fs::write(path.join("index.redb"), "gone").unwrap();
        }
        rebuild(&repo);
        let repo = reopen(&repo);
        assert!(restore(&repo, &point) == disk.bytes, "spoiled: {spoiled}");
        assert!(restore(&repo, &healing) == disk.bytes);
    }
    let repo = reopen(&repo);
    prune(&repo, now());
    assert_clean(&repo);
    assert!(restore(&repo, &point) == disk.bytes);
}

#[test]
fn a_pack_without_a_row_that_cannot_be_read_is_mended_or_removed_and_not_left_for_ever() {
    let (_dir, repo) = small();
    let mut history = History::new(512 << 10);
    history.grow(&repo, 2);
    let folder = repo.path().join("packs/ab");
    fs::create_dir_all(&folder).unwrap();
    let rubbish = folder.join(format!("ab{}.pack", "0".repeat(30)));
    fs::write(&rubbish, noise(5, 10_000)).unwrap();
    // A pack that the index was never told of, and whose table is spoiled.
    let lost = folder.join(format!("ab{}.pack", "1".repeat(30)));
    fs::copy(&data_packs(&repo)[0], &lost).unwrap();
    let len = fs::metadata(&lost).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&lost).unwrap();
    file.write_all_at(&[0xff; 16], len - 100).unwrap();

    repair(&repo, false);
    assert!(rubbish.exists() && lost.exists());
    repair(&repo, true);
    assert!(!rubbish.exists() && !lost.exists());
    assert!(prune(&repo, now()).damage.is_empty());
    history.assert_restores(&repo);
    assert_clean(&repo);
}
