//! Block status: extents per metadata context, and a map that merges several contexts.
//!
//! Each context's extents start at the offset asked for, but each may stop short of the
//! range, and of the other contexts (QEMU sends at most 131,072 extents per context and
//! reply). Nothing here assumes anything about a byte that no extent covered.

use std::collections::VecDeque;
use std::ops::Range;

use crate::error::{Error, Operation};
use crate::handle::Handle;

/// `base:allocation`: the range is a hole. Says nothing about what reads as what.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: the range reads as zero.
pub const STATE_ZERO: u32 = 2;
/// `qemu:dirty-bitmap:NAME`: the range was written since the bitmap was started.
pub const STATE_DIRTY: u32 = 1;

/// Most bytes one block status, zero or trim request may cover: the protocol has 32 bits
/// for it, and 64 KiB is the largest minimum block size that a server may ask for.
pub const REQUEST_BYTES_MAX: u64 = 0xFFFF_0000;

/// A run of bytes of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never zero.
    pub length: u64,
    /// Flags whose meaning the context defines.
    pub flags: u32,
}

/// The extents of one context, back to back from the offset that was asked for. They may
/// end before the range that was asked for does, never after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextExtents {
    /// Name of the metadata context.
    pub context: String,
    /// The extents in ascending order.
    pub extents: Vec<Extent>,
}

/// Checks a reply and cuts it off at the end of the request.
///
/// The last extent may legally reach beyond the request, but nothing reaches beyond the
/// export, no extent is empty, and no context answers twice.
pub(crate) fn validate(
    mut contexts: Vec<ContextExtents>,
    offset: u64,
    length: u64,
    export_size: u64,
) -> Result<Vec<ContextExtents>, String> {
    for i in 0..contexts.len() {
        let name = &contexts[i].context;
        if contexts[..i].iter().any(|other| other.context == *name) {
            return Err(format!("context '{name}' is described twice"));
        }
        if contexts[i].extents.is_empty() {
            return Err(format!("context '{name}' has no extents"));
        }
    }
    for context in &mut contexts {
        let mut position = offset;
        let mut kept = 0;
        for extent in &mut context.extents {
            if extent.length == 0 {
                return Err(format!("context '{}' has an empty extent", context.context));
            }
            let start = position;
            position = position
                .checked_add(extent.length)
                .filter(|end| *end <= export_size)
                .ok_or_else(|| {
                    format!(
                        "context '{}' describes bytes beyond the end of the export",
                        context.context
                    )
                })?;
            let wanted = (offset + length).saturating_sub(start);
            if wanted > 0 {
                extent.length = extent.length.min(wanted);
                kept += 1;
            }
        }
        context.extents.truncate(kept);
    }
    Ok(contexts)
}

/// A range of the export in which every context of a [`StatusMap`] has one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// Bytes of the export.
    pub range: Range<u64>,
    /// The flags of each context, in the order in which the map was asked for them.
    pub flags: Vec<u32>,
}

/// Walks over a range of an export and merges several contexts.
///
/// It keeps one cursor per context, and asks the server again from the position of the one
/// that is furthest behind. Neighbouring ranges of equal flags are merged as far as they are
/// known, so a range may still be followed by one with the same flags.
///
/// The map does not borrow the handle; between two steps the handle may do anything else.
#[derive(Debug)]
pub struct StatusMap {
    cursors: Vec<Cursor>,
    position: u64,
    end: u64,
}

/// What is known of one context from the map's position on.
#[derive(Debug)]
struct Cursor {
    context: String,
    /// Ends and flags of the known extents; the first begins at the map's position.
    known: VecDeque<(u64, u32)>,
    known_end: u64,
}

impl Cursor {
    /// Adds the part of a reply (whose first extent starts at `start`) not known so far.
    fn learn(&mut self, start: u64, extents: &[Extent]) {
        let mut end = start;
        for extent in extents {
            end += extent.length;
            if end > self.known_end {
                self.known.push_back((end, extent.flags));
                self.known_end = end;
            }
        }
    }
}

impl StatusMap {
    /// A map of `range` (bytes, aligned to the export's minimum block size) for `contexts`.
    ///
    /// # Errors
    /// [`Error::MissingContext`] if a context was not negotiated: a server that lacks one
    /// says nothing when connecting. [`Error::Refused`] if the range leaves the export, or
    /// no context is named.
    pub fn new(handle: &Handle, contexts: &[&str], range: Range<u64>) -> Result<StatusMap, Error> {
        let refused = |reason: &str| Err(Error::refused(Operation::BlockStatus, reason));
        if contexts.is_empty() {
            return refused("no metadata context is named");
        }
        if range.start > range.end || range.end > handle.size() {
            return refused("the range leaves the export");
        }
        let mut cursors: Vec<Cursor> = Vec::with_capacity(contexts.len());
        for name in contexts {
            if !handle.has_context(name) {
                return Err(Error::MissingContext((*name).to_owned()));
            }
            cursors.push(Cursor {
                context: (*name).to_owned(),
                known: VecDeque::new(),
                known_end: range.start,
            });
        }
        Ok(StatusMap {
            cursors,
            position: range.start,
            end: range.end,
        })
    }

