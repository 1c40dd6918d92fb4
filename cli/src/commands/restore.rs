//! `virtkeep restore`: gives disks of a point back.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use virtkeep_repo::{Cancel, Disk, DiskReader, FileRole, Loss, Point, Repository};

use crate::context::Context;
use crate::define::{As, Defined, Definer};
use crate::exit::{Exit, usage};
use crate::output::{bytes_range, seconds, shown, size};
use crate::point_spec::{PointError, no_such_disk};
use crate::restore::directory::{DirectoryRestore, Format, Restored};
use crate::restore::onto::{self, Target};
use crate::restore::staging::Existing;
use crate::restore::stream;
use crate::signals;

/// What a signal interrupts, as in "still …".
const CLEANING: &str = "removing what is incomplete";

/// Restore a point to a directory, a block device, an NBD export or standard output
#[derive(clap::Args, Debug)]
#[command(
    after_help = "\
Examples:
  virtkeep restore web1@latest --to /restore/web1
  virtkeep restore web1@2026-11-22T22:11 --to /tmp/web1 --disk vda --format raw
  virtkeep restore web1@latest --to /vms/web1 --define --as-original --start
  virtkeep restore web1@latest --to /vms/copy --define --name copy --start
  virtkeep restore web1@latest --disk vda --to - | ssh host 'cat > vda.raw'
  virtkeep restore web1@latest --disk vda --onto /dev/vg/web1
  virtkeep restore web1@latest --to /restore/web1 --salvage

Damage ends a restore with exit code 4, the disk and the range of bytes that is
hit; --salvage restores all the rest.

A clone (--name) can run beside the original: it gets a new uuid and new MAC
addresses, its network links are down unless --network is given, what the
original logs to files goes to DIR, and sockets and ports are chosen anew.
Notes say what was changed, and what both still share.",
    group = clap::ArgGroup::new("target").required(true),
    group = clap::ArgGroup::new("identity")
)]
pub(crate) struct Args {
    /// The point: DOMAIN@WHEN, DOMAIN/DISK@WHEN, or a point id
    point: String,

    /// Write images, domain XML and firmware files to this directory; `-`: the bytes of one disk to
    /// standard output
    #[arg(long, value_name = "DIR", group = "target")]
    to: Option<PathBuf>,

    /// Overwrite this block device or NBD export with one disk
    #[arg(long, value_name = "DEVICE|NBD-URI", group = "target", value_parser = NonEmptyStringValueParser::new())]
    onto: Option<String>,

    /// Only this disk; may be given several times [default: all]
    #[arg(long = "disk", value_name = "TARGET")]
    disks: Vec<String>,

    /// Format of the images [default: qcow2]
    #[arg(long, conflicts_with = "onto")]
    format: Option<Format>,

    /// Replace files that exist
    #[arg(long, conflicts_with = "onto")]
    force: bool,

    /// Go on where stored bytes are damaged: put zeroes there, list the ranges, and end with exit
    /// code 3
    #[arg(long)]
    salvage: bool,

    /// Overwrite the device or export without asking
    #[arg(long, requires = "onto", conflicts_with = "to")]
    yes: bool,

    /// Define a libvirt domain on the restored disks
    #[arg(long, requires = "identity", conflicts_with_all = ["onto", "disks"])]
    define: bool,

    /// Define it with the name, uuid and MAC addresses it had
    #[arg(long, requires = "define", group = "identity")]
    as_original: bool,

    /// Define it as a clone of this name
    #[arg(long, requires = "define", group = "identity", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,

    /// Leave the network links of the clone up
    #[arg(long, requires = "name")]
    network: bool,

    /// Start the defined domain
    #[arg(long, requires = "define")]
    start: bool,
}

/// What was restored, as programs see it.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    time: String,
    disks: Vec<DiskLine<'a>>,
    files: Vec<FileLine<'a>>,
    lost_files: Vec<LostFileLine<'a>>,
    defined: Option<DefinedLine<'a>>,
    seconds: f64,
}

