//! What kind of image a file is, told by its bytes.
//!
//! Taking an image of another format for a raw disk would back up the container instead of the
//! disk in it, and nobody would notice before the restore. The signatures are those of QEMU's
//! drivers (`block/*.c`).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use crate::error::{Error, Result};

/// Signatures of formats that virtkeep does not read, at an offset from the start.
const FOREIGN: &[(u64, &[u8], &str)] = &[
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"conectix", "VHD"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
];
/// A VHD of fixed size is a raw disk with a signature in its last sector.
const VHD_FOOTER_BYTES: u64 = 512;

/// Opens what is to be an image; only regular files and block devices that hold anything are.
pub(crate) fn open(path: &Path) -> Result<File> {
    let unfit = |why: &str| Error::Unfit {
        disk: path.display().to_string(),
        why: why.into(),
    };
    // Before opening: opening a pipe waits for a writer.
    let kind = std::fs::metadata(path)
        .map_err(Error::file("open", path))?
        .file_type();
    if kind.is_dir() {
        return Err(unfit("it is a directory"));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(unfit("it is neither a file nor a block device"));
    }
    let file = File::open(path).map_err(Error::file("open", path))?;
    if size(&file).map_err(Error::file("measure", path))? == 0 {
        return Err(unfit("it is empty"));
    }
    Ok(file)
}

/// `qcow2` if the image starts like one, else `raw`.
///
/// # Errors
/// [`Error::Unfit`] for an image of another known format.
pub(crate) fn detect(file: &File, path: &Path) -> Result<&'static str> {
    let read = |offset, len| read_up_to(file, offset, len).map_err(Error::file("read", path));
    if read(0, 4)? == b"QFI\xfb" {
        return Ok("qcow2");
    }
    let end = size(file).map_err(Error::file("measure", path))?;
    let footer = (
        end.saturating_sub(VHD_FOOTER_BYTES),
        &b"conectix"[..],
        "VHD",
    );
    for (offset, signature, name) in FOREIGN.iter().chain([&footer]) {
        if read(*offset, signature.len())? == *signature {
            return Err(Error::Unfit {
                disk: path.display().to_string(),
                why: format!(
                    "it looks like a {name} image: convert it with `qemu-img convert`, or pass \
                     --image-format raw to keep its bytes as they are"
                ),
            });
        }
    }
    Ok("raw")
}

/// Metadata knows no size of block devices.
fn size(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

/// The bytes at an offset, fewer at the end of the file.
fn read_up_to(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        let detected = open(path).and_then(|file| detect(&file, path).map(str::to_owned));
        detected.unwrap_err().to_string()
    }

    #[test]
    fn images_of_foreign_formats_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (offset, signature, name) in FOREIGN {
            let file = File::create(&path).unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(signature, *offset).unwrap();
            assert!(refused(&path).contains(name), "{}", refused(&path));
        }
        let file = File::create(&path).unwrap();
        file.write_all_at(b"conectix", (1 << 20) - 512).unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(refused(&path).contains("VHD"), "{}", refused(&path));
    }

    #[test]
    fn what_is_no_image_is_refused_and_short_files_are_raw() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "").unwrap();
        assert!(refused(&path).contains("it is empty"));
        assert!(refused(dir.path()).contains("it is a directory"));
        assert!(refused(Path::new("/dev/null")).contains("neither a file nor a block device"));
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(detect(&open(&path).unwrap(), &path).unwrap(), "raw");
        std::fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
        assert_eq!(detect(&open(&path).unwrap(), &path).unwrap(), "qcow2");
    }
}
