//! The server of a recovery: a process of its own that survives the command and its terminal, and one
//! below it that serves.
//!
//! The guest reads from it until all data has been moved, so it must come back when it is killed: the
//! upper process does nothing but start the lower one again, and holds the lock that says somebody looks
//! after the recovery. Should both be gone, as after a reboot, `boot --status` and `boot --finish` start
//! them again. The lower one ends with the upper one. Neither holds a descriptor or a lock of the
//! command that started it; what they have to say is in the recovery's log file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nbd_server::{ExportMap, Exports, Listener, Running, Server};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Arriving;
use virtkeep_repo::{PointId, Repository};

use super::place;
use super::record::{Pinned, Recovery};
use crate::context::Context;
use crate::output::complain;
use crate::serve::catalog::Catalog;
use crate::serve::room::Room;
use crate::signals::Signals;

/// The word for the hidden command.
pub(crate) const WORD: &str = "boot-server";

/// How long a server may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long requests that have arrived may take once the server was asked to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long the upper process waits before it starts another lower one.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Makes sure that the recovery is served. Returns whether a server had to be started.
pub(crate) fn ensure(context: &Context, pinned: &Pinned) -> Result<bool> {
    let recovery = &pinned.recovery;
    place::make_socket_directory(&recovery.socket)?;
    if is_serving(recovery) {
        return Ok(false);
    }
    let mut started = None;
    let deadline = Instant::now() + PATIENCE;
    while !is_serving(recovery) {
        if Instant::now() > deadline {
            bail!(
                "the server does not answer: see {}",
                recovery.log().display()
            );
        }
        if started.is_none() && keeper(recovery)?.is_none() {
            started = Some(start(context, pinned)?);
        }
        if let Some(child) = &mut started
            && let Some(status) = child.try_wait()?
            && keeper(recovery)?.is_none()
        {
            bail!(
                "the server has ended ({status}): {}",
                last_line(&recovery.log())
            );
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(started.is_some())
}

/// Whether the recovery is served right now.
pub(crate) fn is_serving(recovery: &Recovery) -> bool {
    let Ok(socket) = std::fs::symlink_metadata(&recovery.socket) else {
        return false;
    };
    // It is QEMU's before the server is ready.
    let owner = recovery.qemu.map(|(user, _)| user);
    owner.is_none_or(|owner| socket.uid() == owner) && UnixStream::connect(&recovery.socket).is_ok()
}

/// Ends the server, and removes its socket and lock. Nothing happens where there is none.
pub(crate) fn stop(recovery: &Recovery) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(pid) = keeper(recovery)? {
        // Gone meanwhile is as good.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        if Instant::now() > deadline {
            bail!("the server (process {}) does not end", pid.as_raw_pid());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    for path in [&recovery.socket, &recovery.lock()] {
        remove(path)?;
    }
    Ok(())
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), NotFound | NotADirectory) => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The upper process, if it lives: only then the lock is held, and the number in it is right.
fn keeper(recovery: &Recovery) -> Result<Option<Pid>> {
    let path = recovery.lock();
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return Ok(None);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // Not written yet: whoever looks again will see it.
    Ok(text.trim().parse().ok().and_then(Pid::from_raw))
}

fn start(context: &Context, pinned: &Pinned) -> Result<Child> {
    let log = pinned.recovery.log();
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let mut command = this_program(context, &pinned.pin)?;
    command
        .current_dir("/")
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot start the server")
}

/// The hidden command, without any standard files yet.
fn this_program(context: &Context, pin: &str) -> Result<Command> {
    let repository = std::path::absolute(context.repository_path()?)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--repository").arg(repository);
    if context.unsafe_network_fs() {
        command.arg("--unsafe-network-fs");
    }
    command.args([WORD, pin]).stdin(Stdio::null());
    Ok(command)
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").to_owned()
}

/// The upper process: starts the lower one, again and again, until it is told to end.
pub(crate) fn keep(context: &Context, pin: &str) -> Result<()> {
    // From here on no terminal can end it. Fails where it leads a session already.
    let _ = rustix::process::setsid();
    let mut signals = Arriving::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?;
    let recovery = Pinned::of(&context.open_to_read()?, pin)?.recovery;
    let path = recovery.lock();
    let mut lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("somebody else looks after this recovery");
    }
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(std::process::id().to_string().as_bytes())?;
    let mut child = Some(start_lower(context, pin)?);
    let mut since = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        for signal in signals.wait() {
            if matches!(signal, SIGTERM | SIGINT) {
                if let Some(mut child) = child.take() {
                    let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
                    child.wait()?;
                }
                return Ok(());
            }
        }
        let Some(ended) = child
            .as_mut()
            .and_then(|child| child.try_wait().transpose())
        else {
            continue;
        };
        complain(&format!(
            "the server has ended ({}): starting it again",
            ended?
        ));
        if since.elapsed() > PATIENCE {
            pause = PAUSE_MIN;
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(PAUSE_MAX);
        child = Some(start_lower(context, pin)?);
        since = Instant::now();
    }
}

fn start_lower(context: &Context, pin: &str) -> Result<Child> {
    this_program(context, pin)?
        .arg("--serve")
        .spawn()
        .context("cannot start the server")
}

/// The lower process: serves the disks of the recovery until it is told to end.
pub(crate) fn serve(context: &Context, pin: &str) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let signals = Signals::asking_to_end()?;
    let repo = context.open_to_read()?;
    let Pinned {
        point, recovery, ..
    } = Pinned::of(&repo, pin)?;
    let targets: Vec<&str> = recovery.disks.iter().map(|disk| &disk.target[..]).collect();
    let server = Serving {
        repo,
        point,
        targets: &targets,
        socket: &recovery.socket,
        qemu: recovery.qemu,
    }
    .start(context)?;
    signals.wait();
    server.stop(GRACE)?;
    Ok(())
}

/// What is to be served to QEMU alone: disks of a point, each by its target.
pub(super) struct Serving<'a> {
    pub(super) repo: Repository,
    pub(super) point: PointId,
    pub(super) targets: &'a [&'a str],
    pub(super) socket: &'a Path,
    /// User and group of QEMU, where they are not ours.
    pub(super) qemu: Option<(u32, u32)>,
}

impl Serving<'_> {
    /// Starts serving.
    pub(super) fn start(self, context: &Context) -> Result<Running> {
        let (zone, reporter) = (context.zone.clone(), context.reporter.clone());
        let domain = self.repo.point(self.point)?.domain.uuid;
        let names = self.targets.iter();
        let names = names.map(|target| format!("{domain}/{target}@{}", self.point));
        let chosen = names.clone().map(|name| context.parse_point(&name));
        let chosen = chosen.collect::<Result<Vec<_>>>()?;
        let room = Room::take();
        let catalog = Catalog::new(self.repo, chosen, zone, reporter, room.disks_max);
        let mut exports = ExportMap::new();
        for (target, name) in self.targets.iter().zip(names) {
            // Kept open: a client that comes back finds it as it was.
            exports = exports.with(*target, catalog.open(&name)?);
        }
        let listener = Listener::unix(self.socket)?;
        if let Some((user, group)) = self.qemu {
            std::os::unix::fs::chown(self.socket, Some(user), Some(group))
                .context("cannot give the socket to QEMU's user")?;
        }
        let server = Server::new(Arc::new(exports)).with_limits(room.limits);
        Ok(server.start(vec![listener])?)
    }
}
