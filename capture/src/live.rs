//! Backing up a domain that runs or is paused.
//!
//! The order, each step of which is undone when a later one fails: clear what a dead run left →
//! plan → lease → freeze → job and checkpoint in one call → thaw → pull all disks → commit the
//! point → end the job → delete the checkpoints of earlier points. So until the point is durable,
//! the checkpoint before it is untouched, and afterwards exactly one of ours is left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libnbd::Endpoint;
use virtkeep_repo::{
    Backup, Consistency, Disk, Error as RepoError, Point, PointDraft, PointId, Repository,
    SourceKind, UnixMillis,
};

use crate::checkpoints;
use crate::domain_xml::DomainXml;
use crate::error::{Error, Result};
use crate::event::{Event, Journal};
use crate::files;
use crate::freeze::Frozen;
use crate::host::{DomainRef, Host};
use crate::job::{self, EXPORT_BITMAP, Found, JobDisk, JobFiles};
use crate::libvirt::{ErrorKind, LibvirtError, RunState};
use crate::names::Names;
use crate::nbd_source::{Changes, Export, NbdSource};
use crate::options::Options;
use crate::places;
use crate::plan::{self, FreezePlan, Plan};
use crate::pull::{self, Opened, pull};
use crate::running::{Running, delete_checkpoints_but, explain, look_after, resume_after_io_error};
use crate::stop::{Stop, lock, while_ticking};

/// How often starting the job is tried: each try repairs what the one before stumbled over.
const BEGIN_TRIES: u32 = 4;
/// How long the guest stays frozen at most while the job is being started.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// One capture of one domain, the domain being locked.
pub(crate) struct Capture<'a> {
    pub(crate) host: &'a Host,
    pub(crate) domain: &'a DomainRef,
    pub(crate) repo: &'a Repository,
    pub(crate) options: &'a Options,
    pub(crate) journal: &'a Journal<'a>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) names: Names,
}

/// What starting the job gave.
struct Moment {
    time: UnixMillis,
    consistency: Consistency,
}

/// Backs the domain up.
pub(crate) fn backup(capture: &Capture<'_>) -> Result<Point> {
    let mut xml = plan::read_xml(capture.host, capture.domain)?;
    clear_dead_run(capture, &xml)?;
    let state = capture.domain.state()?;
    if state == RunState::ShutOff {
        return Err(Error::DomainStopped {
            domain: capture.domain.name().to_owned(),
        });
    }
    let mut tries = 0;
    let (mut plan, backup) = loop {
        let points = plan::points_of(capture.repo, capture.domain)?;
        redefine_lost_checkpoint(capture, &points, &xml)?;
        let plan = plan::decide(
            capture.host,
            capture.domain,
            capture.options,
            &capture.names,
            &points,
            &xml,
            state,
        )
        .map_err(|(_, error)| error)?;
        if !capture.options.skip_unsupported && !plan.unsupported.is_empty() {
            return Err(plan.unsupported_error());
        }
        if plan.disks.is_empty() {
            return Err(plan.no_disks_error());
        }
        tries += 1;
        match capture
            .repo
            .begin_backup(&plan.parents(), &capture.options.command)
        {
            // A parent was forgotten since the points were listed.
            Err(RepoError::NoSuchPoint { .. }) if tries < 3 => {
                xml = plan::read_xml(capture.host, capture.domain)?;
            }
            other => break (plan, other?),
        }
    };
    announce(capture, &plan, backup.point_id());
    let (mut running, moment) = begin(capture, &mut plan, &xml, state, backup.point_id())?;
    let files = check_disks(capture, &plan).and_then(|()| {
        files::store(
            &backup,
            capture.host,
            capture.domain,
            &xml,
            state,
            capture.journal,
        )
    });
    let result = files.and_then(|files| {
        let disks = watched_pull(capture, &running, &plan, &backup)?;
        Ok((files, disks))
    });
    let (mut files, disks) = match result {
        Ok(done) => done,
        Err(error) => return Err(running.give_up(error)),
    };
    files.push(files::store_log(&backup, capture.journal)?);
    let point = backup.commit(PointDraft {
        domain: plan.domain.clone(),
        source: SourceKind::Live,
        host: capture.host.name().to_owned(),
        time: moment.time,
        consistency: moment.consistency,
        checkpoint: running.checkpoint.clone(),
        disks,
        files,
        tags: capture.options.tags.clone(),
    })?;
    capture.journal.event(Event::Committed { point: point.id });
    // From here on nothing may fail: the point exists.
    let kept = running.checkpoint.take();
    running.end();
    if !running.is_stuck {
        delete_checkpoints_but(capture, kept.as_deref(), &running.all_disks);
    }
    Ok(point)
}

