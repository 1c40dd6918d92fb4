//! A hostile client in the handshake: the server answers in whole messages, and ends.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nbd_server::Connection;
use nbd_server::wire::handshake::{GREETING_BYTES, decode_greeting};
use nbd_server::wire::option_reply::OptionReply;
use virtkeep_fuzz::client::{self, Ear, Mouth, Said};
use virtkeep_fuzz::memory;

#[derive(Arbitrary, Debug)]
struct Input {
    flags: Option<[u8; 4]>,
    said: Vec<Said>,
    piece: u8,
}

fuzz_target!(|input: Input| {
    let bytes = client::handshake(input.flags, &input.said);
    let mut heard = Vec::with_capacity(4 << 20);
    let exports = client::exports();
    let limits = client::limits();
    // One option, decoded, and one answer.
    let outcome = memory::within(512 << 10, || {
        let (mouth, ear) = (Mouth::new(&bytes, input.piece), Ear::new(&mut heard));
        let negotiated = Connection::new(mouth, ear, limits).negotiate(&exports);
        negotiated.map(|session| session.map(|session| session.export_name().to_owned()))
    });
    if let Ok(Some(name)) = &outcome {
        assert_eq!(name, "disk");
    }

    let (greeting, mut rest) = heard.split_at(GREETING_BYTES);
    decode_greeting(greeting).expect("the server greets first");
    while let Some(head) = rest.first_chunk() {
        let Ok(data) = OptionReply::data_bytes(head) else {
            // Without a magic number: the answer to `NBD_OPT_EXPORT_NAME`, the last of all.
            assert!(matches!(outcome, Ok(Some(_))) && matches!(rest.len(), 10 | 134));
            return;
        };
        let (reply, next) = rest.split_at(OptionReply::HEAD_BYTES + data as usize);
        OptionReply::decode(reply).expect("a reply is well formed");
        rest = next;
    }
    assert!(matches!(rest.len(), 0 | 10), "half a message: {rest:?}");
});
