//! Making a repository, and opening one: in a directory, or from parts that lie in several places.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{InitOptions, OpenOptions, Repository};
use crate::cache::Cache;
use crate::config::{self, CONFIG_BYTES_MAX, Config};
use crate::file_system::kind;
use crate::format::geometry::{ChunkSize, FanOut};
use crate::format::pack::PACK_BYTES_TARGET;
use crate::index::{FileGate, Identity, Index, IndexFiles, IndexLock, LocalFiles, NoLock};
use crate::keys::IdKey;
use crate::lease::LeaseStore;
use crate::limits::{CHUNK_CACHE_BYTES_MAX, NODES_CACHED_MAX, PLACES_CACHED_MAX};
use crate::pin::PinStore;
use crate::read::{Pace, Touched};
use crate::reserve::{RESERVE, Reserve};
use crate::storage::{Folder, LocalStorage, ObjectName, Storage};
use crate::store::Store;
use crate::{Env, Error, RepoId, Result};

/// The folders of a new repository.
const FOLDERS: [&str; 5] = ["packs", "points", "leases", "pins", "locks"];
/// Those that a copy of a repository may lack, since they are empty most of the time, or of use to
/// running commands only.
const FOLDERS_TO_REPLACE: [&str; 3] = ["leases", "pins", "locks"];
/// The settings: a directory with this file is a repository.
const CONFIG: &str = "config.toml";
/// The index file.
const INDEX: &str = "index.redb";

/// What a repository consists of. The objects may live in another place than the index and the pins;
/// leases and locks are files of the host whose processes share the repository.
#[derive(Clone)]
pub struct Parts {
    /// Packs, point records, settings.
    pub storage: Arc<dyn Storage>,
    /// The index file.
    pub index: Arc<dyn IndexFiles>,
    /// The pins.
    pub pins: PinStore,
    /// A directory of this host with the folders `leases` and `locks`; stands for the repository in
    /// messages.
    pub directory: PathBuf,
}

impl Repository {
    /// Makes a new repository in `path`, which must be missing or an empty directory.
    pub fn init(path: &Path, options: &InitOptions, env: Env) -> Result<Self> {
        let config = new_config(path, options, &env)?;
        if path.join(CONFIG).exists() {
            let why = "it is a repository. Use it as it is, or choose a new directory".to_owned();
            return Err(Error::AlreadyExists {
                path: path.to_owned(),
                why,
            });
        }
        refuse_old_content(&LocalStorage::new(path), path)?;
        refuse_foreign_content(path)?;
        let absolute = std::path::absolute(path).map_err(Error::io("find", path))?;
        let missing = missing_directories(&absolute);
        let existing = missing
            .first()
            .and_then(|top| top.parent())
            .unwrap_or(&absolute);
        if !options.unsafe_network_fs {
            kind::refuse_network(existing)?;
        }
        for folder in FOLDERS {
            let folder = absolute.join(folder);
            // What the guests hold, and the id key, are for the owner alone.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(Error::io("create", &folder))?;
        }
        Self::settle(&Parts::of(path, &env), &config)?;
        Reserve::of(path).make();
        for directory in std::iter::once(existing).chain(missing.iter().map(PathBuf::as_path)) {
            sync_directory(directory)?;
        }
        let options = OpenOptions {
            unsafe_network_fs: options.unsafe_network_fs,
            ..OpenOptions::default()
        };
        Self::open(path, &options, env)
    }

    /// Opens the repository at `path`.
    pub fn open(path: &Path, options: &OpenOptions, env: Env) -> Result<Self> {
        let repo = Self::assemble(path, options, env)?;
        repo.store.index.check_identity()?;
        Ok(repo)
    }

    /// Makes a new repository of these parts, which hold nothing yet but the folders of `directory`.
    pub fn init_on(parts: Parts, options: &InitOptions, env: Env) -> Result<Self> {
        let config = new_config(&parts.directory, options, &env)?;
        refuse_old_content(&*parts.storage, &parts.directory)?;
        Self::settle(&parts, &config)?;
        Self::open_on(parts, &OpenOptions::default(), env)
    }

