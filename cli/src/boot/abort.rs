//! Undoing a recovery: the guest ends, and all that was made for it goes, the pin last.

use std::io::ErrorKind;

use anyhow::{Context as _, Result};
use virtkeep_repo::Repository;

use super::claim::Claim;
use super::machine::{Machine, State};
use super::overlay;
use super::record::{Pinned, Recovery};
use super::server::{self, remove};
use super::work::Work;

/// Undoes it. What its guest has written is lost. A domain that does not use its images is left alone, and so
/// are images that a guest uses, whichever it is, and whatever lies in a directory that is not its own. Whether its
/// directory was: if not, there were no images to remove.
pub(crate) fn abort(repo: &Repository, pinned: &Pinned, work: Work) -> Result<bool> {
    let recovery = &pinned.recovery;
    let mut machine = Machine::connect(recovery)?;
    let claim = Claim::of(pinned);
    let is_ours = claim.holds()?;
    // Whose images somebody has removed by hand is nobody else's either.
    let is_nobodys = !recovery.disks.iter().any(|disk| disk.overlay.exists());
    if (is_ours || is_nobodys) && machine.state()? != State::Gone && machine.is_ours()? {
        machine.destroy()?;
        machine.undefine()?;
    }
    if is_ours {
        for disk in &recovery.disks {
            overlay::check_unused(&disk.overlay)?;
        }
    }
    server::stop(pinned)?;
    if is_ours {
        remove_files(recovery)?;
        claim.remove()?;
    }
    if recovery.made_directory {
        remove_directory(recovery)?;
    }
    repo.remove_pin(&pinned.pin)?;
    work.end()?;
    Ok(is_ours)
}

fn remove_files(recovery: &Recovery) -> Result<()> {
    recovery
        .all_files()
        .iter()
        .try_for_each(|path| remove(path))
}

/// Removes the directory, unless somebody has put something into it.
fn remove_directory(recovery: &Recovery) -> Result<()> {
    match std::fs::remove_dir(&recovery.directory) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error).with_context(|| format!("cannot remove {}", recovery.directory.display()))
        }
        _ => Ok(()),
    }
}
