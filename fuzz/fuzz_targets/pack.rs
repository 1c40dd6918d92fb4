//! Packs as a whole: tables that lie, records that overlap, files cut short.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory, objects};
use virtkeep_repo::format::inspect::{Inspection, inspect};
use virtkeep_repo::format::pack::{PACK_HEADER_BYTES, read_header, read_table};
use virtkeep_repo::format::record::{open_unknown, record_bytes_max};
use virtkeep_repo::format::walk::{Found, walk};
use virtkeep_repo::storage::{MemoryStorage, ObjectName, Storage};

fuzz_target!(|input: (u8, bool, Tampering)| {
    let (number, mend, tampering) = input;
    let keys = objects::keys();
    let mut bytes = tampering.of(objects::pack(&keys, number));
    if mend {
        objects::mend_pack(&keys, &mut bytes);
    }
    let storage = MemoryStorage::new();
    let name = ObjectName::Pack(objects::PACK);
    storage.put(&name, &bytes).expect("memory takes all");
    let limit = 4 * bytes.len() + 2 * record_bytes_max(keys.chunk_size()) + (1 << 20);
    memory::within(limit, || {
        let header = read_header(&storage, objects::PACK, &keys);
        let table = read_table(&storage, objects::PACK, &keys);
        if let Ok(pack) = &table {
            assert!(header.is_ok());
            let mut end = PACK_HEADER_BYTES as u64;
            for entry in &pack.entries {
                assert_eq!(u64::from(entry.offset), end);
                end += u64::from(entry.len);
            }
            assert_eq!(pack.records_end(), end);
        }
        let inspection = inspect(&storage, objects::PACK, &keys).ok();
        let sound = inspection.as_ref().is_some_and(Inspection::is_sound);
        assert_eq!(inspection.map(|inspection| inspection.pack), table.ok());
        if bytes.len() < PACK_HEADER_BYTES {
            return;
        }
        let mut end = PACK_HEADER_BYTES as u64;
        walk(&storage, objects::PACK, &keys, &mut |found| {
            let (offset, len) = match found {
                Found::Record { entry, sealed } => {
                    let (header, _) = open_unknown(sealed, &keys).expect("it was verified");
                    assert_eq!((header.id, header.kind), (entry.id, entry.kind));
                    (entry.offset, entry.len)
                }
                Found::Damage { offset, len } => {
                    assert!(!sound);
                    (offset, len)
                }
            };
            assert_eq!(
                u64::from(offset),
                end,
                "nothing is passed over or told twice"
            );
            assert!(len > 0);
            end += u64::from(len);
            Ok(())
        })
        .expect("damage is no error");
        assert!(end <= bytes.len() as u64);
    });
});
