//! The attributes of files: who may read them, and nothing that changes.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};

/// Who may read.
#[derive(Clone, Copy)]
pub(super) struct Access {
    uid: u32,
    gid: u32,
    /// Everybody, or else only the user of the mount.
    all: bool,
}

impl Access {
    /// Everybody, or else only the user of this process.
    pub(super) fn new(all: bool) -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            all,
        }
    }

    pub(super) fn directory(self, changed: SystemTime) -> FileAttr {
        let perm = if self.all { 0o555 } else { 0o500 };
        self.attr(FileType::Directory, perm, 0, changed)
    }

    pub(super) fn file(self, len: u64, changed: SystemTime) -> FileAttr {
        let perm = if self.all { 0o444 } else { 0o400 };
        self.attr(FileType::RegularFile, perm, len, changed)
    }

    pub(super) fn link(self, target: &str, changed: SystemTime) -> FileAttr {
        self.attr(FileType::Symlink, 0o777, target.len() as u64, changed)
    }

    fn attr(self, kind: FileType, perm: u16, size: u64, changed: SystemTime) -> FileAttr {
        FileAttr {
            // Set when the number is known.
            ino: INodeNo::ROOT,
            size,
            // One less than full: programs such as `cp` ask for holes only where there may be some.
            blocks: size.div_ceil(512).saturating_sub(1),
            atime: changed,
            mtime: changed,
            ctime: changed,
            crtime: changed,
            kind,
            perm,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
