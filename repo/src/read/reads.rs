//! Which records are fetched with one read: neighbours in a pack, with small gaps between them.

use std::ops::Range;

use crate::index::Location;
use crate::limits::{PACK_READ_BYTES_MAX, PACK_READ_GAP_MAX};

/// Something that lies in a pack.
pub(crate) trait Located {
    /// Where.
    fn location(&self) -> Location;
}

/// Cuts items, sorted by place, into reads of neighbours.
pub(crate) fn of_neighbours<T: Located>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut read = vec![items.next()?];
        let first = read[0].location();
        while let Some(next) = items.next_if(|next| {
            let (last, next) = (read[read.len() - 1].location(), next.location());
            let (last_end, next_end) = (last.offset + last.len, next.offset + next.len);
            next.pack == first.pack
                && next.offset <= last_end.saturating_add(PACK_READ_GAP_MAX)
                && next_end - first.offset <= PACK_READ_BYTES_MAX
        }) {
            read.push(next);
        }
        Some(read)
    })
}

/// The bytes of the pack that a read covers.
pub(crate) fn span<T: Located>(read: &[T]) -> Range<u64> {
    let (first, last) = (read[0].location(), read[read.len() - 1].location());
    u64::from(first.offset)..u64::from(last.offset) + u64::from(last.len)
}
