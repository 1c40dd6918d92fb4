//! The place of a trial: a directory for all its files, and what shows elsewhere that it takes place.
//!
//! The directory is locked as long as the trial runs, and names its domain. So, of a trial that was killed, the
//! next one finds everything: the directory is not locked any more, and goes, with the domain, should it still be
//! there, its socket, and its logs. It goes last; nothing of anybody else's is in it or named by it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use virt::connect::Connect;
use virtkeep_capture::{ErrorKind, LibvirtError};

use crate::boot::place;
use crate::boot::server::remove;

/// How the directories of trials are called.
const PREFIX: &str = "virtkeep-test-";
/// The file in it that names the domain.
const NAMES: &str = "trial.json";
/// How often a directory is made anew that another trial takes for an abandoned one.
const TRIES_MAX: u32 = 10;

/// The place of one trial. All of it goes with this value.
#[derive(Debug)]
pub(super) struct Scene {
    path: PathBuf,
    names: Names,
    // Held until all else has gone.
    _locked: File,
}

/// By what a trial is found outside of its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Names {
    /// The name of its domain.
    pub(super) domain: String,
    /// The uuid of its domain.
    pub(super) uuid: String,
    /// The URI of the libvirt that has it.
    pub(super) libvirt: String,
}

impl Scene {
    /// Makes the directory, which others may pass through, as QEMU must.
    pub(super) fn set(parent: &Path, names: Names) -> Result<Self> {
        let parent = std::path::absolute(parent)?;
        for _ in 0..TRIES_MAX {
            let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent);
            let dir =
                dir.with_context(|| format!("cannot create a directory in {}", parent.display()))?;
            // Another one that clears up may have it.
            let Some(locked) = lock(dir.path()) else {
                continue;
            };
            place::let_pass(dir.path())?;
            std::fs::write(dir.path().join(NAMES), serde_json::to_vec(&names)?)
                .with_context(|| format!("cannot write to {}", dir.path().display()))?;
            let path = TempDir::keep(dir);
            return Ok(Self {
                path,
                names,
                _locked: locked,
            });
        }
        anyhow::bail!("cannot lock a directory in {}", parent.display())
    }

    /// The directory, absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the domain, if it has not ended.
    pub(super) fn end_domain(&self) {
        // If that fails, the next trial does it.
        let _ = self.names.end_domain();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = clear(&self.path, &self.names);
    }
}

impl Names {
    fn end_domain(&self) -> Result<()> {
        let connection = Connect::open(Some(&self.libvirt)).map_err(LibvirtError::from)?;
        let domain = connection.lookup_domain_by_uuid_string(&self.uuid);
        let ended = domain.and_then(|domain| domain.destroy());
        match ended.map_err(LibvirtError::from) {
            Err(error) if error.kind() != ErrorKind::NoDomain => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The logs that libvirt begins for each domain, and keeps.
    fn logs(&self) -> impl Iterator<Item = PathBuf> {
        let name = &self.domain;
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let own = cache.or(home).map(|cache| cache.join("libvirt/qemu/log"));
        let of_system = [
            PathBuf::from("/var/log/libvirt/qemu"),
            PathBuf::from("/var/log/swtpm/libvirt/qemu"),
        ];
        let names = [format!("{name}.log"), format!("{name}-swtpm.log")];
        let dirs = of_system.into_iter().chain(own);
        dirs.flat_map(move |dir| names.clone().map(|name| dir.join(name)))
    }
}

/// Removes what trials have left in this directory that were killed. Whatever that meets is no reason not to try
/// another point.
pub(super) fn clear_up(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = clear_abandoned(&entry.path());
        }
    }
}

fn clear_abandoned(dir: &Path) -> Result<()> {
    let found = dir.symlink_metadata()?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let Some(_locked) = lock(dir) else {
        return Ok(());
    };
    match std::fs::read(dir.join(NAMES)) {
        Ok(text) => clear(dir, &serde_json::from_slice(&text)?),
        // Killed before it had made anything. What else there is nobody knows.
        Err(_) => Ok(std::fs::remove_dir(dir)?),
    }
}

/// Removes all that there is of a trial, the directory last.
fn clear(dir: &Path, names: &Names) -> Result<()> {
    names.end_domain()?;
    remove(&place::socket(&names.domain, names.uuid.parse()?))?;
    for log in names.logs() {
        remove(&log)?;
    }
    Ok(std::fs::remove_dir_all(dir)?)
}

/// Locks a directory; none where somebody else has, or has removed it.
fn lock(dir: &Path) -> Option<File> {
    let file = File::open(dir).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (locked, there) = (file.metadata().ok()?, dir.symlink_metadata().ok()?);
    (locked.dev() == there.dev() && locked.ino() == there.ino()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            domain: "web1-test-0a1b2c".to_owned(),
            uuid: "07070707-0707-4707-8707-070707070707".to_owned(),
            libvirt: "test:///default".to_owned(),
        }
    }

    #[test]
    fn what_a_trial_left_that_was_killed_the_next_one_removes() {
        let parent = tempfile::tempdir().unwrap();
        let running = Scene::set(parent.path(), names()).unwrap();
        std::fs::write(running.path().join("console.log"), "").unwrap();
        let in_parent = |name: &str| parent.path().join(name);
        // Killed: nobody holds its lock.
        let killed = in_parent("virtkeep-test-killed");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("vda.qcow2"), "").unwrap();
        std::fs::write(killed.join(NAMES), serde_json::to_vec(&names()).unwrap()).unwrap();
        std::fs::create_dir(in_parent("virtkeep-test-early")).unwrap();
        // Of others.
        let others = [in_parent("virtkeep-test-other"), in_parent("web1")];
        for other in &others {
            std::fs::create_dir(other).unwrap();
            std::fs::write(other.join("a"), "").unwrap();
        }

        clear_up(parent.path());
        assert!(!killed.exists() && !in_parent("virtkeep-test-early").exists());
        assert!(others.iter().all(|other| other.join("a").exists()));
        assert!(running.path().join("console.log").exists());
        let path = running.path().to_owned();
        drop(running);
        assert!(!path.exists());
    }
}
