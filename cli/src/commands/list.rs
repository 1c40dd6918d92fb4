//! `virtkeep list`: the points there are.

use std::collections::HashMap;

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{CaptureMode, Consistency, Pin, Point, PointId};

use super::point_line::PointLine;
use super::tested::BootTest;
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Table, shown, size};
use crate::point_spec::{PointError, points_of, times};

/// List the points there are, oldest first
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep list
  virtkeep list web1
  virtkeep list --forgotten

What is printed can be used as a POINT: DOMAIN@TIME, or the ID or its first few
characters.")]
pub(crate) struct Args {
    /// Only points of this domain (name or uuid)
    domain: Option<String>,

    /// The points that were forgotten and can still be brought back
    #[arg(long)]
    forgotten: bool,
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
    let (points, damaged) = if args.forgotten {
        let forgotten = repo.forgotten()?;
        for (id, error) in &forgotten.damaged {
            context.reporter.note(&format!(
                "warning: the record of the forgotten point {id} is damaged, and it cannot be brought back; `virtkeep prune` removes it: {}",
                error.reason()
            ));
        }
        (forgotten.points, forgotten.damaged)
    } else {
        (context.points(&repo)?, repo.damaged_points()?)
    };
    for (id, error) in &damaged {
        context.output.json(&DamagedLine {
            r#type: "damaged-point",
            point: id.to_string(),
            message: error.to_string(),
        })?;
    }
    let wanted: Vec<&Point> = match &args.domain {
        // None of it need be forgotten.
        Some(domain) if args.forgotten => match points_of(domain, &points) {
            Err(PointError::NotFound(_)) => {
                points_of(domain, &context.points(&repo)?)?;
                Vec::new()
            }
            wanted => wanted?,
        },
        Some(domain) => points_of(domain, &points)?,
        None => points.iter().collect(),
    };
    let pins = context.pins(&repo);
    let tests = wanted
        .iter()
        .map(|point| BootTest::all(&repo, point))
        .collect::<Result<Vec<_>>>()?;
    for (point, tests) in wanted.iter().zip(&tests) {
        let pins = pins.get(&point.id).map_or(&[][..], Vec::as_slice);
        let line = PointLine::kept(point, args.forgotten, pins, tests);
        context.output.json(&line)?;
    }
    if !wanted.is_empty() {
        let table = table(&wanted, &pins, &tests, context);
        context.output.text(&table.render())?;
    } else if damaged.is_empty() {
        context.output.text(if args.forgotten {
            "No forgotten points, or prune has taken them."
        } else {
            "No points yet: `virtkeep backup DOMAIN` makes one."
        })?;
    }
    Ok(Exit::Done)
}

fn table(
    points: &[&Point],
    pins: &HashMap<PointId, Vec<Pin>>,
    tests: &[Vec<BootTest>],
    context: &Context,
) -> Table {
    let mut headings = vec![
        "DOMAIN", "TIME", "ID", "MODE", ">DISKS", ">SIZE", ">READ", ">STORED", "STATE", "TAGS",
    ];
    let any_pinned = points.iter().any(|point| pins.contains_key(&point.id));
    if any_pinned {
        headings.push("PINNED");
    }
    let any_tested = tests.iter().any(|tests| !tests.is_empty());
    if any_tested {
        headings.push("BOOT TEST");
    }
    let mut table = Table::new(&headings);
    let times = times(points, &context.zone);
    for ((point, time), tests) in points.iter().zip(times).zip(tests) {
        let sum = |of: fn(&virtkeep_repo::Disk) -> u64| size(point.disks.iter().map(of).sum());
        let tags: Vec<String> = point.tags.iter().map(|tag| shown(tag)).collect();
        let pins = pins.get(&point.id).into_iter().flatten();
        let pins: Vec<String> = pins.map(|pin| shown(&pin.reason)).collect();
        let cells = [
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
        ];
        let pinned = any_pinned.then(|| pins.join("; "));
        let verdict = tests.last().map_or("", BootTest::word).to_owned();
        let verdict = any_tested.then_some(verdict);
        table.row(cells.into_iter().chain(pinned).chain(verdict));
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
