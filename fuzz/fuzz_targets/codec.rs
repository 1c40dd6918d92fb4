//! Compressed bytes that unpack to more, less or other than announced.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory};
use virtkeep_repo::Codec;
use virtkeep_repo::codec::{Packing, pack_onto, unpack_into};

#[derive(Arbitrary, Debug)]
struct Input {
    codec: u8,
    /// Content, and how often it is repeated.
    raw: (Vec<u8>, u8),
    announced: Option<u16>,
    tampering: Tampering,
}

fuzz_target!(
    init: {
        // What each thread keeps is made before anything is counted.
        for codec in [Codec::Lz4, Codec::Zstd(1), Codec::Zstd(3)] {
            let mut packed = Vec::new();
            let packing = pack_onto(codec, &[7; 4096], &mut packed);
            unpack_into(packing, &packed, &mut [0; 4096]).expect("it was packed just now");
        }
    },
    |input: Input| {
        let codec = [Codec::None, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(3)]
            [usize::from(input.codec % 4)];
        let raw = input.raw.0.repeat(usize::from(input.raw.1) + 1);
        let mut packed = Vec::new();
        let packing = pack_onto(codec, &raw, &mut packed);
        assert!(packed.len() <= raw.len());
        let mut unpacked = vec![0xee; raw.len()];
        unpack_into(packing, &packed, &mut unpacked).expect("it was packed just now");
        assert_eq!(unpacked, raw);

        let len = input.announced.map_or(raw.len(), usize::from);
        let packed = input.tampering.of(packed);
        let mut unpacked = vec![0xee; len];
        // Nothing but the text of an error.
        memory::within(16 << 10, || {
            for packing in [Packing::Raw, Packing::Lz4, Packing::Zstd] {
                let _ = unpack_into(packing, &packed, &mut unpacked);
            }
        });
    }
);
