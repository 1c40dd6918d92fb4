//! Guests that run from a point at once.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use virtkeep_tests::{DiskSpec, MIB, Machine, Program, run, text, wait_until};

use crate::guest::{Defined, assert_all_right, booted, in_guest, wait_for_agent};
use crate::world::{World, id, unique_name};

/// The numbers of the processes that serve recoveries from this repository, the oldest first.
pub(crate) fn servers(program: &Program) -> Vec<Pid> {
    let numbers = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let number = entry.unwrap().file_name().to_str()?.parse::<i32>().ok()?;
        let words = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        let is_ours = words.contains("boot-server") && words.contains(text(program.repo()));
        is_ours.then_some(number)
    });
    let mut numbers: Vec<i32> = numbers.collect();
    numbers.sort_unstable();
    numbers.into_iter().filter_map(Pid::from_raw).collect()
}

/// Kills processes. One of them may have ended with another one before its turn comes.
pub(crate) fn kill(pids: &[Pid]) {
    for pid in pids {
        let killed = kill_process(*pid, Signal::KILL);
        assert!(matches!(killed, Ok(()) | Err(Errno::SRCH)), "{killed:?}");
    }
}

/// The line of JSON about a recovery that must be there.
pub(crate) fn status(program: &Program) -> Value {
    program.ok(&["--json", "boot", "--status"]).line("recovery")
}

/// Boots a point and leaves its data in the repository; the domain and its directory.
pub(crate) fn boot(world: &World, point: &str, words: &[&str]) -> (Defined, PathBuf) {
    let dir = world.path("boot");
    let name = format!("{}-boot", world.machine.name);
    let all = [
        "--json",
        "boot",
        point,
        "--no-pull",
        "--to",
        text(&dir),
        "--name",
        &name,
    ];
    let line = world.program.ok(&[&all[..], words].concat()).line("booted");
    assert_eq!(line["domain"], *name);
    (Defined(line["uuid"].as_str().unwrap().to_owned()), dir)
}

/// The files of a directory, by name; none where there is no directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Whether recoveries from this repository are pinned.
pub(crate) fn is_pinned(world: &World) -> bool {
    !names_in(&world.program.repo().join("pins")).is_empty()
}

/// No process, socket or lock is left of recoveries, and no pin.
pub(crate) fn assert_tidy(world: &World) {
    assert_eq!(servers(&world.program), []);
    assert!(!is_pinned(world));
    let beside = names_in(Path::new("/run/libvirt/virtkeep"));
    let ours = |name: &String| name.contains(&format!("{}-", world.machine.name));
    assert!(!beside.iter().any(ours), "{beside:?}");
}

/// Nothing of a recovery is left but the images and the domain.
pub(crate) fn assert_over(world: &World, uuid: &str) {
    assert_tidy(world);
    let files = names_in(&world.path("boot"));
    let stays = |name: &String| name.ends_with(".qcow2") || name.ends_with(".console");
    assert!(files.iter().all(stays), "{files:?}");
    for words in [&["dumpxml", uuid][..], &["dumpxml", "--inactive", uuid]] {
        let xml = run("virsh", words);
        assert!(!xml.contains("nbd"), "{xml}");
    }
    let said = world.program.ok(&["boot", "--status"]).stdout;
    assert!(said.contains("No recovery is under way"), "{said}");
}

#[test]
fn a_guest_runs_at_once_and_keeps_what_it_writes_while_its_data_moves_in() {
    let world = booted(&["--busy"]);
    let machine = &world.machine;
    wait_until("the guest has written files", || {
        let lines = in_guest(&machine.uuid, "grep -c . /disks/vda/sums || true");
        lines.trim().parse::<u32>().unwrap() >= 5
    });
    let point = world.back_up(&[]);
    machine.power_off();
    let original = std::fs::read(&machine.disks()[0].1).unwrap();

    let (clone, dir) = boot(&world, id(&point), &[]);
    let uuid = &clone.0;
    wait_for_agent(uuid);
    let seen = status(&world.program);
    assert_eq!(seen["state"], "running");
    assert_eq!(seen["disks"][0]["moved"], 0.0);

    // The one that serves, then both: the guest only waits.
    let before = servers(&world.program);
    kill(&before[1..]);
    in_guest(uuid, "dd if=/dev/vda of=/dev/null bs=1M count=20 2>&1");
    wait_until("another process serves", || {
        servers(&world.program).len() == 2
    });
    kill(&servers(&world.program));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    assert_eq!(status(&world.program)["served"], true);
    in_guest(
        uuid,
        "dd if=/dev/vda of=/dev/null bs=1M skip=20 count=40 2>&1",
    );

    // Longer than QEMU waits.
    kill(&servers(&world.program));
    in_guest(
        uuid,
        "(sleep 3; dd if=/dev/vda of=/dev/null bs=1M skip=60) >/dev/null 2>&1 &",
    );
    wait_until("QEMU has paused the guest", || {
        run("virsh", &["domstate", uuid]).trim() == "paused"
    });
    // QEMU's first request after that only makes it connect.
    wait_until("the guest goes on", || {
        status(&world.program)["state"] == "running"
    });

    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, uuid);
    assert_all_right(uuid);
    // On its own, with all that was written since, and without an error ever seen by the guest.
    run("virsh", &["destroy", uuid]);
    run("qemu-img", &["check", "-q", text(&dir.join("vda.qcow2"))]);
    run("virsh", &["start", uuid]);
    wait_for_agent(uuid);
    assert_all_right(uuid);
    assert!(std::fs::read(&machine.disks()[0].1).unwrap() == original);
}

