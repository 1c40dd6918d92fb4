//! A real Linux guest with its agent: freezing, thawing, and a guest that runs out of scratch.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use virtkeep_capture::{Event, Host, Observer, Options, thaw_when_orphaned};
use virtkeep_repo::{Cancel, CaptureMode, Consistency};

use crate::world::{Log, WhileReading, World, open_repo, options, run, text};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/stack/guest.sh");

/// A booted guest with one ext4 disk, its agent answering.
fn booted() -> World {
    let boot = run(SCRIPT, &["build"]);
    let world = World::with(&["a.qcow2"], &["--boot", boot.trim()], |disk| {
        run(SCRIPT, &["disk", text(disk), "256M"]);
    });
    world.virsh(&["start", &world.name]);
    run(SCRIPT, &["wait", &world.name]);
    world
}

fn in_guest(world: &World, command: &str) -> String {
    run(SCRIPT, &["run", &world.name, command])
}

fn is_frozen(world: &World) -> bool {
    let ask = "{\"execute\":\"guest-fsfreeze-status\"}";
    world
        .virsh(&["qemu-agent-command", &world.name, ask])
        .contains("\"frozen\"")
}

#[test]
fn a_guest_with_an_agent_is_frozen_for_the_checkpoint_and_runs_on_during_the_reading() {
    let world = booted();
    let log = Log::default();
    let point = world.try_backup(&options(), &log, &Cancel::new()).unwrap();
    assert_eq!(point.consistency, Consistency::Frozen, "{}", log.text());
    assert!(log.text().contains("guest thawed"), "{}", log.text());
    assert!(!is_frozen(&world));

    in_guest(&world, "echo before >/disks/vda/x; sync");
    let write = || drop(in_guest(&world, "echo after >/disks/vda/x; sync"));
    let while_writing = WhileReading::new(write);
    let point = world
        .try_backup(&options(), &while_writing, &Cancel::new())
        .unwrap();
    assert_eq!(point.disks[0].mode, CaptureMode::Incremental);
    let restored = world.restored(&point, 0);
    let holds = |text: &[u8]| restored.windows(text.len()).any(|window| window == text);
    assert!(holds(b"before\n"));
    assert!(!holds(b"after\n"));
}

#[test]
fn a_guest_that_fills_the_scratch_space_runs_on_and_the_backup_is_given_up() {
    let world = booted();
    in_guest(
        &world,
        "dd if=/dev/urandom of=/disks/vda/big bs=1M count=60 conv=fsync",
    );
    let scratch = world.dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=8m", "tmpfs", text(&scratch)],
    );
    let options = Options {
        scratch_dir: Some(scratch.clone()),
        ..options()
    };
    let overwrite = "dd if=/dev/zero of=/disks/vda/big bs=1M count=60 conv=notrunc,fsync";
    let fill = WhileReading::new(|| {
        let writer = Command::new(SCRIPT)
            .args(["run", &world.name, overwrite])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !world.virsh(&["domstate", &world.name]).contains("paused") {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::mem::forget(writer);
    });
    let error = world
        .try_backup(&options, &fill, &Cancel::new())
        .unwrap_err();
    assert!(
        matches!(error.code(), "guest-paused" | "scratch-space"),
        "{error}"
    );
    assert_eq!(world.virsh(&["domstate", &world.name]).trim(), "running");
    world.assert_nothing_runs();
    assert!(world.checkpoints().is_empty());
    assert_eq!(in_guest(&world, "cat /proc/1/comm").trim(), "init");
    world.virsh(&["destroy", &world.name]);
    run("umount", &[text(&scratch)]);
}

#[test]
fn a_guest_is_not_kept_frozen_while_somebody_elses_job_is_in_the_way() {
    struct Intrude<'a>(&'a World, Log);
    impl Observer for Intrude<'_> {
        fn event(&self, event: &Event) {
            self.1.event(event);
            if matches!(event, Event::Frozen { .. }) {
                let World { dir, name, .. } = self.0;
                let job = dir.path().join("job.xml");
                let socket = dir.path().join("theirs.sock");
                let xml = format!(
                    "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
                    text(&socket)
                );
                std::fs::write(&job, xml).unwrap();
                self.0.virsh(&["backup-begin", name, text(&job)]);
            }
        }
    }
    let world = booted();
    let intrude = Intrude(&world, Log::default());
    let error = world
        .try_backup(&options(), &intrude, &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "domain-busy", "{error}");
    let log = intrude.1.text();
    assert!(log.contains("the guest was thawed before"), "{log}");
    assert!(!is_frozen(&world));
    let job = world.virsh(&["backup-dumpxml", &world.name]);
    assert!(job.contains("theirs.sock"), "{job}");
}

#[test]
fn a_guest_frozen_by_a_backup_that_is_killed_is_thawed() {
    const CHILD: &str = "VIRTKEEP_TEST_KILLED_WHILE_FROZEN";
    const NAME: &str = "guest::a_guest_frozen_by_a_backup_that_is_killed_is_thawed";
    if let Ok(words) = std::env::var(CHILD) {
        let arguments: Vec<String> = std::env::args().collect();
        if let [.., uri, uuid] = &arguments[..]
            && uri.contains("://")
        {
            return thaw_when_orphaned(uri, uuid).unwrap();
        }
        let (name, repo) = words.split_once(' ').unwrap();
        return freeze_until_killed(name, Path::new(repo), NAME);
    }
    let world = booted();
    let repo = world.dir.path().join("repo");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, format!("{} {}", world.name, text(&repo)))
        .spawn()
        .unwrap();
    while !repo.join("frozen").exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the child ended by itself"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_frozen(&world));
    child.kill().unwrap();
    child.wait().unwrap();
    while is_frozen(&world) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The child of the test above: says when the guest is frozen, and then waits for its end.
fn freeze_until_killed(name: &str, repo: &Path, test: &str) {
    struct Hang(PathBuf);
    impl Observer for Hang {
        fn event(&self, event: &Event) {
            if matches!(event, Event::Frozen { .. }) {
                std::fs::write(&self.0, "").unwrap();
                loop {
                    std::thread::park();
                }
            }
        }
    }
    let host = Host::connect(None).unwrap();
    let domain = host.domain(name).unwrap();
    let hang = Hang(repo.join("frozen"));
    let exe = std::env::current_exe().unwrap().into_os_string();
    let options = Options {
        thaw_guard: Some(vec![exe, "--exact".into(), test.into()]),
        ..options()
    };
    let repo = open_repo(repo);
    let _ = virtkeep_capture::backup(&host, &domain, &repo, &options, &hang, &Cancel::new());
}
