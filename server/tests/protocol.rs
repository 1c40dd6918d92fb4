//! What the protocol document asks for and no tool asks about.

mod common;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Gate, MIB, Served, disk, pattern};
use nbd_server::wire::option::ClientOption;
use nbd_server::wire::reply::{ErrorCode, ReplyHead};
use nbd_server::wire::request::{Command, CommandFlags};
use nbd_server::{BlockSizes, Export, ExportError, ExportMap, Features, Holes, Limits, MemoryDisk};

fn simple(error: Option<ErrorCode>) -> ReplyHead {
    ReplyHead::Simple { error }
}

#[test]
fn a_fast_request_overtakes_a_slow_one_of_the_same_connection() {
    let (gate, has_entered, open) = Gate::new();
    let served = Served::one(gate);
    let mut client = served.session();
    client.send(Command::Read, 1, 0, 512);
    has_entered
        .recv()
        .expect("the first request is being carried out");
    for cookie in 2..30 {
        client.send(Command::Read, cookie, 4096, 512);
        assert_eq!(client.reply().1, cookie);
    }
    open.send(()).expect("the first request waits");
    assert_eq!(client.reply().1, 1);
}

/// A disk that counts how many of its reads run at one time, and wants two.
#[derive(Default)]
struct Pair {
    running: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Export for Pair {
    fn size(&self) -> u64 {
        MIB
    }

    fn concurrency(&self) -> usize {
        2
    }

    fn read(&self, _offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        let running = 1 + self.running.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(running, Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(100));
        self.running.fetch_sub(1, Ordering::SeqCst);
        buffer.fill(7);
        Ok(())
    }
}

#[test]
fn an_export_is_asked_for_as_much_at_one_time_as_it_says_is_worth_it() {
    let pair = Pair::default();
    let most = pair.most.clone();
    let served = Served::one(pair);
    let mut client = served.session();
    // So often that threads meet at every place.
    for _ in 0..50 {
        for cookie in 0..40 {
            client.send(Command::Read, cookie, 0, 512);
        }
        let mut answered: Vec<u64> = (0..40).map(|_| client.reply().1).collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..40).collect::<Vec<_>>());
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn an_old_client_without_structured_replies_is_served() {
    let served = Served::one(disk());
    let mut client = served.client();
    let option = ClientOption::ExportName("disk".to_owned());
    client.stream.write_all(&option.encode()).expect("sent");
    let reply = client.bytes(10);
    assert_eq!(reply[..8], (40 * MIB).to_be_bytes());
    // Data, data with a hole behind it, a hole, and more than the server holds at once.
    for (offset, length) in [(5, 3), (MIB - 5, 10), (3 * MIB, 9), (0, 32 << 20)] {
        client.send(Command::Read, 9, offset, length);
        assert_eq!(client.bytes(16)[..8], *b"\x67\x44\x66\x98\0\0\0\0");
        let mut expected = vec![0; length as usize];
        disk().read(offset, &mut expected).expect("read");
        assert!(
            client.bytes(length as usize) == expected,
            "{offset} {length}"
        );
    }
    client.send(Command::Read, 9, 40 * MIB - 1, 2);
    assert_eq!(client.reply().0, simple(Some(ErrorCode::Invalid)));
    client.send(Command::Read, 9, 0, (32 << 20) + 1);
    assert_eq!(client.reply().0, simple(Some(ErrorCode::Invalid)));
    client.send(Command::BlockStatus, 9, 0, 512);
    assert_eq!(client.reply().0, simple(Some(ErrorCode::Invalid)));
    client.send_with(Command::Read, CommandFlags::DF, 9, 0, 512);
    assert_eq!(client.reply().0, simple(Some(ErrorCode::Invalid)));
    client.send(Command::Disconnect, 0, 0, 0);
    assert!(client.is_closed());
}

#[test]
fn a_hole_is_sent_as_a_hole_and_with_df_as_zeroes() {
    let served = Served::one(disk());
    let mut client = served.session();
    client.send(Command::Read, 1, MIB - 4096, 3 * 4096);
    let data = ReplyHead::Data {
        offset: MIB - 4096,
        length: 4096,
        done: false,
    };
    let hole = ReplyHead::Hole {
        offset: MIB,
        length: 8192,
        done: true,
    };
    assert_eq!(client.reply().0, data);
    assert_eq!(client.reply().0, hole);
    client.send_with(Command::Read, CommandFlags::DF, 2, MIB - 4096, 2 << 20);
    let (head, _, content) = client.reply();
    let whole = ReplyHead::Data {
        offset: MIB - 4096,
        length: 2 << 20,
        done: false,
    };
    assert_eq!(head, whole);
    assert_eq!(
        content[..4096],
        pattern(MIB as usize)[(MIB - 4096) as usize..]
    );
    assert!(content[4096..].iter().all(|&byte| byte == 0));
    assert_eq!(client.reply().0, ReplyHead::None);
}

#[test]
fn a_read_that_fails_late_is_an_error_and_not_data() {
    let (gate, _entered, _open) = Gate::new();
    let served = Served::one(gate);
    let mut client = served.session();
    let length = 2 << 20;
    let error = ReplyHead::Error {
        code: ErrorCode::Io,
        message: 22,
    };

    client.send(Command::Read, 1, 4096, length);
    let mut last = client.reply();
    while matches!(last.0, ReplyHead::Data { done: false, .. }) {
        last = client.reply();
    }
    assert_eq!(last, (error.clone(), 1, b"the disk ends in smoke".to_vec()));

    client.send_with(Command::Read, CommandFlags::DF, 2, 4096, length);
    let (head, _, content) = client.reply();
    assert!(matches!(head, ReplyHead::Data { done: false, .. }));
    assert_eq!(content.last(), Some(&0), "padding");
    assert_eq!(client.reply().0, error);

    // Without structured replies there is no way to tell but to leave.
    let mut client = served.client();
    client.go("disk");
    client.send(Command::Read, 3, 4096, length);
    client.bytes(16 + 4096);
    while !client.is_closed() {}
}

#[test]
fn requests_that_are_wrong_get_the_errors_of_the_document_and_the_client_stays() {
    use Command::*;
    struct Sectors(Features);
    impl Export for Sectors {
        fn size(&self) -> u64 {
            MIB
        }
        fn features(&self) -> Features {
            self.0
        }
        fn block_sizes(&self) -> BlockSizes {
            BlockSizes::new(512, 4096).expect("sizes")
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), ExportError> {
            Ok(())
        }
    }
    let writable = Features {
        writable: true,
        ..Features::default()
    };
    let cases = [
        (Read, 0, 1, 512, ErrorCode::Invalid),
        (Read, 0, 0, 5, ErrorCode::Invalid),
        (Read, 0, MIB, 512, ErrorCode::Invalid),
        (Read, 0, u64::MAX - 511, 512, ErrorCode::Invalid),
        (Read, 0, 0, (32 << 20) + 512, ErrorCode::Overflow),
        (Read, CommandFlags::NO_HOLE, 0, 512, ErrorCode::Invalid),
        (Read, 1 << 12, 0, 512, ErrorCode::Invalid),
        (Write, 0, MIB, 512, ErrorCode::NoSpace),
        (Write, CommandFlags::DF, 0, 512, ErrorCode::Invalid),
        (WriteZeroes, 0, MIB - 512, 1024, ErrorCode::NoSpace),
        (
            WriteZeroes,
            CommandFlags::FAST_ZERO,
            0,
            512,
            ErrorCode::NotSupported,
        ),
        (Trim, 0, 0, 512, ErrorCode::Invalid),
        (BlockStatus, 0, 0, 512, ErrorCode::Invalid),
        (Unknown(77), 0, 0, 0, ErrorCode::Invalid),
    ];
    let exports = ExportMap::new()
        .with("disk", Arc::new(Sectors(writable)))
        .with("read-only", Arc::new(Sectors(Features::default())));
    let served = Served::start(exports, Limits::default());
    let mut client = served.session();
    for (command, flags, offset, length, code) in cases {
        client.send_with(command, flags, 1, offset, length);
        if command == Write {
            client
                .stream
                .write_all(&vec![0; length as usize])
                .expect("sent");
        }
        let (head, ..) = client.reply();
        assert!(
            matches!(head, ReplyHead::Error { code: found, .. } if found == code),
            "{command:?} {offset} {length}: {head:?}"
        );
    }
    client.assert_served_sector();

    let mut client = served.client();
    client.go("read-only");
    for command in [Write, WriteZeroes, Trim] {
        client.send(command, 1, 0, 512);
        if command == Write {
            client.stream.write_all(&[0; 512]).expect("sent");
        }
        assert_eq!(client.reply().0, simple(Some(ErrorCode::NotPermitted)));
    }
}

impl common::Client {
    fn assert_served_sector(&mut self) {
        self.send(Command::Read, 5, 0, 512);
        assert!(matches!(self.reply().0, ReplyHead::Data { done: true, .. }));
    }
}

#[test]
fn an_export_that_panics_loses_its_client_and_nobody_else() {
    struct Panics(MemoryDisk);
    impl Export for Panics {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
            assert!(offset < 4096, "on purpose");
            self.0.read(offset, buffer)
        }
    }
    let mut served = Served::one(Panics(disk()));
    let (mut unlucky, mut other) = (served.session(), served.session());
    unlucky.send(Command::Read, 1, 4096, 512);
    assert!(unlucky.is_closed());
    other.assert_served();
    let running = served.running.take().expect("running");
    running
        .stop(Duration::from_secs(60))
        .expect("no thread is left");
}

#[test]
fn a_hole_beyond_the_end_of_a_read_is_an_error_of_the_export() {
    struct Beyond;
    impl Export for Beyond {
        fn size(&self) -> u64 {
            MIB
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
            Ok(())
        }
        fn read_sparse(
            &self,
            offset: u64,
            buffer: &mut [u8],
            holes: &mut Holes,
        ) -> Result<(), ExportError> {
            holes.push(0..buffer.len() + usize::from(offset > 0));
            Ok(())
        }
    }
    let served = Served::one(Beyond);
    let mut client = served.session();
    for flags in [0, CommandFlags::DF] {
        client.send_with(Command::Read, flags, 1, 512, 8192);
        let (head, ..) = client.reply();
        let code = ErrorCode::Io;
        assert!(matches!(head, ReplyHead::Error { code: found, .. } if found == code));
    }
    client.assert_served();
}
