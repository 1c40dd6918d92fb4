//! Readers that have found out where records are, before prune moves them or repair gives them up.

use std::sync::{Arc, Mutex};

use virtkeep_repo::index::View;
use virtkeep_repo::storage::ObjectName;
use virtkeep_repo::{DiskOffset, DiskReader, PackId, PackKind, Point, Repository};

use crate::disk::{MemoryDisk, backup};
use crate::healing::{self, repair, spoil};
use crate::hooked::{Moment, hooked, noted};
use crate::prune::{assert_clean, noise, now, prune, reopen, small};
use crate::prune_races::index_of;

const CHUNK: usize = 4096;
const LEAF: usize = 256 * CHUNK;
const LEN: usize = 4 * LEAF;

/// A point of which every pack holds what nobody needs, too.
fn sparse(repo: &Repository) -> (MemoryDisk, Point) {
    let mut disk = MemoryDisk::new(LEN);
    disk.write(0, &noise(1, LEN));
    let first = backup(repo, &disk.whole(), None);
    for chunk in (0..LEN / CHUNK).step_by(3) {
        disk.write(chunk * CHUNK, &[0; CHUNK]);
    }
    let second = backup(repo, &disk.whole(), None);
    repo.forget(&[first.id]).unwrap();
    (disk, second)
}

fn data_packs(repo: &Repository) -> Vec<PackId> {
    let rows = index_of(repo).read(View::numbered_packs).unwrap();
    let data = rows
        .into_iter()
        .filter(|(_, row)| row.kind == PackKind::Data);
    data.map(|(_, row)| row.id).collect()
}

fn prune_all(repo: &Repository) {
    let before = data_packs(repo);
    prune(repo, now());
    let after = data_packs(repo);
    assert!(!before.iter().any(|pack| after.contains(pack)), "all move");
}

#[track_caller]
fn assert_reads(reader: &DiskReader, disk: &MemoryDisk, at: usize, len: usize) {
    let mut bytes = vec![0; len];
    reader.read_at(DiskOffset(at as u64), &mut bytes).unwrap();
    assert!(bytes == disk.bytes[at..at + len], "{len} bytes at {at}");
}

#[test]
fn a_reader_whose_places_are_out_of_date_finds_out_once_where_everything_is_now() {
    let (_dir, repo) = small();
    let (disk, point) = sparse(&repo);
    let (reading, seen) = noted(repo.path());
    let reader = reading.read_disk(&point, &point.disks[0]).unwrap();
    // A chunk of each leaf, by which it knows the places of all.
    for leaf in 0..LEN / LEAF {
        assert_reads(&reader, &disk, leaf * LEAF, CHUNK);
    }
    prune_all(&repo);
    // Files that are still open could be read on.
    reading.let_go_of_deleted();

    let misses = || {
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let missed = |moment: &Moment| matches!(moment, Moment::NotRead(ObjectName::Pack(_)));
        seen.into_iter().filter(missed).count()
    };
    assert_eq!(misses(), 0);
    // A part of a chunk, a chunk, and chunks from here and there.
    assert_reads(&reader, &disk, 2 * CHUNK + 100, 1000);
    assert_reads(&reader, &disk, LEAF + 6 * CHUNK, CHUNK);
    assert_reads(&reader, &disk, 2 * LEAF + 9 * CHUNK + 77, LEAF);
    assert!(misses() >= 4, "one for each leaf");
    assert_reads(&reader, &disk, 0, LEN);
    assert_reads(&reader, &disk, 7 * CHUNK + 100, 1000);
    assert_eq!(misses(), 0);
    assert_clean(&repo);
}

#[test]
fn a_read_between_whose_packs_all_records_are_moved_goes_on_where_they_are_now() {
    let (_dir, repo) = small();
    let (disk, point) = sparse(&repo);
    let pruned = Arc::new(Mutex::new(false));
    let prune_once = {
        let (other, pruned) = (reopen(&repo), Arc::clone(&pruned));
        move || {
            prune_all(&other);
            *pruned.lock().unwrap() = true;
        }
    };
    // The first of those that one read takes one after the other.
    let first = data_packs(&repo).into_iter().min().unwrap();
    let moment = Moment::Read(ObjectName::Pack(first));
    let reading = hooked(repo.path(), moment, prune_once);
    let reader = reading.read_disk(&point, &point.disks[0]).unwrap();
    assert_reads(&reader, &disk, 0, LEN);
    assert!(*pruned.lock().unwrap());
    assert_reads(&reader, &disk, 0, LEN);
    assert_clean(&repo);
}

/// The chunks of a disk that cannot be read.
fn unreadable(reader: &DiskReader, len: usize) -> Vec<usize> {
    let mut chunk = [0; CHUNK];
    let mut read = |number: &usize| reader.read_at(DiskOffset((number * CHUNK) as u64), &mut chunk);
    (0..len / CHUNK)
        .filter(|number| read(number).is_err())
        .collect()
}

#[test]
fn a_reader_loses_no_more_than_what_is_damaged_and_that_until_it_is_healed() {
    // Whether repair removes the damaged pack, where the reader once found everything.
    for remove in [false, true] {
        let (_dir, repo) = small();
        let len = 16 * CHUNK;
        let mut disk = MemoryDisk::new(len);
        disk.write(0, &noise(1, len));
        let point = backup(&repo, &disk.whole(), None);
        let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
        assert_reads(&reader, &disk, 0, len);
        spoil(&healing::data_packs(&repo)[0]);
        let lost = unreadable(&reader, len);
        assert_eq!(lost.len(), 1);

        repair(&reopen(&repo), remove);
        assert_eq!(unreadable(&reader, len), lost, "remove: {remove}");
        let fresh = repo.read_disk(&point, &point.disks[0]).unwrap();
        assert_eq!(unreadable(&fresh, len), lost, "remove: {remove}");

        backup(&reopen(&repo), &disk.whole(), None);
        assert_reads(&reader, &disk, 0, len);
        assert_reads(&reader, &disk, lost[0] * CHUNK + 100, 1000);
        assert_clean(&repo);
    }
}
