//! Where a repository's objects live: whole files, written once, read in ranges, listed, deleted.
//!
//! The trait is narrow on purpose: it is what an object store offers as well. The index and the
//! locks are not objects; they stay on the local file system. Invariant: an object is either absent
//! or complete, whatever happens; no name is ever written twice.

mod local;
mod memory;

pub use local::LocalStorage;
pub use memory::MemoryStorage;

use std::fmt;

use crate::{NoteId, PackId, PointId, Result};

/// The name of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectName {
    /// The settings of the repository: `config.toml`.
    Config,
    /// A pack: `packs/ab/abcd….pack`.
    Pack(PackId),
    /// The record of a point: `points/<point>`. Its creation is the commit of the point.
    Point(PointId),
    /// The record of a forgotten point: `forgotten/<point>`. Of no account while the point's record
    /// is there.
    Forgotten(PointId),
    /// A remark about a point: `points/<point>.notes/<note>`.
    Note {
        /// The point.
        point: PointId,
        /// The remark.
        note: NoteId,
    },
}

/// A set of objects that can be listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folder {
    /// All packs.
    Packs,
    /// All point records.
    Points,
    /// The records of all forgotten points.
    Forgotten,
    /// All remarks about one point.
    Notes(PointId),
}

impl ObjectName {
    /// The folders the object lies in, from the outermost, and its file name: at most two folders.
    fn path_parts(self) -> (Vec<String>, String) {
        match self {
            Self::Config => (vec![], "config.toml".into()),
            Self::Pack(pack) => {
                let name = pack.to_string();
                (
                    vec!["packs".into(), name[..2].into()],
                    format!("{name}.pack"),
                )
            }
            Self::Point(point) => (vec!["points".into()], point.to_string()),
            Self::Forgotten(point) => (vec!["forgotten".into()], point.to_string()),
            Self::Note { point, note } => (
                vec!["points".into(), format!("{point}.notes")],
                note.to_string(),
            ),
        }
    }

    /// Whether listing `folder` shows this object.
    fn is_in(self, folder: Folder) -> bool {
        match (self, folder) {
            (Self::Pack(_), Folder::Packs)
            | (Self::Point(_), Folder::Points)
            | (Self::Forgotten(_), Folder::Forgotten) => true,
            (Self::Note { point, .. }, Folder::Notes(of)) => point == of,
            _ => false,
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folders, file) = self.path_parts();
        for folder in folders {
            write!(f, "{folder}/")?;
        }
        f.write_str(&file)
    }
}

/// A place for objects. Shared between threads; every call may be made at any time.
pub trait Storage: Send + Sync {
    /// Begins an object that must not exist yet; one that does is durable when
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) tells of it. Nothing is visible under its name, nor durable,
    /// until [`ObjectWriter::finish`] returns.
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>>;

    /// Fills `buffer` from `offset` on. [`Error::Missing`](crate::Error::Missing) when there is no
    /// such object; [`Error::Corrupt`](crate::Error::Corrupt) when it ends before the buffer is
    /// full. An object that can be read is complete and durable but for its name, see
    /// [`settle`](Self::settle).
    fn read_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Fills `buffer` as [`read_at`](Self::read_at) would, if that needs no waiting for a device or a network.
    /// When it returns `false` the buffer holds nothing of use, and `read_at` finds out why.
    fn read_cached_at(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> bool {
        let _ = (name, offset, buffer);
        false
    }

    /// The length in bytes; `None` when there is no such object.
    fn len(&self, name: &ObjectName) -> Result<Option<u64>>;

    /// The objects of a folder, sorted. Left out: unfinished objects and foreign files. An object
    /// that is created or deleted meanwhile may or may not be listed.
    fn list(&self, folder: Folder) -> Result<Vec<ObjectName>>;

    /// Makes a folder durable as it can be seen: what is there stays there, what is gone stays gone.
    /// Needed before anything comes to rely on what killed commands have left: one of them may have
    /// ended when what it did could be seen, and was not durable yet.
    fn settle(&self, folder: Folder) -> Result<()>;

    /// Lets go of deleted objects that are kept open for further reads: one takes up its space until then.
    fn let_go(&self) {}

    /// Deletes an object. Durable when it returns. `false` when there was none: a repeated
    /// deletion is no error.
    fn delete(&self, name: &ObjectName) -> Result<bool>;

    /// As [`delete`](Self::delete), but durable only once the folder was [settled](Self::settle): for many.
    fn delete_unsettled(&self, name: &ObjectName) -> Result<bool> {
        self.delete(name)
    }

    /// Removes what killed writers have left unfinished and says how many bytes that freed.
    /// Never touches an object whose writer lives, in whatever process.
    fn remove_debris(&self) -> Result<u64>;

    /// Reads a whole object of at most `bytes_max` bytes.
    fn read_whole(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let missing = || crate::Error::Missing {
            what: name.to_string(),
        };
        let len = self.len(name)?.ok_or_else(missing)?;
        if len > bytes_max {
            return Err(crate::Error::Corrupt {
                what: name.to_string(),
                expected: format!("at most {bytes_max} bytes"),
                found: format!("{len} bytes"),
            });
        }
        let mut bytes = vec![0; len as usize];
        self.read_at(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Creates an object of these bytes. It is there and durable when this returns.
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<()> {
        let mut writer = self.create(name)?;
        writer.append(bytes)?;
        writer.finish()
    }
}

/// An object being written. Dropped without [`finish`](Self::finish), it leaves nothing behind.
pub trait ObjectWriter: Send {
    /// Adds bytes at the end. After the first error every further call fails with
    /// [`Error::Poisoned`](crate::Error::Poisoned). Not durable.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the object durable, then visible under its name, then its name durable. Fails with
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) rather than replace an object. After
    /// any other error the object may or may not be there, but it is not there in part.
    fn finish(self: Box<Self>) -> Result<()>;
}
