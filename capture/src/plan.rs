//! What a backup of a domain would do, decided disk by disk before anything is touched.
//!
//! A disk is read incrementally only when all of this is proved: an earlier point holds it, made
//! with a checkpoint of ours that still exists, whose bitmap on this disk is sound, and the disk
//! is still the same image, of the same format, and no smaller. Everything else is a full read,
//! with its reason.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use virtkeep_repo::{ByteLen, CaptureMode, Disk, Domain, Point, PointId, Repository, SourceKind};

use crate::checkpoints::{self, Sound};
use crate::domain_xml::{Agent, Device, DiskXml, DomainXml, SourceXml};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::host::{DomainRef, Host};
use crate::job;
use crate::libvirt::{RunState, XmlKind};
use crate::names::Names;
use crate::options::Options;
use crate::overlay;
use crate::places;

/// What a backup would do. Plain data: making one touches nothing.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The domain.
    pub domain: Domain,
    /// `Live` for a running or paused domain, `Offline` for one that is shut off.
    pub source: SourceKind,
    /// The disks that will be read, in the order of the domain XML.
    pub disks: Vec<DiskPlan>,
    /// Disks that no backup needs: CD-ROM, floppy, read-only.
    pub left_out: Vec<LeftOut>,
    /// Disks that cannot be backed up; without `skip_unsupported` the backup fails.
    pub unsupported: Vec<LeftOut>,
    /// Whether the guest will be frozen, and if not, why.
    pub freeze: FreezePlan,
    /// Whether a checkpoint will be made.
    pub checkpoint: bool,
    /// Where the socket of the job goes (live only).
    pub socket_dir: Option<PathBuf>,
    /// What earlier runs left and this one will clear.
    pub leftovers: Vec<String>,
    /// Why the backup would fail if it were started now.
    pub obstacle: Option<String>,
}

/// How one disk will be read.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// Target name in the domain XML, for example `vda`.
    pub target: String,
    /// Size in bytes.
    pub size: ByteLen,
    /// Format of the image: `qcow2`, `raw`.
    pub format: String,
    /// Path or address of the image.
    pub location: String,
    /// Paths or addresses of its backing images, nearest first; only known of a running domain.
    pub backing: Vec<String>,
    /// Whole or only what changed.
    pub mode: CaptureMode,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// The point that the disk is compared with, and the disk there.
    pub parent: Option<(PointId, Disk)>,
    /// The checkpoint whose bitmap says what changed; only for `Incremental`.
    pub since: Option<String>,
    /// Whether the disk can carry a bitmap.
    pub bitmap: bool,
    /// Where the scratch file goes (live only).
    pub scratch: Option<ScratchPlan>,
    /// The cluster size of an image that has a backing image.
    pub(crate) overlay_cluster: Option<ByteLen>,
}

/// A directory for scratch files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchPlan {
    /// The directory.
    pub dir: PathBuf,
    /// Bytes free there.
    pub free: u64,
    /// Bytes that must stay free; the backup is given up before less is left.
    pub reserve: u64,
}

/// A disk that is not backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its target name.
    pub target: String,
    /// Why.
    pub reason: String,
}

/// What will be asked of the guest agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreezePlan {
    /// The guest will be frozen for the moment of the checkpoint.
    Freeze,
    /// It will not, for this reason.
    Skip(String),
}

impl LeftOut {
    pub(crate) fn event(&self) -> Event {
        Event::LeftOut {
            target: self.target.clone(),
            reason: self.reason.clone(),
        }
    }
}

impl DiskPlan {
    pub(crate) fn event(&self) -> Event {
        Event::DiskPlanned {
            target: self.target.clone(),
            size: self.size,
            mode: self.mode,
            reason: self.reason.clone(),
        }
    }

    /// Turns an incremental read into a full one.
    pub(crate) fn read_in_full(&mut self, reason: String) {
        self.mode = CaptureMode::Full;
        self.reason = reason;
        self.since = None;
    }
}

