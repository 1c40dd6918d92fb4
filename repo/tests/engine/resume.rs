//! A backup that was killed half-way costs nothing but the time until then.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use virtkeep_repo::{Cancel, Env, InitOptions, NoProgress, OpenOptions, Repository};

use crate::disk::{MemoryDisk, backup, repository};

const MIB: usize = 1 << 20;

/// A disk whose chunks neither repeat nor compress, larger than a pack.
fn disk() -> MemoryDisk {
    let mut disk = MemoryDisk::new(100 * MIB);
    let mut state = 1_u64;
    let mut bytes = vec![0; 100 * MIB];
    for word in bytes.chunks_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state ^ state >> 33).to_le_bytes());
    }
    disk.write(0, &bytes);
    disk
}

fn packs(repo: &Path) -> usize {
    let list = Command::new("find")
        .arg(repo.join("packs"))
        .args(["-name", "*.pack"])
        .output();
    String::from_utf8(list.unwrap().stdout)
        .unwrap()
        .lines()
        .count()
}

#[test]
fn a_killed_backup_is_resumed_from_the_packs_it_left() {
    let (dir, repo) = repository(&InitOptions::default());
    let mut disk = disk();
    let running = repo.begin_backup(&[], "test").unwrap();
    running
        .store_disk(&disk.whole(), None, &NoProgress, &Cancel::new())
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while packs(repo.path()) == 0 {
        assert!(
            Instant::now() < deadline,
            "the first pack is never finished"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    // The repository as a kill at this moment leaves it: nobody holds the locks of the copy.
    let killed = dir.path().join("killed");
    let copied = Command::new("cp")
        .arg("-a")
        .args([repo.path(), &killed])
        .status()
        .unwrap();
    assert!(copied.success());
    drop(running);

    let repo = Repository::open(&killed, &OpenOptions::default(), Env::system()).unwrap();
    assert_eq!(
        repo.stats().unwrap().packs,
        0,
        "the index was not told of the pack"
    );
    let point = backup(&repo, &disk.whole(), None);
    let stats = point.disks[0].stats;
    assert!(
        stats.new_bytes < 40 << 20,
        "what was stored before is found again: {stats:?}"
    );
    assert!(crate::disk::restore(&repo, &point) == disk.bytes);
    let left = std::fs::read_dir(killed.join("leases")).unwrap().count();
    assert_eq!(left, 0, "the dead lease is cleared away");
}

#[test]
fn a_backup_given_up_leaves_what_it_stored_to_the_next() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = disk();
    let running = repo.begin_backup(&[], "test").unwrap();
    running
        .store_disk(&disk.whole(), None, &NoProgress, &Cancel::new())
        .unwrap();
    drop(running);
    assert!(repo.points().unwrap().is_empty());
    let point = backup(&repo, &disk.whole(), None);
    assert!(
        point.disks[0].stats.new_bytes < 40 << 20,
        "{:?}",
        point.disks[0].stats
    );
}
