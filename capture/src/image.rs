//! Backing up what no libvirt knows of: an image at rest, or any NBD export.

use std::path::PathBuf;
use std::sync::Arc;

use libnbd::Endpoint;
use virtkeep_repo::{
    Cancel, CaptureMode, Consistency, Disk, Domain, Point, PointDraft, PointId, Repository,
    SourceKind,
};

use crate::error::{Error, Result};
use crate::event::{Event, Journal, Observer};
use crate::files;
use crate::format;
use crate::image_lock::check_unused;
use crate::nbd_source::{Export, NbdSource};
use crate::offline::{Sharing, fingerprint, open_at_rest};
use crate::options::Options;
use crate::plan::DiskPlan;
use crate::pull::{self, Opened, pull};
use crate::qemu_img;
use crate::stop::{Stop, while_ticking};

/// What the only disk of such a point is called.
const DISK: &str = "disk";

/// What [`backup_image`] reads.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// A raw or qcow2 file, or a block device.
    pub path: PathBuf,
    /// Its format, `raw` or `qcow2`; told by its bytes when `None`, which is only done where nothing
    /// can be mistaken.
    pub format: Option<String>,
}

/// Backs up an image file or block device that nobody writes to; its disk is called `disk`.
///
/// # Errors
/// [`Error::Unfit`] for what is no raw or qcow2 image; [`Error::ImageInUse`] when a running machine
/// has it open, [`Error::ImageChanged`] when it was written to meanwhile. Then there is no point.
pub fn backup_image(
    image: &ImageSource,
    name: &str,
    repo: &Repository,
    options: &Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Point> {
    let path = std::fs::canonicalize(&image.path).map_err(Error::file("open", &image.path))?;
    let file = format::open(&path)?;
    let format = match &image.format {
        Some(format) if matches!(&**format, "raw" | "qcow2") => format.clone(),
        Some(format) => {
            return Err(Error::Unfit {
                disk: path.display().to_string(),
                why: format!("format {format:?} is neither raw nor qcow2"),
            });
        }
        None => format::detect(&file, &path)?.to_owned(),
    };
    drop(file);
    let before = fingerprint(&path);
    check_unused(&path)?;
    let elsewhere = match &*format {
        "raw" => None,
        format => qemu_img::info(&path, format)?.elsewhere,
    };
    if let (Some(elsewhere), None) = (&elsewhere, &image.format) {
        // Whoever writes to a raw disk can make it look like a qcow2 image on any file of this host.
        return Err(Error::Unfit {
            disk: path.display().to_string(),
            why: format!(
                "it looks like a qcow2 image whose data is also in {elsewhere}: pass \
                 --image-format qcow2 if that is right"
            ),
        });
    }
    let run = Run {
        name,
        repo,
        options,
        journal: &Journal::new(observer),
        stop: Arc::new(Stop::new(cancel, options.stall_limit)),
    };
    if let Some(elsewhere) = elsewhere {
        let shown = path.display();
        run.journal
            .note(format!("{shown} is read together with {elsewhere}"));
    }
    let location = path.display().to_string();
    let disk = Unnamed {
        location: location.clone(),
        format: format.clone(),
        reason: "images are read in full",
        kind: SourceKind::Image,
        consistency: Consistency::Clean,
    };
    let open = || open_at_rest(&path, &format, Sharing::WithReaders, &location, &run.stop);
    let is_unchanged = || {
        // The lock first: a machine that has just opened it may not have written yet.
        check_unused(&path)?;
        if fingerprint(&path) != before {
            return Err(Error::ImageChanged { path: path.clone() });
        }
        Ok(())
    };
    run.backup(&disk, open, is_unchanged)
}

/// Backs up the export at an NBD URI; its disk is called `disk`. Nobody should write to it
/// meanwhile: that cannot be checked here.
pub fn backup_nbd(
    uri: &str,
    name: &str,
    repo: &Repository,
    options: &Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Point> {
    let run = Run {
        name,
        repo,
        options,
        journal: &Journal::new(observer),
        stop: Arc::new(Stop::new(cancel, options.stall_limit)),
    };
    let disk = Unnamed {
        location: uri.to_owned(),
        format: "raw".into(),
        reason: "NBD exports are read in full",
        kind: SourceKind::Nbd,
        consistency: Consistency::Crash,
    };
    let open = || {
        let source = NbdSource::open(
            Export {
                disk: uri.to_owned(),
                endpoint: Endpoint::uri(uri),
                name: String::new(),
                changes: None,
                connections: pull::connections(1),
            },
            Arc::clone(&run.stop),
        )?;
        Ok(Opened {
            source: Box::new(source),
            incremental: false,
        })
    };
    run.backup(&disk, open, || Ok(()))
}

struct Run<'a> {
    name: &'a str,
    repo: &'a Repository,
    options: &'a Options,
    journal: &'a Journal<'a>,
    stop: Arc<Stop>,
}

/// A disk that belongs to no domain.
struct Unnamed {
    location: String,
    format: String,
    reason: &'static str,
    kind: SourceKind,
    consistency: Consistency,
}

impl Run<'_> {
    fn backup(
        &self,
        disk: &Unnamed,
        open: impl Fn() -> Result<Opened> + Sync,
        is_unchanged: impl Fn() -> Result<()>,
    ) -> Result<Point> {
        let domain = Domain {
            uuid: self.repo.uuid_for_name(self.name),
            name: self.name.to_owned(),
        };
        let _lock = self.repo.lock_domain(domain.uuid)?;
        let parent = self.newest_disk(&domain)?;
        let parents: Vec<PointId> = parent.iter().map(|(point, _)| *point).collect();
        let backup = self.repo.begin_backup(&parents, &self.options.command)?;
        self.journal.event(Event::Started {
            domain: self.name.to_owned(),
            point: backup.point_id(),
        });
        let time = self.journal.now();
        let opened = while_ticking(&self.stop, || (), &open)?;
        let plan = DiskPlan {
            target: DISK.into(),
            size: opened.source.size(),
            format: disk.format.clone(),
            location: disk.location.clone(),
            backing: Vec::new(),
            mode: CaptureMode::Full,
            reason: disk.reason.into(),
            parent,
            since: None,
            bitmap: false,
            scratch: None,
            overlay_cluster: None,
        };
        self.journal.event(plan.event());
        let opened = std::sync::Mutex::new(Some(opened));
        let disks =
            while_ticking(
                &self.stop,
                || (),
                || {
                    pull(&backup, &[plan], None, self.journal, &self.stop, |_| {
                        match crate::stop::lock(&opened).take() {
                            Some(opened) => Ok(opened),
                            None => open(),
                        }
                    })
                },
            );
        if self.stop.user_wants_it() {
            return Err(Error::Cancelled);
        }
        let disks = disks?;
        is_unchanged()?;
        let files = vec![files::store_log(&backup, self.journal)?];
        let point = backup.commit(PointDraft {
            domain,
            source: disk.kind,
            host: host_name(),
            time,
            consistency: disk.consistency,
            checkpoint: None,
            disks,
            files,
            tags: self.options.tags.clone(),
        })?;
        self.journal.event(Event::Committed { point: point.id });
        Ok(point)
    }

    /// The disk as the newest point of this name holds it.
    fn newest_disk(&self, domain: &Domain) -> Result<Option<(PointId, Disk)>> {
        let points = self.repo.points()?;
        Ok(points
            .into_iter()
            .rev()
            .filter(|point| point.domain.uuid == domain.uuid)
            .find_map(|point| {
                let disk = point.disks.into_iter().find(|disk| disk.target == DISK)?;
                Some((point.id, disk))
            }))
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
