//! `virtkeep diff`: what changed between two points.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use virtkeep_repo::{Cancel, Disk, DiskOffset, Point, Repository};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Table, bytes_range, shown, size};

/// Show how much of each disk differs between two points
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep diff web1@latest~1 web1@latest
  virtkeep diff web1/vda@2026-11-01 web1/vda@latest --ranges

Disks are compared chunk by chunk, by what the repository knows of them; no data
is read. What lies behind the end of a smaller disk counts as different.")]
pub(crate) struct Args {
    /// The point to compare with: DOMAIN@WHEN, DOMAIN/DISK@WHEN, or a point id
    #[arg(value_name = "BEFORE")]
    before: String,

    /// The point that is compared
    #[arg(value_name = "POINT")]
    point: String,

    /// Print the ranges that differ, in bytes
    #[arg(long)]
    ranges: bool,
}

#[derive(Serialize)]
struct RangeLine<'a> {
    r#type: &'static str,
    target: &'a str,
    start: u64,
    end: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    before: String,
    point: String,
    disks: Vec<DiskLine<'a>>,
}

#[derive(Serialize)]
struct DiskLine<'a> {
    target: &'a str,
    size_bytes_before: Option<u64>,
    size_bytes: Option<u64>,
    changed_bytes: Option<u64>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let specs = [
        context.parse_point(&args.before)?,
        context.parse_point(&args.point)?,
    ];
    let repo = context.open_to_read()?;
    let among = [
        context.points_named(&repo, &specs[0])?,
        context.points_named(&repo, &specs[1])?,
    ];
    let before = context.find_point(&specs[0], &among[0])?;
    let after = context.find_point(&specs[1], &among[1])?;
    // A forgotten point must be all there; a disk reader leases its own part again.
    let cancel = Cancel::new();
    let _held = [
        repo.hold(before.point, &cancel)?,
        repo.hold(after.point, &cancel)?,
    ];
    for found in [before, after] {
        context.reporter.note(&context.describe(found.point));
    }
    let wanted = match (before.disk, after.disk) {
        (Some(one), Some(other)) if one != other => bail!(
            "{} and {} are disks of different names: compare a disk with itself",
            shown(one),
            shown(other)
        ),
        (one, other) => one.or(other),
    };
    let mut lines = Vec::new();
    for (target, disks) in pairs(before.point, after.point) {
        if wanted.is_some_and(|wanted| wanted != target) {
            continue;
        }
        let mut line = DiskLine {
            target,
            size_bytes_before: disks[0].map(|disk| disk.size.0),
            size_bytes: disks[1].map(|disk| disk.size.0),
            changed_bytes: None,
        };
        if let [Some(old), Some(new)] = disks {
            let pair = [(before.point, old), (after.point, new)];
            let changed = compare(&repo, pair, args.ranges, context)
                .with_context(|| format!("cannot compare {}", shown(target)))?;
            line.changed_bytes = Some(changed);
        }
        lines.push(line);
    }
    context.output.text(&table(&lines).render())?;
    context.output.json(&Line {
        r#type: "diff",
        before: before.point.id.to_string(),
        point: after.point.id.to_string(),
        disks: lines,
    })?;
    Ok(Exit::Done)
}

/// The disks of both points by their targets, in the order of the later point.
fn pairs<'a>(before: &'a Point, after: &'a Point) -> Vec<(&'a str, [Option<&'a Disk>; 2])> {
    let of = |point: &'a Point, target: &str| point.disks.iter().find(|d| d.target == target);
    let gone = before
        .disks
        .iter()
        .filter(|disk| of(after, &disk.target).is_none());
    let targets = after.disks.iter().chain(gone).map(|disk| &disk.target[..]);
    targets
        .map(|target| (target, [of(before, target), of(after, target)]))
        .collect()
}

/// Bytes that differ between two disks, each of a point.
fn compare(
    repo: &Repository,
    [before, after]: [(&Point, &Disk); 2],
    print_ranges: bool,
    context: &Context,
) -> Result<u64> {
    let target = &after.1.target;
    let open = |(point, disk)| repo.read_disk(point, disk);
    let (before, after) = (open(before)?, open(after)?);
    let end = DiskOffset(after.size().0);
    let mut at = DiskOffset(0);
    let mut changed = 0;
    // A range may come in several parts.
    let mut range = 0..0;
    let print = |range: &std::ops::Range<u64>| -> Result<()> {
        if print_ranges && !range.is_empty() {
            context.output.json(&RangeLine {
                r#type: "range",
                target,
                start: range.start,
                end: range.end,
            })?;
            let line = format!("{}: {}", shown(target), bytes_range(range.start, range.end));
            context.output.text(&line)?;
        }
        Ok(())
    };
    while at < end {
        for change in after.changes_since(&before, at, end)? {
            at = change.start.plus(change.len);
            if !change.changed {
                continue;
            }
            changed += change.len.0;
            if range.end == change.start.0 {
                range.end = at.0;
            } else {
                print(&range)?;
                range = change.start.0..at.0;
            }
        }
    }
    print(&range)?;
    Ok(changed)
}

fn table(lines: &[DiskLine<'_>]) -> Table {
    let mut table = Table::new(&["DISK", ">BEFORE", ">SIZE", ">CHANGED"]);
    let sized = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
    for line in lines {
        table.row([
            shown(line.target),
            sized(line.size_bytes_before),
            sized(line.size_bytes),
            sized(line.changed_bytes),
        ]);
    }
    table
}
