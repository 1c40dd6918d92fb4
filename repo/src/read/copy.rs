//! Copying a range of a disk to a sink, reading packs in their own order.
//!
//! The places of many chunks are looked up at once and sorted by pack and offset; neighbouring
//! records are fetched with one read, unpacked and verified in parallel, and handed over in runs as
//! long as the disk and the packs agree on the order. So a point scattered over a thousand packs is
//! read with as few seeks as its window allows.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::reads::{self, Located, span};
use super::{DiskReader, DiskSink};
use crate::budget::Budget;
use crate::ids::ContentId;
use crate::index::Location;
use crate::limits::{COPY_WINDOW_CHUNKS_MAX, RESTORE_BYTES_IN_FLIGHT_MAX, SINK_WRITE_BYTES_MAX};
use crate::manifest::chunk;
use crate::storage::ObjectName;
use crate::sync::lock;
use crate::{ByteLen, Cancel, ChunkId, DiskOffset, Error, Progress, RecordKind, Result};

/// A chunk to be copied: where it belongs and where it is kept.
#[derive(Clone, Copy)]
struct Item {
    /// Position of the chunk on the disk.
    at: u64,
    id: ChunkId,
    location: Location,
}

impl Located for Item {
    fn location(&self) -> Location {
        self.location
    }
}

/// What all tasks of a copy share.
struct Copy<'a> {
    reader: &'a DiskReader,
    range: Range<u64>,
    sink: &'a dyn DiskSink,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// Copies `range` of the disk.
pub(super) fn copy(
    reader: &DiskReader,
    range: Range<u64>,
    sink: &dyn DiskSink,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let (failed, failure) = (AtomicBool::new(false), Mutex::new(None));
    let copy = Copy {
        reader,
        range,
        sink,
        progress,
        cancel,
        failed,
        failure,
    };
    let budget = Budget::new(RESTORE_BYTES_IN_FLIGHT_MAX);
    rayon::in_place_scope(|scope| {
        let mut at = copy.range.start;
        while at < copy.range.end && !copy.stopped() {
            let (end, window) = copy.window(at)?;
            for read in reads::of_neighbours(window) {
                let Some(permit) = budget.take(copy.memory(&read), || copy.stopped()) else {
                    break;
                };
                let copy = &copy;
                scope.spawn(move |_| {
                    let _permit = permit;
                    if !copy.stopped()
                        && let Err(error) = copy.read(&read)
                    {
                        copy.fail(error);
                    }
                });
            }
            at = end;
        }
        Ok(())
    })?;
    cancel.check()?;
    lock(&copy.failure).take().map_or(Ok(()), Err)
}

