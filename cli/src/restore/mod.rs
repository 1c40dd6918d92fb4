//! Writing disks of a point to where they are wanted: one file per kind of target.

pub(crate) mod directory;
pub(crate) mod file_names;
pub(crate) mod file_sink;
mod nbd_sink;
pub(crate) mod onto;
mod qcow2;
mod signature;
pub(crate) mod staging;
pub(crate) mod stream;
mod target_device;

use virtkeep_repo::{Cancel, DiskOffset, DiskReader, DiskSink, Error, Progress};

/// Hands the whole disk to `sink`.
fn copy(
    reader: &DiskReader,
    sink: &dyn DiskSink,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(), Error> {
    let end = DiskOffset::ZERO.plus(reader.size());
    let copied = reader.copy_to(DiskOffset::ZERO, end, sink, progress, cancel);
    // A sink that was asked to stop fails too; that it was asked is what matters.
    cancel.check()?;
    copied
}
