//! What a check finds, and what it says of the points.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use virtkeep_repo::{
    Affected, ByteLen, Cancel, CheckOptions, CheckProgress, CheckReport, Codec, InitOptions, Point,
    ReadData, RepairOptions, Repository,
};

use crate::disk::{MemoryDisk, backup, repository};
use crate::last_copy::{lose, path_of, with_a_last_pack};
use crate::prune::{Quiet, assert_clean, now, prune, reopen};
use crate::prune_races::index_of;

const KIB: usize = 1 << 10;

/// Remembers what it is told.
#[derive(Default)]
pub(crate) struct Witness(Mutex<Vec<Affected>>);

impl CheckProgress for Witness {
    fn packs(&self, _: u64) {}
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
    fn affected(&self, part: &Affected) {
        self.0.lock().unwrap().push(part.clone());
    }
}

/// What a check finds.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) report: CheckReport,
    pub(crate) affected: Vec<Affected>,
}

pub(crate) fn check(repo: &Repository, read_data: ReadData) -> Checked {
    let witness = Witness::default();
    let report = repo
        .check(CheckOptions { read_data }, &witness, &Cancel::new())
        .unwrap();
    let affected = witness.0.into_inner().unwrap();
    assert_eq!(report.affected, affected.len() as u64);
    Checked { report, affected }
}

/// Two points of a disk of 4 MiB; the second differs in one chunk. Stored uncompressed, so that
/// chunks can be found in packs by their content.
fn two_points() -> (tempfile::TempDir, Repository, Point, Point) {
    let options = InitOptions {
        codec: Codec::None,
        ..InitOptions::default()
    };
    let (dir, repo) = repository(&options);
    let mut disk = MemoryDisk::new(4 << 20);
    disk.write(64 * KIB, &[1; 64 * KIB]);
    disk.write(640 * KIB, &[2; 64 * KIB]);
    let first = backup(&repo, &disk.whole(), None);
    disk.write(640 * KIB, &[3; 64 * KIB]);
    let second = backup(&repo, &disk.changes(), Some(&first));
    (dir, repo, first, second)
}

fn packs(repo: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(repo.join("packs")).unwrap();
    folders
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect()
}

/// The pack with a run of `byte`, and where.
fn find(repo: &Path, byte: u8) -> (PathBuf, u64) {
    let needle = vec![byte; 64 * KIB];
    packs(repo)
        .into_iter()
        .find_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes
                .windows(needle.len())
                .position(|window| window == needle)?;
            Some((path, at as u64))
        })
        .expect("the chunk is in a pack")
}

#[test]
fn a_sound_repository_is_clean() {
    let (_dir, repo, ..) = two_points();
    for read in [
        ReadData::Nothing,
        ReadData::Bytes(ByteLen(1)),
        ReadData::ALL,
    ] {
        let Checked { report, .. } = check(&repo, read);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((report.points, report.disks), (2, 2));
        let packs_read = match read {
            ReadData::Nothing => 0,
            ReadData::ALL => report.packs,
            _ => 1,
        };
        assert_eq!(report.packs_read, packs_read);
    }
}

#[test]
fn checks_of_a_part_each_find_the_damage_in_the_end() {
    let (_dir, repo, ..) = two_points();
    let (pack, at) = find(repo.path(), 2);
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(&[0xff], at + 1000).unwrap();
    let packs = check(&repo, ReadData::Nothing).report.packs;
    let found = (0..packs)
        .map(|_| check(&repo, ReadData::Bytes(ByteLen(1))).report)
        .filter(|report| !report.is_clean())
        .count();
    assert_eq!(found, 1, "each pack is read once in {packs} checks");
}

#[test]
fn a_flipped_bit_is_found_by_reading_and_named_as_a_range_of_the_disk() {
    let (_dir, repo, first, _second) = two_points();
    let (pack, at) = find(repo.path(), 2);
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(&[0xff], at + 1000).unwrap();

    let looked = check(&repo, ReadData::Nothing);
    assert!(looked.report.is_clean(), "looking at sizes cannot see it");
    let Checked { report, affected } = check(&repo, ReadData::ALL);
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert_eq!(
        affected.len(),
        1,
        "only the first point holds that chunk: {affected:?}"
    );
    assert_eq!(
        (affected[0].point, affected[0].part.as_str()),
        (first.id, "vda")
    );
    assert_eq!(affected[0].ranges, vec![640 * 1024..704 * 1024]);
}

