//! The index is a cache: packs and point records alone bring it back.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use virtkeep_repo::{
    Cancel, CheckOptions, CheckProgress, Env, Error, InitOptions, OpenOptions, Point, RawId,
    ReadData, RebuildReport, Repository,
};

use crate::disk::{MemoryDisk, backup, repository, restore};
use crate::prune_races::index_of;

const MIB: usize = 1 << 20;

pub(crate) struct Quiet;

impl CheckProgress for Quiet {
    fn packs(&self, _: u64) {}
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

pub(crate) fn rebuild(repo: &Repository) -> RebuildReport {
    rebuild_at(repo.path())
}

pub(crate) fn rebuild_at(path: &Path) -> RebuildReport {
    let options = OpenOptions::default();
    Repository::rebuild_index(path, &options, Env::system(), &Quiet, &Cancel::new()).unwrap()
}

fn open(repo: &Repository) -> virtkeep_repo::Result<Repository> {
    Repository::open(repo.path(), &OpenOptions::default(), Env::system())
}

/// Makes an index file unusable.
type Spoil = fn(&std::path::Path);

#[test]
fn a_missing_or_garbled_index_is_built_anew_from_packs_and_records() {
    let ways: [(&str, Spoil); 4] = [
        ("missing", |index| fs::remove_file(index).unwrap()),
        ("empty", |index| fs::write(index, b"").unwrap()),
        ("garbage", |index| {
            fs::write(index, vec![0x5a; 100_000]).unwrap()
        }),
        ("cut short", |index| {
            let bytes = fs::read(index).unwrap();
            fs::write(index, &bytes[..bytes.len() / 3]).unwrap();
        }),
    ];
    for (way, spoil) in ways {
        let (_dir, repo) = repository(&InitOptions::default());
        let mut disk = MemoryDisk::new(6 * MIB);
        disk.write(MIB, &[7; 300_000]);
        let first = backup(&repo, &disk.whole(), None);
        let before = disk.bytes.clone();
        disk.write(2 * MIB, &[8; 100_000]);
        let second = backup(&repo, &disk.changes(), Some(&first));

        spoil(&repo.path().join("index.redb"));
        let refused = open(&repo).err().expect("an index that cannot be used");
        assert!(matches!(refused, Error::Index { .. }), "{way}: {refused}");
        let report = rebuild(&repo);
        assert_eq!((report.points, report.damage.len()), (2, 0), "{way}");

        let repo = open(&repo).unwrap();
        assert!(restore(&repo, &first) == before, "{way}");
        assert!(restore(&repo, &second) == disk.bytes, "{way}");
        let options = CheckOptions {
            read_data: ReadData::ALL,
        };
        let check = repo.check(options, &Quiet, &Cancel::new()).unwrap();
        assert!(check.is_clean(), "{way}: {check:?}");
        let again = backup(&repo, &disk.whole(), None);
        assert_eq!(
            again.disks[0].stats.new_bytes, 0,
            "{way}: everything is known again"
        );
    }
}

#[test]
fn a_pack_without_a_readable_table_gives_what_its_records_tell() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(6 * MIB);
    for block in 0..40 {
        disk.write(block * 65536, &[block as u8 + 1; 65536]);
    }
    let point = backup(&repo, &disk.whole(), None);
    for folder in fs::read_dir(repo.path().join("packs")).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = pack.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let table = bytes.len() - 200;
            bytes[table] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    fs::remove_file(repo.path().join("index.redb")).unwrap();
    let report = rebuild(&repo);
    assert_eq!(report.damage.len(), 2, "both packs: {report:?}");
    assert!(restore(&open(&repo).unwrap(), &point) == disk.bytes);
}

/// Backs another disk up once the packs have been listed.
struct During<'a> {
    repo: &'a Repository,
    seen: Mutex<Option<(Point, Vec<u8>)>>,
}

impl CheckProgress for During<'_> {
    fn packs(&self, _: u64) {
        let mut other = MemoryDisk::new(MIB);
        other.write(0, &[9; 70_000]);
        let point = backup(self.repo, &other.whole(), None);
        *self.seen.lock().unwrap() = Some((point, other.bytes));
    }
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

#[test]
fn a_backup_that_runs_while_the_index_is_rebuilt_is_in_it() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(6 * MIB);
    disk.write(MIB, &[7; 300_000]);
    backup(&repo, &disk.whole(), None);
    let options = OpenOptions::default();
    let during = During {
        repo: &repo,
        seen: Mutex::default(),
    };
    let env = Env::system();
    Repository::rebuild_index(repo.path(), &options, env, &during, &Cancel::new()).unwrap();
    let (point, bytes) = during.seen.into_inner().unwrap().unwrap();
    let repo = open(&repo).unwrap();
    assert!(restore(&repo, &point) == bytes);
    assert_eq!(repo.points().unwrap().len(), 2);
}

/// Finds damage, as a running backup does, once the packs have been listed.
struct Distrusting<'a>(&'a Repository, RawId);

impl CheckProgress for Distrusting<'_> {
    fn packs(&self, _: u64) {
        let index = index_of(self.0);
        index.write(|edit| edit.want(&[self.1])).unwrap();
    }
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

#[test]
fn damage_that_a_backup_finds_while_the_index_is_rebuilt_is_remembered() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(MIB);
    disk.write(0, &[7; 300_000]);
    let point = backup(&repo, &disk.whole(), None);
    let during = Distrusting(&repo, RawId::from_bytes(*point.disks[0].root.as_bytes()));
    let (options, env) = (OpenOptions::default(), Env::system());
    Repository::rebuild_index(repo.path(), &options, env, &during, &Cancel::new()).unwrap();
    assert_eq!(open(&repo).unwrap().wanted().unwrap(), 1);
}
