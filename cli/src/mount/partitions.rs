//! The partitions of a disk, by its GPT or else its MBR, with the numbers Linux gives them.
//!
//! The tables come from guests and may say anything: what does not lie inside the disk is no
//! partition, and a table that makes no sense is none. Of a GPT the copy at the end of the disk will
//! do as well, with sectors of 512 bytes or of 4 KiB. An MBR does not tell its sectors; they are taken
//! to have 512 bytes.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::{PartRecord, ProtectiveMBR};

/// Entries of a GPT that are looked at; 128 are usual.
const GPT_ENTRIES_MAX: u32 = 1024;

/// The size of a GPT entry: the only one in use, and the only one that the parser takes.
const GPT_ENTRY_BYTES: u32 = 128;

/// What the parser reads of a GPT header.
const GPT_HEADER_BYTES: usize = 92;

/// Sectors with logical partitions of an MBR that are looked at. Their chain may have a loop.
const LOGICAL_MAX: usize = 128;

/// The sector of an MBR.
const SECTOR_BYTES: u64 = 512;

/// The type of the partition in an MBR that says there is a GPT.
const PROTECTIVE: u8 = 0xee;

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

/// What is known of the partitions of a disk.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Each inside the disk, none twice.
    pub(super) partitions: Vec<Partition>,
    /// Why there may be more.
    pub(super) unread: Option<io::Error>,
}

/// The partitions of a disk of `size` bytes.
pub(super) fn read<D: Read + Seek>(disk: &mut D, size: u64) -> Table {
    let mut disk = Disk {
        disk,
        size,
        unread: None,
    };
    let mbr = disk.records(0);
    // As Linux has it, a GPT that no MBR points to is an old one. But an MBR may be lost.
    let may_be_gpt = mbr.is_none_or(|records| records.iter().any(is_protective));
    let gpt = may_be_gpt.then(|| disk.gpt()).flatten();
    let partitions = gpt.unwrap_or_else(|| mbr.map_or_else(Vec::new, |mbr| disk.mbr(&mbr)));
    Table {
        partitions,
        unread: disk.unread,
    }
}

struct Disk<'a, D> {
    disk: &'a mut D,
    size: u64,
    unread: Option<io::Error>,
}

impl<D: Read + Seek> Disk<'_, D> {
    /// None if the disk has no such bytes, or they cannot be read.
    fn bytes(&mut self, at: u64, len: usize) -> Option<Vec<u8>> {
        let end = at.checked_add(len as u64)?;
        if end > self.size {
            return None;
        }
        let mut bytes = vec![0; len];
        let read = self.disk.seek(SeekFrom::Start(at));
        match read.and_then(|_| self.disk.read_exact(&mut bytes)) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.unread.get_or_insert(error);
                None
            }
        }
    }

    /// None where there is no GPT, neither at the beginning nor at the end.
    fn gpt(&mut self) -> Option<Vec<Partition>> {
        const SECTORS: [LogicalBlockSize; 2] = [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096];
        for sector in SECTORS {
            if let Some(found) = self.gpt_at(1, sector) {
                return Some(found);
            }
        }
        SECTORS.into_iter().find_map(|sector| {
            let last = (self.size / u64::from(sector)).checked_sub(1)?;
            self.gpt_at(last, sector)
        })
    }

    /// The GPT whose header is in the sector `lba`.
    fn gpt_at(&mut self, lba: u64, sector: LogicalBlockSize) -> Option<Vec<Partition>> {
        let bytes_per_sector = u64::from(sector);
        let header = self.bytes(lba.checked_mul(bytes_per_sector)?, GPT_HEADER_BYTES)?;
        // The parser expects a header in the second sector, and entries where the header says.
        let mut at_start = vec![0; bytes_per_sector as usize];
        at_start.extend(header);
        let mut header =
            gpt::header::read_header_from_arbitrary_device(&mut Cursor::new(at_start), sector)
                .ok()?;
        if header.current_lba != lba
            || header.part_size != GPT_ENTRY_BYTES
            || header.num_parts > GPT_ENTRIES_MAX
        {
            return None;
        }
        let entries = self.bytes(
            header.part_start.checked_mul(bytes_per_sector)?,
            (header.num_parts * header.part_size) as usize,
        )?;
        header.part_start = 0;
        // Compares the checksum as well.
        let entries =
            gpt::partition::file_read_partitions(&mut Cursor::new(entries), &header, sector)
                .ok()?;
        let used = entries.into_iter().filter(|(_, entry)| entry.is_used());
        let found = used.filter_map(|(number, entry)| {
            let start = entry.bytes_start(sector).ok()?;
            let len = entry.bytes_len(sector).ok()?;
            inside(Partition { number, start, len }, self.size)
        });
        Some(found.collect())
    }

    /// The partitions of an MBR, and of the chains of logical partitions that begin in it. Each link
    /// of a chain has partitions, placed from the link on, and the next link, placed from the
    /// extended partition on.
    fn mbr(&mut self, mbr: &[PartRecord; 4]) -> Vec<Partition> {
        let mut found = Vec::new();
        for (number, record) in (1..).zip(mbr) {
            found.extend(partition(number, record, 0, self.size));
        }
        let mut number = 5;
        let mut links = 0..LOGICAL_MAX;
        for extended in mbr.iter().filter(|record| is_extended(record)) {
            let base = u64::from(extended.lb_start);
            let mut link = Some(base);
            while let Some(at) = link.filter(|_| links.next().is_some()) {
                let Some(records) = self.records(at) else {
                    break;
                };
                let logical = |record: &&PartRecord| record.lb_size > 0 && !is_extended(record);
                for record in records.iter().filter(logical) {
                    found.extend(partition(number, record, at, self.size));
                    number += 1;
                }
                let next = records.iter().find(|record| is_extended(record));
                link = next.map(|next| base + u64::from(next.lb_start));
            }
        }
        found
    }

    /// The four records of the sector `lba`; none if it is no such sector. The boot sector of a file
    /// system looks like one, but for what it has in the place of the records.
    fn records(&mut self, lba: u64) -> Option<[PartRecord; 4]> {
        let sector = self.bytes(lba * SECTOR_BYTES, SECTOR_BYTES as usize)?;
        let mbr = ProtectiveMBR::from_bytes(&sector, LogicalBlockSize::Lb512).ok()?;
        let records = [0, 1, 2, 3].map(|i| mbr.partition(i).unwrap_or_else(PartRecord::zero));
        let makes_sense = |record: &PartRecord| matches!(record.boot_indicator, 0 | 0x80);
        records.iter().all(makes_sense).then_some(records)
    }
}

/// What Linux, DOS and Windows call the partition that holds the others.
fn is_extended(record: &PartRecord) -> bool {
    matches!(record.os_type, 0x05 | 0x0f | 0x85)
}

fn is_protective(record: &PartRecord) -> bool {
    record.os_type == PROTECTIVE
}

/// What a record says, if that is a partition that can hold a file system.
fn partition(number: u32, record: &PartRecord, base: u64, size: u64) -> Option<Partition> {
    if is_protective(record) || is_extended(record) || record.lb_start == 0 {
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
#[path = "partitions_tests.rs"]
mod tests;
