//! What changed between two disks, from their manifests: no chunk is read.

use super::DiskReader;
use crate::limits::{EXTENTS_CHUNKS_MAX, EXTENTS_PER_CALL_MAX};
use crate::manifest::{Comparison, Found};
use crate::{ByteLen, DiskOffset, Result};

/// A range of a disk, compared with the same range of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it begins.
    pub start: DiskOffset,
    /// How long it is.
    pub len: ByteLen,
    /// Whether it may differ. What is said to be equal is.
    pub changed: bool,
}

/// Gathers ranges; neighbours of one kind become one.
#[derive(Default)]
struct Changes(Vec<Change>);

impl DiskReader {
    /// Which ranges differ from those of `before`, from `from` on, at most up to `until`: chunk by
    /// chunk, and all that lies behind the end of `before`. Neighbours differ in kind. May stop
    /// short, covers at least one byte. Reads manifest nodes where the two differ, and nothing else.
    pub fn changes_since(
        &self,
        before: &DiskReader,
        from: DiskOffset,
        until: DiskOffset,
    ) -> Result<Vec<Change>> {
        self.assert_inside(from, until);
        let mut changes = Changes::default();
        let Some(mut comparison) = Comparison::of(self.tree(), before.tree()) else {
            changes.push(from.0, until.0, true);
            return Ok(changes.0);
        };
        let shape = self.shape();
        let (chunk_bytes, leaf_bytes) = (shape.chunk_size.as_u64(), shape.leaf_bytes());
        let both = until.0.min(before.size().0);
        let mut at = from.0;
        let mut chunks = 0;
        while at < both && chunks < EXTENTS_CHUNKS_MAX && changes.0.len() < EXTENTS_PER_CALL_MAX {
            let leaf = at / leaf_bytes;
            match comparison.at(leaf)? {
                Found::Equal(leaves) => {
                    let end = (leaf + leaves).saturating_mul(leaf_bytes).min(both);
                    changes.push(at, end, false);
                    at = end;
                    chunks += 1;
                }
                Found::Leaf(pair) => {
                    let leaf_end = (leaf + 1).saturating_mul(leaf_bytes).min(both);
                    while at < leaf_end {
                        let end = (at / chunk_bytes + 1).saturating_mul(chunk_bytes).min(both);
                        changes.push(at, end, pair.differs(at % leaf_bytes / chunk_bytes));
                        at = end;
                        chunks += 1;
                    }
                }
            }
        }
        if at >= both {
            changes.push(at, until.0, true);
        }
        Ok(changes.0)
    }
}

impl Changes {
    fn push(&mut self, start: u64, end: u64, changed: bool) {
        if start >= end {
            return;
        }
        let len = ByteLen(end - start);
        match self.0.last_mut() {
            Some(last) if last.changed == changed => last.len.0 += len.0,
            _ => self.0.push(Change {
                start: DiskOffset(start),
                len,
                changed,
            }),
        }
    }
}
