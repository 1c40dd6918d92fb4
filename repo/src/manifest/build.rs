//! Writing a tree from left to right.

use super::{NodeSink, Shape, Stored};
use crate::format::node::{Node, Root};
use crate::ids::ContentId;
use crate::{ChunkId, NodeId, Result, RootId};

/// Builds the tree of one disk from leaves and finished subtrees, in the order of the disk. Memory
/// holds one unfinished node per level.
pub(crate) struct TreeBuilder<'a> {
    shape: Shape,
    sink: &'a dyn NodeSink,
    /// Children so far of the unfinished node of each level; leaves arrive whole, so `open[0]` stays
    /// empty.
    open: Vec<Vec<Subtree>>,
    /// Number of leaves appended.
    position: u64,
    top: Subtree,
    new_nodes: u64,
    stored_bytes: u64,
}

/// A finished tree, and what it took.
pub(crate) struct Built {
    /// Names the disk's whole content.
    pub(crate) root: RootId,
    /// Nodes the repository did not hold.
    pub(crate) new_nodes: u64,
    /// Bytes they and the root record take in packs.
    pub(crate) stored_bytes: u64,
}

/// A finished subtree; `None` is all zero.
#[derive(Clone, Copy, Default)]
struct Subtree {
    id: Option<NodeId>,
    /// Something in it is new to the repository.
    fresh: bool,
}

impl<'a> TreeBuilder<'a> {
    /// A builder for a disk of this shape.
    pub(crate) fn new(shape: Shape, sink: &'a dyn NodeSink) -> Self {
        let open = vec![Vec::new(); shape.height().into()];
        let top = Subtree::default();
        Self {
            shape,
            sink,
            open,
            position: 0,
            top,
            new_nodes: 0,
            stored_bytes: 0,
        }
    }

    /// Appends one leaf: its chunks in order, `None` for a chunk of zeroes. `fresh` says that one
    /// of them is new to the repository.
    pub(crate) fn leaf(&mut self, chunks: &[Option<ChunkId>], fresh: bool) -> Result<()> {
        let mut leaf = Node::empty(0, self.shape.fan_out);
        for (place, chunk) in leaf.children.iter_mut().zip(chunks) {
            *place = chunk.map(ContentId::raw);
        }
        let leaf = self.put(&leaf, fresh)?;
        self.append(0, leaf)
    }

    /// Appends a subtree that is zero (`None`) or known to the repository.
    pub(crate) fn subtree(&mut self, level: u8, id: Option<NodeId>) -> Result<()> {
        self.append(level, Subtree { id, fresh: false })
    }

    /// Stores what is left and the root record. The whole disk must have been appended.
    pub(crate) fn finish(mut self) -> Result<Built> {
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
        let root = Root {
            size: self.shape.size,
            chunk_size: self.shape.chunk_size,
            fan_out: self.shape.fan_out,
            top: self.top.id,
        };
        let (root, stored) = self.sink.put_root(&root, self.top.fresh)?;
        let stored_bytes = self.stored_bytes + stored.bytes;
        Ok(Built {
            root,
            new_nodes: self.new_nodes,
            stored_bytes,
        })
    }

    /// Appends a subtree, and closes every node it completes.
    fn append(&mut self, mut level: u8, mut subtree: Subtree) -> Result<()> {
        self.position += self.shape.leaves_under(level);
        loop {
            level += 1;
            if level == self.shape.height() {
                self.top = subtree;
                return Ok(());
            }
            let children = &mut self.open[usize::from(level)];
            children.push(subtree);
            if children.len() < self.shape.fan_out.children() {
                return Ok(());
            }
            let children = std::mem::take(children);
            let mut node = Node::empty(level, self.shape.fan_out);
            for (place, child) in node.children.iter_mut().zip(&children) {
                *place = child.id.map(ContentId::raw);
            }
            subtree = self.put(&node, children.iter().any(|child| child.fresh))?;
        }
    }

    fn put(&mut self, node: &Node, fresh: bool) -> Result<Subtree> {
        if node.is_empty() {
            return Ok(Subtree::default());
        }
        let (id, Stored { new, bytes }) = self.sink.put_node(node, fresh)?;
        self.new_nodes += u64::from(new);
        self.stored_bytes += bytes;
        Ok(Subtree {
            id: Some(id),
            fresh: new,
        })
    }
}
