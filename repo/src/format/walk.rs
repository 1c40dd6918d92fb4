//! Reading a pack front to back without its table: for repair, and for whoever has nothing else.
//!
//! Invariants: every record handed out is verified down to its content, so bytes inside a chunk
//! that look like a record can name nothing but what they are; damage costs the records it touches
//! and no others, because the walk goes on at the next header that stands up to its checksum.

use super::pack::{PACK_BYTES_MAX, PACK_HEADER_BYTES, PackEntry, read_table};
use super::record::{HEADER_BYTES_MAX, Header, RECORD_MAGIC, open_unknown};
use crate::keys::Keys;
use crate::storage::{ObjectName, Storage};
use crate::{Error, PackId, Result};

/// Bytes looked through at once for the next record.
const SCAN_BYTES: u64 = 64 << 10;

/// What lies at one place of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// A whole record whose content has the id it bears.
    Record {
        /// Where and what it is.
        entry: PackEntry,
        /// Its bytes, as they can be appended to another pack.
        sealed: &'a [u8],
    },
    /// Bytes that are no record. A table of contents that cannot be read shows up here, too.
    Damage {
        /// First byte in the pack.
        offset: u32,
        /// Number of bytes.
        len: u32,
    },
}

/// Tells `visit` of everything between the header and the table of a pack, in order. Ends early
/// with the first error of storage or of `visit`; damage is no error.
pub fn walk(
    storage: &dyn Storage,
    id: PackId,
    keys: &Keys,
    visit: &mut dyn FnMut(Found<'_>) -> Result<()>,
) -> Result<()> {
    let pack = Pack::open(storage, id, keys)?;
    let mut at = PACK_HEADER_BYTES as u64;
    let mut damage_from = None;
    while at < pack.end {
        let Some((entry, sealed)) = pack.record_at(at)? else {
            damage_from.get_or_insert(at);
            at = pack.next_magic(at + 1)?;
            continue;
        };
        if let Some(from) = damage_from.take() {
            visit(damage(from, at))?;
        }
        at += sealed.len() as u64;
        visit(Found::Record {
            entry,
            sealed: &sealed,
        })?;
    }
    match damage_from {
        Some(from) => visit(damage(from, pack.end)),
        None => Ok(()),
    }
}

fn damage(from: u64, to: u64) -> Found<'static> {
    Found::Damage {
        offset: from as u32,
        len: (to - from) as u32,
    }
}

struct Pack<'a> {
    storage: &'a dyn Storage,
    name: ObjectName,
    keys: &'a Keys,
    /// Where the records end: at the table if it can be trusted, else at the end of the file.
    end: u64,
}

impl<'a> Pack<'a> {
    fn open(storage: &'a dyn Storage, id: PackId, keys: &'a Keys) -> Result<Self> {
        let name = ObjectName::Pack(id);
        let end = match read_table(storage, id, keys) {
            Ok(pack) => pack.records_end(),
            Err(Error::Corrupt { .. }) => {
                let len = storage.len(&name)?.unwrap_or(0);
                len.min(PACK_BYTES_MAX)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            storage,
            name,
            keys,
            end,
        })
    }

    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len.min(self.end - at) as usize];
        self.storage.read_at(&self.name, at, &mut bytes)?;
        Ok(bytes)
    }

    fn record_at(&self, at: u64) -> Result<Option<(PackEntry, Vec<u8>)>> {
        let head = self.read(at, HEADER_BYTES_MAX as u64)?;
        let Ok(header) = Header::decode(&head, self.keys) else {
            return Ok(None);
        };
        let sealed = self.read(at, header.record_len() as u64)?;
        let entry = PackEntry {
            id: header.id,
            kind: header.kind,
            offset: at as u32,
            len: header.record_len() as u32,
        };
        let verified = open_unknown(&sealed, self.keys).is_ok();
        Ok(verified.then_some((entry, sealed)))
    }

    /// Where the next bytes stand that may begin a record; the end if there are none.
    fn next_magic(&self, mut from: u64) -> Result<u64> {
        let magic_bytes = RECORD_MAGIC.len() as u64;
        while from + magic_bytes <= self.end {
            let window = self.read(from, SCAN_BYTES)?;
            let found = window
                .windows(RECORD_MAGIC.len())
                .position(|bytes| bytes == RECORD_MAGIC);
            if let Some(position) = found {
                return Ok(from + position as u64);
            }
            // A magic may straddle two windows.
            from += window.len() as u64 - (magic_bytes - 1);
        }
        Ok(self.end)
    }
}
