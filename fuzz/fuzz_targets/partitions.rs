//! The partition tables of a disk, which its guest wrote.
#![no_main]

use std::io::Cursor;

use gpt::disk::LogicalBlockSize;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::{Tampering, memory};

#[path = "../../cli/src/mount/partitions.rs"]
mod partitions;

/// Of a whole disk: room for both copies of a GPT in sectors of 4 KiB.
const DISK_BYTES: usize = 256 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    table: Kind,
    /// Of the first sectors, of those behind them, and of the last ones.
    tampering: [Tampering; 3],
    /// Put the checksums of both headers of a GPT right.
    mend: bool,
    /// Bytes that are missing at the end.
    short: u16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Gpt512,
    Gpt4096,
    Mbr,
    Nothing,
}

fuzz_target!(|input: Input| {
    let mut disk = match input.table {
        Kind::Gpt512 => with_gpt(LogicalBlockSize::Lb512),
        Kind::Gpt4096 => with_gpt(LogicalBlockSize::Lb4096),
        Kind::Mbr => with_mbr(),
        Kind::Nothing => vec![0; DISK_BYTES],
    };
    let parts = [0..1024, 1024..24 << 10, DISK_BYTES - (20 << 10)..DISK_BYTES];
    for (tampering, part) in input.tampering.iter().zip(parts) {
        let mut changed = tampering.of(disk[part.clone()].to_vec());
        changed.resize(part.len(), 0);
        disk[part].copy_from_slice(&changed);
    }
    if input.mend {
        mend(&mut disk);
    }
    disk.truncate(DISK_BYTES - usize::from(input.short));
    let size = disk.len() as u64;
    // A GPT of the most entries, twice as parsed, with names.
    let table = memory::within(2 << 20, || partitions::read(&mut Cursor::new(disk), size));
    assert!(table.unread.is_none(), "memory can always be read");
    let mut numbers: Vec<u32> = table.partitions.iter().map(|part| part.number).collect();
    numbers.sort_unstable();
    assert!(
        numbers.windows(2).all(|pair| pair[0] < pair[1]),
        "{numbers:?}"
    );
    for part in table.partitions {
        let end = part.start.checked_add(part.len).expect("it has an end");
        assert!(part.len > 0 && end <= size, "{part:?} of {size}");
    }
});

fn with_gpt(sector: LogicalBlockSize) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; DISK_BYTES]);
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector)
        .create_from_device(&mut disk, None)
        .expect("there is room");
    for name in ["boot", "root"] {
        let linux = gpt::partition_types::LINUX_FS;
        table
            .add_partition(name, 16 << 10, linux, 0, Some(1))
            .expect("there is room");
    }
    table.write().expect("to memory");
    disk.into_inner()
}

/// Two partitions, and a chain of two logical ones in the sectors that are tampered with.
fn with_mbr() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    let mut record = |lba: usize, slot: usize, kind: u8, start: u32, len: u32| {
        let at = lba * 512 + 446 + slot * 16;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        disk[lba * 512 + 510..lba * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    };
    record(0, 0, 0x83, 48, 16);
    record(0, 1, 0x05, 2, 46);
    record(2, 0, 0x83, 1, 3);
    record(2, 1, 0x05, 4, 4);
    record(6, 0, 0x82, 1, 3);
    disk
}

/// Both headers, wherever they are, with the checksums that they should have.
fn mend(disk: &mut [u8]) {
    for at in [512, 4096, DISK_BYTES - 512, DISK_BYTES - 4096] {
        let number = |from: usize| {
            let bytes = disk[at + from..at + from + 4].try_into();
            u32::from_le_bytes(bytes.expect("four bytes")) as usize
        };
        let sector = if matches!(at, 512) || at == DISK_BYTES - 512 {
            512
        } else {
            4096
        };
        let entries = number(72).saturating_mul(sector);
        let end = entries.saturating_add(number(80).saturating_mul(128));
        if let Some(entries) = disk.get(entries..end) {
            let sum = crc32(entries).to_le_bytes();
            disk[at + 88..at + 92].copy_from_slice(&sum);
        }
        disk[at + 16..at + 20].fill(0);
        let sum = crc32(&disk[at..at + 92]).to_le_bytes();
        disk[at + 16..at + 20].copy_from_slice(&sum);
    }
}

/// The checksum of a GPT (CRC-32/ISO-HDLC), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(sum & 1))
        })
    })
}
