//! Reading the next request, and the data of a write.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::PoisonError;

use super::Line;
use super::answer::Workspace;
use crate::channel::Incoming;
use crate::error::Error;
use crate::export::ExportError;
use crate::limits::{PAYLOAD_BYTES_MAX, PIECE_BYTES};
use crate::pulse::Beat;
use crate::stream_io::{Patience, is_timeout, read_whole, skip};
use crate::wire::request::{Command, Request};

/// A request that has arrived whole.
pub(super) struct Job<'a> {
    pub(super) request: Request,
    /// What came of it, if nothing is left to do but to answer.
    pub(super) outcome: Option<Result<(), ExportError>>,
    _beat: Beat<'a>,
}

impl<R: Read + Send, W: Write + Send> Line<'_, R, W> {
    /// The next request; the data of a write that is still to be done is in the workspace. `None`
    /// when the client is done.
    pub(super) fn receive(&self, workspace: &mut Workspace) -> Result<Option<Job<'_>>, Error> {
        let mut intake = self.intake.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.await_request(&mut intake)? {
            return Ok(None);
        }
        let beat = self.pulse.beat();
        let mut patience = Patience::with_message(self.limits.stall);
        let mut head = [0; Request::BYTES];
        read_whole(&mut *intake, &mut head, "read a request", &mut patience)?;
        let request = Request::decode(&head).map_err(Error::malformed("request"))?;
        let outcome = match request.command {
            Command::Disconnect => return Ok(None),
            Command::Write => self.receive_write(&mut intake, &request, workspace)?,
            _ => self.agreed.check(&request).err().map(Err),
        };
        Ok(Some(Job {
            request,
            outcome,
            _beat: beat,
        }))
    }

    /// Waits for the first byte of a request, for as long as it takes.
    fn await_request(&self, intake: &mut BufReader<Incoming<R>>) -> Result<bool, Error> {
        loop {
            match intake.fill_buf() {
                Ok(bytes) => return Ok(!bytes.is_empty()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(error.kind()) && !self.has_ended() => {}
                Err(_) if self.has_ended() => return Ok(false),
                Err(error) => return Err(Error::io("read a request")(error)),
            }
        }
    }

    /// Receives the data of a write. One that fits into a piece is left in the workspace; a longer
    /// one is written as it arrives, and one that is refused is skipped.
    fn receive_write(
        &self,
        intake: &mut BufReader<Incoming<R>>,
        request: &Request,
        workspace: &mut Workspace,
    ) -> Result<Option<Result<(), ExportError>>, Error> {
        const VERB: &str = "read the data of a write";
        if request.length > PAYLOAD_BYTES_MAX {
            return Err(Error::WriteTooLong {
                bytes: request.length,
            });
        }
        let mut outcome = self.agreed.check(request);
        let length = request.length as usize;
        let mut done = 0;
        while done < length {
            let mut patience = Patience::with_message(self.limits.stall);
            let piece = (length - done).min(PIECE_BYTES);
            if outcome.is_err() {
                skip(intake, piece as u64, VERB, &mut patience)?;
            } else {
                let buffer = workspace.buffer(piece);
                read_whole(intake, buffer, VERB, &mut patience)?;
                if length > PIECE_BYTES {
                    let offset = request.offset + done as u64;
                    outcome = self.agreed.export.write(offset, buffer);
                }
            }
            done += piece;
        }
        if outcome.is_ok() && length > PIECE_BYTES {
            outcome = self.persist(request);
        }
        let complete = outcome.is_err() || length > PIECE_BYTES;
        Ok(complete.then_some(outcome))
    }
}
