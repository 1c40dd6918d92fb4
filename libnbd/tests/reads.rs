//! Reads: many in flight, holes, failures, interruptions, and the end of the connection.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Server, path, pattern, qcow2, qemu_io};
use libnbd::{Error, Operation, Piece, PieceKind, Polled, Reply};

const EIO: i32 = 5;
const ENOTCONN: i32 = 107;

#[test]
fn many_reads_in_flight_each_bring_back_their_own_bytes() {
    let server = Server::nbdkit(["pattern", "64M"]);
    let mut nbd = server.connect();
    let mut expected = HashMap::new();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut done = 0;
    while done < 2000 {
        while expected.len() < 64 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let length = 1 + (random >> 20) as usize % 20_000;
            let offset = (random >> 35) % (nbd.size() - length as u64);
            let token = nbd
                .submit_read(offset, vec![0xee; length])
                .expect("submits");
            expected.insert(token, (offset, length));
        }
        let completion = nbd.wait().expect("waits").expect("64 are in flight");
        let (offset, length) = expected.remove(&completion.token).expect("known");
        let Reply::Read(reply) = completion.result.expect("succeeds") else {
            panic!("not a read");
        };
        assert_eq!(reply.offset, offset);
        assert!(
            reply.bytes == pattern(offset, length),
            "at {offset}+{length}"
        );
        done += 1;
    }
    nbd.shutdown(None).expect("answers the rest and ends");
}

#[test]
fn holes_are_reported_and_read_as_zero_in_a_reused_buffer() {
    let (dir, image) = qcow2("4M");
    qemu_io(&image, &["write -P 0x77 1M 64k", "write -P 0x77 1216k 64k"]);
    let server = Server::qemu_nbd(dir, ["-f", "qcow2", path(&image)]);
    let mut nbd = server.connect();

    nbd.submit_read(1 << 20, vec![0xee; 1 << 20])
        .expect("submits");
    let completion = nbd.wait().expect("waits").expect("one is in flight");
    let Ok(Reply::Read(reply)) = completion.result else {
        panic!("{completion:?}");
    };
    let piece = |range, kind| Piece { range, kind };
    assert_eq!(
        reply.pieces,
        [
            piece(0..65536, PieceKind::Data),
            piece(65536..3 * 65536, PieceKind::Hole),
            piece(3 * 65536..4 * 65536, PieceKind::Data),
            piece(4 * 65536..1 << 20, PieceKind::Hole),
        ]
    );
    for piece in &reply.pieces {
        let byte = if piece.kind == PieceKind::Data {
            0x77
        } else {
            0
        };
        assert!(
            reply.bytes[piece.range.clone()].iter().all(|b| *b == byte),
            "{piece:?}"
        );
    }
    assert!(!reply.is_hole());
    assert!(nbd.read(2 << 20, 4096).expect("reads").is_hole());
}

#[test]
fn a_failed_read_yields_its_error_and_never_its_buffer() {
    let server = Server::nbdkit([
        "--filter=error",
        "pattern",
        "1M",
        "error-pread=EIO",
        "error-pread-rate=100%",
    ]);
    let mut nbd = server.connect();
    for offset in [0, 4096, 8192] {
        nbd.submit_read(offset, vec![0; 4096]).expect("submits");
    }
    for _ in 0..3 {
        let completion = nbd.wait().expect("waits").expect("in flight");
        let error = completion.result.expect_err("every read fails");
        assert_eq!(error.errno(), Some(EIO), "{error}");
        assert_eq!(error.operation(), Some(Operation::Read));
    }
    assert!(nbd.wait().expect("waits").is_none(), "nothing is left");
}

#[test]
fn a_connection_survives_failed_reads() {
    let dir = tempfile::tempdir().expect("a directory");
    let trigger = dir.path().join("fail");
    let file = format!("error-file={}", path(&trigger));
    let server = Server::nbdkit([
        "--filter=error",
        "pattern",
        "1M",
        "error-pread=EIO",
        "error-pread-rate=100%",
        &file,
    ]);
    let mut nbd = server.connect();
    assert_eq!(nbd.read(0, 64).expect("reads").bytes, pattern(0, 64));
    std::fs::write(&trigger, b"").expect("creates the trigger");
    assert_eq!(nbd.read(0, 64).expect_err("fails now").errno(), Some(EIO));
    std::fs::remove_file(&trigger).expect("removes the trigger");
    assert_eq!(
        nbd.read(64, 64).expect("reads again").bytes,
        pattern(64, 64)
    );
}

#[test]
fn when_the_server_is_killed_every_read_in_flight_fails() {
    let mut server = Server::nbdkit(["--filter=delay", "pattern", "1M", "rdelay=600"]);
    let mut nbd = server.connect();
    for offset in 0..8 {
        nbd.submit_read(offset * 4096, vec![0; 4096])
            .expect("submits");
    }
    assert_eq!(
        nbd.poll(Some(Duration::ZERO)).expect("polls"),
        Polled::TimedOut
    );
    server.kill();
    for _ in 0..8 {
        let completion = nbd.wait().expect("waits").expect("8 are in flight");
        let error = completion.result.expect_err("nobody answers any more");
        assert_eq!(error.errno(), Some(ENOTCONN), "{error}");
    }
    assert_eq!(nbd.poll(None).expect("polls"), Polled::Idle);
    assert!(nbd.read(0, 512).is_err());
    assert_eq!(nbd.size(), 1 << 20, "facts stay known");
}

