//! What greedy clients can make a server hold, measured. Alone in its process, whose memory it reads.

mod common;

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Served};
use nbd_server::wire::reply::ReplyHead;
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{Export, ExportError, ExportMap, Features, Limits};

/// A disk of a tebibyte that costs nothing.
struct Endless;

impl Export for Endless {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn features(&self) -> Features {
        Features {
            writable: true,
            ..Features::default()
        }
    }

    fn read(&self, _: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        buffer.fill(0x5a);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), ExportError> {
        Ok(())
    }
}

/// The most bytes that were in this process's memory at one time.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        << 10
}

fn reads(count: u64, length: u32) -> Vec<u8> {
    let request = |cookie| Request {
        flags: CommandFlags(0),
        command: Command::Read,
        cookie,
        offset: cookie << 20,
        length,
    };
    (0..count)
        .flat_map(|cookie| request(cookie).encode())
        .collect()
}

#[test]
fn thousands_of_requests_in_flight_stay_within_the_named_limits_and_are_all_answered() {
    let mut limits = Limits::default();
    limits.connections_max = 16;
    limits.helpers_max = 16;
    limits.stall = Duration::from_secs(2);
    let bound = limits.bytes_in_flight_max();
    assert_eq!(bound >> 20, 40);
    let served = Served::start(ExportMap::new().with("disk", Arc::new(Endless)), limits);
    let mut good = served.session();
    good.assert_served();
    let before = peak_bytes();

    // Eight ask for 60 GiB each and take nothing; four send half of a long write.
    let mut greedy: Vec<Client> = (0..12).map(|_| served.session()).collect();
    for client in &mut greedy[..8] {
        client
            .stream
            .write_all(&reads(1900, 32 << 20))
            .expect("sent");
    }
    for client in &mut greedy[8..] {
        client.send(Command::Write, 1, 0, 32 << 20);
        let half = vec![0; 16 << 20];
        client.stream.write_all(&half).expect("sent");
    }
    for _ in 0..100 {
        good.assert_served();
    }
    let own = 16 << 20; // The half writes above are this test's own memory, one at a time.
    let grown = peak_bytes() - before;
    assert!(grown < bound + own, "{grown} bytes, {bound} allowed");
    served.wait_for_connections(1);

    let count = 5000;
    let mut stream = good.stream.try_clone().expect("a socket");
    let sender = std::thread::spawn(move || stream.write_all(&reads(count, 4096)));
    let mut answered = vec![false; count as usize];
    for _ in 0..count {
        let (head, cookie, content) = good.reply();
        assert!(
            matches!(head, ReplyHead::Data { done: true, .. }),
            "{head:?}"
        );
        assert_eq!(content, [0x5a; 4096]);
        assert!(!std::mem::replace(&mut answered[cookie as usize], true));
    }
    sender.join().expect("no panic").expect("all sent");
}
