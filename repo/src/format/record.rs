//! Records: what packs are made of.
//!
//! A record is self-delimiting and says everything about itself, so a pack can be read front to
//! back without its table, and pruning moves records between packs as they are. Invariants: the id
//! is checked against the unpacked bytes on every read; lengths are believed only after the
//! header's own checksum and against the limit of the record's kind.

use super::bytes::{Malformed, Reader, hex};
use super::geometry::ChunkSize;
use super::node::{NODE_BYTES_MAX, ROOT_BYTES};
use crate::codec::{self, Codec, Packing};
use crate::keys::Keys;
use crate::{RawId, RecordKind};

/// The first bytes of every record.
pub const RECORD_MAGIC: [u8; 4] = *b"vkr\xf1";
/// Bytes of a header without auxiliary bytes.
pub const HEADER_BYTES: usize = 60;
/// Bytes of the largest header; v1 writes none larger than [`HEADER_BYTES`].
pub const HEADER_BYTES_MAX: usize = 1024;
/// Bytes of the largest blob. Longer files are cut into pieces.
pub const BLOB_BYTES_MAX: usize = 1 << 20;

const FIXED_BYTES: usize = 52;
const CHECKSUM_BYTES: usize = 8;

impl RecordKind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Chunk),
            2 => Some(Self::Node),
            3 => Some(Self::Root),
            4 => Some(Self::Blob),
            _ => None,
        }
    }

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Node => "manifest node",
            Self::Root => "disk root",
            Self::Blob => "blob",
        }
    }

    /// No record of this kind unpacks to more bytes.
    pub fn raw_bytes_max(self, chunk_size: ChunkSize) -> usize {
        match self {
            Self::Chunk => chunk_size.bytes(),
            Self::Node => NODE_BYTES_MAX,
            Self::Root => ROOT_BYTES,
            Self::Blob => BLOB_BYTES_MAX,
        }
    }
}

/// No record of a repository with this chunk size is longer.
pub fn record_bytes_max(chunk_size: ChunkSize) -> usize {
    HEADER_BYTES_MAX + chunk_size.bytes().max(BLOB_BYTES_MAX)
}

