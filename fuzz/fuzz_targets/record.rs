//! Records: headers that lie, content that is not what its id says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory, objects};
use virtkeep_repo::format::record::{Header, open, open_into, open_unknown, record_bytes_max};

fuzz_target!(|input: (u8, bool, Tampering)| {
    let (number, mend, tampering) = input;
    let keys = objects::keys();
    let mut bytes = tampering.of(objects::record(&keys, number));
    if mend {
        objects::mend_record(&keys, &mut bytes);
    }
    let mut buffer = vec![0xee; objects::CHUNK_BYTES];
    memory::within(2 * record_bytes_max(keys.chunk_size()), || {
        let Ok(header) = Header::decode(&bytes, &keys) else {
            assert!(open_unknown(&bytes, &keys).is_err());
            return;
        };
        assert!(header.raw_len <= header.kind.raw_bytes_max(keys.chunk_size()));
        if let Ok((found, raw)) = open_unknown(&bytes, &keys) {
            assert_eq!(found, header);
            assert_eq!(raw.len(), header.raw_len);
            assert_eq!(keys.id_of(header.kind, &raw), header.id);
            let exact = &bytes[..header.record_len()];
            assert_eq!(
                open(&keys, header.kind, header.id, exact).as_ref(),
                Ok(&raw)
            );
            open_into(&keys, header.kind, header.id, exact, &mut buffer).expect("it opens");
            let shared = raw.len().min(buffer.len());
            assert_eq!(buffer[..shared], raw[..shared]);
            assert!(buffer[shared..].iter().all(|byte| *byte == 0));
        } else {
            assert!(open(&keys, header.kind, header.id, &bytes).is_err());
            assert!(open_into(&keys, header.kind, header.id, &bytes, &mut buffer[..9]).is_err());
        }
    });
});
