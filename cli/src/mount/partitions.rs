//! The partitions of a disk, by its GPT or else its MBR, with the numbers Linux gives them.
//!
//! The tables come from guests and may say anything: what does not lie inside the disk is no
//! partition, and a table that makes no sense is none.

use std::io::{self, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::{PartRecord, ProtectiveMBR};

/// Entries of a GPT that are looked at; 128 are usual.
const GPT_ENTRIES_MAX: u32 = 1024;

/// The size of a GPT entry: the only one in use, and the only one that the parser takes.
const GPT_ENTRY_BYTES: u32 = 128;

/// Logical partitions of an MBR that are looked at. Their chain may have a loop.
const LOGICAL_MAX: u32 = 128;

/// The sector of an MBR.
const SECTOR_BYTES: u64 = 512;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// From 1 on, as in `vda1`.
    pub(super) number: u32,
    /// Where it begins.
    pub(super) start: u64,
    /// Never 0.
    pub(super) len: u64,
}

/// All partitions of a disk of `size` bytes. An error means that it could not be read.
pub(super) fn read<D: Read + Seek>(disk: &mut D, size: u64) -> io::Result<Vec<Partition>> {
    for sector in [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096] {
        if let Some(found) = gpt(disk, size, sector)? {
            return Ok(found);
        }
    }
    mbr(disk, size)
}

/// None where there is no GPT.
fn gpt<D: Read + Seek>(
    disk: &mut D,
    size: u64,
    sector: LogicalBlockSize,
) -> io::Result<Option<Vec<Partition>>> {
    let header = match gpt::header::read_header_from_arbitrary_device(disk, sector) {
        Ok(header) => header,
        Err(gpt::header::HeaderError::Io(error)) => return none_if_short(error),
        Err(_) => return Ok(None),
    };
    if header.part_size != GPT_ENTRY_BYTES || header.num_parts > GPT_ENTRIES_MAX {
        return Ok(None);
    }
    // A wrong checksum and a disk that cannot be read look alike here: no table either way.
    let Ok(entries) = gpt::partition::file_read_partitions(disk, &header, sector) else {
        return Ok(None);
    };
    let used = entries.into_iter().filter(|(_, entry)| entry.is_used());
    let found = used.filter_map(|(number, entry)| {
        let start = entry.bytes_start(sector).ok()?;
        let len = entry.bytes_len(sector).ok()?;
        inside(Partition { number, start, len }, size)
    });
    Ok(Some(found.collect()))
}

/// A disk too small for a table has none.
fn none_if_short<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Ok(None),
        _ => Err(error),
    }
}

fn mbr<D: Read + Seek>(disk: &mut D, size: u64) -> io::Result<Vec<Partition>> {
    let Some(primary) = records(disk, 0)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (number, record) in (1..).zip(primary) {
        found.extend(partition(number, record, 0, size));
    }
    // The chain of logical partitions: each link has one of them, placed from the link on, and the
    // next link, placed from the extended partition on.
    if let Some(extended) = primary.into_iter().find(is_extended) {
        let base = u64::from(extended.lb_start);
        let mut link = base;
        for number in 5..5 + LOGICAL_MAX {
            let Some([logical, next, ..]) = records(disk, link)? else {
                break;
            };
            found.extend(partition(number, logical, link, size));
            if !is_extended(&next) {
                break;
            }
            link = base + u64::from(next.lb_start);
        }
    }
    Ok(found)
}

/// The four records of the sector `lba`; none if it is no such sector. The boot sector of a file
/// system looks like one, but for what it has in the place of the records.
fn records<D: Read + Seek>(disk: &mut D, lba: u64) -> io::Result<Option<[PartRecord; 4]>> {
    let mut sector = [0; SECTOR_BYTES as usize];
    disk.seek(SeekFrom::Start(lba * SECTOR_BYTES))?;
    if let Err(error) = disk.read_exact(&mut sector) {
        return none_if_short(error);
    }
    let Ok(mbr) = ProtectiveMBR::from_bytes(&sector, LogicalBlockSize::Lb512) else {
        return Ok(None);
    };
    let records = [0, 1, 2, 3].map(|i| mbr.partition(i).unwrap_or_else(PartRecord::zero));
    let makes_sense = |record: &PartRecord| matches!(record.boot_indicator, 0 | 0x80);
    Ok(records.iter().all(makes_sense).then_some(records))
}

