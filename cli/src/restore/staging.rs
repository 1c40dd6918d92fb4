//! Files that appear under their name only when they are complete and durable.
//!
//! A file is written beside its place under a hidden temporary name, which goes away when the work
//! fails. [`StagedFile::publish`] syncs it, then renames it; nothing that exists is replaced unless
//! that was asked for.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::{NamedTempFile, TempPath};

/// What to do about a file that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Leave it alone and fail.
    Keep,
    /// Put the new one in its place.
    Replace,
}

/// A file that is not there yet.
#[derive(Debug)]
pub(crate) struct StagedFile {
    file: File,
    temporary: TempPath,
    place: PathBuf,
}

impl StagedFile {
    /// Begins a file that is to be at `place`.
    pub(crate) fn create(place: PathBuf) -> Result<Self> {
        let dir = place.parent().unwrap_or(Path::new("."));
        let (file, temporary) = tempfile::Builder::new()
            .prefix(".virtkeep-")
            .suffix(".partial")
            .tempfile_in(dir)
            .with_context(|| format!("cannot create a file in {}", dir.display()))?
            .into_parts();
        Ok(Self {
            file,
            temporary,
            place,
        })
    }

    /// Begins a file and writes its whole content.
    pub(crate) fn with_content(place: PathBuf, content: &[u8]) -> Result<Self> {
        let mut staged = Self::create(place)?;
        staged
            .file
            .write_all(content)
            .with_context(|| format!("cannot write {}", staged.place.display()))?;
        Ok(staged)
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it will be.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where it is until it is published.
    pub(crate) fn temporary_path(&self) -> &Path {
        &self.temporary
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn publish(self, existing: Existing) -> Result<PathBuf> {
        let Self {
            file,
            temporary,
            place,
        } = self;
        file.sync_all()
            .with_context(|| format!("cannot sync {}", place.display()))?;
        let named = NamedTempFile::from_parts(file, temporary);
        let renamed = match existing {
            Existing::Keep => named.persist_noclobber(&place),
            Existing::Replace => named.persist(&place),
        };
        match renamed {
            Ok(_) => Ok(place),
            Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(exists(&place).into())
            }
            Err(failed) => {
                Err(failed.error).with_context(|| format!("cannot create {}", place.display()))
            }
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot sync {}", dir.display()))
}

/// The error for a file that is in the way.
pub(crate) fn exists(place: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!(
            "{} already exists: choose another directory, or pass --force to replace it",
            place.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_there_before_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("vda.raw");
        let staged = StagedFile::with_content(place.clone(), b"half").unwrap();
        assert!(!place.exists());
        drop(staged);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_exists_is_replaced_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("domain.xml");
        std::fs::write(&place, "old").unwrap();
        let new = || StagedFile::with_content(place.clone(), b"new").unwrap();
        let error = new().publish(Existing::Keep).unwrap_err();
        assert!(error.to_string().contains("already exists"), "{error}");
        assert_eq!(std::fs::read(&place).unwrap(), b"old");
        new().publish(Existing::Replace).unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
