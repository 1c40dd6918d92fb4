//! Measures a repository of very many points and chunks: listing, forgetting, pruning, checking.
//!
//! `cargo run --release -p virtkeep-benches --example scale -- DIR [DOMAINS [POINTS]]`
//!
//! Backs up `DOMAINS` domains (100) `POINTS` times each (100) into a new repository in `DIR`, through the
//! engine's own calls: 50,000 chunks in the first point of each, 512 new ones in every further point. So
//! the default is 10,000 points and 10 million chunks in 20,000 packs. Chunks are of 4 KiB and all but 16
//! bytes of them are zero, so all of it takes about 4 GB. Each step prints its seconds, the processor's
//! seconds, and the most memory it held.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use virtkeep_benches::{Pseudo, draft};
use virtkeep_repo::{
    ByteLen, Cancel, CheckOptions, CheckProgress, DiskOffset, DiskSource, DomainUuid, Env, Extent,
    ExtentState, InitOptions, Next, NoProgress, OpenOptions, Point, PointId, PruneOptions,
    PruneProgress, PruneStage, ReadData, ReadQueue, Repository, SourceError, UnixMillis,
};

const CHUNK: u64 = 4096;
/// Chunks below a leaf.
const LEAF_CHUNKS: u64 = 64;
const LEAVES: u64 = 50_000 / LEAF_CHUNKS;
/// Leaves that change between two points of a domain.
const LEAVES_CHANGED: u64 = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("name a directory")?);
    let mut number = || arguments.next().map_or(Ok(100), |text| text.parse::<u64>());
    let (domains, points) = (number()?, number()?);
    let options = InitOptions {
        chunk_size: ByteLen(CHUNK),
        ..InitOptions::default()
    };
    let repo = Repository::init(&dir.join("repo"), &options, Env::system())?;
    let mut machines: Vec<Machine> = (0..domains).map(Machine::new).collect();
    // A tenth at a time: what grows with the repository shows.
    for tenth in 0..10 {
        let rounds = points * tenth / 10..points * (tenth + 1) / 10;
        let what = format!("{} backups", domains * (rounds.end - rounds.start));
        step(&what, || {
            for round in rounds {
                machines
                    .iter_mut()
                    .try_for_each(|machine| machine.back_up(&repo, round))?;
            }
            Ok(())
        })?;
    }
    println!("{:?}", repo.stats()?);

    let again = || Repository::open(repo.path(), &OpenOptions::default(), Env::system());
    let all = step("list", || Ok(again()?.points()?))?;
    step("show", || Ok(again()?.point(all[all.len() / 2].id)?))?;
    step("stats", || Ok(again()?.stats()?))?;
    check("check", &repo, ReadData::Nothing)?;
    check("check --read-data", &repo, ReadData::ALL)?;

    // Every second point, so that no pack of data can go whole and half of the nodes can.
    let forgotten: Vec<PointId> = all.iter().step_by(2).map(|point| point.id).collect();
    let what = format!("forget {} points", forgotten.len());
    step(&what, || Ok(again()?.forget(&forgotten)?))?;
    step("list what is left", || Ok(again()?.points()?))?;
    prune("prune", &repo)?;
    prune("prune again", &repo)?;
    check("check", &repo, ReadData::Nothing)?;
    step("repair: the index anew", || {
        let options = OpenOptions::default();
        let path = repo.path();
        Ok(Repository::rebuild_index(
            path,
            &options,
            Env::system(),
            &Quiet,
            &Cancel::new(),
        )?)
    })?;
    println!("{:?}", repo.stats()?);
    Ok(())
}

fn check(what: &str, repo: &Repository, read_data: ReadData) -> Result<(), Box<dyn Error>> {
    let options = CheckOptions { read_data };
    let report = step(what, || Ok(repo.check(options, &Quiet, &Cancel::new())?))?;
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

fn prune(what: &str, repo: &Repository) -> Result<(), Box<dyn Error>> {
    let options = PruneOptions::default();
    let report = step(what, || Ok(repo.prune(options, &Quiet, &Cancel::new())?))?;
    println!("    {report:?}");
    Ok(())
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

    fn back_up(&mut self, repo: &Repository, round: u64) -> Result<(), Box<dyn Error>> {
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
        draft.time = UnixMillis(1_795_384_800_000 + round * 86_400_000);
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

fn step<T>(
    what: &str,
    work: impl FnOnce() -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    // The kernel's high-water mark starts anew.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let (started, used) = (Instant::now(), processor_seconds());
    let done = work()?;
    let (took, used) = (started.elapsed(), processor_seconds() - used);
    let took = took.as_secs_f64();
    println!(
        "{what}: {took:.2} s, processor {used:.2} s, {} MiB",
        peak_rss_mib()
    );
    Ok(done)
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
