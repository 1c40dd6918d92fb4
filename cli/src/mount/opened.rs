//! What is open: a disk, or a part of one, is held by a reader lease as long as it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{Errno, FileHandle, FileType, INodeNo};
use nbd_server::Export as _;

use crate::serve::disk::OpenDisk;

/// Everything that is open.
#[derive(Default)]
pub(crate) struct OpenFiles {
    by_handle: Mutex<HashMap<u64, Arc<Opened>>>,
    fewer: Condvar,
    handles: AtomicU64,
}

/// Something that is open.
pub(super) enum Opened {
    Directory(Vec<(INodeNo, FileType, String)>),
    Content(Vec<u8>),
    Disk {
        disk: Arc<OpenDisk>,
        /// First byte on the disk.
        start: u64,
        /// Bytes.
        len: u64,
    },
}

impl OpenFiles {
    pub(super) fn get(&self, handle: FileHandle) -> Result<Arc<Opened>, Errno> {
        self.lock().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn insert(&self, opened: Opened) -> FileHandle {
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(handle, Arc::new(opened));
        FileHandle(handle)
    }

    pub(super) fn remove(&self, handle: FileHandle) {
        // Closing a disk may take a moment: not under the lock.
        let closed = self.lock().remove(&handle.0);
        drop(closed);
        self.fewer.notify_all();
    }

    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut *self.lock());
        drop(closed);
        self.fewer.notify_all();
    }

    /// Waits until nothing is open. False if something still is after that time.
    pub(crate) fn wait_until_none(&self, patience: Duration) -> bool {
        let waited = self
            .fewer
            .wait_timeout_while(self.lock(), patience, |open| !open.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Opened>>> {
        self.by_handle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    /// At most `size` bytes from `offset` on: fewer only at the end.
    pub(super) fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        match self {
            Self::Directory(_) => Err(Errno::EISDIR),
            Self::Content(content) => {
                let start = usize::try_from(offset).map_or(content.len(), |o| o.min(content.len()));
                let end = start.saturating_add(size).min(content.len());
                Ok(content[start..end].to_vec())
            }
            Self::Disk { disk, start, len } => {
                let rest = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
                let mut buffer = vec![0; size.min(rest)];
                if !buffer.is_empty() {
                    disk.read(start + offset, &mut buffer)
                        .map_err(|_| Errno::EIO)?;
                }
                Ok(buffer)
            }
        }
    }

    /// Where data, or else a hole, is next from `offset` on, so that programs copy sparsely.
    pub(super) fn seek(&self, offset: u64, data: bool) -> Result<u64, Errno> {
        let len = match self {
            Self::Directory(_) => return Err(Errno::EISDIR),
            Self::Content(content) => content.len() as u64,
            Self::Disk { len, .. } => *len,
        };
        if offset >= len {
            return Err(Errno::ENXIO);
        }
        match self {
            Self::Disk { disk, start, len } => {
                let found = disk
                    .next(start + offset..start + len, data)
                    .map_err(|_| Errno::EIO)?;
                match found {
                    Some(at) => Ok(at - start),
                    // There is always a hole at the end.
                    None if data => Err(Errno::ENXIO),
                    None => Ok(*len),
                }
            }
            _ => Ok(if data { offset } else { len }),
        }
    }
}
