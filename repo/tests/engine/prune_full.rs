//! Prune where no space is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;
use virtkeep_repo::index::{IndexFiles, LocalFiles};
use virtkeep_repo::pin::PinStore;
use virtkeep_repo::storage::{Folder, LocalStorage, ObjectName, ObjectWriter, Storage};
use virtkeep_repo::{ByteLen, Env, Error, OpenOptions, Parts, Repository, Result};

use crate::prune::{History, assert_clean, now, prune, small};

fn no_space() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// A file system on which no object fits any more.
struct FullStorage(LocalStorage);

impl Storage for FullStorage {
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        Err(Error::Io {
            verb: "create",
            path: self.0.path_of(name),
            offset: None,
            source: no_space(),
        })
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(name, offset, buffer)
    }

    fn len(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.0.len(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>> {
        self.0.list(folder)
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        self.0.delete(name)
    }

    fn settle(&self, folder: Folder) -> Result<()> {
        self.0.settle(folder)
    }

    fn remove_debris(&self) -> Result<u64> {
        self.0.remove_debris()
    }
}

/// An index that cannot be written as long as the reserve takes the room.
struct FullIndex {
    files: LocalFiles,
    reserve: PathBuf,
}

impl IndexFiles for FullIndex {
    fn open_read(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.files.open_read()
    }

    fn open_write(&self) -> io::Result<Box<dyn StorageBackend>> {
        if self.reserve.exists() {
            return Err(no_space());
        }
        self.files.open_write()
    }

    fn start_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        Err(no_space())
    }

    fn continue_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        Err(no_space())
    }

    fn publish_new(&self) -> io::Result<()> {
        Err(no_space())
    }

    fn size(&self) -> io::Result<u64> {
        self.files.size()
    }

    fn path(&self) -> &Path {
        self.files.path()
    }
}

#[test]
fn a_prune_frees_space_where_none_is_left() {
    let (_dir, repo) = small();
    let mut history = History::new(2 << 20);
    history.grow(&repo, 16);
    // The only point with this content: its packs are garbage altogether.
    history.write(1 << 20, 1 << 20);
    history.back_up(&repo);
    let last = history.points.len() - 1;
    history.forget(&repo, &[2, 3, 4, 5, last]);

    let path = repo.path();
    let parts = Parts {
        storage: Arc::new(FullStorage(LocalStorage::new(path))),
        index: Arc::new(FullIndex {
            files: LocalFiles::new(path),
            reserve: path.join("reserve"),
        }),
        pins: PinStore::new(&path.join("pins"), Env::system()),
        directory: path.to_owned(),
    };
    let options = OpenOptions {
        pack_size: Some(ByteLen(256 << 10)),
        ..OpenOptions::default()
    };
    let full = Repository::open_on(parts, &options, Env::system()).unwrap();
    let report = prune(&full, now());
    assert!(report.out_of_space, "there was no room for copies");
    assert!(report.bytes_freed() > 700 << 10, "{report:?}");
    assert_eq!(report.packs_rewritten, 0);
    assert!(path.join("reserve").exists(), "made again");
    history.assert_restores(&repo);
    assert_clean(&repo);

    let report = prune(&repo, now());
    assert!(!report.out_of_space && report.packs_rewritten > 0);
    history.assert_restores(&repo);
    assert_clean(&repo);
}
