//! Tests between processes: this test program starts itself again in the roles below, so that locks and
//! leases are tried on what they are for, up to `kill -9`.

use std::collections::HashSet;
use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::index::tests::{create, id, open, pack};
use crate::index::{FileGate, IndexLock};
use crate::lease::{LeaseKind, LeaseStore, Roots};
use crate::lock::{DomainLock, LockedFile, MaintenanceLock, Mode};
use crate::storage::{LocalStorage, ObjectName, Storage};
use crate::{DomainUuid, Env, Error, LeaseId, PackId, PointId};

const ROLE: &str = "VIRTKEEP_TEST_ROLE";
const DIR: &str = "VIRTKEEP_TEST_DIR";
const DOMAIN: DomainUuid = DomainUuid::from_bytes([5; 16]);

/// Long enough for the slowest machine; nothing is concluded from how long it really took.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the started processes do. They end when their standard input does.
fn play(role: &str, dir: &Path) {
    let locks = dir.join("locks");
    match role {
        "hold the index" => {
            let gate = FileGate::new(&locks, "virtkeep prune");
            let _held = gate.exclusive().unwrap();
            say("ready");
            wait_for_end();
        }
        "hold the domain" => {
            let _lock = DomainLock::take(&locks, DOMAIN, "virtkeep backup web1").unwrap();
            let mut grandchild = Command::new("sleep").arg("1000").spawn().unwrap();
            say(&grandchild.id().to_string());
            wait_for_end();
            grandchild.kill().unwrap();
            grandchild.wait().unwrap();
        }
        "hold a lease" => {
            let index = open(dir).unwrap();
            let leases = LeaseStore::new(&dir.join("leases"), Env::system());
            let roots = Roots {
                points: vec![PointId::from_bytes([3; 10])],
                ..Roots::default()
            };
            let lease = leases
                .writer("virtkeep backup web1", roots, &index, |_| Ok(()))
                .unwrap();
            say(&lease.id().to_string());
            wait_for_end();
        }
        "write again and again" => {
            let gate = FileGate::new(&locks, "a writer");
            until_end(|| turn(&gate, dir, Mode::Exclusive));
        }
        "read again and again" => {
            let gate = FileGate::new(&locks, "a reader");
            until_end(|| turn(&gate, dir, Mode::Shared));
        }
        "add packs" => {
            let index = open(dir).unwrap();
            for name in 1..=200 {
                let first = u64::from(name) * 1000;
                index.add_packs(&[pack(name, first..first + 300)]).unwrap();
                say(&name.to_string());
            }
        }
        "put points" => {
            let index = open(dir).unwrap();
            let me = std::process::id().to_le_bytes();
            for n in 0..50u8 {
                let mut name = [n; 10];
                name[..4].copy_from_slice(&me);
                index
                    .put_point(PointId::from_bytes(name), b"record")
                    .unwrap();
            }
        }
        "read packs when all files are open" => {
            let storage = LocalStorage::new(dir);
            let packs = [1, 2, 3].map(|name| ObjectName::Pack(PackId::from_bytes([name; 16])));
            for pack in &packs {
                storage.put(pack, b"content").unwrap();
            }
            let mut limit = getrlimit(Resource::Nofile);
            limit.current = Some(64);
            setrlimit(Resource::Nofile, limit).unwrap();
            // Two files are kept when all others have been taken by whoever else is in this process.
            let read = |pack| storage.read_whole(pack, 7).unwrap();
            packs[..2].iter().for_each(|pack| drop(read(pack)));
            let others: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            assert!(others.len() < 64);
            for pack in packs.iter().rev() {
                assert_eq!(read(pack), b"content");
            }
            say("has read all");
        }
        _ => panic!("no such role"),
    }
}

/// One stay of 2 ms inside the index lock; the one who is alone there counts it in a file.
fn turn(gate: &FileGate, dir: &Path, mode: Mode) {
    let _held = match mode {
        Mode::Exclusive => gate.exclusive().unwrap(),
        Mode::Shared => gate.shared().unwrap(),
    };
    if mode == Mode::Exclusive {
        fs::write(dir.join("turns.new"), (turns(dir) + 1).to_string()).unwrap();
        fs::rename(dir.join("turns.new"), dir.join("turns")).unwrap();
    }
    std::thread::sleep(Duration::from_millis(2));
}

fn turns(dir: &Path) -> u64 {
    fs::read_to_string(dir.join("turns")).map_or(0, |text| text.parse().unwrap())
}