#[derive(Serialize)]
struct DiskLine<'a> {
    target: &'a str,
    to: &'a str,
    format: &'static str,
    size_bytes: u64,
    lost: Vec<LossLine<'a>>,
}

#[derive(Serialize)]
struct LossLine<'a> {
    start: u64,
    end: u64,
    message: &'a str,
}

#[derive(Serialize)]
struct LostFileLine<'a> {
    role: FileRole,
    name: &'a str,
    message: &'a str,
}

impl<'a> LossLine<'a> {
    fn all(losses: &'a [Loss]) -> Vec<Self> {
        let line = |loss: &'a Loss| Self {
            start: loss.range.start,
            end: loss.range.end,
            message: &loss.why,
        };
        losses.iter().map(line).collect()
    }
}

#[derive(Serialize)]
struct FileLine<'a> {
    role: FileRole,
    to: &'a Path,
}

#[derive(Serialize)]
struct DefinedLine<'a> {
    name: &'a str,
    uuid: &'a str,
    started: bool,
    notes: &'a [String],
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let spec = context.parse_point(&args.point)?;
    if args.to.as_deref() == Some(Path::new("-")) {
        check_stream(args, context)?;
    }
    let repo = context.open_to_read()?;
    let points = context.points_named(&repo, &spec)?;
    let found = context.find_point(&spec, &points)?;
    let disks = choose_disks(args, found.point, found.disk)?;
    // All that is read one after the other stays until the end, also where the point is forgotten.
    let _hold = if args.salvage {
        repo.hold_to_salvage(found.point)?
    } else {
        repo.hold(found.point, &Cancel::new())?
    };
    let restore = Restore {
        args,
        context,
        repo: &repo,
        point: found.point,
        disks,
        started: Instant::now(),
    };
    match (&args.to, &args.onto) {
        (Some(dir), _) if dir == Path::new("-") => restore.to_stdout(),
        (Some(dir), _) => restore.to_directory(dir),
        (None, Some(target)) => restore.onto(target),
        (None, None) => Err(usage("say where to: --to DIR or --onto DEVICE")),
    }
}

fn check_stream(args: &Args, context: &Context) -> Result<()> {
    if std::io::stdout().is_terminal() {
        return Err(usage(
            "standard output is a terminal: redirect it, as in `… --to - > vda.raw`",
        ));
    }
    if context.output.is_json() {
        return Err(usage("--json and --to - both want standard output"));
    }
    if args.format == Some(Format::Qcow2) || args.define || args.force {
        return Err(usage(
            "--to - writes the raw bytes of a disk: --format, --define and --force do not apply",
        ));
    }
    Ok(())
}

/// The disks that are wanted: named by the POINT, by `--disk`, or all.
fn choose_disks<'a>(
    args: &Args,
    point: &'a Point,
    in_point: Option<&str>,
) -> Result<Vec<&'a Disk>> {
    if in_point.is_some() && !args.disks.is_empty() {
        return Err(usage(
            "the disk is named twice: in the POINT and with --disk",
        ));
    }
    if in_point.is_some() && args.define {
        return Err(usage(
            "--define needs all disks: leave the disk out of the POINT",
        ));
    }
    let wanted: Vec<&str> = match in_point {
        Some(disk) => vec![disk],
        None => args.disks.iter().map(String::as_str).collect(),
    };
    for target in &wanted {
        if !point.disks.iter().any(|disk| disk.target == *target) {
            return Err(PointError::NotFound(no_such_disk(point, target)).into());
        }
    }
    let disks = point.disks.iter();
    Ok(disks
        .filter(|disk| wanted.is_empty() || wanted.contains(&disk.target.as_str()))
        .collect())
}

/// What a restore that came to its end is worth.
fn exit(whole: bool) -> Exit {
    if whole { Exit::Done } else { Exit::Partly }
}

