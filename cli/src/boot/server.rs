//! The server of a recovery: a process that serves its point to QEMU alone, and survives the command that
//! started it, and its terminal.
//!
//! The guest reads from it until all data has been moved, so it must come back when it is killed: its
//! parent, the keeper ([`super::keeper`]), sees to that, and holds the lock that says so. Should both be gone,
//! as after a reboot, `boot --status` and `boot --finish` start them again. Neither holds a lock of the
//! command that started it; what they have to say is in the recovery's log file.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nbd_server::{Client, Export, ExportMap, Exports, Listener, OpenError, Running, Server};
use rustix::process::{Pid, Signal, getppid};
use virtkeep_repo::{PointId, Repository};

use super::damage::{self, Fragile, Ledger};
use super::place;
use super::record::{self, Pinned, Recovery};
use super::work;
use crate::context::Context;
use crate::serve::catalog::Catalog;
use crate::serve::room::Room;
use crate::signals::Signals;

/// The word for the hidden command.
pub(crate) const WORD: &str = "boot-server";

/// How long a server may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may that has ended before, and is started again: its keeper may pause before that.
const PATIENCE_MIN: Duration = Duration::from_secs(15);
/// What its keeper says of such a one begins with this.
pub(super) const ENDED: &str = "the server has ended, and is started again";
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long requests that have arrived may take once the server was asked to end.
const GRACE: Duration = Duration::from_secs(10);

/// Who looks after a server.
pub(super) struct Keeper {
    pub(super) pid: Pid,
    /// The pin of the recovery that it serves.
    pub(super) pin: String,
    /// What is in its way.
    pub(super) troubles: Vec<String>,
}

/// Makes sure that the recovery is served. Returns whether a server had to be started.
pub(crate) fn ensure(context: &Context, pinned: &Pinned) -> Result<bool> {
    ensure_within(context, pinned, PATIENCE)
}

