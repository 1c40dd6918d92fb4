//! What must not hang, be lost, or be taken over when the world misbehaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use virtkeep_repo::config::Config;
use virtkeep_repo::index::{FileGate, Identity, Index, LocalFiles};
use virtkeep_repo::{
    ByteLen, Cancel, Codec, DiskOffset, DiskSource, Env, Error, Extent, ExtentState, InitOptions,
    Next, NoProgress, ReadQueue, Repository, SourceError,
};

use crate::disk::{MemoryDisk, backup, draft, repository, restore};

/// A disk of data whose first read is spoiled in some way while a second reader goes on.
struct Spoiled {
    size: u64,
    spoil: fn(virtkeep_repo::ReadRequest, &dyn ReadQueue),
}

impl DiskSource for Spoiled {
    fn size(&self) -> ByteLen {
        ByteLen(self.size)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        Ok(vec![Extent {
            start: from,
            len: ByteLen(self.size - from.0),
            state: ExtentState::Data,
        }])
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        if let Next::Read(request) = queue.next(true) {
            (self.spoil)(request, queue);
        }
        while let Next::Read(request) = queue.next(true) {
            queue.complete(request);
        }
        Ok(())
    }
}

fn store_spoiled(spoil: fn(virtkeep_repo::ReadRequest, &dyn ReadQueue)) -> Error {
    let options = InitOptions {
        chunk_size: ByteLen(4096),
        ..InitOptions::default()
    };
    let (_dir, repo) = repository(&options);
    // More leaves behind the first than may be open at once.
    let size = 400 << 20;
    repo.begin_backup(&[], "test")
        .unwrap()
        .store_disk(&Spoiled { size, spoil }, None, &NoProgress, &Cancel::new())
        .unwrap_err()
}

#[test]
fn a_read_that_is_given_up_ends_the_reading_of_the_others_instead_of_hanging() {
    let error = store_spoiled(|request, _| drop(request));
    assert!(matches!(error, Error::Source(_)), "{error}");
}

#[test]
fn a_read_that_comes_back_short_is_refused_instead_of_padded_with_zeroes() {
    let error = store_spoiled(|mut request, queue| {
        let len = request.buffer.len();
        request.buffer.truncate(len - 100);
        queue.complete(request);
    });
    assert!(error.to_string().contains("another length"), "{error}");
}

#[test]
fn extents_of_a_full_disk_are_answered_in_bounded_pieces() {
    let options = InitOptions {
        chunk_size: ByteLen(4096),
        codec: Codec::Lz4,
        ..InitOptions::default()
    };
    let (_dir, repo) = repository(&options);
    let mut disk = MemoryDisk::new(80 << 20);
    let bytes = vec![1; disk.bytes.len()];
    disk.write(0, &bytes);
    let point = backup(&repo, &disk.whole(), None);
    let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
    let end = DiskOffset(reader.size().0);
    let (mut at, mut pieces) = (DiskOffset(0), 0);
    while at < end {
        let extents = reader.extents(at, end).unwrap();
        assert!(extents.iter().all(|e| e.state == ExtentState::Data));
        at = extents.last().unwrap().end();
        pieces += 1;
    }
    assert!(pieces > 1, "one call looked at all 20480 chunks");
    assert!(crate::disk::restore(&repo, &point) == disk.bytes);
}

#[test]
fn init_can_be_repeated_after_a_kill_but_not_over_packs_without_settings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config.toml.tmp"), "half of it").unwrap();
    let repo = Repository::init(&path, &InitOptions::default(), Env::system()).unwrap();

    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &[1; 1000]);
    backup(&repo, &disk.whole(), None);
    fs::remove_file(path.join("config.toml")).unwrap();
    let refused = Repository::init(&path, &InitOptions::default(), Env::system());
    assert!(matches!(refused, Err(Error::AlreadyExists { .. })));
}

#[test]
fn a_new_repository_is_for_its_owner_alone() {
    let (_dir, repo) = repository(&InitOptions::default());
    for folder in ["", "packs", "points", "leases", "pins", "locks"] {
        let metadata = fs::metadata(repo.path().join(folder)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{folder}");
    }
}

#[test]
fn a_pack_that_cannot_be_finished_leaves_no_point_behind() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &[1; 1000]);
    let running = repo.begin_backup(&[], "test").unwrap();
    let stored = running
        .store_disk(&disk.whole(), None, &NoProgress, &Cancel::new())
        .unwrap();
    fs::rename(repo.path().join("packs"), repo.path().join("elsewhere")).unwrap();
    let refused = running.commit(draft(&disk.whole(), stored));
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    fs::rename(repo.path().join("elsewhere"), repo.path().join("packs")).unwrap();
    assert_eq!(repo.points().unwrap(), []);
    let point = backup(&repo, &disk.whole(), None);
    assert!(restore(&repo, &point) == disk.bytes);
}

#[test]
fn an_unchanged_chunk_that_is_wanted_is_read_and_stored_again() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(128 << 10);
    disk.write(0, &[1; 64 << 10]);
    disk.write(64 << 10, &[2; 64 << 10]);
    let first = backup(&repo, &disk.whole(), None);

    let text = fs::read_to_string(repo.path().join("config.toml")).unwrap();
    let keys = Config::parse(&text, repo.path()).unwrap().keys();
    let damaged = keys.chunk_id(&[2; 64 << 10]);
    let index = Index::open(
        Arc::new(LocalFiles::new(repo.path())),
        Arc::new(FileGate::new(&repo.path().join("locks"), "test")),
        Identity {
            repo: repo.id(),
            owner: 1,
        },
    )
    .unwrap();
    let damaged = virtkeep_repo::RawId::from_bytes(*damaged.as_bytes());
    index.write(|edit| edit.want(&[damaged])).unwrap();

    let source = disk.changes();
    let second = backup(&repo, &source, Some(&first));
    assert_eq!(*source.reads.lock().unwrap(), [(64 << 10, 64 << 10)]);
    assert_eq!(second.disks[0].stats.new_chunks, 1);
    assert_eq!(second.disks[0].root, first.disks[0].root);
    assert!(index.wanted(10).unwrap().is_empty(), "healed");
}
