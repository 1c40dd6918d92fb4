//! The sign of life of a guest without an agent: it computes, and uses its disks, for a time.
//!
//! Firmware and boot loader read too, and much. So the time begins when a kernel's worth has been read, and is
//! divided into windows. Those count in which the guest used its disks. A guest that hangs, panics or waits at a prompt
//! does so in the first one or two; one that starts, in more.
//!
//! A small one starts fast, and then leaves its disks alone. Of a guest that has **written** more than a boot loader does,
//! file systems are in use; from it those windows count as well in which it was **at rest**: a processor computed now and
//! then, and none all the time. One that panics spins for ever, one that was halted or hangs with interrupts off does
//! not compute at all. A processor that others keep from running counts as if it ran, so that a busy host does not
//! make a guest that spins look like one at rest.
//!
//! What never writes is no more than read, which the search for a file system that is missing also is; that has to use its
//! disks in twice as many windows, more than such a search usually takes.

use std::time::Duration;

use crate::output::size;

/// What a guest reads that does more than look for something to boot.
const READ_MIN: u64 = 4 << 20;
/// What a guest writes whose file systems are in use. Boot loaders note something, too: a sector or two.
const WRITTEN_MIN: u64 = 64 << 10;
/// What a guest computes that does more than stand still.
const CPU_MIN: Duration = Duration::from_secs(1);
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(5);
/// In how many windows a guest that writes must have used its disks, or been at rest.
const BUSY_MIN: u32 = 4;
/// In how many, if it only reads.
const BUSY_MIN_ONLY_READING: u32 = 8;

/// The share of a window in which a processor may compute that is at rest, in percent.
const REST_MAX: u32 = 50;

/// What a processor has done since its guest was started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Processor {
    /// How long it has computed.
    pub(super) ran: Duration,
    /// How long it would have, and was kept from it by others on the host.
    pub(super) waited: Duration,
}

/// What a guest has done since it was started.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// How long it has computed, on all processors together.
    pub(super) cpu: Duration,
    /// Each of them; none where nobody knows.
    pub(super) processors: Vec<Processor>,
    /// What it has read from all disks.
    pub(super) read_bytes: u64,
    /// What it has written to all disks.
    pub(super) written_bytes: u64,
    /// How many requests the disks have answered.
    pub(super) requests: u64,
}

/// What has been seen of a guest.
#[derive(Debug, Default)]
pub(super) struct Activity {
    last: Done,
    last_seen: Duration,
    /// When the disks answered something last.
    last_used: Duration,
    loaded: Option<Duration>,
    window: Window,
    /// In how many windows it used its disks.
    busy: u32,
    /// In how many others it was at rest.
    at_rest: u32,
}

/// The window of time that it is in.
#[derive(Debug, Default)]
struct Window {
    /// Counted from one.
    number: u128,
    began: Duration,
    before: Vec<Processor>,
    is_busy: bool,
}

impl Window {
    /// Whether the guest was at rest until now.
    fn was_at_rest(&self, at: Duration, processors: &[Processor]) -> bool {
        let most = (at - self.began) * REST_MAX / 100;
        let mut computed = self.before.iter().zip(processors).map(|(before, now)| {
            let ran = now.ran.saturating_sub(before.ran);
            (ran, ran + now.waited.saturating_sub(before.waited))
        });
        computed.clone().any(|(ran, _)| !ran.is_zero()) && computed.all(|(_, wanted)| wanted < most)
    }
}

impl Activity {
    /// Takes note of what the guest has done `at` this time of the watch.
    pub(super) fn see(&mut self, at: Duration, done: Done) {
        let is_used = done.requests > self.last.requests;
        if is_used {
            self.last_used = at;
        }
        if let Some(loaded) = self.loaded {
            let number = (at - loaded).as_nanos() / WINDOW.as_nanos() + 1;
            if number != self.window.number {
                self.begin(number, at, &done.processors);
            }
            if is_used && !self.window.is_busy {
                self.window.is_busy = true;
                self.busy += 1;
            }
        } else if done.read_bytes >= READ_MIN {
            self.loaded = Some(at);
        }
        self.last = done;
        self.last_seen = at;
    }

    /// Ends the window that it was in, and begins another one.
    fn begin(&mut self, number: u128, at: Duration, processors: &[Processor]) {
        if !self.window.is_busy && self.window.was_at_rest(at, processors) {
            self.at_rest += 1;
        }
        self.window = Window {
            number,
            began: at,
            before: processors.to_vec(),
            is_busy: false,
        };
    }

    /// Whether that is a sign of life.
    pub(super) fn is_life(&self) -> bool {
        let writes = self.last.written_bytes >= WRITTEN_MIN;
        let is_enough = if writes {
            self.busy + self.at_rest >= BUSY_MIN
        } else {
            self.busy >= BUSY_MIN_ONLY_READING
        };
        self.last.cpu >= CPU_MIN && is_enough
    }

