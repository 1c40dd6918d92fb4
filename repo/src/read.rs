//! Reading a disk of a point. Every byte is verified against its id before it is handed out.

use crate::{ByteLen, Cancel, DiskOffset, Extent, Progress, Result};

/// One disk of one point, readable at any place. Holds a reader lease while it lives; it can be
/// shared between threads.
pub struct DiskReader {
    size: ByteLen,
}

/// Takes the bytes of a disk that is being restored. Called from several threads, for ranges that
/// do not overlap, in any order. The error ends the restore and is reported as `Error::Source`.
pub trait DiskSink: Sync {
    /// Bytes at `offset`; only called for ranges that are not all zero.
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), crate::SourceError>;

    /// `len` zeroes at `offset`. Ranges of any size, for the whole rest of the disk.
    fn zero(&self, offset: DiskOffset, len: ByteLen) -> Result<(), crate::SourceError>;
}

impl DiskReader {
    /// The size of the disk.
    pub fn size(&self) -> ByteLen {
        self.size
    }

    /// Fills `buffer` with the bytes at `offset`; the range must lie inside the disk.
    pub fn read_at(&self, offset: DiskOffset, buffer: &mut [u8]) -> Result<()> {
        let _ = (offset, buffer);
        unimplemented!()
    }

    /// Which ranges hold data and which are zero, from `from` on, at most up to `until`. States are
    /// `Data` and `Zero` only; neighbours differ in state. May stop short, covers at least one byte.
    /// Reads manifest nodes, no chunks.
    pub fn extents(&self, from: DiskOffset, until: DiskOffset) -> Result<Vec<Extent>> {
        let _ = (from, until);
        unimplemented!()
    }

    /// Hands the range `from..until` to `sink`, reading packs in their own order, on all cores.
    pub fn copy_to(
        &self,
        from: DiskOffset,
        until: DiskOffset,
        sink: &dyn DiskSink,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let _ = (from, until, sink, progress, cancel);
        unimplemented!()
    }
}
