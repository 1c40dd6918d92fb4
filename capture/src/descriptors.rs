//! File descriptors that a process was given by whoever started it, and does not know of.
//!
//! A shell passes on what it has open: locks, pipes. Held by a process that lives on, a lock is never released, and a
//! pipe never ends.

/// The first descriptor that is not a standard file.
const FIRST: libc::c_uint = 3;

/// Sees to it that programs started from here on get no descriptors of this process but their standard files, and
/// what they are given on purpose. A kernel before 5.11 cannot do that: then nothing changes.
pub fn keep_from_programs() {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: no memory is passed. Descriptors are marked, and none is closed, so all that are in use
    // in this process stay valid.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, flags) };
}
