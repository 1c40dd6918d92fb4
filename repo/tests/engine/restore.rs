//! Reading back: any range, any place, and what holes are known.

use virtkeep_repo::{ByteLen, DiskOffset, ExtentState, InitOptions};

use crate::disk::{MemoryDisk, backup, repository, restore_range};

const MIB: usize = 1 << 20;

/// A disk of 40 MiB and one sector: data at its start, in the middle, at its end; else holes.
fn disk() -> MemoryDisk {
    let mut disk = MemoryDisk::new(40 * MIB + 512);
    disk.write(0, &[1; 100]);
    for block in 0..40 {
        disk.write(20 * MIB + block * 70_000, &[block as u8 + 1; 65_000]);
    }
    disk.write(40 * MIB, &[9; 512]);
    disk
}

#[test]
fn any_range_can_be_copied_and_nothing_outside_it_is_touched() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = disk();
    let point = backup(&repo, &disk.whole(), None);
    let size = disk.bytes.len() as u64;
    for (from, until) in [
        (0, size),
        (0, 0),
        (size, size),
        (1, 2),
        (20 * MIB as u64 + 7, 20 * MIB as u64 + 900_001),
        (size - 1, size),
        (5 * MIB as u64, 39 * MIB as u64),
    ] {
        let restored = restore_range(&repo, &point, from, until);
        let (from, until) = (from as usize, until as usize);
        assert!(
            restored[from..until] == disk.bytes[from..until],
            "{from}..{until}"
        );
        assert!(
            restored[..from]
                .iter()
                .chain(&restored[until..])
                .all(|byte| *byte == 0xcc)
        );
    }
}

#[test]
fn small_reads_anywhere_give_the_bytes_of_the_disk() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = disk();
    let point = backup(&repo, &disk.whole(), None);
    let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
    assert_eq!(reader.size(), ByteLen(disk.bytes.len() as u64));
    for at in (0..disk.bytes.len() - 200_000).step_by(77_777) {
        let mut buffer = vec![0xcc; 123_456];
        reader.read_at(DiskOffset(at as u64), &mut buffer).unwrap();
        assert!(buffer == disk.bytes[at..at + buffer.len()], "at {at}");
    }
    let mut end = [0; 600];
    reader
        .read_at(DiskOffset(disk.bytes.len() as u64 - 600), &mut end)
        .unwrap();
    assert!(end == disk.bytes[disk.bytes.len() - 600..]);
}

#[test]
fn holes_are_known_without_reading_chunks() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = disk();
    let point = backup(&repo, &disk.whole(), None);
    let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
    let end = DiskOffset(reader.size().0);
    let extents = reader.extents(DiskOffset(0), end).unwrap();
    let found: Vec<_> = extents
        .iter()
        .map(|extent| (extent.start.0, extent.len.0, extent.state))
        .collect();
    let (kib, data) = (1 << 10, 40 * 70_000_u64);
    let data = data.next_multiple_of(64 * kib);
    assert_eq!(
        found,
        [
            (0, 64 * kib, ExtentState::Data),
            (64 * kib, (20 << 20) - 64 * kib, ExtentState::Zero),
            (20 << 20, data, ExtentState::Data),
            ((20 << 20) + data, (20 << 20) - data, ExtentState::Zero),
            (40 << 20, 512, ExtentState::Data),
        ]
    );
}

#[test]
fn an_empty_disk_of_64_tib_costs_nothing_and_reads_as_zeroes() {
    let (_dir, repo) = repository(&InitOptions::default());
    let huge = Huge(64 << 40);
    let backup = repo.begin_backup(&[], "test").unwrap();
    let stored = backup.store_disk(
        &huge,
        None,
        &virtkeep_repo::NoProgress,
        &virtkeep_repo::Cancel::new(),
    );
    let stored = stored.unwrap();
    assert_eq!(stored.stats.read_bytes, 0);
    assert!(
        stored.stats.stored_bytes < 200,
        "a root record and nothing else"
    );
    let point = backup
        .commit(crate::disk::draft(&MemoryDisk::new(512).whole(), stored))
        .unwrap();
    let reader = repo.read_disk(&point, &point.disks[0]).unwrap();
    let mut buffer = [1; 4096];
    reader
        .read_at(DiskOffset((64 << 40) - 4096), &mut buffer)
        .unwrap();
    assert_eq!(buffer, [0; 4096]);
    let all = reader.extents(DiskOffset(0), DiskOffset(64 << 40)).unwrap();
    assert_eq!(all.len(), 1);
}

/// Nothing but zeroes.
struct Huge(u64);

impl virtkeep_repo::DiskSource for Huge {
    fn size(&self) -> ByteLen {
        ByteLen(self.0)
    }

    fn extents(
        &self,
        from: DiskOffset,
    ) -> Result<Vec<virtkeep_repo::Extent>, virtkeep_repo::SourceError> {
        let len = ByteLen(self.0 - from.0);
        Ok(vec![virtkeep_repo::Extent {
            start: from,
            len,
            state: ExtentState::Zero,
        }])
    }

    fn read(&self, queue: &dyn virtkeep_repo::ReadQueue) -> Result<(), virtkeep_repo::SourceError> {
        match queue.next(true) {
            virtkeep_repo::Next::Done => Ok(()),
            other => Err(format!("nothing to read, yet {other:?}").into()),
        }
    }
}
