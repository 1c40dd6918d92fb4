//! A domain of the private libvirtd. It has no operating system unless it is told to boot one: then
//! nobody but the test writes to its disks, through QEMU's own block layer, which dirty bitmaps see.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::tool::{run, stack, text, wait_until};

/// A disk to be made.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Its file name: raw if it ends in `.raw`, else qcow2.
    pub file: String,
    /// Its size, a multiple of 512.
    pub bytes: u64,
    /// The cluster size of a qcow2 image.
    pub cluster_bytes: u64,
}

impl DiskSpec {
    /// With clusters of 64 KiB.
    pub fn new(file: &str, bytes: u64) -> Self {
        Self {
            file: file.to_owned(),
            bytes,
            cluster_bytes: 64 << 10,
        }
    }

    fn make(&self, path: &Path) {
        let cluster = format!("cluster_size={}", self.cluster_bytes);
        let mut words = vec!["create", "-q", "-f", format_of(path)];
        if format_of(path) == "qcow2" {
            words.extend(["-o", &cluster]);
        }
        let size = self.bytes.to_string();
        words.extend([text(path), &size]);
        run("qemu-img", &words);
    }
}

/// The format of an image: its name tells.
fn format_of(path: &Path) -> &'static str {
    match path.extension() {
        Some(extension) if extension == "raw" => "raw",
        _ => "qcow2",
    }
}

/// A defined domain. Gone when dropped; its disks stay.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// How to call it without any doubt.
    pub uuid: String,
    dir: PathBuf,
}

impl Machine {
    /// Defines a domain with new disks, vda first, in `dir`.
    #[track_caller]
    pub fn define(dir: &Path, name: &str, disks: &[DiskSpec]) -> Self {
        let make = |disk: &DiskSpec| {
            let path = dir.join(&disk.file);
            disk.make(&path);
            path
        };
        let paths: Vec<PathBuf> = disks.iter().map(make).collect();
        Self::define_with(dir, name, &paths, &[])
    }

