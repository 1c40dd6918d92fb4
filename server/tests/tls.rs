//! TLS, with the clients of others and with one that misbehaves.

mod common;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command as Process, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::authority::Authority;
use common::secured::start_tls;
use common::{Client, MIB, Served, contexts, info, pattern, run};
use nbd_server::wire::option::ClientOption;
use nbd_server::wire::option_reply::{OptionError, ReplyBody};
use nbd_server::wire::reply::ReplyHead;
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{
    Client as Asking, Error, Export, ExportError, ExportMap, Exports, Limits, Listener, Listing,
    MemoryDisk, OpenError, Running, Server, Tls, TlsMode,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tempfile::TempDir;

fn disk() -> MemoryDisk {
    let disk = MemoryDisk::new(64 * MIB);
    disk.write(0, &pattern(20 << 20)).expect("written");
    disk
}

/// A server on a loopback port.
struct Remote {
    _running: Running,
    address: SocketAddr,
    dir: TempDir,
    copy: Arc<MemoryDisk>,
}

impl Remote {
    fn start(tls: Tls) -> Remote {
        let listener = Listener::tcp_with_tls((Ipv4Addr::LOCALHOST, 0).into(), tls);
        let listener = listener.expect("a port");
        let address = listener.tcp_address().expect("TCP");
        let copy = Arc::new(MemoryDisk::new(64 * MIB));
        let exports = ExportMap::new()
            .with("disk", Arc::new(disk()))
            .with("copy", copy.clone());
        let running = Server::new(Arc::new(exports)).start(vec![listener]);
        Remote {
            _running: running.expect("the server starts"),
            address,
            dir: tempfile::tempdir().expect("a temporary directory"),
            copy,
        }
    }

    /// The URI of an export, for the client of an authority.
    fn uri(&self, export: &str, authority: &Authority) -> String {
        self.uri_with(export, &authority.folder())
    }

    fn uri_with(&self, export: &str, certificates: &str) -> String {
        format!(
            "nbds://localhost:{}/{export}?tls-certificates={}",
            self.address.port(),
            certificates
        )
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn attempt(program: &str, arguments: &[&str]) -> Output {
    Process::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(reason), "{said}");
}

fn bytes(disk: &dyn Export) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &mut bytes).expect("read");
    bytes
}

#[test]
fn nbdinfo_and_nbdcopy_work_through_tls_with_verified_clients() {
    let authority = Authority::new();
    let remote = Remote::start(authority.tls_for_clients_of(&authority));
    let about = run("nbdinfo", &["--json", &remote.uri("disk", &authority)]);
    let about: Value = serde_json::from_str(&about).expect("JSON");
    assert_eq!(about["TLS"], true);
    assert_eq!(about["structured"], true);
    let list = run(
        "nbdinfo",
        &["--list", "--json", &remote.uri("", &authority)],
    );
    let list: Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!(list["exports"].as_array().map(Vec::len), Some(2));

    let file = remote.path("copy");
    run("nbdcopy", &[&remote.uri("disk", &authority), &file]);
    assert!(fs::read(&file).expect("a file") == bytes(&disk()));
    run("nbdcopy", &[&file, &remote.uri("copy", &authority)]);
    assert!(bytes(&*remote.copy) == bytes(&disk()));
}

#[test]
fn qemu_img_works_through_tls_of_both_versions() {
    let authority = Authority::new();
    let remote = Remote::start(authority.tls_for_clients_of(&authority));
    for version in ["VERS-TLS1.2", "VERS-TLS1.3"] {
        let credentials = format!(
            "tls-creds-x509,id=tls,endpoint=client,dir={},priority=NORMAL:-VERS-ALL:+{version}",
            authority.folder()
        );
        let image = format!(
            "driver=nbd,host=localhost,port={},export=disk,tls-creds=tls",
            remote.address.port()
        );
        let copy = remote.path(version);
        let mut args = vec!["convert", "--object", &credentials, "--image-opts", &image];
        args.extend(["-O", "raw", &copy]);
        run("qemu-img", &args);
        assert!(
            fs::read(&copy).expect("a file") == bytes(&disk()),
            "{version}"
        );
    }
}

#[test]
fn a_server_of_another_authority_is_refused_by_the_client() {
    let (authority, other) = (Authority::new(), Authority::new());
    let remote = Remote::start(authority.tls());
    run("nbdinfo", &[&remote.uri("disk", &authority)]);
    let output = attempt("nbdinfo", &[&remote.uri("disk", &other)]);
    assert_refused(&output, "certificate");
}

