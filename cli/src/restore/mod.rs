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

use virtkeep_repo::{
    Cancel, Disk, DiskOffset, DiskReader, DiskSink, Error, Point, Progress, Repository,
};

/// Opens a disk to restore it whole, or to salvage what can be read of it.
pub(crate) fn open(
    repo: &Repository,
    point: &Point,
    disk: &Disk,
    salvage: bool,
) -> Result<DiskReader, Error> {
    if salvage {
        repo.salvage_disk(point, disk)
    } else {
        repo.read_disk(point, disk)
    }
}

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