    /// Defines a domain with disks that are there; `words` go to `domain-xml`.
    #[track_caller]
    pub fn define_with(dir: &Path, name: &str, disks: &[PathBuf], words: &[&str]) -> Self {
        assert!(
            std::env::var_os("LIBVIRT_DEFAULT_URI").is_some(),
            "these tests need a libvirtd of their own, on which they do as they like: \
             tests/stack/with-libvirt cargo test -p virtkeep-tests"
        );
        let uuid = run("cat", &["/proc/sys/kernel/random/uuid"]);
        let uuid = uuid.trim().to_owned();
        let mut all = words.to_vec();
        all.extend(["--uuid", &uuid, "--", name]);
        all.extend(disks.iter().map(|disk| text(disk)));
        let xml = run(stack("domain-xml"), &all);
        let machine = Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            uuid,
        };
        machine.define_xml(&xml);
        machine
    }

    /// Defines it anew.
    #[track_caller]
    pub fn define_xml(&self, xml: &str) {
        let file = tempfile::NamedTempFile::new_in(&self.dir).unwrap();
        std::fs::write(file.path(), xml).unwrap();
        run("virsh", &["define", text(file.path())]);
    }

    /// A command of virsh about this domain.
    #[track_caller]
    pub fn virsh(&self, command: &str, words: &[&str]) -> String {
        let mut all = vec!["--quiet", command, &self.uuid];
        all.extend(words);
        run("virsh", &all)
    }

    /// Gives a disk another size; false where QEMU refuses, because it was killed and a bitmap is
    /// broken since. The next backup, or `release`, clears such bitmaps away.
    #[track_caller]
    pub fn resize(&self, target: &str, bytes: u64) -> bool {
        let size = format!("{bytes}B");
        let words = ["--quiet", "blockresize", &self.uuid, target, &size];
        let output = Command::new("virsh").args(words).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        let refused = message.contains("is inconsistent and cannot be used");
        assert!(output.status.success() || refused, "{words:?}: {message}");
        !refused
    }

    /// Starts it, or continues from a saved state, without letting the processor run.
    #[track_caller]
    pub fn start_paused(&self) {
        self.virsh("start", &["--paused"]);
    }

    /// Ends QEMU in order: its images are closed.
    #[track_caller]
    pub fn power_off(&self) {
        self.virsh("destroy", &[]);
    }

    /// Kills QEMU: its images are not closed.
    #[track_caller]
    pub fn kill_qemu(&self) {
        let pid = std::fs::read_to_string(format!("/run/libvirt/qemu/{}.pid", self.name)).unwrap();
        run("kill", &["-KILL", pid.trim()]);
        wait_until("libvirt sees that QEMU is gone", || !self.is_active());
    }

    /// Whether QEMU runs.
    #[track_caller]
    pub fn is_active(&self) -> bool {
        self.virsh("domstate", &[]).trim() != "shut off"
    }

    /// A command of `qemu-io` on a disk of the active domain, by number.
    #[track_caller]
    pub fn io(&self, disk: usize, command: &str) {
        let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
        let monitor = format!("qemu-io -d {device} \"{command}\"");
        let answer = self.virsh("qemu-monitor-command", &["--hmp", &monitor]);
        assert!(answer.trim().is_empty(), "{command}: {answer}");
    }

    /// Writes bytes like no others to a disk of the active domain; they follow from the seed.
    #[track_caller]
    pub fn write_random(&self, disk: usize, seed: u64, start: u64, len: u64) {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        let file = tempfile::NamedTempFile::new_in(&self.dir).unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        self.io(
            disk,
            &format!("write -s {} {start} {len}", text(file.path())),
        );
    }

    /// Its disks, without drives for media, as they are now: target, and image at the top of the chain.
    #[track_caller]
    pub fn disks(&self) -> Vec<(String, PathBuf)> {
        let list = self.virsh("domblklist", &["--details"]);
        let pair = |line: &str| {
            let (_, disk) = line.split_once(" disk ")?;
            let (target, path) = disk.trim().split_once(' ')?;
            Some((target.to_owned(), PathBuf::from(path.trim())))
        };
        list.lines().filter_map(pair).collect()
    }

    /// The names of its checkpoints.
    #[track_caller]
    pub fn checkpoints(&self) -> Vec<String> {
        crate::lines(&self.virsh("checkpoint-list", &["--name"]))
    }

    /// Whether a job runs on it.
    #[track_caller]
    pub fn has_job(&self) -> bool {
        // While a job is being started or ended libvirt does not know what to say of it.
        self.is_active()
            && (0..100)
                .find_map(|_| self.job_info())
                .is_none_or(|info| !info.contains("None"))
    }

    fn job_info(&self) -> Option<String> {
        let words = ["--quiet", "domjobinfo", &self.uuid];
        let output = Command::new("virsh").args(words).output().unwrap();
        if output.status.success() {
            return Some(String::from_utf8(output.stdout).unwrap());
        }
        std::thread::sleep(Duration::from_millis(50));
        None
    }

    /// Writes what its disks hold now to raw files, one per disk, `NAME.raw` beside each other in
    /// `to`, by target.
    ///
    /// Why that is what the guest would read: its processor is paused (or it is off), every write of
    /// the test has been answered, and the flush makes QEMU write out what it holds of the images'
    /// tables. Then nothing is written until the next command of the test; so the files stand still,
    /// and reading them beside QEMU, whose lock `-U` passes, is safe. And `qemu-img` goes the whole
    /// chain from its top by itself: none of the block jobs, bitmaps and exports of a backup have a
    /// part in it.
    #[track_caller]
    pub fn copy_disks(&self, to: &Path) -> Vec<(String, PathBuf)> {
        let is_active = self.is_active();
        let copy = |(number, (target, image)): (usize, (String, PathBuf))| {
            if is_active {
                self.io(number, "flush");
            }
            let raw = to.join(format!("{target}.raw"));
            let format = format_of(&image);
            let words = [
                "convert",
                "-U",
                "-f",
                format,
                "-O",
                "raw",
                text(&image),
                text(&raw),
            ];
            run("qemu-img", &words);
            (target, raw)
        };
        self.disks().into_iter().enumerate().map(copy).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What is not there cannot be removed: failures say nothing.
        let _ = Command::new("virsh").args(["destroy", &self.uuid]).output();
        let metadata = ["--checkpoints-metadata", "--managed-save", "--nvram"];
        let undefine = Command::new("virsh")
            .args(["undefine", &self.uuid])
            .args(metadata)
            .output();
        let _ = undefine;
    }
}
