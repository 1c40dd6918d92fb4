//! Manifests: the Merkle radix tree that names every chunk of a disk.
//!
//! A leaf (level 0) names `fan_out` consecutive chunks, a node of level `n + 1` names `fan_out`
//! nodes of level `n`. All-zero subtrees are absent and the height is minimal, so one disk content
//! has exactly one tree and one root id. Trees of different points share every subtree that did not
//! change; building one from another costs what changed, never the size of the disk.
//!
//! [`TreeBuilder`] writes a tree from left to right, [`Tree`] reads one at any place. Both see
//! storage only through the two traits below.

mod build;
mod diff;
mod tree;

use std::sync::Arc;

pub(crate) use build::TreeBuilder;
pub(crate) use diff::{Comparison, Found};
pub(crate) use tree::{Tree, check_level, chunk};

use crate::format::geometry::{ChunkSize, FanOut, height_for};
use crate::format::node::{Node, Root};
use crate::{NodeId, Result, RootId};

/// Where nodes come from.
pub(crate) trait NodeSource: Sync {
    /// The node, verified.
    fn node(&self, id: NodeId) -> Result<Arc<Node>>;
    /// The root record, verified.
    fn root(&self, id: RootId) -> Result<Root>;
}

/// Where new nodes go.
pub(crate) trait NodeSink: Sync {
    /// Stores a node unless the repository has it. `fresh` says that something below it is new, so
    /// that the node cannot be known either and need not be looked up.
    fn put_node(&self, node: &Node, fresh: bool) -> Result<(NodeId, Stored)>;
    /// Stores a root record unless the repository has it.
    fn put_root(&self, root: &Root, fresh: bool) -> Result<(RootId, Stored)>;
}

/// What storing one record took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stored {
    /// The repository did not hold it before.
    pub(crate) new: bool,
    /// Bytes it takes in its pack; 0 when it is not new.
    pub(crate) bytes: u64,
}

/// The measures of one disk's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    /// Bytes per chunk.
    pub(crate) chunk_size: ChunkSize,
    /// Children per node.
    pub(crate) fan_out: FanOut,
}

impl Shape {
    /// The shape a root record describes.
    pub(crate) fn of(root: &Root) -> Self {
        Self {
            size: root.size,
            chunk_size: root.chunk_size,
            fan_out: root.fan_out,
        }
    }

    /// Levels of nodes; at least 1.
    pub(crate) fn height(&self) -> u8 {
        height_for(self.size, self.chunk_size, self.fan_out)
    }

    /// Bytes of disk under one leaf.
    pub(crate) fn leaf_bytes(&self) -> u64 {
        self.chunk_size.as_u64() * u64::from(self.fan_out.as_u16())
    }

    /// Number of leaves the disk spans; the last may be partial.
    pub(crate) fn leaves(&self) -> u64 {
        self.size.div_ceil(self.leaf_bytes())
    }

    /// The highest level below `height` with a whole subtree that starts at leaf `start` and spans at
    /// most `leaves`.
    pub(crate) fn widest_level(&self, start: u64, leaves: u64, height: u8) -> Option<u8> {
        (0..height).rev().find(|level| {
            let span = self.leaves_under(*level);
            span <= leaves && start.is_multiple_of(span)
        })
    }

    /// Number of leaves under one node of `level`.
    pub(crate) fn leaves_under(&self, level: u8) -> u64 {
        self.fan_out.chunks_per_child(level)
    }
}
