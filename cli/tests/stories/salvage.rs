//! `restore --salvage`: what can still be had of a damaged point.

use virtkeep_repo::FileRole;

use crate::world::{NbdServer, TestDomain, World, disk, tool};

const CHUNK: usize = 64 << 10;

/// A point whose first chunk is damaged, which `disk` has twice, and what can be had of it.
fn damaged() -> (World, Vec<u8>) {
    let world = World::new();
    let vda = disk(1);
    world.add(TestDomain::web1(&vda));
    world.damage_where(&vda[1000..2000]);
    let mut left = vda;
    left[..CHUNK].fill(0);
    left[6 << 20..(6 << 20) + CHUNK].fill(0);
    (world, left)
}

const LOST: [&str; 2] = [
    "vda: bytes 0 to 65536 (64 KiB) are lost, and zero now: damage in chunk",
    "vda: bytes 6291456 to 6356992 (64 KiB) are lost, and zero now: damage in chunk",
];

#[track_caller]
fn partly(ran: &crate::world::Ran) {
    assert_eq!(ran.code, 3, "{ran:#?}");
    for line in LOST {
        assert!(ran.stderr.contains(line), "{ran:#?}");
    }
}

#[test]
fn without_salvage_the_disk_and_the_range_are_named_and_nothing_is_left() {
    let (world, _) = damaged();
    let ran = world.run(&["restore", "web1@latest", "--to", "out"]);
    // Which of the two places is met first is left to chance.
    let hit = ["its bytes 0 to 65536", "its bytes 6291456 to 6356992"];
    assert!(
        hit.iter().any(|range| ran.stderr.contains(range)),
        "{ran:#?}"
    );
    ran.refused(4, "cannot restore vda to ");
    assert!(ran.stderr.contains("restore --salvage"), "{ran:#?}");
    assert!(!world.path("out").exists());
}

#[test]
fn images_hold_zeroes_where_bytes_are_lost_and_everything_else() {
    let (world, left) = damaged();
    let restore = ["restore", "web1@latest", "--salvage", "--to"];
    let ran = world.run(&[&restore[..], &["raw", "--format", "raw", "--json"]].concat());
    partly(&ran);
    let line = &ran.json()[0];
    let lost = &line["disks"][0]["lost"];
    assert_eq!(
        (&lost[0]["start"], &lost[0]["end"]),
        (&0.into(), &CHUNK.into())
    );
    assert_eq!(lost[1]["start"], 6 << 20);
    assert!(lost[0]["message"].as_str().unwrap().contains("chunk"));
    assert_eq!(lost.as_array().unwrap().len(), 2);
    assert!(std::fs::read(world.path("raw/vda.raw")).unwrap() == left);

    partly(&world.run(&[&restore[..], &["out"]].concat()));
    std::fs::write(world.path("expected"), &left).unwrap();
    let compare = ["compare", "-q", "-f", "raw", "-F", "qcow2"];
    let images = [world.text("expected"), world.text("out/vda.qcow2")];
    tool(
        "qemu-img",
        &[&compare[..], &[&images[0], &images[1]]].concat(),
    );
}

#[test]
fn standard_output_and_exports_are_given_zeroes_as_well() {
    let (world, left) = damaged();
    let ran = world.run(&["restore", "web1/vda@latest", "--salvage", "--to", "-"]);
    partly(&ran);
    assert!(ran.out == left);

    std::fs::write(world.path("target"), vec![0x5a; left.len()]).unwrap();
    let server = NbdServer::qemu(&world, "raw", &world.path("target"));
    let onto = ["--salvage", "--yes", "--onto", &server.uri];
    partly(&world.run(&[&["restore", "web1/vda@latest"], &onto[..]].concat()));
    drop(server);
    assert!(std::fs::read(world.path("target")).unwrap() == left);
}

#[test]
fn a_stored_file_that_is_lost_is_left_out_and_named() {
    let world = World::new();
    let (vda, nvram) = (disk(2), disk(4)[..5000].to_vec());
    world.add(TestDomain {
        files: vec![
            (FileRole::DomainXml, "domain.xml", b"<domain/>"),
            (FileRole::Nvram, "/var/lib/nvram", &nvram),
        ],
        ..TestDomain::web1(&vda)
    });
    world.damage_where(&nvram[100..1100]);
    let restore = ["restore", "web1@latest", "--to", "out", "--format", "raw"];
    world.run(&restore).refused(4, "damage");
    let ran = world.run(&[&restore[..], &["--salvage", "--json"]].concat());
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(
        ran.stderr.contains("the file /var/lib/nvram is lost"),
        "{ran:#?}"
    );
    assert_eq!(ran.json()[0]["lost_files"][0]["role"], "nvram");
    assert_eq!(world.names("out"), ["domain.xml", "vda.raw"]);
    assert!(std::fs::read(world.path("out/vda.raw")).unwrap() == vda);
}

#[test]
fn salvage_of_a_whole_point_is_a_restore_like_any_other() {
    let world = World::new();
    let vda = disk(4);
    world.add(TestDomain::web1(&vda));
    let restore = ["restore", "web1@latest", "--to", "out", "--format", "raw"];
    let ran = world.ok(&[&restore[..], &["--salvage"]].concat());
    assert!(!ran.stderr.contains("lost"), "{ran:#?}");
    assert!(std::fs::read(world.path("out/vda.raw")).unwrap() == vda);
}
