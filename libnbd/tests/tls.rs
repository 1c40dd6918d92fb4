//! TLS: which settings are refused, and real handshakes with certificates made on the spot.

mod common;

use std::path::{Path, PathBuf};

use common::{Server, path, run};
use libnbd::{Builder, Endpoint, Error, Tls};
use tempfile::TempDir;

/// A certificate authority with one certificate for `localhost`, in directories as servers
/// and clients expect them.
struct Authority {
    dir: TempDir,
}

impl Authority {
    fn new() -> Authority {
        let authority = Authority {
            dir: tempfile::tempdir().expect("a directory"),
        };
        for directory in ["server", "client"] {
            std::fs::create_dir(authority.dir.path().join(directory)).expect("creates it");
        }
        let (ca, ca_key) = (authority.file("ca-cert.pem"), authority.file("ca-key.pem"));
        let key_args = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        let mut args = vec!["req", "-x509", "-subj", "/CN=Test authority", "-days", "2"];
        args.extend(key_args);
        args.extend(["-keyout", path(&ca_key), "-out", path(&ca)]);
        run("openssl", args);

        let (request, key) = (
            authority.file("request.pem"),
            authority.file("server/server-key.pem"),
        );
        let mut args = vec!["req", "-new", "-subj", "/CN=localhost"];
        args.extend(key_args);
        args.extend(["-keyout", path(&key), "-out", path(&request)]);
        run("openssl", args);

        let (names, certificate) = (
            authority.file("names"),
            authority.file("server/server-cert.pem"),
        );
        std::fs::write(&names, "subjectAltName=DNS:localhost\n").expect("writes the names");
        run(
            "openssl",
            [
                "x509",
                "-req",
                "-days",
                "2",
                "-CAcreateserial",
                "-in",
                path(&request),
                "-CA",
                path(&ca),
                "-CAkey",
                path(&ca_key),
                "-extfile",
                path(&names),
                "-out",
                path(&certificate),
            ],
        );
        for directory in ["server", "client"] {
            let copy = authority.file(directory).join("ca-cert.pem");
            std::fs::copy(&ca, copy).expect("copies the authority");
        }
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> Tls {
        Tls::require(self.file("client"))
    }

    /// An nbdkit that talks TLS only, and its port.
    fn serve(&self) -> (Server, u16) {
        let certificates = format!("--tls-certificates={}", path(&self.file("server")));
        let server = Server::nbdkit_tcp(["--tls=require", &certificates, "pattern", "1M"]);
        let Endpoint::Tcp { port, .. } = server.endpoint else {
            panic!("not a port: {:?}", server.endpoint);
        };
        (server, port)
    }
}

fn refused(builder: &Builder, endpoint: &Endpoint) -> String {
    match builder.connect(endpoint) {
        Err(Error::Tls(reason)) => reason,
        other => panic!("{endpoint:?}: {other:?}"),
    }
}

#[test]
fn a_server_of_the_right_authority_and_name_is_accepted() {
    let authority = Authority::new();
    let (_server, port) = authority.serve();
    let builder = Builder::new().tls(authority.client());
    for endpoint in [
        Endpoint::tcp("localhost", port),
        Endpoint::uri(format!("nbds://localhost:{port}/")),
    ] {
        let mut nbd = builder.connect(&endpoint).expect("is authenticated");
        let reply = nbd.read(0, 1 << 20).expect("reads");
        assert!(reply.bytes == common::pattern(0, 1 << 20));
        nbd.shutdown(None).expect("ends in order");
    }
    let mut offer = builder
        .negotiate(&Endpoint::tcp("localhost", port))
        .expect("is authenticated");
    assert_eq!(offer.exports().expect("lists").len(), 1);
}

#[test]
fn a_server_of_another_authority_or_name_is_refused() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let (_server, port) = right.serve();
    for (tls, host) in [(wrong.client(), "localhost"), (right.client(), "127.0.0.1")] {
        let endpoint = Endpoint::tcp(host, port);
        let error = Builder::new().tls(tls).connect(&endpoint).expect_err(host);
        assert!(
            error.to_string().contains("certificate verification"),
            "{error}"
        );
    }
}

#[test]
fn neither_side_falls_back_to_plain_text() {
    let authority = Authority::new();
    let (server, _) = authority.serve();
    assert!(
        Builder::new().connect(&server.endpoint).is_err(),
        "the server wants TLS"
    );

    let plain = Server::nbdkit_tcp(["pattern", "1M"]);
    let builder = Builder::new().tls(authority.client());
    assert!(
        builder.connect(&plain.endpoint).is_err(),
        "the client wants TLS"
    );
    let Endpoint::Tcp { port, .. } = plain.endpoint else {
        panic!("not a port: {:?}", plain.endpoint);
    };
    let reason = builder.connect(&Endpoint::uri(format!("nbd://127.0.0.1:{port}")));
    assert!(
        reason.is_err(),
        "the URI does not ask for TLS, the settings do"
    );
}

#[test]
fn tls_is_refused_where_the_server_could_not_be_authenticated() {
    let authority = Authority::new();
    let tls = Builder::new().tls(authority.client());
    for endpoint in [
        Endpoint::unix("/nonexistent/nbd.sock"),
        Endpoint::uri("nbds+unix:///?socket=/nonexistent/nbd.sock"),
        Endpoint::uri("nbds+vsock://2"),
        Endpoint::uri("nbd://localhost"),
        Endpoint::command(["nbdkit", "-s", "null"]),
        Endpoint::socket_activation(["nbdkit", "null"]),
    ] {
        let reason = refused(&tls, &endpoint);
        assert!(reason.contains("authenticated"), "{endpoint:?}: {reason}");
    }
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    assert!(matches!(
        tls.connect_socket(socket.into()),
        Err(Error::Tls(_))
    ));
}

#[test]
fn tls_without_a_certificate_directory_is_refused() {
    let authority = Authority::new();
    let (_server, port) = authority.serve();
    for scheme in ["nbds", "NBDS", "nbds+unix"] {
        let endpoint = Endpoint::uri(format!("{scheme}://localhost:{port}/"));
        assert!(refused(&Builder::new(), &endpoint).contains("no certificate directory"));
    }
    // Nor may the URI bring one of its own: it would be a file that the URI chooses.
    let directory = authority.file("client");
    let uri = format!(
        "nbds://localhost:{port}/?tls-certificates={}",
        path(&directory)
    );
    let with = Builder::new().tls(authority.client());
    assert!(with.connect(&Endpoint::uri(uri)).is_err());

    let without_authority = Builder::new().tls(Tls::require(Path::new("/nonexistent")));
    let endpoint = Endpoint::tcp("localhost", port);
    assert!(refused(&without_authority, &endpoint).contains("ca-cert.pem"));
}
