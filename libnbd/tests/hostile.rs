//! Servers that lie. No sound server sends what these send, so they are written here: a
//! thread that speaks just enough of the protocol, and one wrong thing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use libnbd::{Builder, Error, Handle, Piece, PieceKind, StatusMap};

const SIZE: u64 = 1 << 20;
const CONTEXT: &str = "base:allocation";
const CONTEXT_ID: u32 = 7;

const REPLY_DATA: u16 = 1;
const REPLY_HOLE: u16 = 2;
const REPLY_STATUS: u16 = 5;

/// One chunk of a structured reply: its type and payload.
type Chunk = (u16, Vec<u8>);

fn data(offset: u64, bytes: &[u8]) -> Chunk {
    (REPLY_DATA, [&offset.to_be_bytes(), bytes].concat())
}

fn hole(offset: u64, length: u32) -> Chunk {
    (
        REPLY_HOLE,
        [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat(),
    )
}

fn extents(extents: &[(u32, u32)]) -> Chunk {
    let mut payload = CONTEXT_ID.to_be_bytes().to_vec();
    for (length, flags) in extents {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    (REPLY_STATUS, payload)
}

fn take<const N: usize>(peer: &mut UnixStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    peer.read_exact(&mut bytes).ok().map(|()| bytes)
}

/// Serves an export of `size` and answers every request with `chunks`, until the client
/// leaves.
fn serve(mut peer: UnixStream, size: u64, chunks: &[Chunk]) -> Option<()> {
    let mut send = |parts: &[&[u8]]| peer.write_all(&parts.concat()).ok();
    send(&[b"NBDMAGIC", b"IHAVEOPT", &3u16.to_be_bytes()])?;
    take::<4>(&mut peer)?;
    loop {
        take::<8>(&mut peer)?;
        let option = u32::from_be_bytes(take(&mut peer)?);
        let length = u32::from_be_bytes(take(&mut peer)?);
        std::io::copy(&mut (&peer).take(length.into()), &mut std::io::sink()).ok()?;
        let mut reply = |kind: u32, payload: &[u8]| {
            let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
            let (option, kind) = (option.to_be_bytes(), kind.to_be_bytes());
            let length = (payload.len() as u32).to_be_bytes();
            peer.write_all(&[&magic[..], &option, &kind, &length, payload].concat())
                .ok()
        };
        const ACK: u32 = 1;
        match option {
            // GO: an export without any special ability, "has flags" only.
            7 => {
                let info = [
                    &0u16.to_be_bytes()[..],
                    &size.to_be_bytes(),
                    &1u16.to_be_bytes(),
                ];
                reply(3, &info.concat())?;
                reply(ACK, &[])?;
                break;
            }
            // Structured replies.
            8 => reply(ACK, &[])?,
            // The metadata context, whichever was asked for.
            10 => {
                reply(4, &[&CONTEXT_ID.to_be_bytes(), CONTEXT.as_bytes()].concat())?;
                reply(ACK, &[])?;
            }
            _ => reply(0x8000_0001, &[])?,
        }
    }
    loop {
        let request: [u8; 28] = take(&mut peer)?;
        for (nth, (kind, payload)) in chunks.iter().enumerate() {
            let done = u16::from(nth + 1 == chunks.len());
            let mut reply = 0x668e_33efu32.to_be_bytes().to_vec();
            reply.extend(done.to_be_bytes());
            reply.extend(kind.to_be_bytes());
            reply.extend(&request[8..16]);
            reply.extend((payload.len() as u32).to_be_bytes());
            reply.extend(payload);
            peer.write_all(&reply).ok()?;
        }
    }
}

struct Hostile {
    nbd: Result<Handle, Error>,
    server: JoinHandle<Option<()>>,
}

impl Hostile {
    fn new(size: u64, chunks: Vec<Chunk>) -> Hostile {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let server = std::thread::spawn(move || serve(theirs, size, &chunks));
        let nbd = Builder::new()
            .meta_context(CONTEXT)
            .connect_socket(ours.into());
        Hostile { nbd, server }
    }

    /// Gives the outcome of `work` on the connection to an export of [`SIZE`].
    fn outcome<T>(chunks: Vec<Chunk>, work: impl FnOnce(&mut Handle) -> T) -> T {
        let hostile = Hostile::new(SIZE, chunks);
        let mut nbd = hostile.nbd.expect("the handshake is sound");
        let outcome = work(&mut nbd);
        drop(nbd);
        let _ = hostile.server.join().expect("the server does not panic");
        outcome
    }

    fn read(chunks: Vec<Chunk>) -> Result<libnbd::ReadReply, Error> {
        Hostile::outcome(chunks, |nbd| nbd.read(4096, 1024))
    }

    fn walk(chunks: Vec<Chunk>) -> Result<(), Error> {
        Hostile::outcome(chunks, |nbd| {
            let mut map = StatusMap::new(nbd, &[CONTEXT], 0..SIZE)?;
            while map.next(nbd)?.is_some() {}
            Ok(())
        })
    }
}

fn assert_protocol<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    assert!(
        matches!(outcome, Err(Error::Protocol { .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_size_of_two_to_the_63_or_more_is_refused() {
    for size in [1 << 63, u64::MAX, u64::MAX - 1] {
        let hostile = Hostile::new(size, Vec::new());
        assert!(hostile.nbd.is_err(), "{size}");
        hostile.server.join().expect("the server does not panic");
    }
    let largest = (1 << 63) - 1;
    assert_eq!(
        Hostile::new(largest, Vec::new()).nbd.expect("fits").size(),
        largest
    );
}

#[test]
fn a_read_in_pieces_out_of_order_is_put_together() {
    let reply = Hostile::read(vec![hole(4096 + 512, 512), data(4096, &[9; 512])]);
    let reply = reply.expect("covers the request");
    assert_eq!(reply.bytes, [[9; 512], [0; 512]].concat());
    let piece = |range, kind| Piece { range, kind };
    let expected = [
        piece(0..512, PieceKind::Data),
        piece(512..1024, PieceKind::Hole),
    ];
    assert_eq!(reply.pieces, expected);
}

#[test]
fn a_read_that_leaves_bytes_out_or_sends_them_twice_is_an_error() {
    assert_protocol(Hostile::read(vec![data(4096, &[9; 512])]));
    assert_protocol(Hostile::read(vec![data(4096, &[9; 512]), hole(4096, 512)]));
    assert_protocol(Hostile::read(vec![
        data(4096, &[9; 1024]),
        data(4096, &[8; 1024]),
    ]));
    assert_protocol(Hostile::read(vec![
        data(4096, &[9; 600]),
        hole(4096 + 500, 524),
    ]));
}

#[test]
fn data_outside_of_the_request_never_reaches_a_buffer() {
    for chunk in [
        data(4095, &[9; 1024]),
        data(5000, &[9; 1024]),
        hole(4096, u32::MAX),
        data(u64::MAX, &[9]),
    ] {
        assert!(Hostile::read(vec![chunk]).is_err());
    }
    assert!(
        Hostile::read(vec![extents(&[(1024, 0)])]).is_err(),
        "extents instead of data"
    );
}

#[test]
fn sound_extents_are_walked_to_the_end() {
    Hostile::walk(vec![extents(&[(65536, 0)])]).expect("16 steps of 64 KiB");
}

#[test]
fn extents_that_are_empty_or_leave_the_export_are_an_error() {
    assert_protocol(Hostile::walk(vec![extents(&[(0, 0)])]));
    assert_protocol(Hostile::walk(vec![extents(&[
        (4096, 0),
        (0, 0),
        (4096, 0),
    ])]));
    assert_protocol(Hostile::walk(vec![extents(&[(SIZE as u32 + 1, 0)])]));
    assert_protocol(Hostile::walk(vec![extents(&[
        (u32::MAX, 0),
        (u32::MAX, 3),
    ])]));
    assert_protocol(Hostile::walk(vec![
        extents(&[(4096, 0)]),
        extents(&[(4096, 3)]),
    ]));
}

#[test]
fn a_status_reply_about_nothing_asked_for_is_an_error_and_no_endless_loop() {
    let mut foreign = extents(&[(SIZE as u32, 0)]);
    foreign.1[3] += 1;
    assert_protocol(Hostile::walk(vec![foreign]));
    assert_protocol(Hostile::walk(vec![(0, Vec::new())]));
}
