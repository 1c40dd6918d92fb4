//! Positions and lengths that cannot be mistaken for each other.
//!
//! A [`DiskOffset`] counts bytes from the start of a guest's disk, a [`ByteLen`] is a length on that
//! disk. Arithmetic is checked: an overflow is a bug of ours and stops the program with its place.

use std::fmt;

/// A byte position on a guest's disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskOffset(pub u64);

/// A length in bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct ByteLen(pub u64);

/// A point in time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl DiskOffset {
    /// The start of the disk.
    pub const ZERO: Self = Self(0);

    /// The position `len` bytes further on.
    pub fn plus(self, len: ByteLen) -> Self {
        Self(
            self.0
                .checked_add(len.0)
                .expect("a disk ends before 2^63 bytes"),
        )
    }

    /// The distance from `earlier` to here.
    pub fn since(self, earlier: Self) -> ByteLen {
        ByteLen(
            self.0
                .checked_sub(earlier.0)
                .expect("the earlier position comes first"),
        )
    }
}

impl fmt::Display for DiskOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}