struct Restore<'a> {
    args: &'a Args,
    context: &'a Context,
    repo: &'a Repository,
    point: &'a Point,
    disks: Vec<&'a Disk>,
    started: Instant,
}

impl Restore<'_> {
    /// Says which point was chosen: a partial time may mean another one than expected.
    fn announce(&self) {
        let point = self.context.describe(self.point);
        self.context.reporter.note(&format!("restoring {point}"));
    }

    fn one_disk(&self) -> Result<&Disk> {
        match self.disks[..] {
            [disk] => Ok(disk),
            [] => bail!("the point {} has no disks", self.point.id),
            _ => {
                let targets: Vec<_> = self.disks.iter().map(|d| shown(&d.target)).collect();
                Err(usage(format!(
                    "choose one disk with --disk: {}",
                    targets.join(", ")
                )))
            }
        }
    }

    fn to_stdout(&self) -> Result<Exit> {
        let disk = self.one_disk()?;
        self.announce();
        let cancel = signals::cancel_in_order(CLEANING)?;
        let reader = self.open(disk)?;
        let progress = self
            .context
            .reporter
            .disk(&disk.target, "restoring", reader.size());
        // Unbuffered: windows are large.
        let mut out = std::fs::File::from(rustix::io::dup(std::io::stdout())?);
        stream::write_to(&mut out, &reader, &progress, &cancel)
            .with_context(|| format!("cannot restore {}", shown(&disk.target)))?;
        drop(progress);
        let losses = reader.losses();
        self.tell_losses(&disk.target, &losses);
        Ok(exit(losses.is_empty()))
    }

    fn open(&self, disk: &Disk) -> Result<DiskReader> {
        crate::restore::open(self.repo, self.point, disk, self.args.salvage)
            .with_context(|| format!("cannot restore {}", shown(&disk.target)))
    }

    /// Lists what was lost of a disk, on standard error.
    fn tell_losses(&self, target: &str, losses: &[Loss]) {
        for Loss { range, why } in losses {
            self.context.reporter.note(&format!(
                "{target}: {} are lost, and zero now: {why}",
                bytes_range(range.start, range.end)
            ));
        }
    }

    fn onto(&self, name: &str) -> Result<Exit> {
        let disk = self.one_disk()?;
        let mut target = Target::open(name, self.context.libvirt_uri(), &self.context.reporter)?;
        if target.size() < disk.size.0 {
            bail!(
                "{} is too small: it has {} ({} bytes), the disk {} has {} ({} bytes)",
                shown(name),
                size(target.size()),
                target.size(),
                shown(&disk.target),
                size(disk.size.0),
                disk.size.0
            );
        }
        self.announce();
        let what = format!(
            "{} of {}",
            shown(&disk.target),
            self.context.describe(self.point)
        );
        onto::confirm(name, &mut target, &what, self.args.yes)?;
        let behind = target.size() - disk.size.0;
        let cancel = signals::cancel_in_order("ending the restore; the target is incomplete")?;
        let reader = self.open(disk)?;
        {
            let reporter = &self.context.reporter;
            let progress = reporter.disk(&disk.target, "restoring", reader.size());
            target
                .overwrite(&reader, &progress, &cancel)
                .with_context(|| {
                    format!(
                        "cannot restore {} onto {}",
                        shown(&disk.target),
                        shown(name)
                    )
                })?;
        }
        if behind > 0 {
            let note = format!(
                "{name} is larger than the disk: its last {} stay",
                size(behind)
            );
            self.context.reporter.note(&note);
        }
        let losses = reader.losses();
        self.tell_losses(&disk.target, &losses);
        let disks = vec![DiskLine {
            target: &disk.target,
            to: name,
            format: "raw",
            size_bytes: disk.size.0,
            lost: LossLine::all(&losses),
        }];
        self.report(disks, Vec::new(), Vec::new(), None)?;
        Ok(exit(losses.is_empty()))
    }

    fn to_directory(&self, dir: &Path) -> Result<Exit> {
        let definer = self.definer()?;
        self.announce();
        let cancel = signals::cancel_in_order(CLEANING)?;
        let restored = DirectoryRestore {
            repo: self.repo,
            point: self.point,
            disks: self.disks.clone(),
            format: self.args.format.unwrap_or(Format::Qcow2),
            existing: if self.args.force {
                Existing::Replace
            } else {
                Existing::Keep
            },
            salvage: self.args.salvage,
        }
        .run(dir, &self.context.reporter, &cancel)?;
        for disk in &restored.disks {
            self.tell_losses(&disk.target, &disk.lost);
        }
        for (_, name, why) in &restored.lost_files {
            let note = format!("the file {name} is lost, and left out: {why}");
            self.context.reporter.note(&note);
        }
        let defined = match definer {
            Some(definer) => Some(self.define(&definer, &restored)?),
            None => None,
        };
        let paths: Vec<_> = restored
            .disks
            .iter()
            .map(|d| d.path.to_string_lossy())
            .collect();
        let disks = restored
            .disks
            .iter()
            .zip(&paths)
            .map(|(disk, path)| DiskLine {
                target: &disk.target,
                to: path,
                format: disk.format.name(),
                size_bytes: disk.size_bytes,
                lost: LossLine::all(&disk.lost),
            });
        let files = restored.files.iter().map(|file| FileLine {
            role: file.role,
            to: &file.path,
        });
        let lost_files = restored.lost_files.iter();
        let lost_files = lost_files
            .map(|(role, name, message)| LostFileLine {
                role: *role,
                name,
                message,
            })
            .collect();
        self.report(
            disks.collect(),
            files.collect(),
            lost_files,
            defined.as_ref(),
        )?;
        let whole = restored.disks.iter().all(|disk| disk.lost.is_empty());
        Ok(exit(whole && restored.lost_files.is_empty()))
    }

    /// Whoever is to define the domain, once it is clear that it can.
    fn definer(&self) -> Result<Option<Definer>> {
        if !self.args.define {
            return Ok(None);
        }
        let wanted = match &self.args.name {
            None => As::Original,
            Some(name) => As::Clone {
                name: name.clone(),
                network: self.args.network,
            },
        };
        Definer::prepare(self.context.libvirt_uri(), self.point, wanted).map(Some)
    }

    fn define(&self, definer: &Definer, restored: &Restored) -> Result<Defined> {
        let defined = definer.define(restored)?;
        for note in &defined.notes {
            self.context.reporter.note(&format!("note: {note}"));
        }
        if self.args.start {
            defined.start()?;
        }
        Ok(defined)
    }

    fn report(
        &self,
        disks: Vec<DiskLine<'_>>,
        files: Vec<FileLine<'_>>,
        lost_files: Vec<LostFileLine<'_>>,
        defined: Option<&Defined>,
    ) -> Result<()> {
        let took = self.started.elapsed().as_secs_f64();
        let output = self.context.output;
        for disk in &disks {
            output.text(&format!(
                "{}: {} to {} ({})",
                shown(disk.target),
                size(disk.size_bytes),
                shown(disk.to),
                disk.format
            ))?;
        }
        if let Some(defined) = defined {
            let started = if self.args.start { " and started" } else { "" };
            let name = shown(&defined.name);
            output.text(&format!(
                "defined{started} the domain {name} ({})",
                defined.uuid
            ))?;
        }
        let point = self.context.describe(self.point);
        output.text(&format!("restored {point} in {}", seconds(took)))?;
        output.json(&Line {
            r#type: "restored",
            point: self.point.id.to_string(),
            domain: &self.point.domain.name,
            time: crate::when::rfc3339(self.point.time),
            disks,
            files,
            lost_files,
            defined: defined.map(|defined| DefinedLine {
                name: &defined.name,
                uuid: &defined.uuid,
                started: self.args.start,
                notes: &defined.notes,
            }),
            seconds: (took * 1000.0).round() / 1000.0,
        })?;
        Ok(())
    }
}
