//! `virtkeep mount`: all points as files in a directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use crossbeam_channel::RecvTimeoutError;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;
use serde::Serialize;

use crate::context::Context;
use crate::exit::{Exit, usage};
use crate::mount::filesystem::PointFiles;
use crate::output::shown;
use crate::serve::catalog::Catalog;
use crate::signals::Signals;

/// How long files that are open may stay so once the mount was asked to end.
const GRACE: Duration = Duration::from_secs(30);

/// Requests that are answered at the same time.
const THREADS_MAX: usize = 8;

/// Show every disk of every point as a read-only file, until stopped
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep mount /mnt/points
  ls /mnt/points/web1
  mount -o loop,ro,noload /mnt/points/web1/latest/vda.p1.raw /mnt/web1

DIR/web1/2026-11-22T22:11:07 holds vda.raw for a disk, vda.p1.raw for its first
partition, and domain.xml. New points appear by themselves, and what is not
open can be forgotten meanwhile.

Ctrl-C, SIGTERM, or `umount DIR` ends it.")]
pub(crate) struct Args {
    /// Where: an empty directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Let all users of this machine read all of it
    #[arg(long)]
    allow_other: bool,
}

/// Printed once the files are there, for programs.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    directory: &'a str,
}

enum Event {
    Signal,
    /// By `umount`, or because the connection to the kernel broke.
    Ended(std::io::Result<()>),
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let directory = &empty_directory(&args.directory)?;
    let repo = context.open_to_read()?;
    // Names what is damaged, once.
    context.points(&repo)?;
    let name = format!("virtkeep-{}", &repo.id().to_string()[..8]);
    let catalog = Catalog::new(
        repo,
        Vec::new(),
        context.zone.clone(),
        context.reporter.clone(),
    );
    let files = PointFiles::new(catalog, args.allow_other);
    // Before there is a mount, so that no signal leaves it behind.
    let signals = Signals::asking_to_end()?;
    let mut session = mount(files, directory, &name, args.allow_other)?;
    let mut unmounter = session.unmount_callable();
    let (sender, events) = crossbeam_channel::unbounded();
    let ended = sender.clone();
    std::thread::spawn(move || ended.send(Event::Ended(session.run())));
    std::thread::spawn(move || {
        signals.wait();
        sender.send(Event::Signal)
    });
    let path = directory.to_string_lossy();
    context.output.json(&Line {
        r#type: "mounted",
        directory: &path,
    })?;
    context.output.text(&format!(
        "All points are below {}. Ctrl-C ends it.",
        shown(&path)
    ))?;

    if let Event::Ended(result) = events.recv()? {
        result.context("the connection to the kernel broke")?;
        return Ok(Exit::Done);
    }
    if let Err(error) = unmounter.unmount() {
        context.reporter.note(&format!(
            "ending: something in {} is still in use ({error}); it is unmounted now, and ends with that",
            shown(&path)
        ));
        rustix::mount::unmount(directory, UnmountFlags::DETACH)
            .map_err(std::io::Error::from)
            .with_context(|| format!("cannot unmount {}", directory.display()))?;
    }
    match events.recv_timeout(GRACE) {
        // How the connection breaks that we have asked to end does not matter.
        Ok(_) | Err(RecvTimeoutError::Disconnected) => {}
        Err(RecvTimeoutError::Timeout) => bail!(
            "files of the mount were still open after {} s; whoever has them open gets errors now",
            GRACE.as_secs()
        ),
    }
    Ok(Exit::Done)
}

/// The directory, absolute, if something can be mounted there.
fn empty_directory(directory: &Path) -> Result<PathBuf> {
    let shown = directory.display();
    let mut entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            return Err(match error.kind() {
                std::io::ErrorKind::NotFound => {
                    usage(format!("there is no directory {shown}: make it first"))
                }
                std::io::ErrorKind::NotADirectory => {
                    usage(format!("{shown} is no directory: mount needs an empty one"))
                }
                std::io::ErrorKind::NotConnected => usage(format!(
                    "{shown} is a mount whose program is gone: run `umount {shown}` first"
                )),
                _ => anyhow::Error::new(error).context(format!("cannot look into {shown}")),
            });
        }
    };
    if entries.next().is_some() {
        return Err(usage(format!(
            "{shown} is not empty: mount needs an empty directory, so that nothing is hidden"
        )));
    }
    directory
        .canonicalize()
        .with_context(|| format!("cannot find {shown}"))
}

fn mount(
    files: PointFiles,
    directory: &Path,
    name: &str,
    allow_other: bool,
) -> Result<Session<PointFiles>> {
    const DEVICE: &str = "/dev/fuse";
    if !Path::new(DEVICE).exists() {
        bail!(
            "there is no {DEVICE}: load the kernel module with `modprobe fuse`, or use `virtkeep serve`, which needs none"
        );
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(name.to_owned()),
        MountOption::Subtype("virtkeep".to_owned()),
    ];
    config.acl = if allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some((2 * cores).min(THREADS_MAX));
    config.clone_fd = true;
    // What fusermount3 says ends with a line break.
    let trimmed = |error: std::io::Error| {
        std::io::Error::new(error.kind(), error.to_string().trim().to_owned())
    };
    let session = Session::new(files, directory, &config).map_err(trimmed);
    session.with_context(|| {
        let root = rustix::process::geteuid().is_root();
        let hint = match (root, allow_other) {
            (true, _) => "",
            (false, false) => " (users other than root need fusermount3, from the package fuse3)",
            (false, true) => {
                " (users other than root need fusermount3, and user_allow_other in /etc/fuse.conf)"
            }
        };
        format!("cannot mount on {}{hint}", directory.display())
    })
}
