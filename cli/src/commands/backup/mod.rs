//! `virtkeep backup`: makes a point of each of some domains, of an image, or of an NBD export.
//!
//! Domains are taken one after the other; one that fails does not keep the others from being backed
//! up, and the exit code says so.

mod dry_run;
mod lines;
pub(super) mod watch;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use virtkeep_capture::{DomainRef, Error, Host, ImageSource, Options};
use virtkeep_repo::{Cancel, Point, Repository};

use self::lines::{ErrorLine, MadePointLine, SkippedLine, SummaryLine};
use self::watch::Watch;
use super::thaw_guard;
use crate::context::Context;
use crate::exit::{Exit, Failure, usage};
use crate::output::{counted, shown};
use crate::retention::parse_tag;
use crate::signals;

/// Back up domains, an image or an NBD export
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep backup web1                      incremental if safe, else full
  virtkeep backup --all                     every domain of this host
  virtkeep backup web1 --dry-run            what would be done, and why
  virtkeep backup --image disk.qcow2 --name old-server
  virtkeep backup --nbd nbd://host/export --name appliance

A backup that is interrupted leaves no point, and is continued by the next one.")]
pub(crate) struct Args {
    /// Names or uuids of the domains
    #[arg(value_name = "DOMAIN", required_unless_present_any = ["all", "nbd", "image"])]
    domains: Vec<String>,

    /// All domains of this host that have disks to back up
    #[arg(long, conflicts_with_all = ["domains", "nbd", "image"])]
    all: bool,

    /// The export at this NBD URI
    #[arg(long, value_name = "URI", requires = "name", conflicts_with_all = ["domains", "image"])]
    nbd: Option<String>,

    /// A raw or qcow2 image file, or a block device, that nobody writes to
    #[arg(
        long,
        value_name = "FILE",
        requires = "name",
        conflicts_with = "domains"
    )]
    image: Option<PathBuf>,

    /// What to call the image or export in the repository
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,

    /// Format of the image: raw or qcow2 [default: told by its first bytes]
    #[arg(long, value_name = "FORMAT", requires = "image", value_parser = ["raw", "qcow2"])]
    image_format: Option<String>,

    /// Only show what would be done, disk by disk; touches nothing
    #[arg(long, conflicts_with_all = ["nbd", "image"])]
    dry_run: bool,

    /// Read all disks in full (what is known already is still not stored again)
    #[arg(long)]
    full: bool,

    /// Leave no checkpoint on the domain: every backup reads all of every disk
    #[arg(long)]
    no_checkpoint: bool,

    /// Do not ask the guest agent to freeze the file systems
    #[arg(long)]
    no_freeze: bool,

    /// Leave out disks that cannot be backed up, instead of failing
    #[arg(long)]
    skip_unsupported: bool,

    /// Directory for the scratch files of running domains [default: beside the images]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    /// Directory for the socket of the backup job; QEMU must be able to write to it
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<PathBuf>,

    /// Label for the point; may be given several times
    #[arg(long = "tag", value_name = "TAG", value_parser = parse_tag)]
    tags: Vec<String>,
}

fn parse_name(text: &str) -> Result<String, String> {
    match text.chars().count() {
        0 => Err("a name cannot be empty".to_owned()),
        1..=255 => Ok(text.to_owned()),
        _ => Err("a name has at most 255 characters".to_owned()),
    }
}

impl Args {
    fn options(&self) -> Options {
        Options {
            full: self.full,
            no_checkpoint: self.no_checkpoint,
            skip_unsupported: self.skip_unsupported,
            no_freeze: self.no_freeze,
            scratch_dir: self.scratch.clone(),
            socket_dir: self.socket_dir.clone(),
            thaw_guard: Some(thaw_guard::command_line()),
            tags: self.tags.clone(),
            command: "backup".to_owned(),
            ..Options::default()
        }
    }

    /// Which domains are meant; each only once.
    fn find_domains(&self, host: &Host) -> Vec<(String, Result<DomainRef>)> {
        if self.all {
            return match host.domains() {
                Ok(all) => all
                    .into_iter()
                    .map(|d| (d.name().to_owned(), Ok(d)))
                    .collect(),
                Err(error) => vec![("--all".to_owned(), Err(error.into()))],
            };
        }
        let mut found: Vec<(String, Result<DomainRef>)> = Vec::new();
        for name in &self.domains {
            let domain = host.domain(name);
            let is_repeated = domain.as_ref().is_ok_and(|domain| {
                let mut before = found.iter().filter_map(|(_, found)| found.as_ref().ok());
                before.any(|other| other.uuid() == domain.uuid())
            });
            if !is_repeated {
                found.push((name.clone(), domain.map_err(Into::into)));
            }
        }
        found
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    if args.dry_run {
        return dry_run::run(args, context);
    }
    let repo = context.open()?;
    let options = args.options();
    let mut run = Run::new(context, args.all)?;
    if let Some(name) = &args.name {
        let watch = Watch::new(name, &context.reporter);
        let cancel = run.cancel.clone();
        if let Some(path) = &args.image {
            let image = ImageSource {
                path: path.clone(),
                format: args.image_format.clone(),
            };
            run.one(name, || {
                virtkeep_capture::backup_image(&image, name, &repo, &options, &watch, &cancel)
                    .map_err(Into::into)
            })?;
        } else if let Some(uri) = &args.nbd {
            run.one(name, || {
                virtkeep_capture::backup_nbd(uri, name, &repo, &options, &watch, &cancel)
                    .map_err(Into::into)
            })?;
        } else {
            return Err(usage(
                "--name is for --image and --nbd: a domain has its own name",
            ));
        }
    } else {
        run.domains(args, &repo, &options)?;
    }
    run.finish(&repo)
}

/// The backups of one command line, and how they went.
struct Run<'a> {
    context: &'a Context,
    /// Whether domains without disks are passed over: nobody has named them.
    skips_diskless: bool,
    cancel: Cancel,
    started: Instant,
    done: Vec<Point>,
    skipped: usize,
    failures: Vec<Failure>,
}

