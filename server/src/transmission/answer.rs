//! Carrying out one request and sending the reply.
//!
//! What is sent as data was read whole before, in pieces of at most
//! [`PIECE_BYTES`](crate::limits::PIECE_BYTES), so that an error of the export can be told to the
//! client. Only a reply that must be one chunk and is longer than a piece begins before all of it
//! is read.

use std::io::{IoSlice, Read, Write};
use std::ops::Range;
use std::sync::PoisonError;

use super::Line;
use super::receive::Job;
use crate::context::Extents;
use crate::error::Error;
use crate::export::{ErrorCode, ExportError, Holes, ZeroMode};
use crate::limits::{HOLE_BYTES_MIN, PIECE_BYTES, STRING_BYTES_MAX};
use crate::negotiation::SelectedContext;
use crate::stream_io::{Patience, write_whole};
use crate::wire::reply::{Extent, HeadBytes, ReplyHead};
use crate::wire::request::{Command, CommandFlags, Request};

const VERB: &str = "send a reply";

/// What a thread reuses from request to request.
#[derive(Default)]
pub(super) struct Workspace {
    bytes: Vec<u8>,
    holes: Holes,
}

impl Workspace {
    /// Its first `length` bytes, whatever they hold; at most a piece.
    pub(super) fn buffer(&mut self, length: usize) -> &mut [u8] {
        debug_assert!(length <= PIECE_BYTES);
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }
        &mut self.bytes[..length]
    }
}

