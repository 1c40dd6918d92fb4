//! An open export: requests in flight, their completions, and simple synchronous forms.
//!
//! One thread drives a handle. Submitting sends as much as the socket takes at once;
//! everything else happens in [`Handle::poll`] and in the synchronous calls, which may be
//! mixed freely with requests in flight.

use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::completion::{Completion, Pieces, ReadReply, Reply, Token};
use crate::drive::{Deadline, Step, step};
use crate::error::{Error, Operation};
use crate::info::{BlockSize, ExportFlags, ExportInfo};
use crate::raw::{Phase, RawHandle};
use crate::request::{Command, Request};
use crate::status::{ContextExtents, REQUEST_BYTES_MAX};
use crate::sys;
use crate::waker::Waker;

/// Why [`Handle::poll`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// At least one completion can be taken.
    Ready,
    /// Nothing is in flight, so there is nothing to wait for.
    Idle,
    /// The time limit passed.
    TimedOut,
    /// A [`Waker`] was used.
    Woken,
}

/// How a write is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Complete only when the data is on stable storage; needs [`ExportFlags::fua`].
    pub fua: bool,
}

/// How zeroes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Complete only when the zeroes are on stable storage; needs [`ExportFlags::fua`].
    pub fua: bool,
    /// Keep the range allocated instead of punching a hole.
    pub no_hole: bool,
    /// Fail with `ENOTSUP` rather than be as slow as writing; needs
    /// [`ExportFlags::fast_zero`].
    pub fast: bool,
}

impl WriteFlags {
    fn bits(self) -> u32 {
        if self.fua { sys::CMD_FLAG_FUA } else { 0 }
    }
}

impl ZeroFlags {
    fn bits(self) -> u32 {
        let mut bits = 0;
        for (set, bit) in [
            (self.fua, sys::CMD_FLAG_FUA),
            (self.no_hole, sys::CMD_FLAG_NO_HOLE),
            (self.fast, sys::CMD_FLAG_FAST_ZERO),
        ] {
            if set {
                bits |= bit;
            }
        }
        bits
    }
}

/// A connection with an open export.
///
/// Dropping a handle abandons whatever is in flight and closes the connection at once,
/// without a goodbye; buffers are freed. Where a subprocess serves the export, dropping
/// waits for it: one started by socket activation gets SIGTERM, one started as a command
/// sees its standard input close. [`Handle::shutdown`] ends a connection in order.
#[derive(Debug)]
pub struct Handle {
    // First, so that it is dropped first: closing gives back the requests in flight.
    raw: RawHandle,
    info: ExportInfo,
    contexts: Vec<String>,
    /// Cloned into every request; what requests send arrives in `finished`. The receiver is
    /// not `Sync`, which makes the handle so, too.
    done: Sender<Completion>,
    finished: Receiver<Completion>,
    /// Completions taken from `finished` and not yet handed out.
    ready: VecDeque<Completion>,
    /// Requests whose caller was interrupted and will not ask for the completion.
    disowned: HashSet<Token>,
    next_token: u64,
    in_flight: usize,
    waker: Waker,
}

