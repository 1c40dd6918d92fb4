//! Where two disks differ, from their trees alone.
//!
//! Equal subtrees have equal ids, so two trees are walked side by side only where the ids differ:
//! what it costs follows what changed, never the size of the disks. The trees may be of different
//! height, as the disks are of different size; chunk size and fan-out are those of the repository
//! and the same in both.

use std::sync::Arc;

use super::{Shape, Tree};
use crate::format::node::Node;
use crate::{ChunkId, NodeId, Result};

use super::chunk;

/// Two trees, compared at one place after the other.
pub(crate) struct Comparison<'a> {
    shape: Shape,
    height: u8,
    pair: [Tree<'a>; 2],
}

/// What a comparison finds.
pub(crate) enum Found {
    /// This many leaves are equal, from the one asked for.
    Equal(u64),
    /// One leaf that differs.
    Leaf(LeafPair),
}

/// The two leaves at one place; where one is absent, all is zero.
pub(crate) struct LeafPair([Option<Arc<Node>>; 2]);

impl<'a> Comparison<'a> {
    /// Compares two trees; none if they are cut into different chunks or nodes.
    pub(crate) fn of(one: Tree<'a>, other: Tree<'a>) -> Option<Self> {
        let (a, b) = (*one.shape(), *other.shape());
        (a.chunk_size == b.chunk_size && a.fan_out == b.fan_out).then(|| Self {
            shape: a,
            height: a.height().max(b.height()),
            pair: [one, other],
        })
    }

    /// What is at leaf `index`.
    pub(crate) fn at(&mut self, index: u64) -> Result<Found> {
        for level in (0..self.height).rev() {
            let span = self.shape.leaves_under(level);
            let [one, other] = &mut self.pair;
            let ids = (
                subtree(one, level, index / span)?,
                subtree(other, level, index / span)?,
            );
            if let (Some(one), Some(other)) = ids
                && one == other
            {
                return Ok(Found::Equal(span - index % span));
            }
        }
        let [one, other] = &mut self.pair;
        Ok(Found::Leaf(LeafPair([
            one.leaf(index)?,
            other.leaf(index)?,
        ])))
    }
}

impl LeafPair {
    /// Whether the chunk with this number in the leaf differs.
    pub(crate) fn differs(&self, position: u64) -> bool {
        let [one, other] = &self.0;
        let id = |leaf: &Option<Arc<Node>>| -> Option<ChunkId> {
            leaf.as_ref().and_then(|leaf| chunk(leaf, position))
        };
        id(one) != id(other)
    }
}

