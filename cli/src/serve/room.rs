//! How much a server may hold at one time. Memory follows from the number of its threads; open files
//! from that of clients and of disks, each of which has a lease, beside the packs that are kept open.

use nbd_server::Limits;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Threads beyond one per client. Each may hold a piece of a reply and what was read for it.
const HELPERS_MAX: usize = 32;

/// Disks that clients have open or compare with.
const DISKS_MAX: usize = 256;
const DISKS_MIN: usize = 4;

/// Files beside clients, disks and packs: what is listened on, the index, locks, the log.
const OTHER_FILES: usize = 32;

/// The bounds of one server.
pub(crate) struct Room {
    /// What the protocol may take.
    pub(crate) limits: Limits,
    /// How many disks may be open at a time.
    pub(crate) disks_max: usize,
}

impl Room {
    /// All there is: from now on this process may open as many files as it can be allowed to.
    pub(crate) fn take() -> Self {
        let mut limits = Limits::default();
        limits.helpers_max = HELPERS_MAX;
        Self {
            disks_max: disks_beside(limits.connections_max).min(DISKS_MAX),
            limits,
        }
    }
}

/// How many disks programs of this machine may have open in a mount. Nobody else opens them, so the limit on
/// open files, which is raised as for a server, is all that bounds them.
pub(crate) fn disks_of_mount() -> usize {
    disks_beside(0)
}

/// Half of what is left beside so many clients is for packs.
fn disks_beside(clients: usize) -> usize {
    let left = files_max().saturating_sub(clients + OTHER_FILES);
    (left / 2).max(DISKS_MIN)
}

/// Raises the limit on open files, which by default is 1024 for the sake of programs that use `select`.
fn files_max() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is forbidden, what there is must do.
    let _ = setrlimit(Resource::Nofile, limit);
    let files = getrlimit(Resource::Nofile).current;
    files.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}
