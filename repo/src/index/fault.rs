//! redb's errors, turned into ours.
//!
//! The index is a cache: whatever is wrong with its content, the way out is to build it anew. Only
//! what the operating system refused is reported as such, since no rebuild would help.

use std::io;
use std::path::Path;

use crate::Error;

/// What went wrong inside a transaction.
#[derive(Debug)]
pub enum Fault {
    /// redb, or what it read.
    Redb(Box<redb::Error>),
    /// A row that cannot be.
    Damaged(&'static str),
    /// An error of ours on the way through.
    Ours(Error),
}

impl Fault {
    pub(super) fn into_error(self, path: &Path) -> Error {
        match self {
            Self::Ours(error) => error,
            Self::Damaged(why) => damaged(path, why.to_owned()),
            Self::Redb(error) => match *error {
                redb::Error::Io(source) => from_io("use", source, path),
                redb::Error::PreviousIo => Error::Poisoned,
                other => damaged(path, other.to_string()),
            },
        }
    }
}

/// Tells content that is no index from a system that refuses.
pub(super) fn from_io(verb: &'static str, source: io::Error, path: &Path) -> Error {
    match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            damaged(path, source.to_string())
        }
        io::ErrorKind::NotFound => damaged(path, "the file is missing".to_owned()),
        _ => Error::io(verb, path)(source),
    }
}

pub(super) fn damaged(path: &Path, why: String) -> Error {
    Error::Index {
        path: path.to_owned(),
        why,
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

macro_rules! from_redb {
    ($($kind:ident),*) => {$(
        impl From<redb::$kind> for Fault {
            fn from(error: redb::$kind) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    StorageError,
    TableError,
    TransactionError,
    CommitError,
    DatabaseError,
    SetDurabilityError
);

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Redb(Box::new(redb::Error::Io(error)))
    }
}
