//! `restore --onto`: over an NBD export and over a block device.

use std::process::Command;

use crate::world::{NbdServer, TestDomain, World, disk, tool};

#[test]
fn an_export_is_overwritten_zeroes_included() {
    let world = World::new();
    let vda = disk(1);
    world.add(TestDomain::web1(&vda));
    let target = world.path("target.raw");
    std::fs::write(&target, vec![0xee; vda.len() + 65536]).unwrap();
    let server = NbdServer::qemu(&world, "raw", &target);
    let ran = world.ok(&["restore", "web1/vda@latest", "--onto", &server.uri, "--yes"]);
    assert!(ran.stderr.contains("its last 64 KiB stay"), "{ran:#?}");
    let written = std::fs::read(&target).unwrap();
    assert!(written[..vda.len()] == vda);
    assert!(written[vda.len()..].iter().all(|byte| *byte == 0xee));
}

#[test]
fn a_server_that_cannot_write_zeroes_gets_them_as_data() {
    let world = World::new();
    let vda = disk(2);
    world.add(TestDomain::web1(&vda));
    let target = world.path("target.raw");
    std::fs::write(&target, vec![0xee; vda.len()]).unwrap();
    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--filter=nozero", "file"]);
    nbdkit.arg(&target).arg("--unix").arg(&socket);
    let server = NbdServer::start(&mut nbdkit, &socket);
    world.ok(&["restore", "web1/vda@latest", "--onto", &server.uri, "--yes"]);
    assert!(std::fs::read(&target).unwrap() == vda);
}

#[test]
fn a_failing_server_fails_the_restore() {
    let world = World::new();
    let vda = disk(3);
    world.add(TestDomain::web1(&vda));
    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args([
        "--foreground",
        "--filter=error",
        "memory",
        "13M",
        "error-pwrite-rate=100%",
    ]);
    nbdkit.arg("--unix").arg(&socket);
    let server = NbdServer::start(&mut nbdkit, &socket);
    world
        .run(&["restore", "web1/vda@latest", "--onto", &server.uri, "--yes"])
        .refused(1, "cannot restore vda onto nbd+unix");
}

#[test]
fn a_target_is_shown_and_not_touched_without_consent() {
    let world = World::new();
    let vda = disk(4);
    world.add(TestDomain::web1(&vda));
    let target = world.path("target.raw");
    std::fs::File::create(&target)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    tool(
        "mkfs.ext4",
        &["-q", "-L", "precious", target.to_str().unwrap()],
    );
    let before = std::fs::read(&target).unwrap();
    let server = NbdServer::qemu(&world, "raw", &target);
    let ran = world.run(&["restore", "web1/vda@latest", "--onto", &server.uri]);
    ran.refused(2, "pass --yes");
    assert!(
        ran.stderr.contains("(64 MiB) holds ext4 labelled precious"),
        "{ran:#?}"
    );
    assert!(std::fs::read(&target).unwrap() == before);
}

#[test]
fn targets_that_cannot_take_the_disk_are_refused() {
    let world = World::new();
    let vda = disk(5);
    world.add(TestDomain::web1(&vda));
    let small = world.path("small.raw");
    std::fs::write(&small, vec![0xee; 1 << 20]).unwrap();
    let server = NbdServer::qemu(&world, "raw", &small);
    world
        .run(&["restore", "web1/vda@latest", "--onto", &server.uri, "--yes"])
        .refused(1, "is too small: it has 1 MiB (1048576 bytes)");
    assert!(
        std::fs::read(&small)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0xee)
    );
    world
        .run(&["restore", "web1/vda@latest", "--onto", "small.raw", "--yes"])
        .refused(1, "small.raw is not a block device");
    world
        .run(&[
            "restore",
            "web1/vda@latest",
            "--onto",
            "/dev/no-such",
            "--yes",
        ])
        .refused(1, "/dev/no-such");
    let gone = format!("nbd+unix:///?socket={}", world.text("nobody.sock"));
    world
        .run(&["restore", "web1/vda@latest", "--onto", &gone, "--yes"])
        .refused(1, "cannot connect to nbd+unix");
}

/// A loop device on a file; only root can have one.
struct Loop(String);

impl Loop {
    fn on(file: &str) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", file])
            .output()
            .unwrap();
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            eprintln!("not tried: no loop device here ({})", why.trim());
            return None;
        }
        Some(Self(
            String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        ))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_overwritten_zeroes_included() {
    let world = World::new();
    let vda = disk(6);
    world.add(TestDomain::web1(&vda));
    std::fs::write(world.path("target"), vec![0xee; vda.len() + 4096]).unwrap();
    let Some(device) = Loop::on(&world.text("target")) else {
        return;
    };
    let ran = world.ok(&["restore", "web1/vda@latest", "--onto", &device.0, "--yes"]);
    assert!(
        ran.stderr.contains("holds data of an unknown kind"),
        "{ran:#?}"
    );
    drop(device);
    let written = std::fs::read(world.path("target")).unwrap();
    assert!(written[..vda.len()] == vda);
    assert!(written[vda.len()..].iter().all(|byte| *byte == 0xee));
}

#[test]
fn a_mounted_device_is_refused() {
    let world = World::new();
    let vda = disk(7);
    world.add(TestDomain::web1(&vda));
    let file = world.text("target");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    tool("mkfs.ext4", &["-q", &file]);
    let Some(device) = Loop::on(&file) else {
        return;
    };
    std::fs::create_dir(world.path("mounted")).unwrap();
    tool("mount", &[&device.0, &world.text("mounted")]);
    let ran = world.run(&["restore", "web1/vda@latest", "--onto", &device.0, "--yes"]);
    tool("umount", &[&world.text("mounted")]);
    ran.refused(1, &format!("is mounted at {}", world.text("mounted")));
}
