//! Random histories against a plain model in memory.

use proptest::prelude::*;
use virtkeep_repo::{ByteLen, Codec, InitOptions, Point};

use crate::disk::{MemoryDisk, backup, repository, restore};

/// One thing that happens to a disk.
#[derive(Clone, Debug)]
enum Event {
    Write { at: usize, len: usize, seed: u8 },
    Zero { at: usize, len: usize },
    Resize { sectors: usize },
    Incremental,
    Full,
    ForgottenBitmap,
}

const SECTORS_MAX: usize = 12 << 11; // 12 MiB

fn event() -> impl Strategy<Value = Event> {
    let place = 0..SECTORS_MAX;
    let len = prop_oneof![1usize..300, 1usize..4000];
    prop_oneof![
        6 => (place.clone(), len.clone(), any::<u8>())
            .prop_map(|(at, len, seed)| Event::Write { at, len, seed }),
        3 => (place, len).prop_map(|(at, len)| Event::Zero { at, len }),
        1 => (1..SECTORS_MAX).prop_map(|sectors| Event::Resize { sectors }),
        3 => Just(Event::Incremental),
        1 => Just(Event::Full),
        1 => Just(Event::ForgottenBitmap),
    ]
}

fn options() -> impl Strategy<Value = InitOptions> {
    let chunk_size = prop_oneof![Just(4096), Just(64 << 10), Just(256 << 10)];
    let codec = prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd(1)), Just(Codec::None)];
    let fan_out = prop_oneof![Just(64), Just(256)];
    (chunk_size, codec, fan_out).prop_map(|(chunk_size, codec, fan_out)| InitOptions {
        chunk_size: ByteLen(chunk_size),
        codec,
        fan_out,
        ..InitOptions::default()
    })
}

/// Bytes that compress a little and repeat now and then.
fn content(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8 * 17
        })
        .collect()
}

/// Cuts a range of sectors to what the disk has, in bytes.
fn clip(disk: &MemoryDisk, at: usize, len: usize) -> (usize, usize) {
    let sectors = disk.bytes.len() / 512;
    let at = at % sectors;
    (at * 512, len.min(sectors - at) * 512)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_point_of_a_history_restores_byte_for_byte(
        options in options(),
        sectors in 1..SECTORS_MAX,
        events in prop::collection::vec(event(), 1..40),
    ) {
        let (_dir, repo) = repository(&options);
        let mut disk = MemoryDisk::new(sectors * 512);
        let mut history: Vec<(Point, Vec<u8>)> = Vec::new();
        for event in events {
            match event {
                Event::Write { at, len, seed } => {
                    let (at, len) = clip(&disk, at, len);
                    disk.write(at, &content(seed, len));
                }
                Event::Zero { at, len } => {
                    let (at, len) = clip(&disk, at, len);
                    disk.write(at, &vec![0; len]);
                }
                Event::Resize { sectors } => {
                    // Content that a shrink cuts off inside a chunk is not in the bitmap afterwards,
                    // as with QEMU; the caller reads a disk in full that has become smaller.
                    let smaller = sectors * 512 < disk.bytes.len();
                    disk.resize(sectors * 512);
                    if smaller {
                        let point = backup(&repo, &disk.whole(), history.last().map(|(p, _)| p));
                        history.push((point, disk.bytes.clone()));
                    }
                }
                Event::Incremental | Event::ForgottenBitmap if history.is_empty() => {}
                Event::Incremental => {
                    let parent = history.last().map(|(point, _)| point.clone());
                    let point = backup(&repo, &disk.changes(), parent.as_ref());
                    history.push((point, disk.bytes.clone()));
                }
                Event::Full => {
                    let point = backup(&repo, &disk.whole(), history.last().map(|(p, _)| p));
                    history.push((point, disk.bytes.clone()));
                }
                Event::ForgottenBitmap => {
                    let point = backup(&repo, &disk.whole(), None);
                    let same = history.iter().any(|(_, bytes)| *bytes == disk.bytes);
                    prop_assert!(!same || point.disks[0].stats.new_bytes == 0, "stored twice");
                    history.push((point, disk.bytes.clone()));
                }
            }
        }
        for (point, bytes) in &history {
            prop_assert!(restore(&repo, point) == *bytes, "point {} differs", point.id);
            let again = history.iter().find(|(_, other)| other == bytes).unwrap();
            prop_assert_eq!(again.0.disks[0].root, point.disks[0].root, "one content, one root");
        }
        prop_assert_eq!(repo.points().unwrap().len(), history.len());
    }
}
