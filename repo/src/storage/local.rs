//! Objects as files below one directory of a local file system.
//!
//! An object is written under its name with `.tmp` added, synced, renamed into place, and the
//! directory synced. Its writer holds a lock (flock) on the temporary file, so debris of a killed
//! writer can be told from an object in the making without knowing about processes. Invariant: a
//! directory that is new, or that this process has not seen before, is synced into its parent
//! before an object in it counts as durable.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::{Folder, ObjectName, ObjectWriter, Storage};
use crate::file_system::{FileSystem, LocalFileSystem, OpenFile};
use crate::sync::lock;
use crate::{Error, Result};

/// Open files kept for reading, where the process may have many more.
const OPEN_FILES_MAX: usize = 256;
/// Of the files that the process may have open, so many are one of those that are kept.
const SHARE_OF_OPEN_FILES: u64 = 4;
/// Written bytes after which the kernel is asked to begin writing them out, so that the sync at
/// the end has little left to wait for.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;
/// Added to the name of an object in the making.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Objects as files below one directory.
pub struct LocalStorage {
    shared: Arc<Shared>,
}

struct Shared {
    files: Arc<dyn FileSystem>,
    root: PathBuf,
    open_files: Mutex<OpenFiles>,
    /// Directories whose own entry is known to be durable.
    durable_folders: Mutex<HashSet<PathBuf>>,
}

/// The files read last. A deleted one takes up its space as long as it is open, so those are let go when
/// another is opened; looking at every read would cost too much.
#[derive(Default)]
struct OpenFiles {
    files: HashMap<ObjectName, (Arc<dyn OpenFile>, u64)>,
    clock: u64,
}

impl LocalStorage {
    /// The objects below `root`, a directory that exists. Touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(LocalFileSystem), root)
    }

    /// The same on a given file system.
    pub fn on(files: Arc<dyn FileSystem>, root: impl Into<PathBuf>) -> Self {
        Self {
            shared: Arc::new(Shared {
                files,
                root: root.into(),
                open_files: Mutex::default(),
                durable_folders: Mutex::default(),
            }),
        }
    }

    /// The file of an object.
    pub fn path_of(&self, name: &ObjectName) -> PathBuf {
        self.shared.path_of(name)
    }

    fn open_file(&self, name: &ObjectName) -> Result<Arc<dyn OpenFile>> {
        if let Some(file) = lock(&self.shared.open_files).get(name) {
            return Ok(file);
        }
        let path = self.path_of(name);
        let mut opened = self.shared.files.open(&path);
        if opened.as_ref().is_err_and(is_out_of_files) {
            // Better to open files again than to read nothing more.
            lock(&self.shared.open_files).files.clear();
            opened = self.shared.files.open(&path);
        }
        let file: Arc<dyn OpenFile> = match opened {
            Ok(file) => file.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing {
                    what: name.to_string(),
                });
            }
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        lock(&self.shared.open_files).insert(*name, Arc::clone(&file));
        Ok(file)
    }

    /// The directories that hold a folder's objects.
    fn folder_paths(&self, folder: Folder) -> Result<Vec<PathBuf>> {
        let root = &self.shared.root;
        match folder {
            Folder::Packs => {
                let mut shards = self.shared.entries(&root.join("packs"))?;
                shards.retain(|path| self.shared.files.is_directory(path));
                Ok(shards)
            }
            Folder::Points => Ok(vec![root.join("points")]),
            Folder::Forgotten => Ok(vec![root.join("forgotten")]),
            Folder::Notes(point) => Ok(vec![root.join("points").join(format!("{point}.notes"))]),
        }
    }
}

