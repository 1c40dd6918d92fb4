//! `virtkeep prune`: gives back the space of what no point needs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::{Span, SpanRelativeTo};
use serde::Serialize;
use virtkeep_repo::{PruneOptions, PruneReport};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{counted, seconds, shown, size};
use crate::progress::PruneBar;
use crate::signals;

/// Give back the space of what no point needs
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep prune --dry-run           what would be freed
  virtkeep prune                     after `virtkeep forget`
  virtkeep prune --max-unused 0%     copy more, to free more

Backups, restores and checks may run meanwhile. It may be interrupted at any
time, and repeated. Forgotten points cannot be brought back afterwards. What a
running backup may rely on is deleted by the next prune.

Exit code 4 says that packs were left alone, or everything, because of damage.")]
pub(crate) struct Args {
    /// Only say what would be freed
    #[arg(long)]
    dry_run: bool,

    /// Share of the packs that may be left unused instead of being copied together
    #[arg(long, value_name = "PERCENT", default_value = "5%", allow_hyphen_values = true, value_parser = percent)]
    max_unused: f64,

    /// How long what interrupted backups stored is kept for the next try
    #[arg(long, value_name = "TIME", default_value = "7d", allow_hyphen_values = true, value_parser = time)]
    keep_unfinished: Duration,

    /// Leave nothing that no point needs, whatever else is asked for: wait for running backups,
    /// copy all that is sparse
    #[arg(long)]
    exact: bool,
}

impl Args {
    /// As without any options.
    pub(super) fn usual() -> Self {
        Self {
            dry_run: false,
            max_unused: 5.0,
            keep_unfinished: Duration::from_secs(7 * 24 * 3600),
            exact: false,
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    match number.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("a share from 0% to 100% is needed".to_owned()),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "a time in weeks, days or hours is needed, such as 2w, 7d, 12h or 0".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span: Span = text.parse().map_err(|_| wrong())?;
    let time = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| wrong())?;
    Duration::try_from(time).map_err(|_| wrong())
}

#[derive(Serialize)]
struct DamageLine<'a> {
    r#type: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct SummaryLine {
    r#type: &'static str,
    dry_run: bool,
    points: u64,
    freed_bytes: u64,
    packs_removed: u64,
    removed_bytes: u64,
    packs_rewritten: u64,
    rewritten_bytes: u64,
    packs_waiting: u64,
    waiting_bytes: u64,
    unfinished_bytes: u64,
    unused_bytes: u64,
    forgotten_removed: u64,
    out_of_space: bool,
    damage: usize,
    seconds: f64,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let started = Instant::now();
    let options = PruneOptions {
        unused_max_percent: args.max_unused,
        keep_unfinished: args.keep_unfinished,
        exact: args.exact,
        ..PruneOptions::default()
    };
    let cancel = signals::cancel_in_order("ending the prune; the next one goes on")?;
    let repo = if args.dry_run {
        context.open_to_read()?
    } else {
        let repo = context.open()?;
        repo.check_may_remove()?;
        repo
    };
    for (id, _) in repo.forgotten()?.damaged {
        context.reporter.note(&format!(
            "note: the record of the forgotten point {id} is damaged: it can only be removed"
        ));
    }
    let report = {
        let bar = PruneBar::new(&context.reporter);
        if args.dry_run {
            repo.prune_dry_run(options, &bar, &cancel)?
        } else {
            repo.prune(options, &bar, &cancel)?
        }
    };
    let took = started.elapsed().as_secs_f64();
    for message in &report.damage {
        context.output.json(&DamageLine {
            r#type: "damage",
            message,
        })?;
    }
    context.output.json(&SummaryLine {
        r#type: "summary",
        dry_run: args.dry_run,
        points: report.points,
        freed_bytes: report.bytes_freed(),
        packs_removed: report.packs_removed,
        removed_bytes: report.bytes_removed,
        packs_rewritten: report.packs_rewritten,
        rewritten_bytes: report.bytes_rewritten,
        packs_waiting: report.packs_waiting,
        waiting_bytes: report.bytes_waiting,
        unfinished_bytes: report.bytes_unfinished,
        unused_bytes: report.bytes_unused,
        forgotten_removed: report.forgotten_removed,
        out_of_space: report.out_of_space,
        damage: report.damage.len(),
        seconds: (took * 1000.0).round() / 1000.0,
    })?;
    context.output.text(&text(&report, args.dry_run, took))?;
    Ok(if report.damage.is_empty() {
        Exit::Done
    } else {
        Exit::Damage
    })
}

fn text(report: &PruneReport, dry_run: bool, took: f64) -> String {
    let mut text = String::new();
    for damage in &report.damage {
        let _ = writeln!(text, "left alone: {}", shown(damage));
    }
    let (freed, removed, copied, gone) = if dry_run {
        ("would free", "to delete", "to copy", "to be gone for good")
    } else {
        ("freed", "deleted", "copied", "gone for good")
    };
    let mut line = |what: &str, bytes: u64, packs: Option<u64>| {
        if bytes > 0 || packs.is_some_and(|packs| packs > 0) {
            let packs = packs.map_or_else(String::new, |packs| {
                format!(" in {}", counted(packs, "pack"))
            });
            let _ = writeln!(text, "{what:<12} {:>10}{packs}", size(bytes));
        }
    };
    line(removed, report.bytes_removed, Some(report.packs_removed));
    let rewritten = Some(report.packs_rewritten);
    line(copied, report.bytes_rewritten, rewritten);
    line("waiting", report.bytes_waiting, Some(report.packs_waiting));
    line("unfinished", report.bytes_unfinished, None);
    line("left unused", report.bytes_unused, None);
    let _ = write!(
        text,
        "{freed} {}; {} kept, in {}",
        size(report.bytes_freed()),
        counted(report.points, "point"),
        seconds(took)
    );
    if report.forgotten_removed > 0 {
        let points = counted(report.forgotten_removed, "forgotten point");
        let _ = write!(text, "\n{gone}: {points}");
    }
    if report.packs_waiting > 0 && !dry_run {
        text.push_str(
            "\nwhat waits may be relied on by running backups: the next prune deletes it",
        );
    }
    if report.bytes_unfinished > 0 {
        text.push_str(
            "\nwhat is unfinished was stored by interrupted backups, and spares the next try some work",
        );
    }
    if report.out_of_space {
        text.push_str(
            "\nno space was left to copy sparse packs together: free some, then prune again",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_times_are_read_as_people_write_them() {
        assert_eq!(percent("5%"), Ok(5.0));
        assert_eq!(percent("0"), Ok(0.0));
        assert_eq!(percent("2.5%"), Ok(2.5));
        for wrong in ["", "%", "-1%", "101%", "much", "NaN"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
        assert_eq!(time("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(time("12h"), Ok(Duration::from_secs(12 * 3600)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        for wrong in ["", "7", "-7d", "soon"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_left_for_the_next_prune_is_explained() {
        let report = PruneReport {
            points: 3,
            packs_removed: 2,
            bytes_removed: 3 << 20,
            packs_rewritten: 1,
            bytes_rewritten: 1 << 20,
            packs_waiting: 1,
            bytes_waiting: 100,
            ..PruneReport::default()
        };
        let text = text(&report, false, 0.5);
        assert!(text.contains("freed 2 MiB; 3 points kept"), "{text}");
        assert!(text.contains("the next prune deletes it"), "{text}");
    }
}