pub(crate) fn announce(capture: &Capture<'_>, plan: &Plan, point: PointId) {
    let journal = capture.journal;
    journal.event(Event::Started {
        domain: plan.domain.name.clone(),
        point,
    });
    for disk in &plan.left_out {
        journal.event(disk.event());
    }
    for disk in &plan.unsupported {
        journal.event(disk.event());
        journal.warn(format!("disk {} is not part of the backup", disk.target));
    }
    for disk in &plan.disks {
        journal.event(disk.event());
        if let Some(scratch) = &disk.scratch {
            journal.event(Event::Scratch {
                target: disk.target.clone(),
                dir: scratch.dir.clone(),
                free: scratch.free,
            });
        }
    }
}

/// Ends a job that a dead run of ours left, and removes its files. We hold the domain's lock, so
/// no living run has any.
fn clear_dead_run(capture: &Capture<'_>, xml: &DomainXml) -> Result<()> {
    let handle = &capture.domain.handle;
    let journal = capture.journal;
    if let Found::Ours(files) = job::current(capture.domain, &capture.names)? {
        job::end(handle, &capture.names, &files)
            .map_err(Error::libvirt("end the job that an earlier run left"))?;
        journal.event(Event::Cleared {
            what: "its backup job".into(),
        });
        resume_after_io_error(capture, true);
    }
    remove_stale_files(capture, xml);
    Ok(())
}

/// Removes sockets and scratch files of dead runs, there being no job of ours.
pub(crate) fn remove_stale_files(capture: &Capture<'_>, xml: &DomainXml) {
    let dirs = places::socket_dirs(
        capture.host.uri(),
        capture.domain.handle.id(),
        capture.options.socket_dir.as_deref(),
    );
    let image_dirs = xml
        .disks
        .iter()
        .flat_map(|disk| std::iter::once(&disk.source).chain(&disk.backing))
        .filter_map(|source| Path::new(source.path()?).parent());
    let private = dirs.iter().find(|dir| dir.private);
    let dirs: Vec<&Path> = image_dirs
        .chain(capture.options.scratch_dir.as_deref())
        .chain([Path::new(places::SCRATCH_DEFAULT)])
        .chain(dirs.iter().map(|dir| dir.dir.as_path()))
        .collect();
    let private = private.map(|dir| &*dir.dir);
    for path in places::remove_stale_files(&dirs, private, &capture.names) {
        capture.journal.event(Event::Cleared {
            what: path.display().to_string(),
        });
    }
}

/// A checkpoint whose metadata libvirt has lost (moved host, renamed domain) is defined again.
fn redefine_lost_checkpoint(
    capture: &Capture<'_>,
    points: &[Point],
    xml: &DomainXml,
) -> Result<()> {
    let Some((name, disks)) = plan::lost_checkpoint(capture.domain, &capture.names, points) else {
        return Ok(());
    };
    let all: Vec<&str> = xml.disks.iter().map(|disk| &*disk.target).collect();
    let disks: Vec<&str> = disks
        .into_iter()
        .filter(|disk| all.contains(disk))
        .collect();
    if disks.is_empty() {
        return Ok(());
    }
    if checkpoints::redefine_lost(&capture.domain.handle, name, &disks, &all)? {
        capture.journal.note(format!(
            "libvirt had forgotten checkpoint {name}: defined again"
        ));
    }
    Ok(())
}

