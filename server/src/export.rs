//! The trait a disk implements to be served.

use std::fmt;
use std::io;
use std::ops::Range;

use crate::context::{Context, Extents};
pub use crate::wire::reply::ErrorCode;

/// A disk as the server sees it.
///
/// One value serves all connections to it, and any number of its methods run at the same time;
/// requests that are in flight together have no order among each other. Offsets and lengths have
/// been checked: they lie within [`size`](Export::size) and are multiples of the minimum block
/// size, and the methods that write are never called on a read-only export.
///
/// Only [`size`](Export::size) and [`read`](Export::read) must be given; what remains is then a
/// read-only export.
pub trait Export: Send + Sync {
    /// Size in bytes, which must stay the same while the export is open.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on. What the buffer holds before is arbitrary.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError>;

    /// As [`read`](Export::read), but parts known to be zero may be left alone and reported as
    /// `holes` instead. They cost the client no transfer where structured replies were negotiated.
    fn read_sparse(
        &self,
        offset: u64,
        buffer: &mut [u8],
        holes: &mut Holes,
    ) -> Result<(), ExportError> {
        let _ = holes;
        self.read(offset, buffer)
    }

    /// What the export can do.
    fn features(&self) -> Features {
        Features::default()
    }

    /// Alignment that requests must and should have.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// A line for a human reader.
    fn description(&self) -> Option<String> {
        None
    }

    /// How many requests of one connection are worth carrying out at one time, as things are now.
    /// An export that waits for a disk or a network wants many, and gets as many as
    /// [`Limits`](crate::Limits) allow. One that keeps a core busy with each request is served faster
    /// with about as many as there are cores. Asked before each request, so it should be cheap.
    fn concurrency(&self) -> usize {
        usize::MAX
    }

    /// Writes `data` at `offset`; it need not be on stable storage before [`flush`](Export::flush).
    ///
    /// A write longer than [`PIECE_BYTES`](crate::limits::PIECE_BYTES) comes in pieces, one after the
    /// other, and no further request of that client is read until the last of them is done.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let _ = (offset, data);
        Err(ExportError::new(ErrorCode::NotPermitted, "read-only"))
    }

    /// Makes `length` bytes at `offset` read as zeroes. Unless it is overridden, zeroes are
    /// written, and a fast-only request is turned down.
    ///
    /// `length` may be 4 GiB: an export for which that takes long also takes long to stop.
    ///
    /// # Errors
    /// [`ErrorCode::NotSupported`] at once if `mode.fast_only` and this would be no faster than
    /// writing.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), ExportError> {
        if mode.fast_only {
            return Err(ExportError::new(
                ErrorCode::NotSupported,
                "zeroing is no faster than writing",
            ));
        }
        let zeroes = vec![0; length.min(64 << 10) as usize];
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(zeroes.len() as u64);
            self.write(offset + done, &zeroes[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }

    /// The client no longer needs these bytes; doing nothing is right.
    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let _ = (offset, length);
        Ok(())
    }

    /// Returns when all that was written before is on stable storage, for whichever connection.
    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    /// The client will soon read these bytes; doing nothing is right.
    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let _ = (offset, length);
        Ok(())
    }

    /// Which parts of the range are data, holes or zeroes: the context `base:allocation`, with
    /// [`HOLE`](crate::HOLE) and [`ZERO`](crate::ZERO) as flags. Extents are pushed from `offset`
    /// on; stopping before the end of the range is fine after at least one. Where there is a minimum
    /// block size, their lengths are multiples of it.
    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        let _ = offset;
        extents.push(length, 0);
        Ok(())
    }

    /// The names of the export's own metadata contexts, `namespace:leaf` each, as listed to a
    /// client. There may be more that [`context`](Export::context) knows.
    fn contexts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether there is a metadata context of this exact name: a client that lists contexts has named
    /// it. It must cost little, as clients may ask again and again; opening it and seeing does, unless
    /// this is overridden.
    fn has_context(&self, name: &str) -> bool {
        self.context(name).is_some()
    }

    /// The metadata context of this exact name, opened for a client that selects it. It lives as long
    /// as the connection.
    fn context(&self, name: &str) -> Option<Box<dyn Context>> {
        let _ = name;
        None
    }
}

/// What an export can do besides reading. The default is a read-only export, and promises nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The methods that write may be called.
    pub writable: bool,
    /// [`Export::trim`] does something.
    pub trim: bool,
    /// [`Export::cache`] does something.
    pub cache: bool,
    /// Whoever opens the same name meanwhile gets the same data, and a flush on one connection covers
    /// what was answered on the others: a client may spread its requests over several connections
    /// ("`NBD_FLAG_CAN_MULTI_CONN`"). One value of an export can promise that if its
    /// [`flush`](Export::flush) covers all writes; not if the name may come to mean another disk. Where
    /// it is not promised, clients make do with one connection, which costs speed and never data.
    pub multi_conn: bool,
    /// Seeking is expensive.
    pub rotational: bool,
}

