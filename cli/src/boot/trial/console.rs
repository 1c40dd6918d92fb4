//! Waiting for a text on the serial console of a guest on trial, which libvirt writes to a file.
//!
//! A guest may say very much. So what was read is given back to the file system, no more than a little is kept in
//! memory, and no look at it takes for ever. virtlogd, where it writes the file, begins another one under the same name
//! from time to time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

use crate::output::size;

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// How much is read at one look while the guest runs: it may write as fast as we read.
const LOOK_BYTES_MAX: u64 = 16 << 20;
/// How large the file may become where nothing of it can be given back.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A text that is waited for.
#[derive(Debug)]
pub(super) struct Console {
    path: PathBuf,
    text: String,
    /// Read as far as `read` tells.
    file: Option<File>,
    read: u64,
    /// The end of what was read: the text may begin in it.
    tail: Vec<u8>,
}

impl Console {
    /// Nothing has been read yet; the file need not be there.
    pub(super) fn new(path: PathBuf, text: &str) -> Self {
        Self {
            path,
            text: text.to_owned(),
            file: None,
            read: 0,
            tail: Vec::new(),
        }
    }

    /// The text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Reads what has been written since; whether the text is in it, or ends in it. Of a guest that `has_ended`, all.
    pub(super) fn says_it(&mut self, has_ended: bool) -> io::Result<bool> {
        let most = if has_ended { u64::MAX } else { LOOK_BYTES_MAX };
        // Asked first: whatever is added to the old one has been by now.
        let is_replaced = self.is_replaced()?;
        if self.read_on(most)? {
            return Ok(true);
        }
        if !is_replaced {
            return Ok(false);
        }
        (self.file, self.read) = (None, 0);
        self.read_on(most)
    }

    /// Whether another file is there by now.
    fn is_replaced(&self) -> io::Result<bool> {
        let (Some(file), Ok(there)) = (&self.file, self.path.metadata()) else {
            return Ok(false);
        };
        let open = file.metadata()?;
        Ok((open.dev(), open.ino()) != (there.dev(), there.ino()))
    }

    fn read_on(&mut self, most: u64) -> io::Result<bool> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match OpenOptions::new().read(true).write(true).open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                file => none.insert(file?),
            },
        };
        let wanted = self.text.as_bytes();
        let mut piece = vec![0; PIECE_BYTES];
        let end = self.read.saturating_add(most);
        while self.read < end {
            let count = file.read(&mut piece)?;
            if count == 0 {
                break;
            }
            self.read += count as u64;
            self.tail.extend_from_slice(&piece[..count]);
            if wanted.is_empty() || self.tail.windows(wanted.len()).any(|part| part == wanted) {
                return Ok(true);
            }
            let kept = self.tail.len().saturating_sub(wanted.len() - 1);
            self.tail.drain(..kept);
        }
        give_back(file, self.read)?;
        Ok(false)
    }
}

/// Frees what a file takes on the disk up to here. It stays as long as it was.
fn give_back(file: &File, read: u64) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if read > 0 && fallocate(file, hole, 0, read).is_err() && read > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "the guest has written {} to it, and the file system cannot give that back",
            size(read)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_text_is_found_also_where_it_was_written_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = Console::new(path.clone(), "login: ");
        assert!(!console.says_it(false).unwrap());
        let mut guest = File::create(&path).unwrap();
        for part in [
            "x".repeat(PIECE_BYTES - 2),
            "lo".to_owned(),
            "gin:".to_owned(),
        ] {
            guest.write_all(part.as_bytes()).unwrap();
            assert!(!console.says_it(false).unwrap());
        }
        guest.write_all(b" \x1b[0m").unwrap();
        assert!(console.says_it(false).unwrap());
    }

    #[test]
    fn what_was_read_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, vec![b'x'; 3 * PIECE_BYTES]).unwrap();
        let mut console = Console::new(path, "login: ");
        assert!(!console.says_it(false).unwrap());
        assert_eq!(console.tail, b"xxxxxx");
    }
    #[test]
    fn a_guest_that_says_very_much_takes_little_space_and_no_look_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = Console::new(path.clone(), "login: ");
        let mut guest = File::create(&path).unwrap();
        let flood = vec![b'x'; 1 << 20];
        for _ in 0..2 * (LOOK_BYTES_MAX >> 20) {
            guest.write_all(&flood).unwrap();
        }
        guest.write_all(b"login: ").unwrap();
        assert!(!console.says_it(false).unwrap());
        assert_eq!(console.read, LOOK_BYTES_MAX);
        let left = guest.metadata().unwrap().blocks() * 512;
        assert!(left <= LOOK_BYTES_MAX + (1 << 20), "{left}");
        assert!(console.says_it(true).unwrap());
    }

    #[test]
    fn what_is_said_goes_on_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = Console::new(path.clone(), "login: ");
        std::fs::write(&path, "boot").unwrap();
        assert!(!console.says_it(false).unwrap());
        let mut old = OpenOptions::new().append(true).open(&path).unwrap();
        old.write_all(b"ing\nlog").unwrap();
        std::fs::rename(&path, dir.path().join("console.0")).unwrap();
        std::fs::write(&path, "in: ").unwrap();
        assert!(console.says_it(false).unwrap());
    }
}
