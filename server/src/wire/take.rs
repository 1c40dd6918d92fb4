//! Reading fields off the front of a message.

use super::Malformed;
use crate::limits::STRING_BYTES_MAX;

/// The rest of a message.
pub(crate) struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Take(bytes)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*front)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of `length` bytes ("Conventions": UTF-8 without NUL, at most 4096 bytes).
    pub(crate) fn string(&mut self, length: usize) -> Result<&'a str, Malformed> {
        if length > STRING_BYTES_MAX {
            return Err(Malformed::StringTooLong);
        }
        let string = std::str::from_utf8(self.bytes(length)?).map_err(|_| Malformed::NotUtf8)?;
        if string.contains('\0') {
            return Err(Malformed::Nul);
        }
        Ok(string)
    }

    /// A 32-bit length and a string of that many bytes.
    pub(crate) fn long_string(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()?;
        self.string(usize::try_from(length).map_err(|_| Malformed::StringTooLong)?)
    }

    /// All that is left, as a string.
    pub(crate) fn rest_string(&mut self) -> Result<&'a str, Malformed> {
        self.string(self.0.len())
    }

    pub(crate) fn magic(&mut self, magic: u64) -> Result<(), Malformed> {
        match self.u64()? {
            found if found == magic => Ok(()),
            found => Err(Malformed::Magic(found)),
        }
    }

    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing)
        }
    }
}