impl Handle {
    pub(crate) fn new(raw: RawHandle, requested: &[String]) -> Result<Handle, Error> {
        let info = ExportInfo::query(&raw)?;
        let mut contexts = Vec::new();
        for name in requested {
            if raw.can_meta_context(name.as_str())? == 1 && !contexts.contains(name) {
                contexts.push(name.clone());
            }
        }
        let (done, finished) = channel();
        Ok(Handle {
            raw,
            info,
            contexts,
            done,
            finished,
            ready: VecDeque::new(),
            disowned: HashSet::new(),
            next_token: 1,
            in_flight: 0,
            waker: Waker::new()?,
        })
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// Limits of requests.
    pub fn block_size(&self) -> BlockSize {
        self.info.block_size
    }

    /// Abilities of the server.
    pub fn flags(&self) -> ExportFlags {
        self.info.flags
    }

    /// Everything known about the export.
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// Whether a context that was asked for was granted. Servers leave out silently what
    /// they do not have, so check before believing a map.
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|context| context == name)
    }

    /// The contexts that were asked for and granted.
    pub fn contexts(&self) -> &[String] {
        &self.contexts
    }

    /// Requests whose completion has not been taken yet, finished ones included.
    pub fn outstanding(&self) -> usize {
        self.in_flight + self.ready.len()
    }

    /// A way for other threads to end [`poll`](Handle::poll) and the synchronous calls.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    // ---- Submitting ----------------------------------------------------------------

    /// Starts reading `buffer.len()` bytes at `offset` into `buffer`, whose former content
    /// does not matter. The buffer comes back inside [`Reply::Read`], never after a failure.
    ///
    /// # Errors
    /// [`Error::Refused`] for more than [`BlockSize::payload_bytes_max`]; [`Error::Library`]
    /// for an empty or unaligned request, one outside of the export, or a connection that
    /// has ended. Then the buffer is dropped and there will be no completion.
    pub fn submit_read(&mut self, offset: u64, buffer: Vec<u8>) -> Result<Token, Error> {
        let length = buffer.len() as u64;
        self.check_payload(Operation::Read, length)?;
        let command = Command::Read {
            bytes: buffer,
            pieces: Pieces::default(),
        };
        self.submit(offset, length, command)
    }

    /// Starts writing `data` at `offset`. The data is kept until the write has completed,
    /// and is not copied: a `Vec<u8>`, `Arc<[u8]>`, `&'static [u8]` or the like.
    ///
    /// # Errors
    /// As [`submit_read`](Handle::submit_read), also for a read-only export.
    pub fn submit_write(
        &mut self,
        offset: u64,
        data: impl AsRef<[u8]> + Send + 'static,
        flags: WriteFlags,
    ) -> Result<Token, Error> {
        let data: Box<dyn AsRef<[u8]> + Send> = Box::new(data);
        let length = (*data).as_ref().len() as u64;
        self.check_payload(Operation::Write, length)?;
        let flags = flags.bits();
        self.submit(offset, length, Command::Write { data, flags })
    }

    /// Starts writing zeroes over a range of at most [`REQUEST_BYTES_MAX`] bytes.
    pub fn submit_zero(
        &mut self,
        offset: u64,
        length: u64,
        flags: ZeroFlags,
    ) -> Result<Token, Error> {
        check_range(Operation::Zero, length)?;
        let flags = flags.bits();
        self.submit(offset, length, Command::Zero { flags })
    }

    /// Starts trimming a range of at most [`REQUEST_BYTES_MAX`] bytes. A trimmed range may
    /// read as anything; use zeroes where content matters.
    pub fn submit_trim(
        &mut self,
        offset: u64,
        length: u64,
        flags: WriteFlags,
    ) -> Result<Token, Error> {
        check_range(Operation::Trim, length)?;
        let flags = flags.bits();
        self.submit(offset, length, Command::Trim { flags })
    }

    /// Starts a flush: it covers all writes that completed before it was submitted.
    pub fn submit_flush(&mut self) -> Result<Token, Error> {
        self.submit(0, 0, Command::Flush)
    }

    /// Starts asking for the status of a range of at most [`REQUEST_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// As [`submit_read`](Handle::submit_read), also when no context was negotiated.
    pub fn submit_block_status(&mut self, offset: u64, length: u64) -> Result<Token, Error> {
        check_range(Operation::BlockStatus, length)?;
        let contexts = Vec::with_capacity(self.contexts.len());
        self.submit(offset, length, Command::BlockStatus { contexts })
    }

    fn submit(&mut self, offset: u64, length: u64, command: Command) -> Result<Token, Error> {
        let token = Token(self.next_token);
        self.next_token += 1;
        let request = Request {
            token,
            offset,
            length,
            export_size: self.info.size,
            command,
            outcome: None,
            violation: None,
            done: self.done.clone(),
        };
        request.submit(&self.raw)?;
        self.in_flight += 1;
        Ok(token)
    }

    fn check_payload(&self, operation: Operation, length: u64) -> Result<(), Error> {
        let limit = self.info.block_size.payload_bytes_max();
        if length > limit as u64 {
            return Err(Error::refused(
                operation,
                format!("{length} bytes in one request; this server's limit is {limit}"),
            ));
        }
        Ok(())
    }

    // ---- Completions ---------------------------------------------------------------

    /// Drives the connection until a completion is ready, nothing is in flight, the limit
    /// passes (`None`: never; zero: only do what can be done at once) or a [`Waker`] is used.
    ///
    /// # Errors
    /// Only failures of waiting itself. When the connection breaks, every request in flight
    /// completes with an error.
    pub fn poll(&mut self, timeout: Option<Duration>) -> Result<Polled, Error> {
        self.poll_until(Deadline::after(timeout))
    }

    fn poll_until(&mut self, deadline: Deadline) -> Result<Polled, Error> {
        loop {
            self.gather();
            if !self.ready.is_empty() {
                return Ok(Polled::Ready);
            }
            if self.in_flight == 0 {
                return Ok(Polled::Idle);
            }
            match step(&self.raw, deadline, Some(&self.waker)) {
                Ok(Step::Worked) => {}
                Ok(Step::TimedOut) => return Ok(Polled::TimedOut),
                Ok(Step::Woken) => return Ok(Polled::Woken),
                Err(error) => {
                    // A broken connection has just completed every request with an error.
                    self.gather();
                    if self.ready.is_empty() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Takes the oldest completion that is ready, without driving the connection.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.gather();
        self.ready.pop_front()
    }

    /// Waits for the next completion; `None` when nothing is in flight.
    ///
    /// # Errors
    /// As [`poll`](Handle::poll), and [`Error::Interrupted`] when a [`Waker`] was used; the
    /// requests stay in flight.
    pub fn wait(&mut self) -> Result<Option<Completion>, Error> {
        match self.poll(None)? {
            Polled::Woken => Err(Error::Interrupted(Operation::Poll)),
            _ => Ok(self.ready.pop_front()),
        }
    }

    /// Moves what the callbacks have reported to where it is handed out from.
    fn gather(&mut self) {
        while let Ok(completion) = self.finished.try_recv() {
            self.in_flight -= 1;
            if !self.disowned.remove(&completion.token) {
                self.ready.push_back(completion);
            }
        }
    }

    // ---- Synchronous forms ---------------------------------------------------------

    /// Waits for one request; completions of others stay for later.
    fn wait_for(&mut self, operation: Operation, token: Token) -> Result<Reply, Error> {
        let mut others = VecDeque::new();
        let outcome = loop {
            self.gather();
            match self.ready.pop_front() {
                Some(completion) if completion.token == token => break completion.result,
                Some(other) => others.push_back(other),
                None => match self.poll(None) {
                    Ok(Polled::Ready) => {}
                    Ok(_) => {
                        self.disowned.insert(token);
                        break Err(Error::Interrupted(operation));
                    }
                    Err(error) => {
                        self.disowned.insert(token);
                        break Err(error);
                    }
                },
            }
        };
        others.append(&mut self.ready);
        self.ready = others;
        outcome
    }

    /// Reads `length` bytes at `offset` in one request.
    ///
    /// # Errors
    /// As [`submit_read`](Handle::submit_read); [`Error::Request`] when the server fails it;
    /// [`Error::Protocol`] for a reply that breaks the rules; [`Error::Interrupted`].
    pub fn read(&mut self, offset: u64, length: usize) -> Result<ReadReply, Error> {
        // Before allocating.
        self.check_payload(Operation::Read, length as u64)?;
        let token = self.submit_read(offset, vec![0; length])?;
        match self.wait_for(Operation::Read, token)? {
            Reply::Read(reply) => Ok(reply),
            _ => unreachable!("a read completes as a read"),
        }
    }

    /// Writes `data` at `offset` in one request.
    pub fn write(
        &mut self,
        offset: u64,
        data: impl AsRef<[u8]> + Send + 'static,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        let token = self.submit_write(offset, data, flags)?;
        self.wait_for(Operation::Write, token).map(drop)
    }

    /// Writes zeroes over a range of any length, in as many requests as it takes.
    pub fn zero(&mut self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), Error> {
        for (offset, length) in cut(offset, length) {
            let token = self.submit_zero(offset, length, flags)?;
            self.wait_for(Operation::Zero, token)?;
        }
        Ok(())
    }

    /// Trims a range of any length, in as many requests as it takes.
    pub fn trim(&mut self, offset: u64, length: u64, flags: WriteFlags) -> Result<(), Error> {
        for (offset, length) in cut(offset, length) {
            let token = self.submit_trim(offset, length, flags)?;
            self.wait_for(Operation::Trim, token)?;
        }
        Ok(())
    }

    /// Makes all completed writes durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        let token = self.submit_flush()?;
        self.wait_for(Operation::Flush, token).map(drop)
    }

    /// Asks once for the status of a range; a longer one than [`REQUEST_BYTES_MAX`] is cut.
    /// The reply has at most one entry per granted context, and may cover less than the
    /// range, each context for itself: see [`StatusMap`](crate::StatusMap) for a whole walk.
    pub fn block_status(&mut self, offset: u64, length: u64) -> Result<Vec<ContextExtents>, Error> {
        let token = self.submit_block_status(offset, length.min(REQUEST_BYTES_MAX))?;
        match self.wait_for(Operation::BlockStatus, token)? {
            Reply::BlockStatus(contexts) => Ok(contexts),
            _ => unreachable!("a block status completes as a block status"),
        }
    }

    // ---- The end -------------------------------------------------------------------

    /// Waits for all requests in flight, says goodbye, and waits until the server has closed
    /// the connection, all within `limit` (`None` waits for ever).
    ///
    /// To abandon what is in flight, drop the handle instead. The library's own "abandon
    /// pending" shutdown is not used: it aborts the whole process in some states, and waits
    /// without a limit.
    ///
    /// # Errors
    /// The first failure among the requests whose completions were not taken, else
    /// [`Error::TimedOut`] or [`Error::Interrupted`]. The connection is closed in any case.
    pub fn shutdown(mut self, limit: Option<Duration>) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        let mut failure = None;
        loop {
            match self.poll_until(deadline)? {
                Polled::Ready => {
                    for completion in self.ready.drain(..) {
                        failure = failure.or(completion.result.err());
                    }
                }
                Polled::Idle => break,
                Polled::TimedOut => {
                    return Err(failure.unwrap_or(deadline.error(Operation::Shutdown)));
                }
                Polled::Woken => {
                    return Err(failure.unwrap_or(Error::Interrupted(Operation::Shutdown)));
                }
            }
        }
        if self.raw.phase() != Phase::Ended {
            self.raw.disconnect(0)?;
        }
        while self.raw.phase() != Phase::Ended {
            match step(&self.raw, deadline, Some(&self.waker)) {
                Ok(Step::Worked) => {}
                Ok(Step::TimedOut) => {
                    return Err(failure.unwrap_or(deadline.error(Operation::Shutdown)));
                }
                Ok(Step::Woken) => {
                    return Err(failure.unwrap_or(Error::Interrupted(Operation::Shutdown)));
                }
                // A server may close its end in any manner once everything is answered.
                Err(_) => break,
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Sends a signal to the subprocess that serves this export.
    ///
    /// # Errors
    /// [`Error::Library`] when there is none.
    pub fn kill_subprocess(&self, signal: i32) -> Result<(), Error> {
        self.raw.kill_subprocess(signal).map(drop)
    }
}

fn check_range(operation: Operation, length: u64) -> Result<(), Error> {
    if length > REQUEST_BYTES_MAX {
        return Err(Error::refused(
            operation,
            format!("{length} bytes in one request; the limit is {REQUEST_BYTES_MAX}"),
        ));
    }
    Ok(())
}

/// Cuts a range into pieces that one request can cover.
fn cut(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let part = (length - done).min(REQUEST_BYTES_MAX);
        let piece = (part > 0).then_some((offset.saturating_add(done), part));
        done += part;
        piece
    })
}