#[test]
fn a_handle_may_be_dropped_over_requests_in_flight() {
    for _ in 0..3 {
        // A new server each time: nbdkit 1.32 may abort when a client leaves so rudely.
        let server = Server::nbdkit(["--filter=delay", "pattern", "64M", "rdelay=600"]);
        let mut nbd = server.connect();
        for offset in 0..20 {
            nbd.submit_read(offset << 20, vec![0; 1 << 20])
                .expect("submits");
        }
        assert_eq!(
            nbd.poll(Some(Duration::ZERO)).expect("polls"),
            Polled::TimedOut
        );
    }
}

#[test]
fn a_handle_may_be_dropped_in_the_middle_of_a_reply() {
    // Not nbdkit, for the reason given above.
    let (dir, image) = qcow2("64M");
    qemu_io(&image, &["write -P 1 0 64M"]);
    let server = Server::qemu_nbd(dir, ["-f", "qcow2", path(&image)]);
    for patience in 0..50 {
        let mut nbd = server.connect();
        for offset in 0..8 {
            nbd.submit_read(offset << 23, vec![0; 8 << 20])
                .expect("submits");
        }
        nbd.poll(Some(Duration::from_micros(100 * patience)))
            .expect("polls");
    }
}

#[test]
fn a_waker_ends_a_blocked_call_and_the_late_reply_is_not_handed_out() {
    let server = Server::nbdkit(["--filter=delay", "pattern", "1M", "delay-read=500ms"]);
    let mut nbd = server.connect();
    let waker = nbd.waker();
    let thread = std::thread::spawn(move || waker.wake());
    let error = nbd.read(0, 512).expect_err("woken before the reply");
    assert!(
        matches!(error, Error::Interrupted(Operation::Read)),
        "{error}"
    );
    thread.join().expect("the thread ends");

    // The interrupted read completes unseen; this one is the only one handed out.
    let token = nbd.submit_read(512, vec![0; 512]).expect("submits");
    nbd.waker().wake();
    assert_eq!(nbd.poll(None).expect("polls"), Polled::Woken);
    let completion = nbd.wait().expect("waits").expect("in flight");
    assert_eq!(completion.token, token);
    assert!(nbd.wait().expect("waits").is_none());
}

#[test]
fn synchronous_calls_leave_the_completions_of_others_for_later() {
    let server = Server::nbdkit(["pattern", "1M"]);
    let mut nbd = server.connect();
    let tokens: Vec<_> = (0..10)
        .map(|i| nbd.submit_read(i * 4096, vec![0; 4096]).expect("submits"))
        .collect();
    assert_eq!(nbd.read(777, 9).expect("reads").bytes, pattern(777, 9));
    assert_eq!(nbd.outstanding(), 10);
    let mut seen = Vec::new();
    while let Some(completion) = nbd.wait().expect("waits") {
        completion.result.expect("succeeds");
        seen.push(completion.token);
    }
    seen.sort_unstable();
    assert_eq!(seen, tokens);
    assert_eq!(nbd.outstanding(), 0);
}

#[test]
fn reads_that_cannot_succeed_are_refused_before_they_are_sent() {
    let server = Server::nbdkit(["pattern", "64M"]);
    let mut nbd = server.connect();
    let too_long = nbd.submit_read(0, vec![0; (32 << 20) + 1]);
    assert!(matches!(too_long, Err(Error::Refused { .. })));
    assert!(matches!(
        nbd.read(0, usize::MAX),
        Err(Error::Refused { .. })
    ));
    assert!(nbd.submit_read(0, Vec::new()).is_err(), "empty");
    assert!(
        nbd.submit_read(nbd.size() - 1, vec![0; 2]).is_err(),
        "past the end"
    );
    assert!(
        nbd.submit_read(u64::MAX, vec![0; 2]).is_err(),
        "far past the end"
    );
    assert_eq!(nbd.outstanding(), 0);
    assert_eq!(
        nbd.read(0, 32 << 20).expect("the limit itself").bytes.len(),
        32 << 20
    );
}

#[test]
fn several_handles_are_driven_by_several_threads() {
    let server = Server::nbdkit(["pattern", "16M"]);
    std::thread::scope(|scope| {
        for part in 0..4u64 {
            let mut nbd = server.connect();
            scope.spawn(move || {
                for block in 0..64 {
                    let offset = (part << 22) + (block << 16);
                    nbd.submit_read(offset, vec![0; 65536]).expect("submits");
                }
                while let Some(completion) = nbd.wait().expect("waits") {
                    let Ok(Reply::Read(reply)) = completion.result else {
                        panic!("{completion:?}");
                    };
                    assert!(reply.bytes == pattern(reply.offset, reply.bytes.len()));
                }
            });
        }
    });
}