/// Decides how a backup would go. Touches neither the domain nor the repository.
///
/// # Errors
/// Only where nothing can be planned. What would make the backup fail is [`Plan::obstacle`].
pub fn plan(host: &Host, domain: &DomainRef, repo: &Repository, options: &Options) -> Result<Plan> {
    let names = Names::new(repo, domain.uuid());
    let state = domain.state()?;
    let xml = read_xml(host, domain)?;
    let points = points_of(repo, domain)?;
    let (mut plan, obstacle) = match decide(host, domain, options, &names, &points, &xml, state) {
        Ok(plan) => (plan, None),
        Err((plan, error)) => (*plan, Some(error)),
    };
    let mut obstacle = obstacle.map(|error| error.to_string());
    if state != RunState::ShutOff {
        match job::current(domain, &names) {
            Ok(job::Found::Nothing) => {}
            Ok(job::Found::Ours(_)) => plan.leftovers.push("a backup job".into()),
            Err(error) => obstacle = obstacle.or(Some(error.to_string())),
        }
        let dirs = plan.directories(&xml);
        let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        let sockets = places::socket_dirs(
            host.uri(),
            domain.handle.id(),
            options.socket_dir.as_deref(),
        );
        let private = sockets.iter().find(|dir| dir.private);
        let files = places::stale_files(&dirs, private.map(|dir| &*dir.dir), &names);
        plan.leftovers
            .extend(files.iter().map(|path| path.display().to_string()));
        note_lost_checkpoint(&mut plan, domain, &names, &points);
    }
    if !options.skip_unsupported && !plan.unsupported.is_empty() {
        obstacle = obstacle.or(Some(plan.unsupported_error().to_string()));
    }
    if obstacle.is_none() && plan.disks.is_empty() {
        obstacle = Some(plan.no_disks_error().to_string());
    }
    plan.obstacle = obstacle;
    Ok(plan)
}

impl Plan {
    pub(crate) fn unsupported_error(&self) -> Error {
        Error::UnsupportedDisks {
            disks: self
                .unsupported
                .iter()
                .map(|disk| (disk.target.clone(), disk.reason.clone()))
                .collect(),
        }
    }

    pub(crate) fn no_disks_error(&self) -> Error {
        Error::NoDisks {
            domain: self.domain.name.clone(),
        }
    }

    /// The points whose disks this backup refers to.
    pub(crate) fn parents(&self) -> Vec<PointId> {
        let mut parents: Vec<PointId> = self
            .disks
            .iter()
            .filter_map(|disk| Some(disk.parent.as_ref()?.0))
            .collect();
        parents.sort();
        parents.dedup();
        parents
    }

    /// The directories in which this and earlier backups put files.
    pub(crate) fn directories(&self, xml: &DomainXml) -> Vec<PathBuf> {
        let beside = xml
            .disks
            .iter()
            .flat_map(|disk| std::iter::once(&disk.source).chain(&disk.backing))
            .filter_map(image_dir);
        let scratch = self
            .disks
            .iter()
            .filter_map(|disk| Some(disk.scratch.as_ref()?.dir.clone()));
        beside
            .chain(scratch)
            .chain([PathBuf::from(places::SCRATCH_DEFAULT)])
            .chain(self.socket_dir.clone())
            .collect()
    }
}

/// The domain's XML (live where it runs), its volumes resolved to paths.
pub(crate) fn read_xml(host: &Host, domain: &DomainRef) -> Result<DomainXml> {
    let text = domain
        .handle
        .xml(XmlKind::Live)
        .map_err(Error::libvirt(format!(
            "read the XML of domain {}",
            domain.name()
        )))?;
    let mut xml = DomainXml::parse(domain.name(), &text)?;
    for disk in &mut xml.disks {
        if let SourceXml::Volume { pool, volume } = &disk.source {
            let path = host.volume_path(pool, volume)?;
            let is_block = path.starts_with("/dev/");
            disk.source = match path {
                path if !path.starts_with('/') => SourceXml::Network(path),
                path if is_block => SourceXml::Block(path),
                path => SourceXml::File(path),
            };
        }
    }
    Ok(xml)
}

