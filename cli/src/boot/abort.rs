//! Undoing a recovery: the guest ends, and all that was made for it goes, the pin last.

use anyhow::{Context as _, Result, bail};
use virtkeep_repo::Repository;

use super::machine::{Machine, State};
use super::record::Pinned;
use super::server;
use crate::output::shown;

/// Undoes it. What its guest has written is lost.
pub(crate) fn abort(repo: &Repository, pinned: &Pinned) -> Result<()> {
    let recovery = &pinned.recovery;
    let mut machine = Machine::connect(recovery)?;
    if machine.state()? != State::Gone {
        if !machine.is_ours()? {
            bail!(
                "the domain {} does not use the images in {} any more: undefine or rename it first",
                shown(&recovery.domain),
                recovery.directory.display()
            );
        }
        machine.destroy()?;
        machine.undefine()?;
    }
    server::stop(recovery)?;
    let overlays = recovery.disks.iter().map(|disk| &disk.overlay);
    for path in overlays.chain(&recovery.files).chain([&recovery.log()]) {
        server::remove(path)?;
    }
    if recovery.made_directory {
        // Unless somebody has put something into it.
        match std::fs::remove_dir(&recovery.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            removed => removed
                .with_context(|| format!("cannot remove {}", recovery.directory.display()))?,
        }
    }
    repo.remove_pin(&pinned.pin)?;
    Ok(())
}
