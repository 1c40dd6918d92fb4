//! What of a disk could not be read while the rest of it was saved.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Error;
use crate::check::reason;

/// A range of a disk that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// Why, for its first part.
    pub why: String,
}

/// Ranges by their start, neighbours joined.
#[derive(Default)]
pub(super) struct Losses(BTreeMap<u64, (u64, String)>);

impl Losses {
    pub(super) fn add(&mut self, range: Range<u64>, error: &Error) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        let mut why = None;
        if let Some((before, (reaches, _))) = self.0.range(..=start).next_back()
            && *reaches >= start
        {
            (start, end) = (*before, end.max(*reaches));
            why = self.0.remove(&start).map(|(_, why)| why);
        }
        while let Some((next, (reaches, _))) = self.0.range(start..=end).next() {
            let (next, reaches) = (*next, *reaches);
            end = end.max(reaches);
            self.0.remove(&next);
        }
        self.0
            .insert(start, (end, why.unwrap_or_else(|| reason(error))));
    }

    pub(super) fn list(&self) -> Vec<Loss> {
        let loss = |(start, (end, why)): (&u64, &(u64, String))| Loss {
            range: *start..*end,
            why: why.clone(),
        };
        self.0.iter().map(loss).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one_whatever_their_order() {
        let mut losses = Losses::default();
        for start in [5_u64, 1, 9, 3, 6, 2, 9, 20] {
            let what = format!("block {start}");
            losses.add(start * 10..start * 10 + 10, &Error::Missing { what });
        }
        let ranges: Vec<_> = losses.list().into_iter().map(|loss| loss.range).collect();
        assert_eq!(ranges, [10..40, 50..70, 90..100, 200..210]);
        losses.add(0..300, &Error::Cancelled);
        assert_eq!(losses.list().len(), 1);
    }
}
