//! The golden repository of format version 1, made once and never edited: today's code reads all of it,
//! goes on with it, and so does the reader that knows only `doc/format.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use virtkeep_repo::{
    Cancel, CheckOptions, Env, Error, OpenOptions, Point, PointId, ReadData, Repository,
};

use crate::disk::{MemoryDisk, backup, reopen, restore, restore_disk};
use crate::prune::{now, prune};
use crate::rebuild::{Quiet, rebuild_at};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");

fn golden(name: &str) -> PathBuf {
    Path::new(GOLDEN).join("v1").join(name)
}

/// A disk or file that a point holds.
struct Part {
    point: PointId,
    is_disk: bool,
    name: String,
    hash: String,
}

/// What the repository held when it was made.
fn content() -> Vec<Part> {
    let lines = fs::read_to_string(golden("CONTENT")).unwrap();
    let parts = lines.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [point, kind, name, _size, hash] = words[..] else {
            panic!("{line}");
        };
        Part {
            point: point.parse().unwrap(),
            is_disk: kind == "disk",
            name: name.into(),
            hash: hash.into(),
        }
    });
    parts.collect()
}

/// A copy to work on, without an index.
fn copy() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repository");
    copy_tree(&golden("repository"), &path);
    // Empty when it was made, and git keeps no empty folder.
    for folder in ["leases", "locks"] {
        fs::create_dir(path.join(folder)).unwrap();
    }
    (dir, path)
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn open(path: &Path) -> virtkeep_repo::Result<Repository> {
    Repository::open(path, &OpenOptions::default(), Env::system())
}

fn opened() -> (TempDir, Repository) {
    let (dir, path) = copy();
    rebuild_at(&path);
    (dir, open(&path).unwrap())
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// Every disk and file of every point that is there, forgotten or not, is what it was.
fn assert_content(repo: &Repository) {
    assert_parts(repo, content());
}

fn assert_parts(repo: &Repository, parts: impl IntoIterator<Item = Part>) {
    for part in parts {
        let _hold;
        let point = match repo.point(part.point) {
            Err(Error::NoSuchPoint { .. }) => {
                let point = repo.forgotten_point(part.point).unwrap();
                _hold = repo.hold(&point, &Cancel::new()).unwrap();
                point
            }
            point => point.unwrap(),
        };
        let bytes = if part.is_disk {
            let disk = point.disks.iter().find(|disk| disk.target == part.name);
            restore_disk(repo, &point, disk.unwrap())
        } else {
            let file = point.files.iter().find(|file| file.name == part.name);
            repo.read_file(&point, file.unwrap()).unwrap()
        };
        assert_eq!(hash(&bytes), part.hash, "{} {}", part.point, part.name);
    }
}

fn assert_sound(repo: &Repository) {
    let read_data = ReadData::ALL;
    let report = repo
        .check(CheckOptions { read_data }, &Quiet, &Cancel::new())
        .unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn named<'a>(points: &'a [Point], domain: &str) -> Vec<&'a Point> {
    let of = |point: &&Point| point.domain.name == domain;
    points.iter().filter(of).collect()
}

