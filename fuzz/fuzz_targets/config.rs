//! `config.toml`: what is read is printed so that it is read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory};
use virtkeep_repo::config::Config;
use virtkeep_repo::format::geometry::{ChunkSize, FanOut};
use virtkeep_repo::keys::IdKey;
use virtkeep_repo::{Codec, RepoId};

fuzz_target!(|input: (bool, Tampering)| {
    let (empty, tampering) = input;
    let valid = Config::new(
        RepoId::from_bytes([0xab; 16]),
        IdKey::from_bytes([0xcd; 32]),
        ChunkSize::DEFAULT,
        FanOut::DEFAULT,
        Codec::Zstd(3),
    );
    let text = if empty { String::new() } else { valid.print() };
    let Ok(text) = String::from_utf8(tampering.of(text.into_bytes())) else {
        return;
    };
    let path = Path::new("repository");
    memory::within(256 * text.len() + (1 << 20), || {
        if let Ok(config) = Config::parse(&text, path) {
            let again = Config::parse(&config.print(), path).expect("what was printed is read");
            assert_eq!(again, config);
        }
    });
});
