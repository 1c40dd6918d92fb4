//! Recoveries that were interrupted before their guest ran, and directories that are not their own.

use std::path::PathBuf;

use rustix::process::Signal;
use virtkeep_tests::{run, text, wait_until};

use crate::boot::{
    assert_over, assert_tidy, boot, is_pinned, kill, names_in, servers, status, two_disks,
};
use crate::world::World;

/// What there is of a recovery when its command is killed.
const STEPS: [&str; 5] = [
    "pin",
    ".virtkeep-recovery",
    "vda.qcow2",
    "domain.xml",
    "guest",
];

fn has_come_to(world: &World, step: &str, name: &str) -> bool {
    match step {
        "pin" => is_pinned(world),
        "guest" => PathBuf::from(format!("/run/libvirt/qemu/{name}.pid")).exists(),
        file => world.path("boot").join(file).symlink_metadata().is_ok(),
    }
}

#[test]
fn whenever_a_boot_is_killed_it_is_told_and_undone_without_a_trace() {
    let (world, point) = two_disks();
    let (dir, name) = (world.path("boot"), format!("{}-boot", world.machine.name));
    let words = ["boot", &point, "--to", text(&dir), "--name", &name];
    for step in STEPS {
        let command = world.program.start(&[&words[..], &["--no-pull"]].concat());
        wait_until(step, || has_come_to(&world, step, &name));
        command.signal(Signal::KILL);
        command.wait();
        let seen = status(&world.program);
        assert_eq!(seen["domain"], *name, "{step}");
        if !dir.join("domain.xml").exists() {
            let ran = world.program.run(&["boot", "--finish"]);
            ran.refused(1, "boot --abort");
        }
        world.program.ok(&["boot", "--abort", "--yes"]);
        assert!(!dir.exists(), "{step}: {:?}", names_in(&dir));
        // One that was just starting sees that it came too late.
        wait_until("nobody serves", || servers(&world.program).is_empty());
        assert_tidy(&world);
        let names = run("virsh", &["list", "--all", "--name"]);
        assert!(!names.contains(&name), "{step}: {names}");
    }
}

#[test]
fn a_boot_touches_no_file_that_was_there_before() {
    let (world, point) = two_disks();
    let dir = world.path("boot");
    std::fs::create_dir(&dir).unwrap();
    let words = ["boot", &point, "--to", text(&dir)];
    for name in ["domain.xml", "virtkeep-server.log", "vdb.qcow2"] {
        let file = dir.join(name);
        std::fs::write(&file, "mine").unwrap();
        let ran = world.program.run(&words);
        ran.refused(1, &format!("{name} already exists"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        assert_eq!(names_in(&dir), [name]);
        assert_tidy(&world);
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_recovery_whose_images_are_not_mounted_loses_neither_its_pin_nor_anything_else() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    run("virsh", &["destroy", &clone.0]);
    kill(&servers(&world.program));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    let away = world.path("away");
    std::fs::rename(&dir, &away).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let finish = ["boot", "--finish"];
    world
        .program
        .run(&finish)
        .refused(1, "Mount its file system");
    let seen = status(&world.program);
    let told = seen["troubles"][0].as_str().unwrap();
    assert!(told.contains("Mount its file system"), "{seen}");
    assert!(is_pinned(&world) && names_in(&dir).is_empty());
    std::fs::remove_dir(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    world.program.ok(&finish);
    assert_over(&world, &clone.0);
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}

#[test]
fn a_pin_that_an_end_left_goes_without_the_guest() {
    let (world, point) = two_disks();
    let expected = world.now();
    let (clone, dir) = boot(&world, &point, &[]);
    let pins = world.program.repo().join("pins");
    let pin = pins.join(&names_in(&pins)[0]);
    let record = std::fs::read(&pin).unwrap();
    world.program.ok(&["boot", "--finish"]);
    // As if that had been killed right before its last step.
    std::fs::write(&pin, record).unwrap();
    let finish = ["boot", "--finish"];
    world.program.run(&finish).refused(1, "boot --abort");
    world.program.ok(&["boot", "--abort", "--yes"]);
    assert_over(&world, &clone.0);
    assert_eq!(run("virsh", &["domstate", &clone.0]).trim(), "running");
    run("virsh", &["destroy", &clone.0]);
    world.images.compare(&expected, &dir, "qcow2", "in the end");
}
