//! `restore --to DIR`.

use std::os::unix::fs::MetadataExt;

use virtkeep_repo::FileRole;

use crate::world::{NOON, TestDomain, World, disk, tool};

#[test]
fn a_raw_restore_is_byte_identical_and_sparse() {
    let world = World::new();
    let (vda, vdb) = (disk(1), disk(2));
    world.add(TestDomain {
        disks: vec![("vda", &vda), ("vdb", &vdb)],
        ..TestDomain::web1(&vda)
    });
    world.ok(&["restore", "web1@latest", "--to", "out", "--format", "raw"]);
    assert_eq!(world.names("out"), ["vda.raw", "vdb.raw"]);
    assert!(std::fs::read(world.path("out/vda.raw")).unwrap() == vda);
    assert!(std::fs::read(world.path("out/vdb.raw")).unwrap() == vdb);
    let metadata = std::fs::metadata(world.path("out/vda.raw")).unwrap();
    assert!(metadata.blocks() * 512 < 4 << 20, "{metadata:?}");
}

#[test]
fn a_qcow2_restore_reads_the_same_and_is_a_sound_image() {
    let world = World::new();
    let vda = disk(3);
    world.add(TestDomain::web1(&vda));
    world.ok(&["restore", "web1@latest", "--to", "out"]);
    assert_eq!(world.names("out"), ["vda.qcow2"]);
    let image = world.text("out/vda.qcow2");
    std::fs::write(world.path("expected"), &vda).unwrap();
    let expected = world.text("expected");
    tool("qemu-img", &["check", "-q", &image]);
    tool(
        "qemu-img",
        &[
            "compare", "-q", "-f", "raw", "-F", "qcow2", &expected, &image,
        ],
    );
    let metadata = std::fs::metadata(&image).unwrap();
    assert!(metadata.blocks() * 512 < 4 << 20, "{metadata:?}");
}

#[test]
fn every_point_comes_back_as_it_was() {
    let world = World::new();
    let mut content = disk(4);
    let first = content.clone();
    world.add(TestDomain::web1(&content));
    content[3 << 20..5 << 20].fill(0);
    content[70_000] ^= 1;
    world.add(TestDomain {
        time: NOON + 60_000,
        ..TestDomain::web1(&content)
    });
    world.ok(&["restore", "web1@latest", "--to", "new", "--format", "raw"]);
    world.ok(&["restore", "web1@latest~1", "--to", "old", "--format", "raw"]);
    let ran = world.ok(&[
        "restore",
        "web1@2026-11-22T11:00",
        "--to",
        "at",
        "--format",
        "raw",
    ]);
    assert!(
        ran.stderr.contains("restoring web1@2026-11-22T11:00:00 (p"),
        "{ran:#?}"
    );
    assert!(std::fs::read(world.path("new/vda.raw")).unwrap() == content);
    assert!(std::fs::read(world.path("old/vda.raw")).unwrap() == first);
    assert!(std::fs::read(world.path("at/vda.raw")).unwrap() == first);
}

#[test]
fn the_domains_files_lie_beside_its_disks() {
    let world = World::new();
    let vda = disk(5);
    world.add(TestDomain {
        files: vec![
            (FileRole::DomainXml, "domain.xml", b"<domain/>"),
            (FileRole::NetworkXml, "../evil", b"<network/>"),
            (FileRole::NetworkXml, "default", b"<network/>"),
            (
                FileRole::Nvram,
                "/var/lib/libvirt/qemu/nvram/web1.fd",
                b"variables",
            ),
            (FileRole::Log, "log", b"0 begun\n"),
        ],
        ..TestDomain::web1(&vda)
    });
    world.ok(&[
        "restore",
        "web1@latest",
        "--to",
        "a/b/out",
        "--format",
        "raw",
    ]);
    assert_eq!(
        world.names("a/b/out"),
        [
            "domain.xml",
            "network-%2E.%2Fevil.xml",
            "network-default.xml",
            "nvram.fd",
            "vda.raw"
        ]
    );
    assert_eq!(
        std::fs::read(world.path("a/b/out/nvram.fd")).unwrap(),
        b"variables"
    );
}

#[test]
fn nothing_that_exists_is_overwritten_without_force() {
    let world = World::new();
    let vda = disk(6);
    world.add(TestDomain {
        disks: vec![("vda", &vda), ("vdb", &vda)],
        ..TestDomain::web1(&vda)
    });
    std::fs::create_dir(world.path("out")).unwrap();
    std::fs::write(world.path("out/vdb.raw"), "precious").unwrap();
    let restore = ["restore", "web1@latest", "--to", "out", "--format", "raw"];
    let ran = world.run(&restore);
    ran.refused(1, "out/vdb.raw already exists");
    assert!(ran.stderr.contains("--force"), "{ran:#?}");
    assert_eq!(world.names("out"), ["vdb.raw"]);
    assert_eq!(
        std::fs::read(world.path("out/vdb.raw")).unwrap(),
        b"precious"
    );

    world.ok(&[&restore[..], &["--force"]].concat());
    assert!(std::fs::read(world.path("out/vdb.raw")).unwrap() == vda);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let world = World::new();
    let vda = disk(7);
    world.add(TestDomain::web1(&vda));
    world.damage_packs();
    let ran = world.run(&["restore", "web1@latest", "--to", "out"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(!world.path("out").exists());
}

#[test]
fn only_the_disks_asked_for_are_restored() {
    let world = World::new();
    let (vda, vdb) = (disk(8), disk(9));
    world.add(TestDomain {
        disks: vec![("vda", &vda), ("vdb", &vdb), ("../../vdc", &vda)],
        ..TestDomain::web1(&vda)
    });
    let raw = ["--format", "raw"];
    world.ok(&[
        &["restore", "web1@latest", "--disk", "vdb", "--to", "b"],
        &raw[..],
    ]
    .concat());
    assert_eq!(world.names("b"), ["vdb.raw"]);
    world.ok(&[&["restore", "web1/vda@latest", "--to", "a"], &raw[..]].concat());
    assert_eq!(world.names("a"), ["vda.raw"]);
    world.ok(&[&["restore", "web1@latest", "--to", "c"], &raw[..]].concat());
    assert_eq!(
        world.names("c"),
        ["%2E.%2F..%2Fvdc.raw", "vda.raw", "vdb.raw"]
    );
    world
        .run(&["restore", "web1@latest", "--disk", "vdz", "--to", "z"])
        .refused(1, "has no disk vdz: it has vda, vdb, ../../vdc");
}
