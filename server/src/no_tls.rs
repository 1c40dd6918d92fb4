//! What takes the place of TLS without the feature `tls`: types that have no values, so that all
//! code about TLS is left out by the compiler.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::marker::PhantomData;

use crate::error::Error;
use crate::stream_io::Patience;

/// A server's certificate and key; there is none without the feature `tls`.
#[derive(Debug, Clone)]
pub struct Tls(Infallible);

#[derive(Debug)]
pub(crate) struct TlsReader<R>(Infallible, PhantomData<R>);

#[derive(Debug)]
pub(crate) struct TlsWriter<W>(Infallible, PhantomData<W>);

pub(crate) fn accept<R, W>(
    tls: &Tls,
    _: R,
    _: W,
    _: &mut Patience,
) -> Result<(TlsReader<R>, TlsWriter<W>), Error> {
    match tls.0 {}
}

impl<R> Read for TlsReader<R> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }
}

impl<W> TlsWriter<W> {
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        match self.0 {}
    }

    pub(crate) fn close(&mut self) {
        match self.0 {}
    }
}

impl<W> Write for TlsWriter<W> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0 {}
    }
}
