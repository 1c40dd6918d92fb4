//! Backing up one disk: hands out reads, digests what comes back, grows the tree in order.
//!
//! Reads complete in any order, leaves are appended in the order of the disk: a leaf that is done
//! waits in a queue until everything before it is done.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rayon::Scope;

use super::intake::Intake;
use super::plan::{LeafPlan, Planner, Step};
use super::wanted::Wanted;
use crate::budget::{Budget, Permit};
use crate::format::node::Node;
use crate::ids::ContentId;
use crate::limits::{LEAVES_OPEN_MAX, SOURCE_READ_BYTES_MAX};
use crate::manifest::{Shape, Stored, TreeBuilder, chunk};
use crate::source::Ticket;
use crate::store::Store;
use crate::sync::{into_inner, lock};
use crate::{
    Cancel, ChunkId, DiskOffset, DiskStats, Error, ExtentState, Next, NodeId, Progress, RawId,
    ReadQueue, ReadRequest, RecordKind, Result, RootId,
};

/// How long a reader waits before it looks again whether open leaves were closed.
const CROWD_RECHECK: Duration = Duration::from_millis(1);

/// What one disk shares with the others of its backup, and who is watching it.
pub(super) struct Surroundings<'a> {
    pub(super) store: &'a Store,
    pub(super) intake: &'a Intake,
    pub(super) budget: &'a Arc<Budget>,
    /// Ids that are damaged in the repository.
    pub(super) wanted: &'a Wanted,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a Cancel,
}

/// Everything the tasks of one disk share.
pub(super) struct DiskJob<'a> {
    around: Surroundings<'a>,
    shape: Shape,
    plan: Mutex<Plan<'a>>,
    assembly: Mutex<Assembly<'a>>,
    failed: Arc<AtomicBool>,
    failure: Mutex<Option<Error>>,
    counters: Counters,
}

/// What the disk consists of and what is still to be read of it.
struct Plan<'a> {
    planner: Planner<'a>,
    /// Reads that nobody has fetched yet: offset and length.
    reads: VecDeque<(u64, u64)>,
    complete: bool,
}

/// The tree so far, and what waits to join it.
struct Assembly<'a> {
    builder: TreeBuilder<'a>,
    queue: VecDeque<Piece>,
    /// The leaves in the queue by their number.
    leaves: HashMap<u64, Arc<OpenLeaf>>,
}

enum Piece {
    Subtree { level: u8, id: Option<NodeId> },
    Leaf(Arc<OpenLeaf>),
}

/// A leaf whose chunks are being read.
struct OpenLeaf {
    index: u64,
    inherited: Option<Arc<Node>>,
    state: Mutex<LeafState>,
}

struct LeafState {
    chunks: Vec<Option<ChunkId>>,
    missing: usize,
    /// One of the chunks is new to the repository.
    fresh: bool,
}

#[derive(Default)]
struct Counters {
    read_bytes: AtomicU64,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    new_chunks: AtomicU64,
}

impl<'a> DiskJob<'a> {
    /// A job for a disk of this shape; `planner` knows its source and parent.
    pub(super) fn new(around: Surroundings<'a>, shape: Shape, planner: Planner<'a>) -> Self {
        let builder = TreeBuilder::new(shape, around.intake);
        let assembly = Assembly {
            builder,
            queue: VecDeque::new(),
            leaves: HashMap::new(),
        };
        Self {
            around,
            shape,
            plan: Mutex::new(Plan {
                planner,
                reads: VecDeque::new(),
                complete: false,
            }),
            assembly: Mutex::new(assembly),
            failed: Arc::default(),
            failure: Mutex::new(None),
            counters: Counters::default(),
        }
    }

    /// Finishes the tree, once all reads are digested.
    pub(super) fn finish(self, source_result: Result<()>) -> Result<(RootId, DiskStats)> {
        self.around.cancel.check()?;
        if let Some(error) = into_inner(self.failure) {
            // A poisoned intake knows the reason.
            self.around.intake.failure()?;
            return Err(error);
        }
        source_result?;
        let (plan, assembly) = (into_inner(self.plan), into_inner(self.assembly));
        if !plan.complete || !plan.reads.is_empty() || !assembly.queue.is_empty() {
            return Err(Error::Source(
                "the source stopped reading before the end".into(),
            ));
        }
        let built = assembly.builder.finish()?;
        let read_bytes = self.counters.read_bytes.into_inner();
        let stats = DiskStats {
            dirty_bytes: read_bytes,
            read_bytes,
            new_bytes: self.counters.new_bytes.into_inner(),
            stored_bytes: self.counters.stored_bytes.into_inner() + built.stored_bytes,
            new_chunks: self.counters.new_chunks.into_inner(),
            new_nodes: built.new_nodes,
        };
        Ok((built.root, stats))
    }

