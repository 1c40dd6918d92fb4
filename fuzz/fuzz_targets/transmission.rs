//! A hostile client in the transmission phase: every whole request is answered once, in whole messages
//! and with what was asked for, and memory stays within what one connection may take.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nbd_server::limits::PIECE_BYTES;
use nbd_server::wire::handshake::GREETING_BYTES;
use nbd_server::wire::option_reply::{OptionReply, ReplyBody};
use nbd_server::wire::reply::{Extent, ReplyHead};
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{Connection, Helpers};
use virtkeep_fuzz::client::{self, Ear, FIRST_COOKIE, Mouth, Query, Sent};
use virtkeep_fuzz::disk::DISK_BYTES;
use virtkeep_fuzz::memory;

#[derive(Arbitrary, Debug)]
struct Input {
    structured: bool,
    contexts: Vec<Query>,
    sent: Vec<Sent>,
    helpers: u8,
    piece: u8,
}

fuzz_target!(|input: Input| {
    let session = client::session(input.structured, input.contexts, &input.sent);
    let bytes = &session.bytes;
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
        let (mouth, ear) = (Mouth::new(bytes, piece), Ear::new(&mut heard));
        Connection::new(mouth, ear, client::limits())
            .negotiate(&exports)
            .expect("the handshake is in order")
            .expect("an export was chosen")
            .serve(&Helpers::new(helpers))
    });

    let (replies, contexts) = after_handshake(&heard);
    let mut answers = Answers {
        requests: &session.requests,
        structured: input.structured,
        contexts,
        under_way: BTreeMap::new(),
        ended: 0,
    };
    let all_told = answers.hear(replies, outcome.is_err());
    if outcome.is_ok() && all_told {
        let (ended, whole) = (answers.ended, session.whole);
        assert!(ended >= whole, "{ended} answers to {whole} requests");
    }
});

/// What was heard after the reply to `NBD_OPT_GO`, and how many contexts were selected.
fn after_handshake(heard: &[u8]) -> (&[u8], u32) {
    const GO: u32 = 7;
    let mut rest = &heard[GREETING_BYTES..];
    let mut contexts = 0;
    loop {
        let head = rest.first_chunk().expect("a reply to every option");
        let data = OptionReply::data_bytes(head).expect("a reply is well formed");
        let (reply, next) = rest.split_at(OptionReply::HEAD_BYTES + data as usize);
        let reply = OptionReply::decode(reply).expect("a reply is well formed");
        rest = next;
        match reply.body {
            ReplyBody::MetaContext { .. } => contexts += 1,
            ReplyBody::Ack if reply.option == GO => return (rest, contexts),
            _ => {}
        }
    }
}

/// What becomes of each request.
struct Answers<'a> {
    requests: &'a [Request],
    structured: bool,
    contexts: u32,
    under_way: BTreeMap<u64, Answer>,
    ended: usize,
}

/// What one request got so far.
#[derive(Default)]
struct Answer {
    ended: bool,
    bytes: u64,
    contexts: u32,
}

impl Answers<'_> {
    /// Takes all replies in. False where nobody can tell what they are: the data of a simple reply has no
    /// length but that of its request. The last may be cut short only where the connection `broke`.
    fn hear(&mut self, mut heard: &[u8], broke: bool) -> bool {
        while !heard.is_empty() {
            // 16 to 32 bytes, by what it is.
            let decoded = ReplyHead::decode(heard);
            let Ok((head, cookie, len)) = decoded else {
                assert!(broke, "{decoded:?}");
                return true;
            };
            let number = cookie.wrapping_sub(FIRST_COOKIE);
            let request = usize::try_from(number).ok();
            let request = request.and_then(|number| self.requests.get(number));
            let succeeded = head == ReplyHead::Simple { error: None };
            let content = match request {
                None if !self.structured && succeeded => return false,
                Some(request) if !self.structured && succeeded => match request.command {
                    Command::Read => request.length as usize,
                    _ => 0,
                },
                _ => head.content_bytes() as usize,
            };
            let Some((content, next)) = heard[len..].split_at_checked(content) else {
                assert!(broke, "half of {head:?}");
                return true;
            };
            heard = next;
            let answer = self.under_way.entry(cookie).or_default();
            assert!(!answer.ended, "{cookie} goes on after its end: {head:?}");
            let done = match head {
                ReplyHead::Data { done, .. }
                | ReplyHead::Hole { done, .. }
                | ReplyHead::BlockStatus { done, .. } => done,
                ReplyHead::Simple { .. } | ReplyHead::None | ReplyHead::Error { .. } => true,
            };
            assert!(self.structured || matches!(head, ReplyHead::Simple { .. }));
            if let Some(request) = request {
                answer.take(request, &head, content);
                let failed = matches!(head, ReplyHead::Error { .. });
                if done && self.structured && !failed {
                    answer.assert_complete(request, self.contexts);
                }
            }
            answer.ended = done;
            self.ended += usize::from(done);
        }
        true
    }
}

impl Answer {
    /// Takes a chunk in: what it tells lies within what was asked.
    fn take(&mut self, request: &Request, head: &ReplyHead, content: &[u8]) {
        match *head {
            ReplyHead::Data { offset, length, .. } | ReplyHead::Hole { offset, length, .. } => {
                assert_eq!(request.command, Command::Read);
                let end = request.offset + u64::from(request.length);
                assert!(request.offset <= offset && offset + u64::from(length) <= end);
                self.bytes += u64::from(length);
            }
            ReplyHead::BlockStatus { context, .. } => {
                assert_eq!(request.command, Command::BlockStatus);
                assert_eq!(context, self.contexts, "each once, in order");
                self.contexts += 1;
                let (extents, rest) = content.as_chunks::<{ Extent::BYTES }>();
                assert!(!extents.is_empty() && rest.is_empty());
                let one = request.flags.has(CommandFlags::REQ_ONE);
                assert!(!one || extents.len() == 1);
                let lengths = extents.iter().map(|extent| {
                    let [a, b, c, d, ..] = *extent;
                    u32::from_be_bytes([a, b, c, d])
                });
                assert!(lengths.clone().all(|length| length > 0));
                assert!(lengths.map(u64::from).sum::<u64>() <= request.length.into());
            }
            ReplyHead::Simple { .. } | ReplyHead::None | ReplyHead::Error { .. } => {}
        }
    }

    /// A request that succeeded got all it asked for.
    fn assert_complete(&self, request: &Request, contexts: u32) {
        match request.command {
            Command::Read => assert_eq!(self.bytes, u64::from(request.length), "{request:?}"),
            Command::BlockStatus => assert_eq!(self.contexts, contexts, "{request:?}"),
            _ => {}
        }
    }
}
