//! A raw image file or a block device as a [`DiskSource`], read directly.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use virtkeep_repo::{
    ByteLen, DiskOffset, DiskSource, Extent, ExtentState, Next, ReadQueue, SourceError,
};

use crate::error::{Error, Result};
use crate::stop::Stop;

/// Threads that read one file.
const READERS: usize = 4;
/// Disks consist of sectors; QEMU shows the end of an odd file filled up with zeroes.
const SECTOR_BYTES: u64 = 512;
/// Extents handed out per call at most.
const EXTENTS_MAX: usize = 1024;

/// An open raw image.
pub(crate) struct FileSource {
    path: PathBuf,
    file: File,
    /// Of the file; the disk's size is this, rounded up to sectors.
    file_bytes: u64,
    stop: Arc<Stop>,
}

impl FileSource {
    pub(crate) fn open(path: &Path, stop: Arc<Stop>) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        // Metadata knows no size of block devices.
        let file_bytes = seek(&file, SeekFrom::End(0))
            .map_err(|errno| Error::file("measure", path)(errno.into()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            file_bytes,
            stop,
        })
    }

    /// The next run of data or hole at `from`. Where the file system cannot tell, all is data.
    fn extent(&self, from: u64) -> Extent {
        let size = self.size().0;
        let find = |target: SeekFrom| seek(&self.file, target);
        let (state, end) = match find(SeekFrom::Data(from)) {
            Ok(data) if data > from => (ExtentState::Zero, data.min(size)),
            // No data up to the end of the file.
            Err(rustix::io::Errno::NXIO) => (ExtentState::Zero, size),
            Ok(_) => match find(SeekFrom::Hole(from)) {
                Ok(hole) if hole > from && hole < self.file_bytes => (ExtentState::Data, hole),
                _ => (ExtentState::Data, size),
            },
            Err(_) => (ExtentState::Data, size),
        };
        Extent {
            start: DiskOffset(from),
            len: ByteLen(end - from),
            state,
        }
    }

    /// Fills the buffer, with zeroes beyond the end of the file.
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inside = self.file_bytes.saturating_sub(offset);
        let inside = usize::try_from(inside)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (bytes, beyond) = buffer.split_at_mut(inside);
        self.file.read_exact_at(bytes, offset)?;
        beyond.fill(0);
        Ok(())
    }
}

impl DiskSource for FileSource {
    fn size(&self) -> ByteLen {
        ByteLen(self.file_bytes.next_multiple_of(SECTOR_BYTES))
    }

    fn extents(&self, from: DiskOffset) -> std::result::Result<Vec<Extent>, SourceError> {
        let mut extents = Vec::new();
        let mut position = from.0;
        while position < self.size().0 && extents.len() < EXTENTS_MAX {
            let extent = self.extent(position);
            position = extent.end().0;
            extents.push(extent);
        }
        Ok(extents)
    }

    fn read(&self, queue: &dyn ReadQueue) -> std::result::Result<(), SourceError> {
        let share = || -> Result<()> {
            while let Next::Read(mut request) = queue.next(true) {
                if self.stop.is_stopping() {
                    return Err(Error::Cancelled);
                }
                self.fill(request.offset.0, &mut request.buffer)
                    .map_err(Error::file("read", &self.path))?;
                queue.complete(request);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..READERS).map(|_| scope.spawn(share)).collect();
            let mut result = share();
            for thread in others {
                let theirs = match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                result = result.and(theirs);
            }
            Ok(result?)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use virtkeep_repo::Cancel;

    use super::*;

    fn source(path: &Path) -> FileSource {
        let stop = Stop::new(&Cancel::new(), Duration::from_secs(1));
        FileSource::open(path, Arc::new(stop)).unwrap()
    }

    #[test]
    fn extents_cover_a_sparse_file_of_odd_size_without_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse.raw");
        let file = File::create(&path).unwrap();
        file.set_len((1 << 20) + 100).unwrap();
        file.write_all_at(&[1; 4096], 256 << 10).unwrap();

        let source = source(&path);
        assert_eq!(source.size(), ByteLen((1 << 20) + 512));
        let mut at = DiskOffset::ZERO;
        let mut data = 0;
        while at.0 < source.size().0 {
            for extent in source.extents(at).unwrap() {
                assert_eq!(extent.start, at);
                at = extent.end();
                if extent.state == ExtentState::Data {
                    data += extent.len.0;
                }
            }
        }
        assert_eq!(at.0, source.size().0);
        assert!(data >= 4096);

        let mut end = [9; 1024];
        source.fill(1 << 20, &mut end[..512]).unwrap();
        assert_eq!(end[..512], [0; 512]);
    }
}
