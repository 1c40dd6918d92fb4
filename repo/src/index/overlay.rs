//! Reading an index that a writer left its mark in, where nothing may or can be written: on read-only
//! media, without locks, when no space is left. redb sets such a file right when it opens it; here what
//! it writes for that (a header and a few pages) stays in memory and is thrown away.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use redb::StorageBackend;

use crate::sync::lock;

const PAGE: u64 = 4096;

/// A file below that is only read, and what was written above it.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Box<dyn StorageBackend>,
    above: Mutex<Above>,
}

#[derive(Debug)]
struct Above {
    len: u64,
    /// Bytes of the file below that still show: less than its length once it was cut.
    below_len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    pub(super) fn new(below: Box<dyn StorageBackend>) -> io::Result<Self> {
        let len = below.len()?;
        let above = Mutex::new(Above {
            len,
            below_len: len,
            pages: BTreeMap::new(),
        });
        Ok(Self { below, above })
    }

    /// The page as it shows, zeroes behind the end of the file below.
    fn page<'a>(&self, above: &'a mut Above, number: u64) -> io::Result<&'a mut [u8]> {
        if let std::collections::btree_map::Entry::Vacant(place) = above.pages.entry(number) {
            let mut page = vec![0; PAGE as usize];
            let start = number * PAGE;
            let there = above.below_len.saturating_sub(start).min(PAGE) as usize;
            if there > 0 {
                self.below.read(start, &mut page[..there])?;
            }
            place.insert(page.into_boxed_slice());
        }
        let page = above.pages.get_mut(&number);
        Ok(page.expect("the page was put there just now"))
    }
}

/// The pieces of `offset..offset + len` that lie in one page each: page, place in it, length.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (number, place) = (at / PAGE, at % PAGE);
        let here = (PAGE - place).min(end - at);
        at += here;
        (here > 0).then_some((number, place as usize, here as usize))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.above).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut above = lock(&self.above);
        if offset.saturating_add(out.len() as u64) > above.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = out;
        for (number, place, len) in pieces(offset, rest.len()) {
            let (piece, next) = rest.split_at_mut(len);
            rest = next;
            let start = number * PAGE + place as u64;
            let below = start + len as u64 <= above.below_len;
            if below && !above.pages.contains_key(&number) {
                // Not kept: memory holds what was written, not what was read.
                self.below.read(start, piece)?;
            } else {
                let page = self.page(&mut above, number)?;
                piece.copy_from_slice(&page[place..place + len]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut above = lock(&self.above);
        if len < above.len {
            // What is cut off reads as zeroes if the file grows again.
            above.below_len = above.below_len.min(len);
            above.pages.split_off(&len.div_ceil(PAGE));
            if !len.is_multiple_of(PAGE) {
                self.page(&mut above, len / PAGE)?[(len % PAGE) as usize..].fill(0);
            }
        }
        above.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut above = lock(&self.above);
        let mut rest = data;
        for (number, place, len) in pieces(offset, data.len()) {
            let (piece, next) = rest.split_at(len);
            rest = next;
            self.page(&mut above, number)?[place..place + len].copy_from_slice(piece);
        }
        above.len = above.len.max(offset + data.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::backends::InMemoryBackend;

    #[test]
    fn what_is_written_shows_above_and_never_reaches_below() {
        let below = InMemoryBackend::new();
        below.set_len(10_000).unwrap();
        below.write(0, &[7; 10_000]).unwrap();
        let overlay = Overlay::new(Box::new(below)).unwrap();
        overlay.write(4000, &[1; 200]).unwrap();
        let mut seen = [0; 400];
        overlay.read(3900, &mut seen).unwrap();
        let expected = [[7; 100], [1; 100], [1; 100], [7; 100]].concat();
        assert_eq!(seen, expected[..]);

        overlay.set_len(5000).unwrap();
        overlay.set_len(20_000).unwrap();
        overlay.read(4900, &mut seen).unwrap();
        assert_eq!(seen, [[7; 100].as_slice(), &[0; 300]].concat()[..]);
        assert!(overlay.read(19_900, &mut seen).is_err());

        overlay.below.read(4000, &mut seen).unwrap();
        assert_eq!(seen, [7; 400]);
        assert_eq!(overlay.below.len().unwrap(), 10_000);
    }
}
