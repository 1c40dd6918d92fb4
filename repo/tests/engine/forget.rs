//! Forgetting points and taking it back, pins, and repositories that only take in.

use std::fs;
use std::sync::Barrier;
use std::thread;

use virtkeep_repo::storage::{LocalStorage, ObjectName, Storage};
use virtkeep_repo::{
    Cancel, Env, Error, InitOptions, OpenOptions, PinKind, Point, PointId, Repository,
};

use crate::disk::{MemoryDisk, backup, repository, restore};
use crate::rebuild::rebuild;

const MIB: usize = 1 << 20;

fn points(repo: &Repository) -> Vec<PointId> {
    repo.points().unwrap().iter().map(|p| p.id).collect()
}

fn forgotten(repo: &Repository) -> Vec<PointId> {
    let forgotten = repo.forgotten().unwrap();
    assert!(forgotten.damaged.is_empty(), "{forgotten:?}");
    forgotten.points.iter().map(|p| p.id).collect()
}

fn sorted(points: [&Point; 2]) -> Vec<PointId> {
    let mut ids = points.map(|point| point.id);
    ids.sort();
    ids.to_vec()
}

/// A repository with two points of one disk, and what the disk held at each.
fn two_points() -> (tempfile::TempDir, Repository, [(Point, Vec<u8>); 2]) {
    let (dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(20 * MIB);
    disk.write(MIB, &[7; 300_000]);
    let first = (backup(&repo, &disk.whole(), None), disk.bytes.clone());
    disk.write(17 * MIB, &[8; 100_000]);
    let second = (backup(&repo, &disk.changes(), Some(&first.0)), disk.bytes);
    (dir, repo, [first, second])
}

#[test]
fn a_forgotten_point_is_not_listed_but_restores_and_comes_back() {
    let (_dir, repo, [(first, before), (second, after)]) = two_points();
    repo.forget(&[first.id]).unwrap();
    assert_eq!(points(&repo), [second.id]);
    assert_eq!(forgotten(&repo), [first.id]);
    assert!(matches!(
        repo.point(first.id),
        Err(Error::NoSuchPoint { .. })
    ));
    assert_eq!(repo.forgotten_point(first.id).unwrap(), first);

    let hold = repo.hold(&first, &Cancel::new()).unwrap();
    assert!(restore(&repo, &first) == before);
    drop(hold);
    assert!(restore(&repo, &second) == after);

    assert_eq!(repo.undo_forget(first.id, &Cancel::new()).unwrap(), first);
    assert_eq!(points(&repo), sorted([&first, &second]));
    assert_eq!(forgotten(&repo), []);
    assert!(restore(&repo, &first) == before);
    assert!(fs::read_dir(repo.path().join("forgotten")).unwrap().count() == 0);
    assert_eq!(repo.undo_forget(first.id, &Cancel::new()).unwrap(), first);
}

#[test]
fn forgetting_is_all_or_nothing_as_far_as_can_be_told_beforehand() {
    let (_dir, repo, [(first, _), (second, _)]) = two_points();
    let nobody = PointId::from_bytes([1; 10]);
    let refused = repo.forget(&[first.id, nobody]).unwrap_err();
    assert!(matches!(refused, Error::NoSuchPoint { point } if point == nobody));
    repo.pin(&[second.id], PinKind::User, "audit").unwrap();
    let refused = repo.forget(&[first.id, second.id]).unwrap_err();
    assert!(matches!(refused, Error::Pinned { point, .. } if point == second.id));
    assert_eq!(points(&repo), sorted([&first, &second]));
}

#[test]
fn a_crash_between_copy_and_deletion_leaves_the_point_and_a_copy_of_no_account() {
    let (_dir, repo, [(first, _), (second, _)]) = two_points();
    let storage = LocalStorage::new(repo.path());
    let record = |name| storage.read_whole(&name, 1 << 20).unwrap();
    for id in [first.id, second.id] {
        let bytes = record(ObjectName::Point(id));
        storage.put(&ObjectName::Forgotten(id), &bytes).unwrap();
    }
    assert_eq!(points(&repo), sorted([&first, &second]));
    assert_eq!(forgotten(&repo), []);
    // Forgetting one completes what was begun, and clears the other away.
    repo.forget(&[first.id]).unwrap();
    assert_eq!(points(&repo), [second.id]);
    assert_eq!(forgotten(&repo), [first.id]);
    let left = storage.len(&ObjectName::Forgotten(second.id)).unwrap();
    assert_eq!(left, None);
}

#[test]
fn a_crash_after_the_deletion_leaves_a_row_in_the_index_that_nobody_believes() {
    let (_dir, repo, [(first, _), (second, _)]) = two_points();
    let storage = LocalStorage::new(repo.path());
    let record = ObjectName::Point(first.id);
    let bytes = storage.read_whole(&record, 1 << 20).unwrap();
    storage
        .put(&ObjectName::Forgotten(first.id), &bytes)
        .unwrap();
    storage.delete(&record).unwrap();
    assert_eq!(points(&repo), [second.id]);
    assert_eq!(forgotten(&repo), [first.id]);
    repo.forget(&[first.id]).unwrap();
    assert_eq!(forgotten(&repo), [first.id]);
    let report = rebuild(&repo);
    assert_eq!((report.points, report.damage.len()), (1, 0));
}

#[test]
fn a_damaged_copy_is_replaced_before_the_record_goes() {
    let (_dir, repo, [(first, before), _]) = two_points();
    let storage = LocalStorage::new(repo.path());
    storage
        .put(&ObjectName::Forgotten(first.id), b"half")
        .unwrap();
    repo.forget(&[first.id]).unwrap();
    repo.undo_forget(first.id, &Cancel::new()).unwrap();
    assert!(restore(&repo, &first) == before);
}

#[test]
fn an_undoing_that_was_cut_short_is_completed() {
    let (_dir, repo, [(first, _), _]) = two_points();
    let storage = LocalStorage::new(repo.path());
    repo.forget(&[first.id]).unwrap();
    let copy = ObjectName::Forgotten(first.id);
    let bytes = storage.read_whole(&copy, 1 << 20).unwrap();
    storage.put(&ObjectName::Point(first.id), &bytes).unwrap();
    assert_eq!(forgotten(&repo), []);
    repo.undo_forget(first.id, &Cancel::new()).unwrap();
    assert_eq!(storage.len(&copy).unwrap(), None);
    assert!(points(&repo).contains(&first.id));
}

#[test]
fn a_forgotten_point_of_which_something_is_gone_is_refused_as_a_whole() {
    let (_dir, repo, [(first, before), (second, _)]) = two_points();
    let packs = |repo: &Repository| {
        let storage = LocalStorage::new(repo.path());
        storage.list(virtkeep_repo::storage::Folder::Packs).unwrap()
    };
    let mut disk = MemoryDisk::new(20 * MIB);
    let earlier = packs(&repo);
    disk.write(3 * MIB, &[9; 100_000]);
    let third = backup(&repo, &disk.whole(), None);
    repo.forget(&[third.id]).unwrap();
    repo.hold(&third, &Cancel::new()).unwrap();
    let storage = LocalStorage::new(repo.path());
    for pack in packs(&repo)
        .into_iter()
        .filter(|pack| !earlier.contains(pack))
    {
        storage.delete(&pack).unwrap();
        rebuild(&repo);
        let repo = Repository::open(repo.path(), &OpenOptions::default(), Env::system()).unwrap();
        let undone = repo.undo_forget(third.id, &Cancel::new());
        assert!(matches!(undone, Err(Error::Pruned { .. })), "{undone:?}");
        let held = repo.hold(&third, &Cancel::new());
        assert!(matches!(held, Err(Error::Pruned { .. })), "{held:?}");
        assert_eq!(points(&repo), sorted([&first, &second]));
    }
    assert!(restore(&repo, &first) == before);
}

#[test]
fn a_pinned_point_cannot_be_forgotten_until_its_pin_is_removed() {
    let (_dir, repo, [(first, _), _]) = two_points();
    let user = repo.pin(&[first.id], PinKind::User, "audit 2026").unwrap();
    let machine = repo.pin(&[first.id], PinKind::InUse, "copy runs").unwrap();
    for pin in [&user, &machine] {
        let refused = repo.forget(&[first.id]).unwrap_err();
        assert!(matches!(refused, Error::Pinned { .. }), "{refused}");
        repo.remove_pin(pin).unwrap();
    }
    repo.forget(&[first.id]).unwrap();
    let refused = repo
        .pin(&[first.id], PinKind::User, "too late")
        .unwrap_err();
    assert!(matches!(refused, Error::NoSuchPoint { .. }), "{refused}");
    assert_eq!(repo.pins().list().unwrap(), []);
}

#[test]
fn a_pin_that_cannot_be_read_forbids_to_forget_anything() {
    let (_dir, repo, [(first, _), _]) = two_points();
    fs::write(repo.path().join("pins").join("b".repeat(32)), "{").unwrap();
    let refused = repo.forget(&[first.id]).unwrap_err();
    assert!(matches!(refused, Error::DamagedPin { .. }), "{refused}");
    assert!(points(&repo).contains(&first.id));
}

#[test]
fn whoever_pins_and_whoever_forgets_at_once_never_both_succeed() {
    let (_dir, repo, [(first, _), _]) = two_points();
    for _ in 0..20 {
        let start = Barrier::new(2);
        let (pinned, forgot) = thread::scope(|scope| {
            let forgetting = scope.spawn(|| {
                start.wait();
                repo.forget(&[first.id])
            });
            start.wait();
            let pinned = repo.pin(&[first.id], PinKind::User, "race");
            (pinned, forgetting.join().unwrap())
        });
        match (pinned, forgot) {
            (Ok(pin), Err(Error::Pinned { .. })) => {
                assert!(points(&repo).contains(&first.id));
                repo.remove_pin(&pin).unwrap();
            }
            // Each saw the other one, and gave up; or the one who forgets came first.
            (Err(Error::NoSuchPoint { .. }), Ok(())) => {
                assert_eq!(forgotten(&repo), [first.id]);
                repo.undo_forget(first.id, &Cancel::new()).unwrap();
            }
            (pinned, forgot) => panic!("pin: {pinned:?}, forget: {forgot:?}"),
        }
        assert_eq!(repo.pins().list().unwrap(), []);
    }
}

#[test]
fn whoever_forgets_and_undoes_at_once_never_loses_the_record() {
    let (_dir, repo, [(first, before), _]) = two_points();
    let again = Repository::open(repo.path(), &OpenOptions::default(), Env::system()).unwrap();
    for _ in 0..15 {
        let start = Barrier::new(3);
        thread::scope(|scope| {
            for forgetting in [&repo, &again] {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let forgot = forgetting.forget(&[first.id]);
                    assert!(
                        matches!(forgot, Ok(()) | Err(Error::Busy { .. })),
                        "{forgot:?}"
                    );
                });
            }
            start.wait();
            let undone = repo.undo_forget(first.id, &Cancel::new());
            let expected = matches!(
                undone,
                Ok(_) | Err(Error::Busy { .. } | Error::NoSuchPoint { .. })
            );
            assert!(expected, "{undone:?}");
        });
        let (there, gone) = (points(&repo), forgotten(&repo));
        assert!(there.contains(&first.id) != gone.contains(&first.id));
    }
    repo.undo_forget(first.id, &Cancel::new()).unwrap();
    assert!(restore(&repo, &first) == before);
}

#[test]
fn an_append_only_repository_takes_in_and_forgets_nothing() {
    for spelling in ["append_only = true", "append-only = true"] {
        let (_dir, repo, [(first, _), _]) = two_points();
        let config = repo.path().join("config.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("append_only = false", spelling)).unwrap();
        let repo = Repository::open(repo.path(), &OpenOptions::default(), Env::system()).unwrap();
        let refused = repo.forget(&[first.id]).unwrap_err();
        assert!(matches!(refused, Error::AppendOnly { .. }), "{refused}");
        let mut disk = MemoryDisk::new(MIB);
        disk.write(0, &[3; 70_000]);
        backup(&repo, &disk.whole(), None);
        assert_eq!(repo.points().unwrap().len(), 3);
    }
}
