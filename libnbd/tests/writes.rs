//! Writes, zeroes, trims and flushes.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Server, path, qcow2, run};
use libnbd::{Error, Operation, Polled, Reply, WriteFlags, ZeroFlags};

const EPERM: i32 = 1;
const ENOSPC: i32 = 28;

#[test]
fn what_many_writes_in_flight_wrote_is_in_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("disk.raw");
    std::fs::write(&file, vec![0xff; 4 << 20]).expect("creates the file");
    let server = Server::nbdkit(["file", path(&file)]);
    let mut nbd = server.connect();
    let mut expected = vec![0xff; 4 << 20];
    for block in 0..256u64 {
        let data = vec![block as u8; 4096 + block as usize];
        let at = (block * 16384) as usize;
        expected[at..at + data.len()].copy_from_slice(&data);
        nbd.submit_write(block * 16384, data, WriteFlags::default())
            .expect("submits");
    }
    while let Some(completion) = nbd.wait().expect("waits") {
        assert!(
            matches!(completion.result, Ok(Reply::Done)),
            "{completion:?}"
        );
    }
    nbd.flush().expect("flushes");
    nbd.shutdown(None).expect("ends in order");
    assert!(std::fs::read(&file).expect("reads the file") == expected);
}

#[test]
fn zeroes_and_trims_read_back_as_zero_from_a_qcow2_image() {
    let (dir, image) = qcow2("8M");
    let server = Server::qemu_nbd(dir, ["--discard=unmap", "-f", "qcow2", path(&image)]);
    let mut nbd = server.connect();
    nbd.write(0, vec![0xaa; 8 << 20], WriteFlags::default())
        .expect("writes");
    nbd.zero(1 << 20, 1 << 20, ZeroFlags::default())
        .expect("zeroes");
    let keep = ZeroFlags {
        no_hole: true,
        ..ZeroFlags::default()
    };
    nbd.zero(3 << 20, 1 << 20, keep).expect("zeroes, allocated");
    nbd.trim(5 << 20, 1 << 20, WriteFlags { fua: true })
        .expect("trims");
    nbd.flush().expect("flushes");
    for block in 0..8u64 {
        let reply = nbd.read(block << 20, 1 << 20).expect("reads");
        let byte = if [1, 3, 5].contains(&block) { 0 } else { 0xaa };
        assert!(reply.bytes.iter().all(|b| *b == byte), "MiB {block}");
    }
    nbd.shutdown(None).expect("ends in order");
    run("qemu-img", ["check", "-q", "-U", path(&image)]);
}

#[test]
fn zeroing_more_than_32_bits_can_say_takes_several_requests() {
    let server = Server::nbdkit(["memory", "10G"]);
    let mut nbd = server.connect();
    for offset in [1 << 30, 5 << 30, (7 << 30) - 1, 7 << 30] {
        nbd.write(offset, vec![1], WriteFlags::default())
            .expect("writes");
    }
    nbd.zero(1 << 30, 6 << 30, ZeroFlags::default())
        .expect("zeroes 6 GiB");
    for (offset, byte) in [(1 << 30, 0), (5 << 30, 0), ((7 << 30) - 1, 0), (7 << 30, 1)] {
        assert_eq!(
            nbd.read(offset, 1).expect("reads").bytes,
            [byte],
            "at {offset}"
        );
    }
    nbd.trim(0, 10 << 30, WriteFlags::default())
        .expect("trims 10 GiB");
    assert!(matches!(
        nbd.submit_zero(0, 1 << 32, ZeroFlags::default()),
        Err(Error::Refused {
            operation: Operation::Zero,
            ..
        })
    ));
}

#[test]
fn fast_zeroes_are_asked_for_only_where_the_server_knows_them() {
    let fast = ZeroFlags {
        fast: true,
        ..ZeroFlags::default()
    };
    let server = Server::nbdkit(["--filter=nozero", "memory", "1M"]);
    let mut unable = server.connect();
    assert!(!unable.flags().zero && !unable.flags().fast_zero);
    assert!(unable.zero(0, 4096, fast).is_err());

    let server = Server::nbdkit(["memory", "1M"]);
    let mut able = server.connect();
    assert!(able.flags().fast_zero);
    able.write(0, vec![1; 4096], WriteFlags { fua: true })
        .expect("writes");
    able.zero(0, 4096, fast).expect("zeroes fast");
    assert_eq!(able.read(0, 4096).expect("reads").bytes, [0; 4096]);
}

