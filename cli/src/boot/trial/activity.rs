//! The sign of life of a guest without an agent: it computes, and uses its disks for a time.
//!
//! Firmware and boot loader read too, and much. So the time begins when a kernel's worth has been read, and is
//! divided into windows. A guest that hangs, panics or waits at a prompt uses its disks in the first
//! one or two of them; one that starts, and then idles, in some later ones as well, for an operating system
//! writes: logs, and what it has put off. What never writes is no more than read for a time, which the search
//! for a file system that is missing also is; that needs twice as many windows, more than such a search
//! usually takes.

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
/// In how many windows a guest that writes must have used its disks.
const BUSY_MIN: u32 = 4;
/// In how many, if it only reads.
const BUSY_MIN_ONLY_READING: u32 = 8;

/// What a guest has done since it was started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// How long it has computed, on all processors together.
    pub(super) cpu: Duration,
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
    /// The number of the window that was found busy last, counted from one.
    last_busy: u128,
    busy: u32,
}

impl Activity {
    /// Takes note of what the guest has done `at` this time of the watch.
    pub(super) fn see(&mut self, at: Duration, done: Done) {
        let is_used = done.requests > self.last.requests;
        if is_used {
            self.last_used = at;
        }
        if let Some(loaded) = self.loaded {
            let window = (at - loaded).as_nanos() / WINDOW.as_nanos() + 1;
            if is_used && window != self.last_busy {
                self.last_busy = window;
                self.busy += 1;
            }
        } else if done.read_bytes >= READ_MIN {
            self.loaded = Some(at);
        }
        self.last = done;
        self.last_seen = at;
    }

    /// Whether that is a sign of life.
    pub(super) fn is_life(&self) -> bool {
        let writes = self.last.written_bytes >= WRITTEN_MIN;
        let enough = if writes {
            BUSY_MIN
        } else {
            BUSY_MIN_ONLY_READING
        };
        self.last.cpu >= CPU_MIN && self.busy >= enough
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

    /// Watches a guest for two minutes that, in each second, computes and makes requests as told: read and
    /// written bytes. Returns when there was a sign of life.
    fn watch(second: impl Fn(u64) -> (u64, u64)) -> (Option<u64>, String) {
        let (mut activity, mut done) = (Activity::default(), Done::default());
        for at in 0..120 {
            let (read, written) = second(at);
            done.cpu += Duration::from_millis(500);
            done.read_bytes += read;
            done.written_bytes += written;
            done.requests += u64::from(read > 0) + u64::from(written > 0);
            activity.see(Duration::from_secs(at), done);
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
