//! Point records: an envelope of fixed fields around a JSON body, and a checksum.
//!
//! One file per point, self-contained and write-once. The body is JSON so that a stranger reads it
//! with any tool and later versions can add fields; readers ignore what they do not know. Invariant:
//! a record that decodes bears the name of the file it was read from.

use super::bytes::{Malformed, Reader, hex};
use crate::keys::Keys;
use crate::{Error, Point, PointId, Result};

/// The first bytes of every point record.
pub const POINT_MAGIC: [u8; 8] = *b"VKPOINT\n";
/// The version of the layout of point records.
pub const POINT_VERSION: u16 = 1;
/// Bytes before auxiliary bytes and body.
pub const POINT_HEADER_BYTES: usize = 24;
/// Bytes of the checksum at the end.
pub const POINT_CHECKSUM_BYTES: usize = 32;
/// No body is longer.
pub const POINT_BODY_BYTES_MAX: usize = 16 << 20;
/// No record is longer.
pub const POINT_BYTES_MAX: usize =
    POINT_HEADER_BYTES + u16::MAX as usize + POINT_BODY_BYTES_MAX + POINT_CHECKSUM_BYTES;

/// The stored form of a point. Fails only for a point too large to be stored.
pub fn encode(point: &Point, keys: &Keys) -> Result<Vec<u8>> {
    let too_large = |found: String| {
        Malformed::new(format!("at most {POINT_BODY_BYTES_MAX} bytes"), found)
            .at(format!("point {}", point.id))
    };
    let body = serde_json::to_vec(point).map_err(|error| too_large(error.to_string()))?;
    if body.len() > POINT_BODY_BYTES_MAX {
        return Err(too_large(format!("{} bytes", body.len())));
    }
    // Cipher, key slot and length of the auxiliary bytes at 10..14 stay zero: reserved.
    let mut out = vec![0; POINT_HEADER_BYTES];
    out[0..8].copy_from_slice(&POINT_MAGIC);
    out[8..10].copy_from_slice(&POINT_VERSION.to_le_bytes());
    out[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    let checksum = keys.checksum().update(&out).full();
    out.extend_from_slice(&checksum);
    Ok(out)
}

/// Reads the record of the point `id`.
pub fn decode(bytes: &[u8], id: PointId, keys: &Keys) -> Result<Point> {
    decode_body(bytes, keys)
        .and_then(|body| {
            serde_json::from_slice::<Point>(body)
                .map_err(|error| Malformed::new("a point in JSON", error.to_string()))
        })
        .and_then(|point| {
            if point.id == id {
                Ok(point)
            } else {
                let found = format!("point {}", point.id);
                Err(Malformed::new(format!("point {id}"), found))
            }
        })
        .map_err(|malformed| -> Error { malformed.at(format!("the record of point {id}")) })
}

/// The JSON body of a record, verified.
pub fn decode_body<'a>(bytes: &'a [u8], keys: &Keys) -> Result<&'a [u8], Malformed> {
    let short = || Malformed::new("a whole point record", format!("{} bytes", bytes.len()));
    let covered_len = bytes.len().checked_sub(POINT_CHECKSUM_BYTES);
    let (covered, checksum) = bytes.split_at(covered_len.ok_or_else(short)?);
    let mut reader = Reader::new(covered);
    let magic: [u8; 8] = reader.array().ok_or_else(short)?;
    if magic != POINT_MAGIC {
        return Err(Malformed::new("a point record", hex(&magic)));
    }
    let computed = keys.checksum().update(covered).full();
    if checksum != computed {
        return Err(Malformed::new(
            format!("checksum {}", hex(&computed)),
            hex(checksum),
        ));
    }
    let version = reader.u16().ok_or_else(short)?;
    let cipher = reader.u8().ok_or_else(short)?;
    let _key_slot = reader.u8().ok_or_else(short)?;
    let auxiliary_len = reader.u16().ok_or_else(short)?;
    let _reserved = reader.u16().ok_or_else(short)?;
    let body_len = reader.u32().ok_or_else(short)? as usize;
    let _reserved = reader.u32().ok_or_else(short)?;
    if version != POINT_VERSION || cipher != 0 {
        return Err(Malformed::new(
            format!("version {POINT_VERSION} without cipher"),
            format!("version {version}, cipher {cipher}"),
        ));
    }
    reader.take(auxiliary_len.into()).ok_or_else(short)?;
    let body = reader.take(body_len).ok_or_else(short)?;
    if body_len > POINT_BODY_BYTES_MAX || !reader.is_empty() {
        return Err(Malformed::new(
            "a body that ends where the checksum begins",
            format!("a body of {body_len} bytes"),
        ));
    }
    Ok(body)
}