impl<R: Read + Send, W: Write + Send> Line<'_, R, W> {
    /// Carries out a request, if that is still to do, and answers it.
    pub(super) fn answer(&self, job: &Job<'_>, workspace: &mut Workspace) -> Result<(), Error> {
        let request = &job.request;
        if let Some(outcome) = &job.outcome {
            return self.send_outcome(request, outcome.clone());
        }
        match request.command {
            Command::Read if self.agreed.structured && request.length == 0 => {
                self.send(&[], &ReplyHead::None.encode(request.cookie))
            }
            Command::Read if self.agreed.structured && !request.flags.has(CommandFlags::DF) => {
                self.read_in_chunks(request, workspace)
            }
            Command::Read => self.read_as_one(request, workspace),
            Command::BlockStatus => self.block_status(request),
            _ => self.send_outcome(request, self.carry_out(request, workspace)),
        }
    }

    /// The commands that are answered with success or an error and nothing else.
    fn carry_out(&self, request: &Request, workspace: &mut Workspace) -> Result<(), ExportError> {
        let export = &self.agreed.export;
        let (offset, length) = (request.offset, u64::from(request.length));
        match request.command {
            Command::Flush => return export.flush(),
            _ if length == 0 => {}
            Command::Write => export.write(offset, workspace.buffer(request.length as usize))?,
            Command::WriteZeroes => {
                let mode = ZeroMode {
                    keep_allocated: request.flags.has(CommandFlags::NO_HOLE),
                    fast_only: request.flags.has(CommandFlags::FAST_ZERO),
                };
                export.write_zeroes(offset, length, mode)?;
            }
            Command::Trim => export.trim(offset, length)?,
            Command::Cache => return export.cache(offset, length),
            Command::Read | Command::BlockStatus | Command::Disconnect | Command::Unknown(_) => {
                return Err(ExportError::new(ErrorCode::Invalid, "unknown command"));
            }
        }
        self.persist(request)
    }

    /// A write with `NBD_CMD_FLAG_FUA` is on stable storage before it is answered.
    pub(super) fn persist(&self, request: &Request) -> Result<(), ExportError> {
        if request.flags.has(CommandFlags::FUA) {
            self.agreed.export.flush()?;
        }
        Ok(())
    }

    /// A read, as chunks of data and holes.
    fn read_in_chunks(&self, request: &Request, workspace: &mut Workspace) -> Result<(), Error> {
        let length = request.length as usize;
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(PIECE_BYTES);
            let offset = request.offset + done as u64;
            if let Err(error) = self.read_piece(offset, piece, HOLE_BYTES_MIN, workspace) {
                return self.send_outcome(request, Err(error));
            }
            done += piece;
            self.send_chunks(request.cookie, offset, piece, done == length, workspace)?;
        }
        Ok(())
    }

    /// Reads a piece into the workspace, with the zeroes of all holes shorter than `hole_bytes`.
    fn read_piece(
        &self,
        offset: u64,
        length: usize,
        hole_bytes: usize,
        workspace: &mut Workspace,
    ) -> Result<(), ExportError> {
        workspace.buffer(length);
        let Workspace { bytes, holes } = workspace;
        let buffer = &mut bytes[..length];
        holes.clear();
        self.agreed.export.read_sparse(offset, buffer, holes)?;
        if !holes.are_within(length) {
            let message = "the export reported a hole beyond the end of the read";
            return Err(ExportError::new(ErrorCode::Io, message));
        }
        holes.fill_shorter_than(hole_bytes, buffer);
        Ok(())
    }

    /// Sends the piece in the workspace.
    fn send_chunks(
        &self,
        cookie: u64,
        offset: u64,
        length: usize,
        last: bool,
        workspace: &Workspace,
    ) -> Result<(), Error> {
        let bytes = &workspace.bytes[..length];
        let chunk = |part: Range<usize>, hole: bool| {
            let offset = offset + part.start as u64;
            let done = last && part.end == length;
            let length = part.len() as u32;
            let head = if hole {
                ReplyHead::Hole {
                    offset,
                    length,
                    done,
                }
            } else {
                ReplyHead::Data {
                    offset,
                    length,
                    done,
                }
            };
            head.encode(cookie)
        };
        let holes = workspace.holes.ranges();
        if holes.is_empty() {
            return self.send(bytes, &chunk(0..length, false));
        }
        let mut chunks: Vec<(HeadBytes, &[u8])> = Vec::with_capacity(2 * holes.len() + 1);
        let mut at = 0;
        for hole in holes {
            if at < hole.start {
                chunks.push((chunk(at..hole.start, false), &bytes[at..hole.start]));
            }
            chunks.push((chunk(hole.clone(), true), &[]));
            at = hole.end;
        }
        if at < length {
            chunks.push((chunk(at..length, false), &bytes[at..]));
        }
        let mut slices: Vec<_> = chunks
            .iter()
            .flat_map(|(head, data)| [IoSlice::new(head.as_ref()), IoSlice::new(data)])
            .collect();
        self.send_slices(&mut slices)
    }

    /// A read whose data must follow one head: a simple reply, or one chunk (`NBD_CMD_FLAG_DF`).
    fn read_as_one(&self, request: &Request, workspace: &mut Workspace) -> Result<(), Error> {
        let length = request.length as usize;
        let first = length.min(PIECE_BYTES);
        if let Err(error) = self.read_piece(request.offset, first, usize::MAX, workspace) {
            return self.send_outcome(request, Err(error));
        }
        let head = if self.agreed.structured {
            ReplyHead::Data {
                offset: request.offset,
                length: request.length,
                done: first == length,
            }
        } else {
            ReplyHead::Simple { error: None }
        };
        let head = head.encode(request.cookie);
        if first == length {
            return self.send(workspace.buffer(first), &head);
        }
        self.stream_rest(request, &head, first, workspace)
    }

    /// Sends the first piece of a long read and reads the rest on the way. An error can no longer
    /// be told in the head: a chunk is filled up with zeroes and followed by the error
    /// ("NBD_CMD_READ": "padding bytes"); a simple reply has to break off the connection.
    fn stream_rest(
        &self,
        request: &Request,
        head: &HeadBytes,
        first: usize,
        workspace: &mut Workspace,
    ) -> Result<(), Error> {
        let length = request.length as usize;
        let mut outcome = Ok(());
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let mut patience = Patience::with_message(self.limits.stall);
        let mut slices = [
            IoSlice::new(head.as_ref()),
            IoSlice::new(workspace.buffer(first)),
        ];
        write_whole(&mut *output, &mut slices, VERB, &mut patience)?;
        let mut done = first;
        while done < length {
            let piece = (length - done).min(PIECE_BYTES);
            if outcome.is_ok() {
                let offset = request.offset + done as u64;
                outcome = self.read_piece(offset, piece, usize::MAX, workspace);
            }
            if let Err(error) = &outcome {
                if !self.agreed.structured {
                    let reason = error.to_string();
                    return Err(Error::ReadFailedLate { reason });
                }
                workspace.buffer(piece).fill(0);
            }
            let mut patience = Patience::with_message(self.limits.stall);
            let mut slices = [IoSlice::new(workspace.buffer(piece))];
            write_whole(&mut *output, &mut slices, VERB, &mut patience)?;
            done += piece;
        }
        drop(output);
        match outcome {
            Err(error) => self.send_outcome(request, Err(error)),
            Ok(()) if self.agreed.structured => {
                self.send(&[], &ReplyHead::None.encode(request.cookie))
            }
            Ok(()) => Ok(()),
        }
    }

    /// One chunk per selected context.
    fn block_status(&self, request: &Request) -> Result<(), Error> {
        let (offset, length) = (request.offset, u64::from(request.length));
        let contexts = &self.agreed.contexts;
        for (number, context) in contexts.iter().enumerate() {
            let one = request.flags.has(CommandFlags::REQ_ONE);
            let mut extents = Extents::new(request.length, one);
            let result = match context {
                SelectedContext::Allocation => {
                    let export = &self.agreed.export;
                    export.allocation(offset, length, &mut extents)
                }
                SelectedContext::Own(context) => context.status(offset, length, &mut extents),
            };
            if let Err(error) = result {
                return self.send_outcome(request, Err(error));
            }
            let encoded = extents.finish();
            if encoded.is_empty() {
                let error = ExportError::new(ErrorCode::Io, "the export knows no status here");
                return self.send_outcome(request, Err(error));
            }
            let head = ReplyHead::BlockStatus {
                context: number as u32,
                extents: (encoded.len() / Extent::BYTES) as u32,
                done: number + 1 == contexts.len(),
            };
            self.send(&encoded, &head.encode(request.cookie))?;
        }
        Ok(())
    }

    /// Success without content, or an error.
    fn send_outcome(
        &self,
        request: &Request,
        outcome: Result<(), ExportError>,
    ) -> Result<(), Error> {
        let error = match outcome {
            Ok(()) => {
                let head = ReplyHead::Simple { error: None };
                return self.send(&[], &head.encode(request.cookie));
            }
            Err(error) => error,
        };
        let mut code = error.code();
        if code == ErrorCode::NotSupported && !request.flags.has(CommandFlags::FAST_ZERO) {
            // "The server SHOULD NOT return NBD_ENOTSUP except" for fast zeroes.
            code = ErrorCode::Invalid;
        }
        if !self.agreed.structured {
            let head = ReplyHead::Simple { error: Some(code) };
            return self.send(&[], &head.encode(request.cookie));
        }
        // A text cut within a character would not be UTF-8.
        let message = match error.message() {
            message if message.len() <= STRING_BYTES_MAX => message,
            _ => "",
        };
        let head = ReplyHead::Error {
            code,
            message: message.len() as u16,
        };
        self.send(message.as_bytes(), &head.encode(request.cookie))
    }

    fn send(&self, content: &[u8], head: &HeadBytes) -> Result<(), Error> {
        self.send_slices(&mut [IoSlice::new(head.as_ref()), IoSlice::new(content)])
    }

    fn send_slices(&self, slices: &mut [IoSlice<'_>]) -> Result<(), Error> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let mut patience = Patience::with_message(self.limits.stall);
        write_whole(&mut *output, slices, VERB, &mut patience)
    }
}
