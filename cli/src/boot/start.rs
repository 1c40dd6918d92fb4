//! From a point to a running guest.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use virtkeep_repo::{Cancel, DiskOffset, ExtentState, FileRole, Point, Repository};

use super::claim::Claim;
use super::record::{Home, Pinned, RecoveredDisk, Recovery, export};
use super::work::Work;
use super::{abort, overlay, place, server, space};
use crate::context::Context;
use crate::define::backing::{Backing, policies, without_server};
use crate::define::{As, Definer, Rewritten, domain_xml, has_nvram, is_moved, utf8};
use crate::output::shown;
use crate::restore::directory::{Format, Restored, RestoredFile, RestoredImage};
use crate::restore::file_names;
use crate::restore::staging::sync_dir;

/// A recovery that is to begin.
pub(crate) struct Start<'a> {
    /// The surroundings.
    pub(crate) context: &'a Context,
    /// Where the point is kept.
    pub(crate) repo: &'a Repository,
    /// The point.
    pub(crate) point: &'a Point,
    /// As whom it is to run.
    pub(crate) wanted: As,
    /// The directory for its images, where one was named.
    pub(crate) directory: Option<PathBuf>,
    /// Whether the data is to be moved in.
    pub(crate) pull: bool,
}

/// A guest that runs.
pub(crate) struct Started {
    /// Its recovery.
    pub(crate) pinned: Pinned,
    /// The work on it goes on.
    pub(crate) work: Work,
    /// What the user should know about it.
    pub(crate) notes: Vec<String>,
}

