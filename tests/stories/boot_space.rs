//! Recoveries where there is little space for their images.

use std::path::{Path, PathBuf};

use virtkeep_tests::{MIB, run, text, wait_until};

use crate::boot::{assert_over, boot, is_pinned, kill_qemu, servers, status};
use crate::boot_trouble::{compare, has_job, large};
use crate::guest::{assert_all_right, booted, in_guest, wait_for_agent};
use crate::world::{World, id};

/// A file system of its own where images go.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(world: &World, mib: u64) -> Self {
        let dir = world.path("boot");
        std::fs::create_dir(&dir).unwrap();
        Self::at(dir, mib)
    }

    pub(crate) fn at(dir: PathBuf, mib: u64) -> Self {
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size(mib), "tmpfs", text(&dir)],
        );
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn resize(&self, mib: u64) {
        let options = format!("remount,{}", size(mib));
        run("mount", &["-o", &options, text(&self.0)]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["--lazy", text(&self.0)]);
    }
}

fn size(mib: u64) -> String {
    format!("size={mib}m")
}

/// Writes bytes of one value to the first disk of a running domain, as its guest does.
fn write(uuid: &str, start: u64, len: u64) {
    let device = "/machine/peripheral/virtio-disk0/virtio-backend";
    let monitor = format!("qemu-io -d {device} \"write -q -P 0x77 {start} {len}\"");
    let words = ["--quiet", "qemu-monitor-command", uuid, "--hmp", &monitor];
    let said = run("virsh", &words);
    assert!(said.trim().is_empty(), "{said}");
}

fn assert_ends_by_itself(world: &World, uuid: &str) {
    wait_until("it has ended", || !is_pinned(world));
    wait_until("nobody serves", || servers(&world.program).is_empty());
    assert_over(world, uuid);
}

#[test]
fn the_pull_stops_before_it_takes_the_space_that_the_guest_needs() {
    let world = large();
    let machine = &world.machine;
    let point = world.back_up(&[]);
    machine.power_off();
    // 2 GiB must stay free.
    let disk = SmallDisk::new(&world, 2200);
    let (clone, dir) = boot(&world, id(&point), &[]);
    let uuid = &clone.0;
    let finish = ["boot", "--finish"];
    let command = world.program.start(&finish);
    wait_until("the pull has begun", || has_job(uuid));
    disk.resize(2000);
    command.wait().refused(1, "must stay for what it writes");
    wait_until("the pull has stopped", || !has_job(uuid));
    // Nor does it begin.
    world.program.run(&finish).refused(1, text(&dir));
    let seen = status(&world.program);
    assert_eq!(seen["state"], "running");
    assert!(seen["free_bytes"].as_u64().unwrap() < 2000 * MIB, "{seen}");
    let told = seen["troubles"][0].as_str().unwrap();
    assert!(told.contains(text(&dir)), "{seen}");
    write(uuid, 4 * MIB, 300 * 1024);

    disk.resize(2200);
    assert_ends_by_itself(&world, uuid);
    kill_qemu(&format!("{}-boot", machine.name));
    let original = &machine.disks()[0].1;
    let written = "write -q -P 0x77 4M 300k";
    run("qemu-io", &["-f", "qcow2", "-c", written, text(original)]);
    compare(original, &dir.join("vda.qcow2"));
}

#[test]
fn a_guest_without_space_for_its_writes_stands_still_until_there_is_some() {
    let world = booted(&["--busy"]);
    let point = world.back_up(&[]);
    world.machine.power_off();
    let disk = SmallDisk::new(&world, 24);
    let (clone, dir) = boot(&world, id(&point), &[]);
    let uuid = &clone.0;
    wait_for_agent(uuid);
    in_guest(
        uuid,
        "(sleep 3; dd if=/dev/urandom of=/disks/vda/big bs=1M count=60) >/dev/null 2>&1 &",
    );
    wait_until("no space is left", || {
        status(&world.program)["state"] == "no-space"
    });
    let finish = ["boot", "--finish"];
    world.program.run(&finish).refused(1, "make room");
    let seen = status(&world.program);
    assert_eq!(seen["state"], "no-space");
    assert!(
        seen["troubles"][0].as_str().unwrap().contains(text(&dir)),
        "{seen}"
    );

    disk.resize(3000);
    assert_ends_by_itself(&world, uuid);
    wait_until("all has been written", || {
        in_guest(uuid, "pidof dd || true").trim().is_empty()
    });
    let len = in_guest(uuid, "sync; stat -c %s /disks/vda/big");
    assert_eq!(len.trim(), (60 * MIB).to_string());
    assert_all_right(uuid);
}