    /// The reading side's view of the job, which spawns its digesting in `scope`.
    pub(super) fn queue<'q, 'scope>(
        &'scope self,
        scope: &'q Scope<'scope>,
    ) -> DiskQueue<'q, 'scope, 'a> {
        DiskQueue { job: self, scope }
    }

    /// The longest read: at least one chunk.
    fn read_bytes_max(&self) -> u64 {
        SOURCE_READ_BYTES_MAX.max(self.shape.chunk_size.as_u64())
    }

    fn stopped(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.around.cancel.is_cancelled()
    }

    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Takes the next read from the plan, planning further when none is left.
    fn next_read(&self) -> Result<Option<(u64, u64)>> {
        let mut plan = lock(&self.plan);
        loop {
            if let Some(read) = plan.reads.pop_front() {
                return Ok(Some(read));
            }
            if plan.complete || self.stopped() {
                return Ok(None);
            }
            match plan.planner.next()? {
                None => plan.complete = true,
                Some(Step::Subtree { level, id }) => {
                    self.around.progress.passed(self.subtree_bytes(level));
                    self.enqueue(Piece::Subtree { level, id })?;
                }
                Some(Step::Leaf(leaf)) => self.open_leaf(&mut plan, leaf)?,
            }
        }
    }

    fn subtree_bytes(&self, level: u8) -> u64 {
        self.shape
            .leaves_under(level)
            .saturating_mul(self.shape.leaf_bytes())
            .min(self.shape.size)
    }

    fn open_leaf(&self, plan: &mut Plan<'_>, leaf: LeafPlan) -> Result<()> {
        let chunk_bytes = self.shape.chunk_size.as_u64();
        let start = leaf.index * self.shape.leaf_bytes();
        let mut chunks = vec![None; leaf.chunks.len()];
        let mut missing = 0;
        for (position, (state, id)) in leaf.chunks.iter().zip(&mut chunks).enumerate() {
            let position = position as u64;
            let at = start + position * chunk_bytes;
            let len = chunk_bytes.min(self.shape.size - at);
            match state {
                ExtentState::Zero => self.around.progress.passed(len),
                ExtentState::Unchanged => {
                    *id = leaf
                        .inherited
                        .as_deref()
                        .and_then(|leaf| chunk(leaf, position));
                    self.around.progress.passed(len);
                }
                ExtentState::Data => {
                    missing += 1;
                    match plan.reads.back_mut() {
                        Some((from, bytes))
                            if *from + *bytes == at && *bytes + len <= self.read_bytes_max() =>
                        {
                            *bytes += len;
                        }
                        _ => plan.reads.push_back((at, len)),
                    }
                }
            }
        }
        let state = Mutex::new(LeafState {
            chunks,
            missing,
            fresh: false,
        });
        let open = OpenLeaf {
            index: leaf.index,
            inherited: leaf.inherited,
            state,
        };
        self.enqueue(Piece::Leaf(Arc::new(open)))
    }

    fn enqueue(&self, piece: Piece) -> Result<()> {
        let mut assembly = lock(&self.assembly);
        if let Piece::Leaf(leaf) = &piece {
            assembly.leaves.insert(leaf.index, Arc::clone(leaf));
        }
        assembly.queue.push_back(piece);
        assembly.advance()
    }

    /// Identifies and stores what was read, then fills in the leaf.
    fn digest(&self, request: &ReadRequest) -> Result<()> {
        let chunk_size = self.shape.chunk_size;
        let leaf_index = request.offset.0 / self.shape.leaf_bytes();
        let leaf = lock(&self.assembly).leaves.get(&leaf_index).map(Arc::clone);
        let leaf = leaf.ok_or_else(|| Error::Source("a read was completed twice".into()))?;
        let first = chunk_size.index_of(request.offset) % u64::from(self.shape.fan_out.as_u16());

        let pieces: Vec<&[u8]> = request.buffer.chunks(chunk_size.bytes()).collect();
        let ids: Vec<Option<ChunkId>> = pieces.iter().map(|piece| self.identify(piece)).collect();
        let inherited = |position: u64| {
            leaf.inherited
                .as_deref()
                .and_then(|leaf| chunk(leaf, first + position))
        };
        let candidates: Vec<(RawId, &[u8])> = (0..)
            .zip(ids.iter().zip(&pieces))
            .filter_map(|(position, (id, piece))| {
                let id = (*id)?;
                let same =
                    inherited(position) == Some(id) && !self.around.wanted.contains(id.raw());
                (!same).then_some((id.raw(), *piece))
            })
            .collect();
        let stored = self.around.intake.put(RecordKind::Chunk, &candidates)?;
        let fresh = stored.iter().any(|stored| stored.new);
        self.counters.count(&candidates, &stored);

        let bytes = request.buffer.len() as u64;
        self.counters.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.around.progress.moved(bytes);
        self.around.progress.passed(bytes);
        if leaf.fill(first, &ids, fresh) {
            lock(&self.assembly).advance()
        } else {
            Ok(())
        }
    }

    /// The id of a chunk; `None` for zeroes.
    fn identify(&self, piece: &[u8]) -> Option<ChunkId> {
        (!is_zero(piece)).then(|| self.around.store.keys.chunk_id(piece))
    }
}