fn say(line: &str) {
    println!("\nsays:{line}");
}

fn wait_for_end() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn until_end(mut work: impl FnMut()) {
    let ended = std::thread::spawn(wait_for_end);
    say("ready");
    while !ended.is_finished() {
        work();
    }
}

#[test]
fn a_started_process_plays_its_role() {
    // Started by hand or by the test runner there is no role to play.
    if let (Ok(role), Some(dir)) = (env::var(ROLE), env::var_os(DIR)) {
        play(&role, Path::new(&dir));
    }
}

struct Actor {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Actor {
    fn start(role: &str, dir: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::a_started_process_plays_its_role"])
            .arg("--nocapture")
            .env(ROLE, role)
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next thing it says; none when it has ended.
    fn hear(&mut self) -> Option<String> {
        self.lines
            .by_ref()
            .map(|line| line.unwrap())
            .find_map(|line| line.strip_prefix("says:").map(str::to_owned))
    }

    fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let mut last = Vec::new();
        while let Some(line) = self.hear() {
            last.push(line);
        }
        last
    }

    /// Lets it end in order.
    fn end(mut self) {
        drop(self.process.stdin.take());
        while self.hear().is_some() {}
        assert!(self.process.wait().unwrap().success());
    }
}

fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("leases")).unwrap();
    create(dir.path());
    dir
}

/// Every lease there is, living ones as well.
fn all(leases: &LeaseStore) -> HashSet<LeaseId> {
    leases
        .list()
        .unwrap()
        .iter()
        .map(|lease| lease.id)
        .collect()
}

#[test]
fn a_reader_waits_for_few_writers_however_many_are_queueing() {
    let dir = repository();
    let mut writers = [(); 4].map(|()| Actor::start("write again and again", dir.path()));
    for writer in &mut writers {
        writer.hear().unwrap();
    }
    let gate = FileGate::new(&dir.path().join("locks"), "a reader");
    let mut waited: Vec<u64> = Vec::new();
    for _ in 0..60 {
        let before = turns(dir.path());
        let held = gate.shared().unwrap();
        waited.push(turns(dir.path()) - before);
        drop(held);
        std::thread::sleep(Duration::from_millis(3));
    }
    writers.into_iter().for_each(Actor::end);
    // Two by design; one more may slip in before the reader has made itself known. A system that
    // does not run the reader at all may add to that now and then, not mostly.
    waited.sort_unstable();
    let typical = waited[waited.len() * 3 / 4];
    assert!(typical <= 3, "readers waited for {waited:?} writers");
}

#[test]
fn a_writer_gets_in_however_many_readers_there_are() {
    let dir = repository();
    let mut readers = [(); 6].map(|()| Actor::start("read again and again", dir.path()));
    for reader in &mut readers {
        reader.hear().unwrap();
    }
    let gate = FileGate::new(&dir.path().join("locks"), "a writer");
    for _ in 0..20 {
        turn(&gate, dir.path(), Mode::Exclusive);
    }
    readers.into_iter().for_each(Actor::end);
    assert_eq!(turns(dir.path()), 20);
}

#[test]
fn writers_of_several_processes_wait_for_each_other_and_lose_nothing() {
    let dir = repository();
    let writers = [(); 3].map(|()| Actor::start("put points", dir.path()));
    writers.into_iter().for_each(Actor::end);
    assert_eq!(open(dir.path()).unwrap().points().unwrap().len(), 150);
}

#[test]
fn who_waits_too_long_for_the_index_is_told_who_has_it() {
    let dir = repository();
    let mut holder = Actor::start("hold the index", dir.path());
    holder.hear().unwrap();
    let gate = FileGate::new(&dir.path().join("locks"), "a test");
    let gate = gate.with_wait_max(Duration::from_millis(50));
    for refused in [gate.shared(), gate.exclusive()] {
        let message = refused.err().unwrap().to_string();
        assert!(message.contains("the index"), "{message}");
        assert!(message.contains("virtkeep prune"), "{message}");
        let pid = holder.process.id().to_string();
        assert!(message.contains(&pid), "{message}");
    }
    holder.kill();
    drop(gate.exclusive().unwrap());
}

