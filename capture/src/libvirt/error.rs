//! What libvirt answers when it refuses.

use virt::error::{Error as VirtError, ErrorNumber};

/// An error of libvirt: what kind, and its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LibvirtError {
    kind: ErrorKind,
    message: String,
}

/// The kinds of refusals that make a difference to a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 1: QEMU or the daemon ran into something.
    Internal,
    /// 8: an argument or flag that this libvirt does not take.
    InvalidArgument,
    /// 9: it was tried and did not work.
    OperationFailed,
    /// 29, 88: this connection or user may not do that.
    Denied,
    /// 42: the domain is gone.
    NoDomain,
    /// 55: not in this state.
    OperationInvalid,
    /// 67: the configuration cannot do that.
    ConfigUnsupported,
    /// 68: could not get at the domain in time.
    Timeout,
    /// 74, 84: not possible with this domain.
    Unsupported,
    /// 86, 112, 113: the guest agent does not answer, or refuses.
    Agent,
    /// 103: no such checkpoint.
    NoCheckpoint,
    /// 104: no backup job.
    NoBackup,
    /// 109: a bitmap is missing or broken.
    CheckpointInconsistent,
    /// Anything else, with libvirt's number.
    Other(u32),
}

impl LibvirtError {
    /// What kind of refusal it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// libvirt's own words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether permission is what lacks.
    pub fn is_denied(&self) -> bool {
        self.kind == ErrorKind::Denied
    }

    /// An error of ours in libvirt's shape: there was no answer in time.
    pub(crate) fn no_answer(limit: std::time::Duration) -> Self {
        Self {
            kind: ErrorKind::Timeout,
            message: format!("no answer within {} s", limit.as_secs()),
        }
    }

    /// An error of ours in libvirt's shape: the argument cannot be passed to C.
    pub(super) fn invalid(message: String) -> Self {
        Self {
            kind: ErrorKind::InvalidArgument,
            message,
        }
    }
}

impl From<VirtError> for LibvirtError {
    fn from(error: VirtError) -> Self {
        let kind = match error.code().known() {
            Some(ErrorNumber::InternalError) => ErrorKind::Internal,
            Some(ErrorNumber::InvalidArg) => ErrorKind::InvalidArgument,
            Some(ErrorNumber::OperationFailed) => ErrorKind::OperationFailed,
            Some(
                ErrorNumber::OperationDenied | ErrorNumber::AccessDenied | ErrorNumber::AuthFailed,
            ) => ErrorKind::Denied,
            Some(ErrorNumber::NoDomain) => ErrorKind::NoDomain,
            Some(ErrorNumber::OperationInvalid) => ErrorKind::OperationInvalid,
            Some(ErrorNumber::ConfigUnsupported) => ErrorKind::ConfigUnsupported,
            Some(ErrorNumber::OperationTimeout) => ErrorKind::Timeout,
            Some(ErrorNumber::OperationUnsupported | ErrorNumber::ArgumentUnsupported) => {
                ErrorKind::Unsupported
            }
            Some(
                ErrorNumber::AgentUnresponsive
                | ErrorNumber::AgentCommandTimeout
                | ErrorNumber::AgentCommandFailed,
            ) => ErrorKind::Agent,
            Some(ErrorNumber::NoDomainCheckpoint) => ErrorKind::NoCheckpoint,
            Some(ErrorNumber::NoDomainBackup) => ErrorKind::NoBackup,
            Some(ErrorNumber::CheckpointInconsistent) => ErrorKind::CheckpointInconsistent,
            _ => ErrorKind::Other(error.code().to_raw()),
        };
        Self {
            kind,
            message: error.message().to_owned(),
        }
    }
}
