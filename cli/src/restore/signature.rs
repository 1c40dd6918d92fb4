//! What is on a target before it is overwritten, for the question whether to go on.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::output::shown;

/// How much of a disk is looked at: file systems, partition tables and volume managers name
/// themselves here, though some add copies further on.
pub(crate) const HEAD_BYTES: usize = 1 << 20;

/// A description of what begins with `head` on a disk of `size` bytes, such as "an ext4 file
/// system labelled data". `blkid` knows them all; without it only emptiness is recognised.
pub(crate) fn describe(head: &[u8], size: u64) -> String {
    match probe(head, size) {
        Some(found) => found,
        None if head.iter().all(|byte| *byte == 0) => {
            "nothing recognised, its beginning is zero".to_owned()
        }
        None => "data of an unknown kind".to_owned(),
    }
}

fn probe(head: &[u8], size: u64) -> Option<String> {
    let copy = File::from(memfd_create("virtkeep-head", MemfdFlags::empty()).ok()?);
    copy.set_len(size.max(head.len() as u64)).ok()?;
    copy.write_all_at(head, 0).ok()?;
    let path = PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        copy.as_raw_fd()
    ));
    let output = blkid(path.as_os_str())?;
    let text = String::from_utf8_lossy(&output);
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.filter(|value| !value.is_empty()).map(shown)
    };
    let label = value("LABEL")
        .map(|label| format!(" labelled {label}"))
        .unwrap_or_default();
    match (value("TYPE"), value("PTTYPE")) {
        (Some(kind), _) => Some(format!("{kind}{label}")),
        (None, Some(table)) => Some(format!("a {table} partition table")),
        (None, None) => None,
    }
}

fn blkid(path: &OsStr) -> Option<Vec<u8>> {
    // It is not on the PATH of ordinary users everywhere.
    ["blkid", "/sbin/blkid", "/usr/sbin/blkid"]
        .into_iter()
        .find_map(|program| {
            Command::new(program)
                .args(["--probe", "--output", "export"])
                .arg(path)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output()
                .ok()
        })
        .map(|output| output.stdout)
}
