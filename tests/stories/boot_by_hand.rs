//! Recoveries on which somebody else has laid hands, and machines that cannot be recovered here.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;
use virtkeep_tests::{DiskSpec, MIB, Machine, run, text, wait_until};

use crate::boot::{
    assert_over, assert_tidy, boot, kill, kill_qemu, names_in, servers, status, two_disks,
};
use crate::boot_trouble::{compare, has_job, large};
use crate::world::{World, id, unique_name};

/// Reads a range of the first disk of a running domain, as its guest does, which must be of one value.
fn assert_reads(uuid: &str, value: &str, range: &str) {
    let device = "/machine/peripheral/virtio-disk0/virtio-backend";
    let monitor = format!("qemu-io -d {device} \"read -q -P {value} {range}\"");
    let words = ["--quiet", "qemu-monitor-command", uuid, "--hmp", &monitor];
    let said = run("virsh", &words);
    assert!(said.trim().is_empty(), "{said}");
}

#[test]
fn a_guest_that_is_started_by_hand_after_a_crash_has_all_its_data_or_does_not_start() {
    // The second is so large that the pull takes its time.
    let world = World::with(|dir| {
        let disks = [
            DiskSpec::new("a.qcow2", 64 * MIB),
            DiskSpec::new("b.qcow2", 6 << 30),
        ];
        Machine::define(dir.path(), &unique_name(), &disks)
    });
    world.machine.start_paused();
    world.machine.io(0, "write -q -P 0x5a 1M 3M");
    world.machine.io(1, "write -q -P 0x5b 5G 3M");
    let point = world.back_up(&[]);
    world.machine.power_off();
    let (clone, dir) = boot(&world, id(&point), &[]);
    let (uuid, name) = (&clone.0, format!("{}-boot", world.machine.name));
    let command = world.program.start(&["boot", "--finish"]);
    let names = |words: &[&str]| {
        run("virsh", &[words, &[uuid]].concat())
            .matches("vda@")
            .count()
    };
    wait_until("all of vda is there, and not proved to be", || {
        names(&["dumpxml"]) == 0 && names(&["dumpxml", "--inactive"]) == 1
    });
    command.signal(Signal::KILL);
    command.wait();
    kill(&servers(&world.program));
    kill_qemu(&name);
    // The header says that nothing is missing, but the tables were only in memory.
    let read = "read -q -P 0x5a 1M 3M";
    let overlay = dir.join("vda.qcow2");
    let words = ["-f", "qcow2", "-r", "-c", read, text(&overlay)];
    let said = Command::new("qemu-io").args(words).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("Pattern verification failed"), "{said}");

    let start = || {
        Command::new("virsh")
            .args(["start", uuid])
            .output()
            .unwrap()
    };
    assert!(!start().status.success());
    assert_eq!(status(&world.program)["served"], true);
    assert!(start().status.success());
    assert_reads(uuid, "0x5a", "1M 3M");
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, uuid);
    kill_qemu(&name);
    for ((_, original), overlay) in world.machine.disks().iter().zip(["vda", "vdb"]) {
        compare(original, &dir.join(format!("{overlay}.qcow2")));
    }
}

#[test]
fn a_guest_that_ends_during_the_pull_is_completed_while_it_is_off() {
    let world = large();
    let point = world.back_up(&[]);
    world.machine.power_off();
    let (clone, dir) = boot(&world, id(&point), &[]);
    let command = world.program.start(&["boot", "--finish"]);
    wait_until("the pull has begun", || has_job(&clone.0));
    run("virsh", &["destroy", &clone.0]);
    let ran = command.wait();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_over(&world, &clone.0);
    compare(&world.machine.disks()[0].1, &dir.join("vda.qcow2"));
}

