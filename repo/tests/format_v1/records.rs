//! Records and codecs.

use proptest::prelude::*;
use virtkeep_repo::codec::{Packing, pack_onto, unpack_into};
use virtkeep_repo::format::record::{HEADER_BYTES, Header, open, open_into, open_unknown, seal};
use virtkeep_repo::{Codec, RawId, RecordKind};

use super::{chunk_size, keys, noise};

const KINDS: [RecordKind; 4] = [
    RecordKind::Chunk,
    RecordKind::Node,
    RecordKind::Root,
    RecordKind::Blob,
];

fn sealed(codec: Codec, kind: RecordKind, raw: &[u8]) -> (RawId, Vec<u8>) {
    let keys = keys();
    let id = keys.id_of(kind, raw);
    (id, seal(&keys, codec, kind, id, raw))
}

#[test]
fn every_codec_prints_what_it_parses_from() {
    for text in ["none", "lz4", "zstd:1", "zstd:3", "zstd:22"] {
        assert_eq!(text.parse::<Codec>().unwrap().to_string(), text);
    }
    assert_eq!("zstd".parse::<Codec>().unwrap(), Codec::Zstd(3));
    for text in [
        "", "LZ4", "zstd:", "zstd:0", "zstd:23", "zstd:+3", "zstd:300", "gzip",
    ] {
        assert!(text.parse::<Codec>().is_err(), "{text:?} names no codec");
    }
}

#[test]
fn a_chunk_lacking_its_trailing_zeroes_has_the_id_of_the_whole_chunk() {
    let whole = [b"some text".as_slice(), &vec![0; chunk_size().bytes() - 9]].concat();
    assert_eq!(keys().chunk_id(b"some text"), keys().chunk_id(&whole));
    assert_eq!(keys().chunk_id(b""), keys().chunk_id(&vec![0; 4096]));
    assert_ne!(keys().chunk_id(b"some text"), keys().chunk_id(b"some tex"));
}

#[test]
fn the_same_bytes_have_another_id_as_every_kind_of_record() {
    let mut ids: Vec<_> = KINDS.map(|kind| keys().id_of(kind, &[7; 4096])).to_vec();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), KINDS.len());
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    for codec in [Codec::Lz4, Codec::Zstd(1)] {
        let (_, record) = sealed(codec, RecordKind::Chunk, &noise(4096));
        assert_eq!(record.len(), HEADER_BYTES + 4096);
        assert_eq!(
            Header::decode(&record, &keys()).unwrap().packing,
            Packing::Raw
        );
        let (_, record) = sealed(codec, RecordKind::Chunk, &[7; 4096]);
        assert!(record.len() < HEADER_BYTES + 64);
    }
}

#[test]
fn a_short_chunk_fills_a_whole_buffer_and_a_long_one_a_short_buffer() {
    let keys = keys();
    let (id, record) = sealed(Codec::Lz4, RecordKind::Chunk, b"short");
    let mut whole = vec![0xff; 4096];
    open_into(&keys, RecordKind::Chunk, id, &record, &mut whole).unwrap();
    assert_eq!(whole[..5], *b"short");
    assert_eq!(whole[5..], vec![0; 4091]);

    let (id, record) = sealed(Codec::Lz4, RecordKind::Chunk, &whole);
    let mut last = vec![0xff; 512];
    open_into(&keys, RecordKind::Chunk, id, &record, &mut last).unwrap();
    assert_eq!(last, whole[..512]);
}

#[test]
fn a_record_is_refused_as_another_kind_or_under_another_id() {
    let keys = keys();
    let (id, record) = sealed(Codec::None, RecordKind::Blob, b"a blob");
    assert!(open(&keys, RecordKind::Node, id, &record).is_err());
    let other = keys.id_of(RecordKind::Blob, b"another");
    assert!(open(&keys, RecordKind::Blob, other, &record).is_err());
    assert!(open(&keys, RecordKind::Blob, id, &[&record[..], b"x"].concat()).is_err());
    assert_eq!(
        open(&keys, RecordKind::Blob, id, &record).unwrap(),
        b"a blob"
    );
}

