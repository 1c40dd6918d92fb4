//! The part of libnbd's C interface that this crate uses, declared by hand.
//!
//! Signatures follow `libnbd.h` of release 1.14; every function here exists since 1.12 or
//! earlier. Callback structures are passed by value.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The opaque handle of the C library.
#[repr(C)]
pub(crate) struct NbdHandle {
    _private: [u8; 0],
}

pub(crate) type Free = unsafe extern "C" fn(*mut c_void);

/// `nbd_completion_callback`; returning 1 retires the command at once.
#[repr(C)]
pub(crate) struct CompletionCallback {
    pub(crate) callback: Option<unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int>,
    pub(crate) user_data: *mut c_void,
    pub(crate) free: Option<Free>,
}

/// `nbd_chunk_callback`: one piece of a read has arrived.
#[repr(C)]
pub(crate) struct ChunkCallback {
    pub(crate) callback: Option<
        unsafe extern "C" fn(*mut c_void, *const c_void, usize, u64, c_uint, *mut c_int) -> c_int,
    >,
    pub(crate) user_data: *mut c_void,
    pub(crate) free: Option<Free>,
}

/// `nbd_extent_callback`: the extents of one metadata context; the count is of 32-bit words.
#[repr(C)]
pub(crate) struct ExtentCallback {
    pub(crate) callback: Option<
        unsafe extern "C" fn(*mut c_void, *const c_char, u64, *mut u32, usize, *mut c_int) -> c_int,
    >,
    pub(crate) user_data: *mut c_void,
    pub(crate) free: Option<Free>,
}

/// `nbd_list_callback`: name and description of one export.
#[repr(C)]
pub(crate) struct ListCallback {
    pub(crate) callback:
        Option<unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> c_int>,
    pub(crate) user_data: *mut c_void,
    pub(crate) free: Option<Free>,
}

/// `nbd_context_callback`: name of one metadata context.
#[repr(C)]
pub(crate) struct ContextCallback {
    pub(crate) callback: Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>,
    pub(crate) user_data: *mut c_void,
    pub(crate) free: Option<Free>,
}

pub(crate) const TLS_DISABLE: c_int = 0;
pub(crate) const TLS_REQUIRE: c_int = 2;
pub(crate) const ALLOW_TRANSPORT_TCP: u32 = 0x01;
pub(crate) const ALLOW_TRANSPORT_UNIX: u32 = 0x02;
pub(crate) const ALLOW_TRANSPORT_VSOCK: u32 = 0x04;
pub(crate) const SIZE_MINIMUM: c_int = 0;
pub(crate) const SIZE_PREFERRED: c_int = 1;
pub(crate) const SIZE_MAXIMUM: c_int = 2;
pub(crate) const CMD_FLAG_FUA: u32 = 0x01;
pub(crate) const CMD_FLAG_NO_HOLE: u32 = 0x02;
pub(crate) const CMD_FLAG_FAST_ZERO: u32 = 0x10;
pub(crate) const AIO_DIRECTION_READ: c_uint = 1;
pub(crate) const AIO_DIRECTION_WRITE: c_uint = 2;
pub(crate) const READ_DATA: c_uint = 1;
pub(crate) const READ_HOLE: c_uint = 2;

type H = *mut NbdHandle;

