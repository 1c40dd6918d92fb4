//! `virtkeep mount`: all points as files in a directory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::context::Context;
use crate::exit::{Exit, usage};
use crate::mount::filesystem::PointFiles;
use crate::mount::session::{Event, Mount, empty_directory};
use crate::output::shown;
use crate::serve::catalog::Catalog;
use crate::serve::room::disks_of_mount;
use crate::signals::Signals;

/// How long files that are open may stay so once the mount was asked to end.
const GRACE: Duration = Duration::from_secs(30);

/// How often somebody who waits without end looks whether he is asked to end.
const SLICE: Duration = Duration::from_millis(200);

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

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let directory = &empty_directory(&args.directory)?;
    let repo = context.open_to_read()?;
    if directory.starts_with(repo.path().canonicalize()?) {
        return Err(usage(format!(
            "{} is in the repository: mount needs a directory elsewhere",
            directory.display()
        )));
    }
    // Names what is damaged, once.
    context.points(&repo)?;
    let name = format!("virtkeep-{}", &repo.id().to_string()[..8]);
    let catalog = Catalog::new(
        repo,
        Vec::new(),
        context.zone.clone(),
        context.reporter.clone(),
        disks_of_mount(),
    )?;
    let (sender, events) = crossbeam_channel::unbounded();
    let files = PointFiles::new(catalog, args.allow_other, sender.clone());
    let open = files.open_files();
    // Before there is a mount, so that no signal leaves it behind.
    let signals = Signals::asking_to_end()?;
    let mount = Mount::new(files, directory, &name, args.allow_other, sender.clone())?;
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

    let why = events.recv()?;
    if why == Event::Ended && mount.is_there() {
        bail!("the kernel has broken the connection; the directory is unmounted");
    }
    if why == Event::Signal
        && let Err(error) = mount.unmount()
    {
        context.reporter.note(&format!(
            "ending: something in {} is still in use ({error}); it is unmounted now, and ends with that",
            shown(&path)
        ));
        mount
            .detach()
            .with_context(|| format!("cannot unmount {}", directory.display()))?;
    }
    // Who has unmounted it elsewhere may have files open for as long as nobody asks for the end.
    let mut is_asked = why == Event::Signal;
    while !is_asked && !open.wait_until_none(SLICE) {
        is_asked = events.try_iter().any(|event| event == Event::Signal);
    }
    if !open.wait_until_none(GRACE) {
        bail!(
            "files of the mount were still open after {} s; whoever has them open gets errors now",
            GRACE.as_secs()
        );
    }
    Ok(Exit::Done)
}
