//! Reading a pack whole, once: the checksum of the file and the content of every record in one pass.
//!
//! The checksum alone is not enough, since it may have been made over bytes that were wrong already;
//! the records alone are not enough, since header and table belong to the pack too. Both are read
//! from the same bytes in memory, so that the medium is asked for each byte once.

use super::pack::{FinishedPack, PACK_HEADER_BYTES, PackEntry, TRAILER_BYTES, read_table};
use super::record;
use crate::keys::{Checksum, Keys};
use crate::storage::{ObjectName, Storage};
use crate::{Error, PackId, Result};

/// Bytes read at once; one record more at most.
const STEP: u64 = 1 << 20;

/// Bytes of the trailer that the checksum of the whole file covers.
const TRAILER_COVERED: usize = 40;

/// A pack whose header and table are good, and what the rest of it is worth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// What its table says.
    pub pack: FinishedPack,
    /// Records that cannot be read or are not what the table calls them, in order.
    pub bad: Vec<PackEntry>,
    /// Whether the checksum of the whole file is right.
    pub checksum_holds: bool,
}

impl Inspection {
    /// Whether every byte is as it was written.
    pub fn is_sound(&self) -> bool {
        self.bad.is_empty() && self.checksum_holds
    }
}

/// Reads and verifies all of a pack. [`Error::Corrupt`] when header or table cannot be relied on;
/// then [`walk`](super::walk::walk) finds the records.
pub fn inspect(storage: &dyn Storage, id: PackId, keys: &Keys) -> Result<Inspection> {
    let pack = read_table(storage, id, keys)?;
    let mut pass = Pass {
        storage,
        name: ObjectName::Pack(id),
        keys,
        whole: keys.checksum(),
        checksum_holds: true,
        bad: Vec::new(),
    };
    pass.cover(0, PACK_HEADER_BYTES as u64)?;
    let mut rest = &pack.entries[..];
    while !rest.is_empty() {
        let start = rest[0].offset;
        let few = rest.partition_point(|entry| u64::from(entry.offset - start) < STEP);
        let (now, later) = rest.split_at(few);
        pass.records(now)?;
        rest = later;
    }
    let covered = pack.bytes - (TRAILER_BYTES - TRAILER_COVERED) as u64;
    pass.cover(pack.records_end(), covered)?;
    let mut stored = [0; 32];
    let computed = pass.whole.full();
    let readable = pass.read(covered, &mut stored)?;
    Ok(Inspection {
        checksum_holds: pass.checksum_holds && readable && stored == computed,
        bad: pass.bad,
        pack,
    })
}

struct Pass<'a> {
    storage: &'a dyn Storage,
    name: ObjectName,
    keys: &'a Keys,
    whole: Checksum,
    checksum_holds: bool,
    bad: Vec<PackEntry>,
}

impl Pass<'_> {
    /// Whether the medium gives the bytes. Only a pack that has gone is an error.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        match self.storage.read_at(&self.name, offset, buffer) {
            Ok(()) => Ok(true),
            Err(Error::Corrupt { .. } | Error::Io { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds `from..to` to the checksum.
    fn cover(&mut self, from: u64, to: u64) -> Result<()> {
        let mut buffer = vec![0; STEP.min(to - from) as usize];
        let mut at = from;
        while at < to {
            let len = buffer.len().min((to - at) as usize);
            if !self.read(at, &mut buffer[..len])? {
                self.checksum_holds = false;
                return Ok(());
            }
            self.whole.update(&buffer[..len]);
            at += len as u64;
        }
        Ok(())
    }

    /// Verifies neighbouring records.
    fn records(&mut self, entries: &[PackEntry]) -> Result<()> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(());
        };
        let mut bytes = vec![0; (last.offset + last.len - first.offset) as usize];
        if self.read(first.offset.into(), &mut bytes)? {
            self.whole.update(&bytes);
            for entry in entries {
                let from = (entry.offset - first.offset) as usize;
                self.record(entry, &bytes[from..from + entry.len as usize]);
            }
            return Ok(());
        }
        // One sector that cannot be read costs no more than the record it belongs to.
        self.checksum_holds = false;
        for entry in entries {
            let sealed = &mut bytes[..entry.len as usize];
            if self.read(entry.offset.into(), sealed)? {
                let sealed = &*sealed;
                if record::open(self.keys, entry.kind, entry.id, sealed).is_ok() {
                    continue;
                }
            }
            self.bad.push(*entry);
        }
        Ok(())
    }

    fn record(&mut self, entry: &PackEntry, sealed: &[u8]) {
        if record::open(self.keys, entry.kind, entry.id, sealed).is_err() {
            self.bad.push(*entry);
        }
    }
}