impl Storage for LocalStorage {
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        let path = self.path_of(name);
        let shared = &self.shared;
        let (folders, _) = name.path_parts();
        shared.make_folders(&folders)?;
        if shared.files.len(&path).is_ok() {
            return Err(shared.exists(path));
        }
        let mut temporary = path.clone().into_os_string();
        temporary.push(TEMPORARY_SUFFIX);
        let temporary = PathBuf::from(temporary);
        let file = shared.create_locked(&temporary)?;
        Ok(Box::new(LocalWriter {
            shared: Arc::clone(shared),
            file,
            temporary,
            path,
            state: State::Writing,
            written: 0,
            sent_out: 0,
        }))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let file = self.open_file(name)?;
        file.read_exact_at(buffer, offset).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                Error::Corrupt {
                    what: format!("{name} at offset {offset}"),
                    expected: format!("{} bytes", buffer.len()),
                    found: "the end of the file".into(),
                }
            } else {
                Error::Io {
                    verb: "read",
                    path: self.path_of(name),
                    offset: Some(offset),
                    source,
                }
            }
        })
    }

    fn read_cached_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> bool {
        self.open_file(name)
            .is_ok_and(|file| file.read_cached_at(buffer, offset))
    }

    fn len(&self, name: &ObjectName) -> Result<Option<u64>> {
        let path = self.path_of(name);
        match self.shared.files.len(&path) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path)(error)),
        }
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>> {
        let mut names = Vec::new();
        for directory in self.folder_paths(folder)? {
            for path in self.shared.entries(&directory)? {
                // A file counts only where its name says it belongs.
                names.extend(parse_name(folder, &path).filter(|name| self.path_of(name) == path));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn settle(&self, folder: Folder) -> Result<()> {
        let shared = &self.shared;
        let folders = self.folder_paths(folder)?;
        let within = |path: &&Path| path.starts_with(&shared.root);
        let directories: BTreeSet<&Path> = folders
            .iter()
            .flat_map(|path| path.ancestors().take_while(within))
            .collect();
        for directory in directories {
            if shared.files.is_directory(directory) {
                shared.sync_directory(directory)?;
            }
        }
        Ok(())
    }

    fn let_go(&self) {
        lock(&self.shared.open_files).let_go();
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        let deleted = self.delete_unsettled(name)?;
        let path = self.path_of(name);
        // The one who deleted it may have died before its sync.
        if deleted || self.shared.files.is_directory(parent(&path)) {
            self.shared.sync_directory(parent(&path))?;
        }
        Ok(deleted)
    }

    fn delete_unsettled(&self, name: &ObjectName) -> Result<bool> {
        let path = self.path_of(name);
        lock(&self.shared.open_files).files.remove(name);
        match self.shared.files.remove(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("delete", path)(error)),
        }
    }

    fn remove_debris(&self) -> Result<u64> {
        let shared = &self.shared;
        let mut directories = vec![shared.root.clone()];
        directories.extend(self.folder_paths(Folder::Packs)?);
        let points = shared.root.join("points");
        let mut notes = shared.entries(&points)?;
        notes.retain(|path| shared.files.is_directory(path));
        directories.extend(notes);
        directories.push(points);
        directories.extend(self.folder_paths(Folder::Forgotten)?);

        let mut freed = 0;
        for directory in directories {
            for path in shared.entries(&directory)? {
                let is_temporary = path.file_name().is_some_and(|name| {
                    name.as_encoded_bytes()
                        .ends_with(TEMPORARY_SUFFIX.as_bytes())
                });
                // A directory is nobody's, and no reason to fail.
                if is_temporary && !shared.files.is_directory(&path) {
                    let removed = shared.remove_if_abandoned(&path);
                    freed += removed.map_err(Error::io("remove", &path))?;
                }
            }
        }
        Ok(freed)
    }
}

impl Shared {
    fn path_of(&self, name: &ObjectName) -> PathBuf {
        let (folders, file) = name.path_parts();
        let mut path = self.root.clone();
        path.extend(folders);
        path.push(file);
        path
    }

    /// Makes the directories of an object, each inside the one before, and their entries durable.
    fn make_folders(&self, folders: &[String]) -> Result<()> {
        let mut durable = lock(&self.durable_folders);
        let mut above = self.root.clone();
        for folder in folders {
            let path = above.join(folder);
            if !durable.contains(&path) {
                match self.files.create_directory(&path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(Error::io("create directory", path)(error));
                    }
                    _ => {}
                }
                // One sync covers every directory there was before it.
                let siblings = self.entries(&above)?;
                self.sync_directory(&above)?;
                durable.extend(siblings);
                durable.insert(path.clone());
            }
            above = path;
        }
        Ok(())
    }

    /// Creates a temporary file and locks it. Takes the place of an abandoned one.
    fn create_locked(&self, path: &Path) -> Result<Box<dyn OpenFile>> {
        loop {
            let file = match self.files.create_new(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let removed = self.remove_if_abandoned(path);
                    removed.map_err(Error::io("remove", path))?;
                    if self.files.len(path).is_ok() {
                        return Err(Error::Busy {
                            what: path.display().to_string(),
                            holder: "another process that is writing it".into(),
                        });
                    }
                    continue;
                }
                Err(error) => return Err(Error::io("create", path)(error)),
            };
            match file.try_lock() {
                // Whoever clears away debris may have seen the file before it was locked.
                Ok(true) if file.is_linked().is_ok_and(|linked| linked) => return Ok(file),
                Ok(_) => {}
                Err(error) => return Err(Error::io("lock", path)(error)),
            }
        }
    }

    /// Removes a temporary file nobody holds locked, and says how long it was.
    fn remove_if_abandoned(&self, path: &Path) -> io::Result<u64> {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let file = match self.files.open(path) {
            Ok(file) => file,
            Err(error) if gone(&error) => return Ok(0),
            Err(error) => return Err(error),
        };
        if !file.try_lock()? {
            return Ok(0);
        }
        let len = file.size()?;
        match self.files.remove(path) {
            Ok(()) => Ok(len),
            // Renamed into place between our two looks.
            Err(error) if gone(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Renames, but never over something that exists.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        match self.files.rename_new(from, to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(self.exists(to.into()))
            }
            renamed => renamed.map_err(Error::io("create", to)),
        }
    }

    /// An object is there already. Its writer may have died before his last sync.
    fn exists(&self, path: PathBuf) -> Error {
        let why = "objects are never replaced".into();
        match self.sync_directory(parent(&path)) {
            Ok(()) => Error::AlreadyExists { path, why },
            Err(error) => error,
        }
    }

    /// Makes the entries of a directory durable.
    fn sync_directory(&self, path: &Path) -> Result<()> {
        let synced = self.files.sync_directory(path);
        synced.map_err(Error::io("sync directory", path))
    }

    /// The paths in a directory; none when it does not exist.
    fn entries(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        match self.files.entries(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", directory)),
        }
    }
}