#[test]
fn a_failed_write_carries_the_servers_error_number() {
    let server = Server::nbdkit([
        "--filter=error",
        "memory",
        "1M",
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
    ]);
    let mut nbd = server.connect();
    let error = nbd
        .write(512, vec![1; 512], WriteFlags::default())
        .expect_err("no space");
    assert_eq!(error.errno(), Some(ENOSPC));
    let text = error.to_string();
    assert!(text.contains("write of 512 bytes at offset 512"), "{text}");

    nbd.submit_write(0, vec![1; 512], WriteFlags::default())
        .expect("submits");
    let error = nbd.shutdown(None).expect_err("the write failed");
    assert_eq!(error.errno(), Some(ENOSPC), "{error}");
}

#[test]
fn a_read_only_export_takes_no_writes() {
    let server = Server::nbdkit(["-r", "memory", "1M"]);
    let mut nbd = server.connect();
    let error = nbd
        .write(0, vec![1], WriteFlags::default())
        .expect_err("read-only");
    assert_eq!(error.errno(), Some(EPERM), "{error}");
    assert!(nbd.zero(0, 512, ZeroFlags::default()).is_err());
    assert!(nbd.trim(0, 512, WriteFlags::default()).is_err());
}

/// Data that counts how often it was dropped.
struct Counted {
    bytes: Vec<u8>,
    drops: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn data_is_kept_until_its_write_is_over_and_dropped_exactly_once() {
    let drops = Arc::new(AtomicUsize::new(0));
    let data = |length| Counted {
        bytes: vec![7; length],
        drops: Arc::clone(&drops),
    };
    let count = || drops.load(Ordering::SeqCst);
    let server = Server::nbdkit(["--filter=delay", "memory", "1M", "delay-write=200ms"]);
    let mut nbd = server.connect();
    nbd.submit_write(0, data(4096), WriteFlags::default())
        .expect("submits");
    assert_eq!(
        nbd.poll(Some(std::time::Duration::ZERO)).expect("polls"),
        Polled::TimedOut
    );
    assert_eq!(count(), 0, "in flight");
    nbd.wait()
        .expect("waits")
        .expect("in flight")
        .result
        .expect("writes");
    assert_eq!(count(), 1, "completed");

    assert!(
        nbd.submit_write(1 << 20, data(1), WriteFlags::default())
            .is_err()
    );
    assert_eq!(count(), 2, "never accepted");

    nbd.submit_write(0, data(4096), WriteFlags::default())
        .expect("submits");
    drop(nbd);
    assert_eq!(count(), 3, "abandoned");
}

/// Data whose drop panics, inside a callback of the C library.
struct Explosive;

impl AsRef<[u8]> for Explosive {
    fn as_ref(&self) -> &[u8] {
        &[1; 512]
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("this panic must not cross into C");
    }
}

#[test]
fn a_panic_inside_a_callback_stays_inside() {
    let server = Server::nbdkit(["memory", "1M"]);
    let mut nbd = server.connect();
    nbd.submit_write(0, Explosive, WriteFlags::default())
        .expect("submits");
    let completion = nbd.wait().expect("waits").expect("in flight");
    assert!(matches!(completion.result, Ok(Reply::Done)));
    assert_eq!(
        nbd.read(0, 512).expect("the connection works on").bytes,
        [1; 512]
    );
}

#[test]
fn shared_and_static_data_are_written_without_a_copy() {
    let server = Server::nbdkit(["memory", "1M"]);
    let mut nbd = server.connect();
    const STATIC: &[u8] = &[4; 512];
    let shared: Arc<[u8]> = Arc::from([3; 4096]);
    nbd.write(0, Arc::clone(&shared), WriteFlags::default())
        .expect("writes");
    nbd.write(4096, STATIC, WriteFlags::default())
        .expect("writes");
    assert_eq!(Arc::strong_count(&shared), 1);
    assert_eq!(nbd.read(4095, 2).expect("reads").bytes, [3, 4]);
}