    /// Opens a repository that consists of these parts.
    pub fn open_on(parts: Parts, options: &OpenOptions, env: Env) -> Result<Self> {
        let repo = Self::assemble_on(parts, options, env)?;
        repo.store.index.check_identity()?;
        Ok(repo)
    }

    /// Makes the index of a new repository, then its settings: without them it is no repository yet,
    /// and `init` can be repeated.
    fn settle(parts: &Parts, config: &Config) -> Result<()> {
        let lock = FileGate::new(&parts.directory.join("locks"), "virtkeep init");
        Index::create(Arc::clone(&parts.index), Arc::new(lock), identity(config))?;
        parts
            .storage
            .put(&ObjectName::Config, config.print().as_bytes())
    }

    /// Opens everything but the index, of which nothing is asked yet: it may be missing or damaged.
    pub(super) fn assemble(path: &Path, options: &OpenOptions, env: Env) -> Result<Self> {
        check_directory(path)?;
        if !options.unsafe_network_fs {
            kind::refuse_network(path)?;
        }
        let repo = Self::assemble_on(Parts::of(path, &env), options, env)?;
        if !repo.lockless {
            replace_folders(path, options.read_only)?;
        }
        Ok(repo)
    }

    /// As [`assemble`](Self::assemble).
    pub(super) fn assemble_on(parts: Parts, options: &OpenOptions, env: Env) -> Result<Self> {
        let path = &parts.directory;
        let (config, warnings) = read_config(path, &*parts.storage)?;
        if !options.read_only {
            config.check_writable()?;
        }
        let read_only_media = kind::is_read_only(path)?;
        if read_only_media && !options.read_only {
            let why = "its file system is mounted read-only".to_owned();
            return Err(Error::ReadOnly {
                path: path.to_owned(),
                why,
            });
        }
        let lockless = read_only_media || (options.read_only && options.no_lock);
        let lock: Arc<dyn IndexLock> = if lockless {
            Arc::new(NoLock::new(path))
        } else {
            Arc::new(FileGate::new(&path.join("locks"), "virtkeep"))
        };
        let pack_size = options.pack_size.map_or(PACK_BYTES_TARGET, |size| size.0);
        let store = Store {
            storage: parts.storage,
            index: Index::at(parts.index, lock, identity(&config)),
            keys: config.keys(),
            fan_out: config.fan_out,
            codec: config.codec,
            pack_bytes_target: pack_size.min(PACK_BYTES_TARGET),
            nodes: Cache::new(NODES_CACHED_MAX),
            places: Cache::new(PLACES_CACHED_MAX / config.fan_out.children()),
            chunks: Cache::new(chunks_cached_max(&config)),
            touched: Touched::new(),
            ahead: Arc::default(),
            pace: Pace::default(),
            env: env.clone(),
        };
        Ok(Self {
            config,
            store: Arc::new(store),
            leases: LeaseStore::new(&path.join("leases"), env),
            pins: parts.pins,
            path: parts.directory,
            lockless,
            read_only: options.read_only,
            warnings,
        })
    }
}

impl Parts {
    /// All in one directory.
    fn of(path: &Path, env: &Env) -> Self {
        Self {
            storage: Arc::new(LocalStorage::new(path)),
            index: Arc::new(LocalFiles::new(path)),
            pins: PinStore::new(&path.join("pins"), env.clone()),
            directory: path.to_owned(),
        }
    }
}

fn new_config(path: &Path, options: &InitOptions, env: &Env) -> Result<Config> {
    let invalid = |why: String| Error::NotARepository {
        path: path.to_owned(),
        why,
    };
    let chunk_size = ChunkSize::new(options.chunk_size.0).ok_or_else(|| {
        let found = options.chunk_size;
        invalid(format!(
            "a chunk size of {found} is not a power of two from 4 KiB to 4 MiB"
        ))
    })?;
    let fan_out = FanOut::new(options.fan_out.into()).ok_or_else(|| {
        invalid(format!(
            "a fan-out of {} is neither 64 nor 256",
            options.fan_out
        ))
    })?;
    Ok(Config::new(
        RepoId::from_bytes(env.random_bytes()),
        IdKey::from_bytes(env.random_bytes()),
        chunk_size,
        fan_out,
        options.codec,
    ))
}

