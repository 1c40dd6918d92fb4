//! Packs: writing, tables, checksums, and reading damaged ones.

use proptest::prelude::*;
use virtkeep_repo::format::inspect::{Inspection, inspect};
use virtkeep_repo::format::pack::{
    FinishedPack, PACK_HEADER_BYTES, PackEntry, PackWriter, TABLE_ENTRY_BYTES, TRAILER_BYTES,
    read_header, read_table,
};
use virtkeep_repo::format::record::{open, seal};
use virtkeep_repo::format::walk::{Found, walk};
use virtkeep_repo::storage::{Folder, MemoryStorage, ObjectName, Storage};
use virtkeep_repo::{Codec, Error, LeaseId, PackId, PackKind, RecordKind};

use super::{keys, noise};

const ID: PackId = PackId::from_bytes([0xaa; 16]);
const NAME: ObjectName = ObjectName::Pack(ID);
const LEASE: LeaseId = LeaseId::from_bytes([0xbb; 16]);

fn writer(storage: &dyn Storage) -> PackWriter {
    PackWriter::create(storage, ID, PackKind::Data, LEASE, &keys()).unwrap()
}

/// A pack of chunks with these contents.
fn pack_of(storage: &dyn Storage, codec: Codec, chunks: &[Vec<u8>]) -> FinishedPack {
    let keys = keys();
    let mut writer = writer(storage);
    for raw in chunks {
        let id = keys.id_of(RecordKind::Chunk, raw);
        let sealed = seal(&keys, codec, RecordKind::Chunk, id, raw);
        writer.append(RecordKind::Chunk, id, &sealed).unwrap();
    }
    writer.finish().unwrap()
}

fn four_chunks() -> Vec<Vec<u8>> {
    (1..=4)
        .map(|byte| [vec![byte; 100], noise(900)].concat())
        .collect()
}

/// What a walk finds: records that open, and damaged ranges.
fn walked(storage: &dyn Storage) -> (Vec<PackEntry>, Vec<(u32, u32)>) {
    let (mut records, mut damages) = (vec![], vec![]);
    walk(storage, ID, &keys(), &mut |found| {
        match found {
            Found::Record { entry, sealed } => {
                assert!(open(&keys(), entry.kind, entry.id, sealed).is_ok());
                records.push(entry);
            }
            Found::Damage { offset, len } => damages.push((offset, len)),
        }
        Ok(())
    })
    .unwrap();
    (records, damages)
}

fn inspected(storage: &MemoryStorage) -> Inspection {
    inspect(storage, ID, &keys()).unwrap()
}

fn sound(pack: &FinishedPack) -> Inspection {
    Inspection {
        pack: pack.clone(),
        bad: Vec::new(),
        checksum_holds: true,
    }
}

#[test]
fn a_finished_pack_reads_as_it_was_written() {
    let storage = MemoryStorage::new();
    let pack = pack_of(&storage, Codec::Lz4, &four_chunks());
    assert_eq!(pack.entries.len(), 4);
    assert_eq!(storage.len(&NAME).unwrap(), Some(pack.bytes));
    assert_eq!(read_table(&storage, ID, &keys()).unwrap(), pack);
    assert_eq!(inspected(&storage), sound(&pack));
    assert_eq!(walked(&storage), (pack.entries.clone(), vec![]));
    let header = read_header(&storage, ID, &keys()).unwrap();
    assert_eq!((header.kind, header.lease), (PackKind::Data, LEASE));
    for (entry, raw) in pack.entries.iter().zip(four_chunks()) {
        let mut sealed = vec![0; entry.len as usize];
        storage
            .read_at(&NAME, entry.offset.into(), &mut sealed)
            .unwrap();
        assert_eq!(open(&keys(), entry.kind, entry.id, &sealed).unwrap(), raw);
    }
}

#[test]
fn an_empty_pack_is_a_pack() {
    let storage = MemoryStorage::new();
    let pack = writer(&storage).finish().unwrap();
    assert_eq!(pack.bytes, (PACK_HEADER_BYTES + 4 + TRAILER_BYTES) as u64);
    assert_eq!(inspected(&storage), sound(&pack));
}

