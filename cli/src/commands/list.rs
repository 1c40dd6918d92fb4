//! `virtkeep list`: the points there are.

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{CaptureMode, Consistency, Point, SourceKind};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Table, shown, size};
use crate::point_spec::{points_of, times};
use crate::when::rfc3339;

/// List the points there are, oldest first
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep list
  virtkeep list web1

What is printed can be used as a POINT: DOMAIN@TIME, or the ID or its first few
characters.")]
pub(crate) struct Args {
    /// Only points of this domain (name or uuid)
    domain: Option<String>,
}

/// A point as programs see it; `show` gives more.
#[derive(Serialize)]
pub(super) struct PointLine<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    uuid: String,
    time: String,
    source: SourceKind,
    consistency: Consistency,
    tags: &'a [String],
    disks: Vec<DiskLine<'a>>,
}

#[derive(Serialize)]
struct DiskLine<'a> {
    target: &'a str,
    mode: CaptureMode,
    size_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
}

/// A point whose record cannot be read: nothing else is known of it.
#[derive(Serialize)]
struct DamagedLine {
    r#type: &'static str,
    point: String,
    message: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let repo = context.open_to_read()?;
    let points = context.points(&repo)?;
    let damaged = repo.damaged_points()?;
    for (id, error) in &damaged {
        context.output.json(&DamagedLine {
            r#type: "damaged-point",
            point: id.to_string(),
            message: error.to_string(),
        })?;
    }
    let wanted: Vec<&Point> = match &args.domain {
        Some(domain) => points_of(domain, &points)?,
        None => points.iter().collect(),
    };
    for point in &wanted {
        context.output.json(&line(point))?;
    }
    if !wanted.is_empty() {
        context.output.text(&table(&wanted, context).render())?;
    } else if damaged.is_empty() {
        context
            .output
            .text("No points yet: `virtkeep backup DOMAIN` makes one.")?;
    }
    Ok(Exit::Done)
}

fn table(points: &[&Point], context: &Context) -> Table {
    let mut table = Table::new(&[
        "DOMAIN", "TIME", "ID", "MODE", ">DISKS", ">SIZE", ">READ", ">STORED", "STATE", "TAGS",
    ]);
    for (point, time) in points.iter().zip(times(points, &context.zone)) {
        let sum = |of: fn(&virtkeep_repo::Disk) -> u64| size(point.disks.iter().map(of).sum());
        let tags: Vec<String> = point.tags.iter().map(|tag| shown(tag)).collect();
        table.row([
            shown(&point.domain.name),
            time,
            point.id.to_string(),
            mode(point).to_owned(),
            point.disks.len().to_string(),
            sum(|disk| disk.size.0),
            sum(|disk| disk.stats.read_bytes),
            sum(|disk| disk.stats.stored_bytes),
            consistency(point.consistency).to_owned(),
            tags.join(","),
        ]);
    }
    table
}

/// One word for the modes of all disks.
pub(super) fn mode(point: &Point) -> &'static str {
    let full = |disk: &virtkeep_repo::Disk| disk.mode == CaptureMode::Full;
    if point.disks.iter().all(full) {
        "full"
    } else if point.disks.iter().any(full) {
        "mixed"
    } else {
        "incremental"
    }
}

/// One word for how settled the guest was.
pub(super) fn consistency(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Frozen => "frozen",
        Consistency::Crash => "crash",
        Consistency::Clean => "clean",
    }
}

fn line(point: &Point) -> PointLine<'_> {
    PointLine {
        r#type: "point",
        point: point.id.to_string(),
        domain: &point.domain.name,
        uuid: point.domain.uuid.to_string(),
        time: rfc3339(point.time),
        source: point.source,
        consistency: point.consistency,
        tags: &point.tags,
        disks: point
            .disks
            .iter()
            .map(|disk| DiskLine {
                target: &disk.target,
                mode: disk.mode,
                size_bytes: disk.size.0,
                read_bytes: disk.stats.read_bytes,
                new_bytes: disk.stats.new_bytes,
                stored_bytes: disk.stats.stored_bytes,
            })
            .collect(),
    }
}
