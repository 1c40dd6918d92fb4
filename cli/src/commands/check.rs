//! `virtkeep check`: is everything there that the points need, and is it what it should be?

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{ByteLen, CheckOptions, CheckReport, ReadData};

use super::findings::{Findings, records_to_give_up};
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{counted, seconds, size};
use crate::signals;
use crate::sizes::parse_bytes;

/// Check that every point can be restored
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep check                     packs, index and the trees of all points
  virtkeep check --read-data         every stored byte as well
  virtkeep check --read-data=10%     every byte of a tenth of the packs
  virtkeep check --read-data=20GiB   every byte of so many packs

A share goes on where the last one ended, so that ten checks of a tenth each
have read everything.

Damage is reported with the ranges of the disks it hits, and ends with exit
code 4. Nothing is changed; everything else may go on meanwhile.")]
pub(crate) struct Args {
    /// Read and verify the packs too, or a share of them: a percentage or a size
    #[arg(
        long,
        value_name = "SHARE",
        num_args = 0..=1,
        default_missing_value = "100%",
        value_parser = parse_share
    )]
    read_data: Option<ReadData>,
}

/// `10%`, `20GiB`; a number alone is a percentage, as it always was.
fn parse_share(text: &str) -> Result<ReadData, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    if number.len() < text.len() || number.bytes().all(|b| b.is_ascii_digit()) {
        return match number.parse() {
            Ok(percent @ 1..=100) => Ok(ReadData::Percent(percent)),
            _ => Err("a percentage is from 1% to 100%".to_owned()),
        };
    }
    match parse_bytes(text)? {
        0 => Err("that would read nothing".to_owned()),
        bytes => Ok(ReadData::Bytes(ByteLen(bytes))),
    }
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
    wanted: u64,
    forgotten_damaged: u64,
    damage: usize,
    affected: u64,
    seconds: f64,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let started = Instant::now();
    let repo = context.open_to_read()?;
    let cancel = signals::cancel_in_order("ending the check")?;
    let options = CheckOptions {
        read_data: args.read_data.unwrap_or_default(),
    };
    let findings = Findings::new(context, &cancel);
    let report = repo.check(options, &findings, &cancel);
    let records = findings.records();
    findings.end()?;
    let report = report?;
    let took = started.elapsed().as_secs_f64();
    context.output.json(&SummaryLine {
        r#type: "summary",
        clean: report.is_clean(),
        points: report.points,
        disks: report.disks,
        packs: report.packs,
        packs_read: report.packs_read,
        bytes_read: report.bytes_read,
        unindexed_bytes: report.unindexed_bytes,
        wanted: report.wanted,
        forgotten_damaged: report.forgotten_damaged,
        damage: report.damage.len(),
        affected: report.affected,
        seconds: (took * 1000.0).round() / 1000.0,
    })?;
    context.output.text(&text(&report, records, took))?;
    Ok(if report.is_clean() {
        Exit::Done
    } else {
        Exit::Damage
    })
}

/// What came out in the end; `records` is how many points lack their own record.
fn text(report: &CheckReport, records: u64, took: f64) -> String {
    let mut text = format!(
        "checked {} with {}, and {}",
        counted(report.points, "point"),
        counted(report.disks, "disk"),
        counted(report.packs, "pack")
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
    if report.wanted > 0 {
        let _ = write!(
            text,
            "\nnoted as lost: {}; the next backup that meets the same content heals what needs it",
            counted(report.wanted, "damaged record")
        );
    }
    if report.forgotten_damaged > 0 {
        let _ = write!(
            text,
            "\n{} cannot be brought back, since the record is damaged: `virtkeep prune` removes that; no damage to what is kept",
            counted(report.forgotten_damaged, "forgotten point")
        );
    }
    let only_pins = report.damage.len() as u64 == report.pins_damaged;
    text.push_str(match (report.is_clean(), report.affected) {
        (true, _) => "\nno damage found",
        (false, 0) if only_pins => "\ndamage found: every point can be restored",
        (false, 0) => "\ndamage found; of the points that were checked all can be restored: run `virtkeep repair`",
        (false, _) => {
            "\ndamage found: the parts named above cannot be restored whole; run `virtkeep repair`"
        }
    });
    if records > 0 {
        let _ = write!(text, "{}", records_to_give_up(records));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_or_a_size() {
        for (text, share) in [
            ("10%", ReadData::Percent(10)),
            ("10", ReadData::Percent(10)),
            ("100%", ReadData::ALL),
            ("20GiB", ReadData::Bytes(ByteLen(20 << 30))),
        ] {
            assert_eq!(parse_share(text), Ok(share));
        }
        for text in ["0", "0%", "101%", "-1%", "1.5%", "%", "0GiB", "lots"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