/// Freezes, starts the job with its checkpoint, thaws. What libvirt refuses because of a bitmap is
/// repaired by reading that disk in full.
fn begin<'a>(
    capture: &'a Capture<'a>,
    plan: &mut Plan,
    xml: &DomainXml,
    state: RunState,
    point: PointId,
) -> Result<(Running<'a>, Moment)> {
    let handle = &capture.domain.handle;
    let dirs = places::socket_dirs(
        capture.host.uri(),
        handle.id(),
        capture.options.socket_dir.as_deref(),
    );
    let socket = places::socket_path(&dirs, |private| capture.names.socket(point, private))?;
    let scratch: Vec<PathBuf> = plan
        .disks
        .iter()
        .map(|disk| {
            let dir = disk.scratch.as_ref().map(|scratch| scratch.dir.as_path());
            dir.unwrap_or(Path::new(places::SCRATCH_DEFAULT))
                .join(capture.names.scratch(point, &disk.target))
        })
        .collect();
    let all_disks: Vec<String> = xml.disks.iter().map(|disk| disk.target.clone()).collect();
    for attempt in 1.. {
        if capture.stop.user_wants_it() {
            return Err(Error::Cancelled);
        }
        let checkpoint = plan.checkpoint.then(|| capture.names.checkpoint(point));
        let files = JobFiles {
            socket: Some(socket.clone()),
            scratch: scratch.clone(),
        };
        let running = Running::new(capture, files, checkpoint, all_disks.clone(), state);
        let (job_xml, checkpoint_xml) = descriptions(plan, &running);
        let (begun, moment) = in_one_moment(capture, plan, || {
            handle.backup_begin(&job_xml, checkpoint_xml.as_deref())
        });
        let Err(refused) = begun else {
            capture.journal.event(Event::Begun {
                checkpoint: running.checkpoint.clone(),
            });
            return Ok((running, moment));
        };
        // Undoes what may be there all the same, the checkpoint above all.
        drop(running);
        if attempt >= BEGIN_TRIES || !repair(capture, plan, &refused) {
            return Err(begin_error(capture, refused));
        }
    }
    unreachable!("the loop has no end of its own")
}

/// An error if a disk is not the one any more that the plan was made for. Nobody exchanges it while
/// the job is there.
fn check_disks(capture: &Capture<'_>, plan: &Plan) -> Result<()> {
    let now = plan::read_xml(capture.host, capture.domain)?;
    let is_there = |planned: &plan::DiskPlan| {
        now.disks.iter().any(|disk| {
            disk.target == planned.target
                && disk.source.location() == planned.location
                && disk.format == planned.format
        })
    };
    match plan.disks.iter().find(|planned| !is_there(planned)) {
        None => Ok(()),
        Some(changed) => Err(Error::DiskExchanged {
            domain: capture.domain.name().to_owned(),
            disk: changed.target.clone(),
        }),
    }
}

/// Calls `begin` while the guest is frozen, if it is to be, and never for longer than the limit.
fn in_one_moment(
    capture: &Capture<'_>,
    plan: &Plan,
    begin: impl FnOnce() -> std::result::Result<(), LibvirtError> + Send,
) -> (std::result::Result<(), LibvirtError>, Moment) {
    let mut frozen = match &plan.freeze {
        FreezePlan::Freeze => Some(Frozen::freeze(
            capture.host,
            capture.domain,
            capture.options,
            capture.journal,
        )),
        FreezePlan::Skip(reason) => {
            capture.journal.event(Event::FreezeSkipped {
                reason: reason.clone(),
            });
            None
        }
    };
    let (answer, begun) = crossbeam_channel::bounded(1);
    std::thread::scope(|scope| {
        scope.spawn(|| answer.send(begin()));
        let mut first = begun.recv_timeout(FREEZE_LIMIT);
        if first.is_err() {
            if frozen.take().is_some_and(|frozen| frozen.is_frozen()) {
                capture.journal.warn(format!(
                    "libvirt had not begun the backup after {} s: the guest was thawed before",
                    FREEZE_LIMIT.as_secs()
                ));
            }
            first = begun.recv().map_err(Into::into);
        }
        let time = capture.journal.now();
        // What the guest does after the job was started is not in the point.
        let consistency = match frozen.is_some_and(Frozen::thaw) {
            true => Consistency::Frozen,
            false => Consistency::Crash,
        };
        let begun = first.unwrap_or_else(|_| Err(LibvirtError::no_answer(FREEZE_LIMIT)));
        (begun, Moment { time, consistency })
    })
}

