//! Why a capture failed, with a stable code for programs and a way out for people.

use std::path::PathBuf;
use std::time::Duration;

use crate::libvirt::LibvirtError;

/// The result of a capture call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a domain or image could not be backed up. Every message names the domain, disk or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at the libvirt URI.
    #[error(
        "cannot reach libvirt at {uri}: {source}. Is the daemon running, and may this user connect to it?"
    )]
    NoDaemon {
        /// Where it was looked for.
        uri: String,
        /// What libvirt said.
        source: LibvirtError,
    },

    /// libvirt or QEMU is older than backups need.
    #[error("{program} {found} is too old: backups need {needed} or newer")]
    TooOld {
        /// `libvirt` or `QEMU`.
        program: &'static str,
        /// The version that answered.
        found: String,
        /// The oldest one that works.
        needed: String,
    },

    /// The domains run on another host than this program.
    #[error("{uri} is on another host: run virtkeep on the host that runs the domain")]
    RemoteHost {
        /// The URI in question.
        uri: String,
    },

    /// A call to libvirt failed in a way that has no better name.
    #[error("cannot {what}: {source}")]
    Libvirt {
        /// What was tried, as in "cannot {what}".
        what: String,
        /// What libvirt said.
        source: LibvirtError,
    },

    /// No domain has this name or uuid.
    #[error("no domain {name:?}{}", similar_hint(similar))]
    NoSuchDomain {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        similar: Vec<String>,
    },

    /// The name means one domain, the uuid another.
    #[error("{name:?} may mean {}: use a uuid", candidates.join(" or "))]
    AmbiguousDomain {
        /// What was asked for.
        name: String,
        /// `name (uuid)` of each domain it may mean.
        candidates: Vec<String>,
    },

    /// libvirt described a domain, job or pool in a way that cannot be understood.
    #[error("cannot understand {what} as libvirt describes it: {why}")]
    Xml {
        /// Which description.
        what: String,
        /// What is wrong with it.
        why: String,
    },

    /// Disks that cannot be backed up, and leaving them out was not asked for.
    #[error(
        "cannot back up {}: pass --skip-unsupported to leave out what cannot be backed up",
        list_disks(disks)
    )]
    UnsupportedDisks {
        /// Target name and reason of each.
        disks: Vec<(String, String)>,
    },

    /// Nothing is left to back up.
    #[error("domain {domain} has no disk to back up")]
    NoDisks {
        /// Its name.
        domain: String,
    },

    /// A job that is not ours runs on the domain.
    #[error(
        "domain {domain} is busy: {job}. Wait for it to end (`virsh domjobinfo` shows it), then try again"
    )]
    ForeignJob {
        /// The domain's name.
        domain: String,
        /// What is running.
        job: String,
    },

    /// libvirt could not get at the domain in time.
    #[error("domain {domain} is busy with another operation of libvirt: {source}")]
    DomainBusy {
        /// The domain's name.
        domain: String,
        /// What libvirt said.
        source: LibvirtError,
    },

    /// The domain stopped while it was being backed up.
    #[error("domain {domain} stopped during the backup: try again, it will then be read at rest")]
    DomainStopped {
        /// Its name.
        domain: String,
    },

    /// A disk was exchanged after the backup had been planned.
    #[error("disk {disk} of domain {domain} was exchanged while the backup began: try again")]
    DiskExchanged {
        /// The domain's name.
        domain: String,
        /// The disk's target name.
        disk: String,
    },

    /// The domain was started while its disks were being read at rest.
    #[error(
        "domain {domain} was started while its disks were being read at rest: what was read is discarded, try again"
    )]
    DomainStarted {
        /// Its name.
        domain: String,
    },

    /// QEMU paused the guest for an I/O error during the backup.
    #[error("the guest {domain} was paused by an I/O error during the backup, most likely for lack of scratch space: the backup is given up{}", if *resumed { " and the guest runs again" } else { "" })]
    GuestPaused {
        /// The domain's name.
        domain: String,
        /// Whether it was resumed.
        resumed: bool,
    },

    /// The backup job vanished from under us.
    #[error("the backup job of domain {domain} was ended by somebody else")]
    JobEnded {
        /// The domain's name.
        domain: String,
    },

    /// There is no good place for scratch files.
    #[error("not enough room for scratch files: {} has {} free, {} must stay free. Name a better directory with --scratch", dir.display(), binary(*free), binary(*reserve))]
    ScratchSpace {
        /// The best directory there is.
        dir: PathBuf,
        /// Bytes free there.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },

    /// No directory is fit for the socket of the backup job.
    #[error(
        "no place for the backup job's socket: {why}. Name a directory that QEMU may write to with --socket-dir"
    )]
    SocketPlace {
        /// What is wrong with the candidates.
        why: String,
    },

    /// libvirt refused to start the backup job.
    #[error("libvirt would not start the backup of domain {domain}: {source}")]
    Begin {
        /// The domain's name.
        domain: String,
        /// What libvirt said.
        source: LibvirtError,
    },

    /// The NBD connection to a disk failed.
    #[error("cannot read disk {disk}: {source}")]
    Nbd {
        /// Target name, file or URI.
        disk: String,
        /// What went wrong.
        source: libnbd::Error,
    },

    /// The NBD server accepted requests and then said nothing more.
    #[error("disk {disk}: the NBD server has not answered for {} s", limit.as_secs())]
    Stalled {
        /// Target name, file or URI.
        disk: String,
        /// How long was waited.
        limit: Duration,
    },

    /// An export that cannot be a disk of a point.
    #[error("cannot back up {disk}: {why}")]
    Unfit {
        /// Target name, file or URI.
        disk: String,
        /// What is wrong with it.
        why: String,
    },

    /// The image belongs to a running machine.
    #[error("{} is in use by a running machine: back up the domain instead, or shut it down", path.display())]
    ImageInUse {
        /// The image.
        path: PathBuf,
    },

    /// The image was written to while it was being read.
    #[error("{} changed while it was being read: what was read is discarded", path.display())]
    ImageChanged {
        /// The image.
        path: PathBuf,
    },

    /// A file on this host could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A helper program is missing or failed.
    #[error("{program} failed: {why}")]
    Tool {
        /// Its name.
        program: &'static str,
        /// Its own words, or why it could not be started.
        why: String,
    },

    /// Stopped on request.
    #[error("interrupted")]
    Cancelled,

    /// The repository could not take or give something.
    #[error(transparent)]
    Repo(virtkeep_repo::Error),
}

