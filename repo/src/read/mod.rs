//! Reading a disk of a point. Every byte is verified against its id before it is handed out.

mod ahead;
mod bulk;
mod changes;
mod copy;
mod losses;
mod pace;
mod random;
mod reads;

pub(crate) use bulk::fetch_many;
pub use changes::Change;
pub use losses::Loss;
use losses::Losses;
pub(crate) use pace::Pace;
pub(crate) use random::{PlacedLeaf, Slot, Touched};

use std::ops::Range;
use std::sync::{Arc, Mutex};

use ahead::Stream;

use crate::format::node::Root;
use crate::lease::ReaderLease;
use crate::limits::{EXTENTS_CHUNKS_MAX, EXTENTS_PER_CALL_MAX};
use crate::manifest::{NodeSource, Shape, Tree, chunk};
use crate::store::Store;
use crate::sync::lock;
use crate::{
    ByteLen, Cancel, Disk, DiskOffset, Error, Extent, ExtentState, Progress, Result, RootId,
    SourceError,
};

/// One disk of one point, readable at any place. Holds a reader lease while it lives, if there is space for
/// one; it can be shared between threads.
pub struct DiskReader {
    store: Arc<Store>,
    root: Root,
    stream: Arc<Stream>,
    /// What could not be read, when the rest is to be saved all the same.
    losses: Option<Mutex<Losses>>,
    lease: Option<ReaderLease>,
}

impl Drop for DiskReader {
    /// What was pruned while it was read takes up its space no longer than that.
    fn drop(&mut self) {
        self.store.storage.let_go();
    }
}

/// Takes the bytes of a disk that is being restored. Called from several threads, for ranges that
/// do not overlap, in any order. The error ends the restore and is reported as `Error::Source`.
pub trait DiskSink: Sync {
    /// Bytes at `offset`. Whole chunks of zeroes never come this way.
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError>;

    /// `len` zeroes at `offset`. Ranges of any size, up to the whole disk.
    fn zero(&self, offset: DiskOffset, len: ByteLen) -> Result<(), SourceError>;
}

impl DiskReader {
    /// A reader of the disk that `root` names.
    pub(crate) fn open(
        store: Arc<Store>,
        root: RootId,
        lease: Option<ReaderLease>,
    ) -> Result<Self> {
        let root = store.root(root)?;
        Ok(Self {
            store,
            root,
            stream: Arc::default(),
            losses: None,
            lease,
        })
    }

    /// As [`open`](Self::open), for a disk that may be damaged: [`copy_to`](Self::copy_to) goes on
    /// where it cannot read, and [`losses`](Self::losses) tells what that cost.
    pub(crate) fn open_to_salvage(
        store: Arc<Store>,
        disk: &Disk,
        lease: Option<ReaderLease>,
    ) -> Result<Self> {
        let mut losses = Losses::default();
        let root = match store.root(disk.root) {
            Err(error) if error.is_damage() => {
                losses.add(0..disk.size.0, &error);
                // Without its root record nothing of a disk can be found.
                Root {
                    size: disk.size.0,
                    chunk_size: store.keys.chunk_size(),
                    fan_out: store.fan_out,
                    top: None,
                }
            }
            root => root?,
        };
        Ok(Self {
            store,
            root,
            stream: Arc::default(),
            losses: Some(Mutex::new(losses)),
            lease,
        })
    }

    /// Whether a lease keeps what is read from being pruned. There is none where the file system was full, nor
    /// where the repository [takes none](crate::Repository::takes_leases).
    pub fn is_held(&self) -> bool {
        self.lease.is_some()
    }

    /// What [`copy_to`](Self::copy_to) could not read so far, in the order of the disk; these ranges
    /// were handed over as zeroes. Always empty unless the disk was opened with
    /// [`Repository::salvage_disk`](crate::Repository::salvage_disk).
    pub fn losses(&self) -> Vec<Loss> {
        self.losses
            .as_ref()
            .map_or_else(Vec::new, |losses| lock(losses).list())
    }