/// A domain of two disks without an operating system, with a point of it, shut off.
pub(crate) fn two_disks() -> (World, String) {
    let world = World::with(|dir| {
        let disks = [
            DiskSpec::new("a.qcow2", 64 * MIB),
            DiskSpec::new("b.qcow2", 40 * MIB + 512),
        ];
        Machine::define(dir.path(), &unique_name(), &disks)
    });
    world.machine.start_paused();
    world.machine.write_random(0, 1, 3 * MIB, 9 * MIB);
    world.machine.write_random(1, 2, 0, 5 * MIB);
    let point = id(&world.back_up(&[])).to_owned();
    world.machine.power_off();
    (world, point)
}

/// Kills the QEMU of a domain, as a crash of the host does.
pub(crate) fn kill_qemu(name: &str) {
    let pid = std::fs::read_to_string(format!("/run/libvirt/qemu/{name}.pid")).unwrap();
    kill(&[Pid::from_raw(pid.trim().parse().unwrap()).unwrap()]);
    wait_until("libvirt sees it", || {
        run("virsh", &["domstate", name]).trim() == "shut off"
    });
}

#[test]
fn once_a_recovery_has_ended_no_crash_takes_anything_from_its_guest() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, &clone.0);
    // What QEMU held in memory only would be gone now.
    kill_qemu(&format!("{}-boot", world.machine.name));
    world
        .images
        .compare(&expected, &dir, "qcow2", "after the crash");
}

#[test]
fn a_recovery_ends_by_itself_when_its_command_is_killed() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (dir, name) = (world.path("boot"), format!("{}-boot", world.machine.name));
    let words = ["boot", &point, "--to", text(&dir), "--name", &name];
    let command = world.program.start(&words);
    wait_until("the guest has been started", || {
        Path::new(&format!("/run/libvirt/qemu/{name}.pid")).exists()
    });
    command.signal(Signal::KILL);
    command.wait();
    let clone = Defined(run("virsh", &["domuuid", &name]).trim().to_owned());
    wait_until("it has ended", || !is_pinned(&world));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    assert_over(&world, &clone.0);
    kill_qemu(&name);
    world
        .images
        .compare(&expected, &dir, "qcow2", "after the crash");
}

#[test]
fn what_serves_a_recovery_holds_nothing_of_whoever_began_it() {
    let (world, point) = two_disks();
    let (dir, lock) = (world.path("boot"), world.path("lock"));
    let name = format!("{}-boot", world.machine.name);
    let words = ["boot", &point, "--to", text(&dir), "--name", &name];
    let boot = world
        .program
        .command(&[&words[..], &["--no-pull"]].concat());
    // As a shell does that has something open.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec 9>\"$0\"; exec \"$@\"", text(&lock)]);
    shell.arg(boot.get_program()).args(boot.get_args());
    assert!(shell.output().unwrap().status.success());
    let clone = Defined(run("virsh", &["domuuid", &name]).trim().to_owned());
    let servers = servers(&world.program);
    assert_eq!(servers.len(), 2);
    for pid in servers {
        let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).unwrap();
        let open: Vec<PathBuf> = open
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .collect();
        assert!(open.len() > 3 && !open.contains(&lock), "{open:?}");
    }
    world.program.ok(&["boot", "--abort", "--yes"]);
    drop(clone);
    assert_tidy(&world);
}

#[test]
fn a_guest_that_was_paused_by_a_command_that_was_killed_goes_on() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    let name = format!("{}-boot", world.machine.name);
    // As it is in the fraction of a second in which a recovery settles.
    run("virsh", &["suspend", &clone.0]);
    kill(&servers(&world.program));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    let socket = format!("/run/libvirt/virtkeep/nbd.tunnelmigrate.dest.{name}");
    std::fs::write(format!("{socket}.work"), "1 pausing").unwrap();
    assert_eq!(status(&world.program)["state"], "running");
    // But whom somebody has paused on purpose stays so.
    run("virsh", &["suspend", &clone.0]);
    assert_eq!(status(&world.program)["state"], "paused");
    // What was pulled meanwhile QEMU has only in memory: nothing is let go.
    let finish = ["boot", "--finish"];
    world.program.run(&finish).refused(1, "stands still");
    run("virsh", &["resume", &clone.0]);
    world.program.ok(&finish);
    assert_over(&world, &clone.0);
    kill_qemu(&name);
    world
        .images
        .compare(&expected, &dir, "qcow2", "after the crash");
}

