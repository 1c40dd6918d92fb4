//! A point is one moment: what its disks held then, whatever happened before and after.

use rustix::process::Signal;
use virtkeep_tests::{MIB, text};

use crate::world::{World, id};

#[test]
fn a_point_shows_the_moment_of_its_checkpoint_though_the_guest_writes_on() {
    let world = World::with_disk(64 * MIB);
    let machine = &world.machine;
    machine.write_random(0, 1, 0, 48 * MIB);
    for mode in ["full", "incremental"] {
        let moment = world.now();
        let mut running = world.program.start(&["--json", "backup", &machine.uuid]);
        assert!(running.wait_for("backup begun with checkpoint"));
        // The program sleeps while the guest overwrites all it has, so that nearly everything is
        // read after it has been overwritten.
        running.signal(Signal::STOP);
        assert!(machine.has_job(), "it was too quick to be stopped");
        machine.write_random(0, 2, 0, 24 * MIB);
        machine.io(0, &format!("write -z -u {} {}", 24 * MIB, 12 * MIB));
        machine.io(0, &format!("discard {} {}", 36 * MIB, 12 * MIB));
        machine.io(0, &format!("write -P 7 {} {}", 48 * MIB + 1000, MIB));
        running.signal(Signal::CONT);
        let ran = running.wait();
        assert_eq!(ran.code(), Some(0), "{ran:?}");
        let point = ran.line("point");
        assert_eq!(point["disks"][0]["mode"], mode);
        world.assert_restores(id(&point), &moment);
        world.assert_tidy(id(&point));
        assert_ne!(world.now(), moment);
        machine.write_random(0, 3, 10 * MIB, 30 * MIB);
    }
}

#[test]
fn what_the_guest_zeroes_or_trims_between_two_points_is_not_there_in_the_second() {
    let world = World::with_disk(16 * MIB);
    world.machine.io(0, "write -P 0xaa 0 16M");
    let full = world.back_up(&[]);
    let all_written = world.now();
    world.machine.io(0, "write -z 1M 1M");
    world.machine.io(0, "write -z -u 3M 1M");
    world.machine.io(0, "discard 5M 1M");
    world.machine.io(0, "write -z 7000000 1001");
    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["mode"], "incremental");
    world.assert_restores(id(&point), &world.now());
    world.assert_restores(id(&full), &all_written);
}

#[test]
fn what_a_disk_lost_when_it_shrank_is_gone_though_it_grew_back() {
    let world = World::with_disk(32 * MIB + 512);
    let machine = &world.machine;
    machine.io(0, "write -P 0xaa 0 32M");
    world.back_up(&[]);
    for bytes in [16 * MIB + 512, 32 * MIB + 512] {
        machine.virsh("blockresize", &["vda", &format!("{bytes}B")]);
    }
    let point = world.back_up(&[]);
    world.assert_restores(id(&point), &world.now());
}

#[test]
fn also_of_an_overlay_whose_cut_was_in_the_middle_of_a_cluster() {
    let world = World::with_disk(16 * MIB);
    let machine = &world.machine;
    machine.io(0, "write -P 0xaa 0 16M");
    world.back_up(&[]);
    let overlay = format!("vda,file={}", text(&world.path("overlay.qcow2")));
    let words = ["--disk-only", "--no-metadata", "--diskspec", &overlay];
    machine.virsh("snapshot-create-as", &words);
    // QEMU fills the cluster of the cut with zeroes when the disk grows, and tells no bitmap.
    for bytes in [8 * MIB + 512 * 9, 16 * MIB] {
        machine.virsh("blockresize", &["vda", &format!("{bytes}B")]);
    }
    let point = world.back_up(&[]);
    world.assert_restores(id(&point), &world.now());
}

#[test]
fn and_of_one_that_was_merged_with_its_backing_image_since() {
    let world = World::with_disk(16 * MIB);
    let machine = &world.machine;
    machine.io(0, "write -P 0xaa 0 16M");
    let overlay = format!("vda,file={}", text(&world.path("overlay.qcow2")));
    let words = ["--disk-only", "--no-metadata", "--diskspec", &overlay];
    machine.virsh("snapshot-create-as", &words);
    world.back_up(&[]);
    for bytes in [8 * MIB + 512 * 9, 16 * MIB] {
        machine.virsh("blockresize", &["vda", &format!("{bytes}B")]);
    }
    // Afterwards nothing shows that the disk was an overlay when the point was made.
    machine.virsh("blockpull", &["vda", "--wait"]);
    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["reason"], "its backing images changed");
    world.assert_restores(id(&point), &world.now());
}

#[test]
fn a_disk_that_grew_is_read_behind_its_old_end_too() {
    let world = World::with_disk(16 * MIB + 512);
    let machine = &world.machine;
    machine.io(0, "write -P 0xaa 0 8M");
    world.back_up(&[]);
    machine.virsh("blockresize", &["vda", &format!("{}B", 40 * MIB)]);
    machine.io(0, "write -P 0xbb 16777000 70001");
    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["mode"], "incremental");
    assert_eq!(point["disks"][0]["size_bytes"], 40 * MIB);
    world.assert_restores(id(&point), &world.now());
}