    /// What was seen, in words.
    pub(super) fn words(&self) -> String {
        let quiet = (self.last_seen - self.last_used).as_secs();
        format!(
            "the guest has computed for {:.0} s, read {} and written {}{}",
            self.last.cpu.as_secs_f64(),
            size(self.last.read_bytes),
            size(self.last.written_bytes),
            if quiet > WINDOW.as_secs() {
                format!(", the last of it {quiet} s ago")
            } else {
                String::new()
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Watches a guest for two minutes that, in each second, makes requests as told: read and written bytes. Its
    /// processor spins. Returns when there was a sign of life.
    fn watch(second: impl Fn(u64) -> (u64, u64)) -> (Option<u64>, String) {
        watch_computing(second, |_| (1000, 0))
    }

    /// The same for one that computes, and is kept from it, so many milliseconds of each second.
    fn watch_computing(
        second: impl Fn(u64) -> (u64, u64),
        millis: impl Fn(u64) -> (u64, u64),
    ) -> (Option<u64>, String) {
        let (mut activity, mut done) = (Activity::default(), Done::default());
        let mut processor = Processor::default();
        for at in 0..120 {
            let (read, written) = second(at);
            let (ran, waited) = millis(at);
            done.cpu += Duration::from_millis(ran);
            processor.ran += Duration::from_millis(ran);
            processor.waited += Duration::from_millis(waited);
            done.processors = vec![processor, Processor::default()];
            done.read_bytes += read;
            done.written_bytes += written;
            done.requests += u64::from(read > 0) + u64::from(written > 0);
            activity.see(Duration::from_secs(at), done.clone());
            if activity.is_life() {
                return (Some(at), activity.words());
            }
        }
        (None, activity.words())
    }

    #[test]
    fn whoever_starts_and_then_idles_is_alive() {
        let (at, words) = watch(|at| match at {
            0..8 => (20 * MIB, 0),
            8..12 => (2 * MIB, MIB),
            17 | 40 | 70 => (0, 8 << 10),
            _ => (0, 0),
        });
        assert_eq!(at, Some(17), "{words}");
    }

    /// Loads a kernel, mounts a file system and starts, within five seconds.
    fn starts_fast(at: u64) -> (u64, u64) {
        match at {
            0..2 => (20 * MIB, 0),
            2..5 => (2 * MIB, MIB),
            _ => (0, 0),
        }
    }

    #[test]
    fn whoever_starts_fast_and_then_leaves_its_disks_alone_is_alive() {
        let computes = |at| (if at < 5 { 900 } else { 3 }, 0);
        let (at, words) = watch_computing(starts_fast, computes);
        assert_eq!(at, Some(20), "{words}");
    }

    #[test]
    fn whoever_starts_and_then_spins_or_stands_still_is_not() {
        // Of a second in which others keep it from computing for as long, too.
        for then in [(1000, 0), (100, 800), (0, 0)] {
            let (at, words) =
                watch_computing(starts_fast, |at| if at < 6 { (900, 0) } else { then });
            assert_eq!(at, None, "{then:?}: {words}");
        }
    }

    #[test]
    fn a_prompt_before_any_file_system_is_in_use_is_no_life() {
        let loads = |at| (if at < 5 { 20 * MIB } else { 0 }, 0);
        let (at, words) = watch_computing(loads, |at| (if at < 5 { 900 } else { 3 }, 0));
        assert_eq!(at, None, "{words}");
    }

    #[test]
    fn whoever_only_reads_must_do_so_for_longer() {
        assert_eq!(watch(|_| (MIB, 0)).0, Some(38));
    }

    #[test]
    fn nothing_to_boot_is_no_life() {
        let (at, words) = watch(|at| (if at < 3 { 512 } else { 0 }, 0));
        assert_eq!(at, None, "{words}");
        assert!(words.ends_with(", the last of it 117 s ago"), "{words}");
    }

    #[test]
    fn a_kernel_that_is_loaded_and_then_panics_is_no_life() {
        // GRUB notes that it tried; the kernel looks for partitions.
        let (at, words) = watch(|at| match at {
            0..6 => (16 * MIB, 1024),
            9 => (MIB, 0),
            _ => (0, 0),
        });
        assert_eq!(at, None, "{words}");
    }

    #[test]
    fn a_search_for_a_file_system_that_is_missing_is_no_life() {
        let search = |at| (if at < 33 { MIB } else { 0 }, 0);
        let (at, words) = watch(search);
        assert_eq!(at, None, "{words}");
    }

    #[test]
    fn whoever_reads_without_computing_is_a_firmware() {
        let mut activity = Activity::default();
        for at in 0..120 {
            let requests = at + 1;
            let read_bytes = requests * MIB;
            let done = Done {
                read_bytes,
                requests,
                ..Done::default()
            };
            activity.see(Duration::from_secs(at), done);
        }
        assert!(!activity.is_life());
    }
}