/// What the header of a record says. Its checksum and limits have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Kind of the record.
    pub kind: RecordKind,
    /// The form of the stored bytes.
    pub packing: Packing,
    /// Id of the unpacked bytes.
    pub id: RawId,
    /// Bytes of the header itself; the stored bytes follow.
    pub header_len: usize,
    /// Bytes once unpacked.
    pub raw_len: usize,
    /// Bytes as stored.
    pub stored_len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`, of which [`HEADER_BYTES_MAX`] are always enough.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let short = || Malformed::new("a whole record header", format!("{} bytes", bytes.len()));
        let magic: [u8; 4] = reader.array().ok_or_else(short)?;
        if magic != RECORD_MAGIC {
            return Err(Malformed::new("a record", hex(&magic)));
        }
        let header_len = usize::from(reader.u16().ok_or_else(short)?);
        let kind = reader.u8().ok_or_else(short)?;
        let packing = reader.u8().ok_or_else(short)?;
        let cipher = reader.u8().ok_or_else(short)?;
        let _key_slot = reader.u8().ok_or_else(short)?;
        let auxiliary_len = usize::from(reader.u16().ok_or_else(short)?);
        let raw_len = reader.u32().ok_or_else(short)? as usize;
        let stored_len = reader.u32().ok_or_else(short)? as usize;
        let id = RawId::from_bytes(reader.array().ok_or_else(short)?);

        if header_len > HEADER_BYTES_MAX || header_len < HEADER_BYTES + auxiliary_len {
            return Err(Malformed::new(
                "a record header of 60 to 1024 bytes",
                format!("{header_len} bytes, {auxiliary_len} of them auxiliary"),
            ));
        }
        let header = bytes.get(..header_len).ok_or_else(short)?;
        let (covered, checksum) = header.split_at(header_len - CHECKSUM_BYTES);
        let computed = keys.checksum().update(covered).short();
        if checksum != computed {
            return Err(Malformed::new(
                format!("record header checksum {}", hex(&computed)),
                hex(checksum),
            ));
        }

        let kind = RecordKind::from_number(kind)
            .ok_or_else(|| Malformed::new("a known kind of record", format!("kind {kind}")))?;
        let packing = Packing::from_number(packing)
            .ok_or_else(|| Malformed::new("a known codec", format!("codec {packing}")))?;
        if cipher != 0 {
            return Err(Malformed::new("no cipher", format!("cipher {cipher}")));
        }
        let limit = kind.raw_bytes_max(keys.chunk_size());
        let sound = match packing {
            Packing::Raw => stored_len == raw_len,
            Packing::Lz4 | Packing::Zstd => stored_len < raw_len,
        };
        if raw_len > limit || !sound {
            return Err(Malformed::new(
                format!("a {} of at most {limit} bytes, packed smaller", kind.name()),
                format!("{raw_len} bytes stored in {stored_len}"),
            ));
        }
        Ok(Self {
            kind,
            packing,
            id,
            header_len,
            raw_len,
            stored_len,
        })
    }

    /// Bytes of the whole record.
    pub fn record_len(&self) -> usize {
        self.header_len + self.stored_len
    }
}

/// Makes the record of `raw`, whose id is `id`: header and packed bytes in one buffer.
pub fn seal(keys: &Keys, codec: Codec, kind: RecordKind, id: RawId, raw: &[u8]) -> Vec<u8> {
    assert!(
        raw.len() <= kind.raw_bytes_max(keys.chunk_size()),
        "a {} is cut to its limit before it is sealed",
        kind.name()
    );
    let mut out = Vec::with_capacity(HEADER_BYTES + raw.len() + raw.len() / 128 + 64);
    out.resize(HEADER_BYTES, 0);
    let packing = codec::pack_onto(codec, raw, &mut out);
    let stored_len = out.len() - HEADER_BYTES;

    // Cipher, key slot and length of the auxiliary bytes at 8..12 stay zero: reserved.
    out[0..4].copy_from_slice(&RECORD_MAGIC);
    out[4..6].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
    out[6] = kind as u8;
    out[7] = packing as u8;
    out[12..16].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    out[16..20].copy_from_slice(&(stored_len as u32).to_le_bytes());
    out[20..FIXED_BYTES].copy_from_slice(id.as_bytes());
    let checksum = keys.checksum().update(&out[..FIXED_BYTES]).short();
    out[FIXED_BYTES..HEADER_BYTES].copy_from_slice(&checksum);
    out
}

/// The header of `sealed` and its stored bytes, if it is the record wanted.
fn find<'a>(
    keys: &Keys,
    kind: RecordKind,
    id: RawId,
    sealed: &'a [u8],
) -> Result<(Header, &'a [u8]), Malformed> {
    let header = Header::decode(sealed, keys)?;
    if (header.kind, header.id) != (kind, id) {
        return Err(Malformed::new(
            format!("{} {id}", kind.name()),
            format!("{} {}", header.kind.name(), header.id),
        ));
    }
    if header.record_len() != sealed.len() {
        return Err(Malformed::new(
            format!("a record of {} bytes", sealed.len()),
            format!("one of {} bytes", header.record_len()),
        ));
    }
    Ok((header, &sealed[header.header_len..]))
}

/// Unpacks the record `sealed` and checks that it is the one of this kind and id, down to the last
/// byte. A chunk may come out shorter than a chunk: it lacks zeroes at its end.
pub fn open(keys: &Keys, kind: RecordKind, id: RawId, sealed: &[u8]) -> Result<Vec<u8>, Malformed> {
    let (header, stored) = find(keys, kind, id, sealed)?;
    let mut raw = vec![0; header.raw_len];
    unpack_verified(&header, stored, keys, &mut raw)?;
    Ok(raw)
}

/// Like [`open`], into the caller's buffer: fills all of `out`, with zeroes where the record ends
/// earlier, and leaves out what `out` is too short for (the last chunk of a disk).
/// After an error `out` holds nothing of use.
pub fn open_into(
    keys: &Keys,
    kind: RecordKind,
    id: RawId,
    sealed: &[u8],
    out: &mut [u8],
) -> Result<(), Malformed> {
    let (header, stored) = find(keys, kind, id, sealed)?;
    if let Some((raw, padding)) = out.split_at_mut_checked(header.raw_len) {
        unpack_verified(&header, stored, keys, raw)?;
        padding.fill(0);
    } else {
        let mut raw = vec![0; header.raw_len];
        unpack_verified(&header, stored, keys, &mut raw)?;
        out.copy_from_slice(&raw[..out.len()]);
    }
    Ok(())
}

/// Reads the record at the start of `bytes` without knowing which it is: its header and its
/// unpacked bytes, verified against the id it bears. For readers of damaged packs.
pub fn open_unknown(bytes: &[u8], keys: &Keys) -> Result<(Header, Vec<u8>), Malformed> {
    let header = Header::decode(bytes, keys)?;
    let stored = bytes
        .get(header.header_len..header.record_len())
        .ok_or_else(|| {
            Malformed::new(
                format!("a record of {} bytes", header.record_len()),
                format!("{} bytes", bytes.len()),
            )
        })?;
    let mut raw = vec![0; header.raw_len];
    unpack_verified(&header, stored, keys, &mut raw)?;
    Ok((header, raw))
}

fn unpack_verified(
    header: &Header,
    stored: &[u8],
    keys: &Keys,
    raw: &mut [u8],
) -> Result<(), Malformed> {
    codec::unpack_into(header.packing, stored, raw)
        .map_err(|error| Malformed::new(format!("{} bytes", header.raw_len), error.to_string()))?;
    let id = keys.id_of(header.kind, raw);
    if id == header.id {
        Ok(())
    } else {
        Err(Malformed::new(
            format!("bytes with id {}", header.id),
            format!("bytes with id {id}"),
        ))
    }
}
