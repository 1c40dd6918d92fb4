//! `virtkeep backup --dry-run`: what a backup would do and why, touching nothing.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use virtkeep_capture::{FreezePlan, LeftOut, Plan, RunState};
use virtkeep_repo::{CaptureMode, SourceKind};

use super::Args;
use super::lines::{self, ErrorLine, SkippedLine};
use crate::context::Context;
use crate::exit::{Exit, Failure, without_number};
use crate::output::{Table, complain, shown, size};

#[derive(Serialize)]
struct PlanLine<'a> {
    r#type: &'static str,
    domain: &'a str,
    uuid: String,
    source: SourceKind,
    freeze: bool,
    freeze_reason: Option<&'a str>,
    checkpoint: bool,
    disks: Vec<DiskLine<'a>>,
    left_out: Vec<LeftOutLine<'a>>,
    unsupported: Vec<LeftOutLine<'a>>,
    leftovers: &'a [String],
    obstacle: Option<&'a str>,
}

#[derive(Serialize)]
struct DiskLine<'a> {
    target: &'a str,
    mode: CaptureMode,
    reason: &'a str,
    size_bytes: u64,
    format: &'a str,
    location: &'a str,
    parent: Option<String>,
    scratch: Option<&'a Path>,
    scratch_free_bytes: Option<u64>,
}

#[derive(Serialize)]
struct LeftOutLine<'a> {
    target: &'a str,
    reason: &'a str,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let repo = context.open_to_read()?;
    let host = context.host()?;
    let options = args.options();
    let mut is_first = true;
    let (mut possible, mut failures) = (0, 0);
    for (name, domain) in args.find_domains(&host) {
        let plan = domain.and_then(|domain| {
            let state = domain.state()?;
            let plan = virtkeep_capture::plan(&host, &domain, &repo, &options)?;
            Ok((plan, state))
        });
        match plan {
            Ok((plan, _)) if args.all && is_diskless(&plan, args) => {
                let name = shown(&name);
                let note = format!("{name}: would be skipped: {}", lines::NO_DISKS);
                context.reporter.note_lines(&note);
                context.output.json(&SkippedLine::new(&plan.domain.name))?;
            }
            Ok((plan, state)) => {
                context.output.json(&line(&plan))?;
                if !is_first {
                    context.output.text("")?;
                }
                context.output.text(&text(&plan, state))?;
                is_first = false;
                match plan.obstacle {
                    Some(_) => failures += 1,
                    None => possible += 1,
                }
            }
            Err(error) => {
                let failure = Failure::of(&error);
                complain(&format!("virtkeep: {}: {}", shown(&name), failure.message));
                context.output.json(&ErrorLine::new(&name, &failure))?;
                failures += 1;
            }
        }
    }
    Ok(match (possible, failures) {
        (_, 0) => Exit::Done,
        (0, _) => Exit::Failed,
        _ => Exit::Partly,
    })
}

/// Whether there is nothing to back up, and that is no failure.
fn is_diskless(plan: &Plan, args: &Args) -> bool {
    plan.disks.is_empty() && (args.skip_unsupported || plan.unsupported.is_empty())
}

fn text(plan: &Plan, state: RunState) -> String {
    let mut text = format!("{} ({})", shown(&plan.domain.name), describe(state));
    let mut table = Table::new(&["  DISK", ">SIZE", "MODE", "SCRATCH", "WHY"]);
    for disk in &plan.disks {
        let mode = match disk.mode {
            CaptureMode::Full => "full",
            CaptureMode::Incremental => "incremental",
        };
        let scratch = disk.scratch.as_ref().map(|scratch| {
            let dir = shown(&scratch.dir.to_string_lossy());
            format!("{dir} ({} free)", size(scratch.free))
        });
        table.row([
            format!("  {}", shown(&disk.target)),
            size(disk.size.0),
            mode.to_owned(),
            scratch.unwrap_or_else(|| "none needed".to_owned()),
            shown(&disk.reason),
        ]);
    }
    let _ = write!(text, "\n{}", table.render());
    let mut remark = |name: &str, what: &str| {
        let _ = write!(text, "\n  {name}: {}", shown(what));
    };
    for LeftOut { target, reason } in &plan.left_out {
        remark("left out", &format!("{target}, {reason}"));
    }
    for LeftOut { target, reason } in &plan.unsupported {
        remark("cannot be backed up", &format!("{target}, {reason}"));
    }
    match &plan.freeze {
        FreezePlan::Freeze => remark("guest agent", "freezes the file systems for a moment"),
        FreezePlan::Skip(reason) => {
            remark("guest agent", &format!("not asked to freeze: {reason}"))
        }
    }
    if !plan.checkpoint {
        remark("checkpoint", "none is made");
    }
    for leftover in &plan.leftovers {
        remark("will be cleared", leftover);
    }
    if let Some(obstacle) = &plan.obstacle {
        remark("the backup would fail", without_number(obstacle));
    }
    text
}

fn describe(state: RunState) -> String {
    format!("{state:?}").to_lowercase()
}

fn line(plan: &Plan) -> PlanLine<'_> {
    PlanLine {
        r#type: "plan",
        domain: &plan.domain.name,
        uuid: plan.domain.uuid.to_string(),
        source: plan.source,
        freeze: plan.freeze == FreezePlan::Freeze,
        freeze_reason: match &plan.freeze {
            FreezePlan::Freeze => None,
            FreezePlan::Skip(reason) => Some(reason),
        },
        checkpoint: plan.checkpoint,
        disks: plan
            .disks
            .iter()
            .map(|disk| DiskLine {
                target: &disk.target,
                mode: disk.mode,
                reason: &disk.reason,
                size_bytes: disk.size.0,
                format: &disk.format,
                location: &disk.location,
                parent: disk.parent.as_ref().map(|(point, _)| point.to_string()),
                scratch: disk.scratch.as_ref().map(|scratch| scratch.dir.as_path()),
                scratch_free_bytes: disk.scratch.as_ref().map(|scratch| scratch.free),
            })
            .collect(),
        left_out: left_out_lines(&plan.left_out),
        unsupported: left_out_lines(&plan.unsupported),
        leftovers: &plan.leftovers,
        obstacle: plan.obstacle.as_deref().map(without_number),
    }
}

fn left_out_lines(list: &[LeftOut]) -> Vec<LeftOutLine<'_>> {
    list.iter()
        .map(|left_out| LeftOutLine {
            target: &left_out.target,
            reason: &left_out.reason,
        })
        .collect()
}
