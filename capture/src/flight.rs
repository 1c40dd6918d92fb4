//! Reads in flight on one NBD connection, each in as many requests as the server's limit asks for.

use std::collections::HashMap;

use libnbd::{Completion, Handle, Reply, Token};
use virtkeep_repo::ReadRequest;

/// The engine's reads that a connection is busy with.
#[derive(Default)]
pub(crate) struct Flight {
    parts: HashMap<Token, Part>,
    reads: HashMap<u64, Reading>,
    next_read: u64,
}

/// One request to the server.
struct Part {
    read: u64,
    /// Where its bytes belong in the buffer of the read.
    start: usize,
}

struct Reading {
    request: ReadRequest,
    missing: usize,
}

impl Flight {
    /// How many requests the server has to answer.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Sends a read to the server. After an error the connection is of no use any more.
    pub(crate) fn submit(
        &mut self,
        handle: &mut Handle,
        mut request: ReadRequest,
    ) -> Result<(), libnbd::Error> {
        let read = self.next_read;
        self.next_read += 1;
        let limit = handle.block_size().payload_bytes_max().max(1);
        let len = request.buffer.len();
        let mut missing = 0;
        let mut start = 0;
        while start < len {
            let part_bytes = limit.min(len - start);
            let buffer = if part_bytes == len {
                // The usual case: the buffer itself goes along, and nothing is copied.
                std::mem::take(&mut request.buffer)
            } else {
                vec![0; part_bytes]
            };
            let token = handle.submit_read(request.offset.0 + start as u64, buffer)?;
            self.parts.insert(token, Part { read, start });
            missing += 1;
            start += part_bytes;
        }
        self.reads.insert(read, Reading { request, missing });
        Ok(())
    }

    /// Takes an answer in; returns the read that it completes, if it does.
    pub(crate) fn land(
        &mut self,
        completion: Completion,
    ) -> Result<Option<ReadRequest>, libnbd::Error> {
        let reply = completion.result?;
        let (Some(part), Reply::Read(reply)) = (self.parts.remove(&completion.token), reply) else {
            return Ok(None);
        };
        let Some(reading) = self.reads.get_mut(&part.read) else {
            return Ok(None);
        };
        let buffer = &mut reading.request.buffer;
        if buffer.is_empty() {
            *buffer = reply.bytes;
        } else {
            let end = part.start + reply.bytes.len();
            buffer[part.start..end].copy_from_slice(&reply.bytes);
        }
        reading.missing -= 1;
        let is_whole = reading.missing == 0;
        Ok(is_whole
            .then(|| self.reads.remove(&part.read))
            .flatten()
            .map(|reading| reading.request))
    }
}
