//! What a disk looks like to the engine while it is being backed up.
//!
//! The engine asks a [`DiskSource`] for its extents in order and hands out reads; the source fills
//! the buffers in any order, from as many threads and connections as it likes. Nothing here knows
//! of NBD or libvirt. The rule for every implementation: *fail toward copying more*. What is not
//! known to be zero or unchanged is data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::budget::Permit;
use crate::{ByteLen, DiskOffset};

/// What is known of a range of the disk without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentState {
    /// Must be read.
    Data,
    /// Reads as zeroes now, whatever it held before. Wins over `Unchanged`.
    Zero,
    /// Proved equal to the parent point; without a parent the engine reads it.
    Unchanged,
}

/// A range of the disk in one state. Any alignment; `len` is never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub start: DiskOffset,
    /// Number of bytes.
    pub len: ByteLen,
    /// What is known of them.
    pub state: ExtentState,
}

impl Extent {
    /// The first byte behind the extent.
    pub fn end(&self) -> DiskOffset {
        self.start.plus(self.len)
    }
}

/// One read the engine wants done: fill `buffer` with the bytes at `offset`.
///
/// The offset is a multiple of the chunk size; the buffer ends at a chunk boundary or at the end of
/// the disk. A request that is dropped without [`ReadQueue::complete`] fails the backup of the disk:
/// the queue then answers [`Next::Done`] to everybody.
#[derive(Debug)]
pub struct ReadRequest {
    /// Where to read.
    pub offset: DiskOffset,
    /// Where to put the bytes; its length is the length of the read.
    pub buffer: Vec<u8>,
    pub(crate) ticket: Ticket,
}

/// What a read costs while it is in flight, and who has to know when it is given up.
#[derive(Debug)]
pub(crate) struct Ticket {
    len: usize,
    completed: bool,
    abandoned: Arc<AtomicBool>,
    /// Lets go of the memory's share of the budget.
    _permit: Permit,
}

impl Ticket {
    /// For a read of `len` bytes; sets `abandoned` should it be dropped before it is completed.
    pub(crate) fn new(len: usize, abandoned: &Arc<AtomicBool>, permit: Permit) -> Self {
        Self {
            len,
            completed: false,
            abandoned: Arc::clone(abandoned),
            _permit: permit,
        }
    }

    /// The read came back; false when it has not the length that was asked for.
    pub(crate) fn complete(&mut self, len: usize) -> bool {
        self.completed = len == self.len;
        self.completed
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.completed {
            self.abandoned.store(true, Ordering::SeqCst);
        }
    }
}

/// The answer of [`ReadQueue::next`].
#[derive(Debug)]
pub enum Next {
    /// Do this read and hand it back with [`ReadQueue::complete`].
    Read(ReadRequest),
    /// The memory for reads in flight is used up. Complete one of yours, then ask again.
    Later,
    /// Nothing is left to read, or the backup has failed or been cancelled: finish what is in
    /// flight or drop it, and return.
    Done,
}

/// The engine's side of the reading.
pub trait ReadQueue: Sync {
    /// The next read. With `wait`, blocks until there is memory for one (never answers `Later`):
    /// only to be used by a thread that has no read in flight.
    fn next(&self, wait: bool) -> Next;

    /// Takes a filled buffer. Cheap: the work is done elsewhere.
    fn complete(&self, request: ReadRequest);
}

/// A disk at one moment.
pub trait DiskSource: Send + Sync {
    /// The size in bytes; a multiple of 512, at most 2^63.
    fn size(&self) -> ByteLen;

    /// Extents from `from` on: the first starts at `from`, each next one where the last ended. May
    /// stop short of the end of the disk, but covers at least one byte. Called with rising `from`
    /// by one thread at a time, possibly while [`read`](Self::read) runs in others.
    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError>;

    /// Does the reads of `queue` until it answers [`Next::Done`]. Returns early with the first
    /// error; bytes of a failed read are never completed.
    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError>;
}

/// Why a source could not be read. The message names the disk and what happened to it.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;
