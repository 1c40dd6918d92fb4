//! `virtkeep check`: is everything there that the points need, and is it what it should be?

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{Affected, CheckOptions, CheckReport};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{seconds, shown, size};
use crate::progress::CheckBar;
use crate::signals;

/// Check that every point can be restored
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep check                     packs, index and the trees of all points
  virtkeep check --read-data         every stored byte as well
  virtkeep check --read-data=10      every byte of a tenth of the packs

Damage is reported with the ranges of the disks it hits, and ends with exit
code 4. Nothing is changed; backups may run meanwhile.")]
pub(crate) struct Args {
    /// Read and verify the packs too, or this share of them
    #[arg(
        long,
        value_name = "PERCENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "100",
        value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    read_data: Option<u8>,
}

#[derive(Serialize)]
struct DamageLine<'a> {
    r#type: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct AffectedLine<'a> {
    r#type: &'static str,
    point: String,
    domain: Option<&'a str>,
    uuid: Option<String>,
    part: &'a str,
    ranges: Vec<RangeLine>,
    message: &'a str,
}

#[derive(Serialize)]
struct RangeLine {
    start: u64,
    end: u64,
}

#[derive(Serialize)]
struct SummaryLine {
    r#type: &'static str,
    clean: bool,
    points: u64,
    disks: u64,
    packs: u64,
    packs_read: u64,
    bytes_read: u64,
    unindexed_bytes: u64,
    damage: usize,
    affected: usize,
    seconds: f64,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let started = Instant::now();
    let repo = context.open_to_read()?;
    let cancel = signals::cancel_in_order("ending the check")?;
    let options = CheckOptions {
        read_data_percent: args.read_data.unwrap_or(0),
    };
    let report = {
        let bar = CheckBar::new(&context.reporter);
        repo.check(options, &bar, &cancel)?
    };
    let took = started.elapsed().as_secs_f64();
    print_json(&report, took, context)?;
    context.output.text(&text(&report, took))?;
    Ok(if report.is_clean() {
        Exit::Done
    } else {
        Exit::Damage
    })
}

fn text(report: &CheckReport, took: f64) -> String {
    let mut text = String::new();
    for damage in &report.damage {
        let _ = writeln!(text, "damage: {}", shown(damage));
    }
    for affected in &report.affected {
        let _ = writeln!(text, "{}", describe(affected));
    }
    let _ = write!(
        text,
        "checked {} points with {} disks, and {} packs",
        report.points, report.disks, report.packs
    );
    if report.packs_read > 0 {
        let bytes = size(report.bytes_read);
        let _ = write!(text, " ({} read in full, {bytes})", report.packs_read);
    }
    let _ = write!(text, ", in {}", seconds(took));
    if report.unindexed_bytes > 0 {
        let bytes = size(report.unindexed_bytes);
        let _ = write!(text, "\n{bytes} are left of interrupted backups: no damage");
    }
    text.push_str(match (report.is_clean(), &report.affected[..]) {
        (true, _) => "\nno damage found",
        (false, []) => "\ndamage found; no point is affected",
        (false, _) => "\ndamage found: the parts named above cannot be restored whole",
    });
    text
}

fn describe(affected: &Affected) -> String {
    let domain = affected.domain.as_ref();
    let domain = domain.map_or_else(String::new, |domain| format!("{} ", shown(&domain.name)));
    let mut text = format!("{domain}{}: {}", affected.point, shown(&affected.part));
    const FEW: usize = 5;
    for (n, range) in affected.ranges.iter().take(FEW).enumerate() {
        let Range { start, end } = range;
        let before = if n == 0 { " at" } else { "," };
        let _ = write!(text, "{before} {start:#x}-{end:#x}");
    }
    if affected.ranges.len() > FEW {
        let _ = write!(text, " and {} more", affected.ranges.len() - FEW);
    }
    format!("{text}: {}", shown(&affected.why))
}

fn print_json(report: &CheckReport, took: f64, context: &Context) -> Result<()> {
    let output = context.output;
    for message in &report.damage {
        output.json(&DamageLine {
            r#type: "damage",
            message,
        })?;
    }
    for affected in &report.affected {
        let domain = affected.domain.as_ref();
        output.json(&AffectedLine {
            r#type: "affected",
            point: affected.point.to_string(),
            domain: domain.map(|domain| domain.name.as_str()),
            uuid: domain.map(|domain| domain.uuid.to_string()),
            part: &affected.part,
            ranges: affected
                .ranges
                .iter()
                .map(|range| RangeLine {
                    start: range.start,
                    end: range.end,
                })
                .collect(),
            message: &affected.why,
        })?;
    }
    output.json(&SummaryLine {
        r#type: "summary",
        clean: report.is_clean(),
        points: report.points,
        disks: report.disks,
        packs: report.packs,
        packs_read: report.packs_read,
        bytes_read: report.bytes_read,
        unindexed_bytes: report.unindexed_bytes,
        damage: report.damage.len(),
        affected: report.affected.len(),
        seconds: (took * 1000.0).round() / 1000.0,
    })?;
    Ok(())
}