#[test]
fn a_recovery_is_finished_whatever_became_of_its_domain() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    let uuid = &clone.0;
    let snapshot = world.path("snapshot.qcow2");
    let spec = format!("vda,file={}", text(&snapshot));
    let words = [
        "snapshot-create-as",
        uuid,
        "s",
        "--disk-only",
        "--no-metadata",
    ];
    let disks = ["--diskspec", &spec, "--diskspec", "vdb,snapshot=no"];
    run("virsh", &[&words[..], &disks[..]].concat());
    let finish = ["boot", "--finish"];
    world.program.run(&finish).refused(1, "beneath a snapshot");

    run("virsh", &["destroy", uuid]);
    let overlay = dir.join("vdb.qcow2");
    run("qemu-img", &["snapshot", "-c", "s", text(&overlay)]);
    world.program.run(&finish).refused(1, "snapshots inside");
    run("qemu-img", &["snapshot", "-d", "s", text(&overlay)]);

    run("virsh", &["undefine", uuid]);
    let said = world.program.ok(&finish).stderr;
    assert!(said.contains("virsh define"), "{said}");
    assert_tidy(&world);
    run("virsh", &["define", text(&dir.join("domain.xml"))]);
    assert!(!run("virsh", &["dumpxml", uuid]).contains("nbd"));
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn of_two_commands_at_once_only_one_works_on_a_recovery() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (dir, name) = (world.path("boot"), format!("{}-boot", world.machine.name));
    let words = [
        "boot",
        &point,
        "--to",
        text(&dir),
        "--name",
        &name,
        "--no-pull",
    ];
    let both = [world.program.start(&words), world.program.start(&words)];
    let mut codes = both.map(|one| one.wait().code().unwrap());
    codes.sort_unstable();
    assert_eq!(codes[0], 0, "{codes:?}");
    assert_ne!(codes[1], 0, "{codes:?}");
    let clone = Defined(run("virsh", &["domuuid", &name]).trim().to_owned());
    assert_eq!(status(&world.program)["state"], "running");
    run("virsh", &["destroy", &clone.0]);
    let finish = ["boot", "--finish"];
    let both = [world.program.start(&finish), world.program.start(&finish)];
    let mut codes = both.map(|one| one.wait().code().unwrap());
    codes.sort_unstable();
    assert_eq!(codes[0], 0, "{codes:?}");
    assert_over(&world, &clone.0);
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn an_abort_removes_nothing_that_belongs_to_another_recovery() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    // As if an earlier command for the same place had been killed right after it had pinned the point.
    let pins = world.program.repo().join("pins");
    let pin = pins.join(&names_in(&pins)[0]);
    let stale = "0123456789abcdef0123456789abcdef";
    let text = std::fs::read_to_string(pin).unwrap();
    let other = text.replace(&clone.0, "11111111-2222-4333-8444-555555555555");
    // An original has the same id in both.
    for other in [&other, &text] {
        std::fs::write(pins.join(stale), other).unwrap();
        world.program.run(&["boot", "--finish"]).refused(2, stale);
        world.program.ok(&["boot", "--abort", stale, "--yes"]);
        assert_eq!(status(&world.program)["state"], "running");
        assert_eq!(status(&world.program)["served"], true);
    }
    // Nor does one of another host.
    let there = other.replace("\"uid\":", "\"uid\":4");
    assert_ne!(there, other);
    std::fs::write(pins.join(stale), there).unwrap();
    let abort = ["boot", "--abort", stale, "--yes"];
    world
        .program
        .run(&abort)
        .refused(1, "another user, with the id 40");
    std::fs::remove_file(pins.join(stale)).unwrap();
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, &clone.0);
    run("virsh", &["destroy", &clone.0]);
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn a_recovery_outlives_a_crash_of_the_host_at_any_moment() {
    let (world, point) = two_disks();
    let expected = world.now();
    // The crash comes before anything was moved, or after the pull and before QEMU wrote its tables.
    for pulled in [false, true] {
        let (clone, dir) = boot(&world, &point, &[]);
        let uuid = &clone.0;
        if pulled {
            for disk in ["vda", "vdb"] {
                run("virsh", &["blockpull", uuid, disk, "--wait"]);
            }
        }
        let name = format!("{}-boot", world.machine.name);
        kill_qemu(&name);
        kill(&servers(&world.program));
        world.program.ok(&["boot", "--finish", &name]);
        assert_over(&world, uuid);
        world
            .images
            .compare(&expected, &dir, "qcow2", "after the crash");
        drop(clone);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn what_a_guest_wrote_before_a_crash_is_there_when_its_recovery_is_finished() {
    let (world, point) = two_disks();
    let (clone, dir) = boot(&world, &point, &[]);
    run("virsh", &["destroy", &clone.0]);
    // As a guest does that writes and flushes, on a boundary of no cluster.
    let overlay = dir.join("vda.qcow2");
    run(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write -q -P 0x77 4000k 100k",
            text(&overlay),
        ],
    );
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, &clone.0);
    let read = "read -q -P 0x77 4000k 100k";
    run(
        "qemu-io",
        &["-f", "qcow2", "-r", "-c", read, text(&overlay)],
    );
}

