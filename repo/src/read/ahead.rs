//! Reading ahead for a client that reads on and on, one request at a time.
//!
//! One with many requests in flight keeps all cores busy by itself, and is left alone: what it asks
//! for next has been asked for already. With few cores its reads often come one at a time all the
//! same, since each is over before the next gets its turn; so a reader counts as lone only after some
//! reads without company.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::DiskReader;
use super::random::fetch;
use crate::limits::{CHUNKS_AHEAD_MAX, READ_AHEAD_BYTES};
use crate::sync::lock;

/// How many reads in a row make a stream.
const READS_IN_A_ROW_MIN: u32 = 2;

/// How many reads without company make a reader a lone one again.
const READS_ALONE_MIN: u32 = 64;

/// How one disk is being read.
#[derive(Default)]
pub(super) struct Stream {
    readers: AtomicUsize,
    track: Mutex<Track>,
    /// Where the read that began last ends.
    position: AtomicU64,
}

/// The way of a lone reader.
#[derive(Default)]
struct Track {
    /// Where the last read ended.
    end: u64,
    /// How many reads began where the one before had ended.
    in_a_row: u32,
    /// How far it has been read ahead.
    ahead: u64,
    /// How many more reads must go without company.
    crowded: u32,
}

/// A read that is going on.
pub(super) struct Reading<'a> {
    stream: &'a Stream,
    alone: bool,
}

impl Stream {
    /// A read begins; dropping what is returned ends it.
    pub(super) fn enter(&self) -> Reading<'_> {
        Reading {
            stream: self,
            alone: self.readers.fetch_add(1, Ordering::Relaxed) == 0,
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.stream.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reading<'_> {
    /// Which range of a disk of `size` bytes to read ahead, now that `range` is being read.
    pub(super) fn next(&self, range: Range<u64>, size: u64) -> Option<Range<u64>> {
        let mut track = lock(&self.stream.track);
        track.crowded = if self.alone {
            track.crowded.saturating_sub(1)
        } else {
            READS_ALONE_MIN
        };
        if track.crowded > 0 || range.start != track.end {
            track.in_a_row = 0;
            track.ahead = range.end;
        } else {
            track.in_a_row += 1;
        }
        track.end = range.end;
        self.stream.position.store(range.end, Ordering::Relaxed);
        let wanted = range.end.saturating_add(READ_AHEAD_BYTES).min(size);
        let start = track.ahead.max(range.end);
        let worth = start < wanted && start < range.end.saturating_add(READ_AHEAD_BYTES / 2);
        if track.in_a_row < READS_IN_A_ROW_MIN || !worth {
            return None;
        }
        track.ahead = wanted;
        Some(start..wanted)
    }
}

/// The right to have one more chunk unpacked ahead.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let turn = Self(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < CHUNKS_AHEAD_MAX).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DiskReader {
    /// Begins to unpack the chunks of a range on all cores, and returns at once.
    pub fn prefetch(&self, from: crate::DiskOffset, until: crate::DiskOffset) {
        self.assert_inside(from, until);
        let end = until.0.min(from.0.saturating_add(READ_AHEAD_BYTES));
        self.unpack(from.0..end, |_, _| true);
    }

    /// The same for what a stream is going to read.
    pub(super) fn read_ahead(&self, range: Range<u64>) {
        // Whoever reads faster than it can be read ahead unpacks it himself.
        self.unpack(range, |stream, end| {
            stream.position.load(Ordering::Relaxed) < end
        });
    }

    /// Unpacks the chunks of a range, those of which the end is still `wanted` when their turn comes, while
    /// the disk is open. What would have to wait behind too many others is left to whoever reads it.
    fn unpack(&self, range: Range<u64>, wanted: fn(&Stream, u64) -> bool) {
        let chunk_bytes = self.root.chunk_size.as_u64();
        let mut places = self.places();
        let mut at = range.start - range.start % chunk_bytes;
        while at < range.end {
            // Whoever reads there is told what is wrong.
            let Ok(chunk) = places.chunk_at(at) else {
                return;
            };
            at += chunk_bytes;
            let Some(chunk) = chunk else { continue };
            let Some(turn) = Turn::take(&self.store.ahead) else {
                return;
            };
            let (store, stream) = (Arc::clone(&self.store), Arc::downgrade(&self.stream));
            rayon::spawn(move || {
                let _turn = turn;
                let Some(stream) = stream.upgrade() else {
                    return;
                };
                if wanted(&stream, at) {
                    let slot = store.slot(chunk.id);
                    // Nobody waits for it here, and a panic would end the whole process.
                    let unpack = || slot.get_or(|| fetch(&store, &chunk)).ok();
                    std::panic::catch_unwind(AssertUnwindSafe(unpack)).ok();
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 100 << 20;

    fn read(stream: &Stream, start: u64, len: u64) -> Option<Range<u64>> {
        stream.enter().next(start..start + len, SIZE)
    }

    #[test]
    fn a_lone_reader_in_order_is_read_ahead_of_and_nothing_twice() {
        let stream = Stream::default();
        let mut ahead = Vec::new();
        for at in (0..SIZE).step_by(4096) {
            ahead.extend(read(&stream, at, 4096));
        }
        assert_eq!(ahead[0].start, 2 * 4096);
        assert!(ahead.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(ahead[ahead.len() - 1].end, SIZE);
    }

    #[test]
    fn who_jumps_about_or_is_not_alone_is_not_read_ahead_of() {
        let stream = Stream::default();
        for at in (0..100).rev() {
            assert_eq!(read(&stream, at * 4096, 4096), None);
        }
        let other = stream.enter();
        for at in 0..100 {
            assert_eq!(read(&stream, at * 4096, 4096), None);
        }
        drop(other);
    }

    #[test]
    fn who_had_company_a_moment_ago_is_not_read_ahead_of_yet() {
        let stream = Stream::default();
        let other = stream.enter();
        assert_eq!(read(&stream, 0, 4096), None);
        drop(other);
        let ahead: Vec<_> = (1..u64::from(READS_ALONE_MIN + READS_IN_A_ROW_MIN))
            .map(|at| read(&stream, at * 4096, 4096))
            .collect();
        let (last, before) = ahead.split_last().expect("some reads");
        assert!(before.iter().all(Option::is_none));
        assert!(last.is_some());
    }

    #[test]
    fn only_so_many_chunks_wait_to_be_unpacked_ahead() {
        let taken = Arc::default();
        let mut turns: Vec<_> = (0..CHUNKS_AHEAD_MAX).map(|_| Turn::take(&taken)).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(Turn::take(&taken).is_none());
        turns.pop();
        assert!(Turn::take(&taken).is_some());
    }
}