/// The same for one who will not wait as long.
pub(crate) fn ensure_within(
    context: &Context,
    pinned: &Pinned,
    patience: Duration,
) -> Result<bool> {
    let recovery = &pinned.recovery;
    place::make_socket_directory(&recovery.socket)?;
    let mut started = None;
    let began = Instant::now();
    loop {
        let keeper = keeper(recovery)?;
        if let Some(keeper) = &keeper
            && keeper.pin != pinned.pin
        {
            bail!(
                "{} is served to another recovery of the same name, from another repository: end that first",
                recovery.socket.display()
            );
        }
        if keeper.is_some() && is_serving(recovery) {
            return Ok(started.is_some());
        }
        let ends_again_and_again = |keeper: &Keeper| {
            let mut troubles = keeper.troubles.iter();
            troubles.any(|trouble| trouble.starts_with(ENDED))
        };
        let hopeless =
            began.elapsed() > PATIENCE_MIN && keeper.as_ref().is_some_and(ends_again_and_again);
        if hopeless || began.elapsed() > patience {
            let troubles = keeper.map(|keeper| keeper.troubles.join("; "));
            bail!(
                "the server does not answer: {}",
                troubles
                    .filter(|troubles| !troubles.is_empty())
                    .unwrap_or_else(|| format!("see {}", recovery.log().display()))
            );
        }
        if let Some(child) = &mut started {
            let child: &mut Child = child;
            if let Some(status) = child.try_wait()?
                && keeper.is_none()
            {
                bail!(
                    "the server has ended ({status}): {}",
                    last_line(&recovery.log())
                );
            }
        } else if keeper.is_none() {
            started = Some(start(context, pinned)?);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
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

/// Ends the server and its keeper, and removes socket and lock. Nothing happens where there is none. Whoever
/// calls this has the work, so that nobody starts another one.
pub(crate) fn stop(pinned: &Pinned) -> Result<()> {
    let recovery = &pinned.recovery;
    let deadline = Instant::now() + PATIENCE;
    while let Some(keeper) = keeper(recovery)? {
        if keeper.pin != pinned.pin {
            return Ok(());
        }
        // Gone meanwhile is as good.
        let _ = rustix::process::kill_process(keeper.pid, Signal::TERM);
        if Instant::now() > deadline {
            let pid = keeper.pid.as_raw_pid();
            bail!("the server (process {pid}) does not end");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    remove_traces(recovery)
}

/// Removes what a server that has ended leaves beside the images.
pub(super) fn remove_traces(recovery: &Recovery) -> Result<()> {
    remove(&recovery.socket)?;
    remove(&recovery.unreadable())?;
    remove(&recovery.keeper_file())
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

/// Who looks after the server on this socket, if anybody does: only then the lock is held, and what is in the
/// file is right.
pub(super) fn keeper(recovery: &Recovery) -> Result<Option<Keeper>> {
    let path = recovery.keeper_file();
    if !work::is_locked(&path)? {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    // Not written yet: whoever looks again will see it.
    let mut lines = text.lines().map(str::to_owned);
    let first = lines.next().unwrap_or_default();
    Ok(first.split_once(' ').and_then(|(pid, pin)| {
        Some(Keeper {
            pid: Pid::from_raw(pid.parse().ok()?)?,
            pin: pin.to_owned(),
            troubles: lines.collect(),
        })
    }))
}

fn start(context: &Context, pinned: &Pinned) -> Result<Child> {
    let log = pinned.recovery.log();
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let mut command = this_program(context, &pinned.pin)?;
    if pinned.same_host {
        command.arg("--same-host");
    }
    // It lives longer than whoever has started us, and may wait for a lock or a pipe to be closed.
    virtkeep_capture::keep_from_programs();
    command
        .current_dir("/")
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot start the server")
}

/// The hidden command, without any standard files yet.
pub(super) fn this_program(context: &Context, pin: &str) -> Result<Command> {
    let repository = std::path::absolute(context.repository_path()?)?;
    // The program as it runs now, even if an update has replaced its file since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("virtkeep").arg("--repository").arg(repository);
    if context.unsafe_network_fs() {
        command.arg("--unsafe-network-fs");
    }
    command.args([WORD, pin]).stdin(Stdio::null());
    Ok(command)
}

/// The last that a server has said.
pub(super) fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").to_owned()
}

/// Serves the disks of the recovery until it is told to end, or its parent, the keeper, ends.
pub(crate) fn serve(context: &Context, pin: &str, keeper: i32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid().map(Pid::as_raw_pid) != Some(keeper) {
        return Ok(());
    }
    let signals = Signals::asking_to_end()?;
    let repo = context.open_to_read()?;
    let Some(pinned) = Pinned::of(&repo, pin)? else {
        return Ok(());
    };
    let recovery = &pinned.recovery;
    let targets: Vec<&str> = recovery.disks.iter().map(|disk| &disk.target[..]).collect();
    // What is made anew is as sound as it is known to be.
    damage::take(recovery);
    let ledger = Arc::new(Ledger::of(recovery, context)?);
    let to_mend = Arc::new(context.open_to_read()?);
    let server = Serving {
        repo,
        point: pinned.point,
        targets: &targets,
        socket: &recovery.socket,
        qemu: recovery.qemu,
    }
    .start_with(context, |target, served| {
        let disk = Fragile::open(served, target, pinned.point, &to_mend, &ledger)?;
        Ok(Arc::new(disk))
    })?;
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
        self.start_with(context, |_, served| Ok(served?))
    }

    /// Starts serving what `of` makes of each disk, by its target.
    fn start_with(
        self,
        context: &Context,
        of: impl Fn(&str, Result<Arc<dyn Export>, OpenError>) -> Result<Arc<dyn Export>>,
    ) -> Result<Running> {
        let (zone, reporter) = (context.zone.clone(), context.reporter.clone());
        let domain = self.repo.point(self.point)?.domain.uuid;
        let names = self.targets.iter();
        let names = names.map(|target| format!("{domain}/{target}@{}", self.point));
        let chosen = names.clone().map(|name| context.parse_point(&name));
        let chosen = chosen.collect::<Result<Vec<_>>>()?;
        let room = Room::take();
        let catalog = Catalog::new(self.repo, chosen, zone, reporter, room.disks_max)?;
        let mut exports = ExportMap::new();
        for (target, name) in self.targets.iter().zip(names) {
            // Kept open: a client that comes back finds it as it was.
            let disk = of(target, catalog.open(&name, &Client::default()))?;
            let export = record::export(self.point, target);
            exports = exports.with(export, disk);
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
