//! What most stories begin with: a repository and a paused domain without an operating system.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use virtkeep_tests::{Content, Debris, DiskSpec, Images, Machine, Program, text};

pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) program: Program,
    pub(crate) images: Images,
    // Last, so that nothing uses it any more when it goes.
    dir: TempDir,
}

/// A name that no other domain has.
pub(crate) fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("story-{}-{number}", std::process::id())
}

impl World {
    /// With one started disk, vda, of this size.
    pub(crate) fn with_disk(bytes: u64) -> Self {
        let make = |dir: &TempDir| {
            let disk = DiskSpec::new("a.qcow2", bytes);
            Machine::define(dir.path(), &unique_name(), &[disk])
        };
        let world = Self::with(make);
        world.machine.start_paused();
        world
    }

    /// With a machine that is made in the directory.
    pub(crate) fn with(make: impl FnOnce(&TempDir) -> Machine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            machine: make(&dir),
            program: Program::init(&dir.path().join("repo"), &[]),
            images: Images::new(dir.path().join("images")),
            dir,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the disks hold now.
    pub(crate) fn now(&self) -> Content {
        self.images.keep(&self.machine)
    }

    /// A backup that must succeed, without anything left behind; the line of JSON about its point.
    pub(crate) fn back_up(&self, words: &[&str]) -> serde_json::Value {
        let point = self.program.backup(&self.machine.uuid, words);
        self.assert_tidy(point["point"].as_str().unwrap());
        point
    }

    /// Of this repository nothing is left on the domain but the checkpoint of this point.
    pub(crate) fn assert_tidy(&self, point: &str) {
        let debris = Debris::find(&self.program, &self.machine);
        debris.assert_only(&[&self.checkpoint(point)], "after the backup");
    }

    pub(crate) fn checkpoint(&self, point: &str) -> String {
        format!("virtkeep-{}-{point}", self.program.short_id())
    }

    /// The point restores these contents.
    pub(crate) fn assert_restores(&self, point: &str, content: &Content) {
        assert_restores(&self.program, &self.images, point, content);
    }
}

pub(crate) fn assert_restores(program: &Program, images: &Images, point: &str, content: &Content) {
    let to = tempfile::tempdir().unwrap();
    for format in ["raw", "qcow2"] {
        let dir = to.path().join(format);
        program.ok(&["restore", point, "--to", text(&dir), "--format", format]);
        images.compare(content, &dir, format, point);
    }
}

/// The id of the point in a line of JSON.
pub(crate) fn id(point: &serde_json::Value) -> &str {
    point["point"].as_str().unwrap()
}

/// A figure of the first disk in a line of JSON.
pub(crate) fn figure(point: &serde_json::Value, name: &str) -> u64 {
    point["disks"][0][name].as_u64().unwrap()
}
