//! What the user may choose about a capture.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How a domain or image is to be backed up. The default does the right thing.
#[derive(Clone, Debug)]
pub struct Options {
    /// Read all disks in full, whatever could be proved.
    pub full: bool,
    /// Leave no checkpoint on the domain, not even the one of earlier backups.
    pub no_checkpoint: bool,
    /// Leave out disks that cannot be backed up instead of failing.
    pub skip_unsupported: bool,
    /// Do not ask the guest agent to freeze the file systems.
    pub no_freeze: bool,
    /// Where scratch files go, instead of beside the images.
    pub scratch_dir: Option<PathBuf>,
    /// How much must stay free where scratch files are.
    pub scratch_reserve: ScratchReserve,
    /// Where the socket of the backup job goes, instead of the domain's private directory.
    pub socket_dir: Option<PathBuf>,
    /// A disk whose NBD server answers nothing for so long is given up.
    pub stall_limit: Duration,
    /// A program that thaws the guest should this process be killed during the freeze: run with
    /// these words, it must call [`thaw_when_orphaned`](crate::thaw_when_orphaned) with the two
    /// words that are appended, the libvirt URI and the domain's uuid.
    pub thaw_guard: Option<Vec<OsString>>,
    /// Labels for the point.
    pub tags: Vec<String>,
    /// The command as others who have to wait for it are shown it.
    pub command: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            full: false,
            no_checkpoint: false,
            skip_unsupported: false,
            no_freeze: false,
            scratch_dir: None,
            scratch_reserve: ScratchReserve::default(),
            socket_dir: None,
            stall_limit: Duration::from_secs(60),
            thaw_guard: None,
            tags: Vec::new(),
            command: "backup".into(),
        }
    }
}

/// How much of a file system must stay free: a share of it, within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchReserve {
    /// Percent of the file system's size.
    pub percent: u8,
    /// At least so many bytes.
    pub bytes: u64,
    /// So many bytes at most, unless that is less than `bytes`.
    pub bytes_max: u64,
}

impl Default for ScratchReserve {
    fn default() -> Self {
        Self {
            percent: 5,
            bytes: 2 << 30,
            // It has to outlast what guests write until somebody notices, which does not grow with the file system:
            // at 100 MiB a second this is more than eight minutes.
            bytes_max: 50 << 30,
        }
    }
}

impl ScratchReserve {
    /// Bytes to keep free on a file system of this size.
    pub fn of(&self, size_bytes: u64) -> u64 {
        (size_bytes / 100 * u64::from(self.percent))
            .min(self.bytes_max)
            .max(self.bytes)
    }
}
