//! A disk for a parser that reads and seeks.

use std::io::{self, Read, Seek, SeekFrom};

use nbd_server::Export as _;

use crate::serve::disk::OpenDisk;

/// The disk, and where to read next.
pub(super) struct DiskCursor<'a> {
    disk: &'a OpenDisk,
    at: u64,
}

impl<'a> DiskCursor<'a> {
    /// At the beginning.
    pub(super) fn new(disk: &'a OpenDisk) -> Self {
        Self { disk, at: 0 }
    }
}

impl Read for DiskCursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.disk.size().saturating_sub(self.at);
        let len = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        if len > 0 {
            self.disk
                .read(self.at, &mut buffer[..len])
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for DiskCursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.disk.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
