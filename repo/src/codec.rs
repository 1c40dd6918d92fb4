//! How records are compressed: LZ4 blocks, Zstandard frames, or not at all.
//!
//! LZ4 is packed in Rust and unpacked by the C library, which is half as fast again
//! (`doc/decisions/0007`).
//!
//! Invariants: what does not become usefully smaller is stored as it is; unpacking writes into a
//! buffer of the announced length and nowhere else, so no stored byte can make it allocate.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::str::FromStr;

use lz4_flex::block::CompressTable;

/// The level that `zstd` alone stands for.
const ZSTD_LEVEL_DEFAULT: u8 = 3;
const ZSTD_LEVEL_MAX: u8 = 22;

/// A packed record has to save one part in this many, or it is stored as it is: unpacking it at
/// every read would cost more than the space is worth.
const SAVING_MIN_PART: usize = 32;

/// How records are compressed. Parses from and prints as `lz4`, `zstd:3`, `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Stored as they are.
    None,
    /// LZ4 block format.
    Lz4,
    /// Zstandard at this level, 1 to 22 (`zstd` alone means 3).
    Zstd(u8),
}

/// A text that names no codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a codec: lz4, zstd, zstd:1 to zstd:22, or none")]
pub struct ParseCodecError(String);

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, ParseCodecError> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd(ZSTD_LEVEL_DEFAULT)),
            _ => text
                .strip_prefix("zstd:")
                .filter(|level| level.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|level| level.parse().ok())
                .filter(|level| (1..=ZSTD_LEVEL_MAX).contains(level))
                .map(Self::Zstd)
                .ok_or_else(|| ParseCodecError(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// The form in which one record is stored, as numbered on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Packing {
    /// As it is.
    Raw = 0,
    /// One LZ4 block, without any frame or length.
    Lz4 = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

impl Packing {
    /// The form with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What one thread keeps between records.
struct Workspace {
    lz4: CompressTable,
    zstd_pack: Option<(u8, zstd::bulk::Compressor<'static>)>,
    zstd_unpack: Option<zstd::bulk::Decompressor<'static>>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        lz4: CompressTable::large(),
        zstd_pack: None,
        zstd_unpack: None,
    });
}

/// Appends `raw` to `out`, packed by `codec` where that saves enough, and says in which form.
pub fn pack_onto(codec: Codec, raw: &[u8], out: &mut Vec<u8>) -> Packing {
    let start = out.len();
    let worth = raw.len() - raw.len().div_ceil(SAVING_MIN_PART);
    let packed = WORKSPACE.with_borrow_mut(|space| space.pack(codec, raw, out));
    match packed {
        Some((packing, len)) if len <= worth => {
            out.truncate(start + len);
            packing
        }
        _ => {
            out.truncate(start);
            out.extend_from_slice(raw);
            Packing::Raw
        }
    }
}

/// Unpacks `stored` into `out`, whose length is the announced raw length. Any other length that
/// comes out is an error; `out` then holds nothing of use.
pub fn unpack_into(packing: Packing, stored: &[u8], out: &mut [u8]) -> Result<(), UnpackError> {
    let len = match packing {
        Packing::Raw => {
            if stored.len() == out.len() {
                out.copy_from_slice(stored);
            }
            stored.len()
        }
        Packing::Lz4 => unpack_lz4(stored, out)
            .map_err(|error| UnpackError(format!("LZ4 data that ends in \"{error}\"")))?,
        Packing::Zstd => WORKSPACE
            .with_borrow_mut(|space| space.unpack_zstd(stored, out))
            .map_err(|error| UnpackError(format!("Zstandard data that ends in \"{error}\"")))?,
    };
    if len == out.len() {
        Ok(())
    } else {
        Err(UnpackError(format!("{len} unpacked bytes")))
    }
}

/// How many bytes came out.
fn unpack_lz4(stored: &[u8], out: &mut [u8]) -> io::Result<usize> {
    let room = i32::try_from(out.len()).map_err(io::Error::other)?;
    lz4::block::decompress_to_buffer(stored, Some(room), out)
}

/// What was found instead of a packed record of the announced length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnpackError(String);

impl Workspace {
    /// Packs onto the end of `out`; `None` when the codec has nothing to offer.
    fn pack(&mut self, codec: Codec, raw: &[u8], out: &mut Vec<u8>) -> Option<(Packing, usize)> {
        let start = out.len();
        match codec {
            Codec::None => None,
            Codec::Lz4 => {
                out.resize(
                    start + lz4_flex::block::get_maximum_output_size(raw.len()),
                    0,
                );
                lz4_flex::block::compress_into_with_table(raw, &mut out[start..], &mut self.lz4)
                    .ok()
                    .map(|len| (Packing::Lz4, len))
            }
            Codec::Zstd(level) => {
                // No more room than for the raw bytes: what does not fit would not be kept.
                out.resize(start + raw.len(), 0);
                self.zstd_compressor(level)
                    .ok()?
                    .compress_to_buffer(raw, &mut out[start..])
                    .ok()
                    .map(|len| (Packing::Zstd, len))
            }
        }
    }

    fn zstd_compressor(&mut self, level: u8) -> io::Result<&mut zstd::bulk::Compressor<'static>> {
        if self
            .zstd_pack
            .as_ref()
            .is_none_or(|(kept, _)| *kept != level)
        {
            let compressor = zstd::bulk::Compressor::new(i32::from(level))?;
            self.zstd_pack = Some((level, compressor));
        }
        let (_, compressor) = self.zstd_pack.as_mut().expect("made just above");
        Ok(compressor)
    }

    fn unpack_zstd(&mut self, stored: &[u8], out: &mut [u8]) -> io::Result<usize> {
        if self.zstd_unpack.is_none() {
            self.zstd_unpack = Some(zstd::bulk::Decompressor::new()?);
        }
        let decompressor = self.zstd_unpack.as_mut().expect("made just above");
        decompressor.decompress_to_buffer(stored, out)
    }
}
