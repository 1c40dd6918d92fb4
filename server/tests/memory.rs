//! What greedy clients can make a server hold, measured: the memory of this process, in which one test
//! runs at a time. When one fails, so do those after it: what was held once is never forgotten.

mod common;

use std::fs;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{Client, MIB, Served, contexts};
use nbd_server::wire::option::ClientOption;
use nbd_server::wire::reply::ReplyHead;
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{
    Client as Asking, Context, Export, ExportError, ExportMap, Exports, Extents, Features, Limits,
    Listing, OpenError,
};

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

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.connections_max = 16;
    limits.helpers_max = 16;
    limits.stall = Duration::from_secs(2);
    assert_eq!(limits.bytes_in_flight_max() >> 20, 40);
    limits
}

/// A test that has the process to itself.
struct Measured {
    before: u64,
    _alone: MutexGuard<'static, Option<u64>>,
}

impl Measured {
    fn begin() -> Self {
        /// What was there before the first of them.
        static BEFORE: Mutex<Option<u64>> = Mutex::new(None);
        let mut alone = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        Measured {
            before: *alone.get_or_insert_with(peak_bytes),
            _alone: alone,
        }
    }

    /// Asserts that no more was ever held than the server may, and the test itself.
    fn end(self, own_bytes: u64) {
        let bound = limits().bytes_in_flight_max();
        let grown = peak_bytes() - self.before;
        assert!(grown < bound + own_bytes, "{grown} bytes, {bound} allowed");
    }
}

fn requests(command: Command, count: u64, length: u32) -> Vec<u8> {
    let request = |cookie| Request {
        flags: CommandFlags(0),
        command,
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
    let measured = Measured::begin();
    let served = Served::start(ExportMap::new().with("disk", Arc::new(Endless)), limits());
    let mut good = served.session();
    good.assert_served();

    // Eight ask for 60 GiB each and take nothing; four send half of a long write.
    let mut greedy: Vec<Client> = (0..12).map(|_| served.session()).collect();
    let wishes = requests(Command::Read, 1900, 32 << 20);
    for client in &mut greedy[..8] {
        client.stream.write_all(&wishes).expect("sent");
    }
    let half = vec![0; 16 << 20];
    for client in &mut greedy[8..] {
        client.send(Command::Write, 1, 0, 32 << 20);
        client.stream.write_all(&half).expect("sent");
    }
    for _ in 0..100 {
        good.assert_served();
    }
    measured.end(16 * MIB);
    served.wait_for_connections(1);

    let count = 5000;
    let mut stream = good.stream.try_clone().expect("a socket");
    let wishes = requests(Command::Read, count, 4096);
    let sender = std::thread::spawn(move || stream.write_all(&wishes));
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

/// A list that is as long as many, and one disk.
struct Crowd(Arc<[Listing]>);

impl Exports for Crowd {
    fn list(&self, _: &Asking) -> Result<Arc<[Listing]>, ExportError> {
        Ok(self.0.clone())
    }

    fn open(&self, _: &str, _: &Asking) -> Result<Arc<dyn Export>, OpenError> {
        Ok(Arc::new(Endless))
    }
}

#[test]
fn clients_that_ask_for_a_long_list_and_take_nothing_share_it() {
    let measured = Measured::begin();
    let listing = |number| Listing {
        name: format!("{number:0200}"),
        description: format!("{number:01000}"),
    };
    const COUNT: u64 = 10_000;
    let served = Served::start(Crowd((0..COUNT).map(listing).collect()), limits());
    let mut good = served.session();
    let lists = ClientOption::List.encode().repeat(100);
    let greedy = (0..14).map(|_| {
        let mut client = served.client();
        client.stream.write_all(&lists).expect("sent");
        client
    });
    let greedy: Vec<Client> = greedy.collect();
    for _ in 0..100 {
        good.assert_served();
    }
    let listed = served.client().accepted(&ClientOption::List);
    assert_eq!(listed.len() as u64, COUNT);
    drop((listed, greedy));
    // The list, as it is, as it comes to the good client, and as that understands it.
    measured.end(3 * COUNT * 1400);
}

/// A disk that knows a lot about each of its sectors, by every name.
struct Fussy;

impl Context for Fussy {
    fn status(&self, _: u64, _: u64, extents: &mut Extents) -> Result<(), ExportError> {
        let mut flags = 0;
        while extents.push(512, flags) {
            flags += 1;
        }
        Ok(())
    }
}

impl Export for Fussy {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        Endless.read(offset, buffer)
    }

    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        self.status(offset, length, extents)
    }

    fn context(&self, _: &str) -> Option<Box<dyn Context>> {
        Some(Box::new(Fussy))
    }
}

#[test]
fn clients_that_ask_about_everything_in_many_contexts_stay_within_the_named_limits() {
    let measured = Measured::begin();
    let served = Served::start(ExportMap::new().with("disk", Arc::new(Fussy)), limits());
    let mut good = served.session();
    let names: Vec<String> = (0..16).map(|n| format!("x:{n:01000}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wishes = requests(Command::BlockStatus, 1900, u32::MAX - 511);
    let again = ClientOption::ListMetaContext(contexts("disk", &names.repeat(4))).encode();
    let greedy = (0..14).map(|number| {
        let mut client = served.client();
        client.accepted(&ClientOption::StructuredReply);
        if number % 7 == 0 {
            // Some never come to an end of choosing.
            let mut stream = client.stream.try_clone().expect("a socket");
            let again = again.repeat(50);
            std::thread::spawn(move || stream.write_all(&again));
            return client;
        }
        let set = ClientOption::SetMetaContext(contexts("disk", &names));
        assert_eq!(client.accepted(&set).len(), 16);
        client.go("disk");
        client.stream.write_all(&wishes).expect("sent");
        client
    });
    let greedy: Vec<Client> = greedy.collect();
    for _ in 0..100 {
        good.assert_served();
    }
    served.wait_for_connections(3);
    drop(greedy);
    // What those say who never come to an end.
    measured.end(2 * 50 * (64 << 10));
}

#[cfg(feature = "tls")]
#[test]
fn clients_that_take_nothing_over_tls_stay_within_the_named_limits() {
    use common::authority::Authority;
    use common::secured::start_tls;
    use nbd_server::TlsMode;

    let measured = Measured::begin();
    let authority = Authority::new();
    let exports = ExportMap::new().with("disk", Arc::new(Endless));
    let required = TlsMode::Required(authority.tls());
    let served = Served::start_with_tls(exports, limits(), required);
    let session = || {
        let mut client = start_tls(served.client(), &authority);
        client.accepted(&ClientOption::StructuredReply);
        client.go("disk");
        client
    };
    let mut good = session();
    let wishes = requests(Command::Read, 1900, 32 << 20);
    let half = vec![0; 16 << 20];
    let greedy = (0..12).map(|number| {
        let mut client = session();
        if number % 3 == 0 {
            client.send(Command::Write, 1, 0, 32 << 20);
            client.stream.write_all(&half).expect("sent");
        } else {
            client.stream.write_all(&wishes).expect("sent");
        }
        client
    });
    let greedy: Vec<_> = greedy.collect();
    // And these stop in the middle of the first message.
    let silent = (0..2).map(|_| {
        let mut client = served.client();
        client.accepted(&ClientOption::StartTls);
        let half = [&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &[0; 12 << 10]].concat();
        client.stream.write_all(&half).expect("sent");
        client
    });
    let silent: Vec<Client> = silent.collect();
    for _ in 0..100 {
        good.assert_served();
    }
    served.wait_for_connections(3);
    drop((greedy, silent));
    measured.end(16 * MIB);
}
