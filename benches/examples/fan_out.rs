//! What an incremental costs in manifest nodes, with 64 and with 256 children per node.
//!
//! A disk of a million chunks is stored once; then incrementals with few and many dirty chunks,
//! scattered or clustered, are stored on it. Printed per incremental: bytes written to packs beyond the
//! chunks themselves, and seconds.
//!
//! Run with `cargo run --release -p virtkeep-benches --example fan_out`.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Instant;

use virtkeep_benches::{Pseudo, draft};
use virtkeep_repo::{
    ByteLen, Cancel, Codec, DiskOffset, DiskSource, Env, Extent, ExtentState, InitOptions, Next,
    NoProgress, ReadQueue, Repository, SourceError,
};

/// Nodes are the same for every chunk size; small chunks keep the run short.
const CHUNK_BYTES: u64 = 4096;
const CHUNKS: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    println!("fan-out  dirty chunks  spread     node bytes   per dirty chunk   seconds");
    for fan_out in [64, 256] {
        let dir = tempfile::tempdir()?;
        let options = InitOptions {
            chunk_size: ByteLen(CHUNK_BYTES),
            fan_out,
            codec: Codec::None,
            ..InitOptions::default()
        };
        let repo = Repository::init(&dir.path().join("repo"), &options, Env::system())?;
        let mut parent = store(
            &repo,
            &Scattered {
                dirty: None,
                generation: 0,
            },
            None,
        )?;
        let full = repo.stats()?;
        println!(
            "{fan_out:7}  {CHUNKS:12}  full   {:14}",
            node_bytes(full.pack_bytes, CHUNKS)
        );
        let mut random = Pseudo(1);
        let incrementals = [
            (1, false),
            (20, false),
            (20, true),
            (1000, false),
            (1000, true),
            (20_000, false),
        ];
        for (generation, (dirty, clustered)) in (1..).zip(incrementals) {
            let mut chosen = BTreeSet::new();
            while (chosen.len() as u64) < dirty {
                let at = random.next() % CHUNKS;
                let run = if clustered { 20 } else { 1 };
                chosen.extend((at..(at + run).min(CHUNKS)).take((dirty as usize) - chosen.len()));
            }
            let before = repo.stats()?.pack_bytes;
            let source = Scattered {
                dirty: Some(chosen),
                generation,
            };
            let started = Instant::now();
            parent = store(&repo, &source, Some(&parent))?;
            let seconds = started.elapsed().as_secs_f64();
            let bytes = node_bytes(repo.stats()?.pack_bytes - before, dirty);
            let spread = if clustered { "in runs" } else { "single" };
            println!(
                "{fan_out:7}  {dirty:12}  {spread:8} {bytes:12}  {:16}  {seconds:8.3}",
                bytes / dirty
            );
        }
    }
    Ok(())
}

/// Pack bytes without the chunks and what each record of a chunk takes in header and table.
fn node_bytes(pack_bytes: u64, chunks: u64) -> u64 {
    pack_bytes - chunks * (CHUNK_BYTES + 60 + 44)
}

fn store(
    repo: &Repository,
    source: &Scattered,
    parent: Option<&virtkeep_repo::Point>,
) -> Result<virtkeep_repo::Point, Box<dyn Error>> {
    let parents: Vec<_> = parent.iter().map(|point| point.id).collect();
    let backup = repo.begin_backup(&parents, "bench")?;
    let disk = parent.map(|point| &point.disks[0]);
    let stored = backup.store_disk(source, disk, &NoProgress, &Cancel::new())?;
    Ok(backup.commit(draft(source.size(), stored))?)
}

/// A disk whose chunks all differ; the dirty ones differ from generation to generation.
struct Scattered {
    dirty: Option<BTreeSet<u64>>,
    generation: u64,
}

impl DiskSource for Scattered {
    fn size(&self) -> ByteLen {
        ByteLen(CHUNKS * CHUNK_BYTES)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        let extent = |from: u64, until: u64, state| Extent {
            start: DiskOffset(from * CHUNK_BYTES),
            len: ByteLen((until - from) * CHUNK_BYTES),
            state,
        };
        let at = from.0 / CHUNK_BYTES;
        let Some(dirty) = &self.dirty else {
            return Ok(vec![extent(at, CHUNKS, ExtentState::Data)]);
        };
        let next = dirty.range(at..).next().copied().unwrap_or(CHUNKS);
        let mut extents = Vec::new();
        if next > at {
            extents.push(extent(at, next, ExtentState::Unchanged));
        }
        if next < CHUNKS {
            extents.push(extent(next, next + 1, ExtentState::Data));
        }
        Ok(extents)
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        while let Next::Read(mut request) = queue.next(true) {
            let first = request.offset.0 / CHUNK_BYTES;
            for (number, chunk) in (first..).zip(request.buffer.chunks_mut(CHUNK_BYTES as usize)) {
                chunk[..8].copy_from_slice(&(number + 1).to_le_bytes());
                chunk[8..16].copy_from_slice(&self.generation.to_le_bytes());
            }
            queue.complete(request);
        }
        Ok(())
    }
}