unsafe extern "C" {
    pub(crate) fn nbd_create() -> H;
    pub(crate) fn nbd_close(h: H);
    pub(crate) fn nbd_get_error() -> *const c_char;
    pub(crate) fn nbd_get_errno() -> c_int;

    pub(crate) fn nbd_set_export_name(h: H, name: *const c_char) -> c_int;
    pub(crate) fn nbd_add_meta_context(h: H, name: *const c_char) -> c_int;
    pub(crate) fn nbd_clear_meta_contexts(h: H) -> c_int;
    pub(crate) fn nbd_set_opt_mode(h: H, enable: bool) -> c_int;
    pub(crate) fn nbd_set_pread_initialize(h: H, request: bool) -> c_int;
    pub(crate) fn nbd_supports_tls(h: H) -> c_int;
    pub(crate) fn nbd_set_tls(h: H, tls: c_int) -> c_int;
    pub(crate) fn nbd_set_tls_certificates(h: H, dir: *const c_char) -> c_int;
    pub(crate) fn nbd_set_tls_verify_peer(h: H, verify: bool) -> c_int;
    pub(crate) fn nbd_get_tls_verify_peer(h: H) -> c_int;
    pub(crate) fn nbd_get_tls_negotiated(h: H) -> c_int;
    pub(crate) fn nbd_set_uri_allow_transports(h: H, mask: u32) -> c_int;
    pub(crate) fn nbd_set_uri_allow_tls(h: H, tls: c_int) -> c_int;
    pub(crate) fn nbd_set_uri_allow_local_file(h: H, allow: bool) -> c_int;

    pub(crate) fn nbd_aio_connect_uri(h: H, uri: *const c_char) -> c_int;
    pub(crate) fn nbd_aio_connect_unix(h: H, path: *const c_char) -> c_int;
    pub(crate) fn nbd_aio_connect_tcp(h: H, host: *const c_char, port: *const c_char) -> c_int;
    pub(crate) fn nbd_aio_connect_socket(h: H, fd: c_int) -> c_int;
    pub(crate) fn nbd_aio_connect_command(h: H, argv: *mut *mut c_char) -> c_int;
    pub(crate) fn nbd_aio_connect_systemd_socket_activation(h: H, argv: *mut *mut c_char) -> c_int;

    pub(crate) fn nbd_aio_opt_go(h: H, completion: CompletionCallback) -> c_int;
    pub(crate) fn nbd_aio_opt_info(h: H, completion: CompletionCallback) -> c_int;
    pub(crate) fn nbd_aio_opt_abort(h: H) -> c_int;
    pub(crate) fn nbd_aio_opt_list(
        h: H,
        list: ListCallback,
        completion: CompletionCallback,
    ) -> c_int;
    pub(crate) fn nbd_aio_opt_list_meta_context(
        h: H,
        context: ContextCallback,
        completion: CompletionCallback,
    ) -> c_int;

    pub(crate) fn nbd_get_size(h: H) -> i64;
    pub(crate) fn nbd_get_block_size(h: H, size_type: c_int) -> i64;
    pub(crate) fn nbd_get_structured_replies_negotiated(h: H) -> c_int;
    pub(crate) fn nbd_is_read_only(h: H) -> c_int;
    pub(crate) fn nbd_is_rotational(h: H) -> c_int;
    pub(crate) fn nbd_can_multi_conn(h: H) -> c_int;
    pub(crate) fn nbd_can_flush(h: H) -> c_int;
    pub(crate) fn nbd_can_fua(h: H) -> c_int;
    pub(crate) fn nbd_can_trim(h: H) -> c_int;
    pub(crate) fn nbd_can_zero(h: H) -> c_int;
    pub(crate) fn nbd_can_fast_zero(h: H) -> c_int;
    pub(crate) fn nbd_can_df(h: H) -> c_int;
    pub(crate) fn nbd_can_cache(h: H) -> c_int;
    pub(crate) fn nbd_can_meta_context(h: H, name: *const c_char) -> c_int;

    pub(crate) fn nbd_aio_pread_structured(
        h: H,
        buf: *mut c_void,
        count: usize,
        offset: u64,
        chunk: ChunkCallback,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    pub(crate) fn nbd_aio_pwrite(
        h: H,
        buf: *const c_void,
        count: usize,
        offset: u64,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    pub(crate) fn nbd_aio_zero(
        h: H,
        count: u64,
        offset: u64,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    pub(crate) fn nbd_aio_trim(
        h: H,
        count: u64,
        offset: u64,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    pub(crate) fn nbd_aio_flush(h: H, completion: CompletionCallback, flags: u32) -> i64;
    pub(crate) fn nbd_aio_block_status(
        h: H,
        count: u64,
        offset: u64,
        extent: ExtentCallback,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    pub(crate) fn nbd_aio_disconnect(h: H, flags: u32) -> c_int;

    pub(crate) fn nbd_aio_get_fd(h: H) -> c_int;
    pub(crate) fn nbd_aio_get_direction(h: H) -> c_uint;
    pub(crate) fn nbd_aio_notify_read(h: H) -> c_int;
    pub(crate) fn nbd_aio_notify_write(h: H) -> c_int;
    pub(crate) fn nbd_aio_is_connecting(h: H) -> c_int;
    pub(crate) fn nbd_aio_is_negotiating(h: H) -> c_int;
    pub(crate) fn nbd_aio_is_ready(h: H) -> c_int;
    pub(crate) fn nbd_aio_is_dead(h: H) -> c_int;
    pub(crate) fn nbd_aio_is_closed(h: H) -> c_int;
    pub(crate) fn nbd_kill_subprocess(h: H, signum: c_int) -> c_int;
}
