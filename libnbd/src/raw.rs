//! Ownership of one C handle, and safe forms of those calls that keep no pointer of ours.
//!
//! Invariants: the pointer is valid from creation to drop; errors are fetched on the thread
//! and right after the call that failed (the library keeps them per thread); strings given
//! to the library are copied by it before the call returns.

use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr::NonNull;

use crate::error::{Error, Operation};
use crate::sys::{self, NbdHandle};

/// An owned `struct nbd_handle`.
#[derive(Debug)]
pub(crate) struct RawHandle(NonNull<NbdHandle>);

// SAFETY: the C handle is not bound to a thread; the library serialises calls by a lock
// inside the handle. What its callbacks own (requests in flight) is `Send`, see `request`.
unsafe impl Send for RawHandle {}

impl Drop for RawHandle {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and never used again. Requests still in flight are
        // given back through their `free` callbacks during this call.
        unsafe { sys::nbd_close(self.0.as_ptr()) }
    }
}

/// What a handle waits for on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direction {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// The phase of a connection that decides which calls are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Negotiating,
    Ready,
    /// Ended, by either side, in order or not.
    Ended,
    /// Created, or in the middle of sending or receiving.
    Other,
}

/// The error that the last failed call on this thread left behind.
pub(crate) fn last_error(operation: Operation) -> Error {
    // SAFETY: both calls only read thread-local state; the string is valid until the next
    // call into the library on this thread, and is copied here.
    let (text, errno) = unsafe { (sys::nbd_get_error(), sys::nbd_get_errno()) };
    let message = if text.is_null() {
        "unknown error".to_owned()
    } else {
        // SAFETY: not null, so a NUL-terminated string, see above.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        without_function(&text).to_owned()
    };
    Error::Library {
        operation,
        message,
        errno: (errno != 0).then_some(errno),
    }
}

/// Messages begin with the C function called, which means nothing to users of this crate.
fn without_function(message: &str) -> &str {
    match message.split_once(": ") {
        Some((function, rest)) if function.starts_with("nbd_") => rest,
        _ => message,
    }
}

pub(crate) fn c_string(operation: Operation, text: impl Into<Vec<u8>>) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::refused(operation, "a name contains a NUL byte"))
}

fn check(operation: Operation, status: c_int) -> Result<c_int, Error> {
    if status == -1 {
        Err(last_error(operation))
    } else {
        Ok(status)
    }
}

/// Defines safe methods for calls `int f(handle)`.
macro_rules! plain_calls {
    ($($name:ident => $c:ident, $operation:expr;)*) => {
        $(pub(crate) fn $name(&self) -> Result<c_int, Error> {
            // SAFETY: the handle is valid; the call takes nothing else.
            check($operation, unsafe { sys::$c(self.0.as_ptr()) })
        })*
    };
}

/// Defines safe methods for calls `int f(handle, const char *)`.
macro_rules! string_calls {
    ($($name:ident => $c:ident, $operation:expr;)*) => {
        $(pub(crate) fn $name(&self, text: impl Into<Vec<u8>>) -> Result<c_int, Error> {
            let text = c_string($operation, text)?;
            // SAFETY: the handle is valid; the string is NUL-terminated, outlives the
            // call, and is copied by the library.
            check($operation, unsafe { sys::$c(self.0.as_ptr(), text.as_ptr()) })
        })*
    };
}

/// Defines safe methods for calls `int f(handle, scalar)`.
macro_rules! scalar_calls {
    ($($name:ident($kind:ty) => $c:ident, $operation:expr;)*) => {
        $(pub(crate) fn $name(&self, value: $kind) -> Result<c_int, Error> {
            // SAFETY: the handle is valid; the value is passed by value.
            check($operation, unsafe { sys::$c(self.0.as_ptr(), value) })
        })*
    };
}

impl RawHandle {
    pub(crate) fn new() -> Result<RawHandle, Error> {
        // SAFETY: no preconditions; null means failure.
        NonNull::new(unsafe { sys::nbd_create() })
            .map(RawHandle)
            .ok_or_else(|| last_error(Operation::Configure))
    }

    /// The C pointer, for the calls that carry callbacks.
    pub(crate) fn as_ptr(&self) -> *mut NbdHandle {
        self.0.as_ptr()
    }

    plain_calls! {
        clear_meta_contexts => nbd_clear_meta_contexts, Operation::Configure;
        supports_tls => nbd_supports_tls, Operation::Configure;
        tls_verify_peer => nbd_get_tls_verify_peer, Operation::Configure;
        tls_negotiated => nbd_get_tls_negotiated, Operation::Connect;
        structured_replies => nbd_get_structured_replies_negotiated, Operation::Connect;
        is_read_only => nbd_is_read_only, Operation::Connect;
        is_rotational => nbd_is_rotational, Operation::Connect;
        can_multi_conn => nbd_can_multi_conn, Operation::Connect;
        can_flush => nbd_can_flush, Operation::Connect;
        can_fua => nbd_can_fua, Operation::Connect;
        can_trim => nbd_can_trim, Operation::Connect;
        can_zero => nbd_can_zero, Operation::Connect;
        can_fast_zero => nbd_can_fast_zero, Operation::Connect;
        can_df => nbd_can_df, Operation::Connect;
        can_cache => nbd_can_cache, Operation::Connect;
        notify_read => nbd_aio_notify_read, Operation::Poll;
        notify_write => nbd_aio_notify_write, Operation::Poll;
        opt_abort => nbd_aio_opt_abort, Operation::Shutdown;
    }

