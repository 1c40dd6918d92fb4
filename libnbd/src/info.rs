//! What a server says about an export: its size, limits and abilities.

use crate::error::Error;
use crate::raw::RawHandle;
use crate::sys;

/// Most bytes one read or write may have where the server names no limit of its own; the
/// protocol tells clients not to expect more of any server.
const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Facts about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes, less than 2^63.
    pub size: u64,
    /// Limits of requests.
    pub block_size: BlockSize,
    /// What the server can do.
    pub flags: ExportFlags,
}

/// Limits of requests in bytes; `None` where the server did not advertise one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSize {
    /// Offsets and lengths must be multiples of this power of two, at most 64 KiB.
    pub minimum: Option<u32>,
    /// The size and alignment that the server handles without read-modify-write.
    pub preferred: Option<u32>,
    /// The longest read or write.
    pub maximum: Option<u32>,
}

impl BlockSize {
    /// The longest read or write to ask for: the server's limit, 32 MiB if it has none, and
    /// never more than that.
    pub fn payload_bytes_max(&self) -> usize {
        // At most 32 MiB, so it fits.
        self.maximum
            .unwrap_or(PAYLOAD_BYTES_MAX)
            .min(PAYLOAD_BYTES_MAX) as usize
    }
}

/// Abilities of the server for an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportFlags {
    /// Writes are refused.
    pub read_only: bool,
    /// The medium prefers sequential access.
    pub rotational: bool,
    /// Several connections see one coherent disk, so that they may share the work.
    pub multi_conn: bool,
    /// Flush is supported.
    pub flush: bool,
    /// Force unit access is supported on writes.
    pub fua: bool,
    /// Write zeroes is supported.
    pub zero: bool,
    /// Write zeroes can be asked to fail rather than be slow.
    pub fast_zero: bool,
    /// Trim is supported.
    pub trim: bool,
    /// "Do not fragment" is supported on reads.
    pub df: bool,
    /// Cache (prefetch) is supported.
    pub cache: bool,
    /// Structured replies are in use: holes and block status need them.
    pub structured_replies: bool,
}

impl ExportInfo {
    pub(crate) fn query(raw: &RawHandle) -> Result<ExportInfo, Error> {
        Ok(ExportInfo {
            size: raw.size()?,
            block_size: BlockSize {
                minimum: raw.block_size(sys::SIZE_MINIMUM)?,
                preferred: raw.block_size(sys::SIZE_PREFERRED)?,
                maximum: raw.block_size(sys::SIZE_MAXIMUM)?,
            },
            flags: ExportFlags {
                read_only: raw.is_read_only()? == 1,
                rotational: raw.is_rotational()? == 1,
                multi_conn: raw.can_multi_conn()? == 1,
                flush: raw.can_flush()? == 1,
                fua: raw.can_fua()? == 1,
                zero: raw.can_zero()? == 1,
                fast_zero: raw.can_fast_zero()? == 1,
                trim: raw.can_trim()? == 1,
                df: raw.can_df()? == 1,
                cache: raw.can_cache()? == 1,
                structured_replies: raw.structured_replies()? == 1,
            },
        })
    }
}