impl Counters {
    /// Counts the chunks that turned out to be new.
    fn count(&self, chunks: &[(RawId, &[u8])], stored: &[Stored]) {
        for ((_, chunk), stored) in chunks.iter().zip(stored) {
            if stored.new {
                self.new_chunks.fetch_add(1, Ordering::Relaxed);
                self.new_bytes
                    .fetch_add(chunk.len() as u64, Ordering::Relaxed);
                self.stored_bytes.fetch_add(stored.bytes, Ordering::Relaxed);
            }
        }
    }
}

impl OpenLeaf {
    /// Fills in chunks from `first` on; true when the leaf is complete.
    fn fill(&self, first: u64, ids: &[Option<ChunkId>], fresh: bool) -> bool {
        let mut state = lock(&self.state);
        state.fresh |= fresh;
        let first = usize::try_from(first).expect("a leaf is small");
        state.chunks[first..first + ids.len()].copy_from_slice(ids);
        state.missing -= ids.len();
        state.missing == 0
    }
}

impl Assembly<'_> {
    /// Appends everything that is complete, up to the first leaf that is not.
    fn advance(&mut self) -> Result<()> {
        while let Some(piece) = self.queue.front() {
            match piece {
                Piece::Subtree { level, id } => self.builder.subtree(*level, *id)?,
                Piece::Leaf(leaf) => {
                    let state = lock(&leaf.state);
                    if state.missing > 0 {
                        break;
                    }
                    self.builder.leaf(&state.chunks, state.fresh)?;
                    self.leaves.remove(&leaf.index);
                }
            }
            self.queue.pop_front();
        }
        Ok(())
    }
}

/// Hands the reads of one disk to its source.
pub(super) struct DiskQueue<'q, 'scope, 'a> {
    job: &'scope DiskJob<'a>,
    scope: &'q Scope<'scope>,
}

impl DiskQueue<'_, '_, '_> {
    /// The right to hold one read in memory; `None` when there is no room, or no use any more.
    fn permit(&self, wait: bool) -> Option<Permit> {
        let job = self.job;
        let crowded = || lock(&job.assembly).leaves.len() >= LEAVES_OPEN_MAX;
        while crowded() {
            if !wait || job.stopped() {
                return None;
            }
            thread::sleep(CROWD_RECHECK);
        }
        let bytes = job.read_bytes_max();
        if wait {
            job.around.budget.take(bytes, || job.stopped())
        } else {
            job.around.budget.try_take(bytes)
        }
    }
}

impl ReadQueue for DiskQueue<'_, '_, '_> {
    fn next(&self, wait: bool) -> Next {
        let job = self.job;
        // The permit comes first: whoever holds a planned read must be able to do it.
        let permit = self.permit(wait);
        if job.stopped() {
            return Next::Done;
        }
        let Some(mut permit) = permit else {
            return Next::Later;
        };
        match job.next_read() {
            Ok(Some((offset, len))) => {
                permit.shrink_to(len);
                let len = usize::try_from(len).expect("a read is small");
                Next::Read(ReadRequest {
                    offset: DiskOffset(offset),
                    buffer: vec![0; len],
                    ticket: Ticket::new(len, &job.failed, permit),
                })
            }
            Ok(None) => Next::Done,
            Err(error) => {
                job.fail(error);
                Next::Done
            }
        }
    }

    fn complete(&self, mut request: ReadRequest) {
        let job = self.job;
        if !request.ticket.complete(request.buffer.len()) {
            job.fail(Error::Source("a read came back in another length".into()));
            return;
        }
        self.scope.spawn(move |_| {
            if !job.stopped()
                && let Err(error) = job.digest(&request)
            {
                job.fail(error);
            }
        });
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(4096)
        .all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
}
