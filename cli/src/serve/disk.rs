//! One disk of one point, as an NBD export.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nbd_server::{
    BlockSizes, Context, ErrorCode, Export, ExportError, Extents, Features, HOLE, Holes, ZERO,
};
use virtkeep_repo::{Disk, DiskOffset, DiskReader, Error, ExtentState, Point};

use super::catalog::Catalog;
use crate::output::shown;

/// The metadata context that tells what changed since another point begins with this; the POINT
/// follows.
const CHANGED_SINCE: &str = "virtkeep:changed-since:";

/// The flag of a range that may differ from what it was. Everything else is as it was.
const CHANGED: u32 = 1;

/// How many of these contexts a client is told of. It may name others.
const CONTEXTS_LISTED_MAX: usize = 16;

/// A disk that clients have open. The reader in it holds the lease.
pub(crate) struct OpenDisk {
    catalog: Catalog,
    reader: Arc<DiskReader>,
    point: Point,
    target: String,
    /// For messages.
    name: String,
    description: String,
    block_sizes: BlockSizes,
    /// The name it was opened by may soon mean another point.
    moves: bool,
    /// Two at least: one sends while the other unpacks.
    cores: usize,
    complained: AtomicBool,
    complained_of_context: AtomicBool,
}

impl OpenDisk {
    /// The disk that `reader` reads.
    pub(super) fn new(
        catalog: Catalog,
        reader: DiskReader,
        point: Point,
        disk: &Disk,
        description: String,
        moves: bool,
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
            moves,
            cores: thread::available_parallelism().map_or(2, |cores| cores.get().max(2)),
            complained: AtomicBool::new(false),
            complained_of_context: AtomicBool::new(false),
            reader: Arc::new(reader),
            target: disk.target.clone(),
            point,
        }
    }

    /// Where data, or else a hole, begins next in a range. Reads no chunks.
    pub(crate) fn next(&self, range: Range<u64>, data: bool) -> Result<Option<u64>, ExportError> {
        let mut at = range.start;
        while at < range.end {
            let found = self
                .reader
                .extents(DiskOffset(at), DiskOffset(range.end))
                .map_err(|error| self.failed(at..range.end, error))?;
            for extent in found {
                if (extent.state == ExtentState::Data) == data {
                    return Ok(Some(extent.start.0));
                }
                at = extent.start.0 + extent.len.0;
            }
        }
        Ok(None)
    }

    /// The error for the client. Whoever runs the server is told once per opened disk, since a client
    /// may well ask again and again.
    fn failed(&self, bytes: Range<u64>, error: Error) -> ExportError {
        self.failed_as(&self.name, bytes, error)
    }

    fn failed_as(&self, name: &str, bytes: Range<u64>, error: Error) -> ExportError {
        let answer = ExportError::new(ErrorCode::Io, error.to_string());
        if !self.complained.swap(true, Ordering::Relaxed) {
            let Range { start, end } = bytes;
            self.catalog.note(&format!(
                "{name}: a read failed, of bytes {start} to {end}: {:#}",
                anyhow::Error::new(error)
            ));
        }
        answer
    }
}

impl Export for OpenDisk {
    fn size(&self) -> u64 {
        self.reader.size().0
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        let len = buffer.len() as u64;
        self.reader
            .read_at(DiskOffset(offset), buffer)
            .map_err(|error| self.failed(offset..offset + len, error))
    }

    fn read_sparse(
        &self,
        offset: u64,
        buffer: &mut [u8],
        holes: &mut Holes,
    ) -> Result<(), ExportError> {
        let len = buffer.len() as u64;
        self.reader
            .read_sparse_at(DiskOffset(offset), buffer, |range| holes.push(range))
            .map_err(|error| self.failed(offset..offset + len, error))
    }

    fn features(&self) -> Features {
        Features {
            cache: true,
            // Or else a client that opens its connections while a point is added would mix the two.
            multi_conn: !self.moves,
            ..Features::default()
        }
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let end = DiskOffset(offset + length);
        self.reader.prefetch(DiskOffset(offset), end);
        Ok(())
    }

    fn concurrency(&self) -> usize {
        if self.reader.waits_for_storage() {
            usize::MAX
        } else {
            self.cores
        }
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
                .map_err(|error| self.failed(at..end, error))?;
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

    fn contexts(&self) -> Vec<String> {
        let earlier = self
            .catalog
            .earlier(&self.point, &self.target, CONTEXTS_LISTED_MAX);
        let name = |id| format!("{CHANGED_SINCE}{id}");
        earlier.into_iter().map(name).collect()
    }

    fn has_context(&self, name: &str) -> bool {
        let point = name.strip_prefix(CHANGED_SINCE);
        point.is_some_and(|point| self.catalog.find_to_compare(point, &self.target).is_ok())
    }

    fn context(&self, name: &str) -> Option<Box<dyn Context>> {
        let point = name.strip_prefix(CHANGED_SINCE)?;
        match self.catalog.open_to_compare(point, &self.target) {
            Ok(before) => Some(Box::new(ChangedSince {
                reader: Arc::clone(&self.reader),
                before,
                name: self.name.clone(),
            })),
            // The protocol has no way to say why a context is not there. Once is enough here, too.
            Err(error) => {
                if !self.complained_of_context.swap(true, Ordering::Relaxed) {
                    let text = format!("{}: no context {}: {error}", self.name, shown(name));
                    self.catalog.note(&text);
                }
                None
            }
        }
    }
}

/// What changed between two disks, both of which are held as long as the client is connected.
struct ChangedSince {
    reader: Arc<DiskReader>,
    before: Arc<OpenDisk>,
    /// Of the later one, for messages.
    name: String,
}

impl Context for ChangedSince {
    fn status(&self, offset: u64, length: u64, extents: &mut Extents) -> Result<(), ExportError> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let found = self
                .reader
                .changes_since(&self.before.reader, DiskOffset(at), DiskOffset(end))
                .map_err(|error| {
                    let compared = format!("{}, compared with {}", self.before.name, self.name);
                    self.before.failed_as(&compared, at..end, error)
                })?;
            for change in found {
                let flags = if change.changed { CHANGED } else { 0 };
                at = change.start.0 + change.len.0;
                if !extents.push(change.len.0, flags) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
