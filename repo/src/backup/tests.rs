//! What the intake and its heirs promise when a write fails.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::intake::Intake;
use crate::adopt::adopt_packs;
use crate::cache::Cache;
use crate::format::geometry::{ChunkSize, FanOut};
use crate::format::pack::{PACK_BYTES_TARGET, PackWriter};
use crate::format::record::seal;
use crate::index::tests::create;
use crate::keys::{IdKey, Keys};
use crate::storage::{Folder, MemoryStorage, ObjectName, ObjectWriter, Storage};
use crate::store::Store;
use crate::{Codec, Env, Error, LeaseId, PackId, PackKind, RawId, RecordKind, Result};

/// Objects in memory whose writers fail while `fails` is set.
struct Failing {
    below: MemoryStorage,
    fails: Arc<AtomicBool>,
}

struct FailingWriter {
    below: Box<dyn ObjectWriter>,
    fails: Arc<AtomicBool>,
}

impl Storage for Failing {
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(FailingWriter {
            below: self.below.create(name)?,
            fails: Arc::clone(&self.fails),
        }))
    }
    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.below.read_at(name, offset, buffer)
    }
    fn len(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.below.len(name)
    }
    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>> {
        self.below.list(folder)
    }
    fn delete(&self, name: &ObjectName) -> Result<bool> {
        self.below.delete(name)
    }
    fn settle(&self, folder: Folder) -> Result<()> {
        self.below.settle(folder)
    }
    fn remove_debris(&self) -> Result<u64> {
        self.below.remove_debris()
    }
}

impl ObjectWriter for FailingWriter {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(Error::io("write", "a pack")(source));
        }
        self.below.append(bytes)
    }
    fn finish(self: Box<Self>) -> Result<()> {
        self.below.finish()
    }
}

fn store(dir: &std::path::Path, storage: impl Storage + 'static) -> Arc<Store> {
    Arc::new(Store {
        storage: Arc::new(storage),
        index: create(dir),
        keys: Keys::new(&IdKey::from_bytes([1; 32]), ChunkSize::DEFAULT),
        fan_out: FanOut::DEFAULT,
        codec: Codec::None,
        pack_bytes_target: PACK_BYTES_TARGET,
        env: Env::system(),
        nodes: Cache::new(1),
        places: Cache::new(1),
        chunks: Cache::new(1),
        touched: crate::read::Touched::new(),
        ahead: Arc::default(),
        pace: crate::read::Pace::default(),
    })
}

fn put(intake: &Intake, store: &Store, kind: RecordKind, content: &[u8]) -> Result<RawId> {
    let id = store.keys.id_of(kind, content);
    intake.put(kind, &[(id, content)]).map(|_| id)
}

#[test]
fn after_an_append_that_failed_nothing_more_is_taken_in_and_no_pack_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (below, fails) = (MemoryStorage::new(), Arc::new(AtomicBool::new(false)));
    let failing = Failing {
        below: below.clone(),
        fails: Arc::clone(&fails),
    };
    let store = store(dir.path(), failing);
    let intake = Intake::start(Arc::clone(&store), LeaseId::from_bytes([1; 16]));
    put(&intake, &store, RecordKind::Blob, b"in a meta pack").unwrap();
    fails.store(true, Ordering::SeqCst);
    put(&intake, &store, RecordKind::Chunk, b"lost").unwrap_err();
    // The medium is well again; what was written before cannot be relied on.
    fails.store(false, Ordering::SeqCst);
    let refused = put(&intake, &store, RecordKind::Chunk, b"the next");
    assert!(matches!(refused, Err(Error::Poisoned)), "{refused:?}");
    assert!(intake.finish().unwrap_err().is_no_space(), "and says why");
    assert_eq!(below.list(Folder::Packs).unwrap(), []);
    assert_eq!(store.index.packs().unwrap(), []);
}

#[test]
fn a_pack_is_adopted_only_when_its_writer_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), MemoryStorage::new());
    let lease = LeaseId::from_bytes([1; 16]);
    let pack = PackId::from_bytes([2; 16]);
    let keys = &store.keys;
    let mut writer =
        PackWriter::create(&*store.storage, pack, PackKind::Data, lease, keys).unwrap();
    let id = keys.id_of(RecordKind::Chunk, b"content");
    let sealed = seal(keys, Codec::None, RecordKind::Chunk, id, b"content");
    writer.append(RecordKind::Chunk, id, &sealed).unwrap();
    writer.finish().unwrap();

    adopt_packs(&store, &HashSet::from([lease])).unwrap();
    assert_eq!(store.index.packs().unwrap(), [], "its writer enters it");
    adopt_packs(&store, &HashSet::new()).unwrap();
    assert_eq!(store.index.known(&[id]).unwrap(), [true]);
}
