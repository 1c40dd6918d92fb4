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

mod checkpoints;
mod descriptors;
mod domain_xml;
mod error;
mod event;
mod file_source;
mod files;
mod flight;
mod format;
mod freeze;
mod host;
mod image;
mod image_lock;
mod job;
mod libvirt;
mod live;
mod names;
mod nbd_source;
mod offline;
mod options;
mod overlay;
mod places;
mod plan;
mod pull;
mod qemu_img;
mod release;
mod running;
mod stop;

use std::sync::Arc;

use virtkeep_repo::{Cancel, Point, Repository};

pub use descriptors::keep_from_programs;
pub use error::{Error, Result};
pub use event::{Event, NoObserver, Observer};
pub use freeze::thaw_when_orphaned;
pub use host::{DomainRef, Host, is_remote};
pub use image::{ImageSource, backup_image, backup_nbd};
pub use image_lock::check_unused;
pub use libvirt::{
    BlockJob, ErrorKind, LibvirtError, RunState, block_job, disks_without_space, processor_times,
    pull_disk, stop_block_job,
};
pub use names::escape as escape_xml;
pub use options::{Options, ScratchReserve};
pub use places::space;
pub use plan::{DiskPlan, FreezePlan, LeftOut, Plan, ScratchPlan, plan};
pub use release::release;

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
    let _lock = repo.lock_domain(domain.uuid())?;
    let journal = event::Journal::new(observer);
    let capture = live::Capture {
        host,
        domain,
        repo,
        options,
        journal: &journal,
        stop: Arc::new(stop::Stop::new(cancel, options.stall_limit)),
        names: names::Names::new(repo, domain.uuid()),
    };
    match domain.settled_state(cancel)? {
        RunState::ShutOff => offline::backup(&capture),
        _ => live::backup(&capture),
    }
}
