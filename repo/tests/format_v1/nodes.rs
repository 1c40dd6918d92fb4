//! Manifest nodes, root records, and the geometry of trees.

use proptest::prelude::*;
use virtkeep_repo::format::geometry::{ChunkSize, DISK_BYTES_MAX, FanOut, height_for, height_max};
use virtkeep_repo::format::node::{NODE_BYTES_MAX, Node, ROOT_BYTES, Root};
use virtkeep_repo::{NodeId, RawId};

fn fan_out(children: u64) -> FanOut {
    FanOut::new(children).unwrap()
}

fn chunk_size(bytes: u64) -> ChunkSize {
    ChunkSize::new(bytes).unwrap()
}

#[test]
fn a_tree_is_as_low_as_its_disk_allows() {
    let height = |size| height_for(size, ChunkSize::DEFAULT, fan_out(256));
    assert_eq!(height(0), 1);
    assert_eq!(height(512), 1);
    assert_eq!(height(16 << 20), 1);
    assert_eq!(height((16 << 20) + 512), 2);
    assert_eq!(height(4 << 30), 2);
    assert_eq!(height((4 << 30) + 512), 3);
    assert_eq!(height(64 << 40), 4);
    assert_eq!(height(DISK_BYTES_MAX), 6);
    assert_eq!(height_max(fan_out(64)), 9);
    assert_eq!(height_max(fan_out(256)), 7);
}

#[test]
fn chunk_sizes_and_fan_outs_outside_the_format_are_refused() {
    for bytes in [0, 512, 2048, 65535, 65537, 8 << 20, 1 << 32, u64::MAX] {
        assert_eq!(ChunkSize::new(bytes), None);
    }
    for children in [0, 1, 2, 63, 128, 512, 1 << 16, u64::MAX] {
        assert_eq!(FanOut::new(children), None);
    }
}

#[test]
fn the_path_to_a_chunk_is_its_number_in_digits_of_the_fan_out() {
    let fan_out = fan_out(256);
    let chunk = 3 * 65536 + 2 * 256 + 1;
    let path = [2, 1, 0].map(|level| fan_out.child_index(level, chunk));
    assert_eq!(path, [3, 2, 1]);
}

#[test]
fn a_full_node_is_as_long_as_the_limit_says() {
    let id = Some(RawId::from_bytes([9; 32]));
    let node = Node {
        level: 0,
        children: vec![id; 256],
    };
    assert_eq!(node.encode().len(), NODE_BYTES_MAX);
}

#[test]
fn a_node_without_children_is_refused() {
    let empty = [&[0, 6][..], &[0; 8]].concat();
    let error = Node::decode(&empty, fan_out(64)).unwrap_err();
    assert_eq!(error.expected, "at least one child");
}

#[test]
fn a_node_of_another_fan_out_or_above_every_tree_is_refused() {
    let mut node = Node::empty(0, fan_out(64));
    node.children[5] = Some(RawId::from_bytes([9; 32]));
    let encoded = node.encode();
    assert_eq!(Node::decode(&encoded, fan_out(64)).unwrap(), node);
    assert!(Node::decode(&encoded, fan_out(256)).is_err());
    let mut high = encoded.clone();
    high[0] = height_max(fan_out(64));
    assert!(Node::decode(&high, fan_out(64)).is_err());
}

#[test]
fn a_root_record_with_impossible_fields_is_refused() {
    let root = Root {
        size: 1 << 30,
        chunk_size: ChunkSize::DEFAULT,
        fan_out: FanOut::DEFAULT,
        top: Some(NodeId::from_bytes([9; 32])),
    };
    let sound = root.encode();
    assert_eq!(sound.len(), ROOT_BYTES);
    assert_eq!(Root::decode(&sound).unwrap(), root);
    let changes: [(&str, usize, &[u8]); 7] = [
        ("a size that is no multiple of 512", 0, &[1]),
        ("a size above 2^63", 7, &[0x81]),
        ("a chunk size that is no power of two", 8, &[1]),
        ("a fan-out of 128", 12, &[128, 0]),
        ("a height that does not fit the size", 14, &[4]),
        ("a presence that is neither 0 nor 1", 15, &[2]),
        ("an absent top node that has an id", 15, &[0]),
    ];
    for (what, at, bytes) in changes {
        let mut changed = sound.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(Root::decode(&changed).is_err(), "{what} passes");
    }
}

