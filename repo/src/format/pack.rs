//! Packs: write-once files of many records of one class.
//!
//! A header, the records, a table of contents, and a trailer with checksums of table and file.
//! Invariants: a pack is complete and durable, or it is not there; its table names every record,
//! in order and without gaps; its id is random and never used twice.

use super::bytes::{Malformed, Reader, hex};
use super::record::{HEADER_BYTES, Header};
use crate::keys::{Checksum, Keys};
use crate::storage::{ObjectName, ObjectWriter, Storage};
use crate::{Error, LeaseId, PackId, PackKind, RawId, RecordKind, Result};

/// The first bytes of every pack.
pub const PACK_MAGIC: [u8; 8] = *b"VKPACK\r\n";
/// The first bytes of the table of contents.
pub const TABLE_MAGIC: [u8; 4] = *b"vkt\xf1";
/// The last bytes of every pack.
pub const PACK_END_MAGIC: [u8; 8] = *b"\nVKPEND\n";
/// The version of the layout of packs.
pub const PACK_VERSION: u16 = 1;

/// Bytes of the header; the first record follows.
pub const PACK_HEADER_BYTES: usize = 64;
/// Bytes of an entry of the table.
pub const TABLE_ENTRY_BYTES: usize = 44;
/// Bytes of the trailer, the last of the file.
pub const TRAILER_BYTES: usize = 80;

/// A writer ends a pack once it has this many bytes.
pub const PACK_BYTES_TARGET: u64 = 64 << 20;
/// No pack is longer, so that offsets fit in 32 bits and a table in memory.
pub const PACK_BYTES_MAX: u64 = 256 << 20;

impl PackKind {
    /// The class with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Data),
            2 => Some(Self::Meta),
            _ => None,
        }
    }

    /// The class of packs that holds such records.
    pub fn holding(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Chunk => Self::Data,
            RecordKind::Node | RecordKind::Root | RecordKind::Blob => Self::Meta,
        }
    }
}

/// Where a record lies in its pack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PackEntry {
    /// The record's id.
    pub id: RawId,
    /// Its kind.
    pub kind: RecordKind,
    /// First byte in the pack.
    pub offset: u32,
    /// Bytes of the whole record, header included.
    pub len: u32,
}

/// A pack that is complete and durable: all that is to be known of it but the records' bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FinishedPack {
    /// Its name.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The lease of its writer.
    pub lease: LeaseId,
    /// Length of the file.
    pub bytes: u64,
    /// Its records, in order.
    pub entries: Vec<PackEntry>,
}

impl FinishedPack {
    /// Where the records end and the table begins.
    pub fn records_end(&self) -> u64 {
        self.entries
            .last()
            .map_or(PACK_HEADER_BYTES as u64, |last| {
                u64::from(last.offset) + u64::from(last.len)
            })
    }
}

/// The header of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackHeader {
    /// The pack's name.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The lease of its writer.
    pub lease: LeaseId,
}

impl PackHeader {
    /// The stored form.
    pub fn encode(&self, keys: &Keys) -> [u8; PACK_HEADER_BYTES] {
        let mut out = [0; PACK_HEADER_BYTES];
        out[0..8].copy_from_slice(&PACK_MAGIC);
        out[8..10].copy_from_slice(&PACK_VERSION.to_le_bytes());
        out[10] = self.kind as u8;
        out[16..32].copy_from_slice(self.id.as_bytes());
        out[32..48].copy_from_slice(self.lease.as_bytes());
        let checksum = keys.checksum().update(&out[..56]).short();
        out[56..].copy_from_slice(&checksum);
        out
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; PACK_HEADER_BYTES], keys: &Keys) -> Result<Self, Malformed> {
        let (covered, checksum) = bytes.split_at(56);
        if covered[..8] != PACK_MAGIC {
            return Err(Malformed::new("a pack", hex(&covered[..8])));
        }
        let computed = keys.checksum().update(covered).short();
        if checksum != computed {
            return Err(Malformed::new(
                format!("pack header checksum {}", hex(&computed)),
                hex(checksum),
            ));
        }
        let mut reader = Reader::new(&covered[8..]);
        let short = || Malformed::new("a whole pack header", "its end");
        let version = reader.u16().ok_or_else(short)?;
        let kind = reader.u8().ok_or_else(short)?;
        reader.take(5).ok_or_else(short)?;
        let id = PackId::from_bytes(reader.array().ok_or_else(short)?);
        let lease = LeaseId::from_bytes(reader.array().ok_or_else(short)?);
        if version != PACK_VERSION {
            return Err(Malformed::new(
                format!("pack version {PACK_VERSION}"),
                format!("version {version}"),
            ));
        }
        let kind = PackKind::from_number(kind)
            .ok_or_else(|| Malformed::new("a data or meta pack", format!("kind {kind}")))?;
        Ok(Self { id, kind, lease })
    }
}