#[test]
fn a_missing_pack_is_found_without_reading() {
    let (_dir, repo, first, second) = two_points();
    let (pack, _) = find(repo.path(), 1);
    fs::remove_file(pack).unwrap();
    let Checked { report, affected } = check(&repo, ReadData::Nothing);
    assert!(report.damage[0].ends_with("is missing"), "{report:?}");
    let hit: Vec<_> = affected.iter().map(|affected| affected.point).collect();
    assert!(
        hit.contains(&first.id) && hit.contains(&second.id),
        "{affected:?}"
    );
    assert!(
        affected
            .iter()
            .any(|a| a.ranges.contains(&(64 * 1024..128 * 1024)))
    );
}

#[test]
fn a_truncated_pack_costs_only_the_records_cut_off() {
    let (_dir, repo, ..) = two_points();
    // Which of the two chunks of the first point comes last in the pack is left to chance.
    let (pack, one) = find(repo.path(), 1);
    let (_, two) = find(repo.path(), 2);
    let lost = if one > two {
        64 * 1024..128 * 1024
    } else {
        640 * 1024..704 * 1024
    };
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.set_len(one.max(two) + 10).unwrap();
    let Checked { affected, .. } = check(&repo, ReadData::Nothing);
    assert!(!affected.is_empty());
    for affected in &affected {
        assert_eq!(
            affected.ranges,
            vec![lost.clone()],
            "the chunk before it is whole"
        );
    }
}

#[test]
fn a_damaged_point_record_names_its_point() {
    let (_dir, repo, _first, second) = two_points();
    let record = repo.path().join("points").join(second.id.to_string());
    let mut bytes = fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&record, bytes).unwrap();
    let Checked { affected, .. } = check(&repo, ReadData::Nothing);
    assert_eq!(affected.len(), 1, "{affected:?}");
    assert_eq!(affected[0].point, second.id);
}

#[test]
fn a_damaged_subtree_is_named_with_all_that_hangs_below_it() {
    // With chunks of 4 KiB a leaf covers 256 KiB: three levels for this disk.
    let options = InitOptions {
        chunk_size: ByteLen(4096),
        ..InitOptions::default()
    };
    let (_dir, repo) = repository(&options);
    let mut disk = MemoryDisk::new(40 << 20);
    for at in (0..40 << 20).step_by(4096) {
        disk.write(at, &(at as u64 + 1).to_le_bytes());
    }
    let first = backup(&repo, &disk.whole(), None);
    let metas = |repo: &Repository| {
        packs(repo.path())
            .into_iter()
            .filter(|path| fs::read(path).unwrap()[10] == 2)
            .collect::<Vec<_>>()
    };
    let old = metas(&repo);
    disk.write(20 << 20, &[9; 10]);
    let second = backup(&repo, &disk.changes(), Some(&first));
    let new: Vec<_> = metas(&repo)
        .into_iter()
        .filter(|path| !old.contains(path))
        .collect();
    // The first record of the second meta pack is the leaf that changed.
    let file = fs::OpenOptions::new().write(true).open(&new[0]).unwrap();
    file.write_all_at(&[0xff; 8], 64 + 100).unwrap();
    let Checked { affected, .. } = check(&repo, ReadData::Nothing);
    assert_eq!(affected.len(), 1, "{affected:?}");
    assert_eq!(affected[0].point, second.id);
    let leaf = 256 << 10;
    assert_eq!(affected[0].ranges, vec![20 << 20..(20 << 20) + leaf]);
}

#[test]
fn what_the_index_finds_in_no_pack_at_all_is_told_and_healed() {
    for (way, unknown) in [("no entry", false), ("an entry to an unknown pack", true)] {
        let (_dir, repo, mut history, last) = with_a_last_pack();
        fs::remove_file(path_of(&repo, last.id)).unwrap();
        if !unknown {
            lose(&repo, last.id, last.entries[0]);
        }
        let index = index_of(&repo);
        index.write(|edit| edit.remove_packs(&[last.id])).unwrap();

        let repo = reopen(&repo);
        let options = CheckOptions::default();
        let checked = repo.check(options, &Quiet, &Cancel::new()).unwrap();
        assert_eq!(checked.affected, 1, "{way}: {checked:?}");
        let repaired = repo.repair(RepairOptions::default(), &Quiet, &Cancel::new());
        let repaired = repaired.unwrap();
        assert!(!repaired.is_whole(), "{way}: {repaired:?}");
        assert_eq!(repo.wanted().unwrap(), 1, "{way}");
        prune(&repo, now());
        history.back_up(&reopen(&repo));
        let repo = reopen(&repo);
        history.assert_restores(&repo);
        assert_clean(&repo);
    }
}