    /// Takes note of a range that cannot be read, or fails because of it.
    fn lose(&self, range: Range<u64>, error: Error) -> Result<()> {
        match &self.losses {
            _ if !error.is_damage() => Err(error),
            None => Err(Error::disk_damage(range, &error)),
            Some(losses) => {
                lock(losses).add(range, &error);
                Ok(())
            }
        }
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteLen {
        ByteLen(self.root.size)
    }

    /// Bytes per chunk: reads of whole chunks, aligned to them, cost least.
    pub fn chunk_size(&self) -> ByteLen {
        ByteLen(self.root.chunk_size.as_u64())
    }

    /// Whether reads at any place wait for a disk, as they went lately. Where they do, it is worth having
    /// many of them under way; where they do not, about as many as there are cores.
    pub fn waits_for_storage(&self) -> bool {
        self.store.pace.waits()
    }

    /// Which ranges hold data and which are zero, from `from` on, at most up to `until`. States are
    /// `Data` and `Zero` only; neighbours differ in state. May stop short, covers at least one byte.
    /// Reads manifest nodes, no chunks.
    pub fn extents(&self, from: DiskOffset, until: DiskOffset) -> Result<Vec<Extent>> {
        self.assert_inside(from, until);
        let shape = self.shape();
        let mut tree = self.tree();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = from.0;
        for _ in 0..EXTENTS_CHUNKS_MAX {
            if at >= until.0 || extents.len() >= EXTENTS_PER_CALL_MAX {
                break;
            }
            let leaf_index = at / shape.leaf_bytes();
            let span = tree.next_span(leaf_index)?;
            let (state, end) = match span.leaf {
                None => {
                    let end = (leaf_index + span.leaves).saturating_mul(shape.leaf_bytes());
                    (ExtentState::Zero, end)
                }
                Some(leaf) => {
                    let position = (at % shape.leaf_bytes()) / shape.chunk_size.as_u64();
                    let present = chunk(&leaf, position).is_some();
                    let state = if present {
                        ExtentState::Data
                    } else {
                        ExtentState::Zero
                    };
                    (
                        state,
                        (at / shape.chunk_size.as_u64() + 1) * shape.chunk_size.as_u64(),
                    )
                }
            };
            let end = end.min(until.0);
            match extents.last_mut() {
                Some(last) if last.state == state => last.len.0 += end - at,
                _ => extents.push(Extent {
                    start: DiskOffset(at),
                    len: ByteLen(end - at),
                    state,
                }),
            }
            at = end;
        }
        Ok(extents)
    }

    /// Hands the range `from..until` to `sink`, reading packs in their own order, on all cores.
    /// [`Error::DiskDamage`] with the range that cannot be read, unless the disk is being salvaged.
    pub fn copy_to(
        &self,
        from: DiskOffset,
        until: DiskOffset,
        sink: &dyn DiskSink,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        self.assert_inside(from, until);
        copy::copy(self, from.0..until.0, sink, progress, cancel)
    }

    fn assert_inside(&self, from: DiskOffset, until: DiskOffset) {
        assert!(
            from <= until && until.0 <= self.root.size,
            "a range inside the disk"
        );
    }

    fn shape(&self) -> Shape {
        Shape::of(&self.root)
    }

    fn tree(&self) -> Tree<'_> {
        Tree::new(&self.root, &*self.store)
    }
}

/// Copies the bytes of a chunk from `inside` on. Chunks may be stored without zeroes at their end.
fn copy_padded(chunk: &[u8], inside: u64, part: &mut [u8]) {
    let inside = usize::try_from(inside)
        .expect("chunks are small")
        .min(chunk.len());
    let stored = (chunk.len() - inside).min(part.len());
    part[..stored].copy_from_slice(&chunk[inside..inside + stored]);
    part[stored..].fill(0);
}
