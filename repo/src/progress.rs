//! How far a backup or restore of one disk has come.

/// Hears how a disk is advancing. Called from several threads.
pub trait Progress: Send + Sync {
    /// `bytes` more of the disk (by position: read, zero or unchanged alike) are dealt with.
    fn passed(&self, bytes: u64);

    /// `bytes` more were really read from the source (backup) or from packs (restore).
    fn moved(&self, bytes: u64);
}

/// Nobody is watching.
pub struct NoProgress;

impl Progress for NoProgress {
    fn passed(&self, _: u64) {}
    fn moved(&self, _: u64) {}
}
