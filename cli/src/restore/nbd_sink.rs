//! Writing a disk to an NBD server, over several connections where it allows them, with many
//! requests in flight on each.
//!
//! A write is accepted before the server has confirmed it; [`NbdSink::finish`] waits for all of
//! them, flushes, and is the only proof that they succeeded. Ranges never overlap, so their order
//! does not matter.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossbeam_channel::{Receiver, Sender};
use libnbd::{Builder, Endpoint, Handle, Polled, REQUEST_BYTES_MAX, WriteFlags, ZeroFlags};
use virtkeep_repo::{ByteLen, Cancel, DiskOffset, DiskSink, SourceError};

/// Connections to a server that keeps them coherent.
const CONNECTIONS: usize = 4;
/// Unconfirmed requests on one connection. QEMU works on 16 at a time.
const IN_FLIGHT_MAX: usize = 16;
/// Bytes in one write of zeroes to a server that has no better way.
const ZERO_WRITE_BYTES: usize = 1 << 20;
/// How often a wait looks whether it should stop.
const CANCEL_CHECK: Duration = Duration::from_millis(200);
/// How long the goodbyes may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// What the export holds beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// All zero, such as an image just made.
    Zeroes,
    /// Anything.
    Anything,
}

/// An NBD export that is being written.
pub(crate) struct NbdSink {
    idle: Receiver<Handle>,
    give_back: Sender<Handle>,
    connections: usize,
    before: Before,
    payload_bytes_max: usize,
    can_zero: bool,
    can_flush: bool,
    cancel: Cancel,
}

impl NbdSink {
    /// Takes over a first connection and opens more to the same server.
    pub(crate) fn new(
        first: Handle,
        builder: &Builder,
        endpoint: &Endpoint,
        before: Before,
        cancel: &Cancel,
    ) -> Result<Self> {
        ensure!(!first.flags().read_only, "the export is read-only");
        let flags = first.flags();
        let payload_bytes_max = first.block_size().payload_bytes_max();
        let (give_back, idle) = crossbeam_channel::bounded(CONNECTIONS);
        let mut handles = vec![first];
        if flags.multi_conn {
            while handles.len() < CONNECTIONS {
                handles.push(builder.connect(endpoint)?);
            }
        }
        let connections = handles.len();
        for handle in handles {
            // There is room for every connection.
            let _ = give_back.send(handle);
        }
        Ok(Self {
            idle,
            give_back,
            connections,
            before,
            payload_bytes_max,
            can_zero: flags.zero,
            can_flush: flags.flush,
            cancel: cancel.clone(),
        })
    }

    /// Waits until the server has confirmed every write and made it durable.
    pub(crate) fn finish(self) -> Result<()> {
        let mut handles: Vec<Handle> = self.idle.try_iter().collect();
        ensure!(
            handles.len() == self.connections,
            "a connection was lost on the way"
        );
        for handle in &mut handles {
            settle(handle, 0, &self.cancel)?;
        }
        if self.can_flush
            && let Some(handle) = handles.first_mut()
        {
            // With several connections a flush on one covers the confirmed writes of all.
            handle.submit_flush()?;
            settle(handle, 0, &self.cancel)?;
        }
        for handle in handles {
            handle
                .shutdown(Some(SHUTDOWN_LIMIT))
                .context("the server did not end the connection in order")?;
        }
        Ok(())
    }

    fn on_idle_connection(
        &self,
        work: impl FnOnce(&mut Handle) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut handle = self.idle.recv()?;
        let result = work(&mut handle);
        // There is room for every connection.
        let _ = self.give_back.send(handle);
        result
    }

    fn write_zeroes(&self, handle: &mut Handle, start: u64, len: u64) -> Result<(), SourceError> {
        let zeroes: Arc<[u8]> = vec![0; ZERO_WRITE_BYTES.min(self.payload_bytes_max)].into();
        for (offset, len) in pieces(start, len, zeroes.len() as u64) {
            settle(handle, IN_FLIGHT_MAX - 1, &self.cancel)?;
            let part = Zeroes(Arc::clone(&zeroes), len as usize);
            handle.submit_write(offset, part, WriteFlags::default())?;
        }
        Ok(())
    }
}

/// The first bytes of a shared run of zeroes.
struct Zeroes(Arc<[u8]>, usize);

impl AsRef<[u8]> for Zeroes {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

impl DiskSink for NbdSink {
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError> {
        self.on_idle_connection(|handle| {
            let mut at = offset.0;
            for part in bytes.chunks(self.payload_bytes_max) {
                settle(handle, IN_FLIGHT_MAX - 1, &self.cancel)?;
                handle.submit_write(at, part.to_vec(), WriteFlags::default())?;
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn zero(&self, offset: DiskOffset, len: ByteLen) -> Result<(), SourceError> {
        if self.before == Before::Zeroes {
            return Ok(());
        }
        self.on_idle_connection(|handle| {
            if !self.can_zero {
                return self.write_zeroes(handle, offset.0, len.0);
            }
            for (offset, len) in pieces(offset.0, len.0, REQUEST_BYTES_MAX) {
                settle(handle, IN_FLIGHT_MAX - 1, &self.cancel)?;
                handle.submit_zero(offset, len, ZeroFlags::default())?;
            }
            Ok(())
        })
    }
}

/// Why a write was not confirmed.
#[derive(Debug, thiserror::Error)]
enum Unconfirmed {
    #[error("{0}")]
    Nbd(#[from] libnbd::Error),
    #[error("{0}")]
    Cancelled(#[from] virtkeep_repo::Error),
}

/// Takes confirmations until no more than `remaining` requests are unconfirmed.
fn settle(handle: &mut Handle, remaining: usize, cancel: &Cancel) -> Result<(), Unconfirmed> {
    let mut wait = Duration::ZERO;
    loop {
        let polled = handle.poll(Some(wait))?;
        while let Some(completion) = handle.next_completion() {
            completion.result?;
        }
        if handle.outstanding() <= remaining || polled == Polled::Idle {
            return Ok(());
        }
        cancel.check()?;
        wait = CANCEL_CHECK;
    }
}

/// Cuts a range into pieces of at most `max` bytes.
fn pieces(start: u64, len: u64, max: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len)
        .step_by(usize::try_from(max).unwrap_or(usize::MAX))
        .map(move |done| (start + done, max.min(len - done)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_exactly() {
        let cut: Vec<_> = pieces(10, 25, 10).collect();
        assert_eq!(cut, [(10, 10), (20, 10), (30, 5)]);
        assert_eq!(pieces(10, 0, 10).count(), 0);
    }
}
