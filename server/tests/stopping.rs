//! How a server ends, and what no client and no log can do to it meanwhile.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Gate, Served, disk};
use nbd_server::wire::option::ClientOption;
use nbd_server::wire::reply::ReplyHead;
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{ExportMap, Limits, Listener, Server};

#[test]
fn stopping_finishes_the_requests_in_flight_and_then_closes() {
    let (gate, has_entered, open) = Gate::new();
    let mut served = Served::one(gate);
    let mut client = served.session();
    let mut idle = served.session();
    let mut negotiating = served.client();
    client.send(Command::Read, 1, 0, 512);
    has_entered
        .recv()
        .expect("the request is being carried out");
    // The next one is still on its way.
    client.stream.write_all(&[0x25, 0x60]).expect("sent");
    let running = served.running.take().expect("running");
    let stop = std::thread::spawn(move || running.stop(Duration::from_secs(60)));
    assert!(idle.is_closed());
    assert!(negotiating.is_closed());
    assert!(!stop.is_finished(), "it waits for the request");
    open.send(()).expect("the request waits");
    let (head, cookie, content) = client.reply();
    assert!(matches!(head, ReplyHead::Data { done: true, .. }));
    assert_eq!((cookie, content), (1, vec![7; 512]));
    assert!(client.is_closed());
    stop.join()
        .expect("no panic")
        .expect("all connections ended");
    assert!(!served.socket().exists(), "the socket is gone");
}

#[test]
fn a_client_that_never_stops_asking_over_tcp_gets_what_it_asked_before_the_stop_and_then_the_end() {
    let (gate, has_entered, open) = Gate::new();
    let listener = Listener::tcp((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let address = listener.tcp_address().expect("TCP");
    let exports = ExportMap::new().with("disk", Arc::new(gate));
    // What comes behind the first request waits in the socket.
    let mut limits = Limits::default();
    limits.connection_requests_max = 1;
    let running = Server::new(Arc::new(exports))
        .with_limits(limits)
        .start(vec![listener])
        .expect("the server starts");
    let idle = Client::connect(address);
    let mut client = Client::connect(address);
    client.accepted(&ClientOption::StructuredReply);
    client.go("disk");
    client.send(Command::Read, 0, 0, 512);
    has_entered
        .recv()
        .expect("the request is being carried out");
    for cookie in 1..300 {
        client.send(Command::Read, cookie, 4096, 512);
    }
    client.wait_until_received();
    let mut talk = Client {
        stream: client.stream.try_clone().expect("a socket"),
    };
    let stop = std::thread::spawn(move || running.stop(Duration::from_secs(20)));
    while TcpStream::connect(address).is_ok() {}
    let talker = std::thread::spawn(move || {
        let mut request = Vec::new();
        for cookie in 1000.. {
            request.clear();
            talk_of(cookie, &mut request);
            if talk.stream.write_all(&request).is_err() {
                return;
            }
        }
    });
    open.send(()).expect("the first request waits");
    let mut answered = BTreeSet::new();
    while let Some((head, cookie, content)) = client.reply_or_end() {
        assert!(matches!(head, ReplyHead::Data { done: true, .. }));
        assert_eq!(content, [7; 512]);
        assert!(answered.insert(cookie));
    }
    client.stream.shutdown(Shutdown::Both).expect("shut down");
    talker.join().expect("no panic");
    let missed: Vec<_> = (0..300)
        .filter(|cookie| !answered.contains(cookie))
        .collect();
    assert_eq!(missed, [0; 0]);
    stop.join().expect("no panic").expect("all in time");
    drop(idle);
}

#[test]
fn a_stop_waits_for_replies_that_are_on_their_way_over_tcp_and_tells_who_does_not_take_them() {
    const READS: u64 = 16;
    let ask = || {
        let listener = Listener::tcp((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let address = listener.tcp_address().expect("TCP");
        let exports = ExportMap::new().with("disk", Arc::new(disk()));
        let running = Server::new(Arc::new(exports))
            .start(vec![listener])
            .expect("the server starts");
        let mut client = Client::connect(address);
        client.accepted(&ClientOption::StructuredReply);
        client.go("disk");
        for cookie in 0..READS {
            client.send(Command::Read, cookie, 0, 64 << 10);
        }
        client.wait_until_received();
        (running, client)
    };

    // The replies fit into the sockets, so they are all written soon; but this client takes none for
    // longer than it takes to notice an end, and goes on asking.
    let (running, mut client) = ask();
    let stop = std::thread::spawn(move || running.stop(Duration::from_secs(20)));
    let mut late = Vec::new();
    talk_of(1000, &mut late);
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        client.stream.write_all(&late).expect("it listens");
    }
    let mut answered = 0;
    while let Some((_, cookie, _)) = client.reply_or_end() {
        answered += u64::from(cookie < READS);
    }
    assert_eq!(answered, READS);
    stop.join().expect("no panic").expect("all in time");

    let (running, client) = ask();
    let left = running.stop(Duration::from_millis(1500));
    assert_eq!(left.expect_err("it takes nothing").connections, 1);
    drop(client);
}

/// A read of what no gate keeps.
fn talk_of(cookie: u64, request: &mut Vec<u8>) {
    let read = Request {
        flags: CommandFlags(0),
        command: Command::Read,
        cookie,
        offset: 4096,
        length: 512,
    };
    request.extend(read.encode());
}

#[test]
fn a_log_that_panics_costs_no_client_its_service_nor_the_server_its_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("s");
    let listener = Listener::unix(&path).expect("a socket");
    let exports = ExportMap::new().with("disk", Arc::new(disk()));
    let mut limits = Limits::default();
    limits.connections_max = 1;
    let running = Server::new(Arc::new(exports))
        .with_limits(limits)
        .with_observer(|event| panic!("nobody reads {event:?}"))
        .start(vec![listener])
        .expect("the server starts");
    for _ in 0..3 {
        let connect = || UnixStream::connect(&path).expect("the server listens");
        let mut client = Client::greet(connect());
        client.accepted(&ClientOption::StructuredReply);
        client.go("disk");
        client.assert_served();
        let mut one_too_many = connect();
        assert_eq!(one_too_many.read(&mut [0]).unwrap_or(0), 0);
        client.assert_served();
        drop(client);
        while running.connections() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    running
        .stop(Duration::from_secs(20))
        .expect("all have left");
}

#[test]
fn a_stop_that_runs_out_of_time_says_who_is_left() {
    let (gate, has_entered, open) = Gate::new();
    let mut served = Served::one(gate);
    let mut client = served.session();
    client.send(Command::Read, 1, 0, 512);
    has_entered
        .recv()
        .expect("the request is being carried out");
    let running = served.running.take().expect("running");
    let left = running.stop(Duration::ZERO).expect_err("one is left");
    assert_eq!(left.connections, 1);
    open.send(()).expect("the request waits");
    assert!(client.is_closed());

    // Nor is it well if the client could be cut: what it was told is not what it asked for.
    let mut served = Served::one(disk());
    let mut client = served.session();
    client.send(Command::Read, 1, 0, 32 << 20);
    client.bytes(1);
    let running = served.running.take().expect("running");
    let cut = running.stop(Duration::from_millis(100));
    assert_eq!(cut.expect_err("it takes nothing").connections, 1);
}