fn any_node() -> impl Strategy<Value = (FanOut, Node)> {
    (prop::sample::select(vec![64_u64, 256]), 0..7_u8).prop_flat_map(|(places, level)| {
        let child = prop::option::of(any::<[u8; 32]>().prop_map(RawId::from_bytes));
        prop::collection::vec(child, places as usize)
            .prop_map(move |children| (fan_out(places), Node { level, children }))
            .prop_filter("a node has a child", |(_, node)| !node.is_empty())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_node_decodes_to_itself((fan_out, node) in any_node()) {
        prop_assert_eq!(Node::decode(&node.encode(), fan_out).unwrap(), node);
    }

    #[test]
    fn a_changed_node_is_refused_or_is_another_node_with_exactly_those_bytes(
        (fan_out, node) in any_node(),
        place in 0..40_usize,
        change in 1..=255_u8,
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut changed = node.encode();
        changed[place] ^= change;
        changed.extend_from_slice(&tail);
        if let Ok(other) = Node::decode(&changed, fan_out) {
            prop_assert_ne!(&other, &node);
            prop_assert_eq!(other.encode(), changed);
        }
    }

    #[test]
    fn any_bytes_that_decode_as_a_node_are_its_one_encoding(
        level in 0..12_u8,
        bits in prop::sample::select(vec![6_u8, 8, 7]),
        bitmap in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 128]), 8),
        ids in prop::collection::vec(any::<[u8; 32]>(), 0..9),
    ) {
        let bytes = [&[level, bits][..], &bitmap, ids.as_flattened()].concat();
        if let Ok(node) = Node::decode(&bytes, fan_out(64)) {
            prop_assert_eq!(node.encode(), bytes);
        }
    }

    #[test]
    fn every_root_decodes_to_itself(
        sectors in 0..=DISK_BYTES_MAX / 512,
        chunk_bits in 12..=22_u32,
        places in prop::sample::select(vec![64_u64, 256]),
        top in prop::option::of(any::<[u8; 32]>().prop_map(NodeId::from_bytes)),
    ) {
        let root = Root {
            size: sectors * 512,
            chunk_size: chunk_size(1 << chunk_bits),
            fan_out: fan_out(places),
            top,
        };
        prop_assert_eq!(Root::decode(&root.encode()).unwrap(), root);
    }

    #[test]
    fn any_bytes_that_decode_as_a_root_are_its_one_encoding(
        size in prop::sample::select(vec![0_u64, 512, 1000, 1 << 40, 1 << 63, u64::MAX]),
        chunk in prop::sample::select(vec![0_u32, 4096, 65536, 65537]),
        places in prop::sample::select(vec![0_u16, 64, 256]),
        height in 0..8_u8,
        presence in 0..3_u8,
        top in prop_oneof![Just([0; 32]), any::<[u8; 32]>()],
    ) {
        let bytes = [
            &size.to_le_bytes()[..],
            &chunk.to_le_bytes(),
            &places.to_le_bytes(),
            &[height, presence],
            &top,
        ]
        .concat();
        if let Ok(root) = Root::decode(&bytes) {
            prop_assert_eq!(root.encode(), bytes);
        }
    }

    #[test]
    fn the_height_is_minimal_and_reaches_the_last_chunk(
        sectors in 0..=DISK_BYTES_MAX / 512,
        chunk_bits in 12..=22_u32,
        places in prop::sample::select(vec![64_u64, 256]),
    ) {
        let (size, chunk, places) = (sectors * 512, chunk_size(1 << chunk_bits), fan_out(places));
        let height = height_for(size, chunk, places);
        let covered = |height: u8| u128::from(places.as_u16()).pow(height.into());
        let chunks = u128::from(chunk.chunks(size));
        prop_assert!(covered(height) >= chunks);
        prop_assert!(height == 1 || covered(height - 1) < chunks);
        prop_assert!(height <= height_max(places));
    }
}