/// [`Error::NoRepository`] when there is nothing at `path`.
fn check_directory(path: &Path) -> Result<()> {
    let directory = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoRepository {
                path: path.to_owned(),
            });
        }
        found => found.map_err(Error::io("examine", path))?.is_dir(),
    };
    if directory {
        return Ok(());
    }
    Err(Error::NotARepository {
        path: path.to_owned(),
        why: "it is not a directory".to_owned(),
    })
}

/// The settings, and what is to be said about them.
fn read_config(path: &Path, storage: &dyn Storage) -> Result<(Config, Vec<String>)> {
    let file = path.join(CONFIG);
    let text = match storage.read_whole(&ObjectName::Config, CONFIG_BYTES_MAX) {
        Err(Error::Missing { .. }) => return Err(without_config(path, storage)),
        text => text?,
    };
    let text = String::from_utf8(text).map_err(|_| Error::Settings {
        path: file.clone(),
        line: None,
        why: "it is not text. Put a copy of the file back".to_owned(),
    })?;
    let config = Config::parse(&text, &file)?;
    let unknown = config::unknown_keys(&text).into_iter();
    let warnings = unknown.map(|(key, line)| {
        format!(
            "{}, line {line}: there is no setting {key}, and it is ignored. What may be set is codec and append_only",
            file.display()
        )
    });
    Ok((config, warnings.collect()))
}

/// Nothing says that this is a repository, unless it holds what only a repository does.
fn without_config(path: &Path, storage: &dyn Storage) -> Error {
    match refuse_old_content(storage, path) {
        Err(Error::AlreadyExists { .. }) => Error::Settings {
            path: path.join(CONFIG),
            line: None,
            why: "it is missing, though there are packs or points. Put a copy of the file back: without it, nothing can be verified"
                .to_owned(),
        },
        _ => Error::NotARepository {
            path: path.to_owned(),
            why: format!("it has no {CONFIG}"),
        },
    }
}

/// Makes what a copy of a repository may lack. Whoever only reads does without what cannot be made,
/// as far as that goes.
fn replace_folders(path: &Path, read_only: bool) -> Result<()> {
    let mut made = false;
    for folder in FOLDERS_TO_REPLACE {
        let folder = path.join(folder);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => made = true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(_) if read_only => {}
            Err(error) => return Err(Error::io("create", &folder)(error)),
        }
    }
    if made { sync_directory(path) } else { Ok(()) }
}

fn chunks_cached_max(config: &Config) -> usize {
    usize::try_from(CHUNK_CACHE_BYTES_MAX / config.chunk_size.as_u64()).expect("a small number")
}

fn identity(config: &Config) -> Identity {
    Identity {
        repo: config.id,
        owner: config.index_owner,
    }
}

/// An `init` that was cut short may be repeated; anything else in the directory is not ours.
fn refuse_foreign_content(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("list", path))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", path))?.file_name();
        let ours = FOLDERS.iter().any(|folder| name == *folder)
            || name == "forgotten"
            || name.to_string_lossy().starts_with(INDEX)
            || name == RESERVE
            || name.to_string_lossy() == format!("{CONFIG}.tmp");
        if !ours {
            let name = name.to_string_lossy();
            let why = format!("it is not empty (it holds {name:?}): choose a new directory");
            return Err(Error::AlreadyExists {
                path: path.to_owned(),
                why,
            });
        }
    }
    Ok(())
}

/// A repository that has lost its settings can be saved with a copy of them, but not once it was
/// given new ones.
fn refuse_old_content(storage: &dyn Storage, path: &Path) -> Result<()> {
    for folder in [Folder::Packs, Folder::Points, Folder::Forgotten] {
        if !storage.list(folder)?.is_empty() {
            let why = format!(
                "it holds packs or points of a repository that has lost its {CONFIG}: put a copy of that file back, or choose a new directory"
            );
            return Err(Error::AlreadyExists {
                path: path.to_owned(),
                why,
            });
        }
    }
    Ok(())
}

/// The directories on the way to `path`, itself included, that do not exist; the outermost first.
fn missing_directories(path: &Path) -> Vec<PathBuf> {
    let missing = path.ancestors().take_while(|ancestor| !ancestor.exists());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

fn sync_directory(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync", path))
}
