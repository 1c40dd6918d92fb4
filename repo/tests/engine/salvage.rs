//! Saving what can be saved of a damaged disk.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use virtkeep_repo::index::LocalFiles;
use virtkeep_repo::pin::PinStore;
use virtkeep_repo::storage::{Folder, LocalStorage, ObjectName, ObjectWriter, Storage};
use virtkeep_repo::{
    ByteLen, Cancel, DiskOffset, Env, Error, InitOptions, NoProgress, OpenOptions, PackId, Parts,
    Point, RepairOptions, Repository, Result,
};

use crate::disk::{MemoryDisk, MemorySink, backup, repository};
use crate::prune::{Quiet, noise, now, prune};

/// A disk of 40 MiB in chunks of 4 KiB, all of them different: three levels of nodes.
fn disk() -> MemoryDisk {
    let mut disk = MemoryDisk::new(40 << 20);
    for at in (0..40 << 20).step_by(4096) {
        disk.write(at, &(at as u64 + 1).to_le_bytes());
    }
    disk
}

fn small_chunks() -> InitOptions {
    InitOptions {
        chunk_size: ByteLen(4096),
        ..InitOptions::default()
    }
}

/// What can be saved of the range, and which ranges cannot.
fn salvage(repo: &Repository, point: &Point, from: u64, until: u64) -> (Vec<u8>, Vec<(u64, u64)>) {
    let reader = repo.salvage_disk(point, &point.disks[0]).unwrap();
    let sink = MemorySink::filled(reader.size());
    let (from, until) = (DiskOffset(from), DiskOffset(until));
    reader
        .copy_to(from, until, &sink, &NoProgress, &Cancel::new())
        .unwrap();
    let losses = reader.losses().into_iter();
    (
        sink.into_bytes(),
        losses
            .map(|loss| (loss.range.start, loss.range.end))
            .collect(),
    )
}

/// The only meta pack, in which nodes are stored from the leaves up: the root record is the last.
fn meta_pack(repo: &Repository) -> std::path::PathBuf {
    packs(repo)
        .into_iter()
        .find(|path| fs::read(path).unwrap()[10] == 2)
        .unwrap()
}

/// Spoils the record that holds byte `at` of the pack.
fn spoil(pack: &std::path::Path, at: u64) {
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(&[0xff; 16], at).unwrap();
}

#[test]
fn a_damaged_leaf_costs_the_range_below_it() {
    let (_dir, repo) = repository(&small_chunks());
    let mut disk = disk();
    let point = backup(&repo, &disk.whole(), None);
    // The first leaf: 64 chunks.
    spoil(&meta_pack(&repo), 64 + 200);
    let (bytes, lost) = salvage(&repo, &point, 0, 40 << 20);
    assert_eq!(lost, [(0, 256 << 10)]);
    assert!(bytes[..256 << 10].iter().all(|byte| *byte == 0));
    assert!(bytes[256 << 10..] == disk.bytes[256 << 10..]);

    let (bytes, lost) = salvage(&repo, &point, 10_000, 300_000);
    assert_eq!(lost, [(10_000, 256 << 10)], "no more than was asked for");
    assert!(bytes[256 << 10..300_000] == disk.bytes[256 << 10..300_000]);
    assert!(bytes[..10_000].iter().all(|byte| *byte == 0xcc));

    let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
    let sink = MemorySink::filled(reader.size());
    let (start, end) = (DiskOffset(0), DiskOffset(40 << 20));
    let stopped = reader
        .copy_to(start, end, &sink, &NoProgress, &Cancel::new())
        .unwrap_err();
    let named = matches!(
        stopped,
        Error::DiskDamage {
            start: 0,
            end: 262_144,
            ..
        }
    );
    assert!(named, "{stopped}");
}

#[test]
fn a_damaged_inner_node_costs_everything_below_it_and_a_damaged_root_the_disk() {
    let (_dir, repo) = repository(&small_chunks());
    let mut disk = disk();
    let point = backup(&repo, &disk.whole(), None);
    let pack = meta_pack(&repo);
    let len = fs::metadata(&pack).unwrap().len();
    // 160 leaves and 3 nodes above them, a top node, a root: 165 records; the table tells where.
    let table = {
        let bytes = fs::read(&pack).unwrap();
        let at = len as usize - 80;
        let offset = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        bytes[offset + 4..at].to_vec()
    };
    let records: Vec<(u64, u8)> = table
        .chunks(44)
        .map(|entry| {
            let offset = u32::from_le_bytes(entry[32..36].try_into().unwrap());
            (offset.into(), entry[40])
        })
        .collect();
    assert_eq!(records.len(), 165);
    // The 65th record is the node above the first 64 leaves: 16 MiB.
    spoil(&pack, records[64].0 + 100);
    let repo = crate::disk::reopen(&repo);
    let (bytes, lost) = salvage(&repo, &point, 0, 40 << 20);
    assert_eq!(lost, [(0, 16 << 20)]);
    assert!(bytes[16 << 20..] == disk.bytes[16 << 20..]);

    spoil(&pack, records[164].0 + 70);
    let (bytes, lost) = salvage(&repo, &point, 0, 40 << 20);
    assert_eq!(lost, [(0, 40 << 20)]);
    assert!(bytes.iter().all(|byte| *byte == 0));
    let refused = repo.read_disk(&point, &point.disks[0]).err().unwrap();
    let all = 40 << 20;
    let named = matches!(refused, Error::DiskDamage { start: 0, end, .. } if end == all);
    assert!(named, "{refused}");
}

