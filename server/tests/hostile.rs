//! Clients that mean harm or do not care, while another keeps its service.

mod common;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use common::{Client, Gate, MIB, Served, pattern};
use nbd_server::wire::option::{ClientOption, OptionHeader};
use nbd_server::wire::request::Command;
use nbd_server::{
    Client as Asking, Connection, Export, ExportError, ExportMap, Exports, Helpers, Limits,
    Listing, MemoryDisk, OpenError,
};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn disk() -> MemoryDisk {
    let disk = MemoryDisk::new(64 * MIB);
    disk.write(0, &pattern(40 << 20)).expect("written");
    disk
}

fn impatient() -> Limits {
    let mut limits = Limits::default();
    limits.handshake = Duration::from_millis(300);
    limits.stall = Duration::from_millis(300);
    limits
}

fn serve(limits: Limits) -> Served {
    Served::start(ExportMap::new().with("disk", Arc::new(disk())), limits)
}

#[test]
fn garbage_and_wrong_magic_end_the_connection_and_no_other() {
    let served = serve(Limits::default());
    let mut good = served.session();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"\0\0\0\x03IHAVEOPX\0\0\0\x07\0\0\0\0",
    ] {
        let mut stream = served.connect();
        stream.read_exact(&mut [0; 18]).expect("a greeting");
        stream.write_all(garbage).expect("sent");
        let _ = stream.read_to_end(&mut Vec::new());
        good.assert_served();
    }
    let mut bad = served.session();
    bad.stream.write_all(&[0x25; 28]).expect("sent");
    assert!(bad.is_closed());
    good.assert_served();
}

#[test]
fn absurd_lengths_end_the_connection_before_anything_is_allocated() {
    let served = serve(Limits::default());
    let mut good = served.session();
    let mut client = served.client();
    let header = OptionHeader {
        option: 7,
        length: u32::MAX,
    };
    client.stream.write_all(&header.encode()).expect("sent");
    assert!(client.is_closed());
    let mut client = served.session();
    client.send(Command::Write, 1, 0, u32::MAX);
    assert!(client.is_closed());
    good.assert_served();
}

#[test]
fn clients_that_fall_silent_in_the_middle_are_dropped() {
    let served = serve(impatient());
    let mut idle = served.session();
    let mut says_nothing = served.connect();
    let mut half_an_option = served.client();
    half_an_option.stream.write_all(b"IHAVE").expect("sent");
    let mut half_a_request = served.session();
    half_a_request
        .stream
        .write_all(&[0x25, 0x60])
        .expect("sent");
    let mut half_a_write = served.session();
    half_a_write.send(Command::Write, 1, 0, 1 << 20);
    half_a_write.stream.write_all(&[1; 1000]).expect("sent");
    let _ = says_nothing.read_to_end(&mut Vec::new());
    assert!(half_an_option.is_closed());
    assert!(half_a_request.is_closed());
    assert!(half_a_write.is_closed());
    idle.assert_served();
}

/// An export for every name, each of which takes its time to be found.
struct Laborious(Arc<AtomicUsize>);

impl Exports for Laborious {
    fn list(&self, _: &Asking) -> Result<Arc<[Listing]>, ExportError> {
        Ok([].into())
    }

    fn open(&self, _: &str, _: &Asking) -> Result<Arc<dyn Export>, OpenError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        Ok(Arc::new(MemoryDisk::new(MIB)))
    }
}

#[test]
fn a_client_that_keeps_the_server_busy_without_choosing_runs_out_of_time() {
    let opened = Arc::new(AtomicUsize::new(0));
    let served = Served::start(Laborious(opened.clone()), impatient());
    let mut client = served.client();
    // All at once, so that the server never waits for the next.
    let questions: Vec<u8> = (0..30)
        .flat_map(|number| ClientOption::Info(common::info(&number.to_string())).encode())
        .collect();
    client.stream.write_all(&questions).expect("sent");
    let _ = std::io::copy(&mut client.stream, &mut std::io::sink());
    assert!(opened.load(Ordering::Relaxed) < 30);
}

