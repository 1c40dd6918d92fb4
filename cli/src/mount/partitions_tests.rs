use super::*;

const SIZE: u64 = 1 << 20;

fn read_all(disk: &[u8]) -> Vec<Partition> {
    let table = read(&mut Cursor::new(disk), disk.len() as u64);
    assert!(table.unread.is_none());
    table.partitions
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
fn links_without_a_partition_take_no_number() {
    let mut disk = vec![0; SIZE as usize];
    record(&mut disk, 0, 3, (0x0f, 200, 800));
    record(&mut disk, 200, 1, (0x05, 300, 100));
    record(&mut disk, 500, 0, (0x82, 16, 20));
    record(&mut disk, 500, 1, (0x05, 400, 100));
    // Too long, and so left out, but Linux has counted it.
    record(&mut disk, 600, 0, (0x83, 8, 5000));
    record(&mut disk, 600, 1, (0x05, 500, 100));
    record(&mut disk, 700, 0, (0x83, 8, 20));
    assert_eq!(read_all(&disk), [sectors(5, 516, 20), sectors(7, 708, 20)]);
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut disk = vec![0; SIZE as usize];
    record(&mut disk, 0, 0, (0x0f, 200, 800));
    record(&mut disk, 200, 0, (0x83, 8, 10));
    record(&mut disk, 200, 1, (0x05, 0, 100));
    assert_eq!(read_all(&disk).len(), LOGICAL_MAX);
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

/// A disk with a GPT in sectors of this size, and partitions of 100 and of 200 sectors.
fn gpt_disk(sector: LogicalBlockSize) -> Vec<u8> {
    let bytes = u64::from(sector);
    let mut disk = Cursor::new(vec![0; 1000 * bytes as usize]);
    let protective = ProtectiveMBR::with_lb_size(999);
    protective.overwrite_lba0(&mut disk).unwrap();
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector)
        .create_from_device(&mut disk, None)
        .unwrap();
    let linux = gpt::partition_types::LINUX_FS;
    for (name, sectors) in [("boot", 100), ("root", 200)] {
        table
            .add_partition(name, sectors * bytes, linux.clone(), 0, Some(1))
            .unwrap();
    }
    table.write().unwrap();
    disk.into_inner()
}

#[test]
fn a_gpt_is_found_by_its_copy_too_whatever_its_sectors() {
    for sector in [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096] {
        let bytes = u64::from(sector);
        let good = gpt_disk(sector);
        let found = read_all(&good);
        let numbers: Vec<u32> = found.iter().map(|partition| partition.number).collect();
        assert_eq!(numbers, [1, 2]);
        assert_eq!([found[0].len, found[1].len], [100 * bytes, 200 * bytes]);
        assert_eq!(found[1].start, found[0].start + found[0].len);
        let at = bytes as usize;
        // The header; its checksum alone; the entries; everything at the beginning.
        for spoilt in [
            at..at + 92,
            at + 16..at + 20,
            2 * at..2 * at + 128,
            0..34 * 512,
        ] {
            let mut disk = good.clone();
            disk[spoilt.clone()]
                .iter_mut()
                .for_each(|byte| *byte ^= 0x5a);
            assert_eq!(read_all(&disk), found, "{spoilt:?} with sectors of {bytes}");
            disk[999 * at..].fill(0);
            assert_eq!(read_all(&disk), [], "{spoilt:?} with sectors of {bytes}");
        }
    }
}

#[test]
fn a_gpt_that_no_mbr_points_to_any_more_is_passed_over() {
    let mut disk = gpt_disk(LogicalBlockSize::Lb512);
    disk[446..510].fill(0);
    record(&mut disk, 0, 1, (0x83, 8, 100));
    assert_eq!(read_all(&disk), [sectors(2, 8, 100)]);
}

#[test]
fn what_cannot_be_read_is_told_beside_what_can() {
    /// A disk that fails below a place.
    #[derive(Debug)]
    struct Failing(Cursor<Vec<u8>>, u64);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.position() < self.1 {
                true => Err(io::Error::other("damaged")),
                false => self.0.read(buffer),
            }
        }
    }
    impl Seek for Failing {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    let disk = gpt_disk(LogicalBlockSize::Lb512);
    let size = disk.len() as u64;
    let table = read(&mut Failing(Cursor::new(disk.clone()), 65_536), size);
    assert_eq!((table.partitions.len(), table.unread.is_some()), (2, true));
    let table = read(&mut Failing(Cursor::new(disk), size), size);
    assert_eq!((table.partitions.len(), table.unread.is_some()), (0, true));
}

#[test]
fn a_gpt_that_promises_too_much_is_none() {
    for (at, value) in [(80, u32::MAX), (84, 64), (84, 0)] {
        let mut disk = vec![0; SIZE as usize];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 24] = 1;
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
