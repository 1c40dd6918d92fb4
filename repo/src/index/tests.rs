//! What the index promises, without other processes.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::format::pack::PackEntry;
use crate::{LeaseId, PackId, PackKind, RecordKind};

const REPO: RepoId = RepoId::from_bytes([7; 16]);
const IDENTITY: Identity = Identity {
    repo: REPO,
    owner: 1,
};

pub(crate) fn parts(dir: &Path) -> (Arc<dyn IndexFiles>, Arc<dyn IndexLock>) {
    fs::create_dir_all(dir.join("locks")).unwrap();
    let lock = FileGate::new(&dir.join("locks"), "a test");
    (Arc::new(LocalFiles::new(dir)), Arc::new(lock))
}

pub(crate) fn create(dir: &Path) -> Index {
    let (files, lock) = parts(dir);
    Index::create(files, lock, IDENTITY).unwrap()
}

pub(crate) fn open(dir: &Path) -> Result<Index> {
    let (files, lock) = parts(dir);
    Index::open(files, lock, IDENTITY)
}

pub(crate) fn id(number: u64) -> RawId {
    RawId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// A pack whose records are the ids of these numbers, 100 bytes each.
pub(crate) fn pack(name: u8, numbers: impl IntoIterator<Item = u64>) -> FinishedPack {
    let places = numbers.into_iter().zip(0u32..);
    FinishedPack {
        id: PackId::from_bytes([name; 16]),
        kind: PackKind::Data,
        lease: LeaseId::from_bytes([name; 16]),
        bytes: 1000,
        entries: places
            .map(|(n, place)| PackEntry {
                id: id(n),
                kind: RecordKind::Chunk,
                offset: place * 100,
                len: 100,
            })
            .collect(),
    }
}

fn at(pack: &FinishedPack, place: u32) -> Option<Location> {
    Some(Location {
        pack: pack.id,
        offset: place * 100,
        len: 100,
    })
}

#[test]
fn what_was_added_is_found_where_it_is_also_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (pack(1, [10, 11, 12]), pack(2, [20]));
    create(dir.path())
        .add_packs(&[a.clone(), b.clone()])
        .unwrap();

    let index = open(dir.path()).unwrap();
    let found = index.locate(&[id(12), id(20), id(99), id(10)]).unwrap();
    assert_eq!(found, [at(&a, 2), at(&b, 0), None, at(&a, 0)]);
    assert_eq!(index.known(&[id(11), id(99)]).unwrap(), [true, false]);

    let stats = index.stats().unwrap();
    assert_eq!((stats.entries, stats.packs, stats.pack_bytes), (4, 2, 2000));
    assert_eq!((stats.data_records, stats.meta_records), (4, 0));
    assert!(stats.file_bytes > 0);
}

#[test]
fn adding_a_pack_again_changes_nothing_and_an_id_keeps_its_first_place() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let (a, b) = (pack(1, [10, 11]), pack(2, [11, 12]));
    index.add_packs(std::slice::from_ref(&a)).unwrap();
    index.add_packs(std::slice::from_ref(&a)).unwrap();
    index.add_packs(&[b.clone(), a.clone()]).unwrap();

    let found = index.locate(&[id(10), id(11), id(12)]).unwrap();
    assert_eq!(found, [at(&a, 0), at(&a, 1), at(&b, 1)]);
    let states: Vec<_> = index.packs().unwrap().iter().map(|p| p.state).collect();
    assert_eq!(states, [PackState::Live, PackState::Live]);
}

#[test]
fn a_pack_without_records_is_known_too() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    index.add_packs(&[]).unwrap();
    index.add_packs(&[pack(1, [])]).unwrap();
    assert_eq!(index.packs().unwrap().len(), 1);
    assert_eq!(index.packs().unwrap()[0].state, PackState::Live);
}

