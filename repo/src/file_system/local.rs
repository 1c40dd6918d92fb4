//! The file system of this host.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSliceMut, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;
use rustix::fs::{Advice, CWD, RenameFlags};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::{Access, FileSystem, OpenFile};
use crate::lock::{Mode, try_flock};

/// The file system of this host.
#[derive(Clone, Copy, Default, Debug)]
pub struct LocalFileSystem;

impl FileSystem for LocalFileSystem {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn open_index(&self, path: &Path, access: Access) -> io::Result<Box<dyn StorageBackend>> {
        let anew = access == Access::StartAnew;
        let file = OpenOptions::new()
            .read(true)
            .write(access != Access::Read)
            .create(anew)
            .truncate(anew)
            .open(path)?;
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system does not know the flag; a link refuses to replace as well.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(from, to)?;
                fs::remove_file(from)
            }
            renamed => Ok(renamed?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn entries(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

impl OpenFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        let len = buffer.len();
        let buffers = &mut [IoSliceMut::new(buffer)];
        // A file system that cannot tell refuses.
        preadv2(self, buffers, offset, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() > 0)
    }

    fn try_lock(&self) -> io::Result<bool> {
        try_flock(self, Mode::Exclusive)
    }

    fn begin_write_out(&self, offset: u64, len: NonZeroU64) {
        // Linux begins to write out what is dirty.
        let _ = rustix::fs::fadvise(self, offset, Some(len), Advice::DontNeed);
    }
}