#[test]
fn a_disk_that_was_detached_is_completed_like_the_others() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    let uuid = &clone.0;
    run("virsh", &["destroy", uuid]);
    run("virsh", &["detach-disk", uuid, "vdb", "--config"]);
    run("virsh", &["start", uuid]);
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, uuid);
    kill_qemu(&format!("{}-boot", world.machine.name));
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn a_point_is_whole_to_its_recovery_while_others_are_forgotten_and_pruned() {
    let (world, _) = two_disks();
    world.machine.start_paused();
    world.machine.write_random(0, 3, 20 * MIB, 9 * MIB);
    let expected = world.now();
    let point = world.back_up(&[]);
    world.machine.write_random(0, 4, 0, 60 * MIB);
    let last = world.back_up(&[]);
    world.machine.power_off();
    let (clone, dir) = boot(&world, id(&point), &[]);
    for other in world.program.points() {
        if other != id(&point) && other != id(&last) {
            world.program.ok(&["forget", &other]);
        }
    }
    let forget = ["forget", id(&point)];
    world.program.run(&forget).refused(1, "runs from it");
    world.program.ok(&["prune", "--exact"]);
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, &clone.0);
    world.program.ok(&forget);
    kill_qemu(&format!("{}-boot", world.machine.name));
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn a_disk_that_may_lose_what_was_flushed_does_not_while_it_is_recovered() {
    let (world, _) = two_disks();
    let machine = &world.machine;
    let xml = machine.virsh("dumpxml", &["--inactive"]);
    let is_unsafe = "<driver name='qemu' cache='unsafe' ";
    machine.define_xml(&xml.replace("<driver name='qemu' ", is_unsafe));
    let point = world.program.backup(&machine.uuid, &[]);
    let (clone, _) = boot(&world, id(&point), &[]);
    let xml = |words: &[&str]| run("virsh", &[&["dumpxml", &clone.0], words].concat());
    assert!(!xml(&[]).contains("unsafe") && !xml(&["--inactive"]).contains("unsafe"));
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, &clone.0);
    assert_eq!(xml(&["--inactive"]).matches("cache='unsafe'").count(), 2);
}

#[test]
fn a_recovery_is_not_lost_when_its_host_gets_another_machine_id() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    let pins = world.program.repo().join("pins");
    let pin = pins.join(&names_in(&pins)[0]);
    let record = std::fs::read_to_string(&pin).unwrap();
    let there = record.replace("\"machine_id\":", "\"machine_id\":\"another\",\"was\":");
    assert_ne!(there, record);
    std::fs::write(&pin, there).unwrap();
    let finish = ["boot", "--finish"];
    world.program.run(&finish).refused(1, "--same-host");
    // Its images must be here.
    let finish = ["boot", "--finish", "--same-host"];
    let (claim, away) = (dir.join(".virtkeep-recovery"), world.path("away"));
    std::fs::rename(&claim, &away).unwrap();
    world
        .program
        .run(&finish)
        .refused(1, "belongs to another host");
    std::fs::rename(&away, &claim).unwrap();
    world.program.ok(&finish);
    assert_over(&world, &clone.0);
    kill_qemu(&format!("{}-boot", world.machine.name));
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn an_original_that_does_not_start_is_as_it_was_and_nothing_is_left() {
    let (world, _) = two_disks();
    let machine = &world.machine;
    let (code, vars) = (world.path("code.fd"), world.path("vars.fd"));
    for file in [&code, &vars] {
        std::fs::write(file, vec![7; 128 << 10]).unwrap();
    }
    let xml = machine.virsh("dumpxml", &["--inactive"]);
    let firmware = format!(
        "hvm</type><loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram>",
        text(&code),
        text(&vars)
    );
    let nic = "<interface type='bridge'><source bridge='nowhere'/></interface></devices>";
    let xml = xml.replace("hvm</type>", &firmware);
    machine.define_xml(&xml.replace("</devices>", nic));
    let point = world.program.backup(&machine.uuid, &[]);
    let keep = ["--checkpoints-metadata", "--keep-nvram"];
    machine.virsh("undefine", &keep);
    let dir = world.path("boot");
    let words = ["boot", id(&point), "--as-original", "--to", text(&dir)];
    world.program.run(&words).refused(1, "does not start");
    assert_tidy(&world);
    assert!(!dir.exists());
    assert!(std::fs::read(&vars).unwrap() == vec![7; 128 << 10]);
    let names = run("virsh", &["list", "--all", "--name"]);
    assert!(!names.contains(&machine.name), "{names}");
}

#[test]
fn guests_of_another_host_are_refused() {
    let (world, point) = two_disks();
    // The way there leads back here.
    let tunnel = world.path("tunnel");
    std::fs::write(&tunnel, "#!/bin/sh\nexec virt-ssh-helper qemu:///system\n").unwrap();
    std::fs::set_permissions(&tunnel, PermissionsExt::from_mode(0o755)).unwrap();
    let uri = format!("qemu+ext://faraway/system?command={}", text(&tunnel));
    let dir = world.path("boot");
    let words = ["-c", &uri, "boot", &point, "--to", text(&dir)];
    world.program.run(&words).refused(1, "run on another host");
    assert!(!dir.exists());
    assert_tidy(&world);
}
