//! Measures the index: opening, look-ups, slices of insertions, how long the lock is held, memory.
//!
//! `cargo run --release -p virtkeep-benches --example index -- DIR [ENTRIES]`
//!
//! Grows an index in `DIR` in batches and measures at each power of ten. Figures are medians.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtkeep_repo::format::pack::{FinishedPack, PackEntry};
use virtkeep_repo::index::{FileGate, Held, Identity, Index, IndexFiles, IndexLock, LocalFiles};
use virtkeep_repo::{LeaseId, PackId, PackKind, PointId, RawId, RecordKind, RepoId};

/// Entries gathered before they are added, as a long backup does.
const BATCH: u64 = 1 << 20;
/// Chunks in a pack of 64 MiB.
const PER_PACK: u64 = 2300;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().expect("a directory"));
    let entries: u64 = arguments
        .next()
        .map_or(1_000_000, |text| text.parse().expect("a number of entries"));
    std::fs::create_dir_all(dir.join("locks")).expect("a writable directory");
    let files: Arc<dyn IndexFiles> = Arc::new(LocalFiles::new(&dir));
    let lock: Arc<dyn IndexLock> = Arc::new(Stopwatch(FileGate::new(&dir.join("locks"), "bench")));
    let identity = Identity {
        repo: RepoId::from_bytes([1; 16]),
        owner: 1,
    };
    let index = Index::create(Arc::clone(&files), lock, identity).expect("an index");

    let mut filled = 0;
    let mut milestone = 100_000;
    while filled < entries {
        let until = milestone.min(entries);
        let started = Instant::now();
        let before = filled;
        while filled < until {
            let next = (filled + BATCH).min(until);
            index.add_packs(&packs(filled..next)).expect("added");
            filled = next;
        }
        report_growth(filled, filled - before, started.elapsed());
        measure(&index, filled);
        milestone *= 10;
    }
}

fn report_growth(filled: u64, added: u64, took: Duration) {
    println!("== {filled} entries");
    let rate = added as f64 / took.as_secs_f64();
    println!("growing: {rate:.0} entries/s in batches of up to {BATCH}");
    held("  exclusive lock per slice");
}

fn measure(index: &Index, filled: u64) {
    let bytes = index.stats().expect("stats").file_bytes;
    println!(
        "file: {} MiB, {} bytes per entry",
        bytes >> 20,
        bytes / filled
    );
    held("  (stats)");

    let one = |n: u64| [id(n * 7919 % filled)];
    let times = timed(2000, |n| drop(index.locate(&one(n)).expect("located")));
    report("look-up of one id, opening included", &times);
    held("  shared lock");
    for size in [256, 10_000] {
        let many: Vec<Vec<RawId>> = (0..20)
            .map(|round| {
                (0..size)
                    .map(|n| id((n + round * size) * 104_729 % filled))
                    .collect()
            })
            .collect();
        let times = timed_over(&many, |ids| {
            assert!(index.known(ids).expect("known").iter().all(|known| *known));
        });
        let rate = size as f64 / median(&times).as_secs_f64();
        report(
            &format!("look-up of {size} random ids ({rate:.0}/s)"),
            &times,
        );
        held("  shared lock");
    }
    let times = timed(100, |n| {
        let name = PointId::from_bytes([n as u8; 10]);
        index.put_point(name, &[0; 2000]).expect("put");
    });
    report("one small write", &times);
    held("  exclusive lock");
    for (what, size) in [
        ("a pack of 2,300", PER_PACK),
        ("a slice of 16 Ki, alone", 16 << 10),
    ] {
        let new: Vec<Vec<FinishedPack>> = (0..10)
            .map(|round| {
                let first = (1 << 40) + (filled + round) * (1 << 20) + size * (1 << 50);
                packs(first..first + size)
            })
            .collect();
        let times = timed_over(&new, |packs| index.add_packs(packs).expect("added"));
        report(&format!("adding {what}, at random places"), &times);
        held("  exclusive lock");
    }
    println!("peak memory: {} MiB", peak_rss_mib());
}

fn id(number: u64) -> RawId {
    RawId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn packs(numbers: std::ops::Range<u64>) -> Vec<FinishedPack> {
    let mut packs = Vec::new();
    let mut first = numbers.start;
    while first < numbers.end {
        let end = (first + PER_PACK).min(numbers.end);
        let name = blake3::hash(&first.to_be_bytes());
        let name: [u8; 16] = name.as_bytes()[..16].try_into().expect("16 of 32");
        packs.push(FinishedPack {
            id: PackId::from_bytes(name),
            kind: PackKind::Data,
            lease: LeaseId::from_bytes([1; 16]),
            bytes: 64 << 20,
            entries: (first..end)
                .zip(0u32..)
                .map(|(n, at)| PackEntry {
                    id: id(n),
                    kind: RecordKind::Chunk,
                    offset: at * 28_000,
                    len: 28_000,
                })
                .collect(),
        });
        first = end;
    }
    packs
}

fn timed(count: u64, work: impl Fn(u64)) -> Vec<Duration> {
    let numbers: Vec<u64> = (0..count).collect();
    timed_over(&numbers, |n| work(*n))
}

fn timed_over<T>(inputs: &[T], work: impl Fn(&T)) -> Vec<Duration> {
    let mut times: Vec<Duration> = inputs
        .iter()
        .map(|input| {
            let started = Instant::now();
            work(input);
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times
}

fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

fn report(what: &str, sorted: &[Duration]) {
    let last = sorted[sorted.len() - 1];
    println!("{what}: {:?}, at most {last:?}", median(sorted));
}

/// What the lock was held for since the last report.
fn held(what: &str) {
    let mut times = HELD.lock().expect("no panic").split_off(0);
    if !times.is_empty() {
        times.sort_unstable();
        report(what, &times);
    }
}

static HELD: std::sync::Mutex<Vec<Duration>> = std::sync::Mutex::new(Vec::new());

/// Notes how long the lock is held.
struct Stopwatch(FileGate);

struct Running(Instant, Option<Box<dyn Held>>);

impl Held for Running {}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.1.take());
        HELD.lock().expect("no panic").push(self.0.elapsed());
    }
}

impl IndexLock for Stopwatch {
    fn shared(&self) -> virtkeep_repo::Result<Box<dyn Held>> {
        let held = self.0.shared()?;
        Ok(Box::new(Running(Instant::now(), Some(held))))
    }

    fn exclusive(&self) -> virtkeep_repo::Result<Box<dyn Held>> {
        let held = self.0.exclusive()?;
        Ok(Box::new(Running(Instant::now(), Some(held))))
    }
}

/// From `/proc/self/status`; the kernel's own high-water mark.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib >> 10)
}