/// Notes who asks for which export.
struct Noting(Mutex<Vec<(String, Option<Vec<u8>>)>>);

impl Exports for Noting {
    fn list(&self, _: &Asking) -> Result<Arc<[Listing]>, ExportError> {
        Ok([].into())
    }

    fn open(&self, name: &str, client: &Asking) -> Result<Arc<dyn Export>, OpenError> {
        let certificate = client.certificate().map(<[u8]>::to_vec);
        let encrypted = if client.is_encrypted() {
            "TLS"
        } else {
            "plain"
        };
        let mut noted = self.0.lock().expect("unpoisoned");
        noted.push((format!("{name} {encrypted}"), certificate));
        Ok(Arc::new(disk()))
    }
}

#[test]
fn exports_see_the_certificate_of_a_verified_client_and_only_within_tls() {
    let authority = Authority::new();
    let noting = Arc::new(Noting(Mutex::default()));
    let verifying = authority.tls_for_clients_of(&authority);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("s").display().to_string();
    let local = Listener::unix(&socket).expect("a socket");
    let local = local.with_tls(TlsMode::Allowed(verifying.clone()));
    let remote = Listener::tcp_with_tls((Ipv4Addr::LOCALHOST, 0).into(), verifying);
    let remote = remote.expect("a port");
    let port = remote.tcp_address().expect("TCP").port();
    let listeners = vec![local.expect("a unix socket"), remote];
    let _running = Server::new(noting.clone())
        .start(listeners)
        .expect("started");
    let certificates = authority.folder();
    let secure = format!("nbds://localhost:{port}/one?tls-certificates={certificates}");
    run("nbdinfo", &["--size", &secure]);
    run(
        "nbdinfo",
        &["--size", &format!("nbd+unix:///two?socket={socket}")],
    );
    let own = authority.file("client-cert.pem");
    let own = CertificateDer::from_pem_file(own)
        .expect("a certificate")
        .to_vec();
    let noted = noting.0.lock().expect("unpoisoned");
    let expected = [
        ("one TLS".to_owned(), Some(own)),
        ("two plain".to_owned(), None),
    ];
    assert_eq!(*noted, expected);
}

#[test]
fn clients_without_a_certificate_or_with_one_of_another_authority_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let remote = Remote::start(authority.tls_for_clients_of(&other));
    assert_refused(
        &attempt("nbdinfo", &[&remote.uri("disk", &authority)]),
        "nbd",
    );
    let anonymous = authority.anonymous_client();
    let without = remote.uri_with("disk", &anonymous.folder());
    assert_refused(&attempt("nbdinfo", &[&without]), "nbd");

    let remote = Remote::start(authority.tls());
    run("nbdinfo", &[&remote.uri_with("disk", &anonymous.folder())]);
}

#[test]
fn where_tls_is_required_plain_text_learns_nothing_and_gets_nothing() {
    let authority = Authority::new();
    let remote = Remote::start(authority.tls());
    let plain = format!("nbd://localhost:{}/disk", remote.address.port());
    assert_refused(&attempt("nbdinfo", &[&plain]), "Operation not supported");
    assert_refused(&attempt("nbdinfo", &["--list", &plain]), "not supported");
    assert_refused(&attempt("qemu-img", &["info", &plain]), "TLS");

    let exports = ExportMap::new().with("disk", Arc::new(disk()));
    let required = TlsMode::Required(authority.tls());
    let served = Served::start_with_tls(exports, Limits::default(), required);
    let mut client = served.client();
    let set = ClientOption::SetMetaContext(contexts("disk", &["base:allocation"]));
    let mut long = b"IHAVEOPT\0\0\0\x07\0\x02\0\0".to_vec();
    long.resize(16 + (2 << 16), 0);
    for option in [
        ClientOption::List.encode(),
        ClientOption::Info(info("disk")).encode(),
        ClientOption::Info(info("nope")).encode(),
        ClientOption::Go(info("disk")).encode(),
        ClientOption::StructuredReply.encode(),
        ClientOption::Unknown(4711).encode(),
        set.encode(),
        b"IHAVEOPT\0\0\0\x03\0\0\0\x01x".to_vec(),
        long,
    ] {
        let replies = client.raw_option(&option);
        let [ReplyBody::Error { code, .. }] = replies[..] else {
            panic!("{option:?}: {replies:?}");
        };
        assert_eq!(code, OptionError::TlsRequired, "{option:?}");
    }
    client.accepted(&ClientOption::Abort);

    let mut client = served.client();
    let option = ClientOption::ExportName("disk".to_owned());
    client.stream.write_all(&option.encode()).expect("sent");
    assert!(client.is_closed());
}

