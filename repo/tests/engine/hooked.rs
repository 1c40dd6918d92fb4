//! A storage beneath which something happens at a chosen moment: races, played out without chance.

use std::path::Path;
use std::sync::{Arc, Mutex};

use virtkeep_repo::index::LocalFiles;
use virtkeep_repo::pin::PinStore;
use virtkeep_repo::storage::{Folder, LocalStorage, ObjectName, ObjectWriter, Storage};
use virtkeep_repo::{Env, OpenOptions, Parts, Repository, Result};

/// When something happens: just after this was done, or just before it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    Creating(ObjectName),
    Created(ObjectName),
    Read(ObjectName),
    NotRead(ObjectName),
    Measured(ObjectName),
    Deleted(ObjectName),
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Clone)]
struct Hooked {
    inner: Arc<LocalStorage>,
    hook: Arc<Mutex<Option<(Moment, Hook)>>>,
    seen: Moments,
}

/// All moments there were.
pub(crate) type Moments = Arc<Mutex<Vec<Moment>>>;

impl Hooked {
    fn on(path: &Path, hook: Option<(Moment, Hook)>) -> Self {
        Self {
            inner: Arc::new(LocalStorage::new(path)),
            hook: Arc::new(Mutex::new(hook)),
            seen: Moments::default(),
        }
    }

    fn reach(&self, moment: Moment) {
        self.seen.lock().unwrap().push(moment);
        let hook = {
            let mut hook = self.hook.lock().unwrap();
            match &*hook {
                Some((at, _)) if *at == moment => hook.take(),
                _ => None,
            }
        };
        if let Some((_, hook)) = hook {
            hook();
        }
    }
}

/// The repository as another process has it open, in which `hook` is run at that moment, once.
pub(crate) fn hooked(
    path: &Path,
    moment: Moment,
    hook: impl FnOnce() + Send + 'static,
) -> Repository {
    hooked_with(path, moment, hook, Env::system())
}

/// The same with another clock and other chance.
pub(crate) fn hooked_with(
    path: &Path,
    moment: Moment,
    hook: impl FnOnce() + Send + 'static,
    env: Env,
) -> Repository {
    let storage = Hooked::on(path, Some((moment, Box::new(hook))));
    open(path, storage, env)
}

/// The repository as another process has it open, of which every moment is noted.
pub(crate) fn noted(path: &Path) -> (Repository, Moments) {
    let storage = Hooked::on(path, None);
    let seen = Arc::clone(&storage.seen);
    (open(path, storage, Env::system()), seen)
}

fn open(path: &Path, storage: Hooked, env: Env) -> Repository {
    let parts = Parts {
        storage: Arc::new(storage),
        index: Arc::new(LocalFiles::new(path)),
        pins: PinStore::new(&path.join("pins"), env.clone()),
        directory: path.to_owned(),
    };
    Repository::open_on(parts, &OpenOptions::default(), env).unwrap()
}

impl Storage for Hooked {
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        self.reach(Moment::Creating(*name));
        Ok(Box::new(Writer {
            inner: self.inner.create(name)?,
            name: *name,
            storage: self.clone(),
        }))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = self.inner.read_at(name, offset, buffer);
        self.reach(match read {
            Ok(()) => Moment::Read(*name),
            Err(_) => Moment::NotRead(*name),
        });
        read
    }

    fn len(&self, name: &ObjectName) -> Result<Option<u64>> {
        let len = self.inner.len(name)?;
        self.reach(Moment::Measured(*name));
        Ok(len)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>> {
        self.inner.list(folder)
    }

    fn settle(&self, folder: Folder) -> Result<()> {
        self.inner.settle(folder)
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        let deleted = self.inner.delete(name)?;
        self.reach(Moment::Deleted(*name));
        Ok(deleted)
    }

    fn remove_debris(&self) -> Result<u64> {
        self.inner.remove_debris()
    }
}

struct Writer {
    inner: Box<dyn ObjectWriter>,
    name: ObjectName,
    storage: Hooked,
}

impl ObjectWriter for Writer {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.append(bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish()?;
        self.storage.reach(Moment::Created(self.name));
        Ok(())
    }
}
