//! Prune does not take the index's word for it that a pack can go: the last good copy of what points
//! need stays, wherever the index says that it is.

use std::fs;

use virtkeep_repo::config::Config;
use virtkeep_repo::format::pack::{FinishedPack, PackEntry, read_table};
use virtkeep_repo::index::View;
use virtkeep_repo::storage::LocalStorage;
use virtkeep_repo::{Cancel, Env, Error, PackId, PruneReport, RepairOptions, Repository};

use crate::disk::{MemoryDisk, backup, restore};
use crate::healing::{data_packs, spoil};
use crate::prune::{History, Quiet, assert_clean, noise, now, prune, reopen, small};
use crate::prune_races::index_of;
use crate::rebuild::rebuild;

fn table(repo: &Repository, pack: PackId) -> FinishedPack {
    let text = fs::read_to_string(repo.path().join("config.toml")).unwrap();
    let keys = Config::parse(&text, repo.path()).unwrap().keys();
    read_table(&LocalStorage::new(repo.path()), pack, &keys).unwrap()
}

/// The data packs that are not among `before`.
fn new_packs(repo: &Repository, before: &[PackId]) -> Vec<PackId> {
    let mut packs = pack_ids(repo);
    packs.retain(|pack| !before.contains(pack));
    packs
}

pub(crate) fn pack_ids(repo: &Repository) -> Vec<PackId> {
    let name = |path: &std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().parse();
    let packs = data_packs(repo);
    packs.iter().map(|path| name(path).unwrap()).collect()
}

pub(crate) fn path_of(repo: &Repository, pack: PackId) -> std::path::PathBuf {
    let name = format!("{pack}.pack");
    let mut packs = data_packs(repo).into_iter();
    packs.find(|path| path.ends_with(&name)).unwrap()
}

/// Makes the index find this record of `from` elsewhere.
fn misplace(repo: &Repository, from: PackId, entry: PackEntry, to: &FinishedPack, offset: u32) {
    lose(repo, from, entry);
    let only = FinishedPack {
        entries: vec![PackEntry { offset, ..entry }],
        ..to.clone()
    };
    index_of(repo).add_packs(&[only]).unwrap();
}

/// Makes the index find this record of `from` nowhere.
pub(crate) fn lose(repo: &Repository, from: PackId, entry: PackEntry) {
    let index = index_of(repo);
    let rows = index.read(View::numbered_packs).unwrap();
    let (number, _) = rows.iter().find(|(_, row)| row.id == from).unwrap();
    index.drop_located(&[(entry.id, *number)]).unwrap();
}

fn repair_to_whole(repo: &Repository) {
    let mended = repo.repair(RepairOptions::default(), &Quiet, &Cancel::new());
    let mended = mended.unwrap();
    assert!(mended.is_whole(), "{mended:?}");
}

fn assert_kept_and_mended(repo: &Repository, report: &PruneReport, history: &History) {
    assert_eq!(report.damage.len(), 1, "{report:?}");
    rebuild(repo);
    let repo = reopen(repo);
    let mended = repo.repair(RepairOptions::default(), &Quiet, &Cancel::new());
    assert!(mended.unwrap().is_whole());
    history.assert_restores(&repo);
    assert!(prune(&repo, now()).damage.is_empty());
    history.assert_restores(&repo);
    assert_clean(&repo);
}

/// A history, and in a pack of its own the records of a last write.
pub(crate) fn with_a_last_pack() -> (tempfile::TempDir, Repository, History, FinishedPack) {
    let (dir, repo) = small();
    let mut history = History::new(512 << 10);
    history.grow(&repo, 2);
    let before = pack_ids(&repo);
    history.write(400 << 10, 4096);
    history.back_up(&repo);
    let [last] = new_packs(&repo, &before)[..] else {
        panic!("one data pack of one chunk");
    };
    let last = table(&repo, last);
    (dir, repo, history, last)
}

