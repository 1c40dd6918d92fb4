//! TLS: with what a server proves who it is, and whom it lets in ("TLS support").
//!
//! [`stream`] carries the bytes. This module is left out without the feature `tls`; what takes its
//! place has the same types, none of which can be made.

mod stream;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::error::Error;
pub(crate) use stream::{TlsReader, TlsWriter, accept};

/// A server's certificate, its key, and which clients it accepts. Cheap to clone.
///
/// TLS 1.2 and 1.3 are spoken. Certificates are those of X.509 version 3, in PEM files, as
/// `certtool` and `openssl req` make them and as QEMU and libnbd use them
/// (`server-cert.pem`, `server-key.pem`, `ca-cert.pem`).
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

impl Tls {
    /// A server with this certificate, which may be followed by those of its issuers, and this
    /// key. Any client is accepted.
    ///
    /// # Errors
    /// [`Error::TlsSetup`] if a file cannot be read or the two do not belong together.
    pub fn new(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, Error> {
        Self::build(certificate.as_ref(), key.as_ref(), None)
    }

    /// As [`new`](Self::new), but accepts only clients with a certificate that an authority in the
    /// file `authorities` has signed.
    ///
    /// # Errors
    /// As for [`new`](Self::new), also for `authorities`.
    pub fn verifying_clients(
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
        authorities: impl AsRef<Path>,
    ) -> Result<Self, Error> {
        Self::build(
            certificate.as_ref(),
            key.as_ref(),
            Some(authorities.as_ref()),
        )
    }

    fn build(certificate: &Path, key: &Path, authorities: Option<&Path>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(setup("choose the versions of TLS for", certificate))?;
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(setup("use", path))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(setup("use", path))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let private = PrivateKeyDer::from_pem_file(key).map_err(setup("read", key))?;
        let mut config = builder
            .with_single_cert(certificates(certificate)?, private)
            .map_err(setup("use", certificate))?;
        // Connections live long, so what would be kept to resume them is not worth its memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Tls::from(Arc::new(config)))
    }
}

/// A configuration of one's own: other certificates for other names, certificates that are renewed
/// while the server runs, revocation lists.
impl From<Arc<ServerConfig>> for Tls {
    fn from(config: Arc<ServerConfig>) -> Self {
        Tls { config }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// All certificates in a file.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(setup("read", path))?;
    if found.is_empty() {
        return Err(setup("use", path)("there is no certificate in it"));
    }
    Ok(found)
}

fn setup<E: fmt::Display>(verb: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |reason| Error::TlsSetup {
        verb,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
