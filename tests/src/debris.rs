//! What a backup must not leave behind.

use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::program::Program;

/// What is left of the backups of one domain into one repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Debris {
    /// Whether a job runs on the domain, whoever started it.
    pub job: bool,
    /// Sockets and scratch files.
    pub files: Vec<PathBuf>,
    /// Checkpoints of this repository.
    pub checkpoints: Vec<String>,
}

impl Debris {
    /// Looks at the domain, in its disks' directories and where libvirt keeps its own files.
    #[track_caller]
    pub fn find(program: &Program, machine: &Machine) -> Self {
        let prefix = format!("virtkeep-{}-", program.short_id());
        let mut dirs = vec![
            PathBuf::from("/var/lib/libvirt/images"),
            PathBuf::from("/var/lib/libvirt/qemu"),
        ];
        dirs.extend(entries(Path::new("/var/lib/libvirt/qemu")));
        dirs.extend(
            machine
                .disks()
                .iter()
                .map(|(_, image)| image.parent().unwrap().to_owned()),
        );
        dirs.sort();
        dirs.dedup();
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(&prefix)
        };
        let files = dirs
            .iter()
            .flat_map(|dir| entries(dir))
            .filter(is_ours)
            .collect();
        let mut checkpoints = machine.checkpoints();
        checkpoints.retain(|name| name.starts_with(&prefix));
        Self {
            job: machine.has_job(),
            files,
            checkpoints,
        }
    }

    /// Fails unless nothing but these checkpoints is left.
    #[track_caller]
    pub fn assert_only(&self, checkpoints: &[&str], what: &str) {
        let only = Self {
            checkpoints: checkpoints.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        };
        assert_eq!(*self, only, "{what}");
    }
}

/// What is in a directory; nothing where there is none.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}