#[test]
fn nobody_has_changed_the_golden_repository() {
    let mut listed = 0;
    for line in fs::read_to_string(golden("FILES")).unwrap().lines() {
        let (recorded, name) = line.split_once("  ").unwrap();
        assert_eq!(hash(&fs::read(golden(name)).unwrap()), recorded, "{name}");
        listed += 1;
    }
    let mut found = 0;
    let mut folders = vec![golden("")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    assert_eq!(found, listed + 1, "all files but FILES itself are listed");
}

#[test]
fn every_point_of_the_golden_repository_is_restored_by_todays_code() {
    let (_dir, path) = copy();
    let refused = open(&path).err().expect("there is no index");
    assert!(refused.to_string().contains("virtkeep repair"), "{refused}");

    let report = rebuild_at(&path);
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    let repo = open(&path).unwrap();
    assert_sound(&repo);
    assert_content(&repo);

    let points = repo.points().unwrap();
    let [first, third] = named(&points, "web")[..] else {
        panic!("{points:?}");
    };
    assert_eq!(first.tags, ["monthly", "before the move"]);
    assert_eq!(third.disks[1].size.0, 1_234_432);
    let forgotten = repo.forgotten().unwrap().points;
    assert_eq!(forgotten.len(), 1);
    assert_eq!(forgotten[0].disks[0].parent, Some(first.id));
    assert_eq!(named(&points, "db/üñí@1").len(), 1);
    assert_eq!(named(&points, "empty").len(), 1);
    let pinned = repo.forget(&[first.id]);
    assert!(matches!(pinned, Err(Error::Pinned { .. })), "{pinned:?}");
}

#[test]
fn the_index_of_the_golden_repository_serves_or_says_that_it_must_be_built_anew() {
    let (_dir, path) = copy();
    let packed = fs::read(golden("index.redb.zst")).unwrap();
    let index = zstd::stream::decode_all(&packed[..]).unwrap();
    fs::write(path.join("index.redb"), index).unwrap();
    match open(&path) {
        Ok(repo) => {
            assert_sound(&repo);
            assert_content(&repo);
        }
        Err(error) => assert!(error.to_string().contains("virtkeep repair"), "{error}"),
    }
}

#[test]
fn the_golden_repository_takes_in_new_points_and_gives_back_forgotten_ones() {
    let (_dir, repo) = opened();
    let points = repo.points().unwrap();
    let third = named(&points, "web")[1];
    let mut disk = MemoryDisk::new(third.disks[0].size.0 as usize);
    disk.bytes = restore(&repo, third);
    disk.write(5 << 20, &[9; 10_000]);
    let new = backup(&repo, &disk.changes(), Some(third));
    // The chunks written, and the nodes above them: the rest is the parent's.
    assert_eq!(new.disks[0].stats.new_chunks, 2);
    assert_eq!(new.disks[0].stats.new_nodes, 3);

    let forgotten = repo.forgotten().unwrap().points;
    repo.undo_forget(forgotten[0].id, &Cancel::new()).unwrap();
    repo.forget(&[third.id]).unwrap();
    rebuild_at(repo.path());
    let repo = reopen(&repo);
    assert!(restore(&repo, &new) == disk.bytes);
    assert_sound(&repo);
    assert_content(&repo);
}

#[test]
fn the_golden_repository_forgets_and_is_pruned_and_keeps_all_else() {
    let (_dir, repo) = opened();
    let points = repo.points().unwrap();
    let gone = named(&points, "web")[1].id;
    let forgotten = repo.forgotten().unwrap().points[0].id;
    repo.forget(&[gone]).unwrap();
    let report = prune(&repo, now());
    assert_eq!(report.forgotten_removed, 2);
    assert!(
        report.packs_removed > 0 && report.damage.is_empty(),
        "{report:?}"
    );
    let repo = reopen(&repo);
    assert_sound(&repo);
    assert!(repo.forgotten().unwrap().points.is_empty());
    let kept = content()
        .into_iter()
        .filter(|part| part.point != gone && part.point != forgotten);
    assert_parts(&repo, kept);
    rebuild_at(repo.path());
    assert_sound(&reopen(&repo));
}

#[test]
fn a_reader_written_from_the_document_alone_restores_from_the_golden_repository() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("restored");
    let mut parts = content();
    // What several points hold needs to be restored but once.
    parts.sort_by(|a, b| a.hash.cmp(&b.hash));
    parts.dedup_by(|a, b| a.hash == b.hash);
    let mut restored = 0;
    for part in parts {
        let status = Command::new("python3")
            .arg(Path::new(GOLDEN).join("reader.py"))
            .arg(golden("repository"))
            .args([part.point.to_string(), part.name.clone()])
            .arg(&output)
            .status()
            .expect("python3 is installed where the tests run");
        assert!(status.success(), "{} {}", part.point, part.name);
        let found = hash(&fs::read(&output).unwrap());
        assert_eq!(found, part.hash, "{} {}", part.point, part.name);
        restored += 1;
    }
    assert!(restored >= 8, "{restored}");
}
