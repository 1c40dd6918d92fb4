//! Numbers for what has been named to the kernel.
//!
//! A number means the same for as long as the mount lives, so the kernel may keep what it has read.
//! Some hundred bytes are kept for each name ever seen, which even for weeks of new points is little.

use std::collections::HashMap;

use fuser::{FileAttr, INodeNo};
use virtkeep_repo::{DomainUuid, PointId};

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// The directory of all domains.
    Root,
    /// The directory of a domain.
    Domain(DomainUuid),
    /// The link to the newest point of a domain.
    Latest(DomainUuid),
    /// The directory of a point.
    Point(PointId),
    /// A file in that.
    File(PointId, File),
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    /// The disk of this target.
    Disk(String),
    /// A part of that disk.
    Partition {
        /// The disk's target name.
        target: String,
        /// First byte on the disk.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// The file at this place among those kept with the point.
    Stored(usize),
}

/// All numbers that were given out.
pub(super) struct Inodes {
    numbers: HashMap<Node, usize>,
    nodes: Vec<(Node, FileAttr)>,
}

impl Inodes {
    /// With the root, which has the number the kernel expects.
    pub(super) fn new(mut root: FileAttr) -> Self {
        root.ino = INodeNo::ROOT;
        Self {
            numbers: HashMap::from([(Node::Root, 0)]),
            nodes: vec![(Node::Root, root)],
        }
    }

    /// The number of `node`, put into its attributes.
    pub(super) fn number(&mut self, node: Node, mut attr: FileAttr) -> FileAttr {
        let next = self.nodes.len();
        let place = *self.numbers.entry(node.clone()).or_insert(next);
        attr.ino = INodeNo(place as u64 + INodeNo::ROOT.0);
        if place == next {
            self.nodes.push((node, attr));
        } else {
            self.nodes[place].1 = attr;
        }
        attr
    }

    /// What a number stands for.
    pub(super) fn get(&self, number: INodeNo) -> Option<&(Node, FileAttr)> {
        let place = usize::try_from(number.0.checked_sub(INodeNo::ROOT.0)?).ok()?;
        self.nodes.get(place)
    }
}
