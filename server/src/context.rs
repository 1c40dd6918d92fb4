//! Metadata contexts: what a client can ask about ranges of an export without reading them
//! ("Metadata querying").

use crate::export::ExportError;
use crate::limits::EXTENTS_MAX;
use crate::wire::reply::Extent;

/// `NBD_STATE_HOLE`: the range is not allocated.
pub const HOLE: u32 = 1 << 0;

/// `NBD_STATE_ZERO`: the range reads as zeroes.
pub const ZERO: u32 = 1 << 1;

/// The name of the context that every export has.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// A metadata context of an export's own.
pub trait Context: Send + Sync {
    /// Pushes the extents of `length` bytes from `offset` on. Stopping before the end of the range
    /// is fine after at least one extent. Where the export has a minimum block size, their lengths are
    /// multiples of it.
    fn status(&self, offset: u64, length: u64, extents: &mut Extents) -> Result<(), ExportError>;
}

/// Collects the extents of one range. Neighbours with the same flags become one.
#[derive(Debug)]
pub struct Extents {
    encoded: Vec<u8>,
    last: Option<Extent>,
    unspoken_bytes: u32,
    count_max: usize,
}

impl Extents {
    /// For a request of `length` bytes; with `one`, for a single extent (`NBD_CMD_FLAG_REQ_ONE`).
    pub(crate) fn new(length: u32, one: bool) -> Self {
        Extents {
            encoded: Vec::new(),
            last: None,
            unspoken_bytes: length,
            count_max: if one { 1 } else { EXTENTS_MAX },
        }
    }

    /// Adds `length` bytes with the same flags, cut at the end of the range. Returns whether more
    /// is wanted; pushing on after `false` does nothing.
    pub fn push(&mut self, length: u64, flags: u32) -> bool {
        let length = length.min(self.unspoken_bytes.into()) as u32;
        if length == 0 {
            return self.unspoken_bytes > 0;
        }
        match &mut self.last {
            Some(last) if last.flags == flags => last.length += length,
            last => {
                if self.encoded.len() / Extent::BYTES + usize::from(last.is_some())
                    == self.count_max
                {
                    self.unspoken_bytes = 0;
                    return false;
                }
                if let Some(complete) = last.replace(Extent { length, flags }) {
                    self.encoded.extend_from_slice(&complete.encode());
                }
            }
        }
        self.unspoken_bytes -= length;
        self.unspoken_bytes > 0
    }

    /// The extents as sent.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if let Some(last) = self.last {
            self.encoded.extend_from_slice(&last.encode());
        }
        self.encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(extents: &[(u32, u32)]) -> Vec<u8> {
        extents
            .iter()
            .flat_map(|&(length, flags)| Extent { length, flags }.encode())
            .collect()
    }

    #[test]
    fn neighbours_with_the_same_flags_become_one_and_the_last_is_cut() {
        let mut extents = Extents::new(100, false);
        assert!(extents.push(10, 0));
        assert!(extents.push(0, 9));
        assert!(extents.push(10, 0));
        assert!(extents.push(30, HOLE));
        assert!(!extents.push(u64::MAX, 0));
        assert!(!extents.push(5, HOLE));
        assert_eq!(extents.finish(), encoded(&[(20, 0), (30, HOLE), (50, 0)]));
    }

    #[test]
    fn a_request_for_one_extent_gets_one() {
        let mut extents = Extents::new(100, true);
        assert!(extents.push(10, 3));
        assert!(extents.push(10, 3));
        assert!(!extents.push(10, 0));
        assert!(!extents.push(10, 3));
        assert_eq!(extents.finish(), encoded(&[(20, 3)]));
    }

    #[test]
    fn a_shredded_map_is_cut_at_the_limit() {
        let mut extents = Extents::new(u32::MAX, false);
        let mut pushed = 0;
        while extents.push(512, pushed % 2) {
            pushed += 1;
        }
        assert_eq!(extents.finish().len(), EXTENTS_MAX * Extent::BYTES);
    }
}
