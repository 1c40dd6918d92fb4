//! Objects in memory, for tests: the same promises, except that nothing outlives the process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Folder, ObjectName, ObjectWriter, Storage};
use crate::sync::lock;
use crate::{Error, Result};

type Objects = BTreeMap<ObjectName, Vec<u8>>;

/// Objects in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryStorage(Arc<Mutex<Objects>>);

impl MemoryStorage {
    /// No objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the bytes of an object, as a failing disk does.
    pub fn damage(&self, name: ObjectName, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.objects().get_mut(&name) {
            change(bytes);
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        lock(&self.0)
    }
}

impl Storage for MemoryStorage {
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        if self.objects().contains_key(name) {
            return Err(exists(*name));
        }
        Ok(Box::new(MemoryWriter {
            objects: self.clone(),
            name: *name,
            bytes: Vec::new(),
        }))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let objects = self.objects();
        let bytes = objects.get(name).ok_or_else(|| Error::Missing {
            what: name.to_string(),
        })?;
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buffer.len())?));
        let Some(stored) = range.and_then(|range| bytes.get(range)) else {
            return Err(Error::Corrupt {
                what: format!("{name} at offset {offset}"),
                expected: format!("{} bytes", buffer.len()),
                found: format!("the end of the file at {}", bytes.len()),
            });
        };
        buffer.copy_from_slice(stored);
        Ok(())
    }

    fn read_cached_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_at(name, offset, buffer).is_ok()
    }

    fn len(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(self.objects().get(name).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>> {
        let objects = self.objects();
        Ok(objects
            .keys()
            .copied()
            .filter(|name| name.is_in(folder))
            .collect())
    }

    fn settle(&self, _: Folder) -> Result<()> {
        Ok(())
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        Ok(self.objects().remove(name).is_some())
    }

    fn remove_debris(&self) -> Result<u64> {
        Ok(0)
    }
}

struct MemoryWriter {
    objects: MemoryStorage,
    name: ObjectName,
    bytes: Vec<u8>,
}

impl ObjectWriter for MemoryWriter {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let mut objects = self.objects.objects();
        if objects.contains_key(&self.name) {
            return Err(exists(self.name));
        }
        objects.insert(self.name, self.bytes);
        Ok(())
    }
}

fn exists(name: ObjectName) -> Error {
    Error::AlreadyExists {
        path: PathBuf::from(name.to_string()),
        why: "objects are never replaced".into(),
    }
}