/// The id of a subtree, which is none inside where it is all zero; none outside where the tree is
/// too low to have a node of this level, and yet not zero.
fn subtree(tree: &mut Tree<'_>, level: u8, index: u64) -> Result<Option<Option<NodeId>>> {
    let top = tree.shape().height() - 1;
    if level <= top {
        return tree.subtree(level, index).map(Some);
    }
    let holds_tree = index == 0 && tree.subtree(top, 0)?.is_some();
    Ok((!holds_tree).then_some(None))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::format::geometry::{ChunkSize, FanOut};
    use crate::format::node::Root;
    use crate::ids::ContentId;
    use crate::manifest::{NodeSink, NodeSource, Stored, TreeBuilder};
    use crate::sync::lock;
    use crate::{Error, RawId, RootId};

    const FAN_OUT: u64 = 64;

    /// Nodes in memory, and which were asked for.
    #[derive(Default)]
    struct Memory {
        nodes: Mutex<HashMap<NodeId, Arc<Node>>>,
        roots: Mutex<HashMap<RootId, Root>>,
        asked: Mutex<Vec<u8>>,
    }

    fn raw(bytes: &[u8]) -> RawId {
        RawId::from_bytes(*blake3::hash(bytes).as_bytes())
    }

    impl NodeSink for Memory {
        fn put_node(&self, node: &Node, _: bool) -> Result<(NodeId, Stored)> {
            let id = NodeId::from_raw(raw(&node.encode()));
            lock(&self.nodes).insert(id, Arc::new(node.clone()));
            Ok((id, Stored::default()))
        }

        fn put_root(&self, root: &Root, _: bool) -> Result<(RootId, Stored)> {
            let id = RootId::from_raw(raw(&root.encode()));
            lock(&self.roots).insert(id, *root);
            Ok((id, Stored::default()))
        }
    }

    impl NodeSource for Memory {
        fn node(&self, id: NodeId) -> Result<Arc<Node>> {
            let node = lock(&self.nodes).get(&id).cloned();
            let node = node.ok_or_else(|| Error::Missing {
                what: id.to_string(),
            })?;
            lock(&self.asked).push(node.level);
            Ok(node)
        }

        fn root(&self, id: RootId) -> Result<Root> {
            let root = lock(&self.roots).get(&id).copied();
            root.ok_or_else(|| Error::Missing {
                what: id.to_string(),
            })
        }
    }

    /// A disk as a model: its number of chunks, and what those hold that are not zero.
    #[derive(Clone, Debug)]
    struct Model {
        chunks: u64,
        data: BTreeMap<u64, u8>,
    }

    impl Model {
        fn store(&self, memory: &Memory) -> RootId {
            let shape = Shape {
                size: self.chunks * 4096,
                chunk_size: ChunkSize::new(4096).unwrap(),
                fan_out: FanOut::new(FAN_OUT).unwrap(),
            };
            let mut builder = TreeBuilder::new(shape, memory);
            let mut leaf = 0;
            while leaf < shape.leaves() {
                let next = self.data.range(leaf * FAN_OUT..).next();
                let zeroes = next.map_or(shape.leaves(), |(at, _)| at / FAN_OUT) - leaf;
                if let Some(level) = shape.widest_level(leaf, zeroes, shape.height()) {
                    builder.subtree(level, None).unwrap();
                    leaf += shape.leaves_under(level);
                } else {
                    let chunk = |at| {
                        self.data
                            .get(&at)
                            .map(|&seed| ChunkId::from_raw(raw(&[seed])))
                    };
                    let range = leaf * FAN_OUT..(leaf + 1) * FAN_OUT;
                    let chunks: Vec<_> = range.map(chunk).collect();
                    builder.leaf(&chunks, true).unwrap();
                    leaf += 1;
                }
            }
            builder.finish().unwrap().root
        }

        fn leaves(&self) -> u64 {
            self.chunks.div_ceil(FAN_OUT)
        }
    }

    /// The numbers of all chunks that differ.
    fn compare(memory: &Memory, roots: [RootId; 2], leaves: u64) -> Vec<u64> {
        let [one, other] = roots.map(|root| Tree::open(root, memory).unwrap());
        let mut comparison = Comparison::of(one, other).unwrap();
        let (mut leaf, mut different) = (0, Vec::new());
        while leaf < leaves {
            match comparison.at(leaf).unwrap() {
                Found::Equal(count) => leaf += count,
                Found::Leaf(pair) => {
                    let differs = (0..FAN_OUT).filter(|position| pair.differs(*position));
                    different.extend(differs.map(|position| leaf * FAN_OUT + position));
                    leaf += 1;
                }
            }
        }
        different
    }

    /// Disks of one to four levels, mostly empty, and one made of the other with a few changes.
    fn models() -> impl Strategy<Value = [Model; 2]> {
        let size = prop_oneof![
            1..65_u64,
            64..5000_u64,
            4090..300_000_u64,
            260_000..300_000_u64
        ];
        let places = || prop::collection::btree_map(0..300_000_u64, 0..5_u8, 0..40);
        (
            size.clone(),
            size,
            any::<bool>(),
            places(),
            places(),
            places(),
        )
            .prop_map(|(size, other_size, same_size, near_start, data, changes)| {
                let mut data = data;
                data.extend(near_start.into_iter().map(|(at, seed)| (at % 200, seed)));
                let one = Model::within(size, data.clone());
                data.extend(changes);
                let size = if same_size { size } else { other_size };
                [one, Model::within(size, data)]
            })
    }

    impl Model {
        /// Seed 0 stands for zeroes.
        fn within(chunks: u64, mut data: BTreeMap<u64, u8>) -> Self {
            data.retain(|at, seed| *at < chunks && *seed != 0);
            Self { chunks, data }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_differs_is_what_differs_chunk_by_chunk([one, other] in models()) {
            let memory = Memory::default();
            let roots = [one.store(&memory), other.store(&memory)];
            let leaves = one.leaves().max(other.leaves());
            let mut expected: Vec<u64> = one.data.keys().chain(other.data.keys()).copied()
                .filter(|at| one.data.get(at) != other.data.get(at))
                .collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(&compare(&memory, roots, leaves), &expected);
            let [one, other] = roots;
            prop_assert_eq!(&compare(&memory, [other, one], leaves), &expected);
        }
    }

    #[test]
    fn one_changed_chunk_costs_the_nodes_above_it_and_no_others() {
        let data: BTreeMap<u64, u8> = (0..250_000).step_by(17).map(|at| (at, 1)).collect();
        let one = Model::within(262_144, data);
        let mut other = one.clone();
        other.data.insert(100_000, 2);
        let memory = Memory::default();
        let roots = [one.store(&memory), other.store(&memory)];
        lock(&memory.asked).clear();
        assert_eq!(compare(&memory, roots, one.leaves()), [100_000]);
        let mut asked = lock(&memory.asked).clone();
        asked.sort_unstable();
        assert_eq!(asked, [0, 0, 1, 1, 2, 2], "one node of each level and tree");
    }
}