impl OpenFiles {
    fn get(&mut self, name: &ObjectName) -> Option<Arc<dyn OpenFile>> {
        self.clock += 1;
        let (file, used) = self.files.get_mut(name)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    fn insert(&mut self, name: ObjectName, file: Arc<dyn OpenFile>) {
        self.let_go();
        while self.files.len() >= open_files_max() {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(name, _)| *name) else {
                break;
            };
            self.files.remove(&oldest);
        }
        self.files.insert(name, (file, self.clock));
    }

    fn let_go(&mut self) {
        self.files.retain(|_, (file, _)| is_linked(file));
    }
}

/// How many to keep. The limit of the process may be another one than a while ago.
fn open_files_max() -> usize {
    let share = getrlimit(Resource::Nofile)
        .current
        .map_or(u64::MAX, |all| all / SHARE_OF_OPEN_FILES);
    usize::try_from(share).map_or(OPEN_FILES_MAX, |share| share.min(OPEN_FILES_MAX))
}

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

fn is_linked(file: &Arc<dyn OpenFile>) -> bool {
    file.is_linked().unwrap_or(true)
}

#[derive(PartialEq, Eq)]
enum State {
    Writing,
    Failed,
    Finished,
}

struct LocalWriter {
    shared: Arc<Shared>,
    file: Box<dyn OpenFile>,
    temporary: PathBuf,
    path: PathBuf,
    state: State,
    written: u64,
    sent_out: u64,
}

impl LocalWriter {
    fn begin_write_out(&mut self) {
        let Some(len) = NonZeroU64::new(self.written - self.sent_out) else {
            return;
        };
        self.file.begin_write_out(self.sent_out, len);
        self.sent_out = self.written;
    }
}

impl ObjectWriter for LocalWriter {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.state != State::Writing {
            return Err(Error::Poisoned);
        }
        self.file.append(bytes).map_err(|source| {
            self.state = State::Failed;
            Error::Io {
                verb: "write",
                path: self.temporary.clone(),
                offset: Some(self.written),
                source,
            }
        })?;
        self.written += bytes.len() as u64;
        if self.written - self.sent_out >= WRITE_BEHIND_BYTES {
            self.begin_write_out();
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if self.state != State::Writing {
            return Err(Error::Poisoned);
        }
        self.file
            .sync()
            .map_err(Error::io("sync", &self.temporary))?;
        self.shared.rename_new(&self.temporary, &self.path)?;
        self.state = State::Finished;
        self.shared.sync_directory(parent(&self.path))
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        if self.state != State::Finished {
            // Should it fail, it is debris like a killed writer's.
            let _ = self.shared.files.remove(&self.temporary);
        }
    }
}

fn parse_name(folder: Folder, path: &Path) -> Option<ObjectName> {
    let file = path.file_name()?.to_str()?;
    match folder {
        Folder::Packs => Some(ObjectName::Pack(file.strip_suffix(".pack")?.parse().ok()?)),
        Folder::Points => Some(ObjectName::Point(file.parse().ok()?)),
        Folder::Forgotten => Some(ObjectName::Forgotten(file.parse().ok()?)),
        Folder::Notes(point) => Some(ObjectName::Note {
            point,
            note: file.parse().ok()?,
        }),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("objects lie below the root directory")
}