#[test]
fn a_pack_that_is_gone_costs_its_chunks_alone() {
    let (_dir, repo) = repository(&small_chunks());
    let mut disk = disk();
    let first = backup(&repo, &disk.whole(), None);
    let before = packs(&repo);
    disk.write(12 << 20, &[7; 4096]);
    let second = backup(&repo, &disk.changes(), Some(&first));
    let new = packs(&repo)
        .into_iter()
        .filter(|path| !before.contains(path))
        .find(|path| fs::read(path).unwrap()[10] == 1);
    fs::remove_file(new.unwrap()).unwrap();
    let repo = crate::disk::reopen(&repo);
    let (bytes, lost) = salvage(&repo, &second, 0, 40 << 20);
    let (from, until) = (12 << 20, (12 << 20) + 4096);
    assert_eq!(lost, [(from as u64, until as u64)]);
    assert!(bytes[..from] == disk.bytes[..from] && bytes[until..] == disk.bytes[until..]);
    assert!(salvage(&repo, &first, 0, 40 << 20).1.is_empty());
}

fn packs(repo: &Repository) -> Vec<std::path::PathBuf> {
    fs::read_dir(repo.path().join("packs"))
        .unwrap()
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect()
}

/// A medium that cannot read one of its packs any more after some reads, until it is told to.
struct Flaky {
    inner: LocalStorage,
    pack: ObjectName,
    reads_left: AtomicI64,
}

impl Storage for Flaky {
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        self.inner.create(name)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if *name == self.pack && self.reads_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(Error::Io {
                verb: "read",
                path: self.inner.path_of(name),
                offset: Some(offset),
                source: io::Error::from_raw_os_error(5),
            });
        }
        self.inner.read_at(name, offset, buffer)
    }

    fn len(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.len(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>> {
        self.inner.list(folder)
    }

    fn settle(&self, folder: Folder) -> Result<()> {
        self.inner.settle(folder)
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        self.inner.delete(name)
    }

    fn remove_debris(&self) -> Result<u64> {
        self.inner.remove_debris()
    }
}

fn on_flaky(path: &Path, pack: &Path) -> (Repository, Arc<Flaky>) {
    let name = pack.file_stem().unwrap().to_str().unwrap();
    let pack: PackId = name.parse().unwrap();
    let storage = Arc::new(Flaky {
        inner: LocalStorage::new(path),
        pack: ObjectName::Pack(pack),
        reads_left: AtomicI64::new(i64::MAX),
    });
    let parts = Parts {
        storage: Arc::clone(&storage) as Arc<dyn Storage>,
        index: Arc::new(LocalFiles::new(path)),
        pins: PinStore::new(&path.join("pins"), Env::system()),
        directory: path.to_owned(),
    };
    let repo = Repository::open_on(parts, &OpenOptions::default(), Env::system()).unwrap();
    (repo, storage)
}

#[test]
fn a_medium_that_fails_while_a_pack_is_mended_costs_no_record_that_can_be_read_later() {
    for reads in [0, 8, 20] {
        for remove in [false, true] {
            let (_dir, repo) = repository(&small_chunks());
            let mut disk = MemoryDisk::new(64 << 10);
            disk.write(0, &noise(1, 64 << 10));
            let point = backup(&repo, &disk.whole(), None);
            let data = packs(&repo)
                .into_iter()
                .find(|path| fs::read(path).unwrap()[10] == 1)
                .unwrap();
            // In the content of the second chunk.
            spoil(&data, 6000);

            let (repo, medium) = on_flaky(repo.path(), &data);
            let cancel = Cancel::new();
            let options = RepairOptions {
                remove,
                ..RepairOptions::default()
            };
            medium.reads_left.store(reads, Ordering::SeqCst);
            repo.repair(options, &Quiet, &cancel).unwrap();
            medium.reads_left.store(i64::MAX, Ordering::SeqCst);
            prune(&repo, now());
            repo.repair(options, &Quiet, &cancel).unwrap();
            prune(&repo, now());

            let (bytes, lost) = salvage(&repo, &point, 0, 64 << 10);
            assert_eq!(lost, [(4096, 8192)], "{reads} reads, remove: {remove}");
            assert!(bytes[8192..] == disk.bytes[8192..]);
        }
    }
}
