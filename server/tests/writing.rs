//! Commands that change a disk: they reach it as they were meant, and before they are answered.

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::{MIB, Served, pattern};
use nbd_server::wire::reply::ReplyHead;
use nbd_server::wire::request::{Command, CommandFlags};
use nbd_server::{Export, ExportError, ExportMap, Features, Limits, MemoryDisk, ZeroMode};

const DONE: ReplyHead = ReplyHead::Simple { error: None };

#[test]
fn writes_of_all_lengths_arrive_and_are_flushed_where_asked() {
    struct Counting {
        disk: MemoryDisk,
        flushes: Mutex<u32>,
    }
    impl Export for Counting {
        fn size(&self) -> u64 {
            self.disk.size()
        }
        fn features(&self) -> Features {
            self.disk.features()
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
            self.disk.read(offset, buffer)
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
            self.disk.write(offset, data)
        }
        fn flush(&self) -> Result<(), ExportError> {
            *self.flushes.lock().expect("unpoisoned") += 1;
            Ok(())
        }
    }
    let disk = Arc::new(Counting {
        disk: MemoryDisk::new(40 * MIB),
        flushes: Mutex::new(0),
    });
    let served = Served::start(
        ExportMap::new().with("disk", disk.clone()),
        Limits::default(),
    );
    let mut client = served.session();
    for (length, flags, flushes) in [(1, 0, 0), (4097, 1, 1), (3 << 20, 0, 1), (32 << 20, 1, 2)] {
        let data = pattern(length);
        client.send_with(Command::Write, flags, 1, 3, length as u32);
        client.stream.write_all(&data).expect("data sent");
        assert_eq!(client.reply().0, DONE);
        let mut found = vec![0; length];
        disk.read(3, &mut found).expect("read");
        assert!(found == data);
        assert_eq!(*disk.flushes.lock().expect("unpoisoned"), flushes);
    }
    client.send(Command::Flush, 2, 0, 0);
    assert_eq!(client.reply().0, DONE);
    assert_eq!(*disk.flushes.lock().expect("unpoisoned"), 3);
}

#[test]
fn each_command_reaches_the_export_with_its_flags() {
    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);
    impl Recorder {
        fn note(&self, what: String) -> Result<(), ExportError> {
            self.0.lock().expect("unpoisoned").push(what);
            Ok(())
        }
    }
    impl Export for Recorder {
        fn size(&self) -> u64 {
            MIB
        }
        fn features(&self) -> Features {
            Features {
                writable: true,
                trim: true,
                cache: true,
                multi_conn: true,
                rotational: true,
            }
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
            buffer.fill(0);
            self.note(format!("read {offset} {}", buffer.len()))
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
            self.note(format!("write {offset} {}", data.len()))
        }
        fn write_zeroes(
            &self,
            offset: u64,
            length: u64,
            mode: ZeroMode,
        ) -> Result<(), ExportError> {
            let ZeroMode {
                keep_allocated,
                fast_only,
            } = mode;
            self.note(format!(
                "zero {offset} {length} {keep_allocated} {fast_only}"
            ))
        }
        fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
            self.note(format!("trim {offset} {length}"))
        }
        fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
            self.note(format!("cache {offset} {length}"))
        }
        fn flush(&self) -> Result<(), ExportError> {
            self.note("flush".to_owned())
        }
    }
    use Command::*;
    const FUA: u16 = CommandFlags::FUA;
    let recorder = Arc::new(Recorder::default());
    let exports = ExportMap::new().with("disk", recorder.clone());
    let served = Served::start(exports, Limits::default());
    let mut client = served.session();
    for (command, flags, expected) in [
        (WriteZeroes, 0, "zero 512 1024 false false"),
        (
            WriteZeroes,
            CommandFlags::NO_HOLE,
            "zero 512 1024 true false",
        ),
        (
            WriteZeroes,
            CommandFlags::FAST_ZERO,
            "zero 512 1024 false true",
        ),
        (WriteZeroes, FUA, "zero 512 1024 false false, flush"),
        (Trim, 0, "trim 512 1024"),
        (Trim, FUA, "trim 512 1024, flush"),
        (Write, FUA, "write 512 1024, flush"),
        (Cache, 0, "cache 512 1024"),
        (Flush, 0, "flush"),
        (Read, FUA, "read 512 1024"),
    ] {
        client.send_with(command, flags, 1, 512, 1024);
        if command == Write {
            client.stream.write_all(&[1; 1024]).expect("sent");
        }
        let (head, ..) = client.reply();
        assert!(
            !matches!(head, ReplyHead::Error { .. }),
            "{command:?}: {head:?}"
        );
        let noted = std::mem::take(&mut *recorder.0.lock().expect("unpoisoned"));
        assert_eq!(noted.join(", "), expected, "{command:?} {flags}");
    }
}

/// A disk that forgets in a power failure what was not flushed.
#[derive(Default)]
struct Volatile {
    written: Mutex<Vec<u8>>,
    stable: Mutex<Vec<u8>>,
}

impl Export for Volatile {
    fn size(&self) -> u64 {
        4
    }
    fn features(&self) -> Features {
        Features {
            writable: true,
            multi_conn: true,
            ..Features::default()
        }
    }
    fn read(&self, _: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        buffer.copy_from_slice(&self.written.lock().expect("unpoisoned"));
        Ok(())
    }
    fn write(&self, _: u64, data: &[u8]) -> Result<(), ExportError> {
        *self.written.lock().expect("unpoisoned") = data.to_vec();
        Ok(())
    }
    fn flush(&self) -> Result<(), ExportError> {
        *self.stable.lock().expect("unpoisoned") = self.written.lock().expect("unpoisoned").clone();
        Ok(())
    }
}

#[test]
fn what_was_answered_on_one_connection_is_read_and_flushed_on_another() {
    let disk = Arc::new(Volatile::default());
    let served = Served::start(
        ExportMap::new().with("disk", disk.clone()),
        Limits::default(),
    );
    let (mut one, mut other) = (served.session(), served.session());
    one.send(Command::Write, 1, 0, 4);
    one.stream.write_all(b"data").expect("sent");
    assert_eq!(one.reply().0, DONE);
    other.send(Command::Read, 2, 0, 4);
    assert_eq!(other.reply().2, b"data");
    // It has written nothing itself.
    other.send(Command::Flush, 3, 0, 0);
    assert_eq!(other.reply().0, DONE);
    assert_eq!(*disk.stable.lock().expect("unpoisoned"), b"data");
}
