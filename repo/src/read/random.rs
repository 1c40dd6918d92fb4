//! Reads at any place, as clients of a server ask for them.
//!
//! - Where the chunks of a leaf are is looked up for all of them at once and kept, so the index is
//!   opened once per leaf and not per read. Whoever does not find a chunk there, or finds it damaged,
//!   forgets that and looks again: prune may have moved it, or repair healed it.
//! - A chunk that is asked for as a whole is unpacked straight into the caller's buffer; those that
//!   are neighbours in a pack are fetched with one read.
//! - A chunk of which parts are asked for is kept unpacked from the second time on: where reads are
//!   scattered, there is none, and keeping would only cost.
//! - A client that reads on and on, one request at a time, finds what follows unpacked already
//!   (`ahead`).
//!
//! No lock is held for longer than it takes to look something up, but for the one on a chunk that is
//! being unpacked, which only those wait for who want that very chunk.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::reads::{self, Located, span};
use super::{DiskReader, copy_padded};
use crate::ids::ContentId;
use crate::index::Location;
use crate::limits::TOUCHED_CHUNKS_MAX;
use crate::manifest::{NodeSource, Tree, check_level};
use crate::storage::ObjectName;
use crate::store::Store;
use crate::sync::lock;
use crate::{ByteLen, ChunkId, DiskOffset, NodeId, RecordKind, Result};

/// A leaf, and where its chunks are: nowhere, if they are lost.
pub(crate) struct PlacedLeaf {
    id: NodeId,
    chunks: Vec<Option<(ChunkId, Option<Location>)>>,
}

/// A chunk, and where it is.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) id: ChunkId,
    location: Location,
    /// Where that was found.
    leaf: Arc<PlacedLeaf>,
}

/// Room for one unpacked chunk. Whoever comes first unpacks it, the others wait for that.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Option<Arc<Vec<u8>>>>);

impl Slot {
    /// The chunk, if it is there or just being unpacked.
    pub(super) fn get(&self) -> Option<Arc<Vec<u8>>> {
        lock(&self.0).clone()
    }

    /// The chunk, unpacked unless it is there. After an error it still is not.
    pub(super) fn get_or(&self, unpack: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let mut chunk = lock(&self.0);
        if let Some(chunk) = &*chunk {
            return Ok(Arc::clone(chunk));
        }
        let unpacked = Arc::new(unpack()?);
        *chunk = Some(Arc::clone(&unpacked));
        Ok(unpacked)
    }
}

/// Which chunks were asked for lately, more or less: a chunk may be forgotten early, and then only
/// counts as new once more.
pub(crate) struct Touched(Box<[AtomicU64]>);

impl Touched {
    /// None were.
    pub(crate) fn new() -> Self {
        Self((0..TOUCHED_CHUNKS_MAX).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes that a chunk is asked for; whether it was lately.
    fn again(&self, id: ChunkId) -> bool {
        let mut start = [0; 8];
        start.copy_from_slice(&id.as_bytes()[..8]);
        let name = u64::from_le_bytes(start);
        let place = usize::try_from(name % TOUCHED_CHUNKS_MAX as u64).expect("a small number");
        self.0[place].swap(name, Ordering::Relaxed) == name
    }
}

/// A whole chunk on its way into the caller's buffer.
struct Whole<'b> {
    chunk: Placed,
    out: &'b mut [u8],
}

impl Located for Whole<'_> {
    fn location(&self) -> Location {
        self.chunk.location
    }
}

impl DiskReader {
    /// Fills `buffer` with the bytes at `offset`; the range must lie inside the disk.
    pub fn read_at(&self, offset: DiskOffset, buffer: &mut [u8]) -> Result<()> {
        let mut zeroes = Vec::new();
        self.read_sparse_at(offset, buffer, |range| zeroes.push(range))?;
        for range in zeroes {
            buffer[range].fill(0);
        }
        Ok(())
    }

    /// As [`read_at`](Self::read_at), but leaves alone what the manifest says is zero, and hands
    /// these parts of the buffer to `zero`, in rising order.
    pub fn read_sparse_at(
        &self,
        offset: DiskOffset,
        buffer: &mut [u8],
        mut zero: impl FnMut(Range<usize>),
    ) -> Result<()> {
        let end = offset.plus(ByteLen(buffer.len() as u64));
        self.assert_inside(offset, end);
        let stream = self.stream.enter();
        if let Some(ahead) = stream.next(offset.0..end.0, self.root.size) {
            self.read_ahead(ahead);
        }
        let chunk_bytes = self.root.chunk_size.as_u64();
        let mut places = self.places();
        let mut wholes = Vec::new();
        let (mut at, mut rest) = (offset.0, buffer);
        while !rest.is_empty() {
            let inside = at % chunk_bytes;
            let len = usize::try_from(chunk_bytes - inside).expect("chunks are small");
            let (part, behind) = rest.split_at_mut(len.min(rest.len()));
            rest = behind;
            let here = at;
            at += part.len() as u64;
            let Some(chunk) = places.chunk_at(here)? else {
                let start = usize::try_from(here - offset.0).expect("inside the buffer");
                zero(start..start + part.len());
                continue;
            };
            let kept = self.store.chunks.get(chunk.id);
            if let Some(kept) = kept.and_then(|slot| slot.get()) {
                copy_padded(&kept, inside, part);
            } else if part.len() as u64 == chunk_bytes {
                wholes.push(Whole { chunk, out: part });
            } else if self.store.touched.again(chunk.id) {
                let slot = self.store.slot(chunk.id);
                let unpacked = slot.get_or(|| fetch(&self.store, &chunk))?;
                copy_padded(&unpacked, inside, part);
            } else {
                read_part(&self.store, chunk, inside, part)?;
            }
        }
        read_wholes(&self.store, wholes)
    }

