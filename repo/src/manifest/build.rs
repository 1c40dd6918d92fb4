//! Writing a tree from left to right.

use super::{NodeSink, Shape};
use crate::format::node::{Node, Root};
use crate::ids::{ContentId, RawId};
use crate::{ChunkId, NodeId, Result, RootId};

/// Builds the tree of one disk from leaves and finished subtrees, in the order of the disk. Memory
/// holds one unfinished node per level.
pub(crate) struct TreeBuilder<'a> {
    shape: Shape,
    sink: &'a dyn NodeSink,
    /// Children so far of the unfinished node of each level; leaves arrive whole, so `open[0]` stays
    /// empty.
    open: Vec<Vec<Option<RawId>>>,
    /// Number of leaves appended.
    position: u64,
    top: Option<NodeId>,
}

impl<'a> TreeBuilder<'a> {
    /// A builder for a disk of this shape.
    pub(crate) fn new(shape: Shape, sink: &'a dyn NodeSink) -> Self {
        let open = vec![Vec::new(); shape.height().into()];
        Self {
            shape,
            sink,
            open,
            position: 0,
            top: None,
        }
    }

    /// Appends one leaf: its chunks in order, `None` for a chunk of zeroes.
    pub(crate) fn leaf(&mut self, chunks: &[Option<ChunkId>]) -> Result<()> {
        let children = chunks
            .iter()
            .map(|chunk| chunk.map(ContentId::raw))
            .collect();
        let id = self.node(0, children)?;
        self.subtree(0, id)
    }

    /// Appends a finished subtree, and closes every node it completes.
    pub(crate) fn subtree(&mut self, mut level: u8, mut id: Option<NodeId>) -> Result<()> {
        self.position += self.shape.leaves_under(level);
        loop {
            let above = level + 1;
            if above == self.shape.height() {
                self.top = id;
                return Ok(());
            }
            let children = &mut self.open[usize::from(above)];
            children.push(id.map(ContentId::raw));
            if children.len() < self.shape.fan_out.children() {
                return Ok(());
            }
            let children = std::mem::take(children);
            id = self.node(above, children)?;
            level = above;
        }
    }

    /// Stores what is left and the root record. The whole disk must have been appended.
    pub(crate) fn finish(mut self) -> Result<RootId> {
        assert!(
            self.position >= self.shape.leaves(),
            "the whole disk was appended"
        );
        let whole = self.shape.leaves_under(self.shape.height() - 1);
        while self.position < whole {
            let level = self
                .shape
                .widest_level(self.position, whole - self.position, self.shape.height())
                .expect("a leaf always fits");
            self.subtree(level, None)?;
        }
        self.sink.put_root(&Root {
            size: self.shape.size,
            chunk_size: self.shape.chunk_size,
            fan_out: self.shape.fan_out,
            top: self.top,
        })
    }

    fn node(&self, level: u8, mut children: Vec<Option<RawId>>) -> Result<Option<NodeId>> {
        if children.iter().all(Option::is_none) {
            return Ok(None);
        }
        children.resize(self.shape.fan_out.children(), None);
        self.sink.put_node(&Node { level, children }).map(Some)
    }
}
