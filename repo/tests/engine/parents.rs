//! What a new point may take over from the one before, and what it must not.

use std::fs;
use std::path::{Path, PathBuf};

use virtkeep_repo::{InitOptions, Repository};

use crate::disk::{MemoryDisk, backup, repository, restore};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A disk of this size without a chunk of zeroes, and no two chunks alike.
fn disk(size: usize) -> MemoryDisk {
    let mut disk = MemoryDisk::new(size);
    for at in (0..size).step_by(512) {
        let tag = (at as u64 + 1).to_le_bytes();
        disk.write(at, &tag);
    }
    disk
}

#[test]
fn what_lies_behind_the_end_of_the_parent_is_read_whatever_the_source_claims() {
    for (old, new) in [
        (3 * MIB, 5 * MIB),
        (4 * MIB, 8 * MIB),
        (4 * MIB, 4 * MIB + 512),
        (3 * MIB + 512, 3 * MIB + 1024),
        (64 * KIB - 512, 64 * KIB),
        (512, 300 * MIB),
    ] {
        let (_dir, repo) = repository(&InitOptions::default());
        let parent = backup(&repo, &disk(old).whole(), None);
        let grown = disk(new);
        let source = grown.claimed_unchanged();
        let point = backup(&repo, &source, Some(&parent));
        assert!(
            restore(&repo, &point) == grown.bytes,
            "{old} grown to {new}"
        );
        let chunk = 64 * KIB as u64;
        let taken_over = old as u64 - old as u64 % chunk;
        let first_read = source.reads.lock().unwrap().iter().map(|(at, _)| *at).min();
        assert_eq!(first_read, Some(taken_over), "{old} grown to {new}");
    }
}

#[test]
fn a_disk_that_shrank_has_the_same_root_as_one_that_was_always_small() {
    for (old, new) in [
        (5 * MIB, 3 * MIB),
        (8 * MIB, 4 * MIB),
        (8 * MIB, 4 * MIB + 512),
        (300 * MIB, 4 * MIB),
        (64 * KIB, 64 * KIB - 512),
    ] {
        let (_dir, repo) = repository(&InitOptions::default());
        let parent = backup(&repo, &disk(old).whole(), None);
        let mut shrunk = disk(new);
        let point = backup(&repo, &shrunk.claimed_unchanged(), Some(&parent));
        assert!(
            restore(&repo, &point) == shrunk.bytes,
            "{old} shrunk to {new}"
        );
        let anew = backup(&repo, &shrunk.whole(), None);
        assert_eq!(
            anew.disks[0].root, point.disks[0].root,
            "{old} shrunk to {new}"
        );
    }
}

#[test]
fn without_a_parent_nothing_is_unchanged() {
    let (_dir, repo) = repository(&InitOptions::default());
    let disk = disk(MIB);
    let point = backup(&repo, &disk.claimed_unchanged(), None);
    assert!(restore(&repo, &point) == disk.bytes);
}

/// The meta packs, with the nodes.
fn meta_packs(repo: &Repository) -> Vec<PathBuf> {
    let mut packs = Vec::new();
    for folder in fs::read_dir(repo.path().join("packs")).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = pack.unwrap().path();
            if fs::read(&path).unwrap()[10] == 2 {
                packs.push(path);
            }
        }
    }
    packs
}

fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    for byte in bytes.iter_mut().skip(64) {
        *byte ^= 0x55;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_parent_that_cannot_be_read_is_read_from_the_source_and_made_whole_again() {
    for size in [MIB, 300 * MIB] {
        let (_dir, repo) = repository(&InitOptions::default());
        let mut disk = disk(size);
        let parent = backup(&repo, &disk.whole(), None);
        meta_packs(&repo).iter().for_each(|pack| spoil(pack));
        // Opened anew, so that no node is remembered.
        let repo = Repository::open(
            repo.path(),
            &Default::default(),
            virtkeep_repo::Env::system(),
        );
        let repo = repo.unwrap();
        let point = backup(&repo, &disk.changes(), Some(&parent));
        assert_eq!(
            point.disks[0].root, parent.disks[0].root,
            "nothing has changed"
        );
        assert_eq!(point.disks[0].stats.new_chunks, 0, "the chunks are whole");
        assert!(
            restore(&repo, &point) == disk.bytes,
            "the new point inherits no damage"
        );
        assert!(
            restore(&repo, &parent) == disk.bytes,
            "and heals the old one"
        );
    }
}

#[test]
fn a_damaged_point_record_hides_no_other_point() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = disk(MIB);
    let first = backup(&repo, &disk.whole(), None);
    let second = backup(&repo, &disk.whole(), None);
    let record = repo.path().join("points").join(second.id.to_string());
    let mut bytes = fs::read(&record).unwrap();
    bytes[40] ^= 1;
    fs::write(&record, bytes).unwrap();
    // With its row in the index the point is still whole; without it, it is damaged.
    assert_eq!(repo.points().unwrap().len(), 2);
    forget_rows(&repo);
    let left: Vec<_> = repo
        .points()
        .unwrap()
        .iter()
        .map(|point| point.id)
        .collect();
    assert_eq!(left, [first.id]);
    let damaged: Vec<_> = repo
        .damaged_points()
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(damaged, [second.id]);
}

/// Loses the index's cache of points.
fn forget_rows(repo: &Repository) {
    use std::sync::Arc;
    use virtkeep_repo::config::Config;
    use virtkeep_repo::index::{FileGate, Identity, Index, LocalFiles};
    let text = fs::read_to_string(repo.path().join("config.toml")).unwrap();
    let config = Config::parse(&text, repo.path()).unwrap();
    let identity = Identity {
        repo: config.id,
        owner: config.index_owner,
    };
    let lock = Arc::new(FileGate::new(&repo.path().join("locks"), "test"));
    let index = Index::open(Arc::new(LocalFiles::new(repo.path())), lock, identity).unwrap();
    for point in repo.points().unwrap() {
        assert!(index.remove_point(point.id).unwrap());
    }
}