#[test]
fn an_aborted_recovery_leaves_nothing() {
    let (world, point) = two_disks();
    let (clone, dir) = boot(&world, &point, &[]);
    world
        .program
        .run(&["forget", &point])
        .refused(1, "runs from it");
    world
        .program
        .run(&["unpin", &point, "--all"])
        .refused(1, "boot --finish");
    world.program.ok(&["prune", "--exact"]);
    let again = ["boot", &point, "--to", text(&dir), "--name", "another"];
    world.program.run(&again).refused(1, "already exists");
    world.program.run(&["boot", "--abort"]).refused(2, "--yes");
    world.program.ok(&["boot", "--abort", "--yes"]);
    assert!(!dir.exists());
    assert_tidy(&world);
    let gone = std::process::Command::new("virsh")
        .args(["domstate", &clone.0])
        .output();
    assert!(!gone.unwrap().status.success());
    world
        .program
        .run(&["boot", "--finish"])
        .refused(1, "no recovery is under way");
    world
        .program
        .run(&["boot", "--finish", "x"])
        .refused(1, "no recovery of x");
}

#[test]
fn a_guest_that_cannot_start_leaves_nothing() {
    let (world, point) = two_disks();
    let (dir, file) = (world.path("boot"), world.path("in-the-way"));
    std::fs::write(&file, "").unwrap();
    let words = ["boot", &point, "--to", text(&file)];
    world.program.run(&words).refused(1, "cannot create");
    assert_tidy(&world);
    world.machine.virsh("undefine", &["--checkpoints-metadata"]);
    let words = ["boot", &point, "--as-original", "--to", text(&dir)];
    world.program.ok(&words);
    assert_over(&world, &world.machine.uuid);
    let other = world.path("other");
    let words = ["boot", &point, "--as-original", "--to", text(&other)];
    world.program.run(&words).refused(1, "undefine it first");
    assert!(!other.exists());
}

#[test]
fn a_test_boot_is_noted_with_the_point_and_leaves_nothing() {
    let world = booted(&[]);
    let point = world.back_up(&[]);
    world.machine.power_off();
    let to = world.path("trials");
    std::fs::create_dir(&to).unwrap();
    let test = |words: &[&str]| {
        let all = ["--json", "boot", id(&point), "--test", "--to", text(&to)];
        let ran = world.program.run(&[&all[..], words].concat());
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0, "{ran:?}");
        assert_eq!(servers(&world.program), []);
        (ran.code(), ran.line("boot-test"))
    };
    let (code, line) = test(&[]);
    assert_eq!(
        (code, &line["passed"]),
        (Some(0), &Value::Bool(true)),
        "{line}"
    );
    assert!(
        line["seen"].as_str().unwrap().contains("agent answers"),
        "{line}"
    );
    let (code, line) = test(&["--expect", "guest: up after"]);
    assert_eq!(
        (code, &line["passed"]),
        (Some(0), &Value::Bool(true)),
        "{line}"
    );
    let (code, line) = test(&["--expect", "something else", "--wait", "1"]);
    assert_eq!(
        (code, &line["passed"]),
        (Some(3), &Value::Bool(false)),
        "{line}"
    );

    let names = run("virsh", &["list", "--all", "--name"]);
    let tried = format!("{}-test-", world.machine.name);
    assert!(!names.contains(&tried), "{names}");
    let shown = world
        .program
        .ok(&["--json", "show", id(&point)])
        .line("point");
    assert_eq!(shown["boot_tests"].as_array().unwrap().len(), 3);
    let listed = world.program.ok(&["--json", "list"]).line("point");
    assert_eq!(listed["boot_tests"][2]["passed"], false);
    let listed = world.program.ok(&["list"]).stdout;
    assert!(listed.contains("no sign of life"), "{listed}");
}