/// The points of the domain, the newest first.
pub(crate) fn points_of(repo: &Repository, domain: &DomainRef) -> Result<Vec<Point>> {
    let mut points = repo.points()?;
    points.retain(|point| point.domain.uuid == domain.uuid());
    points.reverse();
    Ok(points)
}

/// The plan, or with an error the plan without what could not be decided.
pub(crate) fn decide(
    host: &Host,
    domain: &DomainRef,
    options: &Options,
    names: &Names,
    points: &[Point],
    xml: &DomainXml,
    state: RunState,
) -> std::result::Result<Plan, (Box<Plan>, Error)> {
    let live = state != RunState::ShutOff;
    let mut plan = Plan {
        domain: Domain {
            uuid: domain.uuid(),
            name: domain.name().to_owned(),
        },
        source: if live {
            SourceKind::Live
        } else {
            SourceKind::Offline
        },
        disks: Vec::new(),
        left_out: Vec::new(),
        unsupported: Vec::new(),
        freeze: freeze_plan(options, state, xml.agent),
        checkpoint: false,
        socket_dir: None,
        leftovers: Vec::new(),
        obstacle: None,
    };
    match fill(&mut plan, host, domain, options, names, points, xml, live) {
        Ok(()) => Ok(plan),
        Err(error) => Err((Box::new(plan), error)),
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one step of `decide`, split off for `?`"
)]
fn fill(
    plan: &mut Plan,
    host: &Host,
    domain: &DomainRef,
    options: &Options,
    names: &Names,
    points: &[Point],
    xml: &DomainXml,
    live: bool,
) -> Result<()> {
    let sound = if live {
        checkpoints::sound(&domain.handle, names)?
    } else {
        Sound::new()
    };
    let mut no_scratch = None;
    for disk in &xml.disks {
        let left_out = |reason: String| LeftOut {
            target: disk.target.clone(),
            reason,
        };
        match fitness(disk, live) {
            Fitness::LeftOut(reason) => plan.left_out.push(left_out(reason)),
            Fitness::Unsupported(reason) => plan.unsupported.push(left_out(reason)),
            Fitness::Fit => {
                let size = domain
                    .handle
                    .capacity(&disk.target)
                    .map_err(Error::libvirt(format!(
                        "ask for the size of disk {}",
                        disk.target
                    )))?;
                let mut planned = disk_plan(disk, ByteLen(size), options, points, &sound, live);
                if live {
                    let beside = image_dir(&disk.source);
                    let named = options.scratch_dir.as_deref();
                    match places::scratch(beside.as_deref(), named, options.scratch_reserve) {
                        Ok(place) => planned.scratch = Some(place),
                        Err(error) => no_scratch = no_scratch.or(Some(error)),
                    }
                }
                plan.disks.push(planned);
            }
        }
    }
    plan.checkpoint = live && !options.no_checkpoint && plan.disks.iter().any(|disk| disk.bitmap);
    if live {
        let dirs = places::socket_dirs(
            host.uri(),
            domain.handle.id(),
            options.socket_dir.as_deref(),
        );
        // Any point's name is as long as another's.
        let name = |private| names.socket(PointId::from_bytes([0; 10]), private);
        let path = places::socket_path(&dirs, name)?;
        plan.socket_dir = path.parent().map(Path::to_owned);
    }
    no_scratch.map_or(Ok(()), Err)
}

enum Fitness {
    Fit,
    LeftOut(String),
    Unsupported(String),
}

