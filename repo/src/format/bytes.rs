//! Reading fixed-width fields out of stored bytes.

/// Stored bytes, read front to back. Every call answers `None` past the end.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// What is wrong with stored bytes: the part of [`Error::Corrupt`](crate::Error::Corrupt) that a
/// decoder knows; its caller adds the object and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Malformed {
    pub(super) fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// The error, now that the object and place are known.
    pub fn at(self, what: impl Into<String>) -> crate::Error {
        crate::Error::Corrupt {
            what: what.into(),
            expected: self.expected,
            found: self.found,
        }
    }
}

/// Up to 16 bytes in hexadecimal, for messages.
pub(super) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&bytes[..bytes.len().min(16)])
}
