//! What goes wrong, and what must be left afterwards: nothing.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use virtkeep_capture::{Event, Host, Observer, Options, ScratchReserve};
use virtkeep_repo::{Cancel, CaptureMode};

use crate::world::{Log, WhileReading, World, open_repo, options, run, text};

#[test]
fn a_job_that_cannot_start_leaves_nothing_and_the_last_checkpoint_intact() {
    let world = World::started(&["a.qcow2"]);
    let first = world.backup();
    // A directory in which not even root makes a socket.
    let refused = Options {
        socket_dir: Some(PathBuf::from("/proc")),
        ..options()
    };
    let error = world
        .try_backup(&refused, &Log::default(), &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "backup-begin", "{error}");
    world.assert_nothing_runs();
    assert_eq!(world.checkpoints(), [first.checkpoint.unwrap()]);
    assert_eq!(world.backup().disks[0].mode, CaptureMode::Incremental);
}

#[test]
fn an_interrupted_backup_leaves_nothing_and_the_next_one_is_incremental() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 8M");
    let first = world.backup();
    world.io(0, "write -P 0x5b 0 64M");
    let cancel = Cancel::new();
    let interrupt = WhileReading::new(|| cancel.cancel());
    let error = world
        .try_backup(&options(), &interrupt, &cancel)
        .unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    world.assert_nothing_runs();
    assert_eq!(world.checkpoints(), [first.checkpoint.unwrap()]);
    let next = world.backup();
    assert_eq!(next.disks[0].mode, CaptureMode::Incremental);
    world.assert_restores(&next, &world.references());
}

#[test]
fn what_a_killed_backup_left_is_cleared_by_the_next_one() {
    const CHILD: &str = "VIRTKEEP_TEST_KILLED_BACKUP";
    if let Ok(words) = std::env::var(CHILD) {
        let (name, repo) = words.split_once(' ').unwrap();
        return back_up_until_killed(name, repo);
    }
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 8M");
    let first = world.backup();
    world.io(0, "write -P 0x5b 1M 1M");

    let repo = world.dir.path().join("repo");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "trouble::what_a_killed_backup_left_is_cleared_by_the_next_one",
        ])
        .env(CHILD, format!("{} {}", world.name, text(&repo)))
        .spawn()
        .unwrap();
    while !repo.join("begun").exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the child ended by itself"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(world.checkpoints().len(), 2);

    world.io(0, "write -P 0x5c 2M 1M");
    let log = Log::default();
    let next = world.try_backup(&options(), &log, &Cancel::new()).unwrap();
    assert!(log.text().contains("an earlier run left"), "{}", log.text());
    assert_eq!(next.disks[0].mode, CaptureMode::Incremental);
    assert_eq!(next.disks[0].parent, Some(first.id));
    world.assert_restores(&next, &world.references());
    assert_eq!(world.checkpoints(), [next.checkpoint.unwrap()]);
    world.assert_nothing_runs();
}

/// The child of the test above: says when the job has begun, and then waits for its end.
fn back_up_until_killed(name: &str, repo: &str) {
    struct Hang(PathBuf);
    impl Observer for Hang {
        fn event(&self, event: &Event) {
            if matches!(event, Event::Begun { .. }) {
                std::fs::write(&self.0, "").unwrap();
                loop {
                    std::thread::park();
                }
            }
        }
    }
    let host = Host::connect(None).unwrap();
    let domain = host.domain(name).unwrap();
    let hang = Hang(PathBuf::from(repo).join("begun"));
    let repo = open_repo(repo.as_ref());
    let _ = virtkeep_capture::backup(&host, &domain, &repo, &options(), &hang, &Cancel::new());
}

#[test]
fn somebody_elses_backup_job_is_named_and_left_alone() {
    let world = World::started(&["a.qcow2"]);
    let job = world.dir.path().join("job.xml");
    let socket = world.dir.path().join("theirs.sock");
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
        text(&socket)
    );
    std::fs::write(&job, xml).unwrap();
    world.virsh(&["backup-begin", &world.name, text(&job)]);
    let error = world
        .try_backup(&options(), &Log::default(), &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "foreign-job", "{error}");
    assert!(error.to_string().contains("theirs.sock"), "{error}");
    assert!(
        world
            .virsh(&["backup-dumpxml", &world.name])
            .contains("theirs.sock")
    );
    world.virsh(&["domjobabort", &world.name]);
}

#[test]
fn the_backup_is_given_up_before_scratch_space_runs_out() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 64M");
    let scratch = world.dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=16m", "tmpfs", text(&scratch)],
    );
    let options = Options {
        scratch_dir: Some(scratch.clone()),
        scratch_reserve: ScratchReserve {
            percent: 5,
            bytes: 4 << 20,
            ..ScratchReserve::default()
        },
        ..options()
    };
    let fill = WhileReading::new(|| {
        std::fs::write(scratch.join("filler"), vec![1; 14 << 20]).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    });
    let error = world
        .try_backup(&options, &fill, &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "scratch-space", "{error}");
    world.assert_nothing_runs();
    assert!(world.checkpoints().is_empty());
    std::fs::remove_file(scratch.join("filler")).unwrap();
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);

    let refused = Options {
        scratch_reserve: ScratchReserve::default(),
        ..options
    };
    let error = world
        .try_backup(&refused, &Log::default(), &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "scratch-space", "{error}");
    run("umount", &[text(&scratch)]);
}