/// Whether a disk is to be backed up at all.
fn fitness(disk: &DiskXml, live: bool) -> Fitness {
    let unsupported = |reason: &str| Fitness::Unsupported(reason.into());
    let left_out = |reason: &str| Fitness::LeftOut(reason.into());
    match (&disk.device, &disk.source) {
        (Device::Cdrom, _) => left_out("CD-ROM"),
        (Device::Floppy, _) => left_out("floppy"),
        _ if disk.readonly => left_out("read-only"),
        (_, SourceXml::None) => left_out("no medium"),
        (Device::Other(kind), _) => {
            Fitness::Unsupported(format!("device {kind:?}: QEMU does not see its writes"))
        }
        (_, SourceXml::Other(kind)) => Fitness::Unsupported(format!("source of type {kind:?}")),
        _ if disk.shareable => {
            unsupported("shared with other machines, whose writes QEMU does not see")
        }
        _ if disk.transient => unsupported("transient: what is written to it is not kept"),
        (_, SourceXml::Network(_)) if !live => {
            unsupported("network disk of a domain that is shut off: start the domain")
        }
        _ if disk.encrypted && !live => {
            unsupported("encrypted disk of a domain that is shut off: start the domain")
        }
        _ => Fitness::Fit,
    }
}

fn freeze_plan(options: &Options, state: RunState, agent: Agent) -> FreezePlan {
    let skip = |reason: &str| FreezePlan::Skip(reason.into());
    match (state, agent) {
        _ if options.no_freeze => skip("not wanted"),
        (RunState::ShutOff, _) => skip("the domain is shut off"),
        (RunState::Running, Agent::Connected) => FreezePlan::Freeze,
        (RunState::Running, Agent::NotConfigured) => skip("the domain has no guest agent channel"),
        (RunState::Running, Agent::Disconnected) => skip("no guest agent is running in the guest"),
        _ => skip("the guest is paused"),
    }
}

fn disk_plan(
    disk: &DiskXml,
    size: ByteLen,
    options: &Options,
    points: &[Point],
    sound: &Sound,
    live: bool,
) -> DiskPlan {
    let no_bitmap = why_no_bitmap(disk);
    let mut plan = DiskPlan {
        target: disk.target.clone(),
        size,
        format: disk.format.clone(),
        location: disk.source.location(),
        backing: disk.backing.iter().map(SourceXml::location).collect(),
        mode: CaptureMode::Full,
        reason: String::new(),
        parent: newest_with(points, &disk.target).map(|(point, disk)| (point.id, disk.clone())),
        since: None,
        bitmap: live && no_bitmap.is_none(),
        scratch: None,
        overlay_cluster: (!disk.backing.is_empty())
            .then(|| overlay::cluster_size(disk.source.path().map(Path::new))),
    };
    plan.reason = match no_bitmap {
        _ if options.full => "a full read was asked for".into(),
        _ if !live => "the domain is shut off".into(),
        _ if points.is_empty() => "first backup".into(),
        _ if plan.parent.is_none() => "new disk: no earlier point holds it".into(),
        Some(reason) => reason,
        None => match proved_parent(disk, size, points, sound) {
            Ok((point, parent, checkpoint)) => {
                plan.mode = CaptureMode::Incremental;
                plan.parent = Some((point.id, parent.clone()));
                plan.since = Some(checkpoint.to_owned());
                format!("changes since {}", point.id)
            }
            Err(reason) => reason,
        },
    };
    plan
}

fn newest_with<'a>(points: &'a [Point], target: &str) -> Option<(&'a Point, &'a Disk)> {
    points.iter().find_map(|point| {
        let disk = point.disks.iter().find(|disk| disk.target == target)?;
        Some((point, disk))
    })
}

/// The newest point that the disk can be proved to have changed from only where a sound bitmap
/// says so; else why the newest one is not it.
fn proved_parent<'a>(
    disk: &DiskXml,
    size: ByteLen,
    points: &'a [Point],
    sound: &Sound,
) -> std::result::Result<(&'a Point, &'a Disk, &'a str), String> {
    let mut newest_reason = None;
    for point in points {
        let Some(parent) = point.disks.iter().find(|d| d.target == disk.target) else {
            continue;
        };
        match proof(disk, size, parent, sound) {
            Ok(checkpoint) => return Ok((point, parent, checkpoint)),
            Err(reason) => newest_reason = newest_reason.or(Some(reason)),
        }
    }
    Err(newest_reason.unwrap_or_else(|| "no earlier point holds it".into()))
}