/// A pack being written. Dropped unfinished, it leaves nothing behind.
pub struct PackWriter {
    pack: PackHeader,
    keys: Keys,
    object: Box<dyn ObjectWriter>,
    header_bytes: [u8; PACK_HEADER_BYTES],
    whole: Checksum,
    bytes: u64,
    entries: Vec<PackEntry>,
}

impl PackWriter {
    /// Begins a pack.
    pub fn create(
        storage: &dyn Storage,
        id: PackId,
        kind: PackKind,
        lease: LeaseId,
        keys: &Keys,
    ) -> Result<Self> {
        let pack = PackHeader { id, kind, lease };
        let header_bytes = pack.encode(keys);
        let mut writer = Self {
            pack,
            keys: keys.clone(),
            object: storage.create(&ObjectName::Pack(id))?,
            header_bytes,
            whole: keys.checksum(),
            bytes: 0,
            entries: Vec::new(),
        };
        writer.write(&header_bytes)?;
        Ok(writer)
    }

    /// The pack's name.
    pub fn id(&self) -> PackId {
        self.pack.id
    }

    /// Bytes written so far, without table and trailer.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of records so far.
    pub fn records(&self) -> usize {
        self.entries.len()
    }

    /// Adds a record as [`seal`](super::record::seal) made it, and says where it will lie. Not
    /// durable. After an error nothing can be added any more.
    pub fn append(&mut self, kind: RecordKind, id: RawId, sealed: &[u8]) -> Result<PackEntry> {
        let header = Header::decode(sealed, &self.keys)
            .map_err(|malformed| malformed.at(format!("record {id} on its way into a pack")))?;
        assert!(
            (header.kind, header.id, header.record_len()) == (kind, id, sealed.len()),
            "a record is appended whole and under its own kind and id"
        );
        assert_eq!(
            PackKind::holding(kind),
            self.pack.kind,
            "data packs hold chunks, meta packs the rest"
        );
        assert!(
            self.bytes_finished(self.entries.len() + 1) + sealed.len() as u64 <= PACK_BYTES_MAX,
            "a pack is finished long before the largest size"
        );
        let entry = PackEntry {
            id,
            kind,
            offset: self.bytes as u32,
            len: sealed.len() as u32,
        };
        self.write(sealed)?;
        self.entries.push(entry);
        Ok(entry)
    }

    /// Completes the pack. It is durable when this returns.
    pub fn finish(mut self) -> Result<FinishedPack> {
        let mut table = Vec::with_capacity(self.entries.len() * TABLE_ENTRY_BYTES + 4);
        table.extend_from_slice(&TABLE_MAGIC);
        for entry in &self.entries {
            table.extend_from_slice(entry.id.as_bytes());
            table.extend_from_slice(&entry.offset.to_le_bytes());
            table.extend_from_slice(&entry.len.to_le_bytes());
            table.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
        }
        let mut trailer = [0; TRAILER_BYTES];
        trailer[0..4].copy_from_slice(&(self.bytes as u32).to_le_bytes());
        trailer[4..8].copy_from_slice(&(self.entries.len() as u32).to_le_bytes());
        let table_checksum = table_checksum(&self.keys, &self.header_bytes, &table, &trailer[..8]);
        trailer[8..40].copy_from_slice(&table_checksum);
        self.write(&table)?;
        self.whole.update(&trailer[..40]);
        trailer[40..72].copy_from_slice(&self.whole.full());
        trailer[72..].copy_from_slice(&PACK_END_MAGIC);
        self.object.append(&trailer)?;
        self.object.finish()?;
        Ok(FinishedPack {
            id: self.pack.id,
            kind: self.pack.kind,
            lease: self.pack.lease,
            bytes: self.bytes + TRAILER_BYTES as u64,
            entries: self.entries,
        })
    }

