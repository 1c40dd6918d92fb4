//! Capturing virtual machines: from a libvirt domain, an image at rest or an NBD export to a
//! committed restore point.
//!
//! [`Host::connect`] reaches libvirt, [`Host::domain`] finds a domain, [`plan`] says what a backup
//! of it would do, [`backup`] does it, [`release`] takes our checkpoints off the domain again.
//! [`backup_image`] and [`backup_nbd`] capture what no libvirt knows of.
//!
//! A running domain is captured with a pull-mode backup job of libvirt and a checkpoint made in the
//! same call; its disks are read over NBD. Whatever ends a capture, the guest is thawed, the job
//! ended, and no socket, scratch file or unneeded checkpoint is left; what a killed run leaves, the
//! next one clears. *Fail toward copying more*: a disk is read incrementally only where that is
//! proved to be right.

mod error;
mod event;
mod host;
mod libvirt;
mod options;
mod plan;

use std::path::PathBuf;

use virtkeep_repo::{Cancel, Point, Repository};

pub use error::{Error, Result};
pub use event::{Event, NoObserver, Observer};
pub use host::{DomainRef, Host};
pub use libvirt::{ErrorKind, LibvirtError, RunState};
pub use options::{Options, ScratchReserve};
pub use plan::{DiskPlan, FreezePlan, LeftOut, Plan, ScratchPlan, plan};

/// Backs a domain up: live when it runs or is paused, at rest when it is shut off. When this
/// returns a point, power may fail.
///
/// # Errors
/// On every error no point exists, and the domain is as it was, its earlier checkpoint included.
pub fn backup(
    host: &Host,
    domain: &DomainRef,
    repo: &Repository,
    options: &Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Point> {
    let _ = (host, domain, repo, options, observer, cancel);
    unimplemented!()
}

/// What [`backup_image`] reads.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// A raw or qcow2 file, or a block device.
    pub path: PathBuf,
    /// Its format, `raw` or `qcow2`; told by its first bytes when `None`.
    pub format: Option<String>,
}

/// Backs up an image file or block device that nobody writes to; its disk is called `disk`.
///
/// # Errors
/// [`Error::ImageInUse`] when a running machine has it open.
pub fn backup_image(
    image: &ImageSource,
    name: &str,
    repo: &Repository,
    options: &Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Point> {
    let _ = (image, name, repo, options, observer, cancel);
    unimplemented!()
}

/// Backs up the export at an NBD URI; its disk is called `disk`.
pub fn backup_nbd(
    uri: &str,
    name: &str,
    repo: &Repository,
    options: &Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Point> {
    let _ = (uri, name, repo, options, observer, cancel);
    unimplemented!()
}

/// Takes every checkpoint of this repository off the domain, with their bitmaps. Running or shut
/// off; nobody else's checkpoints are touched. Returns the names of those removed.
pub fn release(
    host: &Host,
    domain: &DomainRef,
    repo: &Repository,
    observer: &dyn Observer,
) -> Result<Vec<String>> {
    let _ = (host, domain, repo, observer);
    unimplemented!()
}

/// The body of the program that [`Options::thaw_guard`] names: waits for the end of standard input
/// and, unless told by then that all is well, thaws the domain.
///
/// # Errors
/// When the domain cannot be reached or thawed.
pub fn thaw_when_orphaned(uri: &str, uuid: &str) -> Result<()> {
    let _ = (uri, uuid);
    unimplemented!()
}
