//! Makes a repository of many points of one disk with two partitions, to look around in; `mount.sh` does.
//!
//! `cargo run --release -p virtkeep-benches --example points -- DIR [POINTS]`
//!
//! The disk `vda` of the domain `vm1` has 1 GiB. Every point (3,000) has ten new chunks. All of it takes
//! about 800 MB.

use std::error::Error;
use std::path::PathBuf;

use virtkeep_benches::{Pseudo, draft};
use virtkeep_repo::{
    ByteLen, Cancel, DiskOffset, DiskSource, Env, Extent, ExtentState, InitOptions, Next,
    NoProgress, Point, ReadQueue, Repository, SourceError, UnixMillis,
};

const CHUNK: u64 = 65_536;
const CHUNKS: u64 = 16_384;
/// How much of a chunk is not zero.
const FILLED_BYTES: usize = 16_384;
/// Partitions, in sectors of 512 bytes.
const PARTITIONS: [(u32, u32); 2] = [(2048, 400_000), (500_000, 400_000)];

struct Machine {
    /// How often each chunk has changed.
    versions: Vec<u64>,
    changed: Vec<bool>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("name a directory")?);
    let points = arguments
        .next()
        .map_or(Ok(3000), |text| text.parse::<u64>())?;
    let repo = Repository::init(&dir, &InitOptions::default(), Env::system())?;
    let mut machine = Machine {
        versions: vec![0; CHUNKS as usize],
        changed: vec![true; CHUNKS as usize],
    };
    let mut random = Pseudo(7);
    let mut last: Option<Point> = None;
    for round in 0..points {
        if last.is_some() {
            machine.changed.fill(false);
            for _ in 0..10 {
                let chunk = 1 + (random.next() % (CHUNKS - 1)) as usize;
                machine.versions[chunk] += 1;
                machine.changed[chunk] = true;
            }
        }
        let parents: Vec<_> = last.iter().map(|point| point.id).collect();
        let backup = repo.begin_backup(&parents, "points")?;
        let parent = last.as_ref().map(|point| &point.disks[0]);
        let stored = backup.store_disk(&machine, parent, &NoProgress, &Cancel::new())?;
        let mut draft = draft(machine.size(), stored);
        draft.domain.name = "vm1".to_owned();
        draft.time = UnixMillis(1_795_384_800_000 + round * 3_600_000);
        last = Some(backup.commit(draft)?);
    }
    Ok(())
}

impl DiskSource for Machine {
    fn size(&self) -> ByteLen {
        ByteLen(CHUNKS * CHUNK)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        let chunks = from.0 / CHUNK..CHUNKS;
        Ok(chunks
            .map(|chunk| Extent {
                start: DiskOffset(chunk * CHUNK),
                len: ByteLen(CHUNK),
                state: match self.changed[chunk as usize] {
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
                chunk.fill(0);
                if number == 0 {
                    write_table(chunk);
                    continue;
                }
                let mut random = Pseudo(number << 32 | self.versions[number as usize] << 1 | 1);
                for word in chunk[..FILLED_BYTES].chunks_exact_mut(8) {
                    word.copy_from_slice(&random.next().to_le_bytes());
                }
            }
            queue.complete(request);
        }
        Ok(())
    }
}

/// An MBR.
fn write_table(disk: &mut [u8]) {
    for (slot, (start, len)) in PARTITIONS.into_iter().enumerate() {
        let at = 446 + slot * 16;
        disk[at + 4] = 0x83;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
}