    pub(super) fn places(&self) -> Places<'_> {
        Places {
            store: &self.store,
            tree: self.tree(),
            last: None,
        }
    }
}

/// Finds the places of chunks, one after the other.
pub(super) struct Places<'a> {
    store: &'a Store,
    tree: Tree<'a>,
    /// The leaf that was used last, by its number.
    last: Option<(u64, Option<Arc<PlacedLeaf>>)>,
}

impl Places<'_> {
    /// The chunk that holds the byte at this place of the disk; none if it is zero.
    pub(super) fn chunk_at(&mut self, at: u64) -> Result<Option<Placed>> {
        let shape = *self.tree.shape();
        let number = at / shape.leaf_bytes();
        let leaf = match &self.last {
            Some((last, leaf)) if *last == number => leaf,
            _ => {
                let id = self.tree.subtree(0, number)?;
                let leaf = id.map(|id| placed_leaf(self.store, id)).transpose()?;
                &self.last.insert((number, leaf)).1
            }
        };
        let position = at % shape.leaf_bytes() / shape.chunk_size.as_u64();
        let position = usize::try_from(position).expect("leaves are small");
        let Some(leaf) = leaf else { return Ok(None) };
        let Some((id, location)) = leaf.chunks.get(position).copied().flatten() else {
            return Ok(None);
        };
        let leaf = Arc::clone(leaf);
        let location = match location {
            Some(location) => location,
            // By now it may have been stored anew.
            None => {
                self.store.places.remove(leaf.id);
                self.store.locate(RecordKind::Chunk, &[id.raw()])?[0]
            }
        };
        Ok(Some(Placed { id, location, leaf }))
    }
}

fn placed_leaf(store: &Store, id: NodeId) -> Result<Arc<PlacedLeaf>> {
    store.places.get_or(id, || {
        let node = store.node(id)?;
        check_level(&node, id, 0)?;
        let present: Vec<_> = node.children.iter().copied().flatten().collect();
        let mut locations = store.index.locate(&present)?.into_iter();
        let place = |child: &Option<crate::RawId>| {
            let chunk = child.map(ChunkId::from_raw)?;
            Some((chunk, locations.next()?))
        };
        let chunks = node.children.iter().map(place).collect();
        Ok(PlacedLeaf { id, chunks })
    })
}

/// Fills `part` from a chunk, which is not kept.
fn read_part(store: &Store, chunk: Placed, inside: u64, part: &mut [u8]) -> Result<()> {
    UNPACKED.with_borrow_mut(|unpacked| {
        unpacked.resize(store.keys.chunk_size().bytes(), 0);
        let out = &mut unpacked[..];
        read_neighbours(store, &mut [Whole { chunk, out }])?;
        copy_padded(unpacked, inside, part);
        Ok(())
    })
}

/// The bytes of a chunk, verified.
pub(super) fn fetch(store: &Store, chunk: &Placed) -> Result<Vec<u8>> {
    let mut out = vec![0; store.keys.chunk_size().bytes()];
    read_wholes(
        store,
        vec![Whole {
            chunk: chunk.clone(),
            out: &mut out,
        }],
    )?;
    Ok(out)
}

/// Fills the buffers, with as few reads as the places of the chunks allow.
fn read_wholes(store: &Store, mut wholes: Vec<Whole<'_>>) -> Result<()> {
    wholes.sort_unstable_by_key(|whole| {
        let Location { pack, offset, .. } = whole.chunk.location;
        (pack, offset)
    });
    reads::of_neighbours(wholes).try_for_each(|mut read| read_neighbours(store, &mut read))
}

thread_local! {
    /// What was read from a pack last: all reads of a thread use the same memory.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The chunk of which a part was read last, likewise.
    static UNPACKED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Fills the buffers of chunks that are neighbours in a pack.
fn read_neighbours(store: &Store, read: &mut [Whole<'_>]) -> Result<()> {
    let pack = read[0].chunk.location.pack;
    let span = span(read);
    let len = usize::try_from(span.end - span.start).expect("a read is small");
    SEALED.with_borrow_mut(|sealed| {
        if sealed.len() < len {
            sealed.resize(len, 0);
        }
        let bytes = &mut sealed[..len];
        // Whatever is wrong with the read, each record is then asked for alone, where it is by now. So what
        // cannot be read costs no more than the records it is in.
        let fetched = read_packed(store, &ObjectName::Pack(pack), span.start, bytes).is_ok();
        for Whole { chunk, out } in read {
            let from = u64::from(chunk.location.offset) - span.start;
            let from = usize::try_from(from).expect("inside a small read");
            let sealed = &bytes[from..from + chunk.location.len as usize];
            let (kind, id) = (RecordKind::Chunk, chunk.id.raw());
            if fetched
                && store
                    .open_into(kind, id, chunk.location, sealed, out)
                    .is_ok()
            {
                continue;
            }
            store.places.remove(chunk.leaf.id);
            copy_padded(&store.fetch(chunk.id)?, 0, out);
        }
        Ok(())
    })
}

/// Reads from a pack, and notes whether that meant waiting.
fn read_packed(store: &Store, pack: &ObjectName, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let cached = store.storage.read_cached_at(pack, offset, bytes);
    store.pace.note(!cached);
    if cached {
        return Ok(());
    }
    store.storage.read_at(pack, offset, bytes)
}
