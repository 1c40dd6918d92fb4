//! An index in memory: a valid one, and one whose pages were tampered with.
//!
//! redb keeps a tree of pages of 4 KiB below a header. Nothing checks a page when it is read, so an edit of
//! one reaches whatever trusts it; the two commit slots in the header have checksums, which
//! [`IndexTampering`] puts right.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arbitrary::Arbitrary;
use redb::StorageBackend;
use virtkeep_repo::format::pack::{FinishedPack, PackEntry};
use virtkeep_repo::index::{Held, Identity, Index, IndexFiles, IndexLock};
use virtkeep_repo::{LeaseId, PackId, PackKind, PointId, RawId, RecordKind, RepoId, Result};
use xxhash_rust::xxh3::xxh3_128;

/// Whose index it is.
pub const IDENTITY: Identity = Identity {
    repo: RepoId::from_bytes([0xab; 16]),
    owner: 1,
};

const PAGE_BYTES: usize = 4096;
/// The two commit slots of the header, and the part of each that its checksum covers.
const SLOTS: [usize; 2] = [64, 192];
const SLOT_COVERED_BYTES: usize = 112;

/// Changes to the pages of the valid index that are in use.
#[derive(Arbitrary, Debug)]
pub struct IndexTampering {
    edits: Vec<Edit>,
    mend: bool,
    cut: Option<u32>,
}

#[derive(Arbitrary, Debug)]
struct Edit {
    page: u8,
    at: u16,
    change: Change,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Bytes(Vec<u8>),
    Number(u32),
    /// The number of a page as redb writes it: which, and how large as a power of two.
    PageNumber {
        page: u16,
        order: u8,
    },
    /// This page is another one.
    Copy(u8),
}

impl IndexTampering {
    /// The valid index after all changes.
    pub fn apply(&self) -> Vec<u8> {
        let valid = valid();
        let mut file = valid.file.clone();
        let start = |page: u8| valid.used[usize::from(page) % valid.used.len()] * PAGE_BYTES;
        for Edit { page, at, change } in &self.edits {
            let at = start(*page) + usize::from(*at) % PAGE_BYTES;
            let number;
            let bytes = match change {
                Change::Bytes(bytes) => bytes.as_slice(),
                Change::Number(value) => {
                    number = u64::from(*value).to_le_bytes();
                    &number[..4]
                }
                Change::PageNumber { page, order } => {
                    number = (u64::from(*page) | u64::from(order % 32) << 59).to_le_bytes();
                    &number
                }
                Change::Copy(from) => {
                    let (from, to) = (start(*from), start(*page));
                    file.copy_within(from..from + PAGE_BYTES, to);
                    continue;
                }
            };
            for (place, byte) in file[at..].iter_mut().zip(bytes) {
                *place = *byte;
            }
        }
        if self.mend {
            mend(&mut file);
        }
        if let Some(cut) = self.cut {
            file.truncate(cut as usize % (file.len() + 1));
        }
        file
    }
}

fn mend(file: &mut [u8]) {
    for slot in SLOTS {
        let (covered, checksum) = file[slot..slot + 128].split_at_mut(SLOT_COVERED_BYTES);
        checksum.copy_from_slice(&xxh3_128(covered).to_le_bytes());
    }
}

struct Valid {
    file: Vec<u8>,
    /// Pages that are not all zero.
    used: Vec<usize>,
}

/// Makes the valid index, once.
pub fn prepare() {
    valid();
}

fn valid() -> &'static Valid {
    static VALID: OnceLock<Valid> = OnceLock::new();
    VALID.get_or_init(|| {
        let file = make().expect("memory takes all");
        let mut mended = file.clone();
        mend(&mut mended);
        assert!(mended == file, "redb computes its checksums as we do");
        let used = file
            .chunks(PAGE_BYTES)
            .enumerate()
            .filter_map(|(page, bytes)| bytes.iter().any(|byte| *byte != 0).then_some(page))
            .collect();
        Valid { file, used }
    })
}

