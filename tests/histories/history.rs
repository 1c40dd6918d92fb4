//! Lets the events of a history happen, and compares all of its points in the end.

use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;
use tempfile::TempDir;
use virtkeep_tests::{Content, Debris, Images, Machine, Program, Ran, text};

use crate::event::{Event, How, Io, Refused, Start, What, events};

/// A domain, the points made of it so far, and what its disks held then.
pub(crate) struct History {
    dir: Option<TempDir>,
    path: PathBuf,
    machine: Machine,
    program: Program,
    images: Images,
    events: Vec<Event>,
    points: Vec<(String, Content)>,
    overlays: usize,
    snapshots_taken: usize,
    /// Backups that were ended before they had made a point.
    given_up: usize,
}

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let start = Start::any(&mut rng);
        println!("  {start:?}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let words = ["--chunk-size", start.chunk_size, "--codec", start.codec];
        let program = Program::init(&path.join("repo"), &words);
        let name = format!("history-{seed}-{}", std::process::id());
        let machine = Machine::define(&path, &name, &start.disks);
        machine.start_paused();
        Self {
            images: Images::new(path.join("images")),
            dir: Some(dir),
            path,
            machine,
            program,
            events: events(&mut rng),
            points: Vec::new(),
            overlays: 0,
            snapshots_taken: 0,
            given_up: 0,
        }
    }

    /// From the first event to the last comparison; what there was, in a line.
    pub(crate) fn live(mut self) -> String {
        for event in std::mem::take(&mut self.events) {
            let passed_over = if self.happens(&event) {
                ""
            } else {
                " (passed over)"
            };
            println!("  {event:?}{passed_over}");
        }
        let checkpoints = self.machine.checkpoints();
        assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
        self.compare_all();
        let check = self.program.ok(&["check", "--read-data"]);
        assert!(
            check.stderr.is_empty() || !check.stderr.contains("damage"),
            "{check:?}"
        );
        format!(
            "{} points, {} backups given up",
            self.points.len(),
            self.given_up
        )
    }

    /// Whether the event could happen.
    fn happens(&mut self, event: &Event) -> bool {
        let machine = &self.machine;
        // A killed backup leaves its job, and libvirt allows little beside one.
        let is_free = !machine.has_job();
        match event {
            Event::Io(io) => return self.io(io),
            Event::Reset => drop(machine.virsh("reset", &[])),
            Event::Grow { disk, bytes } if is_free => {
                let (target, size) = self.disk(*disk);
                return machine.resize(&target, size + bytes);
            }
            Event::ShrinkAndGrow { disk, bytes } if is_free => {
                let (target, size) = self.disk(*disk);
                if size <= *bytes || !machine.resize(&target, size - bytes) {
                    return false;
                }
                assert!(machine.resize(&target, size), "what could shrink can grow");
            }
            Event::Snapshot if is_free && self.overlays < 3 => self.snapshot(),
            Event::Commit if is_free && self.overlays > 0 => {
                for (target, _) in machine.disks() {
                    let words = [&*target, "--active", "--pivot", "--wait"];
                    machine.virsh("blockcommit", &words);
                }
                self.overlays = 0;
            }
            Event::SaveAndRestore if is_free => {
                machine.virsh("managedsave", &["--running"]);
                // QEMU takes the images over only when the processor runs.
                machine.virsh("start", &[]);
                machine.virsh("suspend", &[]);
            }
            Event::PowerCycle => {
                machine.power_off();
                machine.start_paused();
            }
            Event::KillQemu => {
                machine.kill_qemu();
                machine.start_paused();
            }
            Event::Backup(how) => self.back_up(how),
            _ => return false,
        }
        true
    }

    /// Target and size of a disk.
    fn disk(&self, number: usize) -> (String, u64) {
        let disks = self.machine.disks();
        let (target, _) = &disks[number % disks.len()];
        let info = self.machine.virsh("domblkinfo", &[target]);
        let capacity = info.lines().find_map(|line| line.strip_prefix("Capacity:"));
        (target.clone(), capacity.unwrap().trim().parse().unwrap())
    }

    fn snapshot(&mut self) {
        self.snapshots_taken += 1;
        self.overlays += 1;
        let specs = self.machine.disks().into_iter().map(|(target, _)| {
            let file = format!("{target}.{}.qcow2", self.snapshots_taken);
            format!("{target},file={}", text(&self.path.join(file)))
        });
        let specs: Vec<String> = specs.collect();
        let mut words = vec!["--disk-only", "--no-metadata"];
        words.extend(specs.iter().flat_map(|spec| ["--diskspec", spec]));
        self.machine.virsh("snapshot-create-as", &words);
    }

    fn io(&self, io: &Io) -> bool {
        let disks = self.machine.disks().len();
        let number = io.disk % disks;
        let (start, len) = io.place.on(self.disk(number).1);
        let place = format!("{start} {len}");
        let command = match io.what {
            What::Pattern(byte) => format!("write -P {byte} {place}"),
            What::Random(seed) => {
                self.machine.write_random(number, seed, start, len);
                return true;
            }
            What::Zero { unmap: false } => format!("write -z {place}"),
            What::Zero { unmap: true } => format!("write -z -u {place}"),
            What::Discard => format!("discard {place}"),
        };
        self.machine.io(number, &command);
        true
    }

    fn back_up(&mut self, how: &How) {
        let uuid = self.machine.uuid.clone();
        let words = ["backup", &*uuid];
        // Nobody but this test writes, so this is what the disks hold when the backup begins.
        let is_offline = matches!(how, How::Offline | How::PoweredOn { .. });
        if is_offline {
            self.machine.power_off();
        }
        let before = self.images.keep(&self.machine);
        let pause = |ms: &u64| std::thread::sleep(Duration::from_millis(*ms));
        match how {
            How::Calm | How::Offline => {
                self.program.ok(&words);
                self.adopt_one(before);
                if is_offline {
                    self.machine.start_paused();
                } else {
                    self.assert_tidy();
                }
            }
            How::Full => {
                self.program.ok(&["backup", &uuid, "--full"]);
                self.adopt_one(before);
                self.assert_tidy();
            }
            How::UnderWrites(writes) => {
                let mut running = self.program.start(&words);
                // From this line on, the point's moment is past.
                let begun = running.wait_for("backup begun with checkpoint");
                for io in writes.iter().filter(|_| begun) {
                    self.io(io);
                }
                let ran = running.wait();
                assert_eq!(ran.code(), Some(0), "{ran:?}");
                self.adopt_one(before);
                self.assert_tidy();
            }
            How::Killed { ms } => {
                let running = self.program.start(&words);
                pause(ms);
                running.signal(Signal::KILL);
                running.wait();
                self.adopt(before);
            }
            How::Interrupted { ms } => {
                let checkpoints = self.machine.checkpoints();
                let running = self.program.start(&words);
                pause(ms);
                running.signal(Signal::TERM);
                let ran = running.wait();
                // Before the program listens, the signal ends it at once.
                let is_expected = matches!(ran.code(), Some(0 | 143)) || ran.signal() == Some(15);
                assert!(is_expected, "{ran:?}");
                if self.adopt(before) {
                    self.assert_tidy();
                } else {
                    let debris = Debris::find(&self.program, &self.machine);
                    let files_before = debris.files.is_empty() && !debris.job;
                    let is_tidy = files_before && self.machine.checkpoints() == checkpoints;
                    // What a killed run left before is cleared by one that gets so far.
                    assert!(is_tidy || checkpoints.len() > 1, "{debris:?} {ran:?}");
                }
            }
            How::PoweredOff { ms } | How::PoweredOn { ms } => {
                let running = self.program.start(&words);
                pause(ms);
                if is_offline {
                    self.machine.start_paused();
                } else {
                    self.machine.power_off();
                }
                assert_gave_up_in_order(&running.wait());
                self.adopt(before);
                if !is_offline {
                    self.machine.start_paused();
                }
            }
            How::Refused(refused) => {
                let words = match refused {
                    Refused::Socket => ["backup", &uuid, "--socket-dir", "/proc"],
                    Refused::Scratch => ["backup", &uuid, "--scratch", "/nonexistent"],
                };
                let ran = self.program.run(&words);
                ran.refused(1, "");
                assert!(!self.adopt(before), "{ran:?}");
                let debris = Debris::find(&self.program, &self.machine);
                assert!(debris.checkpoints.len() <= 2, "{debris:?}");
            }
        }
    }

    /// The point that the repository holds more than before shows this content; whether there is one.
    fn adopt(&mut self, content: Content) -> bool {
        let known = |id: &String| self.points.iter().any(|(point, _)| point == id);
        let mut new = self.program.points();
        new.retain(|id| !known(id));
        assert!(new.len() <= 1, "one backup made {new:?}");
        let Some(id) = new.pop() else {
            self.given_up += 1;
            return false;
        };
        self.points.push((id, content));
        true
    }

    fn adopt_one(&mut self, content: Content) {
        assert!(self.adopt(content), "the backup made no point");
    }

    /// After a backup: exactly one checkpoint, the newest point's, and nothing else.
    fn assert_tidy(&self) {
        let (point, _) = self.points.last().unwrap();
        let checkpoint = format!("virtkeep-{}-{point}", self.program.short_id());
        let debris = Debris::find(&self.program, &self.machine);
        debris.assert_only(&[&checkpoint], "after the backup");
        assert_eq!(self.machine.checkpoints(), [checkpoint]);
    }

    fn compare_all(&self) {
        for (point, content) in &self.points {
            for format in ["raw", "qcow2"] {
                let to = self.path.join("restored");
                self.program
                    .ok(&["restore", point, "--to", text(&to), "--format", format]);
                self.images.compare(content, &to, format, point);
                std::fs::remove_dir_all(&to).unwrap();
            }
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            println!("  what is there stays in {}", dir.keep().display());
        }
    }
}

/// It either succeeded or said in a line why not.
fn assert_gave_up_in_order(ran: &Ran) {
    let is_in_order = matches!(ran.code(), Some(0 | 1)) && !ran.stderr.contains("panicked");
    assert!(is_in_order, "{ran:?}");
}
