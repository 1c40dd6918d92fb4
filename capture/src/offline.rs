//! Backing up a domain that is shut off: its images are read where they are.
//!
//! Nothing keeps the domain from starting meanwhile; if it does, what was read is discarded. The
//! domain's checkpoints are left alone, and the point has none: the next live backup is compared
//! with the point before, whose bitmap is still true.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libnbd::Endpoint;
use virtkeep_repo::{Consistency, Point, PointDraft, SourceKind};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::file_source::FileSource;
use crate::files;
use crate::image_lock::check_unused;
use crate::libvirt::RunState;
use crate::live::{Capture, announce, remove_stale_files};
use crate::nbd_source::{Export, NbdSource};
use crate::plan;
use crate::pull::{Opened, pull};
use crate::stop::{Stop, while_ticking};

pub(crate) fn backup(capture: &Capture<'_>) -> Result<Point> {
    let xml = plan::read_xml(capture.host, capture.domain)?;
    remove_stale_files(capture, &xml);
    let points = plan::points_of(capture.repo, capture.domain)?;
    let plan = plan::decide(
        capture.host,
        capture.domain,
        capture.options,
        &capture.names,
        &points,
        &xml,
        RunState::ShutOff,
    )
    .map_err(|(_, error)| error)?;
    if !capture.options.skip_unsupported && !plan.unsupported.is_empty() {
        return Err(plan.unsupported_error());
    }
    if plan.disks.is_empty() {
        return Err(plan.no_disks_error());
    }
    let backup = capture
        .repo
        .begin_backup(&plan.parents(), &capture.options.command)?;
    announce(capture, &plan, backup.point_id());
    let time = capture.journal.now();
    let stop = &capture.stop;
    let is_off = || capture.domain.handle.state() == Ok(RunState::ShutOff);
    let started = std::sync::atomic::AtomicBool::new(false);
    let watch = || {
        if !is_off() {
            started.store(true, std::sync::atomic::Ordering::SeqCst);
            stop.stop();
        }
    };
    let before = fingerprints(&plan);
    unused(&plan)?;
    let result = while_ticking(stop, watch, || {
        pull(&backup, &plan.disks, None, capture.journal, stop, |disk| {
            open_at_rest(
                Path::new(&disk.location),
                &disk.format,
                Sharing::WithAStartingMachine,
                &disk.target,
                stop,
            )
        })
    });
    let was_started = started.into_inner() || !is_off() || fingerprints(&plan) != before;
    let disks = match result {
        _ if stop.user_wants_it() => return Err(Error::Cancelled),
        _ if was_started => {
            return Err(Error::DomainStarted {
                domain: capture.domain.name().to_owned(),
            });
        }
        other => other?,
    };
    unused(&plan)?;
    let mut files = files::store(
        &backup,
        capture.host,
        capture.domain,
        &xml,
        RunState::ShutOff,
        capture.journal,
    )?;
    files.push(files::store_log(&backup, capture.journal)?);
    let point = backup.commit(PointDraft {
        domain: plan.domain.clone(),
        source: SourceKind::Offline,
        host: capture.host.name().to_owned(),
        time,
        consistency: Consistency::Clean,
        checkpoint: None,
        disks,
        files,
        tags: capture.options.tags.clone(),
    })?;
    capture.journal.event(Event::Committed { point: point.id });
    Ok(point)
}

/// An error while another machine writes to one of the images: it may hold in memory what makes the
/// difference between a disk and rubbish.
fn unused(plan: &plan::Plan) -> Result<()> {
    plan.disks
        .iter()
        .try_for_each(|disk| check_unused(Path::new(&disk.location)))
}

/// When each image was last written to, as far as its file system knows.
fn fingerprints(plan: &plan::Plan) -> Vec<Option<Fingerprint>> {
    plan.disks
        .iter()
        .map(|disk| fingerprint(Path::new(&disk.location)))
        .collect()
}

/// What changes when a file is written to or replaced: device, inode, length, time of last write.
pub(crate) type Fingerprint = (u64, u64, u64, i64, i64);

pub(crate) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

/// What may happen to an image while it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// A machine may open it for writing: it is not kept from starting.
    WithAStartingMachine,
    /// Nobody may write: QEMU's lock is held where there is one.
    WithReaders,
}

/// Opens an image at rest: raw ones directly, others through `qemu-nbd`.
pub(crate) fn open_at_rest(
    path: &Path,
    format: &str,
    sharing: Sharing,
    disk: &str,
    stop: &Arc<Stop>,
) -> Result<Opened> {
    if format == "raw" {
        let source = FileSource::open(path, Arc::clone(stop))?;
        return Ok(Opened {
            source: Box::new(source),
            incremental: false,
        });
    }
    // The helper's own words go nowhere useful: find the common reasons out first.
    std::fs::File::open(path).map_err(Error::file("open", path))?;
    let source = NbdSource::open(
        Export {
            disk: disk.to_owned(),
            endpoint: Endpoint::socket_activation(qemu_nbd(path, format, sharing)),
            name: String::new(),
            changes: None,
            connections: 1,
        },
        Arc::clone(stop),
    )?;
    Ok(Opened {
        source: Box::new(source),
        incremental: false,
    })
}

fn qemu_nbd(path: &Path, format: &str, sharing: Sharing) -> Vec<std::ffi::OsString> {
    let driver = if is_block_device(path) {
        "host_device"
    } else {
        "file"
    };
    let force_share = match sharing {
        Sharing::WithAStartingMachine => "on",
        Sharing::WithReaders => "off",
    };
    // A comma in a value is written twice.
    let quoted = path.to_string_lossy().replace(',', ",,");
    let image = format!(
        "driver={format},force-share={force_share},file.driver={driver},file.filename={quoted}"
    );
    ["qemu-nbd", "--read-only", "--image-opts", &image]
        .map(Into::into)
        .to_vec()
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// The image files of a domain's qcow2 disks, for work on them while it is shut off.
pub(crate) fn qcow2_paths(xml: &crate::domain_xml::DomainXml) -> Vec<PathBuf> {
    xml.disks
        .iter()
        .filter(|disk| disk.format == "qcow2" && !disk.readonly)
        .filter_map(|disk| disk.source.path().map(PathBuf::from))
        .collect()
}