#[test]
fn a_domain_that_stops_during_the_backup_fails_it_and_costs_nothing_but_the_point() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 64M");
    let first = world.backup();
    world.io(0, "write -P 0x5b 0 64M");
    let stop = WhileReading::new(|| drop(world.virsh(&["destroy", &world.name])));
    let error = world
        .try_backup(&options(), &stop, &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "domain-stopped", "{error}");
    world.start();
    let next = world.backup();
    assert_eq!(
        next.disks[0].mode,
        CaptureMode::Incremental,
        "{}",
        next.disks[0].reason
    );
    assert_eq!(next.disks[0].parent, Some(first.id));
    world.assert_restores(&next, &world.references());
    assert_eq!(world.checkpoints(), [next.checkpoint.unwrap()]);
    world.assert_nothing_runs();
}

#[test]
fn a_checkpoint_that_libvirt_forgot_is_defined_again() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 8M");
    let first = world.backup();
    let name = first.checkpoint.unwrap();
    world.virsh(&["checkpoint-delete", &world.name, &name, "--metadata"]);
    world.io(0, "write -P 0x5b 1M 64k");
    let next = world.backup();
    assert_eq!(
        next.disks[0].mode,
        CaptureMode::Incremental,
        "{}",
        next.disks[0].reason
    );
    world.assert_restores(&next, &world.references());
    assert_eq!(world.checkpoints(), [next.checkpoint.unwrap()]);
}

#[test]
fn a_killed_qemu_costs_a_full_read_of_the_disks_whose_bitmap_it_took_along() {
    let world = World::started(&["a.qcow2", "b.qcow2"]);
    world.io(0, "write -P 0x5a 0 8M");
    world.backup();
    world.io(0, "write -P 0x5b 1M 64k");
    world.io(0, "flush");
    let pid = format!("/run/libvirt/qemu/{}.pid", world.name);
    let pid = std::fs::read_to_string(pid).unwrap();
    run("kill", &["-9", pid.trim()]);
    while world.is_active() {
        std::thread::sleep(Duration::from_millis(50));
    }
    world.start();
    let next = world.backup();
    for disk in &next.disks {
        assert_eq!(disk.mode, CaptureMode::Full);
        assert_eq!(
            disk.reason,
            "the bitmap of the last point is missing or broken"
        );
    }
    world.assert_restores(&next, &world.references());
    assert_eq!(world.checkpoints(), [next.checkpoint.unwrap()]);
}

#[test]
fn a_restart_of_the_daemon_during_the_backup_costs_nothing() {
    const CHILD: &str = "VIRTKEEP_TEST_DAEMON_OF_ITS_OWN";
    const NAME: &str = "trouble::a_restart_of_the_daemon_during_the_backup_costs_nothing";
    if std::env::var_os(CHILD).is_none() {
        // Other tests use the daemon around us.
        let with_libvirt = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/stack/with-libvirt");
        let exe = std::env::current_exe().unwrap();
        let status = Command::new(with_libvirt)
            .args([text(&exe), "--exact", NAME])
            .env(CHILD, "1")
            .status();
        return assert!(status.unwrap().success());
    }
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 64M");
    let restart = WhileReading::new(|| {
        let pid = std::fs::read_to_string("/run/libvirtd.pid").unwrap();
        run("kill", &["-TERM", pid.trim()]);
        while std::path::Path::new(&format!("/proc/{}/exe", pid.trim())).exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        run("libvirtd", &["-d"]);
    });
    let point = world
        .try_backup(&options(), &restart, &Cancel::new())
        .unwrap();
    world.assert_restores(&point, &world.references());
    world.assert_nothing_runs();
    assert_eq!(world.checkpoints(), [point.checkpoint.unwrap()]);
}

/// Does something once, when it is told that the backup has been planned.
struct AfterPlanning<F>(Log, F);

impl<F: Fn() + Send + Sync> Observer for AfterPlanning<F> {
    fn event(&self, event: &Event) {
        self.0.event(event);
        if matches!(event, Event::Started { .. }) {
            (self.1)();
        }
    }
}

#[test]
fn a_disk_that_is_exchanged_after_the_planning_is_noticed() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 8M");
    let first = world.backup();
    let overlay = world.dir.path().join("overlay.qcow2");
    let spec = format!("vda,file={}", text(&overlay));
    let exchange = AfterPlanning(Log::default(), || {
        let create = ["snapshot-create-as", &world.name, "s", "--disk-only"];
        drop(world.virsh(&[&create[..], &["--diskspec", &spec]].concat()));
    });
    let error = world
        .try_backup(&options(), &exchange, &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "disk-exchanged", "{error}");
    world.assert_nothing_runs();
    assert_eq!(world.checkpoints(), [first.checkpoint.unwrap()]);
    assert_eq!(world.backup().disks[0].mode, CaptureMode::Incremental);
    world.virsh(&["snapshot-delete", &world.name, "s", "--metadata"]);
}

#[test]
fn directories_with_hostile_names_hold_scratch_files_and_sockets() {
    let world = World::started(&["a.qcow2"]);
    let dir = world.dir.path().join("it's <x> & \"\té\"");
    std::fs::create_dir(&dir).unwrap();
    let options = Options {
        scratch_dir: Some(dir.clone()),
        socket_dir: Some(dir.clone()),
        ..options()
    };
    let (log, cancel) = (Log::default(), Cancel::new());
    world.try_backup(&options, &log, &cancel).unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    world.assert_nothing_runs();
    let nowhere = Options {
        scratch_dir: Some(dir.join("missing")),
        ..options
    };
    let error = world.try_backup(&nowhere, &log, &cancel).unwrap_err();
    assert_eq!(error.code(), "host-file", "{error}");
}
