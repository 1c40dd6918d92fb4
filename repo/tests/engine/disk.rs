//! A disk in memory that keeps a dirty bitmap, as QEMU does, and a repository to back it up into.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;

use tempfile::TempDir;
use virtkeep_repo::{
    ByteLen, Cancel, CaptureMode, Consistency, Disk, DiskOffset, DiskSink, DiskSource, Domain,
    DomainUuid, Env, Extent, ExtentState, InitOptions, Next, NoProgress, OpenOptions, Point,
    PointDraft, ReadQueue, Repository, SourceError, SourceKind, StoredDisk, UnixMillis,
};

/// Granularity of the dirty bitmap.
const DIRTY_BYTES: usize = 64 << 10;

/// A disk at rest between two backups.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk {
    pub(crate) bytes: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl MemoryDisk {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size],
            dirty: BTreeSet::new(),
        }
    }

    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty
                .extend(at / DIRTY_BYTES..=(at + bytes.len() - 1) / DIRTY_BYTES);
        }
    }

    /// Grows with zeroes or shrinks, leaving the bitmap clean, as QEMU does.
    pub(crate) fn resize(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        self.dirty.retain(|block| block * DIRTY_BYTES < size);
    }

    /// The disk for an incremental backup; its bitmap starts anew.
    pub(crate) fn changes(&mut self) -> MemorySource<'_> {
        MemorySource {
            bytes: &self.bytes,
            dirty: Some(std::mem::take(&mut self.dirty)),
            claims_all_unchanged: false,
            reads: Mutex::default(),
        }
    }

    /// The disk as a source shows it that takes everything for unchanged, also what the parent never
    /// had.
    pub(crate) fn claimed_unchanged(&self) -> MemorySource<'_> {
        MemorySource {
            bytes: &self.bytes,
            dirty: Some(BTreeSet::new()),
            claims_all_unchanged: true,
            reads: Mutex::default(),
        }
    }

    /// The disk for a full backup.
    pub(crate) fn whole(&mut self) -> MemorySource<'_> {
        self.dirty.clear();
        MemorySource {
            bytes: &self.bytes,
            dirty: None,
            claims_all_unchanged: false,
            reads: Mutex::default(),
        }
    }
}

/// What a backup sees of a [`MemoryDisk`].
pub(crate) struct MemorySource<'a> {
    bytes: &'a [u8],
    dirty: Option<BTreeSet<usize>>,
    claims_all_unchanged: bool,
    /// Offset and length of every read.
    pub(crate) reads: Mutex<Vec<(u64, usize)>>,
}

impl MemorySource<'_> {
    fn state(&self, sector: usize) -> ExtentState {
        let start = sector * 512;
        if self.claims_all_unchanged {
            return ExtentState::Unchanged;
        }
        if self.bytes[start..start + 512].iter().all(|byte| *byte == 0) {
            ExtentState::Zero
        } else if self
            .dirty
            .as_ref()
            .is_some_and(|dirty| !dirty.contains(&(start / DIRTY_BYTES)))
        {
            ExtentState::Unchanged
        } else {
            ExtentState::Data
        }
    }
}

impl DiskSource for MemorySource<'_> {
    fn size(&self) -> ByteLen {
        ByteLen(self.bytes.len() as u64)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        let mut extents: Vec<Extent> = Vec::new();
        let first = from.0 as usize / 512;
        for sector in first..(self.bytes.len() / 512).min(first + 5000) {
            let start = DiskOffset(sector as u64 * 512);
            extents.push(Extent {
                start,
                len: ByteLen(512),
                state: self.state(sector),
            });
        }
        Ok(extents)
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        // As an asynchronous source does: several reads in flight, completed in another order.
        let mut in_flight = Vec::new();
        loop {
            match queue.next(in_flight.is_empty()) {
                Next::Read(mut request) => {
                    let (start, len) = (request.offset.0 as usize, request.buffer.len());
                    request
                        .buffer
                        .copy_from_slice(&self.bytes[start..start + len]);
                    self.reads.lock().unwrap().push((request.offset.0, len));
                    in_flight.push(request);
                }
                Next::Later => queue.complete(in_flight.pop().unwrap()),
                Next::Done => break,
            }
            if in_flight.len() >= 4 {
                queue.complete(in_flight.remove(1));
            }
        }
        while let Some(request) = in_flight.pop() {
            queue.complete(request);
        }
        Ok(())
    }
}

