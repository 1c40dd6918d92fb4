//! A domain, a repository, and what the tests do with them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use virtkeep_capture::{DomainRef, Error, Event, Host, Observer, Options, ScratchReserve};
use virtkeep_repo::{Cancel, DiskOffset, Env, InitOptions, OpenOptions, Point, Repository};

pub(crate) const MIB: u64 = 1 << 20;

/// A domain with disks of its own, and a repository.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) name: String,
    pub(crate) repo: Repository,
    pub(crate) host: Host,
    disks: Vec<PathBuf>,
}

impl World {
    /// A defined domain with these disks of 64 MiB (qcow2, or raw where the name says so).
    pub(crate) fn new(disks: &[&str]) -> Self {
        Self::with(disks, &[], |disk| {
            run(
                "qemu-img",
                &["create", "-q", "-f", format_of(disk), text(disk), "64M"],
            );
        })
    }

    /// A defined domain with disks as `make` makes them; `words` go to `domain-xml`.
    pub(crate) fn with(disks: &[&str], words: &[&str], make: impl Fn(&Path)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let uri = std::env::var("LIBVIRT_DEFAULT_URI").expect(
            "these tests need a libvirtd of their own: \
             tests/stack/with-libvirt cargo test -p virtkeep-capture",
        );
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("capture-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo");
        let repo = Repository::init(&repo, &InitOptions::default(), Env::system()).unwrap();
        let disks: Vec<PathBuf> = disks.iter().map(|file| dir.path().join(file)).collect();
        disks.iter().for_each(|disk| make(disk));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/stack/domain-xml");
        let mut words = words.to_vec();
        words.push(&name);
        words.extend(disks.iter().map(|disk| text(disk)));
        let xml = dir.path().join("domain.xml");
        std::fs::write(&xml, run(script, &words)).unwrap();
        run("virsh", &["define", text(&xml)]);
        Self {
            host: Host::connect(Some(&uri)).unwrap(),
            dir,
            name,
            repo,
            disks,
        }
    }

    /// The same with its domain started, paused.
    pub(crate) fn started(disks: &[&str]) -> Self {
        let world = Self::new(disks);
        world.start();
        world
    }

    pub(crate) fn start(&self) {
        self.virsh(&["start", &self.name, "--paused"]);
    }

    pub(crate) fn virsh(&self, words: &[&str]) -> String {
        run("virsh", words)
    }

    pub(crate) fn domain(&self) -> DomainRef {
        self.host.domain(&self.name).unwrap()
    }

    pub(crate) fn image(&self, number: usize) -> &Path {
        &self.disks[number]
    }

    /// A command of `qemu-io` on the running domain's disk.
    pub(crate) fn io(&self, disk: usize, command: &str) {
        let command = format!(
            "qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"{command}\""
        );
        let answer = self.virsh(&["qemu-monitor-command", &self.name, "--hmp", &command]);
        let failed = ["rror", "nvalid", "failed"]
            .iter()
            .any(|word| answer.contains(word));
        assert!(!failed, "{command}: {answer}");
    }

    pub(crate) fn backup(&self) -> Point {
        self.try_backup(&options(), &Log::default(), &Cancel::new())
            .unwrap()
    }

