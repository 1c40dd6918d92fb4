//! What kind of file system a repository is on: one that several hosts may share, a read-only one.
//!
//! Locks and renames are only known to work between processes of one host. What cannot be told apart
//! (FUSE: it may be anything) is taken for local.

use std::path::Path;

use crate::{Error, Result};

/// Magic numbers of `statfs(2)` and the name to show, from the kernel's `linux/magic.h` and the
/// headers of the file systems themselves.
const NETWORK: [(u32, &str); 14] = [
    (0x0000_6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0000_517b, "SMB"),
    (0x00c3_6400, "CephFS"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0000_564c, "NCP"),
    (0x0bd0_0bd0, "Lustre"),
    (0x1983_0326, "BeeGFS"),
    (0x7461_636f, "OCFS2, a shared-disk file system"),
    (0x0116_1970, "GFS2, a shared-disk file system"),
];

/// The name of the network or shared-disk file system that holds `path`; none for a local one.
pub(crate) fn network_kind(path: &Path) -> Result<Option<&'static str>> {
    let stat = rustix::fs::statfs(path)
        .map_err(|errno| Error::io("examine the file system of", path)(errno.into()))?;
    // The field is a signed word of the machine's size; the magic numbers fit in 32 bits.
    Ok(name_of(stat.f_type as u32))
}

fn name_of(magic: u32) -> Option<&'static str> {
    NETWORK
        .iter()
        .find(|(known, _)| *known == magic)
        .map(|(_, name)| *name)
}

/// [`Error::NetworkFileSystem`] when `path` is on such a file system.
pub(crate) fn refuse_network(path: &Path) -> Result<()> {
    match network_kind(path)? {
        None => Ok(()),
        Some(kind) => Err(Error::NetworkFileSystem {
            path: path.to_owned(),
            kind,
        }),
    }
}

/// Whether the file system is mounted read-only: then nobody on this host can change the repository,
/// and no lock is needed.
pub(crate) fn is_read_only(path: &Path) -> Result<bool> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|errno| Error::io("examine the file system of", path)(errno.into()))?;
    Ok(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_directory_is_accepted_and_the_network_is_known_by_its_magic() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(network_kind(dir.path()).unwrap(), None);
        refuse_network(dir.path()).unwrap();
        assert!(!is_read_only(dir.path()).unwrap());
        assert_eq!(name_of(0x6969), Some("NFS"));
        assert_eq!(name_of(0xff53_4d42), Some("CIFS"));
        assert_eq!(name_of(0xef53), None, "ext4 is local");
    }
}