/// A new repository in a directory of its own.
pub(crate) fn repository(options: &InitOptions) -> (TempDir, Repository) {
    let dir = tempfile::tempdir().unwrap();
    let repo = Repository::init(&dir.path().join("repo"), options, Env::system()).unwrap();
    (dir, repo)
}

/// The repository as another process sees it: nothing is remembered.
pub(crate) fn reopen(repo: &Repository) -> Repository {
    Repository::open(repo.path(), &OpenOptions::default(), Env::system()).unwrap()
}

/// Backs one disk up as a point of its own.
pub(crate) fn backup(
    repo: &Repository,
    source: &MemorySource<'_>,
    parent: Option<&Point>,
) -> Point {
    let parents: Vec<_> = parent.iter().map(|point| point.id).collect();
    let backup = repo.begin_backup(&parents, "test").unwrap();
    let parent_disk = parent.map(|point| &point.disks[0]);
    let stored = backup
        .store_disk(source, parent_disk, &NoProgress, &Cancel::new())
        .unwrap();
    backup.commit(draft(source, stored)).unwrap()
}

pub(crate) fn draft(source: &MemorySource<'_>, stored: StoredDisk) -> PointDraft {
    let incremental = source.dirty.is_some();
    PointDraft {
        domain: Domain {
            uuid: DomainUuid::from_bytes([7; 16]),
            name: "vm1".into(),
        },
        source: SourceKind::Live,
        host: "host".into(),
        time: UnixMillis(1),
        consistency: Consistency::Crash,
        checkpoint: None,
        disks: vec![Disk {
            target: "vda".into(),
            size: source.size(),
            root: stored.root,
            mode: if incremental {
                CaptureMode::Incremental
            } else {
                CaptureMode::Full
            },
            reason: "test".into(),
            checkpoint: None,
            parent: None,
            format: "qcow2".into(),
            location: "memory".into(),
            backing: Vec::new(),
            stats: stored.stats,
        }],
        files: Vec::new(),
        tags: Vec::new(),
    }
}

/// A restore target in memory, filled with rubbish so that what is not restored shows.
pub(crate) struct MemorySink(Mutex<Vec<u8>>);

impl MemorySink {
    /// For a disk of this size.
    pub(crate) fn filled(size: ByteLen) -> Self {
        Self(Mutex::new(vec![0xcc; size.0 as usize]))
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

impl DiskSink for MemorySink {
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError> {
        let start = offset.0 as usize;
        self.0.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&self, offset: DiskOffset, len: ByteLen) -> Result<(), SourceError> {
        let start = offset.0 as usize;
        self.0.lock().unwrap()[start..start + len.0 as usize].fill(0);
        Ok(())
    }
}

/// The bytes `from..until` of the first disk of a point; rubbish (0xcc) outside.
pub(crate) fn restore_range(repo: &Repository, point: &Point, from: u64, until: u64) -> Vec<u8> {
    restore_part(repo, point, &point.disks[0], from..until)
}

/// A whole disk of a point.
pub(crate) fn restore_disk(repo: &Repository, point: &Point, disk: &Disk) -> Vec<u8> {
    restore_part(repo, point, disk, 0..disk.size.0)
}

fn restore_part(repo: &Repository, point: &Point, disk: &Disk, part: Range<u64>) -> Vec<u8> {
    let reader = repo.read_disk(point, disk).unwrap();
    let sink = MemorySink::filled(reader.size());
    let (from, until) = (DiskOffset(part.start), DiskOffset(part.end));
    reader
        .copy_to(from, until, &sink, &NoProgress, &Cancel::new())
        .unwrap();
    sink.into_bytes()
}

/// The whole first disk of a point.
pub(crate) fn restore(repo: &Repository, point: &Point) -> Vec<u8> {
    restore_disk(repo, point, &point.disks[0])
}
