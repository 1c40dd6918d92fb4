//! Prune beside everything else, at every moment that matters. Each race is played out step by step.

use std::fs;
use std::sync::{Arc, Mutex, mpsc};

use virtkeep_repo::config::Config;
use virtkeep_repo::format::geometry::FanOut;
use virtkeep_repo::format::node::Node;
use virtkeep_repo::format::pack::{PackWriter, read_table};
use virtkeep_repo::format::record;
use virtkeep_repo::index::{FileGate, Identity, Index, LocalFiles, View};
use virtkeep_repo::lease::{LeaseStore, Roots};
use virtkeep_repo::prune::Prune;
use virtkeep_repo::storage::{LocalStorage, ObjectName, Storage};
use virtkeep_repo::{
    ByteLen, Cancel, Codec, DiskOffset, DiskSink, Env, Error, LeaseId, NoProgress, OpenOptions,
    PackId, PackKind, Point, PruneOptions, PruneProgress, PruneStage, RawId, RecordKind,
    Repository, SourceError,
};

use crate::disk::{MemoryDisk, backup, draft, restore};
use crate::hooked::{Moment, hooked};
use crate::prune::{History, Quiet, assert_clean, noise, now, prune, reopen, small};

fn begin<'a>(repo: &'a Repository, cancel: &'a Cancel) -> Prune<'a> {
    Prune::begin(repo, now(), &Quiet, cancel).unwrap()
}

/// A disk whose content a forgotten point alone holds: garbage that can be found again.
fn garbage(repo: &Repository) -> (MemoryDisk, Point) {
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &noise(4711, 1 << 20));
    let point = backup(repo, &disk.whole(), None);
    repo.forget(&[point.id]).unwrap();
    (disk, point)
}

/// A point beside it, so that not all is garbage.
fn other(repo: &Repository) -> History {
    let mut history = History::new(1 << 20);
    history.grow(repo, 2);
    history
}

fn packs(repo: &Repository) -> u64 {
    repo.stats().unwrap().packs
}

