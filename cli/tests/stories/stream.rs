//! `restore --to -`.

use crate::world::{TestDomain, World, disk};

#[test]
fn the_bytes_of_a_disk_come_in_order_on_standard_output() {
    let world = World::new();
    // Longer than several windows of the stream.
    let vda = disk(1).repeat(5);
    world.add(TestDomain::web1(&vda));
    let ran = world.ok(&["restore", "web1@latest", "--disk", "vda", "--to", "-"]);
    assert!(
        ran.out == vda,
        "{} bytes, {} expected",
        ran.out.len(),
        vda.len()
    );
}

#[test]
fn one_disk_has_to_be_chosen() {
    let world = World::new();
    let vda = disk(2);
    world.add(TestDomain {
        disks: vec![("vda", &vda), ("vdb", &vda)],
        ..TestDomain::web1(&vda)
    });
    world
        .run(&["restore", "web1@latest", "--to", "-"])
        .refused(2, "choose one disk with --disk: vda, vdb");
    world
        .run(&["restore", "web1/vda@latest", "--to", "-", "--json"])
        .refused(2, "both want standard output");
}

#[test]
fn a_reader_that_goes_away_is_an_error() {
    let world = World::new();
    let vda = disk(3).repeat(4);
    world.add(TestDomain::web1(&vda));
    let mut child = world
        .command(&["restore", "web1/vda@latest", "--to", "-"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot write to standard output"),
        "{stderr}"
    );
}
