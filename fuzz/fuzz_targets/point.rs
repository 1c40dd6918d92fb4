//! Point records: the envelope, and the JSON in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory, objects};
use virtkeep_repo::PointId;
use virtkeep_repo::format::point::{POINT_HEADER_BYTES, decode, decode_body, encode};

/// The point of `doc/format.md`, with some more of everything.
const BODY: &[u8] = br#"{"id":"p0123456789abcdef","domain":{"uuid":"11111111-1111-1111-1111-111111111111","name":"web"},"source":"live","host":"hv1","time":1795392000000,"committed":1795392002500,"consistency":"frozen","checkpoint":"c","disks":[{"target":"vda","size":8192,"root":"0e2a8da704b423c55b37c1ff4fcf4364ee1fd7cf2303bf3e518f6c684d638a72","mode":"incremental","reason":"first backup","checkpoint":null,"parent":"p0123456789abcdee","format":"qcow2","location":"/var/lib/libvirt/images/web.qcow2","backing":["/b"],"stats":{"dirty_bytes":0,"read_bytes":0,"new_bytes":0,"stored_bytes":0,"new_chunks":0,"new_nodes":0}}],"files":[{"role":"domain-xml","name":"n","size":3,"pieces":["0e2a8da704b423c55b37c1ff4fcf4364ee1fd7cf2303bf3e518f6c684d638a72"]}],"tags":["monthly"]}"#;

fuzz_target!(|input: (bool, bool, Tampering, Tampering)| {
    let (mend_length, mend_checksum, of_body, of_record) = input;
    let keys = objects::keys();
    let id: PointId = "p0123456789abcdef".parse().expect("a point id");

    let body = of_body.of(BODY.to_vec());
    let mut record = b"VKPOINT\n\x01\0\0\0\0\0\0\0".to_vec();
    record.extend_from_slice(&(body.len() as u32).to_le_bytes());
    record.resize(POINT_HEADER_BYTES, 0);
    record.extend_from_slice(&body);
    let mut record = of_record.of(record);
    if mend_length && record.len() >= POINT_HEADER_BYTES {
        let len = (record.len() - POINT_HEADER_BYTES) as u32;
        record[16..20].copy_from_slice(&len.to_le_bytes());
    }
    if mend_checksum {
        let checksum = keys.checksum().update(&record).full();
        record.extend_from_slice(&checksum);
    }
    memory::within(64 * record.len() + (1 << 20), || {
        let body = decode_body(&record, &keys);
        let Ok(point) = decode(&record, id, &keys) else {
            return;
        };
        assert!(body.is_ok());
        assert_eq!(point.id, id);
        let again = encode(&point, &keys).expect("it was not too large before");
        assert_eq!(
            decode(&again, id, &keys).expect("what was written is read"),
            point
        );
    });
});