#[test]
fn a_condemned_pack_is_read_from_but_not_relied_on() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let a = pack(1, [10, 11]);
    index.add_packs(std::slice::from_ref(&a)).unwrap();
    let before = index.epoch().unwrap();
    let epoch = index.write(|edit| edit.condemn(&[a.id])).unwrap();
    assert_eq!(epoch, before + 1);
    assert_eq!(index.epoch().unwrap(), epoch);

    assert_eq!(index.locate(&[id(10)]).unwrap(), [at(&a, 0)]);
    assert_eq!(index.known(&[id(10)]).unwrap(), [false]);

    // Stored anew by a backup, the id moves; the other one stays where it was.
    let b = pack(2, [10]);
    index.add_packs(std::slice::from_ref(&b)).unwrap();
    assert_eq!(
        index.locate(&[id(10), id(11)]).unwrap(),
        [at(&b, 0), at(&a, 1)]
    );
    assert_eq!(index.known(&[id(10), id(11)]).unwrap(), [true, false]);

    // Adding the condemned pack again does not revive it, nor does condemning it twice age it.
    index.add_packs(std::slice::from_ref(&a)).unwrap();
    index.write(|edit| edit.condemn(&[a.id])).unwrap();
    let row = index.read(|view| view.pack(a.id)).unwrap().unwrap();
    assert_eq!(row.state, PackState::Condemned(epoch));
    assert_eq!(index.locate(&[id(10)]).unwrap(), [at(&b, 0)]);

    index.write(|edit| edit.revive(&[a.id])).unwrap();
    assert_eq!(index.known(&[id(11)]).unwrap(), [true]);
}

#[test]
fn a_wanted_id_is_healed_by_another_copy_and_not_by_the_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let a = pack(1, [10, 11]);
    index.add_packs(std::slice::from_ref(&a)).unwrap();
    index.write(|edit| edit.want(&[id(10), id(77)])).unwrap();
    assert_eq!(index.wanted(10).unwrap(), HashSet::from([id(10), id(77)]));
    assert_eq!(index.known(&[id(10), id(11)]).unwrap(), [false, true]);

    // The pack in which it was found damaged is no cure.
    index.add_packs(std::slice::from_ref(&a)).unwrap();
    assert_eq!(index.known(&[id(10)]).unwrap(), [false]);

    let b = pack(2, [10, 77]);
    index.add_packs(std::slice::from_ref(&b)).unwrap();
    assert_eq!(index.wanted(10).unwrap(), HashSet::new());
    assert_eq!(
        index.locate(&[id(10), id(77)]).unwrap(),
        [at(&b, 0), at(&b, 1)]
    );
    assert_eq!(index.known(&[id(10), id(77)]).unwrap(), [true, true]);
}

#[test]
fn a_batch_larger_than_a_slice_is_added_whole() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let many = 2 * SLICE_ENTRIES_MAX as u64 + 100;
    index
        .add_packs(&[pack(1, 0..many / 2), pack(2, many / 2..many)])
        .unwrap();
    let ids: Vec<RawId> = (0..many).map(id).collect();
    assert_eq!(index.known(&ids).unwrap(), vec![true; many as usize]);
    assert!(
        index
            .packs()
            .unwrap()
            .iter()
            .all(|p| p.state == PackState::Live)
    );
}

#[test]
fn a_batch_that_goes_on_in_an_index_built_anew_points_to_its_own_packs() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let many = 2 * SLICE_ENTRIES_MAX as u64;
    let (new, others) = (pack(1, 0..many), pack(2, [many]));
    let ids: Vec<RawId> = (0..many).map(id).collect();
    let mut slices = 0;
    add_in_slices(std::slice::from_ref(&new), 0, |slice| {
        slices += 1;
        if slices == 2 {
            let rebuild = index.start_rebuild()?;
            rebuild.add_packs(std::slice::from_ref(&others))?;
            rebuild.publish(|edit| {
                edit.add_packs(std::slice::from_ref(&new))?;
                edit.want(&ids)
            })?;
        }
        index.write(slice)
    })
    .unwrap();
    assert_eq!(slices, 2);
    let expected: Vec<Option<Location>> = (0..many).map(|n| at(&new, n as u32)).collect();
    assert!(index.locate(&ids).unwrap() == expected);
}

#[test]
fn a_slice_shrinks_as_the_index_grows_but_a_pack_stays_in_one() {
    assert_eq!(slice_len(1 << 20, 0), SLICE_ENTRIES_MAX);
    assert_eq!(slice_len(1 << 20, 1 << 20), SLICE_ENTRIES_MAX);
    assert_eq!(slice_len(1 << 20, 100 << 20), SLICE_LEAVES_MAX);
    assert_eq!(slice_len(2300, u64::MAX), SLICE_LEAVES_MAX);
    assert_eq!(slice_len(0, 0), SLICE_ENTRIES_MAX);
}

