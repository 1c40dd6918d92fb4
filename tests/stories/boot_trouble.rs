//! What becomes of recoveries when something goes wrong beneath them.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use virtkeep_tests::{DiskSpec, MIB, Machine, run, text, wait_until};

use crate::boot::{
    assert_over, assert_tidy, boot, is_pinned, kill, kill_qemu, servers, status, two_disks,
};
use crate::guest::{booted, in_guest, wait_for_agent};
use crate::world::{World, id, unique_name};

/// A domain with a disk so large that the pull takes its time.
pub(crate) fn large() -> World {
    let world = World::with(|dir| {
        let disk = DiskSpec::new("a.qcow2", 6 << 30);
        Machine::define(dir.path(), &unique_name(), &[disk])
    });
    let machine = &world.machine;
    machine.start_paused();
    machine.write_random(0, 1, 3 * MIB, 9 * MIB);
    machine.write_random(0, 2, 5 << 30, 9 * MIB);
    world
}

/// Whether something is moved in right now.
pub(crate) fn has_job(uuid: &str) -> bool {
    run("virsh", &["blockjob", uuid, "vda", "--raw"]).contains("Pull")
}

/// Fails unless an image reads as another one.
pub(crate) fn compare(one: &Path, other: &Path) {
    let words = ["compare", "-q", "-f", "qcow2", "-F", "qcow2"];
    run(
        "qemu-img",
        &[&words[..], &[text(one), text(other)]].concat(),
    );
}

#[test]
fn a_recovery_that_is_being_finished_goes_on_by_itself_after_an_interruption() {
    let world = large();
    let point = world.back_up(&[]);
    world.machine.power_off();
    let (clone, dir) = boot(&world, id(&point), &[]);
    let uuid = &clone.0;
    let command = world.program.start(&["boot", "--finish"]);
    wait_until("the pull has begun", || has_job(uuid));
    command.signal(Signal::INT);
    let ran = command.wait();
    ran.refused(130, "goes on by itself");
    wait_until("it has ended", || !is_pinned(&world));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    assert_over(&world, uuid);
    kill_qemu(&format!("{}-boot", world.machine.name));
    compare(&world.machine.disks()[0].1, &dir.join("vda.qcow2"));
}

#[test]
fn a_server_that_cannot_serve_is_told_of_until_it_can() {
    let (world, point) = two_disks();
    let (clone, _) = boot(&world, &point, &[]);
    let name = format!("{}-boot", world.machine.name);
    let socket = PathBuf::from(format!(
        "/run/libvirt/virtkeep/nbd.tunnelmigrate.dest.{name}"
    ));
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    kill(&servers(&world.program)[1..]);
    let trouble = || {
        status(&world.program)["troubles"][0]
            .as_str()
            .map(str::to_owned)
    };
    wait_until("it is told", || {
        trouble().is_some_and(|trouble| trouble.contains("the server has ended"))
    });
    let said = world.program.ok(&["boot", "--status"]).stdout;
    assert!(said.contains("the server has ended"), "{said}");
    std::fs::remove_dir(&socket).unwrap();
    wait_until("all is well", || trouble().is_none());
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, &clone.0);
}

/// Damages the stored chunk that holds these bytes.
fn damage(world: &World, content: &[u8]) {
    let packs = run(
        "find",
        &[text(&world.program.repo().join("packs")), "-name", "*.pack"],
    );
    for pack in packs.lines() {
        let mut bytes = std::fs::read(pack).unwrap();
        let mut windows = bytes.windows(content.len());
        if let Some(at) = windows.position(|window| window == content) {
            bytes[at + content.len() / 2] ^= 1;
            std::fs::write(pack, bytes).unwrap();
            return;
        }
    }
    panic!("that is in no pack");
}

