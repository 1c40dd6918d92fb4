//! Nodes and roots: one content has one encoding, and everything else is refused.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory};
use virtkeep_repo::format::geometry::{ChunkSize, FanOut};
use virtkeep_repo::format::node::{Node, Root};
use virtkeep_repo::{NodeId, RawId};

#[derive(Arbitrary, Debug)]
struct Input {
    wide: bool,
    level: u8,
    children: Vec<(u8, u8)>,
    size_sectors: u64,
    chunk_bits: u8,
    top: Option<u8>,
    of_node: Tampering,
    of_root: Tampering,
}

fuzz_target!(|input: Input| {
    let fan_out = FanOut::new(if input.wide { 256 } else { 64 }).expect("an allowed fan-out");
    let mut node = Node::empty(input.level, fan_out);
    for (place, byte) in &input.children {
        let place = usize::from(*place) % fan_out.children();
        node.children[place] = Some(RawId::from_bytes([*byte; 32]));
    }
    let encoded = if node.is_empty() {
        Vec::new()
    } else {
        node.encode()
    };
    let bytes = input.of_node.of(encoded);
    memory::within(64 << 10, || {
        for children in [64, 256] {
            let fan_out = FanOut::new(children).expect("an allowed fan-out");
            if let Ok(node) = Node::decode(&bytes, fan_out) {
                assert_eq!(node.encode(), bytes);
            }
        }
    });

    let root = Root {
        size: (input.size_sectors % (1 << 54)) * 512,
        chunk_size: ChunkSize::new(4096 << (input.chunk_bits % 11)).expect("an allowed size"),
        fan_out,
        top: input.top.map(|byte| NodeId::from_bytes([byte; 32])),
    };
    assert_eq!(Root::decode(&root.encode()).as_ref(), Ok(&root));
    let bytes = input.of_root.of(root.encode());
    memory::within(4 << 10, || {
        if let Ok(root) = Root::decode(&bytes) {
            assert_eq!(root.encode(), bytes);
        }
    });
});