#[test]
fn a_backup_that_found_garbage_before_it_was_condemned_and_commits_afterwards_keeps_it() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let (mut disk, _) = garbage(&repo);
    let before = packs(&repo);
    let source = disk.whole();
    let running = repo.begin_backup(&[], "test").unwrap();
    let stored = running
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    assert_eq!(stored.stats.new_chunks, 0, "all of it was found");

    let report = prune(&repo, now());
    assert!(report.packs_waiting > 0, "{report:?}");
    assert_eq!((report.packs_removed, packs(&repo)), (0, before));
    let point = running.commit(draft(&source, stored)).unwrap();
    assert!(restore(&repo, &point) == disk.bytes);

    let report = prune(&repo, now());
    assert_eq!((report.packs_waiting, report.packs_removed), (0, 0));
    assert!(restore(&repo, &point) == disk.bytes);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn what_waited_for_a_backup_that_gave_up_is_deleted_by_the_next_prune() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let (mut disk, _) = garbage(&repo);
    let running = repo.begin_backup(&[], "test").unwrap();
    running
        .store_disk(&disk.whole(), None, &NoProgress, &Cancel::new())
        .unwrap();
    let waiting = prune(&repo, now()).packs_waiting;
    drop(running);
    let report = prune(&repo, now());
    assert_eq!(report.packs_removed, waiting);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn a_backup_that_starts_and_ends_between_marking_and_condemning_keeps_what_it_found() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let (mut disk, _) = garbage(&repo);
    let cancel = Cancel::new();
    let mut pruning = begin(&repo, &cancel);
    pruning.mark().unwrap();
    let unused = pruning.unused();
    assert!(unused.len() > 3);
    let point = backup(&repo, &disk.whole(), None);
    assert_eq!(point.disks[0].stats.new_chunks, 0);
    pruning.condemn(&unused).unwrap();
    pruning.settle().unwrap();
    let report = pruning.finish().unwrap();
    assert_eq!((report.packs_removed, report.packs_waiting), (0, 0));
    assert!(restore(&repo, &point) == disk.bytes);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn an_id_that_was_condemned_in_one_pack_and_stored_anew_in_another_stays_in_the_other() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let (mut disk, _) = garbage(&repo);
    // Keeps the condemned packs from being removed, and relies on them.
    let mut same = disk.clone();
    let source = same.whole();
    let early = repo.begin_backup(&[], "test").unwrap();
    let found = early
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    let condemned = prune(&repo, now()).packs_waiting;
    assert!(condemned > 0);

    let late = backup(&repo, &disk.whole(), None);
    assert_eq!(late.disks[0].stats.new_chunks, 256, "stored anew");
    let early = early.commit(draft(&source, found)).unwrap();
    let report = prune(&repo, now());
    assert_eq!(report.packs_removed, condemned);
    assert!(restore(&repo, &late) == disk.bytes);
    assert!(restore(&repo, &early) == disk.bytes);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn a_point_that_comes_back_while_prune_is_under_way_is_whole_or_refused() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let (disk, point) = garbage(&repo);
    let cancel = Cancel::new();
    let mut pruning = begin(&repo, &cancel);
    pruning.mark().unwrap();
    let unused = pruning.unused();
    pruning.condemn(&unused).unwrap();
    // Condemned, but not yet dead: it comes back, and its packs are revived.
    repo.undo_forget(point.id, &Cancel::new()).unwrap();
    pruning.settle().unwrap();
    pruning.finish().unwrap();
    assert!(restore(&repo, &point) == disk.bytes);
    assert_clean(&repo);

    repo.forget(&[point.id]).unwrap();
    let mut pruning = begin(&repo, &cancel);
    pruning.mark().unwrap();
    let unused = pruning.unused();
    pruning.condemn(&unused).unwrap();
    pruning.settle().unwrap();
    let refused = repo.undo_forget(point.id, &Cancel::new()).unwrap_err();
    assert!(matches!(refused, Error::Pruned { .. }), "{refused}");
    pruning.remove_forgotten().unwrap();
    pruning.finish().unwrap();
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn readers_and_parents_of_a_point_that_is_forgotten_and_pruned_keep_all_they_rely_on() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &noise(4711, 1 << 20));
    let point = backup(&repo, &disk.whole(), None);
    let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
    let child = repo.begin_backup(&[point.id], "test").unwrap();
    repo.forget(&[point.id]).unwrap();
    let report = prune(&repo, now());
    assert_eq!(
        (report.packs_removed, report.packs_waiting),
        (0, 0),
        "{report:?}"
    );
    assert_eq!(report.forgotten_removed, 0, "somebody relies on it");

    let mut bytes = vec![0; 1 << 20];
    reader.read_at(DiskOffset(0), &mut bytes).unwrap();
    assert!(bytes == disk.bytes);
    let source = disk.changes();
    let stored = child
        .store_disk(&source, Some(&point.disks[0]), &NoProgress, &Cancel::new())
        .unwrap();
    assert_eq!(stored.stats.read_bytes, 0, "all of it was inherited");
    let point = child.commit(draft(&source, stored)).unwrap();
    drop(reader);
    prune(&repo, now());
    assert!(restore(&repo, &point) == disk.bytes);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

/// Prunes the repository as soon as something has been restored.
struct PruningSink<'a> {
    repo: &'a Repository,
    bytes: Mutex<Vec<u8>>,
    pruned: Mutex<bool>,
}

impl DiskSink for PruningSink<'_> {
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError> {
        let mut pruned = self.pruned.lock().unwrap();
        if !*pruned {
            *pruned = true;
            let report = prune(self.repo, now());
            assert!(report.packs_rewritten > 3, "{report:?}");
        }
        let start = offset.0 as usize;
        self.bytes.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&self, _: DiskOffset, _: ByteLen) -> Result<(), SourceError> {
        Ok(())
    }
}

#[test]
fn a_reader_whose_packs_are_rewritten_finds_everything_in_the_new_ones() {
    let (_dir, repo) = small();
    let mut disk = MemoryDisk::new(4 << 20);
    disk.write(0, &noise(1, 4 << 20));
    let first = backup(&repo, &disk.whole(), None);
    // Every pack becomes sparse.
    for block in 0..1024 {
        if block % 3 == 0 {
            disk.write(block * 4096, &noise(2 + block as u64, 4096));
        }
    }
    let second = backup(&repo, &disk.whole(), None);
    repo.forget(&[first.id]).unwrap();

    let reading = reopen(&repo);
    let reader = reading.read_disk(&second, &second.disks[0]).unwrap();
    let sink = PruningSink {
        repo: &repo,
        bytes: Mutex::new(vec![0; 4 << 20]),
        pruned: Mutex::default(),
    };
    reader
        .copy_to(
            DiskOffset(0),
            DiskOffset(4 << 20),
            &sink,
            &NoProgress,
            &Cancel::new(),
        )
        .unwrap();
    assert!(sink.bytes.into_inner().unwrap() == disk.bytes);
    let mut bytes = vec![0; 4 << 20];
    reader.read_at(DiskOffset(0), &mut bytes).unwrap();
    assert!(bytes == disk.bytes);
    assert_clean(&repo);
}