#[test]
fn a_client_that_takes_no_replies_is_dropped_and_holds_up_nobody() {
    let served = serve(impatient());
    let mut good = served.session();
    let mut greedy: Vec<Client> = (0..8).map(|_| served.session()).collect();
    for client in &mut greedy {
        for cookie in 0..64 {
            client.send(Command::Read, cookie, 0, 32 << 20);
        }
    }
    good.assert_served();
    served.wait_for_connections(1);
    for client in &mut greedy {
        // What was sent before it was dropped is still there; nothing like 64 replies is.
        let mut taken = Vec::new();
        let _ = client.stream.read_to_end(&mut taken);
        assert!(taken.len() < 64 << 20, "{}", taken.len());
    }
    good.assert_served();
}

#[test]
fn helpers_taken_by_others_leave_every_client_its_own_thread() {
    let mut limits = Limits::default();
    limits.helpers_max = 4;
    let served = serve(limits);
    let mut greedy: Vec<Client> = (0..8).map(|_| served.session()).collect();
    for client in &mut greedy {
        for cookie in 0..64 {
            client.send(Command::Read, cookie, 0, 32 << 20);
        }
    }
    served.session().assert_served();
}

#[test]
fn greedy_clients_leave_every_connection_its_share_of_the_helpers() {
    let (gate, has_entered, open) = Gate::new();
    let exports = ExportMap::new()
        .with("greedy", Arc::new(disk()))
        .with("disk", Arc::new(gate));
    let mut limits = Limits::default();
    limits.connections_max = 8;
    limits.helpers_max = 16;
    let served = Served::start(exports, limits);
    let mut greedy: Vec<Client> = (0..4).map(|_| served.client()).collect();
    for client in &mut greedy {
        client.accepted(&ClientOption::StructuredReply);
        client.go("greedy");
        for cookie in 0..64 {
            client.send(Command::Read, cookie, 0, 32 << 20);
        }
        client.bytes(1);
    }
    let mut client = served.session();
    client.send(Command::Read, 1, 0, 512);
    has_entered.recv().expect("the first is carried out");
    client.send(Command::Read, 2, 4096, 512);
    assert_eq!(client.reply().1, 2);
    open.send(()).expect("the first waits");
    assert_eq!(client.reply().1, 1);
}

#[test]
fn a_flood_of_connections_shuts_out_neither_those_inside_nor_the_next() {
    let mut limits = Limits::default();
    limits.connections_max = 8;
    let served = serve(limits);
    let mut good = served.session();
    let flood: Vec<_> = (0..300).map(|_| served.connect()).collect();
    good.assert_served();
    served.session().assert_served();
    let running = served.running.as_ref().expect("running");
    assert!(running.connections() <= 8);
    drop(flood);
}

#[test]
fn those_inside_read_on_while_bad_clients_of_every_kind_come_and_go() {
    let mut limits = impatient();
    limits.connections_max = 16;
    let served = serve(limits);
    let content = pattern(40 << 20);
    let mut good: Vec<Client> = (0..4).map(|_| served.session()).collect();
    let mut slow: Vec<Client> = (0..4).map(|_| served.session()).collect();
    let (done, came) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let end = OnDrop(&done);
        for client in &mut slow {
            for cookie in 0..64 {
                client.send(Command::Read, cookie, 0, 32 << 20);
            }
            // A byte now and then.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = client.stream.read(&mut [0]);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let come_and_go = || {
            let last_word = [&b""[..], b"\0\0\0\x03", b"\0\0\0\x03IHAVE", &[0xff; 99]];
            let mut staying = VecDeque::new();
            while !done.load(Ordering::Relaxed) {
                let mut stream = served.connect();
                let count = came.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(last_word[count % last_word.len()]);
                staying.push_back(stream);
                if staying.len() > 20 {
                    staying.pop_front();
                }
            }
        };
        scope.spawn(come_and_go);
        scope.spawn(come_and_go);
        const LEN: usize = 256 << 10;
        let mut at = 0;
        while came.load(Ordering::Relaxed) < 2000 || at < 400 {
            for client in &mut good {
                at += 1;
                let offset = at * 7919 % (39 << 20);
                client.send(Command::Read, at as u64, offset as u64, LEN as u32);
                let (_, cookie, bytes) = client.reply();
                assert_eq!(cookie, at as u64);
                assert!(bytes == content[offset..offset + LEN]);
            }
        }
        drop(end);
    });
    drop(slow);
    served.wait_for_connections(4);
    served.session().assert_served();
}

