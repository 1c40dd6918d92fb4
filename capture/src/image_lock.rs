//! QEMU's lock on image files: whether a running machine may write to one.
//!
//! QEMU holds a shared lock on one byte per permission it uses: byte 100 + n stands for permission
//! n, and writing is permission 1 (`block/file-posix.c`: `RAW_LOCK_PERM_BASE`, `BLK_PERM_WRITE`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::{Error, Result};

const WRITE_PERMISSION_BYTE: libc::off_t = 101;

/// Makes sure that no QEMU on this host has an image open for writing.
///
/// # Errors
/// [`Error::ImageInUse`] while one has.
pub fn check_unused(path: &Path) -> Result<()> {
    if is_open_for_writing(path).map_err(Error::file("look at the locks of", path))? {
        return Err(Error::ImageInUse {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Whether a QEMU on this host has the image open for writing.
fn is_open_for_writing(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: WRITE_PERMISSION_BYTE,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the structure, which lives through the call, is the one
    // that this command reads and writes. It only asks; nothing is locked.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
