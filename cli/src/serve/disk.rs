//! One disk of one point, as an NBD export.

use std::sync::atomic::{AtomicBool, Ordering};

use nbd_server::{
    BlockSizes, ErrorCode, Export, ExportError, Extents, Features, HOLE, Holes, ZERO,
};
use virtkeep_repo::{Disk, DiskOffset, DiskReader, Error, ExtentState, Point};

use super::catalog::Catalog;
use crate::output::shown;

/// A disk that clients have open. The reader in it holds the lease.
pub(crate) struct OpenDisk {
    catalog: Catalog,
    reader: DiskReader,
    /// For messages.
    name: String,
    description: String,
    block_sizes: BlockSizes,
    complained: AtomicBool,
}

impl OpenDisk {
    /// The disk that `reader` reads.
    pub(super) fn new(
        catalog: Catalog,
        reader: DiskReader,
        point: &Point,
        disk: &Disk,
        description: String,
    ) -> Self {
        let chunk = u32::try_from(reader.chunk_size().0).ok();
        Self {
            catalog,
            name: format!(
                "{}/{}@{}",
                shown(&point.domain.name),
                shown(&disk.target),
                point.id
            ),
            description,
            block_sizes: chunk
                .and_then(|chunk| BlockSizes::new(1, chunk))
                .unwrap_or_default(),
            complained: AtomicBool::new(false),
            reader,
        }
    }

    /// The error for the client. Whoever runs the server is told once per opened disk, since a client
    /// may well ask again and again.
    fn failed(&self, error: &Error) -> ExportError {
        if !self.complained.swap(true, Ordering::Relaxed) {
            self.catalog
                .note(&format!("{}: a read failed: {error}", self.name));
        }
        ExportError::new(ErrorCode::Io, error.to_string())
    }
}

impl Export for OpenDisk {
    fn size(&self) -> u64 {
        self.reader.size().0
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        self.reader
            .read_at(DiskOffset(offset), buffer)
            .map_err(|error| self.failed(&error))
    }

    fn read_sparse(
        &self,
        offset: u64,
        buffer: &mut [u8],
        holes: &mut Holes,
    ) -> Result<(), ExportError> {
        let _ = holes;
        self.read(offset, buffer)
    }

    fn features(&self) -> Features {
        Features::default()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn description(&self) -> Option<String> {
        Some(self.description.clone())
    }

    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let found = self
                .reader
                .extents(DiskOffset(at), DiskOffset(end))
                .map_err(|error| self.failed(&error))?;
            for extent in found {
                let flags = match extent.state {
                    ExtentState::Zero => HOLE | ZERO,
                    _ => 0,
                };
                at = extent.start.0 + extent.len.0;
                if !extents.push(extent.len.0, flags) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
