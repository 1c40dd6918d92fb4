//! Writing a disk into a file or a block device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use virtkeep_repo::{ByteLen, DiskOffset, DiskSink, SourceError};

/// A new file of the right size: all that is not written is a hole that reads as zero.
pub(crate) struct SparseFile<'f>(pub(crate) &'f File);

impl DiskSink for SparseFile<'_> {
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError> {
        Ok(self.0.write_all_at(bytes, offset.0)?)
    }

    fn zero(&self, _: DiskOffset, _: ByteLen) -> Result<(), SourceError> {
        Ok(())
    }
}

/// A device that holds something else: zeroes have to be made.
pub(crate) struct Device<'f>(pub(crate) &'f File);

impl DiskSink for Device<'_> {
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError> {
        Ok(self.0.write_all_at(bytes, offset.0)?)
    }

    fn zero(&self, offset: DiskOffset, len: ByteLen) -> Result<(), SourceError> {
        // For block devices both calls promise that the range reads as zero afterwards. The first
        // one also gives the space back; the second writes zeroes where nothing better is known.
        let ways = [
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        ];
        if ways
            .into_iter()
            .any(|way| fallocate(self.0, way, offset.0, len.0).is_ok())
        {
            return Ok(());
        }
        Ok(write_zeroes(self.0, offset.0, len.0)?)
    }
}

fn write_zeroes(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
    while len > 0 {
        let part = len.min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..part as usize], offset)?;
        offset += part;
        len -= part;
    }
    Ok(())
}
