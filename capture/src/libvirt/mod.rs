//! The calls of libvirt that a capture needs, with typed errors.
//!
//! `virt` covers connections, domains and networks; the backup, checkpoint, job and freeze calls
//! are in [`calls`], the only unsafe code of this crate.

mod calls;
mod error;

use std::sync::{Arc, PoisonError, RwLock};

use virt::connect::Connect;
use virt::domain::{
    Domain, DomainPausedReason, DomainState, DomainStateReason, DomainStateReasonEnum,
};
use virt_sys as sys;

pub use calls::{block_job, disks_without_space, processor_times, pull_disk, stop_block_job};
pub use error::{ErrorKind, LibvirtError};

/// The result of a libvirt call.
pub(crate) type CallResult<T> = Result<T, LibvirtError>;

/// A domain and the calls on it. Clones share the connection, also a [renewed](Self::renew) one.
#[derive(Clone)]
pub(crate) struct DomainHandle(Arc<RwLock<Domain>>);

/// What a domain is doing, as far as a backup cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// The guest runs.
    Running,
    /// QEMU is there, the guest stands still.
    Paused,
    /// Paused by QEMU because the guest's I/O failed.
    PausedByIoError,
    /// QEMU is about to end.
    Stopping,
    /// There is no QEMU.
    ShutOff,
}

/// A job on a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    None,
    Backup,
    /// The number of libvirt's `virDomainJobOperation`.
    Other(i32),
}

impl Job {
    /// The job in words.
    pub(crate) fn describe(self) -> String {
        let name = match self {
            Self::None => "no job",
            Self::Backup => "a backup",
            Self::Other(1) => "a start",
            Self::Other(2) => "a save",
            Self::Other(3) => "a restore",
            Self::Other(4 | 5) => "a migration",
            Self::Other(6) => "a snapshot",
            Self::Other(7) => "a snapshot revert",
            Self::Other(8) => "a memory dump",
            Self::Other(10) => "a snapshot deletion",
            Self::Other(number) => return format!("job operation {number}"),
        };
        name.into()
    }
}

/// A job on one disk, in units of its own: mostly bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// How much is done.
    pub done: u64,
    /// How much there is to do. It may grow.
    pub total: u64,
}

/// Which description of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum XmlKind {
    /// As it runs now (as it would start, when shut off).
    Live,
    /// As it will start next.
    Inactive,
}

impl DomainHandle {
    pub(crate) fn new(domain: Domain) -> Self {
        Self(Arc::new(RwLock::new(domain)))
    }

    /// The domain on the connection there is now. To be kept until the error of a call has been
    /// looked at: giving up a reference clears it.
    fn now(&self) -> Domain {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Connects again if the daemon has closed the connection, as it does when it is restarted.
    /// Returns whether it had to. A connection that is lost shows only once a call has failed.
    pub(crate) fn renew(&self, uri: &str) -> CallResult<bool> {
        let domain = self.now();
        if domain.connect()?.is_alive()? {
            return Ok(false);
        }
        let uuid = domain.uuid_string()?;
        let connection = Connect::open(Some(uri))?;
        let found = connection.lookup_domain_by_uuid_string(&uuid)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(true)
    }

    pub(crate) fn name(&self) -> CallResult<String> {
        Ok(self.now().name()?)
    }

    pub(crate) fn uuid(&self) -> CallResult<String> {
        Ok(self.now().uuid_string()?)
    }

    /// The number of a running domain.
    pub(crate) fn id(&self) -> Option<u32> {
        self.now().id()
    }

    /// With what a restore needs: passwords are part of it.
    pub(crate) fn xml(&self, kind: XmlKind) -> CallResult<String> {
        let inactive = match kind {
            XmlKind::Live => 0,
            XmlKind::Inactive => sys::VIR_DOMAIN_XML_INACTIVE,
        };
        Ok(self.now().xml_desc(inactive | sys::VIR_DOMAIN_XML_SECURE)?)
    }

    pub(crate) fn state(&self) -> CallResult<RunState> {
        let (state, reason) = self.now().state()?;
        let io_error = matches!(
            reason,
            DomainStateReasonEnum::Known(DomainStateReason::Paused(paused))
                if paused.is(DomainPausedReason::IOError)
        );
        Ok(match state.known() {
            Some(DomainState::Running | DomainState::Blocked) => RunState::Running,
            Some(DomainState::Paused) if io_error => RunState::PausedByIoError,
            Some(DomainState::Shutdown) => RunState::Stopping,
            Some(DomainState::Shutoff) => RunState::ShutOff,
            Some(DomainState::Crashed) if !self.now().is_active()? => RunState::ShutOff,
            // Suspended, crashed but kept, and whatever comes: QEMU is there.
            _ if self.now().is_active()? => RunState::Paused,
            _ => RunState::ShutOff,
        })
    }

    /// Capacity of a disk in bytes; of a running or a shut-off domain.
    pub(crate) fn capacity(&self, target: &str) -> CallResult<u64> {
        Ok(self.now().block_info(target, 0)?.capacity)
    }

    pub(crate) fn resume(&self) -> CallResult<()> {
        Ok(self.now().resume().map(drop)?)
    }
}