#[test]
fn a_record_whose_content_has_another_id_than_it_bears_is_refused() {
    let keys = keys();
    let wrong = keys.id_of(RecordKind::Blob, b"promised");
    let record = seal(&keys, Codec::None, RecordKind::Blob, wrong, b"delivered");
    let error = open(&keys, RecordKind::Blob, wrong, &record).unwrap_err();
    assert_eq!(error.expected, format!("bytes with id {wrong}"));
}

#[test]
fn a_header_that_announces_more_than_its_kind_may_hold_is_refused() {
    let keys = keys();
    let (_, mut record) = sealed(Codec::Lz4, RecordKind::Chunk, &[7; 4096]);
    record[12..16].copy_from_slice(&(u32::MAX).to_le_bytes());
    let checksum = keys.checksum().update(&record[..52]).short();
    record[52..60].copy_from_slice(&checksum);
    let error = open_unknown(&record, &keys).unwrap_err();
    assert!(error.expected.contains("at most 4096 bytes"), "{error:?}");
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop_oneof![
        Just(Codec::None),
        Just(Codec::Lz4),
        (1..=9_u8).prop_map(Codec::Zstd)
    ]
}

/// Bytes that compress, that do not, and that do in part.
fn any_raw(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..=max),
        prop::collection::vec(0..3_u8, 0..=max),
        (any::<u8>(), 0..=max).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

proptest! {
    #[test]
    fn every_record_opens_to_what_was_sealed(
        codec in any_codec(),
        kind in prop::sample::select(vec![RecordKind::Chunk, RecordKind::Node, RecordKind::Blob]),
        raw in any_raw(4096),
    ) {
        let keys = keys();
        let (id, record) = sealed(codec, kind, &raw);
        prop_assert_eq!(&open(&keys, kind, id, &record).unwrap(), &raw);
        let mut out = vec![0xff; 4096];
        open_into(&keys, kind, id, &record, &mut out).unwrap();
        prop_assert_eq!(&out[..raw.len()], &raw[..]);
        prop_assert!(record.len() <= HEADER_BYTES + raw.len());
        let (header, opened) = open_unknown(&record, &keys).unwrap();
        prop_assert_eq!((header.kind, header.id, header.record_len()), (kind, id, record.len()));
        prop_assert_eq!(opened, raw);
    }

    #[test]
    fn no_changed_record_opens(
        codec in any_codec(),
        raw in any_raw(600),
        place in any::<prop::sample::Index>(),
        change in 1..=255_u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let keys = keys();
        let (id, record) = sealed(codec, RecordKind::Blob, &raw);
        let mut changed = record.clone();
        changed[place.index(record.len())] ^= change;
        // A packed form may say the same in other bytes; other content never passes.
        if let Ok(opened) = open(&keys, RecordKind::Blob, id, &changed) {
            prop_assert_eq!(opened, raw);
            prop_assert!(place.index(record.len()) >= HEADER_BYTES);
        }
        let cut = &record[..cut.index(record.len())];
        prop_assert!(open(&keys, RecordKind::Blob, id, cut).is_err());
    }

    #[test]
    fn any_bytes_behind_a_sound_header_open_or_fail(
        packing in 0..4_u8,
        stored in prop::collection::vec(any::<u8>(), 0..300),
        raw_len in 0..5000_u32,
    ) {
        let keys = keys();
        let (id, mut record) = sealed(Codec::None, RecordKind::Chunk, &[]);
        record[7] = packing;
        record[12..16].copy_from_slice(&raw_len.to_le_bytes());
        record[16..20].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        let checksum = keys.checksum().update(&record[..52]).short();
        record[52..60].copy_from_slice(&checksum);
        record.extend_from_slice(&stored);
        // The id is that of an empty, that is all-zero, chunk.
        if let Ok(raw) = open(&keys, RecordKind::Chunk, id, &record) {
            prop_assert!(raw.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn any_bytes_whatever_are_no_record(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(open_unknown(&bytes, &keys()).is_err());
    }

    #[test]
    fn unpacking_yields_the_announced_length_or_an_error(
        codec in any_codec(),
        raw in any_raw(3000),
        announced in 0..4000_usize,
    ) {
        let mut stored = Vec::new();
        let packing = pack_onto(codec, &raw, &mut stored);
        let unpacked = unpack_into(packing, &stored, &mut vec![0; announced]);
        prop_assert_eq!(unpacked.is_ok(), announced == raw.len());
    }
}