/// What Linux, DOS and Windows call the partition that holds the others.
fn is_extended(record: &PartRecord) -> bool {
    matches!(record.os_type, 0x05 | 0x0f | 0x85)
}

fn partition(number: u32, record: PartRecord, base: u64, size: u64) -> Option<Partition> {
    const PROTECTIVE: u8 = 0xee;
    if matches!(record.os_type, 0 | PROTECTIVE) || is_extended(&record) || record.lb_start == 0 {
        return None;
    }
    let partition = Partition {
        number,
        start: (base + u64::from(record.lb_start)) * SECTOR_BYTES,
        len: u64::from(record.lb_size) * SECTOR_BYTES,
    };
    inside(partition, size)
}

fn inside(partition: Partition, size: u64) -> Option<Partition> {
    let end = partition.start.checked_add(partition.len)?;
    (partition.len > 0 && end <= size).then_some(partition)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn read_all(disk: &[u8]) -> Vec<Partition> {
        read(&mut Cursor::new(disk), disk.len() as u64).unwrap()
    }

    /// Writes a record of an MBR into the sector `lba`.
    fn record(disk: &mut [u8], lba: usize, slot: usize, (kind, start, len): (u8, u32, u32)) {
        let at = lba * 512 + 446 + slot * 16;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        disk[lba * 512 + 510..lba * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn sectors(number: u32, start: u64, len: u64) -> Partition {
        let (start, len) = (start * 512, len * 512);
        Partition { number, start, len }
    }

    #[test]
    fn logical_partitions_follow_the_primary_ones() {
        let mut disk = vec![0; SIZE as usize];
        record(&mut disk, 0, 0, (0x83, 8, 100));
        record(&mut disk, 0, 2, (0x05, 200, 800));
        record(&mut disk, 200, 0, (0x83, 8, 10));
        record(&mut disk, 200, 1, (0x05, 300, 100));
        record(&mut disk, 500, 0, (0x82, 16, 20));
        let expected = [sectors(1, 8, 100), sectors(5, 208, 10), sectors(6, 516, 20)];
        assert_eq!(read_all(&disk), expected);
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let mut disk = vec![0; SIZE as usize];
        record(&mut disk, 0, 0, (0x0f, 200, 800));
        record(&mut disk, 200, 0, (0x83, 8, 10));
        record(&mut disk, 200, 1, (0x05, 0, 100));
        assert_eq!(read_all(&disk).len(), LOGICAL_MAX as usize);
    }

    #[test]
    fn what_lies_outside_the_disk_is_no_partition() {
        let mut disk = vec![0; SIZE as usize];
        record(&mut disk, 0, 0, (0x83, 8, 2041));
        record(&mut disk, 0, 1, (0x83, u32::MAX, u32::MAX));
        record(&mut disk, 0, 2, (0x05, u32::MAX, 1));
        record(&mut disk, 0, 3, (0x83, 8, 2040));
        assert_eq!(read_all(&disk), [sectors(4, 8, 2040)]);
    }

    #[test]
    fn a_disk_without_a_table_has_no_partitions() {
        for len in [0, 1, 511, 512, 513, 4096, 10_000] {
            assert_eq!(read_all(&vec![0; len]), []);
            assert_eq!(read_all(&vec![0xff; len]), []);
        }
        // The boot sector of a FAT file system has code where the records would be.
        let mut fat = vec![0; SIZE as usize];
        record(&mut fat, 0, 0, (0x83, 8, 100));
        fat[446] = 0x42;
        assert_eq!(read_all(&fat), []);
    }

    #[test]
    fn a_gpt_that_promises_too_much_is_none() {
        for (at, value) in [(80, u32::MAX), (84, 64), (84, 0)] {
            let mut disk = vec![0; SIZE as usize];
            disk[512..520].copy_from_slice(b"EFI PART");
            disk[512 + 72] = 2;
            disk[512 + 80] = 128;
            disk[512 + 84] = 128;
            disk[512 + at..512 + at + 4].copy_from_slice(&u32::to_le_bytes(value));
            let sum = crc32(&disk[512..512 + 92]);
            disk[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
            let sector = LogicalBlockSize::Lb512;
            gpt::header::read_header_from_arbitrary_device(&mut Cursor::new(&disk), sector)
                .expect("the header itself is right");
            assert_eq!(read_all(&disk), []);
        }
    }

    /// The checksum of a GPT, bit by bit.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(sum & 1))
            })
        })
    }
}