pub(crate) fn index_of(repo: &Repository) -> Index {
    Index::open(
        Arc::new(LocalFiles::new(repo.path())),
        Arc::new(FileGate::new(&repo.path().join("locks"), "test")),
        Identity {
            repo: repo.id(),
            owner: 1,
        },
    )
    .unwrap()
}

/// Makes the index find none of the leaves in packs that are not among `before`.
fn lose_leaves(repo: &Repository, before: &[PackId]) {
    let text = fs::read_to_string(repo.path().join("config.toml")).unwrap();
    let keys = Config::parse(&text, repo.path()).unwrap().keys();
    let (storage, index) = (LocalStorage::new(repo.path()), index_of(repo));
    let mut leaves = Vec::new();
    for (number, row) in index.read(View::numbered_packs).unwrap() {
        if row.kind != PackKind::Meta || before.contains(&row.id) {
            continue;
        }
        for entry in read_table(&storage, row.id, &keys).unwrap().entries {
            let mut sealed = vec![0; entry.len as usize];
            let name = ObjectName::Pack(row.id);
            let offset = entry.offset.into();
            storage.read_at(&name, offset, &mut sealed).unwrap();
            let raw = record::open(&keys, entry.kind, entry.id, &sealed).unwrap();
            let node = Node::decode(&raw, FanOut::DEFAULT);
            if entry.kind == RecordKind::Node && node.unwrap().level == 0 {
                leaves.push((entry.id, number));
            }
        }
    }
    assert!(!leaves.is_empty());
    leaves.sort_unstable();
    index.drop_located(&leaves).unwrap();
}

#[test]
fn what_a_reader_of_a_forgotten_point_misses_is_kept_for_the_backup_that_stores_it_anew() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let before: Vec<PackId> = index_of(&repo)
        .packs()
        .unwrap()
        .iter()
        .map(|row| row.id)
        .collect();
    let (mut disk, forgotten) = garbage(&repo);
    let _reader = repo.read_disk(&forgotten, &forgotten.disks[0]).unwrap();
    lose_leaves(&repo, &before);

    let cancel = Cancel::new();
    let mut pruning = begin(&repo, &cancel);
    pruning.mark().unwrap();
    let unused = pruning.unused();
    let point = backup(&repo, &disk.whole(), None);
    assert_eq!(point.disks[0].stats.new_chunks, 0, "all of it was found");
    pruning.condemn(&unused).unwrap();
    pruning.settle().unwrap();
    pruning.finish().unwrap();
    assert!(restore(&repo, &point) == disk.bytes);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn a_point_that_comes_back_keeps_what_its_reader_missed_while_it_was_marked() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let before: Vec<PackId> = index_of(&repo)
        .packs()
        .unwrap()
        .iter()
        .map(|row| row.id)
        .collect();
    let (mut disk, forgotten) = garbage(&repo);
    let _reader = repo.read_disk(&forgotten, &forgotten.disks[0]).unwrap();
    lose_leaves(&repo, &before);

    let cancel = Cancel::new();
    let mut pruning = begin(&repo, &cancel);
    pruning.mark().unwrap();
    let unused = pruning.unused();
    // Stores anew what was missed, finds the rest, and is forgotten.
    let same = backup(&repo, &disk.whole(), None);
    assert_eq!(same.disks[0].stats.new_chunks, 0, "all of it was found");
    repo.forget(&[same.id]).unwrap();
    pruning.condemn(&unused).unwrap();

    let (tell, looked) = mpsc::channel();
    let (go_on, settled) = mpsc::channel::<()>();
    let moment = Moment::Creating(ObjectName::Point(forgotten.id));
    let undoing = hooked(repo.path(), moment, move || {
        tell.send(()).unwrap();
        settled.recv().unwrap();
    });
    std::thread::scope(|scope| {
        let undo = scope.spawn(|| undoing.undo_forget(forgotten.id, &Cancel::new()));
        looked.recv().unwrap();
        pruning.settle().unwrap();
        go_on.send(()).unwrap();
        undo.join().unwrap().unwrap();
    });
    pruning.finish().unwrap();
    assert!(restore(&reopen(&repo), &forgotten) == disk.bytes);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