    /// Up to where the map has been handed out, in bytes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next range, or `None` at the end. Asks the server only where something is missing.
    ///
    /// # Errors
    /// [`Error::Protocol`] for replies that break the rules or make no progress;
    /// otherwise as [`Handle::block_status`].
    pub fn next(&mut self, handle: &mut Handle) -> Result<Option<StatusRange>, Error> {
        if self.position >= self.end {
            return Ok(None);
        }
        if self.needs_more() {
            let length = (self.end - self.position).min(REQUEST_BYTES_MAX);
            let reply = handle.block_status(self.position, length)?;
            self.learn(&reply)?;
        }
        let mut merged = self.step();
        while self.position < self.end && !self.needs_more() {
            if !self
                .cursors
                .iter()
                .zip(&merged.flags)
                .all(|(cursor, flags)| cursor.known.front().is_some_and(|(_, next)| next == flags))
            {
                break;
            }
            merged.range.end = self.step().range.end;
        }
        Ok(Some(merged))
    }

    fn needs_more(&self) -> bool {
        self.cursors
            .iter()
            .any(|cursor| cursor.known_end <= self.position)
    }

    fn learn(&mut self, reply: &[ContextExtents]) -> Result<(), Error> {
        for cursor in &mut self.cursors {
            if let Some(described) = reply.iter().find(|c| c.context == cursor.context) {
                cursor.learn(self.position, &described.extents);
            }
            if cursor.known_end <= self.position {
                return Err(Error::Protocol {
                    operation: Operation::BlockStatus,
                    offset: self.position,
                    reason: format!("nothing was said about context '{}'", cursor.context),
                });
            }
        }
        Ok(())
    }

    /// Hands out up to the nearest end among the first known extents; each cursor has one.
    fn step(&mut self) -> StatusRange {
        let start = self.position;
        let mut end = self.end;
        let mut flags = Vec::with_capacity(self.cursors.len());
        for cursor in &self.cursors {
            if let Some((known, value)) = cursor.known.front() {
                end = end.min(*known);
                flags.push(*value);
            }
        }
        for cursor in &mut self.cursors {
            if cursor.known.front().is_some_and(|(known, _)| *known <= end) {
                cursor.known.pop_front();
            }
        }
        self.position = end;
        StatusRange {
            range: start..end,
            flags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(name: &str, extents: &[(u64, u32)]) -> ContextExtents {
        ContextExtents {
            context: name.to_owned(),
            extents: extents
                .iter()
                .map(|&(length, flags)| Extent { length, flags })
                .collect(),
        }
    }

    fn map(contexts: &[&str], range: Range<u64>) -> StatusMap {
        StatusMap {
            cursors: contexts
                .iter()
                .map(|name| Cursor {
                    context: (*name).to_owned(),
                    known: VecDeque::new(),
                    known_end: range.start,
                })
                .collect(),
            position: range.start,
            end: range.end,
        }
    }

    #[test]
    fn a_reply_is_cut_off_at_the_end_of_the_request() {
        let reply = vec![context("a", &[(10, 1), (90, 0), (5, 3)])];
        assert_eq!(
            validate(reply, 100, 50, 1000),
            Ok(vec![context("a", &[(10, 1), (40, 0)])])
        );
    }

    #[test]
    fn hostile_extents_are_refused() {
        let beyond = vec![context("a", &[(10, 0), (u64::MAX, 0)])];
        assert!(validate(beyond, 0, 100, 100).is_err());
        assert!(validate(vec![context("a", &[(101, 0)])], 0, 100, 100).is_err());
        assert!(validate(vec![context("a", &[(10, 0), (0, 0)])], 0, 100, 100).is_err());
        assert!(validate(vec![context("a", &[])], 0, 100, 100).is_err());
        let twice = vec![context("a", &[(10, 0)]), context("a", &[(10, 0)])];
        assert!(validate(twice, 0, 100, 100).is_err());
    }

    #[test]
    fn a_context_that_stops_short_does_not_hold_back_what_the_other_said() {
        let mut map = map(&["alloc", "dirty"], 0..100);
        map.learn(&[
            context("alloc", &[(60, 0)]),
            context("dirty", &[(10, 1), (5, 0)]),
        ])
        .expect("both contexts advance");
        assert_eq!((map.step().range, map.step().range), (0..10, 10..15));
        assert!(map.needs_more());

        map.learn(&[
            context("alloc", &[(45, 0), (40, 3)]),
            context("dirty", &[(85, 1)]),
        ])
        .expect("the lagging context advances");
        let (third, fourth) = (map.step(), map.step());
        assert_eq!((third.range, third.flags), (15..60, vec![0, 1]));
        assert_eq!((fourth.range, fourth.flags), (60..100, vec![3, 1]));
        assert_eq!(map.position(), 100);
    }

    #[test]
    fn a_server_that_leaves_a_context_out_is_an_error_not_an_assumption() {
        let mut map = map(&["alloc", "dirty"], 0..100);
        let reply = [context("alloc", &[(100, 0)])];
        assert!(matches!(map.learn(&reply), Err(Error::Protocol { .. })));
    }
}