/// Ends what goes on beside, also when something was not as it should be.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn clients_that_chose_an_export_and_want_nothing_make_room_and_busy_ones_do_not() {
    let mut limits = Limits::default();
    limits.idle = Duration::ZERO;
    limits.stall = Duration::from_secs(600);
    let served = serve(limits);
    // It has asked for more than fits into the socket, and takes it late.
    let mut busy = served.session();
    busy.send(Command::Read, 1, 0, 32 << 20);
    busy.bytes(1);
    let mut silent: Vec<Client> = (0..63).map(|_| served.session()).collect();
    for _ in 0..3 {
        served.session().assert_served();
    }
    let many: Vec<Client> = (0..63).map(|_| served.session()).collect();
    for client in &mut silent {
        assert!(client.is_closed());
    }
    let rest = (20 << 20) + 28;
    assert_eq!(busy.bytes(rest).len(), rest);
    drop(many);
}

#[test]
fn at_the_limit_a_client_too_many_is_turned_away_at_once() {
    let mut limits = Limits::default();
    limits.connections_max = 2;
    let served = serve(limits);
    let (mut one, mut two) = (served.session(), served.session());
    let mut three = served.connect();
    assert_eq!(three.read(&mut [0; 18]).unwrap_or(0), 0);
    one.assert_served();
    two.assert_served();
}

#[test]
fn a_client_gone_with_requests_in_flight_leaves_nothing_behind() {
    let mut served = serve(Limits::default());
    for _ in 0..20 {
        let mut client = served.session();
        for cookie in 0..32 {
            client.send(Command::Read, cookie, 0, 1 << 20);
        }
        client.stream.shutdown(Shutdown::Both).expect("shut down");
    }
    let running = served.running.take().expect("running");
    running
        .stop(Duration::from_secs(60))
        .expect("no thread is left");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_in_either_phase_end_in_order(
        negotiated: bool,
        options in prop::collection::vec(any::<u8>(), 0..4),
        requests in prop::collection::vec((0u16..32, 0u16..10, any::<u64>(), any::<u32>()), 0..6),
        tail: Vec<u8>,
    ) {
        let mut input = vec![0, 0, 0, 3];
        if negotiated {
            input.extend(ClientOption::StructuredReply.encode());
            input.extend(ClientOption::Go(common::info("disk")).encode());
            for (flags, command, offset, length) in requests {
                input.extend(0x2560_9513u32.to_be_bytes());
                input.extend(flags.to_be_bytes());
                input.extend(command.to_be_bytes());
                input.extend([0; 8]);
                input.extend((offset % (2 * MIB)).to_be_bytes());
                input.extend((length % (1 << 18)).to_be_bytes());
            }
        } else {
            for option in options {
                let length = u32::from(option);
                let option = u32::from(option % 12);
                input.extend(OptionHeader { option, length }.encode());
                input.extend(&tail);
            }
        }
        input.extend(&tail);
        let exports = ExportMap::new().with("disk", Arc::new(MemoryDisk::new(MIB)));
        let mut output = Vec::new();
        let connection = Connection::new(&input[..], &mut output, Limits::default());
        if let Ok(Some(session)) = connection.negotiate(&exports) {
            let _ = session.serve(&Helpers::new(2));
        }
        prop_assert!(output.starts_with(b"NBDMAGICIHAVEOPT"));
    }
}