impl<'a> Run<'a> {
    fn new(context: &'a Context, skips_diskless: bool) -> Result<Self> {
        Ok(Self {
            context,
            skips_diskless,
            cancel: signals::cancel_in_order("ending the backup and leaving the guest as it was")?,
            started: Instant::now(),
            done: Vec::new(),
            skipped: 0,
            failures: Vec::new(),
        })
    }

    fn domains(&mut self, args: &Args, repo: &Repository, options: &Options) -> Result<()> {
        let host = self.context.host()?;
        let domains = args.find_domains(&host);
        if domains.is_empty() {
            bail!(
                "{} has no domains: `virsh list --all` shows what libvirt sees",
                host.uri()
            );
        }
        for (name, domain) in domains {
            if self.cancel.is_cancelled() {
                break;
            }
            let cancel = self.cancel.clone();
            let watch = Watch::new(&name, &self.context.reporter);
            self.one(&name, || {
                let domain = domain?;
                virtkeep_capture::backup(&host, &domain, repo, options, &watch, &cancel)
                    .map_err(Into::into)
            })?;
        }
        Ok(())
    }

    /// Makes one point, and says how it went.
    fn one(&mut self, name: &str, backup: impl FnOnce() -> Result<Point>) -> Result<()> {
        let started = Instant::now();
        let output = self.context.output;
        match backup() {
            Ok(point) => {
                let seconds = started.elapsed().as_secs_f64();
                output.json(&MadePointLine::new(&point, seconds))?;
                output.text(&lines::summary(&point, seconds, self.context))?;
                self.done.push(point);
            }
            Err(error) if self.skips_diskless && is_diskless(&error) => {
                let line = format!("{}: skipped: {}", shown(name), lines::NO_DISKS);
                self.context.reporter.note_lines(&line);
                output.json(&SkippedLine::new(name))?;
                self.skipped += 1;
            }
            Err(error) => {
                let failure = Failure::of(&error);
                let line = format!("virtkeep: {}: {}", shown(name), failure.message);
                self.context.reporter.note_lines(&line);
                output.json(&ErrorLine::new(name, &failure))?;
                self.failures.push(failure);
            }
        }
        Ok(())
    }

    /// Ends the run, and says what of the repository is still to be healed.
    fn finish(self, repo: &Repository) -> Result<Exit> {
        // The points are there: that this cannot be told is no reason to fail.
        let wanted = repo.wanted().unwrap_or(0);
        if wanted > 0 {
            self.context.reporter.note(&format!(
                "note: {} of the repository not met by this backup: \
                 `virtkeep check` tells which points need what",
                counted(wanted, "damaged record")
            ));
        }
        self.end(wanted)
    }

    fn end(self, wanted: u64) -> Result<Exit> {
        self.context.output.json(&SummaryLine::new(
            &self.done,
            self.skipped,
            self.failures.len(),
            wanted,
            self.started.elapsed().as_secs_f64(),
        ))?;
        if let (Some(number), false) = (signals::caught(), self.failures.is_empty()) {
            return Ok(Exit::Signal(number));
        }
        Ok(match &self.failures[..] {
            [] => Exit::Done,
            _ if !self.done.is_empty() => Exit::Partly,
            [first, rest @ ..] if rest.iter().all(|other| other.exit == first.exit) => first.exit,
            _ => Exit::Failed,
        })
    }
}

fn is_diskless(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::NoDisks { .. }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn diskless() -> Result<Point> {
        let domain = "installer".to_owned();
        Err(Error::NoDisks { domain }.into())
    }

    #[test]
    fn a_domain_without_disks_is_a_failure_only_when_it_was_named() {
        let cli = crate::args::Cli::try_parse_from(["virtkeep", "stats"]).unwrap();
        let context = Context::new(cli.global);
        for (all, exit) in [(true, Exit::Done), (false, Exit::Failed)] {
            let mut run = Run::new(&context, all).unwrap();
            run.one("installer", diskless).unwrap();
            assert_eq!(run.end(0).unwrap(), exit);
        }
        let mut run = Run::new(&context, true).unwrap();
        run.one("installer", diskless).unwrap();
        run.one("web1", || bail!("it went wrong")).unwrap();
        assert_eq!(run.end(0).unwrap(), Exit::Failed);
    }
}