impl Copy<'_> {
    /// The chunks from `at` on, as many as one window holds, in the order of the packs, and where the
    /// window ends. Zeroes on the way go to the sink at once.
    fn window(&self, start: u64) -> Result<(u64, Vec<Item>)> {
        let shape = self.reader.shape();
        let chunk_bytes = shape.chunk_size.as_u64();
        let mut tree = self.reader.tree();
        let mut places: Vec<(u64, ChunkId)> = Vec::new();
        let mut at = start;
        let mut zeroes_from = start;
        while at < self.range.end && places.len() < COPY_WINDOW_CHUNKS_MAX && !self.stopped() {
            let leaf_index = at / shape.leaf_bytes();
            let span = match tree.next_span(leaf_index) {
                Ok(span) => span,
                Err(error) => {
                    self.zero(zeroes_from..at)?;
                    let behind = leaf_index + tree.leaves_unreadable(leaf_index);
                    let end = behind.saturating_mul(shape.leaf_bytes());
                    zeroes_from = end.min(self.range.end);
                    self.lose(at..zeroes_from, error)?;
                    at = zeroes_from;
                    continue;
                }
            };
            let Some(leaf) = span.leaf else {
                at = (leaf_index + span.leaves).saturating_mul(shape.leaf_bytes());
                continue;
            };
            let end = ((leaf_index + 1) * shape.leaf_bytes()).min(self.range.end);
            while at < end {
                let chunk_start = at - at % chunk_bytes;
                let position = chunk_start % shape.leaf_bytes() / chunk_bytes;
                let next = (chunk_start + chunk_bytes).min(end);
                if let Some(id) = chunk(&leaf, position) {
                    self.zero(zeroes_from..at)?;
                    zeroes_from = next;
                    places.push((chunk_start, id));
                }
                at = next;
            }
        }
        let at = at.min(self.range.end);
        self.zero(zeroes_from..at)?;

        let ids: Vec<_> = places.iter().map(|(_, id)| id.raw()).collect();
        let locations = self.reader.store.index.locate(&ids)?;
        let mut items = Vec::with_capacity(places.len());
        for ((at, id), location) in places.into_iter().zip(locations) {
            match location {
                Some(location) => items.push(Item { at, id, location }),
                None => self.lose_chunk(at, Error::missing(RecordKind::Chunk, id.raw()))?,
            }
        }
        items.sort_unstable_by_key(|item| (item.location.pack, item.location.offset, item.at));
        Ok((at, items))
    }

    /// A range that cannot be read: an error, or zeroes and a note when the rest is to be saved.
    fn lose(&self, range: Range<u64>, error: Error) -> Result<()> {
        self.reader.lose(range.clone(), error)?;
        self.zero(range)
    }

    fn lose_chunk(&self, at: u64, error: Error) -> Result<()> {
        let end = at + self.reader.root.chunk_size.as_u64();
        self.lose(at.max(self.range.start)..end.min(self.range.end), error)
    }

    /// Hands zeroes to the sink.
    fn zero(&self, range: Range<u64>) -> Result<()> {
        if range.start < range.end {
            let len = ByteLen(range.end - range.start);
            self.sink
                .zero(DiskOffset(range.start), len)
                .map_err(Error::Source)?;
            self.progress.passed(len.0);
        }
        Ok(())
    }

    /// Bytes a read holds in memory, about: what it fetches, and one run for the sink.
    fn memory(&self, read: &[Item]) -> u64 {
        let chunk_bytes = self.reader.root.chunk_size.as_u64();
        span(read).end - span(read).start
            + SINK_WRITE_BYTES_MAX.min(read.len() as u64 * chunk_bytes)
    }

    /// Fetches neighbouring records and hands their chunks over.
    fn read(&self, read: &[Item]) -> Result<()> {
        let store = &self.reader.store;
        let pack = read[0].location.pack;
        let span = span(read);
        let mut bytes = vec![0; usize::try_from(span.end - span.start).expect("a read is small")];
        // Whatever is wrong with the read, each record is then asked for alone: prune may have moved
        // them, and a sector that cannot be read costs no more than the records it is in.
        let fetched = store
            .storage
            .read_at(&ObjectName::Pack(pack), span.start, &mut bytes)
            .is_ok();
        self.progress.moved(span.end - span.start);
        let mut run = Run {
            copy: self,
            at: 0,
            bytes: Vec::new(),
            before: 0,
        };
        for item in read {
            let from = usize::try_from(u64::from(item.location.offset) - span.start)
                .expect("inside a small read");
            let sealed = &bytes[from..from + item.location.len as usize];
            if self.stopped() {
                return Ok(());
            }
            let place = run.place_for(item.at)?;
            let (kind, id) = (RecordKind::Chunk, item.id.raw());
            if fetched
                && store
                    .open_into(kind, id, item.location, sealed, place)
                    .is_ok()
            {
                continue;
            }
            match store.fetch(item.id) {
                Ok(chunk) => super::copy_padded(&chunk, 0, place),
                Err(error) => {
                    run.take_back();
                    self.lose_chunk(item.at, error)?;
                }
            }
        }
        run.flush()
    }

    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.cancel.is_cancelled()
    }
}

/// Consecutive chunks on their way to the sink.
struct Run<'a> {
    copy: &'a Copy<'a>,
    at: u64,
    bytes: Vec<u8>,
    /// Bytes before the place given out last.
    before: usize,
}

impl Run<'_> {
    /// Room for the chunk at `at`, as long as the disk is there. What does not follow on the run so
    /// far starts a new one.
    fn place_for(&mut self, at: u64) -> Result<&mut [u8]> {
        let root = &self.copy.reader.root;
        let len = root.chunk_size.as_u64().min(root.size - at);
        let follows = at == self.at + self.bytes.len() as u64;
        if !follows || self.bytes.len() as u64 + len > SINK_WRITE_BYTES_MAX {
            self.flush()?;
            self.at = at;
        }
        self.before = self.bytes.len();
        let len = usize::try_from(len).expect("chunks are small");
        self.bytes.resize(self.before + len, 0);
        Ok(&mut self.bytes[self.before..])
    }

    /// The place given out last is not used after all.
    fn take_back(&mut self) {
        self.bytes.truncate(self.before);
    }

    /// Hands the run over, as far as it lies in the range that is copied.
    fn flush(&mut self) -> Result<()> {
        let end = self.at + self.bytes.len() as u64;
        let start = self.at.max(self.copy.range.start);
        let end = end.min(self.copy.range.end);
        if start < end {
            let inside = usize::try_from(start - self.at).expect("inside a small buffer");
            let len = usize::try_from(end - start).expect("inside a small buffer");
            let bytes = &self.bytes[inside..inside + len];
            self.copy
                .sink
                .write(DiskOffset(start), bytes)
                .map_err(Error::Source)?;
            self.copy.progress.passed(ByteLen(end - start).0);
        }
        self.bytes.clear();
        Ok(())
    }
}