#[test]
fn a_pack_stays_whose_record_the_index_finds_in_another_pack_that_does_not_hold_it() {
    let (_dir, repo, history, last) = with_a_last_pack();
    let other = pack_ids(&repo).into_iter().find(|id| *id != last.id);
    let other = table(&repo, other.unwrap());
    misplace(&repo, last.id, last.entries[0], &other, 64);
    let repo = reopen(&repo);
    let forecast = repo.prune_dry_run(now(), &Quiet, &Cancel::new()).unwrap();
    assert_eq!(forecast.damage.len(), 1, "{forecast:?}");
    let report = prune(&repo, now());
    assert_kept_and_mended(&repo, &report, &history);
}

#[test]
fn a_pack_stays_that_holds_the_good_copy_of_what_the_index_finds_damaged_elsewhere() {
    let (_dir, repo, history, last) = with_a_last_pack();
    let before = pack_ids(&repo);
    spoil(&path_of(&repo, last.id));
    let repo = reopen(&repo);
    let cancel = Cancel::new();
    repo.repair(RepairOptions::default(), &Quiet, &cancel)
        .unwrap();
    let (point, bytes) = history.points.last().unwrap().clone();
    let mut disk = MemoryDisk::new(bytes.len());
    disk.bytes = bytes.clone();
    backup(&repo, &disk.changes(), Some(&point));
    let [healed] = new_packs(&repo, &before)[..] else {
        panic!("one data pack of one chunk");
    };
    let healed = table(&repo, healed);
    // As an index says it that knows nothing of damage.
    misplace(&repo, healed.id, healed.entries[0], &last, 64);
    let repo = reopen(&repo);
    let report = prune(&repo, now());
    assert_kept_and_mended(&repo, &report, &history);
}

#[test]
fn what_the_index_finds_at_a_wrong_place_is_not_lost_with_a_sparse_pack() {
    for elsewhere in [false, true] {
        let (_dir, repo) = small();
        let mut disk = MemoryDisk::new(256 << 10);
        disk.write(0, &noise(1, 256 << 10));
        let first = backup(&repo, &disk.whole(), None);
        let sparse = pack_ids(&repo);
        let before = sparse.clone();
        // Half of it is needed no more.
        for chunk in 0..32 {
            disk.write(chunk * 8192, &noise(100 + chunk as u64, 4096));
        }
        let second = backup(&repo, &disk.whole(), None);
        let other = table(&repo, new_packs(&repo, &before)[0]);
        repo.forget(&[first.id]).unwrap();
        let sparse = table(&repo, sparse[0]);
        let needed = noise(1, 256 << 10)[4096..8192].to_vec();
        let entry = of_content(&repo, &sparse, &needed);
        if elsewhere {
            misplace(&repo, sparse.id, entry, &other, 64);
        } else {
            misplace(&repo, sparse.id, entry, &sparse, entry.offset + 1);
        }
        let repo = reopen(&repo);
        let report = prune(&repo, now());
        // Within the pack, its own table tells better.
        assert_eq!(report.damage.len(), usize::from(elsewhere), "{report:?}");
        assert_eq!(pack_ids(&repo).contains(&sparse.id), elsewhere);
        rebuild(&repo);
        let repo = reopen(&repo);
        assert!(restore(&repo, &second) == disk.bytes);
        assert!(prune(&repo, now()).damage.is_empty());
        assert!(restore(&repo, &second) == disk.bytes);
        assert_clean(&repo);
    }
}

/// The entry of the record that holds this chunk.
fn of_content(repo: &Repository, pack: &FinishedPack, chunk: &[u8]) -> PackEntry {
    let text = fs::read_to_string(repo.path().join("config.toml")).unwrap();
    let keys = Config::parse(&text, repo.path()).unwrap().keys();
    let id = *keys.chunk_id(chunk).as_bytes();
    let mut entries = pack.entries.iter();
    *entries.find(|entry| *entry.id.as_bytes() == id).unwrap()
}