#[test]
fn whatever_was_added_is_there_after_the_process_was_killed_and_the_index_opens_at_once() {
    let dir = repository();
    let mut acknowledged = HashSet::new();
    for round in 0..12u64 {
        let mut adder = Actor::start("add packs", dir.path());
        for _ in 0..=round % 4 * 7 {
            acknowledged.extend(adder.hear());
        }
        // A different place in the next transaction each time.
        std::thread::sleep(Duration::from_micros(round * 700));
        acknowledged.extend(adder.kill());

        let index = open(dir.path()).unwrap();
        for name in &acknowledged {
            let first = name.parse::<u64>().unwrap() * 1000;
            let ids: Vec<_> = (first..first + 300).map(id).collect();
            assert_eq!(index.known(&ids).unwrap(), [true; 300]);
        }
    }
    open(dir.path())
        .unwrap()
        .add_packs(&[pack(250, [1, 2, 3])])
        .unwrap();
}

#[test]
fn a_second_backup_of_a_domain_is_refused_with_the_name_of_the_first() {
    let dir = repository();
    let locks = dir.path().join("locks");
    let mut holder = Actor::start("hold the domain", dir.path());
    let grandchild: i32 = holder.hear().unwrap().parse().unwrap();
    let refused = DomainLock::take(&locks, DOMAIN, "another").unwrap_err();
    let Error::Busy { holder: named, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert!(named.contains("virtkeep backup web1"), "{named}");
    let other = DomainUuid::from_bytes([6; 16]);
    DomainLock::take(&locks, other, "of another domain").unwrap();

    // Killed, it lets go, although the process it had started lives on.
    holder.process.kill().unwrap();
    holder.process.wait().unwrap();
    DomainLock::take(&locks, DOMAIN, "the next").unwrap();
    let grandchild = rustix::process::Pid::from_raw(grandchild).unwrap();
    rustix::process::kill_process(grandchild, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn packs_are_read_also_when_the_process_can_open_no_more_files() {
    let dir = repository();
    let mut reader = Actor::start("read packs when all files are open", dir.path());
    assert_eq!(reader.hear().as_deref(), Some("has read all"));
    reader.end();
}

#[test]
fn there_is_one_maintainer_at_a_time() {
    let dir = repository();
    let locks = dir.path().join("locks");
    let first = MaintenanceLock::take(&locks, "virtkeep prune").unwrap();
    let refused = MaintenanceLock::take(&locks, "virtkeep repair").unwrap_err();
    assert!(refused.to_string().contains("virtkeep prune"), "{refused}");
    drop(first);
    MaintenanceLock::take(&locks, "virtkeep repair").unwrap();
}

#[test]
fn a_lease_lives_as_long_as_its_process() {
    let dir = repository();
    let index = open(dir.path()).unwrap();
    let epoch = index.write(|edit| edit.condemn(&[])).unwrap();
    let leases = LeaseStore::new(&dir.path().join("leases"), Env::system());
    let mut holder = Actor::start("hold a lease", dir.path());
    let name: LeaseId = holder.hear().unwrap().parse().unwrap();

    leases.sweep(&all(&leases)).unwrap();
    let seen = leases.list().unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].id, seen[0].alive), (name, true));
    let content = seen[0].content.clone().unwrap();
    assert_eq!(content.kind, LeaseKind::Writer);
    assert_eq!(content.epoch, Some(epoch));
    assert_eq!(content.roots.points, [PointId::from_bytes([3; 10])]);
    assert_eq!(content.command, "virtkeep backup web1");
    assert!(!content.host.is_empty() && content.started.0 > 0);

    holder.kill();
    let seen = leases.list().unwrap();
    assert_eq!((seen[0].id, seen[0].alive), (name, false));
    leases.sweep(&all(&leases)).unwrap();
    assert_eq!(leases.list().unwrap(), []);
}

#[test]
fn a_lock_is_waited_for_until_its_holder_lets_go() {
    let dir = repository();
    let path = dir.path().join("locks/some");
    let held = LockedFile::try_lock(&path, Mode::Exclusive)
        .unwrap()
        .unwrap();
    assert!(LockedFile::try_lock(&path, Mode::Shared).unwrap().is_none());
    let waiter = std::thread::spawn({
        let path = path.clone();
        move || LockedFile::lock_until(&path, Mode::Shared, Instant::now() + PATIENCE)
    });
    drop(held);
    let shared = waiter.join().unwrap().unwrap();
    assert!(shared.is_some());
    assert!(LockedFile::try_lock(&path, Mode::Shared).unwrap().is_some());
    assert!(
        LockedFile::try_lock(&path, Mode::Exclusive)
            .unwrap()
            .is_none()
    );
}