fn make() -> Result<Vec<u8>> {
    let files = Arc::new(MemoryFiles::default());
    let index = Index::create(Arc::<MemoryFiles>::clone(&files), Arc::new(Alone), IDENTITY)?;
    index.add_packs(&[pack(1, 0..900), pack(2, 900..1000), pack(3, 1000..1003)])?;
    for n in 0..5 {
        index.put_point(PointId::from_bytes([n; 10]), &[n; 700])?;
    }
    index.write(|edit| {
        edit.want(&[id(7), id(8)])?;
        edit.condemn(&[PackId::from_bytes([2; 16])])
    })?;
    drop(index);
    let file = lock(&files.index).clone();
    Ok(file)
}

/// An id that is in the index for small numbers.
pub fn id(number: u64) -> RawId {
    let mut bytes = [0; 32];
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&spread.to_be_bytes());
    RawId::from_bytes(bytes)
}

/// A pack of these ids.
pub fn pack(name: u8, ids: std::ops::Range<u64>) -> FinishedPack {
    FinishedPack {
        id: PackId::from_bytes([name; 16]),
        kind: PackKind::Data,
        lease: LeaseId::from_bytes([1; 16]),
        bytes: 64 << 20,
        entries: ids
            .zip(0u32..)
            .map(|(number, place)| PackEntry {
                id: id(number),
                kind: RecordKind::Chunk,
                offset: 64 + place * 1000,
                len: 1000,
            })
            .collect(),
    }
}

/// An index and its successor, in memory.
#[derive(Default)]
pub struct MemoryFiles {
    index: Shared,
    new: Shared,
}

type Shared = Arc<Mutex<Vec<u8>>>;

impl MemoryFiles {
    /// With this index.
    pub fn holding(index: Vec<u8>) -> Self {
        Self {
            index: Arc::new(Mutex::new(index)),
            new: Shared::default(),
        }
    }
}

fn lock(file: &Shared) -> MutexGuard<'_, Vec<u8>> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

fn backend(file: &Shared) -> io::Result<Box<dyn StorageBackend>> {
    Ok(Box::new(Backend(Arc::clone(file))))
}

impl IndexFiles for MemoryFiles {
    fn open_read(&self) -> io::Result<Box<dyn StorageBackend>> {
        backend(&self.index)
    }

    fn open_write(&self) -> io::Result<Box<dyn StorageBackend>> {
        backend(&self.index)
    }

    fn start_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        lock(&self.new).clear();
        backend(&self.new)
    }

    fn continue_new(&self) -> io::Result<Box<dyn StorageBackend>> {
        backend(&self.new)
    }

    fn publish_new(&self) -> io::Result<()> {
        *lock(&self.index) = std::mem::take(&mut *lock(&self.new));
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.index).len() as u64)
    }

    fn path(&self) -> &Path {
        Path::new("index.redb")
    }
}

#[derive(Debug)]
struct Backend(Shared);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = lock(&self.0);
        let end = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(out.len())?));
        let bytes = end.and_then(|range| file.get(range));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // As a file system that is full.
        if len > FILE_BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.0).resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut file = lock(&self.0);
        let end = offset.saturating_add(data.len() as u64);
        if end > FILE_BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if end as usize > file.len() {
            file.resize(end as usize, 0);
        }
        file[offset as usize..end as usize].copy_from_slice(data);
        Ok(())
    }
}

/// A real file may be sparse; this one takes the memory.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// No other process can reach what is in memory.
pub struct Alone;

struct Nothing;

impl Held for Nothing {}

impl IndexLock for Alone {
    fn shared(&self) -> Result<Box<dyn Held>> {
        Ok(Box::new(Nothing))
    }

    fn exclusive(&self) -> Result<Box<dyn Held>> {
        Ok(Box::new(Nothing))
    }
}
