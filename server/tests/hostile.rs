//! Clients that mean harm or do not care, while another keeps its service.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use common::{Client, MIB, Served, pattern};
use nbd_server::wire::option::{ClientOption, OptionHeader};
use nbd_server::wire::request::Command;
use nbd_server::{Connection, Export, ExportMap, Helpers, Limits, MemoryDisk};
use proptest::prelude::*;
use std::sync::Arc;

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