    fn bytes_finished(&self, records: usize) -> u64 {
        self.bytes + (TABLE_MAGIC.len() + records * TABLE_ENTRY_BYTES + TRAILER_BYTES) as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.object.append(bytes)?;
        self.whole.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn table_checksum(keys: &Keys, header: &[u8], table: &[u8], counts: &[u8]) -> [u8; 32] {
    keys.checksum()
        .update(header)
        .update(table)
        .update(counts)
        .full()
}

/// Reads the header of a pack.
pub fn read_header(storage: &dyn Storage, id: PackId, keys: &Keys) -> Result<PackHeader> {
    read_header_bytes(storage, id, keys).map(|(header, _)| header)
}

/// Reads header, table and trailer of a pack, not its records.
pub fn read_table(storage: &dyn Storage, id: PackId, keys: &Keys) -> Result<FinishedPack> {
    let name = ObjectName::Pack(id);
    let bytes = pack_len(storage, id)?;
    let (header, header_bytes) = read_header_bytes(storage, id, keys)?;
    let mut trailer = [0; TRAILER_BYTES];
    storage.read_at(&name, bytes - TRAILER_BYTES as u64, &mut trailer)?;
    let corrupt = |malformed: Malformed| malformed.at(format!("the table of pack {id}"));
    let (table_offset, count) = decode_trailer(&trailer, bytes).map_err(corrupt)?;
    let mut table = vec![0; (bytes - TRAILER_BYTES as u64 - u64::from(table_offset)) as usize];
    storage.read_at(&name, table_offset.into(), &mut table)?;
    let computed = table_checksum(keys, &header_bytes, &table, &trailer[..8]);
    if trailer[8..40] != computed {
        return Err(corrupt(Malformed::new(
            format!("checksum {}", hex(&computed)),
            hex(&trailer[8..40]),
        )));
    }
    let entries = decode_table(&table, table_offset, count).map_err(corrupt)?;
    Ok(FinishedPack {
        id,
        kind: header.kind,
        lease: header.lease,
        bytes,
        entries,
    })
}

/// The length of a pack, within the limits.
pub(super) fn pack_len(storage: &dyn Storage, id: PackId) -> Result<u64> {
    let name = ObjectName::Pack(id);
    let bytes = storage.len(&name)?.ok_or_else(|| Error::Missing {
        what: format!("pack {id}"),
    })?;
    let least = (PACK_HEADER_BYTES + TABLE_MAGIC.len() + TRAILER_BYTES) as u64;
    if (least..=PACK_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(Malformed::new(
            format!("{least} to {PACK_BYTES_MAX} bytes"),
            format!("{bytes} bytes"),
        )
        .at(format!("pack {id}")))
    }
}

fn read_header_bytes(
    storage: &dyn Storage,
    id: PackId,
    keys: &Keys,
) -> Result<(PackHeader, [u8; PACK_HEADER_BYTES])> {
    let mut bytes = [0; PACK_HEADER_BYTES];
    storage.read_at(&ObjectName::Pack(id), 0, &mut bytes)?;
    let header = PackHeader::decode(&bytes, keys).and_then(|header| {
        if header.id == id {
            Ok(header)
        } else {
            let found = format!("pack {}", header.id);
            Err(Malformed::new(format!("pack {id}"), found))
        }
    });
    match header {
        Ok(header) => Ok((header, bytes)),
        Err(malformed) => Err(malformed.at(format!("the header of pack {id}"))),
    }
}

/// Where the table begins and how many entries it has.
fn decode_trailer(
    trailer: &[u8; TRAILER_BYTES],
    pack_bytes: u64,
) -> Result<(u32, usize), Malformed> {
    if trailer[72..] != PACK_END_MAGIC {
        return Err(Malformed::new("the end of a pack", hex(&trailer[72..])));
    }
    let mut reader = Reader::new(trailer);
    let short = || Malformed::new("a whole trailer", "its end");
    let table_offset = reader.u32().ok_or_else(short)?;
    let count = reader.u32().ok_or_else(short)? as usize;
    let expected = u64::from(table_offset)
        + TABLE_MAGIC.len() as u64
        + count as u64 * TABLE_ENTRY_BYTES as u64
        + TRAILER_BYTES as u64;
    if expected != pack_bytes || (table_offset as usize) < PACK_HEADER_BYTES {
        return Err(Malformed::new(
            format!("a table that ends the file of {pack_bytes} bytes"),
            format!("{count} entries at offset {table_offset}"),
        ));
    }
    Ok((table_offset, count))
}

fn decode_table(
    table: &[u8],
    table_offset: u32,
    count: usize,
) -> Result<Vec<PackEntry>, Malformed> {
    let mut reader = Reader::new(table);
    let short = || Malformed::new("a whole table", "its end");
    if reader.array().ok_or_else(short)? != TABLE_MAGIC {
        return Err(Malformed::new("a table", hex(&table[..4])));
    }
    let mut entries = Vec::with_capacity(count);
    let mut expected_offset = PACK_HEADER_BYTES as u32;
    for _ in 0..count {
        let id = RawId::from_bytes(reader.array().ok_or_else(short)?);
        let offset = reader.u32().ok_or_else(short)?;
        let len = reader.u32().ok_or_else(short)?;
        let kind = reader.u8().ok_or_else(short)?;
        reader.take(3).ok_or_else(short)?;
        let kind = RecordKind::from_number(kind)
            .ok_or_else(|| Malformed::new("a known kind of record", format!("kind {kind}")))?;
        let end = offset.checked_add(len).filter(|end| {
            offset == expected_offset && len as usize >= HEADER_BYTES && *end <= table_offset
        });
        expected_offset = end.ok_or_else(|| {
            Malformed::new(
                format!("a record at offset {expected_offset}"),
                format!("one of {len} bytes at offset {offset}"),
            )
        })?;
        entries.push(PackEntry {
            id,
            kind,
            offset,
            len,
        });
    }
    if expected_offset != table_offset {
        return Err(Malformed::new(
            format!("records up to offset {table_offset}"),
            format!("records up to offset {expected_offset}"),
        ));
    }
    Ok(entries)
}
