//! Numbers for what the kernel names.
//!
//! A number follows from what it stands for, so it means the same for as long as the mount lives, and
//! the kernel may keep what it has read. What is known of a number is kept while the kernel does, which
//! counts how often it was told one and gives all of that back at some time: so this is as bounded as
//! the kernel's own memory of names.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

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

/// The numbers that the kernel holds, and the root.
pub(super) struct Inodes {
    held: HashMap<u64, Held>,
}

struct Held {
    node: Node,
    attr: FileAttr,
    /// How often the kernel was told the number, less what it gave back.
    times: u64,
}

impl Inodes {
    /// With the root, which has the number the kernel expects and is never given back.
    pub(super) fn new(mut attr: FileAttr) -> Self {
        attr.ino = INodeNo::ROOT;
        let (node, times) = (Node::Root, 1);
        Self {
            held: HashMap::from([(attr.ino.0, Held { node, attr, times })]),
        }
    }

    /// The number of `node`, for a list of names.
    pub(super) fn number(&self, node: &Node) -> INodeNo {
        let mut hasher = DefaultHasher::new();
        loop {
            node.hash(&mut hasher);
            let number = hasher.finish();
            let is_free = self.held.get(&number).is_none_or(|held| held.node == *node);
            if number > INodeNo::ROOT.0 && is_free {
                return INodeNo(number);
            }
        }
    }

    /// Notes that the kernel is told of `node`; its attributes with the number.
    pub(super) fn tell(&mut self, node: Node, mut attr: FileAttr) -> FileAttr {
        attr.ino = self.number(&node);
        let times = 0;
        let held = self.held.entry(attr.ino.0);
        let held = held.or_insert(Held { node, attr, times });
        held.attr = attr;
        held.times += 1;
        attr
    }

    /// Notes that the kernel gave a number back so many times.
    pub(super) fn give_back(&mut self, number: INodeNo, times: u64) {
        if number == INodeNo::ROOT {
            return;
        }
        if let Some(held) = self.held.get_mut(&number.0) {
            held.times = held.times.saturating_sub(times);
            if held.times == 0 {
                self.held.remove(&number.0);
            }
        }
    }

    /// What a number stands for.
    pub(super) fn get(&self, number: INodeNo) -> Option<(&Node, &FileAttr)> {
        let held = self.held.get(&number.0)?;
        Some((&held.node, &held.attr))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::mount::access::Access;

    fn point(number: u64) -> Node {
        let mut id = [0; 10];
        id[..8].copy_from_slice(&number.to_le_bytes());
        Node::Point(PointId::from_bytes(id))
    }

    #[test]
    fn what_the_kernel_gave_back_as_often_as_it_was_told_takes_no_memory() {
        let attr = Access::new(false).directory(UNIX_EPOCH);
        let mut inodes = Inodes::new(attr);
        let told: Vec<_> = (0..1000).map(|i| inodes.tell(point(i), attr).ino).collect();
        let again = inodes.tell(point(7), attr).ino;
        assert_eq!((again, inodes.held.len()), (told[7], 1001));
        for number in &told {
            inodes.give_back(*number, 1);
        }
        assert_eq!(inodes.held.len(), 2);
        assert_eq!(inodes.get(told[7]).unwrap().0, &point(7));
        inodes.give_back(told[7], 1);
        // What was never told, and the root.
        inodes.give_back(told[8], 1);
        inodes.give_back(INodeNo::ROOT, u64::MAX);
        assert_eq!(inodes.held.len(), 1);
        // It has the same number when it comes again.
        assert_eq!(inodes.tell(point(7), attr).ino, told[7]);
    }

    #[test]
    fn two_things_never_share_a_number() {
        let attr = Access::new(false).directory(UNIX_EPOCH);
        let mut inodes = Inodes::new(attr);
        let taken = inodes.number(&point(1));
        let (node, times) = (point(2), 1);
        inodes.held.insert(taken.0, Held { node, attr, times });
        assert_ne!(inodes.tell(point(1), attr).ino, taken);
    }
}
