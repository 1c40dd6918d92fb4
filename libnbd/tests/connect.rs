//! Ways to connect, and ways in which connecting fails.

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use common::{Server, path, pattern, qcow2, qemu_io};
use libnbd::{Builder, Endpoint, Error, Operation};

const SHORT: Option<Duration> = Some(Duration::from_millis(300));

#[test]
fn a_unix_socket_a_uri_a_port_and_a_connected_socket_lead_to_the_same_bytes() {
    let local = Server::nbdkit(["pattern", "1M"]);
    let remote = Server::nbdkit_tcp(["pattern", "1M"]);
    let Endpoint::Tcp { port, .. } = remote.endpoint else {
        panic!("not a port: {:?}", remote.endpoint);
    };
    let socket: OwnedFd = UnixStream::connect(local.socket())
        .expect("connects")
        .into();
    let handles = [
        local.connect(),
        Builder::new()
            .connect(&Endpoint::uri(local.uri()))
            .expect("unix URI"),
        Builder::new()
            .connect_socket(socket)
            .expect("connected socket"),
        remote.connect(),
        Builder::new()
            .connect(&Endpoint::uri(format!("nbd://localhost:{port}/")))
            .expect("TCP URI"),
    ];
    for mut nbd in handles {
        assert_eq!(nbd.size(), 1 << 20);
        let reply = nbd.read(4093, 1000).expect("reads");
        assert_eq!(reply.bytes, pattern(4093, 1000));
        nbd.shutdown(None).expect("ends in order");
    }
}

#[test]
fn a_command_on_standard_input_serves_and_ends_with_the_handle() {
    let argv = ["nbdkit", "-s", "--exit-with-parent", "pattern", "1M"];
    let mut nbd = Builder::new()
        .connect(&Endpoint::command(argv))
        .expect("nbdkit -s speaks NBD");
    assert_eq!(nbd.read(0, 64).expect("reads").bytes, pattern(0, 64));
    drop(nbd);
}

#[test]
fn socket_activation_opens_a_qcow2_image() {
    let (_dir, image) = qcow2("1M");
    qemu_io(&image, &["write -P 0x5a 64k 64k"]);
    let argv = ["qemu-nbd", "-r", "-f", "qcow2", path(&image)];
    let mut nbd = Builder::new()
        .connect(&Endpoint::socket_activation(argv))
        .expect("qemu-nbd takes the socket");
    assert!(nbd.flags().read_only);
    assert_eq!(nbd.read(65536, 4096).expect("reads").bytes, [0x5a; 4096]);
    nbd.kill_subprocess(15).expect("there is a subprocess");
}

#[test]
fn facts_about_an_export_are_what_the_server_says() {
    let server = Server::nbdkit([
        "-r",
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=512",
        "blocksize-preferred=4k",
        "blocksize-maximum=1M",
    ]);
    let nbd = server.connect();
    assert_eq!(nbd.size(), 1 << 20);
    assert!(nbd.flags().read_only && nbd.flags().multi_conn && nbd.flags().structured_replies);
    let limits = nbd.block_size();
    assert_eq!(
        (limits.minimum, limits.preferred, limits.maximum),
        (Some(512), Some(4096), Some(1 << 20))
    );
    assert_eq!(limits.payload_bytes_max(), 1 << 20);

    let writable = Server::nbdkit(["memory", "1M"]).connect();
    let flags = writable.flags();
    assert!(!flags.read_only && flags.zero && flags.trim && flags.flush && flags.fua);
    assert_eq!(writable.block_size().payload_bytes_max(), 32 << 20);
    assert!(
        writable.kill_subprocess(15).is_err(),
        "there is no subprocess"
    );
}

#[test]
fn a_listener_that_never_answers_runs_into_the_time_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("mute.sock");
    let _listener = UnixListener::bind(&socket).expect("binds");
    let builder = Builder::new().connect_timeout(SHORT);
    let uri = Endpoint::uri(format!("nbd+unix:///?socket={}", path(&socket)));
    for endpoint in [Endpoint::unix(&socket), uri] {
        let error = builder.connect(&endpoint).expect_err("nobody answers");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert_eq!(error.operation(), Some(Operation::Connect));
    }
    let stream: OwnedFd = UnixStream::connect(&socket).expect("connects").into();
    let error = builder.connect_socket(stream).expect_err("nobody answers");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

#[test]
fn one_connection_too_many_is_a_timeout_and_not_a_hang() {
    let (dir, image) = qcow2("1M");
    let server = Server::qemu_nbd(dir, ["-e", "2", "-f", "qcow2", path(&image)]);
    let builder = Builder::new().connect_timeout(SHORT);
    let (first, _second) = (server.connect(), server.connect());
    assert!(first.flags().multi_conn);
    let error = builder
        .connect(&server.endpoint)
        .expect_err("the server is full");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");

    first.shutdown(None).expect("ends in order");
    server.connect();
}

#[test]
fn a_command_that_says_nothing_is_killed_when_the_time_is_up() {
    let builder = Builder::new().connect_timeout(SHORT);
    for endpoint in [
        Endpoint::command(["sleep", "1000"]),
        Endpoint::socket_activation(["sleep", "1000"]),
    ] {
        let error = builder.connect(&endpoint).expect_err("sleep is no server");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }
}

#[test]
fn failures_to_connect_say_what_failed_and_carry_the_error_number() {
    const ENOENT: i32 = 2;
    let error = Builder::new()
        .connect(&Endpoint::unix("/nonexistent/nbd.sock"))
        .expect_err("there is no such socket");
    assert_eq!(error.errno(), Some(ENOENT), "{error}");

    let (dir, image) = qcow2("1M");
    let server = Server::qemu_nbd(dir, ["-x", "disk", "-f", "qcow2", path(&image)]);
    let error = Builder::new()
        .export("other")
        .connect(&server.endpoint)
        .expect_err("there is no such export");
    assert!(error.to_string().contains("other"), "{error}");
    assert_eq!(
        server.connect_with(&Builder::new().export("disk")).size(),
        1 << 20
    );

    for (argv, endpoint) in [
        ("false", Endpoint::command(["false"])),
        ("nothing", Endpoint::command(["/nonexistent/server"])),
    ] {
        let error = Builder::new().connect(&endpoint).expect_err(argv);
        assert_eq!(error.operation(), Some(Operation::Connect), "{error}");
    }
    let refused = Endpoint::tcp("127.0.0.1", 1);
    let error = Builder::new()
        .connect(&refused)
        .expect_err("nobody listens there");
    assert!(matches!(error, Error::Library { .. }), "{error}");
}

#[test]
fn names_with_nul_empty_commands_and_endless_paths_are_refused() {
    let nul = Builder::new().export("a\0b");
    for (builder, endpoint) in [
        (nul, Endpoint::unix("/nonexistent")),
        (Builder::new(), Endpoint::unix("/a\0b")),
        (Builder::new(), Endpoint::command(Vec::<String>::new())),
        (Builder::new(), Endpoint::unix("/x".repeat(54))),
    ] {
        let error = builder.connect(&endpoint).expect_err("refused");
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }
}