#[test]
fn where_tls_is_allowed_the_client_chooses() {
    let authority = Authority::new();
    let exports = ExportMap::new().with("disk", Arc::new(disk()));
    let allowed = TlsMode::Allowed(authority.tls());
    let served = Served::start_with_tls(exports, Limits::default(), allowed);
    for (scheme, tls) in [("nbd+unix", false), ("nbds+unix", true)] {
        let uri = format!(
            "{scheme}:///disk?socket={}&tls-certificates={}",
            served.socket().display(),
            authority.folder()
        );
        let about = run("nbdinfo", &["--json", &uri]);
        let about: Value = serde_json::from_str(&about).expect("JSON");
        assert_eq!(about["TLS"], tls);
    }
}

#[test]
fn what_was_agreed_in_plain_text_does_not_count_within_tls() {
    let authority = Authority::new();
    let exports = ExportMap::new().with("disk", Arc::new(disk()));
    let allowed = TlsMode::Allowed(authority.tls());
    let served = Served::start_with_tls(exports, Limits::default(), allowed);
    let mut client = served.client();
    client.accepted(&ClientOption::StructuredReply);
    let wanted = contexts("disk", &["base:allocation"]);
    client.accepted(&ClientOption::SetMetaContext(wanted.clone()));
    client.accepted(&ClientOption::Info(info("disk")));

    let mut client = start_tls(client, &authority);
    let again = client.option(&ClientOption::StartTls);
    assert!(
        matches!(
            again[..],
            [ReplyBody::Error {
                code: OptionError::Invalid,
                ..
            }]
        ),
        "{again:?}"
    );
    let set = client.option(&ClientOption::SetMetaContext(wanted));
    assert!(
        matches!(
            set[..],
            [ReplyBody::Error {
                code: OptionError::Invalid,
                ..
            }]
        ),
        "structured replies were forgotten: {set:?}"
    );
    client.go("disk");
    client.send(Command::Read, 1, 0, 512);
    assert_eq!(client.reply().0, ReplyHead::Simple { error: None });
    assert!(client.bytes(512) == pattern(512));
}

#[test]
fn plain_text_injected_behind_starttls_is_not_used() {
    let authority = Authority::new();
    let exports = ExportMap::new().with("secret", Arc::new(disk()));
    let (events, seen) = std::sync::mpsc::channel();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path: PathBuf = dir.path().join("s");
    let listener = Listener::unix(&path).expect("a socket");
    let listener = listener.with_tls(TlsMode::Allowed(authority.tls()));
    let _running = Server::new(Arc::new(exports))
        .with_observer(move |event| {
            if let nbd_server::Event::Closed { outcome, .. } = event {
                let injected = matches!(outcome, Err(Error::PlainTextAfterStartTls));
                let broken = matches!(outcome, Err(Error::TlsHandshake { .. }));
                events.send((injected, broken)).expect("a test");
            }
        })
        .start(vec![listener.expect("a unix socket")])
        .expect("the server starts");
    let connect = || Client::greet(UnixStream::connect(&path).expect("the server listens"));

    // In the same packet, as a man in the middle would.
    let mut client = connect();
    let mut both = ClientOption::StartTls.encode();
    both.extend(ClientOption::List.encode());
    client.accepted_raw(&both);
    assert!(client.is_closed());
    assert_eq!(seen.recv(), Ok((true, false)));

    // After the server's consent.
    let mut client = connect();
    client.accepted(&ClientOption::StartTls);
    client
        .stream
        .write_all(&ClientOption::List.encode())
        .expect("sent");
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert!(!rest.windows(6).any(|part| part == b"secret"), "{rest:?}");
    assert_eq!(seen.recv(), Ok((false, true)));
}

impl Client {
    /// Sends bytes of which the first are an option that is accepted.
    fn accepted_raw(&mut self, bytes: &[u8]) {
        assert_eq!(self.raw_option(bytes), [ReplyBody::Ack]);
    }
}

