//! Requests in flight: who owns their buffers, and the callbacks that the C library runs.
//!
//! A [`Request`] is boxed and given to the library together with the command. The library
//! gives it back exactly once, through the completion callback's `free`, whether the command
//! succeeded, failed, was never accepted, or the handle was closed over it. Until then the
//! buffers stay where they are and only the library touches them.
//!
//! Callbacks run inside calls on the handle, on the thread that makes them, one at a time;
//! they never call the library themselves (its lock is held) and let no panic out.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;

use crate::completion::{Completion, PieceKind, Pieces, ReadReply, Reply, Token};
use crate::error::{Error, Operation};
use crate::raw::{RawHandle, last_error};
use crate::status::{ContextExtents, Extent, validate};
use crate::sys::{self, ChunkCallback, CompletionCallback, ExtentCallback};

/// `EPROTO`, for replies that break the protocol, and `EIO` for failures of our own.
const EPROTO: i32 = rustix::io::Errno::PROTO.raw_os_error();
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Bytes to be written, kept alive and in place until the write has completed.
pub(crate) type WriteData = Box<dyn AsRef<[u8]> + Send>;

/// What is asked of the server, with the buffers that belong to it.
pub(crate) enum Command {
    Read { bytes: Vec<u8>, pieces: Pieces },
    Write { data: WriteData, flags: u32 },
    Zero { flags: u32 },
    Trim { flags: u32 },
    Flush,
    BlockStatus { contexts: Vec<ContextExtents> },
}

impl Command {
    fn operation(&self) -> Operation {
        match self {
            Command::Read { .. } => Operation::Read,
            Command::Write { .. } => Operation::Write,
            Command::Zero { .. } => Operation::Zero,
            Command::Trim { .. } => Operation::Trim,
            Command::Flush => Operation::Flush,
            Command::BlockStatus { .. } => Operation::BlockStatus,
        }
    }
}

/// One command and all that is needed to report its end.
pub(crate) struct Request {
    pub(crate) token: Token,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) export_size: u64,
    pub(crate) command: Command,
    /// The error number (0 for success) once the library has declared the command complete.
    pub(crate) outcome: Option<i32>,
    /// A rule that the reply broke, if we noticed one.
    pub(crate) violation: Option<&'static str>,
    pub(crate) done: Sender<Completion>,
}

// The library may hand a request back on whichever thread drives the handle by then.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Request>();
};

impl Request {
    /// Gives the request to the library. On failure the request and its buffers are dropped.
    pub(crate) fn submit(self, handle: &RawHandle) -> Result<(), Error> {
        let h = handle.as_ptr();
        let operation = self.command.operation();
        let (offset, length) = (self.offset, self.length);
        let request = Box::into_raw(Box::new(self));
        let user_data: *mut c_void = request.cast();
        let completion = CompletionCallback {
            callback: Some(on_completion),
            user_data,
            free: Some(on_free),
        };
        // SAFETY: `request` comes from `Box::into_raw` above and nobody else has seen it yet.
        let command = unsafe { &mut (*request).command };
        // SAFETY (of each call below): the handle is valid. The buffer is heap memory of
        // `length` bytes owned by the request, which lives until `on_free`, after which the
        // library no longer uses it. `user_data` is the request itself; the chunk and extent
        // callbacks have no `free` of their own, as they end no later than the completion.
        let cookie = match command {
            Command::Read { bytes, .. } => {
                let chunk = ChunkCallback {
                    callback: Some(on_chunk),
                    user_data,
                    free: None,
                };
                let (buffer, count) = (bytes.as_mut_ptr().cast(), bytes.len());
                // SAFETY: see above.
                unsafe {
                    sys::nbd_aio_pread_structured(h, buffer, count, offset, chunk, completion, 0)
                }
            }
            Command::Write { data, flags } => {
                let flags = *flags;
                let data: &[u8] = (**data).as_ref();
                let (buffer, count) = (data.as_ptr().cast(), data.len());
                // SAFETY: see above; the library only reads from the buffer.
                unsafe { sys::nbd_aio_pwrite(h, buffer, count, offset, completion, flags) }
            }
            Command::Zero { flags } => {
                let flags = *flags;
                // SAFETY: see above.
                unsafe { sys::nbd_aio_zero(h, length, offset, completion, flags) }
            }
            Command::Trim { flags } => {
                let flags = *flags;
                // SAFETY: see above.
                unsafe { sys::nbd_aio_trim(h, length, offset, completion, flags) }
            }
            // SAFETY: see above.
            Command::Flush => unsafe { sys::nbd_aio_flush(h, completion, 0) },
            Command::BlockStatus { .. } => {
                let extent = ExtentCallback {
                    callback: Some(on_extents),
                    user_data,
                    free: None,
                };
                // SAFETY: see above.
                unsafe { sys::nbd_aio_block_status(h, length, offset, extent, completion, 0) }
            }
        };
        if cookie == -1 {
            Err(last_error(operation))
        } else {
            Ok(())
        }
    }