/// A pack with one chunk that the index has not been told of.
fn stray_pack(repo: &Repository, lease: LeaseId) -> ObjectName {
    let text = fs::read_to_string(repo.path().join("config.toml")).unwrap();
    let keys = Config::parse(&text, repo.path()).unwrap().keys();
    let raw = noise(lease.as_bytes()[0].into(), 4096);
    let id = RawId::from_bytes(*keys.chunk_id(&raw).as_bytes());
    let name = PackId::from_bytes(*lease.as_bytes());
    let storage = LocalStorage::new(repo.path());
    let mut writer = PackWriter::create(&storage, name, PackKind::Data, lease, &keys).unwrap();
    let sealed = record::seal(&keys, Codec::None, RecordKind::Chunk, id, &raw);
    writer.append(RecordKind::Chunk, id, &sealed).unwrap();
    writer.finish().unwrap();
    ObjectName::Pack(name)
}

#[test]
fn a_pack_that_is_not_indexed_yet_is_left_to_its_writer_and_taken_once_that_is_dead() {
    let (_dir, repo) = small();
    let history = other(&repo);
    let storage = LocalStorage::new(repo.path());
    let leases = LeaseStore::new(&repo.path().join("leases"), Env::system());
    let living = leases
        .writer("test", Roots::default(), &index_of(&repo), |_| Ok(()))
        .unwrap();
    let of_living = stray_pack(&repo, living.id());
    let of_dead = stray_pack(&repo, LeaseId::from_bytes([9; 16]));
    let before = packs(&repo);

    let report = prune(&repo, now());
    assert!(storage.len(&of_living).unwrap().is_some());
    assert_eq!(
        packs(&repo) + report.packs_waiting,
        before + 2 * report.packs_waiting
    );
    assert_eq!(
        report.packs_waiting, 1,
        "adopted, and nothing needs it: {report:?}"
    );
    drop(living);
    prune(&repo, now());
    assert_eq!(storage.len(&of_living).unwrap(), None);
    assert_eq!(storage.len(&of_dead).unwrap(), None);
    assert_eq!(packs(&repo), before);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn nothing_is_removed_while_a_lease_cannot_be_understood() {
    let (_dir, repo) = small();
    let history = other(&repo);
    garbage(&repo);
    let leases = LeaseStore::new(&repo.path().join("leases"), Env::system());
    let lease = leases
        .writer("test", Roots::default(), &index_of(&repo), |_| Ok(()))
        .unwrap();
    let file = repo.path().join("leases").join(lease.id().to_string());
    fs::write(file, "{ from the future").unwrap();
    let before = packs(&repo);
    let refused = repo.prune(now(), &Quiet, &Cancel::new()).unwrap_err();
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    assert_eq!(packs(&repo), before);
    drop(lease);
    assert!(prune(&repo, now()).packs_removed > 0);
    history.assert_restores(&repo);
}

#[test]
fn repair_and_a_second_prune_are_refused_while_a_prune_stands_still() {
    let (_dir, repo) = small();
    let history = other(&repo);
    garbage(&repo);
    let cancel = Cancel::new();
    let mut pruning = begin(&repo, &cancel);
    pruning.mark().unwrap();
    let options = OpenOptions::default();
    let rebuilt =
        Repository::rebuild_index(repo.path(), &options, Env::system(), &Quiet, &Cancel::new());
    assert!(matches!(rebuilt, Err(Error::Busy { .. })));
    let second = repo.prune(now(), &Quiet, &Cancel::new());
    assert!(matches!(second, Err(Error::Busy { .. })));
    let unused = pruning.unused();
    pruning.condemn(&unused).unwrap();
    pruning.settle().unwrap();
    assert!(pruning.finish().unwrap().packs_removed > 0);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

/// Runs the first `steps` steps of a prune, then stops as if killed; whether there are more.
fn prune_partly(repo: &Repository, steps: usize) -> bool {
    let cancel = Cancel::new();
    let mut pruning = begin(repo, &cancel);
    let mut left = steps;
    let mut go_on = || {
        let go_on = left > 0;
        left = left.saturating_sub(1);
        go_on
    };
    if !go_on() {
        return true;
    }
    pruning.mark().unwrap();
    if !go_on() {
        return true;
    }
    let unused = pruning.unused();
    pruning.condemn(&unused).unwrap();
    if !go_on() {
        return true;
    }
    pruning.remove_forgotten().unwrap();
    if !go_on() {
        return true;
    }
    pruning.settle().unwrap();
    for batch in pruning.batches() {
        if !go_on() {
            return true;
        }
        let emptied = pruning.rewrite(&batch).unwrap();
        if !go_on() {
            return true;
        }
        pruning.condemn(&emptied).unwrap();
        if !go_on() {
            return true;
        }
        pruning.settle().unwrap();
    }
    false
}

#[test]
fn a_prune_that_ends_after_any_step_is_completed_by_the_next() {
    let mut sizes = Vec::new();
    for steps in 0.. {
        let (_dir, repo) = small();
        let mut history = History::new(512 << 10);
        history.grow(&repo, 16);
        history.forget(&repo, &[2, 3, 4, 5]);
        garbage(&repo);
        let more = prune_partly(&repo, steps);
        let repo = reopen(&repo);
        history.assert_restores(&repo);
        assert_clean(&repo);
        if steps % 2 == 1 {
            // The index built anew knows nothing of states.
            let (options, env) = (OpenOptions::default(), Env::system());
            Repository::rebuild_index(repo.path(), &options, env, &Quiet, &Cancel::new()).unwrap();
        }
        history.write(400 << 10, 8192);
        history.back_up(&repo);
        prune(&repo, now());
        history.assert_restores(&repo);
        assert_clean(&repo);
        sizes.push(repo.stats().unwrap().chunks);
        if !more {
            break;
        }
    }
    assert!(sizes.len() > 7, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
}

#[test]
fn a_prune_that_is_cancelled_says_so_and_harms_nothing() {
    let (_dir, repo) = small();
    let history = other(&repo);
    garbage(&repo);
    let cancel = Cancel::new();
    cancel.cancel();
    let refused = repo.prune(now(), &Quiet, &cancel).unwrap_err();
    assert!(matches!(refused, Error::Cancelled));
    history.assert_restores(&repo);
    assert!(prune(&repo, now()).packs_removed > 0);
}

#[test]
fn a_node_that_cannot_be_read_keeps_everything_where_it_is() {
    let (_dir, repo) = small();
    let history = other(&repo);
    garbage(&repo);
    let rows = index_of(&repo).packs().unwrap();
    for row in rows.iter().filter(|row| row.kind == PackKind::Meta) {
        let path = LocalStorage::new(repo.path()).path_of(&ObjectName::Pack(row.id));
        let mut bytes = fs::read(&path).unwrap();
        bytes[64 + 60 + 20] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let repo = reopen(&repo);
    let before = packs(&repo);
    for refused in [
        repo.prune(now(), &Quiet, &Cancel::new()),
        repo.prune_dry_run(now(), &Quiet, &Cancel::new()),
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Unprunable { .. }), "{refused}");
    }
    assert_eq!(packs(&repo), before);
    assert_eq!(repo.forgotten().unwrap().points.len(), 1);
    drop(history);
}

/// Tells when a prune begins to wait.
struct Telling(Mutex<mpsc::Sender<()>>);

impl PruneProgress for Telling {
    fn begin(&self, stage: PruneStage, _: u64) {
        if stage == PruneStage::Waiting {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }
    fn done(&self) {}
}

#[test]
fn an_exact_prune_waits_for_running_backups() {
    let (_dir, repo) = small();
    let history = other(&repo);
    garbage(&repo);
    let running = repo.begin_backup(&[], "test").unwrap();
    let options = PruneOptions {
        exact: true,
        ..PruneOptions::default()
    };
    let (told, waiting) = mpsc::channel();
    let progress = Telling(Mutex::new(told));
    let report = std::thread::scope(|scope| {
        let pruning = scope.spawn(|| repo.prune(options, &progress, &Cancel::new()));
        waiting.recv().unwrap();
        assert!(!pruning.is_finished());
        drop(running);
        pruning.join().unwrap().unwrap()
    });
    assert_eq!(report.packs_waiting, 0);
    assert!(report.packs_removed > 0);
    history.assert_restores(&repo);
    assert_clean(&repo);
}