#[test]
fn a_batch_cut_short_is_completed_by_adding_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let many = SLICE_ENTRIES_MAX as u64 + 1;
    let whole = pack(1, 0..many);
    let mut left = 1;
    add_in_slices(std::slice::from_ref(&whole), 0, |slice| {
        if left == 0 {
            return Err(Error::Cancelled);
        }
        left -= 1;
        index.write(slice)
    })
    .unwrap_err();
    assert_eq!(index.packs().unwrap()[0].state, PackState::Entering);
    let ids: Vec<RawId> = (0..many).map(id).collect();
    let known = index.known(&ids).unwrap();
    assert_eq!(
        known.iter().filter(|known| **known).count(),
        SLICE_ENTRIES_MAX
    );

    index.add_packs(std::slice::from_ref(&whole)).unwrap();
    assert_eq!(index.packs().unwrap()[0].state, PackState::Live);
    assert_eq!(index.known(&ids).unwrap(), vec![true; many as usize]);
}

#[test]
fn the_cache_of_points_follows_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let point = |n: u8| PointId::from_bytes([n; 10]);
    index.put_point(point(1), b"one").unwrap();
    index.put_point(point(2), b"two").unwrap();
    index.put_point(point(3), b"three").unwrap();
    index.put_point(point(6), b"six").unwrap();

    // 2 was forgotten, 3 committed after the listing, 4 committed by one killed before its index row,
    // 5 forgotten after the listing; the record of 6 is lost.
    let load = |id: PointId| {
        Ok(match id {
            id if id == point(3) => Some(b"three".to_vec()),
            id if id == point(4) => Some(b"four".to_vec()),
            _ => None,
        })
    };
    index
        .reconcile_points(&[point(5), point(4), point(1)], load, |id| {
            Ok(id == point(2))
        })
        .unwrap();
    let points = index.points().unwrap();
    let expected = [
        (point(1), &b"one"[..]),
        (point(3), b"three"),
        (point(4), b"four"),
        (point(6), b"six"),
    ];
    assert_eq!(points, expected.map(|(id, record)| (id, record.to_vec())));

    assert!(index.remove_point(point(1)).unwrap());
    assert!(!index.remove_point(point(1)).unwrap());
}

#[test]
fn an_edit_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let failed: Result<()> = index.write(|edit| {
        edit.put_point(PointId::from_bytes([1; 10]), b"never")?;
        Err(Error::Cancelled.into())
    });
    assert!(matches!(failed, Err(Error::Cancelled)));
    assert_eq!(index.points().unwrap(), []);
}

#[test]
fn a_missing_index_or_one_of_another_repository_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |result: Result<Index>, word: &str| {
        let message = result.err().unwrap().to_string();
        assert!(message.contains(word), "{message}");
        assert!(message.contains("virtkeep repair"), "{message}");
    };
    refused(open(dir.path()), "missing");
    create(dir.path());
    let (files, lock) = parts(dir.path());
    let other = Identity {
        repo: RepoId::from_bytes([8; 16]),
        owner: 1,
    };
    refused(Index::open(files, lock, other), "another repository");
    let (files, lock) = parts(dir.path());
    let left_behind = Identity {
        owner: 2,
        ..IDENTITY
    };
    refused(Index::open(files, lock, left_behind), "left behind");
}

#[test]
fn garbage_at_any_page_is_an_error_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).add_packs(&[pack(1, 0..2000)]).unwrap();
    let path = dir.path().join("index.redb");
    let good = fs::read(&path).unwrap();
    let ids: Vec<RawId> = (0..2000).map(id).collect();
    let everything = || -> Result<()> {
        let index = open(dir.path())?;
        index.locate(&ids)?;
        index.packs()?;
        index.add_packs(&[pack(2, 5000..5100)])
    };
    let mut noticed = 0;
    let whole = [(0, good.len()), (0, 0)];
    let pages = (0..good.len()).step_by(4096).map(|start| (start, 4096));
    for (start, len) in whole.into_iter().chain(pages) {
        let mut bad = good.clone();
        match len {
            0 => bad.clear(),
            _ => bad[start..start + len].fill(0xa5),
        }
        fs::write(&path, &bad).unwrap();
        match everything() {
            Ok(()) => {}
            Err(Error::Index { .. }) => noticed += 1,
            Err(other) => panic!("garbage at {start}: {other:?}"),
        }
    }
    assert!(noticed > 10, "only {noticed} places were noticed");
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(matches!(everything(), Err(Error::Index { .. })));

    // And it can be built anew, in the very place of the garbage.
    let index = create(dir.path());
    assert_eq!(index.stats().unwrap().entries, 0);
}

