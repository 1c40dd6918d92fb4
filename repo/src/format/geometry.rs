//! The two sizes that shape every manifest of a repository: chunk size and fan-out.
//!
//! Both are fixed when the repository is made. Invariant: a value of these types is one the format
//! allows, so nothing computed from it can overflow or divide by zero.

use crate::DiskOffset;

/// Chunk sizes the format allows, in bytes; powers of two.
pub const CHUNK_BYTES_MIN: u32 = 4 << 10;
/// See [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;
/// The fan-outs the format allows.
pub const FAN_OUTS: [u16; 2] = [64, 256];
/// No disk is larger, in bytes.
pub const DISK_BYTES_MAX: u64 = 1 << 63;
/// Disk sizes are a multiple of this, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Bytes per chunk: a power of two from 4 KiB to 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// 64 KiB, the granularity of dirty bitmaps.
    pub const DEFAULT: Self = Self(64 << 10);

    /// This many bytes, if the format allows it.
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        let allowed = (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&bytes);
        (allowed && bytes.is_power_of_two()).then_some(Self(bytes))
    }

    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The size in bytes, as stored.
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    /// The size in bytes, for arithmetic on disk positions.
    pub const fn as_u64(self) -> u64 {
        self.0 as u64
    }

    /// How many chunks a disk of `size` bytes has; the last may be cut short.
    pub const fn chunks(self, size: u64) -> u64 {
        size.div_ceil(self.as_u64())
    }

    /// Which chunk holds the byte at `offset`.
    pub const fn index_of(self, offset: DiskOffset) -> u64 {
        offset.0 / self.as_u64()
    }
}

/// Children per manifest node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanOut(u16);

impl FanOut {
    /// What new repositories use.
    pub const DEFAULT: Self = Self(64);

    /// This many children, if the format allows it.
    pub fn new(children: u64) -> Option<Self> {
        let children = u16::try_from(children).ok()?;
        FAN_OUTS.contains(&children).then_some(Self(children))
    }

    /// The number of children.
    pub const fn children(self) -> usize {
        self.0 as usize
    }

    /// The number of children, as stored.
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// The number of children as a power of two.
    pub const fn bits(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// How many chunks one child of a node at `level` covers: 1 in a leaf (level 0).
    /// Saturates at 2^63, more than any disk has.
    pub const fn chunks_per_child(self, level: u8) -> u64 {
        let shift = self.bits() * level as u32;
        if shift >= 63 { 1 << 63 } else { 1 << shift }
    }

    /// Which child of the node at `level` above it leads to chunk number `chunk`.
    pub const fn child_index(self, level: u8, chunk: u64) -> usize {
        ((chunk / self.chunks_per_child(level)) % self.0 as u64) as usize
    }
}

/// The height of the manifest of a disk of `size` bytes: the least number of node levels, at least
/// one, that reach every chunk. The top node is at level `height - 1`, leaves are at level 0.
pub fn height_for(size: u64, chunk_size: ChunkSize, fan_out: FanOut) -> u8 {
    let chunks = chunk_size.chunks(size);
    let mut height = 1;
    while fan_out.chunks_per_child(height) < chunks {
        height += 1;
    }
    height
}

/// The height of the tallest manifest the format allows.
pub fn height_max(fan_out: FanOut) -> u8 {
    let smallest_chunk = ChunkSize(CHUNK_BYTES_MIN);
    height_for(DISK_BYTES_MAX, smallest_chunk, fan_out)
}
