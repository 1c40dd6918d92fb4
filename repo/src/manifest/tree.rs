//! Reading a tree at any place.

use std::sync::Arc;

use super::{NodeSource, Shape};
use crate::format::node::{Node, Root};
use crate::ids::ContentId;
use crate::{ChunkId, Error, NodeId, Result, RootId};

/// A run of leaves or one leaf, as [`Tree::next_span`] finds them.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// The leaf, or `None` where everything is zero.
    pub(crate) leaf: Option<Arc<Node>>,
    /// How many leaves the span covers; 1 for a leaf.
    pub(crate) leaves: u64,
}

/// The tree of one disk. Remembers the way to the place it was last asked for, so walking from left
/// to right loads every node once.
pub(crate) struct Tree<'a> {
    source: &'a dyn NodeSource,
    shape: Shape,
    top: Option<NodeId>,
    /// The node of each level last visited, with its number within the level.
    path: Vec<Option<(u64, Arc<Node>)>>,
}

impl<'a> Tree<'a> {
    /// The tree under this root.
    pub(crate) fn open(root: RootId, source: &'a dyn NodeSource) -> Result<Self> {
        source.root(root).map(|root| Self::new(&root, source))
    }

    /// The tree of a root record.
    pub(crate) fn new(root: &Root, source: &'a dyn NodeSource) -> Self {
        let shape = Shape::of(root);
        Self {
            source,
            shape,
            top: root.top,
            path: vec![None; shape.height().into()],
        }
    }

    /// The measures of the tree.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The id of node `index` of `level`; `None` where the subtree is all zero or behind the end.
    pub(crate) fn subtree(&mut self, level: u8, index: u64) -> Result<Option<NodeId>> {
        if level + 1 == self.shape.height() {
            return Ok(self.top.filter(|_| index == 0));
        }
        let fan_out = u64::from(self.shape.fan_out.as_u16());
        let Some(above) = self.node(level + 1, index / fan_out)? else {
            return Ok(None);
        };
        Ok(child(&above, index % fan_out).map(NodeId::from_raw))
    }

    /// The leaf with this number; `None` where it is all zero or behind the end.
    pub(crate) fn leaf(&mut self, index: u64) -> Result<Option<Arc<Node>>> {
        self.node(0, index)
    }

    /// What is at leaf `index`: the leaf itself, or how far the zeroes reach.
    pub(crate) fn next_span(&mut self, index: u64) -> Result<Span> {
        for level in (0..self.shape.height()).rev() {
            let span = self.shape.leaves_under(level);
            if self.subtree(level, index / span)?.is_none() {
                let leaves = span - index % span;
                return Ok(Span { leaf: None, leaves });
            }
        }
        Ok(Span {
            leaf: self.leaf(index)?,
            leaves: 1,
        })
    }

    /// Where [`next_span`](Self::next_span) fails: how many leaves from `index` on hang below the node
    /// that cannot be read.
    pub(crate) fn leaves_unreadable(&mut self, index: u64) -> u64 {
        for level in (0..self.shape.height()).rev() {
            let span = self.shape.leaves_under(level);
            if self.node(level, index / span).is_err() {
                return span - index % span;
            }
        }
        1
    }

    fn node(&mut self, level: u8, index: u64) -> Result<Option<Arc<Node>>> {
        if let Some((at, node)) = &self.path[usize::from(level)]
            && *at == index
        {
            return Ok(Some(Arc::clone(node)));
        }
        let Some(id) = self.subtree(level, index)? else {
            return Ok(None);
        };
        let node = self.source.node(id)?;
        check_level(&node, id, level)?;
        self.path[usize::from(level)] = Some((index, Arc::clone(&node)));
        Ok(Some(node))
    }
}

/// An error unless a node has the level that its place in a tree demands.
pub(crate) fn check_level(node: &Node, id: NodeId, level: u8) -> Result<()> {
    if node.level == level {
        return Ok(());
    }
    Err(Error::Corrupt {
        what: format!("manifest node {id}"),
        expected: format!("level {level}"),
        found: format!("level {}", node.level),
    })
}

/// The chunks a leaf names.
pub(crate) fn chunk(leaf: &Node, index: u64) -> Option<ChunkId> {
    child(leaf, index).map(ChunkId::from_raw)
}

fn child(node: &Node, index: u64) -> Option<crate::RawId> {
    usize::try_from(index)
        .ok()
        .and_then(|index| node.children.get(index).copied().flatten())
}
