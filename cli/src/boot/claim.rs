//! The claim of a recovery to its directory: a small file in it, made before any image is, that names the
//! recovery's pin.
//!
//! A record names its images by path, and what lies at a path may be somebody else's: another
//! recovery's of the same name after the first was killed early, or anybody's after the repository was moved to
//! another host. Only in a directory with its claim a recovery removes anything.

use std::io::ErrorKind::{NotADirectory, NotFound};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::record::Pinned;
use super::server::remove;
use crate::restore::staging::{Existing, StagedFile, sync_dir};

/// The claim of one recovery.
pub(crate) struct Claim<'a> {
    path: PathBuf,
    pin: &'a str,
}

impl<'a> Claim<'a> {
    /// Whether it has been staked or not.
    pub(crate) fn of(pinned: &'a Pinned) -> Self {
        Self {
            path: pinned.recovery.directory.join(".virtkeep-recovery"),
            pin: &pinned.pin,
        }
    }

    /// Claims the directory, durably. An error where another recovery has.
    pub(crate) fn stake(&self) -> Result<()> {
        if self.path.exists() {
            bail!(
                "{} says that another recovery has its images there: end that with `virtkeep boot --finish` or \
                 `--abort`, or name another directory with --to",
                self.path.display()
            );
        }
        let staged = StagedFile::with_content(self.path.clone(), self.pin.as_bytes())?;
        let path = staged.publish(Existing::Keep)?;
        path.parent().map_or(Ok(()), sync_dir)
    }

    /// Whether the directory is ours.
    pub(crate) fn holds(&self) -> Result<bool> {
        match std::fs::read(&self.path) {
            Ok(content) => Ok(content == self.pin.as_bytes()),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", self.path.display()))
            }
        }
    }

    /// Gives it up.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.holds()? {
            remove(&self.path)?;
        }
        Ok(())
    }
}