fn proof<'a>(
    disk: &DiskXml,
    size: ByteLen,
    parent: &'a Disk,
    sound: &Sound,
) -> std::result::Result<&'a str, String> {
    let Some(checkpoint) = parent.checkpoint.as_deref() else {
        return Err("the last point was made without a checkpoint".into());
    };
    let Some(disks) = sound.get(checkpoint) else {
        return Err("the checkpoint of the last point is gone".into());
    };
    if !disks.contains(&disk.target) {
        return Err("the bitmap of the last point is missing or broken".into());
    }
    let chain: Vec<String> = std::iter::once(&disk.source)
        .chain(&disk.backing)
        .map(SourceXml::location)
        .collect();
    let Some(place) = chain.iter().position(|image| *image == parent.location) else {
        return Err(format!("the disk was replaced: was {}", parent.location));
    };
    // Merging images can take away the traces of what happened to an overlay.
    if chain[place + 1..] != parent.backing {
        return Err("its backing images changed".into());
    }
    if disk.format != parent.format {
        return Err(format!("the format changed: was {}", parent.format));
    }
    if size < parent.size {
        return Err(format!("the size shrank: was {}", parent.size));
    }
    Ok(checkpoint)
}

/// Why a disk cannot carry a dirty bitmap.
fn why_no_bitmap(disk: &DiskXml) -> Option<String> {
    if disk.format != "qcow2" {
        return Some(format!("{} image has no dirty bitmap", disk.format));
    }
    let old = disk
        .source
        .path()
        .is_some_and(|path| qcow2_version(Path::new(path)) == Some(2));
    old.then(|| {
        "qcow2 image of version 2 has no dirty bitmap (`qemu-img amend -o compat=1.1`)".into()
    })
}

/// The version in the header of a qcow2 image, where it can be read.
fn qcow2_version(path: &Path) -> Option<u32> {
    let mut header = [0; 8];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    let [b'Q', b'F', b'I', 0xfb, version @ ..] = header else {
        return None;
    };
    Some(u32::from_be_bytes(version))
}

/// The directory of an image file; a block device has none that scratch files could go to.
fn image_dir(source: &SourceXml) -> Option<PathBuf> {
    match source {
        SourceXml::File(path) => Path::new(path).parent().map(Path::to_owned),
        _ => None,
    }
}

/// The newest checkpoint that the points know of, where libvirt does not: it may have lost its
/// metadata while the bitmap is still there.
pub(crate) fn lost_checkpoint<'a>(
    domain: &DomainRef,
    names: &Names,
    points: &'a [Point],
) -> Option<(&'a str, Vec<&'a str>)> {
    let point = points.iter().find(|point| point.checkpoint.is_some())?;
    let name = point.checkpoint.as_deref()?;
    let known = checkpoints::ours(&domain.handle, names).ok()?;
    let disks = point.disks.iter().filter(|disk| disk.checkpoint.is_some());
    (!known.iter().any(|known| known == name))
        .then(|| (name, disks.map(|disk| &*disk.target).collect()))
}

fn note_lost_checkpoint(plan: &mut Plan, domain: &DomainRef, names: &Names, points: &[Point]) {
    let Some((name, targets)) = lost_checkpoint(domain, names, points) else {
        return;
    };
    for disk in &mut plan.disks {
        let concerned = targets.contains(&&*disk.target) && disk.bitmap;
        if concerned && disk.mode == CaptureMode::Full {
            disk.reason.push_str(&format!(
                "; incremental if the bitmap of {name} is still in the image"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