    string_calls! {
        set_export_name => nbd_set_export_name, Operation::Configure;
        add_meta_context => nbd_add_meta_context, Operation::Configure;
        set_tls_certificates => nbd_set_tls_certificates, Operation::Configure;
        can_meta_context => nbd_can_meta_context, Operation::Connect;
        connect_uri => nbd_aio_connect_uri, Operation::Connect;
        connect_unix => nbd_aio_connect_unix, Operation::Connect;
    }

    scalar_calls! {
        set_opt_mode(bool) => nbd_set_opt_mode, Operation::Configure;
        set_pread_initialize(bool) => nbd_set_pread_initialize, Operation::Configure;
        set_tls(c_int) => nbd_set_tls, Operation::Configure;
        set_tls_verify_peer(bool) => nbd_set_tls_verify_peer, Operation::Configure;
        set_uri_allow_transports(u32) => nbd_set_uri_allow_transports, Operation::Configure;
        set_uri_allow_tls(c_int) => nbd_set_uri_allow_tls, Operation::Configure;
        set_uri_allow_local_file(bool) => nbd_set_uri_allow_local_file, Operation::Configure;
        disconnect(u32) => nbd_aio_disconnect, Operation::Shutdown;
        kill_subprocess(c_int) => nbd_kill_subprocess, Operation::Shutdown;
    }

    pub(crate) fn connect_tcp(&self, host: &str, port: u16) -> Result<(), Error> {
        let host = c_string(Operation::Connect, host)?;
        let port = c_string(Operation::Connect, port.to_string())?;
        // SAFETY: the handle is valid; both strings are NUL-terminated and copied.
        let status =
            unsafe { sys::nbd_aio_connect_tcp(self.as_ptr(), host.as_ptr(), port.as_ptr()) };
        check(Operation::Connect, status).map(drop)
    }

    /// Gives the descriptor to the library, which closes it, also when it fails later.
    pub(crate) fn connect_socket(&self, socket: OwnedFd) -> Result<(), Error> {
        // SAFETY: the handle is valid; ownership of the descriptor moves to the library.
        let status = unsafe { sys::nbd_aio_connect_socket(self.as_ptr(), socket.into_raw_fd()) };
        check(Operation::Connect, status).map(drop)
    }

    pub(crate) fn connect_command(&self, argv: &[OsString], activate: bool) -> Result<(), Error> {
        if argv.is_empty() {
            return Err(Error::refused(Operation::Connect, "the command is empty"));
        }
        let owned = argv
            .iter()
            .map(|word| c_string(Operation::Connect, word.clone().into_vec()))
            .collect::<Result<Vec<CString>, Error>>()?;
        let mut pointers: Vec<*mut c_char> =
            owned.iter().map(|word| word.as_ptr().cast_mut()).collect();
        pointers.push(std::ptr::null_mut());
        let start = if activate {
            sys::nbd_aio_connect_systemd_socket_activation
        } else {
            sys::nbd_aio_connect_command
        };
        // SAFETY: the handle is valid; the array is NULL-terminated, its strings are
        // NUL-terminated; the library copies them and writes to none of them.
        let status = unsafe { start(self.as_ptr(), pointers.as_mut_ptr()) };
        check(Operation::Connect, status).map(drop)
    }

    /// The size of the export. Old releases hand a size of 2^63 or more through as a negative
    /// number (CVE-2023-5215), -1 among them, so every negative answer means just that.
    pub(crate) fn size(&self) -> Result<u64, Error> {
        // SAFETY: the handle is valid.
        let size = unsafe { sys::nbd_get_size(self.as_ptr()) };
        u64::try_from(size).map_err(|_| Error::Protocol {
            operation: Operation::Connect,
            offset: 0,
            reason: "the export claims to have 2^63 bytes or more".to_owned(),
        })
    }

    /// One block size limit in bytes; `None` when the server did not advertise it.
    pub(crate) fn block_size(&self, which: c_int) -> Result<Option<u32>, Error> {
        // SAFETY: the handle is valid.
        match unsafe { sys::nbd_get_block_size(self.as_ptr(), which) } {
            -1 => Err(last_error(Operation::Connect)),
            size => Ok(u32::try_from(size).ok().filter(|size| *size > 0)),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        let h = self.as_ptr();
        // SAFETY: the handle is valid; these calls read its state only.
        unsafe {
            if sys::nbd_aio_is_ready(h) == 1 {
                Phase::Ready
            } else if sys::nbd_aio_is_dead(h) == 1 || sys::nbd_aio_is_closed(h) == 1 {
                Phase::Ended
            } else if sys::nbd_aio_is_connecting(h) == 1 {
                Phase::Connecting
            } else if sys::nbd_aio_is_negotiating(h) == 1 {
                Phase::Negotiating
            } else {
                Phase::Other
            }
        }
    }

    pub(crate) fn direction(&self) -> Direction {
        // SAFETY: the handle is valid.
        let bits = unsafe { sys::nbd_aio_get_direction(self.as_ptr()) };
        Direction {
            read: bits & sys::AIO_DIRECTION_READ != 0,
            write: bits & sys::AIO_DIRECTION_WRITE != 0,
        }
    }

    /// The socket, while there is one. The library may replace it while connecting, so it
    /// is borrowed anew for every poll.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the handle is valid.
        let fd = unsafe { sys::nbd_aio_get_fd(self.as_ptr()) };
        // SAFETY: the descriptor stays open until the next call that drives the handle;
        // callers poll it and let go of it before they make such a call.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }
}