#[test]
fn a_rebuilt_index_takes_the_place_of_the_old_one_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    index.add_packs(&[pack(1, [10])]).unwrap();
    let rebuild = index.start_rebuild().unwrap();
    rebuild.add_packs(&[pack(2, [20])]).unwrap();
    // The old one still serves.
    assert_eq!(index.known(&[id(10), id(20)]).unwrap(), [true, false]);
    rebuild.publish(|edit| edit.want(&[id(30)])).unwrap();
    assert_eq!(index.known(&[id(10), id(20)]).unwrap(), [false, true]);
    assert_eq!(index.wanted(10).unwrap(), HashSet::from([id(30)]));
}

#[test]
fn without_locks_the_index_is_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).add_packs(&[pack(1, [10])]).unwrap();
    fs::remove_dir_all(dir.path().join("locks")).unwrap();
    let files = Arc::new(LocalFiles::new(dir.path()));
    let lock = Arc::new(NoLock::new(dir.path()));
    let index = Index::open(files, lock, IDENTITY).unwrap();
    assert_eq!(index.known(&[id(10)]).unwrap(), [true]);
    let refused = index.put_point(PointId::from_bytes([1; 10]), b"");
    assert!(matches!(refused, Err(Error::ReadOnly { .. })));
}

#[test]
fn an_index_left_by_a_killed_writer_is_read_where_nothing_may_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    index.add_packs(&[pack(1, 0..500)]).unwrap();
    let killed = tempfile::tempdir().unwrap();
    let path = killed.path().join("index.redb");
    index
        .write(|edit| {
            edit.want(&[id(3)])?;
            fs::copy(dir.path().join("index.redb"), &path)?;
            Ok(())
        })
        .unwrap();
    let before = fs::read(&path).unwrap();

    let files = Arc::new(LocalFiles::new(killed.path()));
    let lock = Arc::new(NoLock::new(killed.path()));
    let index = Index::open(files, lock, IDENTITY).unwrap();
    let ids: Vec<RawId> = (0..500).map(id).collect();
    assert_eq!(index.known(&ids).unwrap(), [true; 500]);
    assert_eq!(fs::read(&path).unwrap(), before);

    // With locks it is set right for everybody.
    let index = open(killed.path()).unwrap();
    assert_eq!(index.known(&ids).unwrap(), [true; 500]);
    assert_ne!(fs::read(&path).unwrap(), before);
}

/// All entries, found in scans of three.
fn scanned(index: &Index) -> Vec<Indexed> {
    let mut all: Vec<Indexed> = Vec::new();
    loop {
        let from = all.last().map_or([0; 32], |last| {
            let mut next = *last.id.as_bytes();
            next[31] += 1;
            next
        });
        let found = index
            .read(|view| view.scan(RawId::from_bytes(from), 3))
            .unwrap();
        if found.is_empty() {
            return all;
        }
        all.extend(found);
    }
}

#[test]
fn scans_pass_over_every_entry_once_in_the_order_of_ids() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    index.add_packs(&[pack(1, 0..10), pack(2, 10..15)]).unwrap();
    let rows = index.read(View::numbered_packs).unwrap();
    let number = |name: u8| {
        rows.iter()
            .find(|row| row.1.id == pack(name, []).id)
            .unwrap()
            .0
    };
    let mut expected: Vec<(RawId, PackNumber)> = (0..10).map(|n| (id(n), number(1))).collect();
    expected.extend((10..15).map(|n| (id(n), number(2))));
    expected.sort_unstable();
    let found: Vec<_> = scanned(&index).iter().map(|e| (e.id, e.pack)).collect();
    assert_eq!(found, expected);
}

#[test]
fn moved_records_are_found_in_their_new_pack_unless_they_were_stored_anew_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let (old, other, new) = (pack(1, [10, 11, 12]), pack(2, [20]), pack(3, [11, 12, 20]));
    index.add_packs(&[old.clone(), other.clone()]).unwrap();
    index.write(|edit| edit.want(&[id(12)])).unwrap();
    let moves = [0, 1, 2].map(|entry| Move {
        from: old.id,
        pack: 0,
        entry,
    });
    index
        .move_records(std::slice::from_ref(&new), &moves)
        .unwrap();
    let found = index.locate(&[id(10), id(11), id(12), id(20)]).unwrap();
    assert_eq!(
        found,
        [at(&old, 0), at(&new, 0), at(&new, 1), at(&other, 0)]
    );
    assert_eq!(index.known(&[id(11), id(12)]).unwrap(), [true, true]);
    assert!(index.wanted(10).unwrap().is_empty());
    assert!(
        index
            .packs()
            .unwrap()
            .iter()
            .all(|row| row.state == PackState::Live)
    );
}

