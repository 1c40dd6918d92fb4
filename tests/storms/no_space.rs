//! A file system that is full at every stage of a backup, and full when it is to be pruned.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use tempfile::TempDir;
use virtkeep_tests::{run, text};

use crate::seed;
use crate::shelf::Shelf;

/// A small file system of its own.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn new(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "tmpfs", text(dir.path())],
        );
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills it, but for so many bytes.
    fn fill(&self, left: usize) {
        let mut ballast = OpenOptions::new();
        let mut ballast = ballast
            .create(true)
            .append(true)
            .open(self.ballast())
            .unwrap();
        let page = [1; 4096];
        while ballast.write_all(&page).is_ok() {}
        let len = ballast.metadata().unwrap().len();
        ballast.set_len(len.saturating_sub(left as u64)).unwrap();
    }

    fn make_room(&self) {
        File::create(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["--lazy", text(self.dir.path())]);
    }
}

#[test]
fn a_backup_without_space_fails_in_order_and_the_next_one_with_space_works() {
    let mut random = Rng::with_seed(seed());
    let disk = SmallDisk::new(64);
    let work = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(disk.path(), work.path());
    let mut image = shelf.image("one", &mut random);
    let mut points = std::collections::BTreeMap::new();
    let (mut refused, mut done) = (0, 0);
    // From no space at all to enough of it: the stage that meets the end of space moves from the
    // lease over packs and index to the record of the point.
    for left in [
        0, 4, 16, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 4096,
    ] {
        let left = left * 1024;
        image.change(&mut random, 200);
        disk.fill(left);
        let ran = shelf.program.run(&shelf.backup(&image));
        match ran.code() {
            Some(0) => done += 1,
            Some(1) if ran.stderr.contains("No space left on device") => refused += 1,
            _ => panic!("{left} bytes left: {ran:?}"),
        }
        if ran.code() == Some(0) {
            let point = ran.line("point")["point"].as_str().unwrap().to_owned();
            points.insert(point, image.content());
        }
        let what = format!("full but for {left} bytes");
        for (point, content) in &points {
            shelf.assert_restores(point, *content, &what);
        }
        disk.make_room();
        shelf.assert_sound(&points, &what);
    }
    assert!(refused > 0 && done > 0, "{refused} refused, {done} done");
    println!("{refused} backups without space, {done} with just enough");
}

#[test]
fn a_full_file_system_is_freed_by_forget_and_prune() {
    let mut random = Rng::with_seed(seed());
    let disk = SmallDisk::new(64);
    let work = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(disk.path(), work.path());
    let mut image = shelf.image("one", &mut random);
    let mut points = std::collections::BTreeMap::new();
    for _ in 0..6 {
        image.change(&mut random, 500);
        let line = shelf.program.ok(&shelf.backup(&image)).line("point");
        let point = line["point"].as_str().unwrap().to_owned();
        points.insert(point, image.content());
    }
    let victims: Vec<String> = points.keys().step_by(2).cloned().collect();
    disk.fill(0);
    for victim in &victims {
        shelf.program.ok(&["forget", victim]);
        points.remove(victim);
    }
    shelf.program.ok(&["prune"]);
    let free = || {
        let file_system = rustix::fs::statvfs(disk.path()).unwrap();
        file_system.f_bavail * file_system.f_frsize
    };
    assert!(free() > 0, "prune has freed nothing");
    for (point, content) in &points {
        shelf.assert_restores(point, *content, "pruned on a full file system");
    }
    fs::remove_file(disk.ballast()).unwrap();
    shelf.program.ok(&["prune", "--max-unused", "0", "--exact"]);
    shelf.assert_sound(&points, "with space again");
    image.change(&mut random, 500);
    shelf.program.ok(&shelf.backup(&image));
}
