//! What a check finds, and what it says of the points.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use virtkeep_repo::{
    Cancel, CheckOptions, CheckProgress, CheckReport, Codec, InitOptions, Point, Repository,
};

use crate::disk::{MemoryDisk, backup, repository};

const KIB: usize = 1 << 10;

struct Quiet;

impl CheckProgress for Quiet {
    fn packs(&self, _: u64) {}
    fn pack_done(&self, _: u64) {}
    fn points(&self, _: u64) {}
    fn point_done(&self) {}
}

fn check(repo: &Repository, read_data_percent: u8) -> CheckReport {
    repo.check(CheckOptions { read_data_percent }, &Quiet, &Cancel::new())
        .unwrap()
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
    for share in [0, 10, 100] {
        let report = check(&repo, share);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((report.points, report.disks), (2, 2));
        assert_eq!(
            report.packs_read,
            if share == 100 { report.packs } else { 0 }
        );
    }
}

#[test]
fn a_flipped_bit_is_found_by_reading_and_named_as_a_range_of_the_disk() {
    let (_dir, repo, first, _second) = two_points();
    let (pack, at) = find(repo.path(), 2);
    let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(&[0xff], at + 1000).unwrap();

    assert!(check(&repo, 0).is_clean(), "looking at sizes cannot see it");
    let report = check(&repo, 100);
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert_eq!(
        report.affected.len(),
        1,
        "only the first point holds that chunk: {report:?}"
    );
    let affected = &report.affected[0];
    assert_eq!((affected.point, affected.part.as_str()), (first.id, "vda"));
    assert_eq!(affected.ranges, vec![640 * 1024..704 * 1024]);
}

#[test]
fn a_missing_pack_is_found_without_reading() {
    let (_dir, repo, first, second) = two_points();
    let (pack, _) = find(repo.path(), 1);
    fs::remove_file(pack).unwrap();
    let report = check(&repo, 0);
    assert!(report.damage[0].ends_with("is missing"), "{report:?}");
    let hit: Vec<_> = report
        .affected
        .iter()
        .map(|affected| affected.point)
        .collect();
    assert!(
        hit.contains(&first.id) && hit.contains(&second.id),
        "{report:?}"
    );
    assert!(
        report
            .affected
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
    let report = check(&repo, 0);
    assert!(!report.affected.is_empty(), "{report:?}");
    for affected in &report.affected {
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
    let report = check(&repo, 0);
    assert_eq!(report.affected.len(), 1, "{report:?}");
    assert_eq!(report.affected[0].point, second.id);
}