    pub(crate) fn try_backup(
        &self,
        options: &Options,
        log: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Point, Error> {
        virtkeep_capture::backup(&self.host, &self.domain(), &self.repo, options, log, cancel)
    }

    /// What the disk holds, as QEMU's own tool reads it.
    pub(crate) fn reference(&self, disk: usize) -> Vec<u8> {
        if self.is_active() {
            self.io(disk, "flush");
        }
        read_image(&self.disks[disk], format_of(&self.disks[disk]))
    }

    pub(crate) fn references(&self) -> Vec<Vec<u8>> {
        (0..self.disks.len())
            .map(|disk| self.reference(disk))
            .collect()
    }

    pub(crate) fn is_active(&self) -> bool {
        self.virsh(&["domstate", &self.name]).trim() != "shut off"
    }

    /// Every disk of the point, read back, is what the reference says.
    pub(crate) fn assert_restores(&self, point: &Point, references: &[Vec<u8>]) {
        assert_eq!(point.disks.len(), references.len());
        for (number, reference) in references.iter().enumerate() {
            let restored = self.restored(point, number);
            let target = &point.disks[number].target;
            assert_eq!(restored.len(), reference.len(), "size of {target}");
            let differs = restored.iter().zip(reference).position(|(a, b)| a != b);
            assert_eq!(
                differs, None,
                "{target} of {} differs at this byte",
                point.id
            );
        }
    }

    /// The whole content of one disk of a point.
    pub(crate) fn restored(&self, point: &Point, disk: usize) -> Vec<u8> {
        let reader = self.repo.read_disk(point, &point.disks[disk]).unwrap();
        let mut restored = vec![0xee; usize::try_from(reader.size().0).unwrap()];
        reader.read_at(DiskOffset::ZERO, &mut restored).unwrap();
        restored
    }

    pub(crate) fn checkpoints(&self) -> Vec<String> {
        lines(&self.virsh(&["checkpoint-list", &self.name, "--name"]))
    }

    /// No job, no socket, no scratch file.
    pub(crate) fn assert_nothing_runs(&self) {
        let job = self.virsh(&["domjobinfo", &self.name]);
        assert!(job.contains("None"), "{job}");
        let mut dirs = vec![self.dir.path().to_owned()];
        dirs.extend(
            std::fs::read_dir("/var/lib/libvirt/qemu")
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        );
        for dir in dirs {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let ours =
                    name.starts_with(&format!("virtkeep-{}", &self.repo.id().to_string()[..8]));
                assert!(!ours, "{name} was left");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("virsh").args(["destroy", &self.name]).output();
        let undefine = ["undefine", &self.name, "--checkpoints-metadata"];
        let _ = Command::new("virsh").args(undefine).output();
    }
}

/// Opens the repository of a world in another process.
pub(crate) fn open_repo(path: &Path) -> Repository {
    Repository::open(path, &OpenOptions::default(), Env::system()).unwrap()
}

/// As by default, but at home on any file system.
pub(crate) fn options() -> Options {
    Options {
        scratch_reserve: ScratchReserve {
            percent: 0,
            bytes: 0,
            bytes_max: 0,
        },
        ..Options::default()
    }
}

/// Keeps all events.
#[derive(Default)]
pub(crate) struct Log(Mutex<Vec<Event>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        let events = self.0.lock().unwrap();
        events.iter().map(|event| format!("{event}\n")).collect()
    }
}

impl Observer for Log {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// Does something once, in the middle of the reading.
pub(crate) struct WhileReading<F: Fn()> {
    pub(crate) log: Log,
    done: Mutex<bool>,
    act: F,
}

impl<F: Fn() + Send + Sync> WhileReading<F> {
    pub(crate) fn new(act: F) -> Self {
        Self {
            log: Log::default(),
            done: Mutex::new(false),
            act,
        }
    }
}

impl<F: Fn() + Send + Sync> Observer for WhileReading<F> {
    fn event(&self, event: &Event) {
        self.log.event(event);
    }

    fn moved(&self, _: &str, _: u64) {
        let mut done = self.done.lock().unwrap();
        if !std::mem::replace(&mut *done, true) {
            (self.act)();
        }
    }
}

fn format_of(disk: &Path) -> &'static str {
    if disk.extension().is_some_and(|extension| extension == "raw") {
        "raw"
    } else {
        "qcow2"
    }
}

pub(crate) fn read_image(path: &Path, format: &str) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let words = [
        "convert",
        "-U",
        "-f",
        format,
        "-O",
        "raw",
        text(path),
        text(raw.path()),
    ];
    run("qemu-img", &words);
    std::fs::read(raw.path()).unwrap()
}

pub(crate) fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {words:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn lines(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