/// Size constraints in bytes ("Size constraints"). The third of them, the longest payload, is
/// [`PAYLOAD_BYTES_MAX`](crate::limits::PAYLOAD_BYTES_MAX) for all exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
}

impl BlockSizes {
    /// Both are powers of two, `minimum` at most 64 KiB, `preferred` at least `minimum` and 512
    /// and at most 32 MiB. `None` otherwise.
    pub fn new(minimum: u32, preferred: u32) -> Option<Self> {
        let right = minimum.is_power_of_two()
            && minimum <= 64 << 10
            && preferred.is_power_of_two()
            && preferred >= minimum.max(512)
            && preferred <= crate::limits::PAYLOAD_BYTES_MAX;
        right.then_some(BlockSizes { minimum, preferred })
    }

    /// What offsets and lengths must be multiples of.
    pub fn minimum(self) -> u32 {
        self.minimum
    }

    /// What offsets and lengths should be multiples of.
    pub fn preferred(self) -> u32 {
        self.preferred
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        BlockSizes {
            minimum: 1,
            preferred: 4096,
        }
    }
}

/// How [`Export::write_zeroes`] is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroMode {
    /// The range must stay allocated (`NBD_CMD_FLAG_NO_HOLE`); otherwise a hole is welcome.
    pub keep_allocated: bool,
    /// Fail unless it is faster than writing (`NBD_CMD_FLAG_FAST_ZERO`).
    pub fast_only: bool,
}

/// The parts of a read that are zero and were not put into the buffer.
#[derive(Debug, Default)]
pub struct Holes {
    ranges: Vec<Range<usize>>,
}

impl Holes {
    /// Reports `range` of the buffer as zero. Ranges come in rising order and do not overlap;
    /// adjacent ones become one. A read that reports a range beyond the end of its buffer has failed.
    ///
    /// # Panics
    /// If the range begins before the end of the one before it.
    pub fn push(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            last => {
                let end = last.map_or(0, |range| range.end);
                assert!(range.start >= end, "holes come in rising order");
                self.ranges.push(range);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Whether all of them lie within `length` bytes.
    pub(crate) fn are_within(&self, length: usize) -> bool {
        self.ranges.last().is_none_or(|last| last.end <= length)
    }

    /// Writes the zeroes of holes shorter than `limit` into `buffer` and forgets those holes.
    pub(crate) fn fill_shorter_than(&mut self, limit: usize, buffer: &mut [u8]) {
        self.ranges.retain(|hole| {
            let long = hole.len() >= limit;
            if !long {
                buffer[hole.clone()].fill(0);
            }
            long
        });
    }
}

/// Why one request failed, for the client: a code of the protocol, and a message that clients
/// show if they negotiated structured replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportError {
    code: ErrorCode,
    message: String,
}

impl ExportError {
    /// An error with a message for a human reader.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ExportError {
            code,
            message: message.into(),
        }
    }

    /// The code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExportError {}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::*;
        let code = match error.kind() {
            PermissionDenied | ReadOnlyFilesystem => ErrorCode::NotPermitted,
            StorageFull | QuotaExceeded | FileTooLarge => ErrorCode::NoSpace,
            OutOfMemory => ErrorCode::OutOfMemory,
            InvalidInput => ErrorCode::Invalid,
            Unsupported => ErrorCode::NotSupported,
            _ => ErrorCode::Io,
        };
        ExportError::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_holes_become_one_and_short_ones_are_filled() {
        let mut holes = Holes::default();
        holes.push(0..2);
        holes.push(2..4);
        holes.push(5..6);
        assert_eq!(holes.ranges(), [0..4, 5..6]);
        let mut buffer = [7; 8];
        holes.fill_shorter_than(3, &mut buffer);
        assert_eq!(holes.ranges().len(), 1);
        assert_eq!(holes.ranges()[0], 0..4);
        assert_eq!(buffer, [7, 7, 7, 7, 7, 0, 7, 7]);
    }

    #[test]
    fn block_sizes_follow_the_protocol_document() {
        assert!(BlockSizes::new(1, 512).is_some());
        assert!(BlockSizes::new(1, 256).is_none());
        assert!(BlockSizes::new(4096, 512).is_none());
        assert!(BlockSizes::new(3, 4096).is_none());
        assert!(BlockSizes::new(1 << 17, 1 << 17).is_none());
    }
}
