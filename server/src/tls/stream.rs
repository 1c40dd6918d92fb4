//! A TLS connection over any reader and writer, as a reader and a writer again that two threads
//! may use at the same time.
//!
//! The state of the connection is locked while bytes are decrypted or encrypted, and never while
//! the stream blocks. What the stream did not take is kept and sent first the next time, so that a
//! write that timed out is tried again like one of a plain socket. Only the writer sends: what the
//! reader finds to be answered waits for the next write.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ServerConnection;

use super::Tls;
use crate::error::Error;
use crate::limits::TLS_PIECE_BYTES;
use crate::stream_io::{Patience, is_timeout};

const VERB: &str = "start TLS";

/// The state of one connection, shared by its two halves.
#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<ServerConnection>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the client says.
#[derive(Debug)]
pub(crate) struct TlsReader<R> {
    raw: R,
    shared: Shared,
    /// What has arrived and was not looked at: `arrived[start..end]`.
    arrived: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What is said to the client.
#[derive(Debug)]
pub(crate) struct TlsWriter<W> {
    raw: W,
    shared: Shared,
    /// What is encrypted; the first `sent` bytes of it are sent.
    encrypted: Vec<u8>,
    sent: usize,
}

/// Takes the server's part in the TLS handshake.
pub(crate) fn accept<R: Read, W: Write>(
    tls: &Tls,
    reader: R,
    writer: W,
    patience: &mut Patience,
) -> Result<(TlsReader<R>, TlsWriter<W>), Error> {
    let mut connection = ServerConnection::new(tls.config.clone()).map_err(failed)?;
    connection.set_buffer_limit(Some(TLS_PIECE_BYTES));
    let shared = Shared(Arc::new(Mutex::new(connection)));
    let mut reader = TlsReader {
        raw: reader,
        shared: shared.clone(),
        arrived: vec![0; TLS_PIECE_BYTES].into(),
        start: 0,
        end: 0,
    };
    let mut writer = TlsWriter {
        raw: writer,
        shared: shared.clone(),
        encrypted: Vec::new(),
        sent: 0,
    };
    while shared.lock().is_handshaking() {
        patiently(patience, || reader.fetch())?;
        let mut connection = shared.lock();
        while connection.is_handshaking() && reader.start < reader.end {
            if let Err(error) = reader.decrypt(&mut connection) {
                drop(connection);
                // So that the client learns why, if it still listens.
                let _ = writer.flush();
                return Err(failed(error));
            }
        }
        drop(connection);
        patiently(patience, || writer.flush())?;
    }
    Ok((reader, writer))
}

fn patiently(
    patience: &mut Patience,
    mut step: impl FnMut() -> io::Result<()>,
) -> Result<(), Error> {
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted || is_timeout(error.kind()) => {}
            Err(error) => return Err(Error::io(VERB)(error)),
        }
        patience.check()?;
    }
}

fn failed(reason: impl ToString) -> Error {
    Error::TlsHandshake {
        reason: reason.to_string(),
    }
}

impl<R: Read> TlsReader<R> {
    /// Waits for bytes.
    fn fetch(&mut self) -> io::Result<()> {
        if self.start < self.end {
            return Ok(());
        }
        let count = self.raw.read(&mut self.arrived)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        (self.start, self.end) = (0, count);
        Ok(())
    }

    /// Hands on some of the bytes that have arrived.
    fn decrypt(&mut self, connection: &mut ServerConnection) -> io::Result<()> {
        let mut rest = &self.arrived[self.start..self.end];
        self.start += connection.read_tls(&mut rest)?;
        let done = connection.process_new_packets();
        done.map(drop)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

impl<R: Read> Read for TlsReader<R> {
    /// An end without TLS's own goodbye is an end like any other: every message of the protocol
    /// tells its length.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let shared = self.shared.clone();
        loop {
            let mut connection = shared.lock();
            loop {
                match connection.reader().read(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    result => return result,
                }
                if self.start == self.end {
                    break;
                }
                self.decrypt(&mut connection)?;
            }
            drop(connection);
            match self.fetch() {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                result => result?,
            }
        }
    }
}

impl<W: Write> TlsWriter<W> {
    /// The certificate of the client, as DER, if it was verified.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        let connection = self.shared.lock();
        let own = connection.peer_certificates()?.first()?;
        Some(own.to_vec())
    }

    /// Takes over what the connection has to send.
    fn collect(&mut self, connection: &mut ServerConnection) -> io::Result<()> {
        while connection.wants_write() {
            connection.write_tls(&mut self.encrypted)?;
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.encrypted.len() {
            match self.raw.write(&self.encrypted[self.sent..])? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => self.sent += count,
            }
        }
        self.encrypted.clear();
        self.sent = 0;
        Ok(())
    }

    /// Says that nothing follows, as far as the stream takes it at once.
    pub(crate) fn close(&mut self) {
        self.shared.lock().send_close_notify();
        let _ = self.flush();
    }
}

impl<W: Write> Write for TlsWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send()?;
        let shared = self.shared.clone();
        let mut connection = shared.lock();
        let count = connection.writer().write_vectored(slices)?;
        self.collect(&mut connection)?;
        drop(connection);
        match self.send() {
            // These bytes are ours now, and are sent by the next call.
            Err(error) if error.kind() == ErrorKind::Interrupted || is_timeout(error.kind()) => {}
            result => result?,
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        self.collect(&mut shared.lock())?;
        self.send()?;
        self.raw.flush()
    }
}