#[test]
fn an_unfinished_pack_leaves_nothing_behind() {
    let storage = MemoryStorage::new();
    drop(writer(&storage));
    assert_eq!(storage.list(Folder::Packs).unwrap(), []);
}

#[test]
fn a_pack_under_the_name_of_another_is_refused() {
    let storage = MemoryStorage::new();
    pack_of(&storage, Codec::None, &four_chunks());
    let other = PackId::from_bytes([0xcc; 16]);
    let bytes = storage.read_whole(&NAME, 1 << 20).unwrap();
    storage.put(&ObjectName::Pack(other), &bytes).unwrap();
    assert!(matches!(
        read_table(&storage, other, &keys()),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn a_pack_that_is_not_there_is_missing_not_damaged() {
    let storage = MemoryStorage::new();
    assert!(matches!(
        read_table(&storage, ID, &keys()),
        Err(Error::Missing { .. })
    ));
    let walk = walk(&storage, ID, &keys(), &mut |_| Ok(()));
    assert!(matches!(walk, Err(Error::Missing { .. })));
}

#[test]
fn damage_to_a_record_costs_that_record_alone() {
    let storage = MemoryStorage::new();
    let pack = pack_of(&storage, Codec::None, &four_chunks());
    let hurt = pack.entries[1];
    // In its header, so that not even its length is known, and in its content.
    for at in [hurt.offset + 13, hurt.offset + 200] {
        storage.damage(NAME, |bytes| bytes[at as usize] ^= 0x40);
        let (records, damages) = walked(&storage);
        assert_eq!(records, [pack.entries[0], pack.entries[2], pack.entries[3]]);
        assert_eq!(damages, [(hurt.offset, hurt.len)]);
        let inspection = inspected(&storage);
        assert_eq!(
            (inspection.bad, inspection.checksum_holds),
            (vec![hurt], false)
        );
        assert_eq!(read_table(&storage, ID, &keys()).unwrap(), pack);
        storage.damage(NAME, |bytes| bytes[at as usize] ^= 0x40);
    }
}

#[test]
fn a_pack_longer_than_one_step_is_inspected_to_its_end() {
    let storage = MemoryStorage::new();
    let chunks: Vec<Vec<u8>> = (1..=600_u32)
        .map(|n| n.to_le_bytes().repeat(1024))
        .collect();
    let pack = pack_of(&storage, Codec::None, &chunks);
    assert_eq!(inspected(&storage), sound(&pack));
    let last = pack.entries[599];
    storage.damage(NAME, |bytes| bytes[last.offset as usize + 100] ^= 1);
    assert_eq!(inspected(&storage).bad, [last]);
}

#[test]
fn a_wrong_checksum_over_good_records_is_told_apart() {
    let storage = MemoryStorage::new();
    let pack = pack_of(&storage, Codec::None, &four_chunks());
    let at = pack.bytes as usize - TRAILER_BYTES + 45;
    storage.damage(NAME, |bytes| bytes[at] ^= 1);
    let inspection = inspected(&storage);
    assert!(inspection.bad.is_empty() && !inspection.checksum_holds);
}

#[test]
fn without_its_table_a_pack_still_gives_up_all_records() {
    let storage = MemoryStorage::new();
    let pack = pack_of(&storage, Codec::Lz4, &four_chunks());
    let end = pack.records_end() as usize;
    storage.damage(NAME, |bytes| bytes.truncate(end + 20));
    assert!(read_table(&storage, ID, &keys()).is_err());
    assert_eq!(
        walked(&storage),
        (pack.entries.clone(), vec![(end as u32, 20)])
    );

    // Cut inside the last record: the others are there.
    storage.damage(NAME, |bytes| bytes.truncate(end - 1));
    let (records, _) = walked(&storage);
    assert_eq!(records, pack.entries[..3]);
}

#[test]
fn records_inside_a_chunk_are_passed_over_while_the_chunk_is_sound() {
    let keys = keys();
    let storage = MemoryStorage::new();
    let inner = noise(300);
    let inner_id = keys.id_of(RecordKind::Chunk, &inner);
    let embedded = seal(&keys, Codec::None, RecordKind::Chunk, inner_id, &inner);
    let chunks = [[vec![1; 50], embedded].concat(), vec![2; 70]];
    let pack = pack_of(&storage, Codec::None, &chunks);
    assert_eq!(walked(&storage), (pack.entries.clone(), vec![]));

    // Once the chunk is damaged, what is found inside is what it says it is.
    storage.damage(NAME, |bytes| bytes[PACK_HEADER_BYTES + 60] ^= 1);
    let (records, damages) = walked(&storage);
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].id, inner_id);
    assert_eq!(records[1], pack.entries[1]);
    assert_eq!(damages, [(64, 60 + 50)]);
}

#[test]
fn the_record_behind_a_long_damage_is_found_wherever_it_begins() {
    let keys = keys();
    // Around 64 KiB, so that its magic also straddles the windows of a search.
    for blob_bytes in 65_470..65_480 {
        let storage = MemoryStorage::new();
        let mut writer = PackWriter::create(&storage, ID, PackKind::Meta, LEASE, &keys).unwrap();
        for raw in [noise(blob_bytes), b"behind it".to_vec()] {
            let id = keys.id_of(RecordKind::Blob, &raw);
            let sealed = seal(&keys, Codec::None, RecordKind::Blob, id, &raw);
            writer.append(RecordKind::Blob, id, &sealed).unwrap();
        }
        let pack = writer.finish().unwrap();
        storage.damage(NAME, |bytes| bytes[PACK_HEADER_BYTES] ^= 1);
        assert_eq!(walked(&storage).0, pack.entries[1..], "{blob_bytes}");
    }
}

#[test]
fn a_table_that_announces_more_than_the_file_holds_is_refused() {
    let storage = MemoryStorage::new();
    let pack = pack_of(&storage, Codec::None, &four_chunks());
    for count in [0, 3, 5, u32::MAX, u32::MAX / TABLE_ENTRY_BYTES as u32] {
        storage.damage(NAME, |bytes| {
            let at = bytes.len() - TRAILER_BYTES + 4;
            bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
        });
        assert!(matches!(
            read_table(&storage, ID, &keys()),
            Err(Error::Corrupt { .. })
        ));
    }
    assert_eq!(walked(&storage).0, pack.entries);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_damage_goes_unseen_or_costs_other_records(
        places in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let storage = MemoryStorage::new();
        let pack = pack_of(&storage, Codec::Lz4, &four_chunks());
        let mut sound = storage.read_whole(&NAME, 1 << 20).unwrap();
        let original = sound.clone();
        for (place, change) in &places {
            sound[place.index(pack.bytes as usize)] ^= change;
        }
        prop_assume!(sound != original);
        let damaged = sound;
        storage.damage(NAME, |bytes| bytes.clone_from(&damaged));

        prop_assert!(!inspect(&storage, ID, &keys()).is_ok_and(|pack| pack.is_sound()));
        if let Ok(table) = read_table(&storage, ID, &keys()) {
            prop_assert_eq!(table.entries, pack.entries.clone());
        }
        let (records, _) = walked(&storage);
        let unhurt = pack.entries.iter().filter(|entry| {
            let range = entry.offset as usize..(entry.offset + entry.len) as usize;
            damaged[range.clone()] == original[range]
        });
        for entry in unhurt {
            prop_assert!(records.contains(entry));
        }
    }

    #[test]
    fn any_bytes_whatever_are_no_pack(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let storage = MemoryStorage::new();
        storage.put(&NAME, &bytes).unwrap();
        prop_assert!(inspect(&storage, ID, &keys()).is_err());
        prop_assert_eq!(walked(&storage).0, vec![]);
    }
}
