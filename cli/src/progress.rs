//! How far a command has come, on standard error: bars with rate and time left on a terminal, one
//! plain line per event otherwise.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use virtkeep_repo::{ByteLen, CheckProgress, Progress, PruneProgress, PruneStage};

use crate::output::{complain, shown, size};

/// Where progress and notes of one command go.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    bars: MultiProgress,
    on_terminal: bool,
}

impl Reporter {
    /// To standard error.
    pub(crate) fn new() -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let target = if on_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            on_terminal,
        }
    }

    /// Whether bars are seen, so that plain lines would only repeat them.
    pub(crate) fn shows_bars(&self) -> bool {
        self.on_terminal
    }

    /// One line, above the bars.
    pub(crate) fn note(&self, text: &str) {
        self.note_lines(&shown(text));
    }

    /// Text that is harmless already, and may have several lines.
    pub(crate) fn note_lines(&self, text: &str) {
        self.bars.suspend(|| complain(text));
    }

    /// Does what prints, with the bars out of the way.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bars.suspend(print)
    }

    /// Starts the progress of one disk, with a line where there is no bar; `verb` is what happens
    /// to it, as in "vda: restoring".
    pub(crate) fn disk(&self, name: &str, verb: &str, len: ByteLen) -> DiskProgress {
        if !self.on_terminal {
            self.note(&format!("{name}: {verb}, {}", size(len.0)));
        }
        self.bar(name, len)
    }

    /// Starts the progress of one disk, as a bar where one is seen.
    pub(crate) fn bar(&self, name: &str, len: ByteLen) -> DiskProgress {
        let bar = ProgressBar::hidden();
        bar.set_length(len.0);
        if self.on_terminal {
            bar.set_style(style());
            bar.set_prefix(shown(name));
            self.bars.add(bar.clone());
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        DiskProgress { bar }
    }
}

fn style() -> ProgressStyle {
    const TEMPLATE: &str = "{prefix:<12} {wide_bar} {percent:>3}% of {binary_total_bytes}  {binary_bytes_per_sec:>13}  {left:>8}";
    styled(TEMPLATE)
}

fn styled(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("left", left)
}

/// The time left, once there is something to judge by.
fn left(state: &ProgressState, text: &mut dyn fmt::Write) {
    if state.pos() > 0 {
        let _ = write!(text, "{:#} left", HumanDuration(state.eta()));
    }
}

/// The progress of one disk. Ends when dropped.
#[derive(Debug)]
pub(crate) struct DiskProgress {
    bar: ProgressBar,
}

impl Drop for DiskProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for DiskProgress {
    fn passed(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    // The bar shows how much of the disk is dealt with; what of it was really read is in the result.
    fn moved(&self, _: u64) {}
}

/// The progress of a check. Ends when dropped.
#[derive(Debug)]
pub(crate) struct CheckBar(ProgressBar);

impl CheckBar {
    /// Where a bar is seen.
    pub(crate) fn new(reporter: &Reporter) -> Self {
        let bar = ProgressBar::hidden();
        if reporter.on_terminal {
            const TEMPLATE: &str = "{prefix:<12} {wide_bar} {pos} of {len}  {left:>8}";
            bar.set_style(styled(TEMPLATE));
            reporter.bars.add(bar.clone());
        }
        Self(bar)
    }

    fn begin(&self, what: &'static str, count: u64) {
        self.0.set_prefix(what);
        self.0.set_length(count);
        self.0.set_position(0);
    }
}

impl CheckProgress for CheckBar {
    fn packs(&self, count: u64) {
        self.begin("packs", count);
    }

    fn pack_done(&self, _: u64) {
        self.0.inc(1);
    }

    fn points(&self, count: u64) {
        self.begin("points", count);
    }

    fn point_done(&self) {
        self.0.inc(1);
    }
}

impl Drop for CheckBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The progress of a prune. Ends when dropped.
#[derive(Debug)]
pub(crate) struct PruneBar<'a> {
    bar: ProgressBar,
    reporter: &'a Reporter,
}

impl<'a> PruneBar<'a> {
    /// As a bar where one is seen, with a line per stage that takes long elsewhere.
    pub(crate) fn new(reporter: &'a Reporter) -> Self {
        let bar = ProgressBar::hidden();
        if reporter.on_terminal {
            reporter.bars.add(bar.clone());
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, reporter }
    }
}

impl PruneProgress for PruneBar<'_> {
    fn begin(&self, stage: PruneStage, count: u64) {
        let what = match stage {
            PruneStage::Marking => "looking what is needed",
            PruneStage::Rewriting => "copying packs",
            PruneStage::Removing => "deleting packs",
            PruneStage::Waiting => "waiting for running backups",
        };
        if !self.reporter.on_terminal {
            let count = if count > 0 {
                format!(": {count}")
            } else {
                String::new()
            };
            self.reporter.note(&format!("{what}{count}"));
            return;
        }
        self.bar.set_style(styled(if count > 0 {
            "{prefix} {wide_bar} {pos} of {len}  {left:>8}"
        } else {
            "{spinner} {prefix}"
        }));
        self.bar.set_prefix(what);
        self.bar.set_length(count);
        self.bar.set_position(0);
    }

    fn done(&self) {
        self.bar.inc(1);
    }
}

impl Drop for PruneBar<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