/// So many bytes, for people.
fn binary(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    }
}

impl Error {
    /// A stable name of the kind of error, for programs.
    pub fn code(&self) -> &'static str {
        use virtkeep_repo::Error as Repo;
        match self {
            Self::NoDaemon { .. } => "no-libvirt",
            Self::TooOld { .. } => "libvirt-too-old",
            Self::RemoteHost { .. } => "remote-host",
            Self::Libvirt { source, .. } if source.is_denied() => "no-permission",
            Self::Libvirt { .. } => "libvirt",
            Self::NoSuchDomain { .. } => "no-such-domain",
            Self::AmbiguousDomain { .. } => "ambiguous-domain",
            Self::Xml { .. } => "libvirt-xml",
            Self::UnsupportedDisks { .. } => "unsupported-disk",
            Self::NoDisks { .. } => "no-disks",
            Self::ForeignJob { .. } => "foreign-job",
            Self::DomainBusy { .. } => "domain-busy",
            Self::DomainStopped { .. } => "domain-stopped",
            Self::DomainStarted { .. } => "domain-started",
            Self::DiskExchanged { .. } => "disk-exchanged",
            Self::GuestPaused { .. } => "guest-paused",
            Self::JobEnded { .. } => "job-ended",
            Self::ScratchSpace { .. } => "scratch-space",
            Self::SocketPlace { .. } => "socket-place",
            Self::Begin { .. } => "backup-begin",
            Self::Stalled { .. } => "nbd-stalled",
            // Silence is silence, whether in the handshake or after a request.
            Self::Nbd {
                source: libnbd::Error::TimedOut { .. },
                ..
            } => "nbd-stalled",
            Self::Nbd { .. } => "nbd",
            Self::Unfit { .. } => "unfit-disk",
            Self::ImageInUse { .. } => "image-in-use",
            Self::ImageChanged { .. } => "image-changed",
            Self::File { .. } => "host-file",
            Self::Tool { .. } => "tool",
            Self::Cancelled | Self::Repo(Repo::Cancelled) => "interrupted",
            Self::Repo(Repo::Busy { .. }) => "busy",
            Self::Repo(error) if error.is_no_space() => "no-space",
            Self::Repo(_) => "repository",
        }
    }

    /// Whether the cause is that stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.code() == "interrupted"
    }

    /// For `map_err` on calls of libvirt.
    pub(crate) fn libvirt(what: impl Into<String>) -> impl FnOnce(LibvirtError) -> Self {
        let what = what.into();
        move |source| Self::Libvirt { what, source }
    }

    /// For `map_err` on file operations.
    pub(crate) fn file(
        verb: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }
}

impl From<virtkeep_repo::Error> for Error {
    /// An error of one of our own sources comes back through the engine: it is unwrapped here.
    fn from(error: virtkeep_repo::Error) -> Self {
        match error {
            virtkeep_repo::Error::Cancelled => Self::Cancelled,
            virtkeep_repo::Error::Source(source) => match source.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => Self::Repo(virtkeep_repo::Error::Source(other)),
            },
            other => Self::Repo(other),
        }
    }
}

fn similar_hint(similar: &[String]) -> String {
    if similar.is_empty() {
        return ": `virsh list --all` shows the domains there are".into();
    }
    let names: Vec<String> = similar.iter().map(|name| format!("{name:?}")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

fn list_disks(disks: &[(String, String)]) -> String {
    let list: Vec<String> = disks
        .iter()
        .map(|(target, reason)| format!("disk {target} ({reason})"))
        .collect();
    list.join(", ")
}