#[test]
fn requests_in_both_directions_at_once_arrive_whole() {
    let authority = Authority::new();
    let copy = Arc::new(MemoryDisk::new(8 * MIB));
    let exports = ExportMap::new().with("disk", copy.clone());
    let required = TlsMode::Required(authority.tls());
    let served = Served::start_with_tls(exports, Limits::default(), required);
    let mut client = start_tls(served.client(), &authority);
    client.accepted(&ClientOption::StructuredReply);
    client.go("disk");
    let data = pattern(8 << 20);
    for (number, piece) in data.chunks(1 << 20).enumerate() {
        client.send(Command::Write, number as u64, number as u64 * MIB, 1 << 20);
        client.stream.write_all(piece).expect("sent");
    }
    for _ in 0..8 {
        assert_eq!(client.reply().0, ReplyHead::Simple { error: None });
    }
    assert!(bytes(&*copy) == data);
    for number in 0..64 {
        client.send(Command::Read, number, number * MIB / 8, 128 << 10);
    }
    let mut found = vec![0; 8 << 20];
    for _ in 0..64 {
        let (head, cookie, content) = client.reply();
        assert!(
            matches!(head, ReplyHead::Data { done: true, .. }),
            "{head:?}"
        );
        found[cookie as usize * (128 << 10)..][..content.len()].copy_from_slice(&content);
    }
    assert!(found == data);
    client.send(Command::Disconnect, 0, 0, 0);
    // The goodbye of TLS, without which this would be an error.
    assert_eq!(
        std::io::Read::read(&mut client.stream, &mut [0]).expect("an end"),
        0
    );
}

#[test]
fn a_client_that_never_stops_asking_gets_what_it_asked_before_a_stop_and_then_the_end() {
    let authority = Authority::new();
    let listener = Listener::tcp_with_tls((Ipv4Addr::LOCALHOST, 0).into(), authority.tls());
    let listener = listener.expect("a port");
    let address = listener.tcp_address().expect("TCP");
    let exports = ExportMap::new().with("disk", Arc::new(disk()));
    let running = Server::new(Arc::new(exports)).start(vec![listener]);
    let running = running.expect("the server starts");
    let raw = Client::connect(address);
    let socket = raw.stream.try_clone().expect("a socket");
    let mut client = start_tls(raw, &authority);
    client.accepted(&ClientOption::StructuredReply);
    client.go("disk");
    let asked = 400;
    for cookie in 0..asked {
        client.send(Command::Read, cookie, 4096, 512);
    }
    Client { stream: socket }.wait_until_received();
    let stop = std::thread::spawn(move || running.stop(Duration::from_secs(20)));
    let mut answered = 0;
    while let Some((_, cookie, content)) = client.reply_or_end() {
        assert!(content == pattern(5 << 10)[4096..4608]);
        answered += u64::from(cookie < asked);
        let request = Request {
            flags: CommandFlags(0),
            command: Command::Read,
            cookie: asked,
            offset: 4096,
            length: 512,
        };
        // Fails once the server does not listen any more.
        let _ = client.stream.write_all(&request.encode());
    }
    assert_eq!(answered, asked);
    drop(client);
    stop.join().expect("no panic").expect("all in time");
}

#[test]
fn a_client_that_falls_silent_in_the_tls_handshake_is_dropped() {
    let authority = Authority::new();
    let mut limits = Limits::default();
    limits.handshake = Duration::from_millis(300);
    let exports = ExportMap::new().with("disk", Arc::new(disk()));
    let served = Served::start_with_tls(exports, limits, TlsMode::Allowed(authority.tls()));
    let mut client = served.client();
    client.accepted(&ClientOption::StartTls);
    client.stream.write_all(&[22, 3, 1]).expect("sent");
    assert!(client.is_closed());
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let authority = Authority::new();
    let (certificate, key) = (
        authority.file("server-cert.pem"),
        authority.file("server-key.pem"),
    );
    for (certificate, key, guilty) in [
        (&authority.file("nothing"), &key, "nothing"),
        (&certificate, &certificate, "server-cert.pem"),
        (&key, &key, "server-key.pem"),
        (
            &certificate,
            &authority.file("client-key.pem"),
            "server-cert.pem",
        ),
    ] {
        let error = Tls::new(certificate, key).expect_err("unusable");
        assert!(error.to_string().contains(guilty), "{error}");
    }
}
