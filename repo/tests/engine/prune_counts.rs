//! What prune counted as needed, and others changed since.

use std::fs;

use virtkeep_repo::index::{Indexed, View};
use virtkeep_repo::prune::Prune;
use virtkeep_repo::storage::{LocalStorage, ObjectName};
use virtkeep_repo::{Cancel, NoProgress, PackId, PackKind, RawId, Repository};

use crate::disk::{MemoryDisk, backup, draft, restore};
use crate::hooked::{Moment, hooked};
use crate::prune::{History, Quiet, assert_clean, noise, now, prune, reopen, small};
use crate::prune_races::index_of;

fn packs(repo: &Repository, kind: PackKind) -> Vec<PackId> {
    let rows = index_of(repo).packs().unwrap();
    let of_kind = rows.iter().filter(|row| row.kind == kind);
    of_kind.map(|row| row.id).collect()
}

#[test]
fn of_a_pack_whose_records_are_partly_found_elsewhere_only_the_others_are_copied() {
    let (_dir, repo) = small();
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &noise(1, 1 << 20));
    let point = backup(&repo, &disk.whole(), None);
    repo.forget(&[point.id]).unwrap();
    let mut same = disk.clone();
    let source = same.whole();
    let early = repo.begin_backup(&[], "test").unwrap();
    let found = early
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    assert!(prune(&repo, now()).packs_waiting > 0);

    // Every second pair of chunks is stored once more, since all packs are condemned.
    let mut half = MemoryDisk::new(1 << 20);
    for at in (0..1 << 20).step_by(16 << 10) {
        half.write(at, &disk.bytes[at..at + (8 << 10)]);
    }
    let late = backup(&repo, &half.whole(), None);
    assert_eq!(late.disks[0].stats.new_chunks, 128);
    let early = early.commit(draft(&source, found)).unwrap();
    assert_eq!(repo.stats().unwrap().chunks, 256 + 128);

    let report = prune(&repo, now());
    assert!(report.packs_rewritten > 0, "{report:?}");
    assert_eq!(repo.stats().unwrap().chunks, 256);
    assert!(restore(&repo, &early) == disk.bytes);
    assert!(restore(&repo, &late) == half.bytes);
    assert_clean(&repo);
}

#[test]
fn all_is_kept_of_a_pack_of_which_other_records_are_found_now_than_were_counted() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 3);
    history.forget(&repo, &[0]);
    let needed = 128;
    assert!(repo.stats().unwrap().chunks > needed);
    let cancel = Cancel::new();
    let mut pruning = Prune::begin(&repo, now(), &Quiet, &cancel).unwrap();
    pruning.mark().unwrap();
    let batches = pruning.batches();
    assert_eq!(batches.len(), 1);

    // All chunks are wanted, and those of this moment stored anew.
    let index = index_of(&repo);
    let first = RawId::from_bytes([0; 32]);
    let entries = index.read(|view| view.scan(first, 10_000)).unwrap();
    let data = packs(&repo, PackKind::Data);
    let numbered = index.read(View::numbered_packs).unwrap();
    let is_chunk = |entry: &&Indexed| {
        let row = numbered.iter().find(|(number, _)| *number == entry.pack);
        data.contains(&row.unwrap().1.id)
    };
    let chunks: Vec<RawId> = entries.iter().filter(is_chunk).map(|e| e.id).collect();
    index.write(|edit| edit.want(&chunks)).unwrap();
    let mut disk = history.disk.clone();
    let point = backup(&repo, &disk.whole(), None);
    assert_eq!(point.disks[0].stats.new_chunks, needed);

    let emptied = pruning.rewrite(&batches[0]).unwrap();
    assert_eq!(emptied.len(), batches[0].len());
    pruning.condemn(&emptied).unwrap();
    pruning.settle().unwrap();
    pruning.finish().unwrap();
    history.assert_restores(&repo);
    assert_clean(&repo);
    let kept = repo.stats().unwrap().chunks;
    prune(&repo, now());
    let left = repo.stats().unwrap().chunks;
    assert!(kept > left, "{kept} then {left}");
    history.assert_restores(&repo);
    assert!(restore(&repo, &point) == disk.bytes);
    assert_clean(&repo);
}

#[test]
fn a_dry_run_is_not_misled_by_a_point_that_is_forgotten_and_pruned_meanwhile() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 4);
    let gone = history.points[1].0.id;
    let other = reopen(&repo);
    // The roots come first; what is below them is missing then.
    let meta = ObjectName::Pack(packs(&repo, PackKind::Meta)[0]);
    let looking = hooked(repo.path(), Moment::Read(meta), move || {
        other.forget(&[gone]).unwrap();
        assert!(prune(&other, now()).packs_removed > 0);
    });
    let forecast = looking.prune_dry_run(now(), &Quiet, &Cancel::new());
    assert_eq!(forecast.unwrap().points, 3);
}

#[test]
fn a_dry_run_is_not_misled_by_a_pack_that_is_being_deleted() {
    let (_dir, repo) = small();
    let mut history = History::new(1 << 20);
    history.grow(&repo, 2);
    // As a prune leaves it for a moment that has copied all of it.
    let pack = packs(&repo, PackKind::Data)[0];
    let (index, name) = (index_of(&repo), ObjectName::Pack(pack));
    let file = LocalStorage::new(repo.path()).path_of(&name);
    fs::remove_file(&file).unwrap();
    let looking = hooked(repo.path(), Moment::Measured(name), move || {
        let dead = index.write(|edit| {
            edit.condemn(&[pack])?;
            edit.bury(&[pack])
        });
        dead.unwrap();
    });
    let forecast = looking.prune_dry_run(now(), &Quiet, &Cancel::new());
    assert_eq!(forecast.unwrap().points, 2);
}
