//! Leases and pins: JSON that other commands, and later versions, left.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use virtkeep_fuzz::{Tampering, memory};
use virtkeep_repo::lease::LeaseContent;
use virtkeep_repo::pin::Pin;

const LEASE: &[u8] = br#"{"kind":"writer","epoch":7,"roots":{"points":["p0123456789abcdef"],"disks":["0e2a8da704b423c55b37c1ff4fcf4364ee1fd7cf2303bf3e518f6c684d638a72"]},"host":"hv1","command":"virtkeep backup","started":1795392000000}"#;
const PIN: &[u8] =
    br#"{"points":["p0123456789abcdef"],"reason":"runs from it","created":1795392000000}"#;

fuzz_target!(|input: (bool, Tampering)| {
    let (pin, tampering) = input;
    let bytes = tampering.of(if pin { PIN } else { LEASE }.to_vec());
    memory::within(64 * bytes.len() + (64 << 10), || {
        survives::<LeaseContent>(&bytes);
        survives::<Pin>(&bytes);
    });
});

/// What is understood is written so that it is understood again.
fn survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&value).expect("it is plain data");
        assert_eq!(
            serde_json::from_slice::<T>(&again).expect("as written"),
            value
        );
    }
}
