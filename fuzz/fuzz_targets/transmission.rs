//! A hostile client in the transmission phase: every whole request is answered once, in whole
//! messages, and memory stays within what one connection may take.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nbd_server::limits::PIECE_BYTES;
use nbd_server::wire::handshake::GREETING_BYTES;
use nbd_server::wire::option_reply::{OptionReply, ReplyBody};
use nbd_server::wire::reply::ReplyHead;
use nbd_server::{Connection, Helpers};
use virtkeep_fuzz::client::{self, DISK_BYTES, Ear, Mouth, Sent};
use virtkeep_fuzz::memory;

#[derive(Arbitrary, Debug)]
struct Input {
    structured: bool,
    contexts: bool,
    sent: Vec<Sent>,
    helpers: u8,
    piece: u8,
}

fuzz_target!(|input: Input| {
    let (bytes, whole) = client::session(input.structured, input.contexts, &input.sent);
    // A client that says little at a time would say a long write for minutes.
    let piece = if bytes.len() > 64 << 10 {
        0
    } else {
        input.piece
    };
    let mut heard = Vec::with_capacity(64 << 20);
    let exports = client::exports();
    let helpers = usize::from(input.helpers % 3);
    // The disk itself; for each thread its piece, its stack's bookkeeping and its extents.
    let limit = 2 * DISK_BYTES as usize + (helpers + 1) * (2 * PIECE_BYTES + (512 << 10));
    let outcome = memory::within(limit, || {
        let (mouth, ear) = (Mouth::new(&bytes, piece), Ear::new(&mut heard));
        Connection::new(mouth, ear, client::limits())
            .negotiate(&exports)
            .expect("the handshake is in order")
            .expect("an export was chosen")
            .serve(&Helpers::new(helpers))
    });

    let answered = answers(after_handshake(&heard), input.structured);
    if let Some(answered) = answered {
        assert!(answered.len() <= input.sent.len());
        if outcome.is_ok() {
            assert!(answered.len() >= whole, "{answered:?} of {whole}");
        }
    }
});

/// What was heard after the reply to `NBD_OPT_GO`.
fn after_handshake(heard: &[u8]) -> &[u8] {
    const GO: u32 = 7;
    let mut rest = &heard[GREETING_BYTES..];
    loop {
        let head = rest.first_chunk().expect("a reply to every option");
        let data = OptionReply::data_bytes(head).expect("a reply is well formed");
        let (reply, next) = rest.split_at(OptionReply::HEAD_BYTES + data as usize);
        let reply = OptionReply::decode(reply).expect("a reply is well formed");
        rest = next;
        if reply.option == GO && reply.body == ReplyBody::Ack {
            return rest;
        }
    }
}

/// How many bytes of answer each request got, by cookie. `None` where nobody can tell: the data of a simple reply has
/// no length of its own.
fn answers(mut heard: &[u8], structured: bool) -> Option<BTreeMap<u64, usize>> {
    let mut ended: BTreeMap<u64, usize> = BTreeMap::new();
    if !structured {
        return None;
    }
    while !heard.is_empty() {
        // 16 to 32 bytes, by what it is.
        let (head, cookie, len) = ReplyHead::decode(heard).expect("a reply is well formed");
        let content = head.content_bytes() as usize;
        let done = match head {
            ReplyHead::Data { done, .. }
            | ReplyHead::Hole { done, .. }
            | ReplyHead::BlockStatus { done, .. } => done,
            ReplyHead::Simple { .. } | ReplyHead::None | ReplyHead::Error { .. } => true,
        };
        heard = heard.get(len + content..).expect("a whole message");
        if done {
            assert!(
                ended.insert(cookie, content).is_none(),
                "{cookie} ended twice"
            );
        } else {
            assert!(
                !ended.contains_key(&cookie),
                "{cookie} goes on after its end"
            );
        }
    }
    Some(ended)
}
