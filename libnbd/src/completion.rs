//! How finished requests come back: a token names the request, a completion carries either
//! what was asked for or the error, never both.

use std::ops::Range;

use crate::error::Error;
use crate::status::ContextExtents;

/// Names one request of one handle; never reused by that handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub(crate) u64);

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// The value that submitting the request returned.
    pub token: Token,
    /// The outcome. The buffer of a failed read is gone.
    pub result: Result<Reply, Error>,
}

/// What a successful request yields.
#[derive(Debug)]
pub enum Reply {
    /// Data that was read.
    Read(ReadReply),
    /// Extents of every negotiated metadata context.
    BlockStatus(Vec<ContextExtents>),
    /// A write, write-zeroes, trim or flush is done.
    Done,
}

/// The bytes of a successful read, all of them defined by the server's reply.
#[derive(Debug)]
pub struct ReadReply {
    /// Where on the export the first byte was read.
    pub offset: u64,
    /// The buffer that was handed in, completely filled.
    pub bytes: Vec<u8>,
    /// How the server described the buffer: ascending, without gaps or overlaps, neighbours
    /// of one kind merged. A hole's bytes are zero.
    pub pieces: Vec<Piece>,
}

impl ReadReply {
    /// Whether the server described the whole buffer as a hole, so that it is all zero.
    /// `false` says nothing: data may be zero, too.
    pub fn is_hole(&self) -> bool {
        self.pieces
            .iter()
            .all(|piece| piece.kind == PieceKind::Hole)
    }
}

/// One part of a read buffer as the server sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Byte positions inside the buffer.
    pub range: Range<usize>,
    /// Whether bytes were sent for it.
    pub kind: PieceKind,
}

/// Whether the server sent bytes or only said that there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// The server sent these bytes.
    Data,
    /// The server sent a hole: the bytes are zero and did not travel.
    Hole,
}

/// Most pieces (before merging) that one reply may consist of. A sound server sends at most
/// one per block; a hostile one could otherwise make us keep a record per byte.
const PIECES_MAX: usize = 1 << 17;

/// Collects the pieces of one read while they arrive, in any order.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    list: Vec<Piece>,
}

impl Pieces {
    /// Adds a piece; `false` if there are too many of them.
    pub(crate) fn push(&mut self, range: Range<usize>, kind: PieceKind) -> bool {
        if range.is_empty() {
            return true;
        }
        match self.list.last_mut() {
            Some(last) if last.kind == kind && last.range.end == range.start => {
                last.range.end = range.end;
                return true;
            }
            _ => {}
        }
        if self.list.len() == PIECES_MAX {
            return false;
        }
        self.list.push(Piece { range, kind });
        true
    }

    /// The pieces in order, provided that they cover `0..length` exactly once.
    pub(crate) fn finish(mut self, length: usize) -> Result<Vec<Piece>, &'static str> {
        self.list.sort_unstable_by_key(|piece| piece.range.start);
        let mut merged = Pieces::default();
        let mut covered = 0;
        for piece in self.list {
            if piece.range.start > covered {
                return Err("a part of the data was not sent");
            }
            if piece.range.start < covered {
                return Err("a part of the data was sent twice");
            }
            covered = piece.range.end;
            merged.push(piece.range, piece.kind);
        }
        if covered == length {
            Ok(merged.list)
        } else {
            Err("a part of the data was not sent")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(pieces: &[(Range<usize>, PieceKind)], length: usize) -> Result<Vec<Piece>, &str> {
        let mut collected = Pieces::default();
        for (range, kind) in pieces {
            assert!(collected.push(range.clone(), *kind));
        }
        collected.finish(length)
    }

    #[test]
    fn pieces_in_any_order_become_one_ascending_cover() {
        let pieces = finish(
            &[
                (8..12, PieceKind::Hole),
                (0..4, PieceKind::Data),
                (4..8, PieceKind::Data),
            ],
            12,
        );
        assert_eq!(
            pieces,
            Ok(vec![
                Piece {
                    range: 0..8,
                    kind: PieceKind::Data
                },
                Piece {
                    range: 8..12,
                    kind: PieceKind::Hole
                },
            ])
        );
    }

    #[test]
    fn a_gap_an_overlap_and_a_short_reply_are_refused() {
        use PieceKind::{Data, Hole};
        assert!(finish(&[(0..4, Data), (5..8, Data)], 8).is_err());
        assert!(finish(&[(0..5, Data), (4..8, Hole)], 8).is_err());
        assert!(finish(&[(0..8, Data), (0..8, Data)], 8).is_err());
        assert!(finish(&[(0..4, Data)], 8).is_err());
        assert!(finish(&[], 8).is_err());
    }

    #[test]
    fn a_reply_in_countless_pieces_is_refused() {
        let mut pieces = Pieces::default();
        for i in 0..PIECES_MAX {
            assert!(pieces.push(2 * i..2 * i + 1, PieceKind::Data));
        }
        assert!(!pieces.push(2 * PIECES_MAX..2 * PIECES_MAX + 1, PieceKind::Data));
    }
}
