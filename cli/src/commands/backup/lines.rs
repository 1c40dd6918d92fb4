//! What `backup` prints: a line per domain, for people or for programs.

use serde::Serialize;
use virtkeep_repo::{CaptureMode, Point};

use crate::commands::point_line::PointLine;
use crate::context::Context;
use crate::exit::Failure;
use crate::output::{counted, seconds, size};

/// One point that was made.
#[derive(Serialize)]
pub(super) struct MadePointLine<'a> {
    #[serde(flatten)]
    point: PointLine<'a>,
    seconds: f64,
}

impl<'a> MadePointLine<'a> {
    pub(super) fn new(point: &'a Point, seconds: f64) -> Self {
        Self {
            point: PointLine::new(point),
            seconds: rounded(seconds),
        }
    }
}

/// One domain that failed.
#[derive(Serialize)]
pub(super) struct ErrorLine<'a> {
    r#type: &'static str,
    domain: &'a str,
    code: &'static str,
    message: &'a str,
}

impl<'a> ErrorLine<'a> {
    pub(super) fn new(domain: &'a str, failure: &'a Failure) -> Self {
        Self {
            r#type: "error",
            domain,
            code: failure.code,
            message: &failure.message,
        }
    }
}

/// Why a domain is skipped.
pub(super) const NO_DISKS: &str = "it has no disk to back up";

/// One domain that has nothing to back up.
#[derive(Serialize)]
pub(super) struct SkippedLine<'a> {
    r#type: &'static str,
    domain: &'a str,
    reason: &'static str,
}

impl<'a> SkippedLine<'a> {
    pub(super) fn new(domain: &'a str) -> Self {
        Self {
            r#type: "skipped",
            domain,
            reason: NO_DISKS,
        }
    }
}

/// The last line.
#[derive(Serialize)]
pub(super) struct SummaryLine {
    r#type: &'static str,
    points: usize,
    skipped: usize,
    failed: usize,
    size_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    /// Damaged records of the repository that wait for their content to be met again.
    wanted: u64,
    seconds: f64,
}

impl SummaryLine {
    pub(super) fn new(
        points: &[Point],
        skipped: usize,
        failed: usize,
        wanted: u64,
        seconds: f64,
    ) -> Self {
        let disks = || points.iter().flat_map(|point| &point.disks);
        Self {
            r#type: "summary",
            points: points.len(),
            skipped,
            failed,
            size_bytes: disks().map(|disk| disk.size.0).sum(),
            read_bytes: disks().map(|disk| disk.stats.read_bytes).sum(),
            new_bytes: disks().map(|disk| disk.stats.new_bytes).sum(),
            stored_bytes: disks().map(|disk| disk.stats.stored_bytes).sum(),
            wanted,
            seconds: rounded(seconds),
        }
    }
}

/// Milliseconds are precise enough.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// One line for people.
pub(super) fn summary(point: &Point, took: f64, context: &Context) -> String {
    let full = point
        .disks
        .iter()
        .filter(|d| d.mode == CaptureMode::Full)
        .count();
    let incremental = point.disks.len() - full;
    let mode = match (full, incremental) {
        (_, 0) => "full".to_owned(),
        (0, _) => "incremental".to_owned(),
        _ => format!("{full} full, {incremental} incremental"),
    };
    let sum = |of: fn(&virtkeep_repo::Disk) -> u64| size(point.disks.iter().map(of).sum());
    format!(
        "{}: {mode}, {} of {}, read {}, stored {} in {}",
        context.describe(point),
        counted(point.disks.len(), "disk"),
        sum(|disk| disk.size.0),
        sum(|disk| disk.stats.read_bytes),
        sum(|disk| disk.stats.stored_bytes),
        seconds(took)
    )
}