#[test]
fn what_is_damaged_ends_no_recovery_unless_it_is_given_up() {
    let (world, point) = two_disks();
    let expected = world.now();
    let raw = |target: &str| std::fs::read(world.images.path(&expected[target])).unwrap();
    let (vda, chunk) = (raw("vda"), 64 << 10);
    damage(&world, &vda[5 << 20..][..64]);
    // While the guest runs, and while it is off.
    for is_off in [false, true] {
        let (clone, dir) = boot(&world, &point, &[]);
        let (uuid, name) = (&clone.0, format!("{}-boot", world.machine.name));
        if is_off {
            run("virsh", &["destroy", uuid]);
        }
        let ran = world.program.run(&["boot", "--finish"]);
        ran.refused(4, "vda: bytes 5242880 to 5308416 (64 KiB) cannot be read");
        ran.refused(4, "--finish --salvage");
        assert!(is_pinned(&world));

        let ran = world
            .program
            .run(&["--json", "boot", "--finish", "--salvage"]);
        ran.refused(3, "vda: bytes 5242880 to 5308416 (64 KiB) are lost");
        let line = ran.line("recovered");
        assert_eq!(line["lost"].as_array().unwrap().len(), 1, "{line}");
        assert_eq!(line["lost"][0]["target"], "vda");
        assert_eq!(line["lost"][0]["start"], 5 << 20);
        assert_tidy(&world);
        if !is_off {
            kill_qemu(&name);
        }
        let list = std::fs::read_to_string(dir.join("lost-ranges.jsonl")).unwrap();
        assert!(list.contains("\"start\":5242880,\"end\":5308416"), "{list}");
        let mut left = vda.clone();
        left[5 << 20..(5 << 20) + chunk].fill(0);
        for (target, expected) in [("vda", left), ("vdb", raw("vdb"))] {
            let (image, raw) = (dir.join(format!("{target}.qcow2")), world.path("expected"));
            std::fs::write(&raw, expected).unwrap();
            let words = ["compare", "-q", "-f", "qcow2", "-F", "raw"];
            run(
                "qemu-img",
                &[&words[..], &[text(&image), text(&raw)]].concat(),
            );
        }
        drop(clone);
        for image in ["vda.qcow2", "vdb.qcow2"] {
            std::fs::remove_file(dir.join(image)).unwrap();
        }
        // Another one would take the list for its own, and give up what it may not.
        let again = ["boot", &point, "--to", text(&dir)];
        let ran = world.program.run(&again);
        ran.refused(1, "lost-ranges.jsonl already exists");
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn a_guest_that_reads_what_is_damaged_waits_until_that_is_given_up() {
    let world = booted(&[]);
    let machine = &world.machine;
    let make = "dd if=/dev/urandom of=/disks/vda/file bs=64k count=16 2>&1; sync";
    in_guest(&machine.uuid, make);
    let show = "dd if=/disks/vda/file bs=1 count=64 2>/dev/null | od -An -v -tx1";
    let digits = in_guest(&machine.uuid, show);
    let bytes = digits
        .split_whitespace()
        .map(|digits| u8::from_str_radix(digits, 16).unwrap());
    let content: Vec<u8> = bytes.collect();
    let point = world.back_up(&[]);
    machine.power_off();
    damage(&world, &content);

    let (clone, dir) = boot(&world, id(&point), &[]);
    let uuid = &clone.0;
    wait_for_agent(uuid);
    in_guest(uuid, "(sleep 3; cat /disks/vda/file) >/dev/null 2>&1 &");
    wait_until("it is told why the guest waits", || {
        let seen = status(&world.program);
        let told = seen["troubles"][0].as_str().unwrap_or_default();
        seen["state"] == "waiting" && told.contains("cannot be read from the repository")
    });
    let ran = world
        .program
        .run(&["--json", "boot", "--finish", "--salvage"]);
    ran.refused(3, "are lost");
    assert_eq!(ran.line("recovered")["lost"].as_array().unwrap().len(), 1);
    wait_for_agent(uuid);
    assert_tidy(&world);
    assert!(dir.join("lost-ranges.jsonl").exists());
}

#[test]
fn a_recovery_from_a_point_without_any_manifest_keeps_at_least_what_its_guest_wrote() {
    let (world, point) = two_disks();
    let (clone, dir) = boot(&world, &point, &[]);
    run("virsh", &["destroy", &clone.0]);
    let overlay = dir.join("vda.qcow2");
    let written = "write -q -P 0x77 4000k 100k";
    run("qemu-io", &["-f", "qcow2", "-c", written, text(&overlay)]);
    kill(&servers(&world.program));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    // The small pack is the one without data.
    let packs = run(
        "find",
        &[text(&world.program.repo().join("packs")), "-name", "*.pack"],
    );
    let small = packs
        .lines()
        .min_by_key(|pack| std::fs::metadata(pack).unwrap().len());
    let mut bytes = std::fs::read(small.unwrap()).unwrap();
    bytes.iter_mut().skip(64).for_each(|byte| *byte ^= 1);
    std::fs::write(small.unwrap(), bytes).unwrap();

    let ran = world.program.run(&["boot", "--finish"]);
    ran.refused(1, "--finish --salvage");
    let ran = world
        .program
        .run(&["--json", "boot", "--finish", "--salvage"]);
    ran.refused(3, "vda: bytes 0 to 67108864 (64 MiB) are lost");
    ran.refused(3, "vdb: bytes 0 to 41943552 (40 MiB) are lost");
    assert_tidy(&world);
    for read in ["read -q -P 0x77 4000k 100k", "read -q -P 0 5M 50M"] {
        run(
            "qemu-io",
            &["-f", "qcow2", "-r", "-c", read, text(&overlay)],
        );
    }
}
