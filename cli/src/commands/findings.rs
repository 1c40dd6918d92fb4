//! What a check or a repair finds, told as it is found.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use virtkeep_repo::{Affected, Cancel, CheckProgress, POINT_RECORD};

use crate::context::Context;
use crate::output::{OutputError, bytes_range, counted, shown};
use crate::progress::CheckBar;

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

/// A range of bytes, the end not included.
#[derive(Serialize)]
pub(super) struct RangeLine {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Prints findings, and shows how far the work has come.
pub(super) struct Findings<'a> {
    context: &'a Context,
    bar: CheckBar,
    cancel: &'a Cancel,
    /// Standard output may go away.
    failure: Mutex<Option<OutputError>>,
    /// Points whose own records are damaged or lost.
    records: AtomicU64,
}

impl<'a> Findings<'a> {
    /// For one command; `cancel` is used when nobody listens any more.
    pub(super) fn new(context: &'a Context, cancel: &'a Cancel) -> Self {
        Self {
            context,
            bar: CheckBar::new(&context.reporter),
            cancel,
            failure: Mutex::default(),
            records: AtomicU64::new(0),
        }
    }

    /// How many points cannot be restored for want of their own records.
    pub(super) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Whether all of it could be told.
    pub(super) fn end(self) -> Result<(), OutputError> {
        let failure = self.failure.into_inner();
        let failure = failure.unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.map_or(Ok(()), Err)
    }

    fn print(&self, print: impl FnOnce() -> Result<(), OutputError>) {
        if let Err(error) = self.context.reporter.aside(print) {
            let mut failure = self.failure.lock().unwrap_or_else(|p| p.into_inner());
            failure.get_or_insert(error);
            self.cancel.cancel();
        }
    }
}

impl CheckProgress for Findings<'_> {
    fn packs(&self, count: u64) {
        self.bar.packs(count);
    }

    fn pack_done(&self, bytes: u64) {
        self.bar.pack_done(bytes);
    }

    fn points(&self, count: u64) {
        self.bar.points(count);
    }

    fn point_done(&self) {
        self.bar.point_done();
    }

    fn damage(&self, message: &str) {
        let output = self.context.output;
        self.print(|| {
            output.json(&DamageLine {
                r#type: "damage",
                message,
            })?;
            output.text(&format!("damage: {}", shown(message)))
        });
    }

    fn affected(&self, affected: &Affected) {
        let output = self.context.output;
        let domain = affected.domain.as_ref();
        if affected.part == POINT_RECORD {
            self.records.fetch_add(1, Ordering::Relaxed);
        }
        self.print(|| {
            output.json(&AffectedLine {
                r#type: "affected",
                point: affected.point.to_string(),
                domain: domain.map(|domain| domain.name.as_str()),
                uuid: domain.map(|domain| domain.uuid.to_string()),
                part: &affected.part,
                ranges: ranges(affected.ranges.iter().map(|range| (range.start, range.end))),
                message: &affected.why,
            })?;
            output.text(&describe(affected))
        });
    }
}

/// What to do about points whose records nothing puts back.
pub(super) fn records_to_give_up(records: u64) -> String {
    format!(
        "\n{} without a record that can be read: what repair cannot put back, `virtkeep repair --yes` gives up",
        counted(records, "point")
    )
}

/// Ranges for programs.
pub(super) fn ranges(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<RangeLine> {
    ranges
        .map(|(start, end)| RangeLine { start, end })
        .collect()
}

fn describe(affected: &Affected) -> String {
    let domain = affected.domain.as_ref();
    let domain = domain.map_or_else(String::new, |domain| format!("{} ", shown(&domain.name)));
    let mut text = format!("{domain}{}: {}", affected.point, shown(&affected.part));
    const FEW: usize = 5;
    for (n, range) in affected.ranges.iter().take(FEW).enumerate() {
        let before = if n == 0 { "" } else { "," };
        let _ = write!(text, "{before} {}", bytes_range(range.start, range.end));
    }
    if affected.ranges.len() > FEW {
        let _ = write!(text, " and {} more", affected.ranges.len() - FEW);
    }
    format!("{text}: {}", shown(&affected.why))
}
