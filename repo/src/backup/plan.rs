//! Deciding what of a disk must be read, from left to right, leaf by leaf.
//!
//! The rule is *fail toward copying more*: a chunk is taken over from the parent or taken for zero
//! only when extents of that one state cover all of it; everything else is read.

use std::collections::VecDeque;
use std::sync::Arc;

use super::wanted::Wanted;
use crate::format::node::Node;
use crate::manifest::{Shape, Tree, chunk};
use crate::{ByteLen, DiskOffset, DiskSource, Error, Extent, ExtentState, NodeId, Result};

/// The next piece of a disk.
pub(super) enum Step {
    /// A whole subtree that needs no look inside: zero (`None`) or taken over from the parent.
    Subtree {
        /// Its level; it covers `fan_out ^ level` leaves.
        level: u8,
        /// Its node.
        id: Option<NodeId>,
    },
    /// One leaf with chunks to read, or of mixed content.
    Leaf(LeafPlan),
}

/// What to do with each chunk of a leaf.
pub(super) struct LeafPlan {
    /// Number of the leaf within the disk.
    pub(super) index: u64,
    /// One entry per chunk; fewer than the fan-out at the end of the disk.
    pub(super) chunks: Vec<ExtentState>,
    /// The same leaf of the parent, if it has one.
    pub(super) inherited: Option<Arc<Node>>,
}

/// Walks the extents of one disk.
pub(super) struct Planner<'a> {
    shape: Shape,
    parent: Option<Tree<'a>>,
    wanted: &'a Wanted,
    extents: Extents<'a>,
    leaf: u64,
}

impl<'a> Planner<'a> {
    /// A planner for `source`. Ids in `wanted` are damaged in the repository: what holds them is
    /// read again.
    pub(super) fn new(
        shape: Shape,
        source: &'a dyn DiskSource,
        parent: Option<Tree<'a>>,
        wanted: &'a Wanted,
    ) -> Self {
        let inheritable = parent
            .as_ref()
            .map_or(0, |parent| inheritable_bytes(&shape, parent));
        let extents = Extents {
            source,
            size: shape.size,
            inheritable,
            ahead: VecDeque::new(),
        };
        Self {
            shape,
            parent,
            wanted,
            extents,
            leaf: 0,
        }
    }

    /// The next piece; `None` at the end of the disk.
    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        if self.leaf >= self.shape.leaves() {
            return Ok(None);
        }
        let step = match self.plan_subtree()? {
            Some(step) => step,
            None => Step::Leaf(self.plan_leaf()?),
        };
        self.leaf += match &step {
            Step::Subtree { level, .. } => self.shape.leaves_under(*level),
            Step::Leaf(_) => 1,
        };
        Ok(Some(step))
    }

    /// The widest subtree that starts here and is zero or unchanged throughout.
    fn plan_subtree(&mut self) -> Result<Option<Step>> {
        let start = self.leaf * self.shape.leaf_bytes();
        let (state, end) = self.extents.uniform(start)?;
        let same_end = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.shape() == &self.shape);
        // Behind the end of the disk there is nothing that a subtree could get wrong.
        let open_end = end == self.shape.size && (state == ExtentState::Zero || same_end);
        let leaves = if open_end {
            u64::MAX
        } else {
            (end - start) / self.shape.leaf_bytes()
        };
        let widest = |height| self.shape.widest_level(self.leaf, leaves, height);
        Ok(match (state, &mut self.parent) {
            (ExtentState::Zero, _) => {
                widest(self.shape.height()).map(|level| Step::Subtree { level, id: None })
            }
            // With damage about, every leaf is looked at before it is inherited.
            (ExtentState::Unchanged, Some(parent)) if self.wanted.is_empty() => {
                let level = widest(self.shape.height().min(parent.shape().height()));
                let index = |level| self.leaf / self.shape.leaves_under(level);
                // A damaged parent costs a read, not the backup: then the leaf is planned chunk by chunk.
                level.and_then(|level| {
                    let id = parent.subtree(level, index(level)).ok()?;
                    Some(Step::Subtree { level, id })
                })
            }
            _ => None,
        })
    }

    fn plan_leaf(&mut self) -> Result<LeafPlan> {
        let start = self.leaf * self.shape.leaf_bytes();
        let end = (start + self.shape.leaf_bytes()).min(self.shape.size);
        let mut chunks = Vec::new();
        let mut at = start;
        while at < end {
            let chunk_end = (at + self.shape.chunk_size.as_u64()).min(end);
            chunks.push(self.extents.state_of(at, chunk_end)?);
            at = chunk_end;
        }
        let inherited = match &mut self.parent {
            // A damaged parent costs a read, not the backup.
            Some(parent) => parent.leaf(self.leaf),
            None => Ok(None),
        };
        let damaged = inherited.is_err();
        let inherited = inherited.unwrap_or(None);
        for (position, state) in (0..).zip(&mut chunks) {
            let stale = damaged
                || inherited
                    .as_deref()
                    .and_then(|leaf| chunk(leaf, position))
                    .is_some_and(|id| self.wanted.contains(crate::ids::ContentId::raw(id)));
            if stale && *state == ExtentState::Unchanged {
                *state = ExtentState::Data;
            }
        }
        Ok(LeafPlan {
            index: self.leaf,
            chunks,
            inherited,
        })
    }
}

