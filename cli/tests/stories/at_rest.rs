//! `backup --image` and `backup --nbd`, there and back again.

use std::process::Command;

use crate::world::{NbdServer, World, disk, tool};

#[test]
fn a_raw_image_comes_back_byte_for_byte() {
    let world = World::new();
    let image = disk(1);
    std::fs::write(world.path("old.raw"), &image).unwrap();
    let ran = world.ok(&["backup", "--image", "old.raw", "--name", "old server"]);
    assert!(ran.stdout.starts_with("old server@"), "{ran:#?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:#?}");
    world.ok(&[
        "restore",
        "old server@latest",
        "--to",
        "out",
        "--format",
        "raw",
    ]);
    assert_eq!(world.names("out"), ["disk.raw"]);
    assert!(std::fs::read(world.path("out/disk.raw")).unwrap() == image);
}

#[test]
fn a_second_backup_of_an_image_stores_only_what_changed() {
    let world = World::new();
    let mut image = disk(2);
    std::fs::write(world.path("old.raw"), &image).unwrap();
    let backup = ["backup", "--image", "old.raw", "--name", "old", "--json"];
    world.ok(&backup);
    image[3_500_000] ^= 1;
    std::fs::write(world.path("old.raw"), &image).unwrap();
    let ran = world.ok(&backup);
    let lines = ran.json();
    assert_eq!(lines[0]["type"], "point");
    assert_eq!(lines[0]["disks"][0]["mode"], "full");
    assert_eq!(lines[0]["disks"][0]["new_bytes"], 65536);
    assert_eq!(lines.last().unwrap()["type"], "summary");
    assert_eq!(lines.last().unwrap()["points"], 1);
    world.ok(&["restore", "old@latest", "--to", "out", "--format", "raw"]);
    assert!(std::fs::read(world.path("out/disk.raw")).unwrap() == image);
}

#[test]
fn a_qcow2_image_is_recognised_and_read_as_a_disk() {
    let world = World::new();
    let image = disk(3);
    std::fs::write(world.path("old.raw"), &image).unwrap();
    let (raw, qcow2) = (world.text("old.raw"), world.text("old.qcow2"));
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &qcow2],
    );
    world.ok(&["backup", "--image", "old.qcow2", "--name", "old"]);
    world.ok(&["restore", "old@latest", "--to", "out"]);
    let restored = world.text("out/disk.qcow2");
    tool(
        "qemu-img",
        &["compare", "-q", "-f", "raw", "-F", "qcow2", &raw, &restored],
    );
}

#[test]
fn an_nbd_export_comes_back_byte_for_byte() {
    let world = World::new();
    let image = disk(4);
    std::fs::write(world.path("export.raw"), &image).unwrap();
    let server = NbdServer::qemu(&world, "raw", &world.path("export.raw"));
    world.ok(&["backup", "--nbd", &server.uri, "--name", "appliance"]);
    let ran = world.ok(&["restore", "appliance/disk@latest", "--to", "-"]);
    assert!(ran.out == image);
}

#[test]
fn an_export_that_fails_makes_no_point() {
    let world = World::new();
    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--filter=error", "pattern", "64M"]);
    nbdkit.args(["error-pread-rate=50%", "--unix"]).arg(&socket);
    let server = NbdServer::start(&mut nbdkit, &socket);
    let ran = world.run(&["backup", "--nbd", &server.uri, "--name", "a", "--json"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let lines = ran.json();
    assert_eq!(lines[0]["type"], "error");
    assert_eq!(lines[0]["domain"], "a");
    assert_eq!(lines[1]["failed"], 1);
    assert!(world.ok(&["list"]).stdout.contains("No points yet"));
}

#[test]
fn hostile_names_are_kept_exactly() {
    let world = World::new();
    std::fs::write(world.path("old.raw"), vec![7; 65536]).unwrap();
    for name in ["..", "a/b@c d", "\u{1b}[2J\n", "日本", &"x".repeat(200)] {
        world.ok(&["backup", "--image", "old.raw", "--name", name]);
        let ran = world.ok(&["show", &format!("{name}@latest"), "--json"]);
        assert_eq!(ran.json()[0]["domain"], name);
    }
    let names = ["image", "old.raw", "repo"];
    let there = world.names(".");
    assert!(
        there.iter().all(|name| names.contains(&name.as_str())),
        "{there:?}"
    );
}

#[test]
fn what_is_no_image_is_refused() {
    let world = World::new();
    let backup = |file: &str| world.run(&["backup", "--image", file, "--name", "a"]);
    backup("missing.raw").refused(1, "missing.raw");
    backup(".").refused(1, "");
    let gone = format!("nbd+unix:///?socket={}", world.text("nobody.sock"));
    world
        .run(&["backup", "--nbd", &gone, "--name", "a"])
        .refused(1, "cannot read");
    assert!(world.ok(&["list"]).stdout.contains("No points yet"));
}
