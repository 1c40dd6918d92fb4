//! Waiting for a text on the serial console of a guest on trial, which libvirt writes to a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// A text that is waited for.
#[derive(Debug)]
pub(super) struct Console {
    path: PathBuf,
    text: String,
    /// Read as far as the guest had written.
    file: Option<File>,
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
            tail: Vec::new(),
        }
    }

    /// The text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Reads what has been written since; whether the text is in it, or ends in it.
    pub(super) fn says_it(&mut self) -> io::Result<bool> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                file => none.insert(file?),
            },
        };
        let wanted = self.text.as_bytes();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(false);
            }
            self.tail.extend_from_slice(&piece[..count]);
            if wanted.is_empty() || self.tail.windows(wanted.len()).any(|part| part == wanted) {
                return Ok(true);
            }
            let kept = self.tail.len().saturating_sub(wanted.len() - 1);
            self.tail.drain(..kept);
        }
    }
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
        assert!(!console.says_it().unwrap());
        let mut guest = File::create(&path).unwrap();
        for part in [
            "x".repeat(PIECE_BYTES - 2),
            "lo".to_owned(),
            "gin:".to_owned(),
        ] {
            guest.write_all(part.as_bytes()).unwrap();
            assert!(!console.says_it().unwrap());
        }
        guest.write_all(b" \x1b[0m").unwrap();
        assert!(console.says_it().unwrap());
    }

    #[test]
    fn what_was_read_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, vec![b'x'; 3 * PIECE_BYTES]).unwrap();
        let mut console = Console::new(path, "login: ");
        assert!(!console.says_it().unwrap());
        assert_eq!(console.tail, b"xxxxxx");
    }
}
