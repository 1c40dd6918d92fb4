//! The index's copies of point records: whoever has one without a record has lost the record, and
//! nobody comes to that by forgetting.

use std::fs;

use virtkeep_repo::prune::Prune;
use virtkeep_repo::storage::{Folder, LocalStorage, ObjectName, Storage};
use virtkeep_repo::{Cancel, Error, NoProgress, PointId, Remark, RepairOptions, Repository};

use crate::disk::{MemoryDisk, backup, draft, reopen};
use crate::hooked::{Moment, hooked};
use crate::prune::{History, Quiet, assert_clean, noise, now, prune, small};
use crate::prune_races::index_of;
use crate::rebuild::rebuild;

fn history(repo: &Repository) -> History {
    let mut history = History::new(1 << 20);
    history.grow(repo, 3);
    history
}

/// Forgets the point and prunes, as another process.
fn gone(repo: &Repository, point: PointId) -> impl FnOnce() + Send + 'static {
    let other = reopen(repo);
    move || {
        other.forget(&[point]).unwrap();
        prune(&other, now());
    }
}

fn points(repo: &Repository) -> Vec<PointId> {
    repo.points()
        .unwrap()
        .iter()
        .map(|point| point.id)
        .collect()
}

fn mend(repo: &Repository) -> virtkeep_repo::RepairReport {
    repo.repair(RepairOptions::default(), &Quiet, &Cancel::new())
        .unwrap()
}

#[test]
fn a_point_forgotten_and_pruned_before_its_backup_has_ended_is_not_lost() {
    let (_dir, repo) = small();
    let history = history(&repo);
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &noise(77, 100_000));
    // The backup goes on in a repository that knows the name of the point.
    let id = PointId::from_bytes([0x5a; 10]);
    let mut env = virtkeep_repo::Env::system();
    env.random = std::sync::Arc::new(Names(id));
    let repo = crate::hooked::hooked_with(
        repo.path(),
        Moment::Created(ObjectName::Point(id)),
        gone(&repo, id),
        env,
    );
    let running = repo.begin_backup(&[], "test").unwrap();
    assert_eq!(running.point_id(), id);
    let source = disk.whole();
    let stored = running
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    running.commit(draft(&source, stored)).unwrap();

    assert_clean(&repo);
    prune(&repo, now());
    assert_eq!(mend(&repo).points_healed, []);
    history.assert_restores(&repo);
    assert!(!points(&repo).contains(&id));
}

/// Names points alike, and everything else by chance.
struct Names(PointId);

impl virtkeep_repo::Random for Names {
    fn fill(&self, bytes: &mut [u8]) {
        if bytes.len() == 10 {
            bytes.copy_from_slice(self.0.as_bytes());
        } else {
            virtkeep_repo::Env::system().random.fill(bytes);
        }
    }
}

#[test]
fn a_point_forgotten_and_pruned_while_it_is_listed_is_not_lost() {
    let (_dir, repo) = small();
    let mut history = history(&repo);
    let id = history.points[0].0.id;
    index_of(&repo).remove_point(id).unwrap();
    let listing = hooked(
        repo.path(),
        Moment::Read(ObjectName::Point(id)),
        gone(&repo, id),
    );
    points(&listing);
    assert_clean(&repo);
    prune(&repo, now());
    assert_eq!(mend(&repo).points_healed, []);
    history.points.remove(0);
    history.assert_restores(&repo);
    assert_eq!(points(&repo).len(), 2);
}

#[test]
fn a_lost_record_is_put_back_though_its_point_has_lost_a_pack_as_well() {
    let (_dir, repo) = small();
    let mut history = history(&repo);
    let storage = LocalStorage::new(repo.path());
    let before = storage.list(Folder::Packs).unwrap();
    history.write(900 << 10, 8192);
    history.back_up(&repo);
    let (point, _) = history.points.pop().unwrap();
    let new = storage.list(Folder::Packs).unwrap();
    for pack in new.iter().filter(|pack| !before.contains(pack)) {
        let path = storage.path_of(pack);
        // The new chunks, not the nodes.
        if fs::read(&path).unwrap()[10] == 1 {
            fs::remove_file(path).unwrap();
        }
    }
    rebuild(&repo);
    storage.delete(&ObjectName::Point(point.id)).unwrap();

    let repo = reopen(&repo);
    let refused = repo.prune(now(), &Quiet, &Cancel::new());
    assert!(
        matches!(refused, Err(Error::Unprunable { .. })),
        "{refused:?}"
    );
    let report = mend(&repo);
    assert_eq!(report.points_healed, [point.id]);
    assert_eq!(report.found.affected, 1);
    assert_eq!(points(&repo).len(), 4);
    history.assert_restores(&repo);

    // The machine still holds what was lost.
    backup(&repo, &history.disk.changes(), Some(&point));
    assert!(mend(&repo).is_whole());
    assert_clean(&repo);
    let restored = crate::disk::restore(&reopen(&repo), &point);
    assert!(restored == history.disk.bytes);
}

#[test]
fn a_damaged_record_is_put_back_though_the_index_was_built_anew_meanwhile() {
    let (_dir, repo) = small();
    let history = history(&repo);
    let id = history.points[0].0.id;
    let path = repo.path().join("points").join(id.to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(rebuild(&repo).damage.len(), 1);
    let repo = reopen(&repo);
    assert_eq!(mend(&repo).points_healed, [id]);
    history.assert_restores(&repo);
    assert_clean(&repo);
}

#[test]
fn a_forgetting_killed_while_a_prune_is_under_way_leaves_no_row_that_looks_like_a_lost_record() {
    let (_dir, repo) = small();
    let mut history = history(&repo);
    let id = history.points[0].0.id;
    let storage = LocalStorage::new(repo.path());
    let cancel = Cancel::new();
    let mut pruning = Prune::begin(&repo, now(), &Quiet, &cancel).unwrap();
    // Killed before the row was removed.
    let record = storage.read_whole(&ObjectName::Point(id), 1 << 20).unwrap();
    storage.put(&ObjectName::Forgotten(id), &record).unwrap();
    storage.delete(&ObjectName::Point(id)).unwrap();
    pruning.mark().unwrap();
    let unused = pruning.unused();
    pruning.condemn(&unused).unwrap();
    pruning.remove_forgotten().unwrap();
    pruning.settle().unwrap();
    assert_eq!(pruning.finish().unwrap().forgotten_removed, 1);

    assert_clean(&repo);
    prune(&repo, now());
    assert_eq!(mend(&repo).points_healed, []);
    history.points.remove(0);
    history.assert_restores(&repo);
}

#[test]
fn the_notes_of_a_forgotten_point_go_before_its_record() {
    let (_dir, repo) = small();
    let history = history(&repo);
    let id = history.points[0].0.id;
    let remark = Remark::BootTest {
        passed: true,
        seen: "an address".to_owned(),
        seconds: 1.5,
    };
    repo.add_note(id, remark).unwrap();
    repo.forget(&[id]).unwrap();
    let storage = LocalStorage::new(repo.path());
    let (sent, seen) = std::sync::mpsc::channel();
    let look = move || sent.send(storage.list(Folder::Notes(id)).unwrap()).unwrap();
    let pruning = hooked(
        repo.path(),
        Moment::Deleted(ObjectName::Forgotten(id)),
        look,
    );
    assert_eq!(prune(&pruning, now()).forgotten_removed, 1);
    assert_eq!(seen.recv().unwrap(), []);
}
