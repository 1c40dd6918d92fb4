//! The simulated disk: the model behind the calls that the engine makes, with a plan for what goes
//! wrong and when. Operations that change anything or sync are counted.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use redb::StorageBackend;
use virtkeep_repo::file_system::{Access, FileSystem, OpenFile};

use crate::model::{Change, Model, NodeId, Survival};

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// Nothing.
    AllWell,
    /// Power fails during the operation with this number.
    PowerLoss { at: u64 },
    /// Operations from this number on, as many as `count`, fail.
    Fault {
        at: u64,
        count: u64,
        trouble: Trouble,
    },
}

/// What the operating system says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// `ENOSPC`, for what needs space.
    NoSpace,
    /// `EIO`.
    Media,
}

/// What an operation is to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// It may need space.
    Change,
    /// It gives space back.
    Removal,
    /// It makes what was written durable, and may find only now that there is no space.
    Sync,
    /// It makes names durable.
    SyncNames,
}

struct State {
    model: Model,
    plan: Plan,
    operations: u64,
    dead: bool,
    handles: u64,
    /// Labels of all operations, for the message when a test fails.
    trace: Vec<String>,
    /// Called when power fails.
    last_words: Option<Box<dyn FnOnce() + Send>>,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    pub(crate) fn new(model: Model) -> Self {
        Self(Arc::new(Mutex::new(State {
            model,
            plan: Plan::AllWell,
            operations: 0,
            dead: false,
            handles: 0,
            trace: Vec::new(),
            last_words: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Another disk with the same content, as programs see it and as it is on the media.
    pub(crate) fn copy(&self) -> Self {
        let mut model = self.state().model.clone();
        model.unlock_all();
        Self::new(model)
    }

    /// The disk as it is found when power is back.
    pub(crate) fn after_power_loss(&self, survival: Survival, rng: &mut Rng) -> Self {
        Self::new(self.state().model.after_power_loss(survival, rng))
    }

    /// Starts to count operations, and to do what is planned.
    pub(crate) fn follow(&self, plan: Plan, last_words: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        state.plan = plan;
        state.operations = 0;
        state.trace.clear();
        state.last_words = Some(Box::new(last_words));
    }

    /// From now on all is well.
    pub(crate) fn mend(&self) {
        self.state().plan = Plan::AllWell;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// A bit of a file flips on the media.
    pub(crate) fn spoil(&self, path: &Path, offset: usize) {
        let mut state = self.state();
        let node = state.model.find(path).unwrap();
        state.model.spoil(node, offset);
    }

    /// From now on there is room for so many bytes more.
    pub(crate) fn leave_room(&self, bytes: usize) {
        let mut state = self.state();
        state.model.capacity = state.model.bytes_used() + bytes;
    }

    /// The last operations, for the message of a failed test.
    pub(crate) fn trace(&self) -> String {
        let state = self.state();
        let from = state.trace.len().saturating_sub(25);
        state.trace[from..].join("\n")
    }

    fn look<T>(&self, look: impl FnOnce(&mut Model) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        if state.dead {
            return Err(power_is_lost());
        }
        look(&mut state.model)
    }

    /// An operation that counts.
    fn operate<T>(
        &self,
        label: fmt::Arguments<'_>,
        sort: Sort,
        operate: impl FnOnce(&mut Model) -> io::Result<T>,
        on_trouble: impl FnOnce(&mut Model),
    ) -> io::Result<T> {
        let mut state = self.state();
        if state.dead {
            return Err(power_is_lost());
        }
        let number = state.operations;
        state.operations += 1;
        state.trace.push(format!("{number} {label}"));
        match state.plan {
            Plan::PowerLoss { at } if at == number => {
                if matches!(sort, Sort::Change | Sort::Removal) {
                    operate(&mut state.model).ok();
                }
                state.dead = true;
                if let Some(last_words) = state.last_words.take() {
                    last_words();
                }
                return Err(power_is_lost());
            }
            Plan::Fault { at, count, trouble }
                if (at..at.saturating_add(count)).contains(&number) && trouble.concerns(sort) =>
            {
                on_trouble(&mut state.model);
                return Err(trouble.error());
            }
            _ => {}
        }
        operate(&mut state.model)
    }

    fn write(&self, label: &Path, node: NodeId, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len();
        let write = |bytes: &[u8]| Change::Write {
            offset,
            bytes: bytes.to_vec(),
        };
        self.operate(
            format_args!("write {} {offset}+{len}", label.display()),
            Sort::Change,
            |model| model.change(node, write(bytes)),
            // A write that fails may have done some of its work.
            |model| drop(model.change(node, write(&bytes[..len / 2]))),
        )
    }

    fn create(&self, path: &Path) -> io::Result<NodeId> {
        self.operate(
            format_args!("create {}", path.display()),
            Sort::Change,
            |model| model.create(path),
            |_| {},
        )
    }

    fn rename_file(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        self.operate(
            format_args!("rename {} to {}", from.display(), to.display()),
            Sort::Change,
            |model| model.rename(from, to, replace),
            |_| {},
        )
    }

    fn open_node(&self, path: &Path, node: NodeId) -> SimFile {
        let mut state = self.state();
        state.handles += 1;
        SimFile {
            disk: self.clone(),
            path: path.to_owned(),
            node,
            handle: state.handles,
            end: 0,
        }
    }
}

impl Trouble {
    fn concerns(self, sort: Sort) -> bool {
        self == Self::Media || matches!(sort, Sort::Change | Sort::Sync)
    }

    fn error(self) -> io::Error {
        match self {
            Self::NoSpace => io::ErrorKind::StorageFull.into(),
            Self::Media => io::Error::other("input/output error"),
        }
    }
}

fn power_is_lost() -> io::Error {
    io::Error::other("power is lost")
}

impl FileSystem for SimDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let node = self.create(path)?;
        Ok(Box::new(self.open_node(path, node)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let node = self.look(|model| model.find(path))?;
        Ok(Box::new(self.open_node(path, node)))
    }

    fn open_index(&self, path: &Path, access: Access) -> io::Result<Box<dyn StorageBackend>> {
        let found = self.look(|model| model.find(path));
        let node = match found {
            Err(error)
                if access == Access::StartAnew && error.kind() == io::ErrorKind::NotFound =>
            {
                self.create(path)?
            }
            found => found?,
        };
        let file = SimIndex(self.open_node(path, node));
        if access == Access::StartAnew {
            file.set_len(0)?;
        }
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_file(from, to, true)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_file(from, to, false)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate(
            format_args!("remove {}", path.display()),
            Sort::Removal,
            |model| model.remove(path),
            |_| {},
        )
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.operate(
            format_args!("create directory {}", path.display()),
            Sort::Change,
            |model| model.create_directory(path),
            |_| {},
        )
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.operate(
            format_args!("sync directory {}", path.display()),
            Sort::SyncNames,
            |model| model.sync_directory(path),
            |_| {},
        )
    }

    fn entries(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let names = self.look(|model| model.entries(directory))?;
        Ok(names.into_iter().map(|name| directory.join(name)).collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.look(|model| {
            let node = model.find(path)?;
            Ok(model.content(node).len() as u64)
        })
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.look(|model| Ok(model.is_directory(path)))
            .is_ok_and(|is_directory| is_directory)
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    node: NodeId,
    handle: u64,
    end: usize,
}

impl OpenFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(&self.path, self.node, self.end, bytes)?;
        self.end += bytes.len();
        Ok(())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.look(|model| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let content = model.content(self.node);
            let range = start..start.saturating_add(buffer.len());
            let there = content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(there);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate(
            format_args!("sync {}", self.path.display()),
            Sort::Sync,
            |model| {
                model.sync(self.node);
                Ok(())
            },
            |model| model.fail_sync(self.node),
        )
    }

    fn size(&self) -> io::Result<u64> {
        self.disk
            .look(|model| Ok(model.content(self.node).len() as u64))
    }

    fn is_linked(&self) -> io::Result<bool> {
        self.disk.look(|model| Ok(model.is_linked(self.node)))
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.disk
            .look(|model| Ok(model.try_lock(self.node, self.handle)))
    }

    fn begin_write_out(&self, _: u64, _: NonZeroU64) {}
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.state().model.unlock(self.node, self.handle);
    }
}

/// The same for redb.
struct SimIndex(SimFile);

impl fmt::Debug for SimIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.path.fmt(f)
    }
}

impl StorageBackend for SimIndex {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        let SimFile {
            disk, path, node, ..
        } = &self.0;
        disk.operate(
            format_args!("set the length of {} to {len}", path.display()),
            Sort::Change,
            |model| model.change(*node, Change::Length(len)),
            |_| {},
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let SimFile {
            disk, path, node, ..
        } = &self.0;
        disk.write(path, *node, usize::try_from(offset).unwrap(), data)
    }
}
