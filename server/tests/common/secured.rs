//! The server's and the client's side of TLS, with the certificates of an [`Authority`].

use std::io::{Read, Write};
use std::sync::Arc;

use nbd_server::Tls;
use nbd_server::wire::option::ClientOption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::Client;
use super::authority::Authority;

impl Authority {
    pub fn tls(&self) -> Tls {
        let (certificate, key) = (self.file("server-cert.pem"), self.file("server-key.pem"));
        Tls::new(certificate, key).expect("a certificate and its key")
    }

    pub fn tls_for_clients_of(&self, other: &Authority) -> Tls {
        let (certificate, key) = (self.file("server-cert.pem"), self.file("server-key.pem"));
        Tls::verifying_clients(certificate, key, other.file("ca-cert.pem")).expect("certificates")
    }

    pub fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.file("ca-cert.pem")).expect("a certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

/// The client after `NBD_OPT_STARTTLS`.
pub fn start_tls<S: Read + Write>(
    mut client: Client<S>,
    authority: &Authority,
) -> Client<StreamOwned<ClientConnection, S>> {
    client.accepted(&ClientOption::StartTls);
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(authority.client_config(), name).expect("a client");
    Client {
        stream: StreamOwned::new(connection, client.stream),
    }
}
