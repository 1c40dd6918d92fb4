//! Valid objects of a repository with chunks of 4 KiB, and putting right the checksums of tampered
//! ones, as an attacker would who has the key.

use virtkeep_repo::format::geometry::ChunkSize;
use virtkeep_repo::format::pack::{PACK_HEADER_BYTES, PackWriter, TRAILER_BYTES};
use virtkeep_repo::format::record::{HEADER_BYTES, HEADER_BYTES_MAX, RECORD_MAGIC, seal};
use virtkeep_repo::keys::{IdKey, Keys};
use virtkeep_repo::storage::{MemoryStorage, ObjectName, Storage};
use virtkeep_repo::{Codec, LeaseId, PackId, PackKind, RecordKind};

/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 4096;
/// The name of every pack made here.
pub const PACK: PackId = PackId::from_bytes([0xaa; 16]);

/// The keys of the repository.
pub fn keys() -> Keys {
    let id_key = IdKey::from_bytes(std::array::from_fn(|index| index as u8));
    let chunk_size = ChunkSize::new(CHUNK_BYTES as u64).expect("a power of two");
    Keys::new(&id_key, chunk_size)
}

/// Bytes that no codec makes smaller.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A record of one of a few contents, kinds and codecs, by number.
pub fn record(keys: &Keys, number: u8) -> Vec<u8> {
    let raw = match number % 4 {
        0 => Vec::new(),
        1 => b"virtkeep ".repeat(30),
        2 => noise(300),
        _ => [noise(40), vec![7; CHUNK_BYTES - 40]].concat(),
    };
    let kind = [RecordKind::Chunk, RecordKind::Node, RecordKind::Blob][usize::from(number / 4) % 3];
    let codec = [Codec::None, Codec::Lz4, Codec::Zstd(3)][usize::from(number / 12) % 3];
    seal(keys, codec, kind, keys.id_of(kind, &raw), &raw)
}

/// A pack of a few records, or one without any.
pub fn pack(keys: &Keys, number: u8) -> Vec<u8> {
    let kind = [PackKind::Data, PackKind::Meta][usize::from(number % 2)];
    let storage = MemoryStorage::new();
    let lease = LeaseId::from_bytes([0xbb; 16]);
    let mut writer =
        PackWriter::create(&storage, PACK, kind, lease, keys).expect("memory takes all");
    for content in 0..number / 2 % 8 {
        let record_kind = match kind {
            PackKind::Data => RecordKind::Chunk,
            PackKind::Meta => RecordKind::Blob,
        };
        let codec = [Codec::None, Codec::Lz4, Codec::Zstd(3)][usize::from(content % 3)];
        let raw = [vec![content; 200], noise(100)].concat();
        let id = keys.id_of(record_kind, &raw);
        let sealed = seal(keys, codec, record_kind, id, &raw);
        writer
            .append(record_kind, id, &sealed)
            .expect("memory takes all");
    }
    writer.finish().expect("memory takes all");
    storage
        .read_whole(&ObjectName::Pack(PACK), u64::MAX)
        .expect("the pack was put there")
}

/// Gives the record at the start of `bytes` the header checksum that fits it.
pub fn mend_record(keys: &Keys, bytes: &mut [u8]) {
    let Some(&[low, high]) = bytes.get(4..6) else {
        return;
    };
    let header_len = usize::from(u16::from_le_bytes([low, high]));
    if !(HEADER_BYTES..=HEADER_BYTES_MAX).contains(&header_len) || bytes.len() < header_len {
        return;
    }
    let (covered, checksum) = bytes[..header_len].split_at_mut(header_len - 8);
    checksum.copy_from_slice(&keys.checksum().update(covered).short());
}

/// Gives a pack the checksums that fit it: of its header, of all its records, of its table where the
/// trailer says it is, and of the file.
pub fn mend_pack(keys: &Keys, bytes: &mut [u8]) {
    if bytes.len() < PACK_HEADER_BYTES + TRAILER_BYTES {
        return;
    }
    let checksum = keys.checksum().update(&bytes[..56]).short();
    bytes[56..64].copy_from_slice(&checksum);
    let magics: Vec<usize> = bytes
        .windows(RECORD_MAGIC.len())
        .enumerate()
        .filter_map(|(at, window)| (window == RECORD_MAGIC).then_some(at))
        .collect();
    for at in magics {
        mend_record(keys, &mut bytes[at..]);
    }
    let trailer = bytes.len() - TRAILER_BYTES;
    let table = u32::from_le_bytes(bytes[trailer..trailer + 4].try_into().expect("four bytes"));
    if let Some(table) = bytes.get(table as usize..trailer) {
        let checksum = keys
            .checksum()
            .update(&bytes[..PACK_HEADER_BYTES])
            .update(table)
            .update(&bytes[trailer..trailer + 8])
            .full();
        bytes[trailer + 8..trailer + 40].copy_from_slice(&checksum);
    }
    let whole = keys.checksum().update(&bytes[..trailer + 40]).full();
    bytes[trailer + 40..trailer + 72].copy_from_slice(&whole);
}
