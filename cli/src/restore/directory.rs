//! `restore --to DIR`: every disk as an image file, with the domain's XML and other files beside.
//!
//! All files are staged first and named together at the end, so that a restore that fails leaves
//! nothing behind.

use std::fmt;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use virtkeep_repo::{Cancel, Disk, FileRole, Loss, Point, Repository};

use super::copy;
use super::file_names;
use super::file_sink::SparseFile;
use super::qcow2::Qcow2Image;
use super::staging::{Existing, StagedFile, exists, sync_dir};
use crate::define::backing::Backing;
use crate::progress::Reporter;

/// Format of a restored image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// QEMU's own format: what virtkeep can back up incrementally afterwards.
    Qcow2,
    /// The bytes of the disk, sparse.
    Raw,
}

impl Format {
    /// As in libvirt's XML and in file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is to be restored into a directory.
pub(crate) struct DirectoryRestore<'a> {
    /// Where the point is kept.
    pub(crate) repo: &'a Repository,
    /// The point.
    pub(crate) point: &'a Point,
    /// Those of its disks that are wanted.
    pub(crate) disks: Vec<&'a Disk>,
    /// Format of the images.
    pub(crate) format: Format,
    /// What happens to files that are there already.
    pub(crate) existing: Existing,
    /// Restore what can be restored, with zeroes for the rest.
    pub(crate) salvage: bool,
}

/// What was restored, under absolute paths.
#[derive(Debug)]
pub(crate) struct Restored {
    /// Where all of it is.
    pub(crate) directory: PathBuf,
    /// The images.
    pub(crate) disks: Vec<RestoredImage>,
    /// All other files.
    pub(crate) files: Vec<RestoredFile>,
    /// Files that cannot be read and were left out: role, name and why.
    pub(crate) lost_files: Vec<(FileRole, String, String)>,
}

/// An image file.
#[derive(Debug)]
pub(crate) struct RestoredImage {
    /// The disk's target name.
    pub(crate) target: String,
    /// Where the image is.
    pub(crate) path: PathBuf,
    /// Its format.
    pub(crate) format: Format,
    /// Size of the disk.
    pub(crate) size_bytes: u64,
    /// What of it is zero because it cannot be read.
    pub(crate) lost: Vec<Loss>,
    /// What it reads from where it holds nothing itself.
    pub(crate) backing: Option<Backing>,
}

/// A file that was kept with the point.
#[derive(Debug)]
pub(crate) struct RestoredFile {
    /// What it is for.
    pub(crate) role: FileRole,
    /// Its name in the point: for host files the path it had.
    pub(crate) name: String,
    /// Where it is now.
    pub(crate) path: PathBuf,
    /// Its content.
    pub(crate) content: Vec<u8>,
}

impl DirectoryRestore<'_> {
    /// Restores into `dir`, which is made if it is missing.
    pub(crate) fn run(&self, dir: &Path, reporter: &Reporter, cancel: &Cancel) -> Result<Restored> {
        let is_new = !dir.exists();
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let absolute = dir
            .canonicalize()
            .with_context(|| format!("cannot find {}", dir.display()))?;
        let restored = self.run_in(&absolute, reporter, cancel);
        if restored.is_err() && is_new {
            // Only succeeds while it is empty, which is when it may go.
            let _ = std::fs::remove_dir(&absolute);
        }
        restored
    }

    fn run_in(&self, dir: &Path, reporter: &Reporter, cancel: &Cancel) -> Result<Restored> {
        let places = self.places(dir)?;
        let mut staged = Vec::new();
        let mut restored = Restored {
            directory: dir.to_owned(),
            disks: Vec::new(),
            files: Vec::new(),
            lost_files: Vec::new(),
        };
        for (disk, path) in self.disks.iter().zip(places.disks) {
            let file = StagedFile::create(path.clone())?;
            let lost = self
                .fill(disk, &file, reporter, cancel)
                .with_context(|| format!("cannot restore {} to {}", disk.target, path.display()))?;
            staged.push(file);
            restored.disks.push(RestoredImage {
                target: disk.target.clone(),
                path,
                format: self.format,
                size_bytes: disk.size.0,
                lost,
                backing: None,
            });
        }
        for (stored, path) in self.point.files.iter().zip(places.files) {
            let Some(path) = path else {
                continue;
            };
            let content = match self.repo.read_file(self.point, stored) {
                Err(error) if self.salvage && error.is_damage() => {
                    let lost = (stored.role, stored.name.clone(), error.to_string());
                    restored.lost_files.push(lost);
                    continue;
                }
                content => content.with_context(|| format!("cannot restore {}", path.display()))?,
            };
            let file = StagedFile::with_content(path.clone(), &content)?;
            if stored.role == FileRole::Loader {
                make_readable(&file)?;
            }
            staged.push(file);
            restored.files.push(RestoredFile {
                role: stored.role,
                name: stored.name.clone(),
                path,
                content,
            });
        }
        cancel.check()?;
        for file in staged {
            file.publish(self.existing)?;
        }
        sync_dir(dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok(restored)
    }

    /// Chooses all names, and makes sure that they are free.
    fn places(&self, dir: &Path) -> Result<Places> {
        let mut taken = Vec::new();
        let mut place = |name: String| dir.join(file_names::unique(name, &mut taken));
        let disks = self.disks.iter();
        let disks = disks
            .map(|disk| {
                place(format!(
                    "{}.{}",
                    file_names::safe(&disk.target),
                    self.format
                ))
            })
            .collect();
        let files = self.point.files.iter();
        let files = files
            .map(|file| file_names::stored_file(file).map(&mut place))
            .collect();
        let places = Places { disks, files };
        if self.existing == Existing::Keep {
            let all = places.disks.iter().chain(places.files.iter().flatten());
            for path in all {
                if path.symlink_metadata().is_ok() {
                    return Err(exists(path).into());
                }
            }
        }
        Ok(places)
    }

    fn fill(
        &self,
        disk: &Disk,
        staged: &StagedFile,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<Vec<Loss>> {
        let reader = super::open(self.repo, self.point, disk, self.salvage)?;
        let progress = reporter.disk(&disk.target, "restoring", reader.size());
        match self.format {
            Format::Raw => {
                staged.file().set_len(reader.size().0)?;
                copy(&reader, &SparseFile(staged.file()), &progress, cancel)?;
            }
            Format::Qcow2 => {
                let path = staged.temporary_path();
                let image = Qcow2Image::create(path, reader.size(), cancel)?;
                copy(&reader, image.sink(), &progress, cancel)?;
                image.finish()?;
            }
        }
        Ok(reader.losses())
    }
}

/// libvirt gives all other files to QEMU's user, but not the firmware.
fn make_readable(firmware: &StagedFile) -> Result<()> {
    firmware
        .file()
        .set_permissions(Permissions::from_mode(0o644))
        .with_context(|| format!("cannot make {} readable", firmware.place().display()))
}

/// Where everything will be. Files that are not restored have no place.
struct Places {
    disks: Vec<PathBuf>,
    files: Vec<Option<PathBuf>>,
}
