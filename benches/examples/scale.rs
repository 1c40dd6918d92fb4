//! Measures a repository of very many points and chunks: listing, forgetting, pruning, checking.
//!
//! `cargo run --release -p virtkeep-benches --example scale -- DIR [DOMAINS [POINTS [STEP…]]]`
//!
//! Backs up `DOMAINS` domains (100) `POINTS` times each (100) into a new repository in `DIR`, through the
//! engine's own calls: 50,000 chunks in the first point of each, 512 new ones in every further point. So
//! the default is 10,000 points and 10 million chunks in 20,000 packs. Chunks are of 4 KiB and all but 16
//! bytes of them are zero, so all of it takes about 4 GB.
//!
//! Each step is a process of its own. It prints its seconds, the processor's seconds, the most memory it
//! held, and how long another command that only wants to look something up had to wait at most. The
//! step `policy` needs the program itself: `cargo build --release` before.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use virtkeep_benches::{Pseudo, draft};
use virtkeep_repo::index::{FileGate, Identity, Index, LocalFiles};
use virtkeep_repo::{
    ByteLen, Cancel, CheckOptions, CheckProgress, DiskOffset, DiskSource, DomainUuid, Env, Extent,
    ExtentState, InitOptions, Next, NoProgress, OpenOptions, Point, PointId, PruneOptions,
    PruneProgress, PruneStage, ReadData, ReadQueue, RepoId, Repository, SourceError, UnixMillis,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const CHUNK: u64 = 4096;
/// Chunks below a leaf.
const LEAF_CHUNKS: u64 = 64;
const LEAVES: u64 = 50_000 / LEAF_CHUNKS;
/// Leaves that change between two points of a domain.
const LEAVES_CHANGED: u64 = 8;

/// All steps, in their order.
const STEPS: [&str; 14] = [
    "grow",
    "list",
    "show",
    "stats",
    "check",
    "read-data",
    "policy",
    "forget",
    "list",
    "dry-run",
    "prune",
    "prune",
    "check",
    "rebuild",
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("name a directory")?;
    let mut number = || arguments.next().map_or(Ok(100), |text| text.parse::<u64>());
    let (domains, points) = (number()?, number()?);
    let steps: Vec<String> = arguments.collect();
    match steps.as_slice() {
        [step] => run(step, &PathBuf::from(dir).join("repo"), domains, points),
        [] => run_each(&STEPS, &dir, domains, points),
        several => {
            let several: Vec<&str> = several.iter().map(String::as_str).collect();
            run_each(&several, &dir, domains, points)
        }
    }
}

fn run_each(steps: &[&str], dir: &str, domains: u64, points: u64) -> Result<()> {
    for step in steps {
        let numbers = [domains.to_string(), points.to_string()];
        let mut process = Command::new(std::env::current_exe()?);
        let status = process.arg(dir).args(numbers).arg(step).status()?;
        if !status.success() {
            return Err(format!("{step}: {status}").into());
        }
    }
    Ok(())
}

fn run(step: &str, path: &Path, domains: u64, points: u64) -> Result<()> {
    let open = || Repository::open(path, &OpenOptions::default(), Env::system());
    match step {
        "grow" => grow(path, domains, points)?,
        "list" => drop(measure(path, step, || Ok(open()?.points()?))?),
        "show" => {
            let all = open()?.points()?;
            let point = all[all.len() / 2].id;
            measure(path, step, || Ok(open()?.point(point)?))?;
        }
        "stats" => println!("{:?}", measure(path, step, || Ok(open()?.stats()?))?),
        "check" => check(path, step, &open()?, ReadData::Nothing)?,
        "read-data" => check(path, "check --read-data", &open()?, ReadData::ALL)?,
        "policy" => measure(path, step, || apply_policy(path))?,
        "forget" => {
            // Every second point, so that no pack of data can go whole and half of the nodes can.
            let all = open()?.points()?;
            let forgotten: Vec<PointId> = all.iter().step_by(2).map(|point| point.id).collect();
            let what = format!("forget {} points", forgotten.len());
            measure(path, &what, || Ok(open()?.forget(&forgotten)?))?;
        }
        "dry-run" => {
            let (options, repo) = (PruneOptions::default(), open()?);
            let forecast = || Ok(repo.prune_dry_run(options, &Quiet, &Cancel::new())?);
            println!("    {:?}", measure(path, "prune --dry-run", forecast)?);
        }
        "prune" => {
            let (options, repo) = (PruneOptions::default(), open()?);
            let prune = || Ok(repo.prune(options, &Quiet, &Cancel::new())?);
            println!("    {:?}", measure(path, step, prune)?);
        }
        "rebuild" => {
            let options = OpenOptions::default();
            let (env, cancel) = (Env::system(), Cancel::new());
            let rebuild = || {
                Ok(Repository::rebuild_index(
                    path, &options, env, &Quiet, &cancel,
                )?)
            };
            measure(path, "repair: the index anew", rebuild)?;
            println!("{:?}", open()?.stats()?);
        }
        other => return Err(format!("there is no step {other}").into()),
    }
    Ok(())
}

fn grow(path: &Path, domains: u64, points: u64) -> Result<()> {
    let options = InitOptions {
        chunk_size: ByteLen(CHUNK),
        ..InitOptions::default()
    };
    let repo = Repository::init(path, &options, Env::system())?;
    let mut machines: Vec<Machine> = (0..domains).map(Machine::new).collect();
    // A tenth at a time: what grows with the repository shows.
    for tenth in 0..10 {
        let rounds = points * tenth / 10..points * (tenth + 1) / 10;
        let what = format!("{} backups", domains * (rounds.end - rounds.start));
        measure(path, &what, || {
            for round in rounds {
                machines
                    .iter_mut()
                    .try_for_each(|machine| machine.back_up(&repo, round))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn check(path: &Path, what: &str, repo: &Repository, read_data: ReadData) -> Result<()> {
    let options = CheckOptions { read_data };
    let check = || Ok(repo.check(options, &Quiet, &Cancel::new())?);
    let report = measure(path, what, check)?;
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

/// What the program says to a policy; its own memory is not seen.
fn apply_policy(path: &Path) -> Result<()> {
    let here = std::env::current_exe()?;
    let program = here.parent().and_then(Path::parent).ok_or("no directory")?;
    let mut forget = Command::new(program.join("virtkeep"));
    forget.arg("-r").arg(path).arg("forget");
    forget.args("--keep-daily 14 --keep-weekly 8 --keep-monthly 12 --keep-within 3d".split(' '));
    let status = forget.arg("--dry-run").stdout(Stdio::null()).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{forget:?}: {status}").into())
    }
}

struct Quiet;

impl CheckProgress for Quiet {
    fn packs(&self, _: u64) {}
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

impl PruneProgress for Quiet {
    fn begin(&self, stage: PruneStage, count: u64) {
        println!("    {stage:?} {count}");
    }
    fn done(&self) {}
}

/// A domain of one disk.
struct Machine {
    number: u64,
    random: Pseudo,
    /// How often each leaf has changed.
    versions: Vec<u64>,
    changed: Vec<bool>,
    last: Option<Point>,
}

impl Machine {
    fn new(number: u64) -> Self {
        Self {
            number,
            random: Pseudo(number + 1),
            versions: vec![0; LEAVES as usize],
            changed: vec![true; LEAVES as usize],
            last: None,
        }
    }

    fn back_up(&mut self, repo: &Repository, round: u64) -> Result<()> {
        if self.last.is_some() {
            self.changed.fill(false);
            for _ in 0..LEAVES_CHANGED {
                let leaf = (self.random.next() % LEAVES) as usize;
                self.versions[leaf] += 1;
                self.changed[leaf] = true;
            }
        }
        let parents: Vec<_> = self.last.iter().map(|point| point.id).collect();
        let backup = repo.begin_backup(&parents, "scale")?;
        let parent = self.last.as_ref().map(|point| &point.disks[0]);
        let stored = backup.store_disk(self, parent, &NoProgress, &Cancel::new())?;
        let mut draft = draft(self.size(), stored);
        draft.domain.uuid = DomainUuid::from_bytes((u128::from(self.number) + 1).to_be_bytes());
        draft.domain.name = format!("domain {}", self.number);
        // Once a day, in the past: what is to come no policy lets go.
        draft.time = UnixMillis(1_700_000_000_000 + round * 86_400_000);
        self.last = Some(backup.commit(draft)?);
        Ok(())
    }
}

impl DiskSource for Machine {
    fn size(&self) -> ByteLen {
        ByteLen(LEAVES * LEAF_CHUNKS * CHUNK)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        let len = LEAF_CHUNKS * CHUNK;
        let leaves = from.0 / len..LEAVES;
        Ok(leaves
            .map(|leaf| Extent {
                start: DiskOffset(leaf * len),
                len: ByteLen(len),
                state: match self.changed[leaf as usize] {
                    true => ExtentState::Data,
                    false => ExtentState::Unchanged,
                },
            })
            .collect())
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        while let Next::Read(mut request) = queue.next(true) {
            let first = request.offset.0 / CHUNK;
            for (chunk, number) in request.buffer.chunks_mut(CHUNK as usize).zip(first..) {
                let version = self.versions[(number / LEAF_CHUNKS) as usize];
                chunk.fill(0);
                chunk[..8].copy_from_slice(&(self.number << 32 | number).to_be_bytes());
                chunk[8..16].copy_from_slice(&(version + 1).to_le_bytes());
            }
            queue.complete(request);
        }
        Ok(())
    }
}

fn measure<T>(path: &Path, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| longest_wait(path, &over));
        let (started, used) = (Instant::now(), processor_seconds());
        let done = work();
        let (took, used) = (started.elapsed(), processor_seconds() - used);
        over.store(true, Ordering::Relaxed);
        let waited = watch.join().map_err(|_| "the watch panicked")?;
        let (took, peak) = (took.as_secs_f64(), peak_rss_mib());
        println!(
            "{what}: {took:.2} s, processor {used:.2} s, {peak} MiB, others waited {waited:?} at most"
        );
        done
    })
}

/// Looks at the index now and then, as another command would.
fn longest_wait(path: &Path, over: &AtomicBool) -> Duration {
    let gate = FileGate::new(&path.join("locks"), "bench");
    // Not asked whether it is this repository's.
    let identity = Identity {
        repo: RepoId::from_bytes([0; 16]),
        owner: 0,
    };
    let index = Index::at(Arc::new(LocalFiles::new(path)), Arc::new(gate), identity);
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::Relaxed) {
        let started = Instant::now();
        if index.epoch().is_ok() {
            longest = longest.max(started.elapsed());
        }
        thread::sleep(Duration::from_millis(5));
    }
    longest
}

/// User and system time of all threads.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn peak_rss_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib >> 10)
}
