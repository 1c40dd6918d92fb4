//! A disk in memory: an [`Export`] for tests and for data that need not last.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::context::{Extents, HOLE, ZERO};
use crate::export::{Export, ExportError, Features, Holes, ZeroMode};

const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

/// A writable, sparse disk in memory: only pages that were written take space.
#[derive(Debug)]
pub struct MemoryDisk {
    size_bytes: u64,
    pages: RwLock<BTreeMap<u64, Box<Page>>>,
}

impl MemoryDisk {
    /// A disk of zeroes.
    pub fn new(size_bytes: u64) -> Self {
        MemoryDisk {
            size_bytes,
            pages: RwLock::default(),
        }
    }

    fn pages(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Box<Page>>> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Box<Page>>> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of `offset..offset + length` by page: page number, first byte in the page, length.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let within = at % PAGE_BYTES;
        let bytes = (PAGE_BYTES - within).min(end - at);
        let part = (at / PAGE_BYTES, within as usize, bytes as usize);
        at += bytes;
        (bytes > 0).then_some(part)
    })
}

impl Export for MemoryDisk {
    fn size(&self) -> u64 {
        self.size_bytes
    }

    fn features(&self) -> Features {
        Features {
            writable: true,
            trim: true,
            multi_conn: true,
            ..Features::default()
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        let mut holes = Holes::default();
        self.read_sparse(offset, buffer, &mut holes)?;
        holes.fill_shorter_than(usize::MAX, buffer);
        Ok(())
    }

    fn read_sparse(
        &self,
        offset: u64,
        buffer: &mut [u8],
        holes: &mut Holes,
    ) -> Result<(), ExportError> {
        let pages = self.pages();
        let mut done = 0;
        for (page, within, bytes) in parts(offset, buffer.len() as u64) {
            let part = done..done + bytes;
            match pages.get(&page) {
                Some(page) => buffer[part].copy_from_slice(&page[within..within + bytes]),
                None => holes.push(part),
            }
            done += bytes;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let mut pages = self.pages_mut();
        let mut done = 0;
        for (page, within, bytes) in parts(offset, data.len() as u64) {
            let page = pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE_BYTES as usize]));
            page[within..within + bytes].copy_from_slice(&data[done..done + bytes]);
            done += bytes;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), ExportError> {
        if mode.keep_allocated {
            if mode.fast_only {
                return Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into());
            }
            for (page, within, bytes) in parts(offset, length) {
                let zeroes = [0; PAGE_BYTES as usize];
                self.write(page * PAGE_BYTES + within as u64, &zeroes[..bytes])?;
            }
            return Ok(());
        }
        let mut pages = self.pages_mut();
        let whole = offset.div_ceil(PAGE_BYTES)..(offset + length) / PAGE_BYTES;
        if whole.start < whole.end {
            let inside: Vec<u64> = pages.range(whole).map(|(&page, _)| page).collect();
            for page in inside {
                pages.remove(&page);
            }
        }
        for (page, within, bytes) in [parts(offset, length).next(), parts(offset, length).last()]
            .into_iter()
            .flatten()
        {
            if let Some(page) = pages.get_mut(&page) {
                page[within..within + bytes].fill(0);
            }
        }
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let mode = ZeroMode {
            keep_allocated: false,
            fast_only: false,
        };
        self.write_zeroes(offset, length, mode)
    }

    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        let pages = self.pages();
        let end = offset + length;
        let mut at = offset;
        for (&page, _) in pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)) {
            let start = (page * PAGE_BYTES).max(at);
            let stop = ((page + 1) * PAGE_BYTES).min(end);
            extents.push(start - at, HOLE | ZERO);
            if !extents.push(stop - start, 0) {
                return Ok(());
            }
            at = stop;
        }
        extents.push(end - at, HOLE | ZERO);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u8),
        Zero { keep_allocated: bool },
        Trim,
    }

    fn any_step() -> impl Strategy<Value = (u64, u64, Step)> {
        let step = prop_oneof![
            (1u8..).prop_map(Step::Write),
            any::<bool>().prop_map(|keep_allocated| Step::Zero { keep_allocated }),
            Just(Step::Trim),
        ];
        (0u64..40_000, 0u64..20_000, step)
    }

    proptest! {
        #[test]
        fn a_memory_disk_is_a_plain_array_of_bytes(
            steps in prop::collection::vec(any_step(), 1..20),
        ) {
            let disk = MemoryDisk::new(60_000);
            let mut model = vec![0u8; 60_000];
            for (offset, length, step) in steps {
                let range = offset as usize..(offset + length) as usize;
                match step {
                    Step::Write(byte) => {
                        model[range.clone()].fill(byte);
                        disk.write(offset, &model[range]).expect("written");
                    }
                    Step::Zero { keep_allocated } => {
                        model[range].fill(0);
                        let mode = ZeroMode { keep_allocated, fast_only: false };
                        disk.write_zeroes(offset, length, mode).expect("zeroed");
                    }
                    Step::Trim => {
                        model[range].fill(0);
                        disk.trim(offset, length).expect("trimmed");
                    }
                }
                let mut found = vec![0xee; 60_000];
                disk.read(0, &mut found).expect("read");
                prop_assert!(found == model);
            }
        }
    }
}