    /// The report of a completed request. Buffers of failed reads stay behind and end with
    /// the request.
    fn report(&mut self) -> Option<Completion> {
        let operation = self.command.operation();
        let (offset, length) = (self.offset, self.length);
        let errno = self.outcome?;
        let protocol = |reason: &str| Error::Protocol {
            operation,
            offset,
            reason: reason.to_owned(),
        };
        let result = if let Some(rule) = self.violation {
            Err(protocol(rule))
        } else if errno != 0 {
            Err(Error::Request {
                operation,
                offset,
                length,
                message: std::io::Error::from_raw_os_error(errno).to_string(),
                errno,
            })
        } else {
            match &mut self.command {
                Command::Read { bytes, pieces } => match take(pieces).finish(bytes.len()) {
                    Ok(pieces) => Ok(Reply::Read(ReadReply {
                        offset,
                        bytes: take(bytes),
                        pieces,
                    })),
                    Err(rule) => Err(protocol(rule)),
                },
                Command::BlockStatus { contexts } => {
                    validate(take(contexts), offset, length, self.export_size)
                        .map(Reply::BlockStatus)
                        .map_err(|rule| protocol(&rule))
                }
                Command::Write { .. }
                | Command::Zero { .. }
                | Command::Trim { .. }
                | Command::Flush => Ok(Reply::Done),
            }
        };
        Some(Completion {
            token: self.token,
            result,
        })
    }

    fn chunk(&mut self, offset: u64, count: usize, status: c_uint) -> Result<(), &'static str> {
        let kind = match status {
            sys::READ_DATA => PieceKind::Data,
            sys::READ_HOLE => PieceKind::Hole,
            // An error chunk: the completion carries its error number.
            _ => return Ok(()),
        };
        let Command::Read { bytes, pieces } = &mut self.command else {
            return Err("data came in reply to a request that reads nothing");
        };
        let range = offset
            .checked_sub(self.offset)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| Some(start..start.checked_add(count)?))
            .filter(|range| range.end <= bytes.len())
            .ok_or("data outside of the request")?;
        if pieces.push(range, kind) {
            Ok(())
        } else {
            Err("the data came in too many pieces")
        }
    }

    fn extents(&mut self, context: &CStr, entries: &[u32]) -> Result<(), &'static str> {
        let Command::BlockStatus { contexts } = &mut self.command else {
            return Err("extents came in reply to a request that asked for none");
        };
        let pairs = entries.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err("an extent is cut off");
        }
        contexts.push(ContextExtents {
            context: context.to_string_lossy().into_owned(),
            extents: pairs
                .map(|pair| Extent {
                    length: u64::from(pair[0]),
                    flags: pair[1],
                })
                .collect(),
        });
        Ok(())
    }
}

/// Runs `body`, turning a panic into `otherwise`: no panic may cross into C.
pub(crate) fn shield<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        // Dropping what the panic carries may panic once more; then it is left alone.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        otherwise
    })
}

/// Ends a chunk or extent callback: a broken rule fails the request with `EPROTO`.
///
/// # Safety
/// `user_data` is the request, `error` points to the error number of the running callback.
unsafe fn settle(
    user_data: *mut c_void,
    error: *mut c_int,
    verdict: Option<Result<(), &'static str>>,
) -> c_int {
    let (violation, errno) = match verdict {
        Some(Ok(())) => return 0,
        Some(Err(rule)) => (Some(rule), EPROTO),
        None => (None, EIO),
    };
    // SAFETY: see the callers: the request is alive, and nothing else refers to it now.
    let request = unsafe { &mut *user_data.cast::<Request>() };
    request.violation = request.violation.or(violation);
    // SAFETY: the library passes a pointer to its own variable.
    unsafe { *error = errno };
    -1
}

unsafe extern "C" fn on_chunk(
    user_data: *mut c_void,
    _subbuf: *const c_void,
    count: usize,
    offset: u64,
    status: c_uint,
    error: *mut c_int,
) -> c_int {
    let verdict = shield(None, || {
        // SAFETY: `user_data` is the request given in `submit`; it is alive (its `free` has
        // not run) and no other reference exists while a callback runs.
        let request = unsafe { &mut *user_data.cast::<Request>() };
        Some(request.chunk(offset, count, status))
    });
    // SAFETY: as above; `error` is the library's.
    unsafe { settle(user_data, error, verdict) }
}

unsafe extern "C" fn on_extents(
    user_data: *mut c_void,
    context: *const c_char,
    _offset: u64,
    entries: *mut u32,
    word_count: usize,
    error: *mut c_int,
) -> c_int {
    let verdict = shield(None, || {
        // SAFETY: as in `on_chunk`.
        let request = unsafe { &mut *user_data.cast::<Request>() };
        if context.is_null() || entries.is_null() {
            return Some(Err("an empty extent list"));
        }
        // SAFETY: the library passes a NUL-terminated name and `word_count` readable words,
        // both valid during the callback.
        let (context, entries) = unsafe {
            (
                CStr::from_ptr(context),
                std::slice::from_raw_parts(entries, word_count),
            )
        };
        Some(request.extents(context, entries))
    });
    // SAFETY: as above; `error` is the library's.
    unsafe { settle(user_data, error, verdict) }
}

/// Notes the outcome; returns 1 so that the command is retired, and `on_free` run, at once.
unsafe extern "C" fn on_completion(user_data: *mut c_void, error: *mut c_int) -> c_int {
    // SAFETY: as in `on_chunk`; `error` is the library's and readable.
    unsafe { (*user_data.cast::<Request>()).outcome = Some(*error) };
    1
}

/// Takes the request back from the library.
unsafe extern "C" fn on_free(user_data: *mut c_void) {
    shield((), || {
        // SAFETY: `user_data` comes from `Box::into_raw` in `submit`; the library calls this
        // once per command and never uses the request or its buffers afterwards.
        let mut request = unsafe { Box::from_raw(user_data.cast::<Request>()) };
        if let Some(completion) = request.report() {
            // Fails only while the handle is being dropped: then nobody waits.
            let _ = request.done.send(completion);
        }
        // Only now, as dropping the data of a write runs the caller's code, which may panic.
        drop(request);
    });
}
