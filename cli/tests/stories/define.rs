//! `restore --define`, on libvirt's built-in test driver: it checks and takes definitions like the
//! others, forgets them with the process, and always has a domain called `test`.

use virtkeep_repo::FileRole;

use crate::world::{TestDomain, World, disk};

const XML: &[u8] = b"<domain type='test'>
  <name>web1</name>
  <uuid>11111111-1111-1111-1111-111111111111</uuid>
  <memory unit='MiB'>64</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/web1'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:11:11:11'/>
      <source network='default'/>
    </interface>
  </devices>
</domain>
";

fn world_with_web1() -> World {
    let world = World::new();
    let vda = disk(1);
    world.add(TestDomain {
        files: vec![(FileRole::DomainXml, "domain.xml", XML)],
        ..TestDomain::web1(&vda)
    });
    world
}

#[test]
fn an_original_is_defined_with_its_identity_and_started() {
    let world = world_with_web1();
    let ran = world.ok(&[
        "restore",
        "web1@latest",
        "--to",
        "out",
        "--define",
        "--as-original",
        "--start",
        "--json",
    ]);
    let line = &ran.json()[0];
    assert_eq!(line["type"], "restored");
    assert_eq!(line["defined"]["name"], "web1");
    assert_eq!(
        line["defined"]["uuid"],
        "11111111-1111-1111-1111-111111111111"
    );
    assert_eq!(line["defined"]["started"], true);
    assert_eq!(line["disks"][0]["to"], world.text("out/vda.qcow2"));
    // What the point held stays as it was.
    assert_eq!(std::fs::read(world.path("out/domain.xml")).unwrap(), XML);
}

#[test]
fn a_clone_is_defined_under_another_uuid() {
    let world = world_with_web1();
    let name = "web1 copy & more <ü>";
    let ran = world.ok(&[
        "restore",
        "web1@latest",
        "--to",
        "out",
        "--define",
        "--name",
        name,
        "--json",
    ]);
    let defined = &ran.json()[0]["defined"];
    assert_eq!(defined["name"], name);
    assert_ne!(defined["uuid"], "11111111-1111-1111-1111-111111111111");
    assert_eq!(defined["started"], false);
}

#[test]
fn a_name_that_exists_is_refused_before_anything_is_restored() {
    let world = world_with_web1();
    let restore = ["restore", "web1@latest", "--to", "out", "--define"];
    world
        .run(&[&restore[..], &["--name", "test"]].concat())
        .refused(1, "a domain named test exists");
    world
        .run(&[&restore[..], &["--name", "a\u{1b}b"]].concat())
        .refused(1, "control characters");
    assert!(!world.path("out").exists());
}

#[test]
fn a_definition_needs_a_name_and_all_disks() {
    let world = world_with_web1();
    let restore = ["restore", "web1@latest", "--to", "out", "--define"];
    world.run(&restore).refused(2, "--as-original");
    world
        .run(&[&restore[..], &["--name", "a", "--as-original"]].concat())
        .refused(2, "cannot be used with");
    world
        .run(&[&restore[..], &["--name", "a", "--disk", "vda"]].concat())
        .refused(2, "cannot be used with");
    world
        .run(&["restore", "web1@latest", "--to", "out", "--start"])
        .refused(2, "--define");
}

#[test]
fn a_point_without_xml_cannot_be_defined() {
    let world = World::new();
    let vda = disk(2);
    world.add(TestDomain::web1(&vda));
    world
        .run(&[
            "restore",
            "web1@latest",
            "--to",
            "out",
            "--define",
            "--name",
            "a",
        ])
        .refused(1, "holds no domain XML");
}

#[test]
fn a_libvirt_that_does_not_answer_is_named() {
    let world = world_with_web1();
    let uri = format!("qemu+unix:///system?socket={}", world.text("nobody.sock"));
    world
        .run(&[
            "-c",
            &uri,
            "restore",
            "web1@latest",
            "--to",
            "out",
            "--define",
            "--name",
            "a",
        ])
        .refused(1, "cannot connect to libvirt at qemu+unix");
    assert!(!world.path("out").exists());
}