#[test]
fn only_a_condemned_pack_is_buried_and_what_is_in_a_dead_one_counts_as_gone() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let (a, b) = (pack(1, [10, 11]), pack(2, [20]));
    index.add_packs(&[a.clone(), b.clone()]).unwrap();
    index.write(|edit| edit.condemn(&[a.id])).unwrap();
    assert_eq!(index.standing(&[id(10)]).unwrap(), [true]);
    index.write(|edit| edit.bury(&[a.id, b.id])).unwrap();
    let states: Vec<_> = index.packs().unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, [PackState::Dead, PackState::Live]);
    let ids = [id(10), id(20), id(99)];
    assert_eq!(index.standing(&ids).unwrap(), [false, true, false]);
    assert_eq!(index.known(&ids).unwrap(), [false, true, false]);

    // The dead stay dead, and what they held is stored elsewhere.
    index
        .write(|edit| {
            edit.revive(&[a.id])?;
            edit.condemn(&[a.id])
        })
        .unwrap();
    assert_eq!(index.standing(&[id(10)]).unwrap(), [false]);
    let c = pack(3, [10]);
    index.add_packs(std::slice::from_ref(&c)).unwrap();
    assert_eq!(index.locate(&[id(10)]).unwrap(), [at(&c, 0)]);
}

#[test]
fn only_entries_that_point_to_the_pack_are_dropped_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let (a, b) = (pack(1, [10, 11]), pack(2, [11, 12]));
    index.add_packs(&[a.clone(), b.clone()]).unwrap();
    let rows = index.read(View::numbered_packs).unwrap();
    let number = rows.iter().find(|row| row.1.id == b.id).unwrap().0;
    let ids = [id(11), id(12), id(99)];
    index.drop_located(&ids.map(|id| (id, number))).unwrap();
    index.write(|edit| edit.remove_packs(&[b.id])).unwrap();
    assert_eq!(index.locate(&ids).unwrap(), [at(&a, 1), None, None]);
    assert_eq!(index.packs().unwrap().len(), 1);
}

#[test]
fn when_a_lease_ended_without_a_point_is_remembered_from_the_first_time_on() {
    let dir = tempfile::tempdir().unwrap();
    let index = create(dir.path());
    let lease = LeaseId::from_bytes([5; 16]);
    for time in [7, 9] {
        index
            .write(|edit| edit.note_unfinished(lease, crate::UnixMillis(time)))
            .unwrap();
    }
    let all = index.read(View::unfinished).unwrap();
    assert_eq!(all, [(lease, crate::UnixMillis(7))]);
    index
        .write(|edit| edit.forget_unfinished(&[lease]))
        .unwrap();
    assert_eq!(index.read(View::unfinished).unwrap(), []);
}

#[test]
fn a_check_beside_a_pack_that_is_half_entered_finds_nothing_wrong() {
    struct Quiet;
    impl crate::CheckProgress for Quiet {
        fn packs(&self, _: u64) {}
        fn pack_done(&self, _: u64) {}
        fn points(&self, _: u64) {}
        fn point_done(&self) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    let options = crate::InitOptions::default();
    let repo = crate::Repository::init(&path, &options, crate::Env::system()).unwrap();
    let store = repo.store();
    let (pack, lease) = (PackId::from_bytes([1; 16]), LeaseId::from_bytes([2; 16]));
    let (storage, keys) = (&*store.storage, &store.keys);
    let kind = RecordKind::Chunk;
    let mut writer =
        crate::format::pack::PackWriter::create(storage, pack, PackKind::Data, lease, keys)
            .unwrap();
    for n in 0..10_u8 {
        let id = keys.id_of(kind, &[n; 100]);
        let sealed = crate::format::record::seal(keys, crate::Codec::None, kind, id, &[n; 100]);
        writer.append(kind, id, &sealed).unwrap();
    }
    let whole = writer.finish().unwrap();
    let enter = |entries: &[PackEntry]| {
        store
            .index
            .write(|edit| {
                let number = edit.enter_pack(row_of(&whole))?;
                edit.add_entries(entries.iter().map(|entry| Entry {
                    id: entry.id,
                    pack: number,
                    offset: entry.offset,
                    len: entry.len,
                }))
            })
            .unwrap();
    };
    enter(&whole.entries[..4]);
    let read_data = crate::ReadData::ALL;
    let options = crate::CheckOptions { read_data };
    let report = repo.check(options, &Quiet, &crate::Cancel::new()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}