#[test]
fn what_two_packs_hold_in_good_order_is_kept_once() {
    let (_dir, repo) = small();
    let mut disk = MemoryDisk::new(64 << 10);
    disk.write(0, &noise(1, 64 << 10));
    let mut same = disk.clone();
    let (source, other) = (disk.whole(), same.whole());
    let one = repo.begin_backup(&[], "test").unwrap();
    let cancel = Cancel::new();
    let stored = one
        .store_disk(&source, None, &virtkeep_repo::NoProgress, &cancel)
        .unwrap();
    let options = virtkeep_repo::OpenOptions::default();
    let beside = Repository::open(repo.path(), &options, Env::system()).unwrap();
    let second = backup(&beside, &other, None);
    let first = one.commit(crate::disk::draft(&source, stored)).unwrap();
    assert_eq!(pack_ids(&repo).len(), 2);
    let report = prune(&repo, now());
    assert!(report.damage.is_empty(), "{report:?}");
    assert_eq!(pack_ids(&repo).len(), 1);
    for point in [first, second] {
        assert!(restore(&reopen(&repo), &point) == disk.bytes);
    }
}

#[test]
fn what_was_copied_elsewhere_and_is_damaged_there_is_taken_from_the_pack_that_waits_to_be_removed()
{
    for mended_before in [true, false] {
        let (_dir, repo) = small();
        let mut disk = MemoryDisk::new(256 << 10);
        disk.write(0, &noise(1, 256 << 10));
        let first = backup(&repo, &disk.whole(), None);
        for chunk in 0..32 {
            disk.write(chunk * 8192, &noise(100 + chunk as u64, 4096));
        }
        let second = backup(&repo, &disk.whole(), None);
        repo.forget(&[first.id]).unwrap();
        let before = pack_ids(&repo);
        let running = repo.begin_backup(&[], "test").unwrap();
        assert!(prune(&repo, now()).packs_waiting > 0);
        let [copies] = new_packs(&repo, &before)[..] else {
            panic!("one data pack of copies");
        };
        spoil(&path_of(&repo, copies));
        let repo = reopen(&repo);
        if mended_before {
            repair_to_whole(&repo);
        }
        drop(running);
        let report = prune(&repo, now());
        assert_eq!(report.damage.is_empty(), mended_before, "{report:?}");
        let repo = reopen(&repo);
        if !mended_before {
            repair_to_whole(&repo);
            assert!(prune(&repo, now()).damage.is_empty());
        }
        assert!(restore(&reopen(&repo), &second) == disk.bytes);
        assert_clean(&repo);
    }
}

#[test]
fn what_the_index_finds_nowhere_stops_prune_also_while_a_forgotten_point_is_read() {
    let (_dir, repo, history, last) = with_a_last_pack();
    let mut disk = MemoryDisk::new(64 << 10);
    disk.write(0, &noise(77, 64 << 10));
    let forgotten = backup(&repo, &disk.whole(), None);
    repo.forget(&[forgotten.id]).unwrap();
    let reader = repo.read_disk(&forgotten, &forgotten.disks[0]).unwrap();
    lose(&repo, last.id, last.entries[0]);
    let pruning = reopen(&repo);
    for pruned in [
        pruning.prune_dry_run(now(), &Quiet, &Cancel::new()),
        pruning.prune(now(), &Quiet, &Cancel::new()),
    ] {
        let is_refused = matches!(pruned, Err(Error::Unprunable { .. }));
        assert!(is_refused, "{pruned:?}");
    }
    drop(reader);
    repair_to_whole(&pruning);
    let repo = reopen(&repo);
    history.assert_restores(&repo);
    assert!(prune(&repo, now()).damage.is_empty());
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn a_pack_stays_that_holds_what_is_wanted_and_found_nowhere() {
    let (_dir, repo, history, last) = with_a_last_pack();
    lose(&repo, last.id, last.entries[0]);
    let id = last.entries[0].id;
    index_of(&repo).write(|edit| edit.want(&[id])).unwrap();
    let report = prune(&reopen(&repo), now());
    assert_kept_and_mended(&repo, &report, &history);
}
