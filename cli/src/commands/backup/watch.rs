//! Shows a capture while it runs: a bar per disk on a terminal, a line per event otherwise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use virtkeep_capture::{Event, Observer};
use virtkeep_repo::{CaptureMode, Progress};

use crate::output::{shown, size};
use crate::progress::{DiskProgress, Reporter};

/// Watches the backup of one domain.
pub(in crate::commands) struct Watch<'a> {
    domain: String,
    reporter: &'a Reporter,
    disks: Mutex<HashMap<String, Arc<DiskProgress>>>,
}

impl<'a> Watch<'a> {
    pub(in crate::commands) fn new(domain: &str, reporter: &'a Reporter) -> Self {
        Self {
            domain: domain.to_owned(),
            reporter,
            disks: Mutex::default(),
        }
    }

    fn disks(&self) -> MutexGuard<'_, HashMap<String, Arc<DiskProgress>>> {
        self.disks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn disk(&self, target: &str) -> Option<Arc<DiskProgress>> {
        self.disks().get(target).cloned()
    }

    /// Whether an event is worth a line where bars show the rest.
    fn matters_beside_bars(event: &Event) -> bool {
        matches!(
            event,
            Event::Cleared { .. }
                | Event::FreezeSkipped { .. }
                | Event::Note(_)
                | Event::Warning(_)
        )
    }
}

impl Observer for Watch<'_> {
    fn event(&self, event: &Event) {
        match event {
            Event::DiskPlanned {
                target, size: len, ..
            } => {
                let disk = self.reporter.bar(target, *len);
                self.disks().insert(target.clone(), Arc::new(disk));
            }
            Event::DiskDone { target, .. } => {
                self.disks().remove(target);
            }
            _ => {}
        }
        if !self.reporter.shows_bars() || Self::matters_beside_bars(event) {
            let domain = shown(&self.domain);
            self.reporter
                .note(&format!("{domain}: {}", describe(event)));
        }
    }

    fn passed(&self, target: &str, bytes: u64) {
        if let Some(disk) = self.disk(target) {
            disk.passed(bytes);
        }
    }

    fn moved(&self, target: &str, bytes: u64) {
        if let Some(disk) = self.disk(target) {
            disk.moved(bytes);
        }
    }
}

/// The event in a line for people: as the log has it, with sizes that can be read.
fn describe(event: &Event) -> String {
    match event {
        Event::DiskPlanned {
            target,
            size: len,
            mode,
            reason,
        } => {
            let mode = match mode {
                CaptureMode::Full => "full",
                CaptureMode::Incremental => "incremental",
            };
            format!("{target}: {mode}, {}: {reason}", size(len.0))
        }
        Event::Started { point, .. } => format!("begun, to become the point {point}"),
        Event::Scratch { target, dir, free } => format!(
            "{target}: scratch file in {}, {} free",
            dir.display(),
            size(*free)
        ),
        Event::DiskDone { target, stats } => format!(
            "{target}: done: read {}, new {}, stored {}",
            size(stats.read_bytes),
            size(stats.new_bytes),
            size(stats.stored_bytes)
        ),
        other => other.to_string(),
    }
}