/// How much of the disk, from its start, may be taken over from the parent.
fn inheritable_bytes(shape: &Shape, parent: &Tree<'_>) -> u64 {
    let old = parent.shape();
    if (old.chunk_size, old.fan_out) != (shape.chunk_size, shape.fan_out) {
        return 0;
    }
    if shape.size >= old.size {
        return old.size;
    }
    // The leaf that the new end cuts through names chunks that are gone.
    shape.size - shape.size % shape.leaf_bytes()
}

/// The extents of a source, checked, with "unchanged" limited to what a parent can give.
struct Extents<'a> {
    source: &'a dyn DiskSource,
    size: u64,
    inheritable: u64,
    ahead: VecDeque<Extent>,
}

impl Extents<'_> {
    /// The state at `at`, and how far it reaches without a break.
    fn uniform(&mut self, at: u64) -> Result<(ExtentState, u64)> {
        self.drop_before(at);
        let first = self.extent(0, at)?;
        let mut end = first.end().0;
        // Data is planned leaf by leaf; only the other states gain from a long look ahead.
        while first.state != ExtentState::Data && end < self.size {
            let next = self.extent(1, end)?;
            if next.state != first.state {
                break;
            }
            end = next.end().0;
            // Merged, so that a fragmented map does not pile up in memory.
            self.ahead.remove(1);
            self.ahead[0].len = ByteLen(end - first.start.0);
        }
        Ok((first.state, end))
    }

    /// The state of `start..end`; mixed states count as data.
    fn state_of(&mut self, start: u64, end: u64) -> Result<ExtentState> {
        self.drop_before(start);
        let mut position = 0;
        let first = self.extent(position, start)?;
        let mut covered = first.end().0;
        while covered < end {
            position += 1;
            let next = self.extent(position, covered)?;
            if next.state != first.state {
                return Ok(ExtentState::Data);
            }
            covered = next.end().0;
        }
        Ok(first.state)
    }

    fn drop_before(&mut self, at: u64) {
        while self
            .ahead
            .front()
            .is_some_and(|extent| extent.end().0 <= at)
        {
            self.ahead.pop_front();
        }
    }

    /// Extent number `position` ahead; the source is asked for more from `from` when needed.
    fn extent(&mut self, position: usize, from: u64) -> Result<Extent> {
        while self.ahead.len() <= position {
            let answer = self
                .source
                .extents(DiskOffset(from))
                .map_err(Error::Source)?;
            let mut expected = from;
            for extent in &answer {
                let end = extent.start.0.checked_add(extent.len.0);
                if extent.start.0 != expected
                    || extent.len.0 == 0
                    || end.is_none_or(|end| end > self.size)
                {
                    return Err(Error::Source(
                        format!("the map of the disk has a gap or overlap at {expected}").into(),
                    ));
                }
                expected = extent.end().0;
                self.push(*extent);
            }
            if answer.is_empty() {
                return Err(Error::Source(
                    format!("the map of the disk ends early, at {from}").into(),
                ));
            }
        }
        Ok(self.ahead[position])
    }

    /// Takes an extent in; what the parent cannot give is data.
    fn push(&mut self, extent: Extent) {
        if extent.state != ExtentState::Unchanged || extent.end().0 <= self.inheritable {
            self.ahead.push_back(extent);
            return;
        }
        let split = self.inheritable.max(extent.start.0);
        if split > extent.start.0 {
            let len = ByteLen(split - extent.start.0);
            self.ahead.push_back(Extent { len, ..extent });
        }
        let len = ByteLen(extent.end().0 - split);
        self.ahead.push_back(Extent {
            start: DiskOffset(split),
            len,
            state: ExtentState::Data,
        });
    }
}
