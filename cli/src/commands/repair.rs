//! `virtkeep repair`: mends what can be mended.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{
    Cancel, Env, Error, OpenOptions, RebuildReport, RepairOptions, RepairReport, Repository,
};

use super::findings::{Findings, records_to_give_up};
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{counted, seconds, shown};
use crate::progress::CheckBar;
use crate::signals;

/// Mend a damaged repository: its index, and what can be saved of damaged packs
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Builds the index anew when it cannot be used. Then reads every byte. What is
good in a damaged pack is copied elsewhere; what is lost and still needed is
noted, so that the next backup that meets the same content stores it again. That
heals every point it belongs to, and no new point inherits the damage. A damaged
point record is replaced with the index's copy of it.

Nothing is removed without --yes. Everything else may go on meanwhile; repair
may be interrupted and repeated. What cannot be restored in the end is listed as
by `virtkeep check`, and the exit code is 4; `restore --salvage` gives back all
the rest of it.")]
pub(crate) struct Args {
    /// Only look, and list what cannot be restored
    #[arg(long)]
    dry_run: bool,

    /// Build the index anew though it can be used
    #[arg(long, conflicts_with = "dry_run")]
    index: bool,

    /// Remove damaged packs once everything good in them is elsewhere, and set point records aside
    /// that cannot be mended
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

#[derive(Serialize)]
struct RebuiltLine<'a> {
    r#type: &'static str,
    points: u64,
    packs: u64,
    records: u64,
    damage: &'a [String],
}

#[derive(Serialize)]
struct SummaryLine {
    r#type: &'static str,
    clean: bool,
    dry_run: bool,
    points: u64,
    packs: u64,
    bytes_read: u64,
    damage: usize,
    packs_damaged: u64,
    packs_removed: u64,
    records_salvaged: u64,
    records_found: u64,
    points_healed: Vec<String>,
    points_set_aside: Vec<String>,
    points_given_up: Vec<String>,
    wanted: u64,
    affected: u64,
    seconds: f64,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let started = Instant::now();
    let cancel = signals::cancel_in_order("ending the repair; it can be repeated")?;
    let repo = open(args, context, &cancel)?;
    let options = RepairOptions {
        dry_run: args.dry_run,
        remove: args.yes,
    };
    let findings = Findings::new(context, &cancel);
    let report = repo.repair(options, &findings, &cancel);
    let records = findings.records();
    findings.end()?;
    let report = report?;
    let took = started.elapsed().as_secs_f64();
    let names =
        |points: &[virtkeep_repo::PointId]| points.iter().map(|id| id.to_string()).collect();
    context.output.json(&SummaryLine {
        r#type: "summary",
        clean: report.is_whole(),
        dry_run: args.dry_run,
        points: report.found.points,
        packs: report.found.packs,
        bytes_read: report.found.bytes_read,
        damage: report.found.damage.len(),
        packs_damaged: report.packs_damaged,
        packs_removed: report.packs_removed,
        records_salvaged: report.records_salvaged,
        records_found: report.records_found,
        points_healed: names(&report.points_healed),
        points_set_aside: names(&report.points_set_aside),
        points_given_up: names(&report.points_given_up),
        wanted: report.found.wanted,
        affected: report.found.affected,
        seconds: (took * 1000.0).round() / 1000.0,
    })?;
    context.output.text(&text(&report, args, records, took))?;
    Ok(if report.is_whole() {
        Exit::Done
    } else {
        Exit::Damage
    })
}

/// Opens the repository, with an index built anew where that is needed or asked for.
fn open(args: &Args, context: &Context, cancel: &Cancel) -> Result<Repository> {
    if args.dry_run {
        return context.open_to_read();
    }
    match context.open() {
        Ok(repo) if !args.index => return Ok(repo),
        Ok(_) => {}
        Err(error) => match error.downcast_ref() {
            Some(Error::Index { .. }) => {}
            _ => return Err(error),
        },
    }
    let report = {
        let bar = CheckBar::new(&context.reporter);
        let options = OpenOptions {
            unsafe_network_fs: context.unsafe_network_fs(),
            ..OpenOptions::default()
        };
        let path = context.repository_path()?;
        Repository::rebuild_index(path, &options, Env::system(), &bar, cancel)?
    };
    tell_rebuilt(&report, context)?;
    context.open()
}

fn tell_rebuilt(report: &RebuildReport, context: &Context) -> Result<()> {
    context.output.json(&RebuiltLine {
        r#type: "rebuilt",
        points: report.points,
        packs: report.packs,
        records: report.records,
        damage: &report.damage,
    })?;
    for message in &report.damage {
        context
            .output
            .text(&format!("not all could be read: {}", shown(message)))?;
    }
    context.output.text(&format!(
        "built the index anew: {}, {} in {}",
        counted(report.points, "point"),
        counted(report.records, "record"),
        counted(report.packs, "pack")
    ))?;
    Ok(())
}

/// What came out in the end; `records` is how many points lack their own record.
fn text(report: &RepairReport, args: &Args, records: u64, took: f64) -> String {
    let mut text = String::new();
    for id in &report.points_healed {
        let _ = writeln!(text, "the record of point {id} was put back from the index");
    }
    for id in &report.points_set_aside {
        let _ = writeln!(
            text,
            "the record of point {id} was set aside as forgotten; prune will remove it"
        );
    }
    for id in &report.points_given_up {
        let _ = writeln!(
            text,
            "the point {id} is given up: its record is lost, and the copy in the index is damaged"
        );
    }
    if report.records_found > 0 {
        let _ = writeln!(
            text,
            "found whole in another pack: {}",
            counted(report.records_found, "damaged record")
        );
    }
    if report.records_salvaged > 0 {
        let _ = writeln!(
            text,
            "copied out of damaged packs: {}",
            counted(report.records_salvaged, "good record")
        );
    }
    let kept = report.packs_damaged - report.packs_removed.min(report.packs_damaged);
    if report.packs_removed > 0 {
        let _ = writeln!(
            text,
            "now gone: {}",
            counted(report.packs_removed, "damaged pack")
        );
    }
    if kept > 0 && !args.dry_run {
        let _ = writeln!(
            text,
            "kept, but out of use: {}; `virtkeep repair --yes` removes what nothing good is left in",
            counted(kept, "damaged pack")
        );
    }
    if report.found.wanted > 0 {
        let _ = writeln!(
            text,
            "noted as lost: {}; the next backup that meets the same content heals what needs it",
            counted(report.found.wanted, "damaged record")
        );
    }
    let _ = write!(
        text,
        "read {} and {}, in {}",
        counted(report.found.points, "point"),
        counted(report.found.packs, "pack"),
        seconds(took)
    );
    text.push_str(match (report.found.affected == 0, args.dry_run) {
        (true, _) => "\nevery point can be restored",
        (false, true) => "\nthe parts named above cannot be restored whole",
        (false, false) => {
            "\nthe parts named above are not healed yet: back the machines up, then run `virtkeep check`. \
             What no backup heals can be salvaged, or given up with `virtkeep forget`"
        }
    });
    if report.found.pins_damaged > 0 {
        text.push_str("\nnothing can be forgotten or pruned until the pins named above can be read, or are gone");
    }
    if records > 0 {
        text.push_str(&records_to_give_up(records));
    }
    text
}