impl Start<'_> {
    /// Starts it. On any error, nothing is left of it.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<Started> {
        let definer =
            Definer::prepare(self.context.libvirt_uri(), self.point, self.wanted.clone())?;
        if self.point.disks.is_empty() {
            bail!("the point {} has no disks", self.point.id);
        }
        let directory = match &self.directory {
            Some(dir) => dir.clone(),
            None => place::usual_directory(definer.name()),
        };
        let directory = std::path::absolute(&directory)
            .with_context(|| format!("cannot find {}", directory.display()))?;
        place::check_name(definer.connection(), definer.name())?;
        let plan = plan(self.repo, self.point, &definer, &directory)?;
        check_firmware(&definer, &plan)?;
        let rewritten = definer.rewritten(&plan)?;
        let recovery = self.record(&plan, &definer, &rewritten)?;
        check_free(&recovery)?;
        self.check_space(&plan)?;
        place::make_socket_directory(&recovery.socket)?;
        let work = Work::take(&recovery)?;
        // Whoever had it before may have made a domain of this name.
        definer.check_free()?;
        self.check_alone(&recovery)?;
        let pinned = Pinned::create(self.repo, self.point.id, recovery)?;
        match self.build(&pinned, &plan, &definer, rewritten, cancel) {
            Ok(notes) => Ok(Started {
                pinned,
                work,
                notes,
            }),
            Err(error) => match abort::abort(self.repo, &pinned, work) {
                Ok(_) => Err(error),
                Err(undo) => Err(error.context(format!(
                    "not all could be removed again ({undo:#}); `virtkeep boot --abort` does it"
                ))),
            },
        }
    }

    /// Makes sure that no other recovery has the same place.
    fn check_alone(&self, recovery: &Recovery) -> Result<()> {
        for other in Pinned::all(self.repo)? {
            if other.recovery.socket == recovery.socket && other.recovery.home == recovery.home {
                bail!(
                    "a recovery of {} is under way: `virtkeep boot --finish` or `--abort` ends it",
                    shown(&recovery.domain)
                );
            }
        }
        if server::keeper(recovery)?.is_some() {
            bail!(
                "{} is in use by a recovery of the same name, from another repository",
                recovery.socket.display()
            );
        }
        Ok(())
    }

    /// Makes sure that there is room.
    fn check_space(&self, plan: &Restored) -> Result<()> {
        if self.pull {
            let least = || self.data_bytes();
            if let Some(warning) = space::check(&plan.directory, self.point, least)? {
                self.context.reporter.note(&warning);
            }
        }
        Ok(())
    }

    /// How much data the disks hold.
    fn data_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for disk in &self.point.disks {
            let reader = self.repo.read_disk(self.point, disk)?;
            let end = DiskOffset::ZERO.plus(reader.size());
            let mut at = DiskOffset::ZERO;
            while at < end {
                for extent in reader.extents(at, end)? {
                    at = extent.start.plus(extent.len);
                    if extent.state == ExtentState::Data {
                        bytes += extent.len.0;
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Makes everything that the record names, and starts the guest.
    fn build(
        &self,
        pinned: &Pinned,
        plan: &Restored,
        definer: &Definer,
        rewritten: Rewritten,
        cancel: &Cancel,
    ) -> Result<Vec<String>> {
        let recovery = &pinned.recovery;
        place::make_directory(&recovery.directory)?;
        let claim = Claim::of(pinned);
        claim.stake()?;
        if let Err(error) = check_free(recovery) {
            // What is there is somebody else's, and must not be taken for ours.
            claim.remove()?;
            return Err(error);
        }
        place_files(plan)?;
        let own = without_server(
            &rewritten.xml,
            &recovery.socket_text(),
            &recovery.policies(),
        )?;
        let own = own.unwrap_or_else(|| rewritten.xml.clone());
        // Neither needs the other, and each takes its time.
        std::thread::scope(|scope| {
            let overlays = scope.spawn(|| create_overlays(pinned));
            let served = server::ensure(self.context, pinned);
            let created = overlays.join();
            created.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            served
        })?;
        place_definition(recovery, &own)?;
        cancel.check()?;
        let defined = definer.define_rewritten(rewritten)?;
        defined.start()?;
        Ok(defined.notes)
    }

    /// The record of all that will be made.
    fn record(
        &self,
        plan: &Restored,
        definer: &Definer,
        rewritten: &Rewritten,
    ) -> Result<Recovery> {
        let original = policies(domain_xml(&plan.files)?)?;
        let disks = plan.disks.iter().map(|disk| {
            let found = original.iter().find(|(target, _)| *target == disk.target);
            RecoveredDisk {
                target: disk.target.clone(),
                overlay: disk.path.clone(),
                size_bytes: disk.size_bytes,
                policies: found.map(|(_, own)| own.clone()).unwrap_or_default(),
            }
        });
        let files = plan.files.iter().filter(|file| is_moved(file));
        let files = files.map(|file| file.path.clone());
        let written = rewritten.written.iter().map(PathBuf::from);
        let recovery = Recovery {
            domain: definer.name().to_owned(),
            uuid: definer.uuid().to_string(),
            as_original: self.wanted == As::Original,
            pull: self.pull,
            home: Home::here(),
            libvirt: place::check_local(definer.connection())?,
            directory: plan.directory.clone(),
            made_directory: !plan.directory.exists(),
            socket: place::socket(definer.name(), definer.uuid()),
            qemu: place::qemu_user(definer.connection())?,
            disks: disks.collect(),
            files: files.chain(written).collect(),
        };
        check_text(&recovery)?;
        Ok(recovery)
    }
}

/// Makes sure that nothing is where files of the recovery go: it would be taken for its own.
fn check_free(recovery: &Recovery) -> Result<()> {
    for path in recovery.all_files() {
        if path.symlink_metadata().is_ok() {
            bail!(
                "{} already exists: name another directory with --to",
                path.display()
            );
        }
    }
    Ok(())
}

/// An original must not write to firmware variables that it had before: those of the point are copied. Where
/// it holds none, libvirt would use what lies at their place.
fn check_firmware(definer: &Definer, plan: &Restored) -> Result<()> {
    let holds_none = || !plan.files.iter().any(|file| file.role == FileRole::Nvram);
    if definer.is_original() && holds_none() && has_nvram(domain_xml(&plan.files)?) {
        bail!(
            "the point holds no firmware variables, and {} would write to those of the original: boot a clone with \
             --name, or restore it with --define",
            shown(definer.name())
        );
    }
    Ok(())
}

/// Chooses all places in a directory, an absolute path, and reads the files of the point.
pub(super) fn plan(
    repo: &Repository,
    point: &Point,
    definer: &Definer,
    directory: &Path,
) -> Result<Restored> {
    let socket = utf8(&place::socket(definer.name(), definer.uuid()))?;
    let mut taken = Vec::new();
    let mut name = |name: String| directory.join(file_names::unique(name, &mut taken));
    let disks = point.disks.iter().map(|disk| RestoredImage {
        target: disk.target.clone(),
        path: name(format!("{}.qcow2", file_names::safe(&disk.target))),
        format: Format::Qcow2,
        size_bytes: disk.size.0,
        lost: Vec::new(),
        backing: Some(Backing {
            socket: socket.clone(),
            export: export(point.id, &disk.target),
        }),
    });
    let disks = disks.collect();
    let mut files = Vec::new();
    for stored in &point.files {
        let Some(path) = file_names::stored_file(stored).map(&mut name) else {
            continue;
        };
        if !matters(stored.role) {
            continue;
        }
        files.push(RestoredFile {
            role: stored.role,
            name: stored.name.clone(),
            path,
            content: repo.read_file(point, stored)?,
        });
    }
    Ok(Restored {
        directory: directory.to_owned(),
        disks,
        files,
        lost_files: Vec::new(),
    })
}

/// Puts the files in place that the domain must find there.
pub(super) fn place_files(plan: &Restored) -> Result<()> {
    for file in plan.files.iter().filter(|file| is_moved(file)) {
        write_new(&file.path, &file.content)?;
        if file.role == FileRole::Loader {
            // QEMU reads it without owning it.
            let readable = Permissions::from_mode(0o644);
            std::fs::set_permissions(&file.path, readable)
                .with_context(|| format!("cannot open up {}", file.path.display()))?;
        }
    }
    Ok(())
}

/// Says that all is there: from here on the guest may have run.
fn place_definition(recovery: &Recovery, xml: &str) -> Result<()> {
    let (in_work, path) = (recovery.definition_in_work(), recovery.definition());
    write_new(&in_work, xml.as_bytes())?;
    std::fs::rename(in_work, &path).with_context(|| format!("cannot create {}", path.display()))?;
    sync_dir(&recovery.directory)
}

/// Makes a file, durably but for its name. It is there by that name at once: whoever is killed meanwhile leaves
/// nothing that its record does not name.
fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new();
    file.write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .with_context(|| format!("cannot create {}", path.display()))
}

/// Makes the empty images, durably.
fn create_overlays(pinned: &Pinned) -> Result<()> {
    let recovery = &pinned.recovery;
    for disk in &recovery.disks {
        let (path, socket) = (&disk.overlay, &recovery.socket);
        overlay::create(path, disk.size_bytes, socket, &pinned.export(disk))?;
    }
    sync_dir(&recovery.directory)?;
    match recovery.directory.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// The record is JSON: what is no text could not be found again.
fn check_text(recovery: &Recovery) -> Result<()> {
    let paths = [&recovery.directory, &recovery.socket].into_iter();
    let overlays = recovery.disks.iter().map(|disk| &disk.overlay);
    for path in paths.chain(overlays).chain(&recovery.files) {
        utf8(path)?;
    }
    Ok(())
}

/// Whether a file of the point is needed to run its domain.
fn matters(role: FileRole) -> bool {
    match role {
        FileRole::DomainXml
        | FileRole::LiveXml
        | FileRole::Nvram
        | FileRole::Loader
        | FileRole::Kernel
        | FileRole::Initrd => true,
        FileRole::NetworkXml | FileRole::Tpm | FileRole::Log | FileRole::Unknown => false,
    }
}

/// A name for a clone, where none was given.
pub(crate) fn usual_name(point: &Point) -> String {
    format!("{}-boot", point.domain.name)
}

/// The directory as people write it.
pub(crate) fn shown_dir(dir: &Path) -> String {
    shown(&dir.to_string_lossy())
}
