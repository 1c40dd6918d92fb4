//! `virtkeep show`: all about one point.

use std::fmt::Write as _;
use std::io::IsTerminal;

use anyhow::{Context as _, Result};
use serde::Serialize;
use virtkeep_repo::{
    CaptureMode, Consistency, Disk, FileRole, Pin, Point, Repository, SourceKind, StoredFile,
    UnixMillis,
};

use super::list::{consistency, mode};
use super::point_line::PointLine;
use super::tested::BootTest;
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Table, shown, shown_lines, size};
use crate::when::{local_time, local_time_exact};

/// Show all about one point
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep show web1@latest
  virtkeep show web1@latest --log          what happened during the backup
  virtkeep show web1@latest --xml          the domain's definition")]
pub(crate) struct Args {
    /// The point: DOMAIN@WHEN, or a point id
    point: String,

    /// Show the log of the backup that made it
    #[arg(long, conflicts_with = "xml")]
    log: bool,

    /// Show the domain XML
    #[arg(long)]
    xml: bool,
}

#[derive(Serialize)]
struct ContentLine<'a> {
    r#type: &'static str,
    point: String,
    role: FileRole,
    name: &'a str,
    content: &'a str,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let spec = context.parse_point(&args.point)?;
    let repo = context.open_to_read()?;
    let points = context.points_named(&repo, &spec)?;
    let point = context.find_point(&spec, &points)?.point;
    if args.log {
        file(&repo, point, &[FileRole::Log], "log", context)?;
    } else if args.xml {
        let roles = [FileRole::DomainXml, FileRole::LiveXml];
        file(&repo, point, &roles, "domain XML", context)?;
    } else {
        let pins = context.pins(&repo).remove(&point.id).unwrap_or_default();
        let forgotten = repo.forgotten_point(point.id).is_ok() && repo.point(point.id).is_err();
        let tests = BootTest::all(&repo, point)?;
        let line = PointLine::kept(point, forgotten, &pins, &tests);
        context.output.json(&line)?;
        context
            .output
            .text(&text(point, forgotten, &pins, &tests, context))?;
    }
    Ok(Exit::Done)
}

/// Prints the first file of one of these roles.
fn file(
    repo: &Repository,
    point: &Point,
    roles: &[FileRole],
    what: &str,
    context: &Context,
) -> Result<()> {
    let of = |role: &FileRole| point.files.iter().find(|file| file.role == *role);
    let stored: &StoredFile = roles
        .iter()
        .find_map(of)
        .with_context(|| format!("the point {} holds no {what}", point.id))?;
    let content = repo.read_file(point, stored)?;
    let text = String::from_utf8_lossy(&content);
    if context.output.is_json() {
        context.output.json(&ContentLine {
            r#type: "file",
            point: point.id.to_string(),
            role: stored.role,
            name: &stored.name,
            content: &text,
        })?;
    } else if stored.role == FileRole::Log {
        context.output.text(&shown_lines(&log(&text, context)))?;
    } else if std::io::stdout().is_terminal() {
        context.output.text(&shown_lines(&text))?;
    } else {
        context.output.raw(&content)?;
    }
    Ok(())
}

/// The log with times for people: its lines begin with milliseconds since 1970.
fn log(text: &str, context: &Context) -> String {
    let lines = text.lines().map(|line| {
        let (stamp, rest) = line.split_once(' ').unwrap_or((line, ""));
        match stamp.parse() {
            Ok(millis) => {
                let time = local_time_exact(UnixMillis(millis), &context.zone);
                format!("{time}  {rest}")
            }
            Err(_) => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn text(
    point: &Point,
    forgotten: bool,
    pins: &[Pin],
    tests: &[BootTest],
    context: &Context,
) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    field("point", context.describe(point));
    if forgotten {
        let back = format!("`virtkeep forget --undo {}` brings it back", point.id);
        field("forgotten", format!("until prune takes its bytes: {back}"));
    }
    for pin in pins {
        let since = local_time(pin.created, &context.zone);
        field("pinned", format!("since {since}: {}", shown(&pin.reason)));
    }
    field("uuid", point.domain.uuid.to_string());
    field("host", shown(&point.host));
    field("source", source(point.source).to_owned());
    field("mode", mode(point).to_owned());
    field("state", explain(point.consistency));
    if let Some(checkpoint) = &point.checkpoint {
        field("checkpoint", shown(checkpoint));
    }
    if !point.tags.is_empty() {
        let tags: Vec<String> = point.tags.iter().map(|tag| shown(tag)).collect();
        field("tags", tags.join(", "));
    }
    for test in tests {
        field("boot test", test.describe(context));
    }
    let _ = write!(text, "\n{}", disks(&point.disks).render());
    if !point.files.is_empty() {
        let mut table = Table::new(&["FILE", ">SIZE", "NAME"]);
        for file in &point.files {
            let role = role(file.role).to_owned();
            table.row([role, size(file.size.0), shown(&file.name)]);
        }
        let _ = write!(text, "\n\n{}", table.render());
    }
    text
}

fn disks(disks: &[Disk]) -> Table {
    let mut table = Table::new(&[
        "DISK", ">SIZE", "MODE", ">READ", ">NEW", ">STORED", "SOURCE", "WHY",
    ]);
    for disk in disks {
        let mode = match disk.mode {
            CaptureMode::Full => "full",
            CaptureMode::Incremental => "incremental",
        };
        table.row([
            shown(&disk.target),
            size(disk.size.0),
            mode.to_owned(),
            size(disk.stats.read_bytes),
            size(disk.stats.new_bytes),
            size(disk.stats.stored_bytes),
            format!("{} ({})", shown(&disk.location), shown(&disk.format)),
            shown(&disk.reason),
        ]);
    }
    table
}

fn source(source: SourceKind) -> &'static str {
    match source {
        SourceKind::Live => "a running domain",
        SourceKind::Offline => "a domain that was shut off",
        SourceKind::Image => "an image at rest",
        SourceKind::Nbd => "an NBD export",
    }
}

fn explain(state: Consistency) -> String {
    let meaning = match state {
        Consistency::Frozen => "the guest agent had settled the file systems",
        Consistency::Crash => "as after a power cut",
        Consistency::Clean => "nothing was running",
    };
    format!("{} ({meaning})", consistency(state))
}

fn role(role: FileRole) -> &'static str {
    match role {
        FileRole::DomainXml => "domain XML",
        FileRole::LiveXml => "live XML",
        FileRole::NetworkXml => "network XML",
        FileRole::Nvram => "NVRAM",
        FileRole::Loader => "loader",
        FileRole::Kernel => "kernel",
        FileRole::Initrd => "initrd",
        FileRole::Tpm => "TPM state",
        FileRole::Log => "log",
        FileRole::Unknown => "unknown",
    }
}
