//! Guests that are only tried: `boot --test`.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use virtkeep_tests::{DiskSpec, MIB, Machine, run, stack, text, wait_until};

use crate::boot_space::SmallDisk;
use crate::guest::booted;
use crate::world::{World, id, unique_name};

/// A guest that has never run, whose kernel gets these words, and a point of it.
fn guest(words: &str) -> (World, String) {
    guest_with(&["--words", words])
}

/// The same; `words` go to `domain-xml`.
fn guest_with(words: &[&str]) -> (World, String) {
    let boot = run(stack("guest.sh"), &["build"]);
    with_point(|dir| {
        let disk = dir.join("a.qcow2");
        run(stack("guest.sh"), &["disk", text(&disk), "64M"]);
        let words = [&["--boot", boot.trim()][..], words].concat();
        Machine::define_with(dir, &unique_name(), &[disk], &words)
    })
}

/// A domain that has never run, and a point of it.
fn with_point(make: impl FnOnce(&Path) -> Machine) -> (World, String) {
    let world = World::with(|dir| make(dir.path()));
    let point = world.program.backup(&world.machine.uuid, &[]);
    let point = id(&point).to_owned();
    (world, point)
}

/// Where a world has its trials.
fn place(world: &World) -> PathBuf {
    let to = world.path("trials");
    std::fs::create_dir_all(&to).unwrap();
    to
}

/// Tries a point: whether it has passed, and what was seen. That it is noted so and that nothing is left is
/// looked at, too.
fn test(world: &World, point: &str, words: &[&str]) -> (bool, String) {
    let to = place(world);
    let all = ["--json", "boot", point, "--test", "--to", text(&to)];
    let ran = world.program.run(&[&all[..], words].concat());
    assert_nothing_left(world);
    let line = ran.line("boot-test");
    let passed = line["passed"].as_bool().unwrap();
    assert_eq!(ran.code(), Some(if passed { 0 } else { 3 }), "{ran:?}");
    let shown = world.program.ok(&["--json", "show", point]).line("point");
    let noted = shown["boot_tests"].as_array().unwrap().last().unwrap();
    for part in ["passed", "seen"] {
        assert_eq!(noted[part], line[part], "{noted}");
    }
    (passed, line["seen"].as_str().unwrap().to_owned())
}

/// What shows on the host that a machine is tried.
fn traces(world: &World) -> Vec<PathBuf> {
    let name = format!("{}-test-", world.machine.name);
    // A long one is cut.
    let name: String = name.chars().take(24).collect();
    let places = [
        place(world),
        PathBuf::from("/run/libvirt/virtkeep"),
        PathBuf::from("/run/libvirt/qemu"),
        PathBuf::from("/var/log/libvirt/qemu"),
        PathBuf::from("/var/lib/libvirt/qemu/nvram"),
    ];
    let mut found = Vec::new();
    for dir in &places {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.starts_with(&places[0]) || text(&path).contains(&name) {
                found.push(path);
            }
        }
    }
    found
}

#[track_caller]
fn assert_nothing_left(world: &World) {
    assert_eq!(traces(world), [""; 0].map(PathBuf::from));
}

#[test]
fn a_guest_that_starts_fast_and_then_leaves_its_disks_alone_is_alive() {
    let (world, point) = guest("mute writes");
    let (passed, seen) = test(&world, &point, &[]);
    assert!(passed && seen.contains("has computed for"), "{seen}");
}

#[test]
fn a_guest_that_panics_is_not_alive_whatever_it_did_before() {
    // Its processor spins for ever.
    let (world, point) = guest("mute writes panics panic=0");
    let (passed, seen) = test(&world, &point, &["--wait", "40"]);
    assert!(!passed && seen.contains("has computed for"), "{seen}");
}

#[test]
fn a_guest_that_floods_its_console_is_listened_to_for_as_long_as_was_said() {
    let (world, point) = guest("mute floods");
    let words = ["--expect", "something else", "--wait", "12"];
    let (passed, seen) = test(&world, &point, &words);
    assert!(!passed && seen.contains("does not say"), "{seen}");
}

