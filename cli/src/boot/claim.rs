//! The claim of a recovery to its directory, made before any image is: it names the recovery's pin.
//!
//! It is a symbolic link to that name, which leads nowhere: so it is there with all it says or not at all, and whoever
//! is killed meanwhile leaves nothing of it that nobody would remove.
//!
//! A record names its images by path, and what lies at a path may be somebody else's: another
//! recovery's of the same name after the first was killed early, or anybody's after the repository was moved to
//! another host. Only in a directory with its claim a recovery removes anything.

use std::io::ErrorKind::{AlreadyExists, InvalidInput, NotADirectory, NotFound};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::record::{Pinned, Recovery};
use super::server::remove;
use crate::output::shown;
use crate::restore::staging::sync_dir;

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
        match symlink(self.pin, &self.path) {
            Err(error) if error.kind() == AlreadyExists => bail!(
                "{} says that another recovery has its images there: end that with `virtkeep boot --finish` or \
                 `--abort`, or name another directory with --to",
                self.path.display()
            ),
            made => {
                made.with_context(|| format!("cannot create {}", self.path.display()))?;
                self.sync()
            }
        }
    }

    /// Whether the directory is ours.
    pub(crate) fn holds(&self) -> Result<bool> {
        match std::fs::read_link(&self.path) {
            Ok(named) => Ok(named.as_os_str().as_bytes() == self.pin.as_bytes()),
            // The last is what is no link.
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidInput) => {
                Ok(false)
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", self.path.display()))
            }
        }
    }

    /// An error that says what to do, unless the directory is ours.
    pub(crate) fn check(&self, recovery: &Recovery) -> Result<()> {
        if !self.holds()? {
            bail!(
                "{dir} is not there, or not marked as that of the recovery of {name}. Mount its file system if it is \
                 not; then try again. If nothing had been made yet, or all was over but the pin, `virtkeep boot \
                 --abort {pin}` removes the pin, and nothing in {dir}",
                dir = recovery.directory.display(),
                name = shown(&recovery.domain),
                pin = self.pin,
            );
        }
        Ok(())
    }

    /// Gives it up, durably: a claim that comes back after the pin has gone is nobody's.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.holds()? {
            remove(&self.path)?;
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        sync_dir(self.path.parent().unwrap_or(Path::new("/")))
    }
}