/// The XML of job and checkpoint.
fn descriptions(plan: &Plan, running: &Running<'_>) -> (String, Option<String>) {
    let disks: Vec<JobDisk<'_>> = plan
        .disks
        .iter()
        .zip(&running.files.scratch)
        .map(|(disk, scratch)| JobDisk {
            target: &disk.target,
            since: disk.since.as_deref(),
            scratch,
        })
        .collect();
    let others = |is_in: &dyn Fn(&str) -> bool| -> Vec<&str> {
        let all = running.all_disks.iter().map(String::as_str);
        all.filter(|target| !is_in(target)).collect()
    };
    let in_job = |target: &str| plan.disks.iter().any(|disk| disk.target == target);
    let carriers: Vec<&str> = plan
        .disks
        .iter()
        .filter(|disk| disk.bitmap)
        .map(|disk| &*disk.target)
        .collect();
    let socket = running.files.socket.as_deref().unwrap_or(Path::new(""));
    let job = job::xml(socket, &disks, &others(&in_job));
    let checkpoint = running.checkpoint.as_ref().map(|name| {
        checkpoints::xml(
            name,
            &carriers,
            &others(&|target| carriers.contains(&target)),
        )
    });
    (job, checkpoint)
}

/// Changes the plan so that it avoids what libvirt refused. Whether that is worth another try.
fn repair(capture: &Capture<'_>, plan: &mut Plan, refused: &LibvirtError) -> bool {
    let journal = capture.journal;
    match refused.kind() {
        ErrorKind::NoCheckpoint | ErrorKind::CheckpointInconsistent => {
            let named = |target: &str| refused.message().contains(&format!("disk '{target}'"));
            let any_named = plan.disks.iter().any(|disk| named(&disk.target));
            let mut changed = false;
            for disk in &mut plan.disks {
                if disk.since.is_some() && (!any_named || named(&disk.target)) {
                    disk.read_in_full(format!("libvirt refused its bitmap: {refused}"));
                    journal.event(disk.event());
                    changed = true;
                }
            }
            changed
        }
        ErrorKind::Internal if refused.message().contains("qcow2 v2") => {
            plan.checkpoint = false;
            for disk in &mut plan.disks {
                disk.bitmap = false;
            }
            journal.warn(format!("no checkpoint is made: {refused}"));
            true
        }
        _ => false,
    }
}

fn begin_error(capture: &Capture<'_>, source: LibvirtError) -> Error {
    let domain = capture.domain.name().to_owned();
    match source.kind() {
        _ if capture
            .domain
            .state()
            .is_ok_and(|state| state == RunState::ShutOff) =>
        {
            Error::DomainStopped { domain }
        }
        ErrorKind::Timeout => Error::DomainBusy { domain, source },
        _ => Error::Begin { domain, source },
    }
}

/// Reads all disks with an eye on scratch space, guest, and the user's wish to stop.
fn watched_pull(
    capture: &Capture<'_>,
    running: &Running<'_>,
    plan: &Plan,
    backup: &Backup,
) -> Result<Vec<Disk>> {
    let stop = &capture.stop;
    let verdict: Mutex<Option<Error>> = Mutex::default();
    let watch = || {
        if let Err(error) = look_after(capture, plan, running.was_running) {
            lock(&verdict).get_or_insert(error);
            stop.stop();
        }
    };
    let socket = running.files.socket.clone().unwrap_or_default();
    let connections = pull::connections(plan.disks.len());
    let result = while_ticking(stop, watch, || {
        pull(
            backup,
            &plan.disks,
            running.checkpoint.as_deref(),
            capture.journal,
            stop,
            |disk| {
                let changes = disk.since.as_ref().and(disk.parent.as_ref());
                let source = NbdSource::open(
                    Export {
                        disk: disk.target.clone(),
                        endpoint: Endpoint::unix(&socket),
                        name: disk.target.clone(),
                        changes: changes.map(|(_, parent)| Changes {
                            context: format!("qemu:dirty-bitmap:{EXPORT_BITMAP}"),
                            parent_size: parent.size,
                            overlay_cluster: disk.overlay_cluster,
                        }),
                        connections,
                    },
                    Arc::clone(stop),
                )?;
                let incremental = source.is_incremental();
                Ok(Opened {
                    source: Box::new(source),
                    incremental,
                })
            },
        )
    });
    // Also after a success: what was read while the job was there may have been read too late.
    let verdict = lock(&verdict).take();
    match (result, verdict) {
        (_, Some(error)) => Err(error),
        (Err(_), None) if stop.user_wants_it() => Err(Error::Cancelled),
        (Err(error), None) => Err(explain(capture, running, error)),
        (Ok(disks), None) => Ok(disks),
    }
}