#[test]
fn a_test_is_refused_where_its_images_would_take_the_space_of_others() {
    let (world, point) = with_point(|dir| {
        let disk = DiskSpec::new("a.qcow2", MIB);
        Machine::define(dir, &unique_name(), &[disk])
    });
    let to = SmallDisk::at(place(&world), 64);
    let words = ["boot", &point, "--test", "--to", text(to.path())];
    world.program.run(&words).refused(1, "must stay free there");
    assert_nothing_left(&world);
}

#[test]
fn a_guest_that_stops_or_restarts_is_not_alive() {
    for words in ["mute halts", "mute panics panic=1"] {
        let (world, point) = guest(words);
        let (passed, seen) = test(&world, &point, &[]);
        assert!(!passed && seen.contains("shut down or restarted"), "{seen}");
        // What it said before it stopped was heard.
        let (passed, seen) = test(&world, &point, &["--expect", "guest: up"]);
        assert!(passed, "{seen}");
    }
}

#[test]
fn a_guest_without_anything_to_boot_is_not_alive() {
    let (world, point) = with_point(|dir| {
        let disk = DiskSpec::new("a.qcow2", 64 * MIB);
        Machine::define(dir, &unique_name(), &[disk])
    });
    let (passed, seen) = test(&world, &point, &["--wait", "6"]);
    assert!(!passed && seen.contains("has computed for"), "{seen}");
}

#[test]
fn a_guest_is_tried_however_long_its_name_is() {
    let (world, point) = with_point(|dir| {
        let disk = DiskSpec::new("a.qcow2", MIB);
        let name = format!("{}-{}", unique_name(), "ü".repeat(50));
        Machine::define(dir, &name, &[disk])
    });
    let (_, seen) = test(&world, &point, &["--wait", "1"]);
    assert!(seen.contains("has computed for"), "{seen}");
}

#[test]
fn an_agent_that_was_there_must_come_back() {
    let world = booted(&["--busy"]);
    let machine = &world.machine;
    let xml = machine.virsh("dumpxml", &["--inactive"]);
    let mute = xml.replace("panic=1 busy", "panic=1 mute busy reads");
    assert_ne!(mute, xml);
    machine.define_xml(&mute);
    let point = world.back_up(&[]);
    machine.power_off();
    let (passed, seen) = test(&world, id(&point), &["--wait", "30"]);
    let missing = "which was there when the point was made, does not answer";
    assert!(!passed && seen.contains(missing), "{seen}");
}

#[test]
fn firmware_variables_that_the_point_does_not_hold_are_made_for_the_test_alone() {
    let (world, point) = guest_with(&["--uefi", "--words", "mute"]);
    let (passed, seen) = test(&world, &point, &["--expect", "guest: up"]);
    assert!(passed, "{seen}");
}

#[test]
fn a_guest_that_libvirt_does_not_start_is_not_alive() {
    let (world, point) = with_point(|dir| {
        let disk = DiskSpec::new("a.qcow2", 64 * MIB);
        let machine = Machine::define(dir, &unique_name(), &[disk]);
        let xml = machine.virsh("dumpxml", &["--inactive"]);
        let memory = xml.replace("<memory unit='KiB'>16384<", "<memory unit='TiB'>4000<");
        let memory = memory.replace("<currentMemory unit='KiB'>16384</currentMemory>", "");
        assert_ne!(memory, xml);
        machine.define_xml(&memory);
        machine
    });
    let (passed, seen) = test(&world, &point, &[]);
    assert!(!passed && seen.starts_with("it does not start:"), "{seen}");
    let listed: Value = world.program.ok(&["--json", "list"]).line("point");
    assert_eq!(listed["boot_tests"][0]["passed"], false);
}

#[test]
fn what_a_test_left_that_was_killed_the_next_one_removes() {
    let (world, point) = guest("mute reads");
    let to = place(&world);
    let words = ["boot", &point, "--test", "--to", text(&to)];
    let killed = world.program.start(&words);
    wait_until("its guest runs", || {
        let is_pid_file = |path: &PathBuf| path.extension().is_some_and(|end| end == "pid");
        traces(&world).iter().any(is_pid_file)
    });
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(!traces(&world).is_empty());
    let (passed, seen) = test(&world, &point, &["--expect", "guest: up"]);
    assert!(passed, "{seen}");
}
