//! Who asks, as far as it is known.

use crate::socket::Peer;

/// A client that asks for exports: what may decide which of them it gets to see. The default is one of
/// whom nothing is known.
#[derive(Debug, Clone, Default)]
pub struct Client {
    pub(crate) peer: Option<Peer>,
    pub(crate) encrypted: bool,
    pub(crate) certificate: Option<Vec<u8>>,
}

impl Client {
    /// Where it comes from; known to a [`Server`](crate::Server), and to a
    /// [`Connection`](crate::Connection) that was told.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Whether it speaks TLS by now. What it was told in plain text does not count within TLS: it has to
    /// ask again.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// The certificate with which it proved who it is, as DER (X.509). None unless clients are
    /// [verified](crate::Tls).
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificate.as_deref()
    }
}
