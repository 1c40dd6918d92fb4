//! The two directions of a connection, in plain text until TLS is started.

use std::io::{self, BufReader, IoSlice, Read, Write};

use crate::error::Error;
use crate::limits::INTAKE_BYTES;
use crate::stream_io::Patience;
use crate::tls::{Tls, TlsReader, TlsWriter, accept};

/// Whether a connection is encrypted. NBD has no authentication of its own: whoever can connect
/// without TLS can read and, if the export allows, write.
#[derive(Debug, Clone, Default)]
pub enum TlsMode {
    /// TLS is not offered.
    #[default]
    Off,
    /// The client chooses. Somebody between the two can keep it from choosing TLS.
    Allowed(Tls),
    /// Nothing is told to a client, and nothing taken from it, before TLS is started.
    Required(Tls),
}

/// What the client says.
#[derive(Debug)]
pub(crate) enum Incoming<R> {
    Plain(R),
    Tls(Box<TlsReader<R>>),
}

/// What is said to the client.
#[derive(Debug)]
pub(crate) enum Outgoing<W> {
    Plain(W),
    Tls(Box<TlsWriter<W>>),
}

/// Goes over to TLS.
///
/// # Errors
/// [`Error::PlainTextAfterStartTls`] if the client has said more than it was asked for: bytes that
/// came in plain text are never taken for bytes that came through TLS.
pub(crate) fn start_tls<R: Read, W: Write>(
    tls: &Tls,
    reader: BufReader<Incoming<R>>,
    writer: Outgoing<W>,
    patience: &mut Patience,
) -> Result<(BufReader<Incoming<R>>, Outgoing<W>), Error> {
    if !reader.buffer().is_empty() {
        return Err(Error::PlainTextAfterStartTls);
    }
    let (Incoming::Plain(reader), Outgoing::Plain(writer)) = (reader.into_inner(), writer) else {
        return Err(Error::TlsHandshake {
            reason: "TLS is running already".to_owned(),
        });
    };
    let (reader, writer) = accept(tls, reader, writer, patience)?;
    let reader = Incoming::Tls(Box::new(reader));
    let reader = BufReader::with_capacity(INTAKE_BYTES, reader);
    Ok((reader, Outgoing::Tls(Box::new(writer))))
}

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Incoming::Plain(reader) => reader.read(buffer),
            Incoming::Tls(reader) => reader.read(buffer),
        }
    }
}

impl<W: Write> Outgoing<W> {
    /// The certificate of the client, as DER, if it was verified.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        match self {
            Outgoing::Plain(_) => None,
            Outgoing::Tls(writer) => writer.certificate(),
        }
    }

    /// Ends TLS in good order, if it is running; the stream below stays open.
    pub(crate) fn close(&mut self) {
        if let Outgoing::Tls(writer) = self {
            writer.close();
        }
    }
}

impl<W: Write> Write for Outgoing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Outgoing::Plain(writer) => writer.write(bytes),
            Outgoing::Tls(writer) => writer.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Outgoing::Plain(writer) => writer.write_vectored(slices),
            Outgoing::Tls(writer) => writer.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Outgoing::Plain(writer) => writer.flush(),
            Outgoing::Tls(writer) => writer.flush(),
        }
    }
}
