//! `repair`: a repository whose index is gone.

use std::fs;

use crate::world::{TestDomain, World, disk};

#[test]
fn a_repository_without_its_index_says_what_to_do_and_that_helps() {
    let world = World::new();
    let vda = disk(1);
    world.add(TestDomain::web1(&vda));
    let before = world.ok(&["list"]).stdout;
    fs::remove_file(world.path("repo/index.redb")).unwrap();
    world.run(&["list"]).refused(4, "virtkeep repair");

    let ran = world.ok(&["repair"]);
    assert!(
        ran.stdout.contains("built the index anew: 1 point,"),
        "{ran:#?}"
    );
    assert_eq!(world.ok(&["list"]).stdout, before);
    assert!(
        world
            .ok(&["check", "--read-data"])
            .stdout
            .contains("no damage")
    );
    let again = world.ok(&["repair", "--json"]);
    let summary = &again.json()[0];
    assert_eq!(
        (&summary["type"], &summary["clean"]),
        (&"summary".into(), &true.into())
    );
    assert_eq!(summary["points"], 1);
}

#[test]
fn damage_is_taken_out_of_use_and_healed_by_the_next_backup() {
    let world = World::new();
    let (vda, raw) = (disk(2), world.path("disk.raw"));
    fs::write(&raw, &vda).unwrap();
    let backup = ["backup", "--image", "disk.raw", "--name", "web1"];
    world.ok(&backup);
    world.damage_where(&vda[1000..2000]);

    let looked = world.run(&["repair", "--dry-run"]);
    assert_eq!(looked.code, 4, "{looked:#?}");
    assert!(
        looked.stdout.contains("cannot be restored whole"),
        "{looked:#?}"
    );
    let ran = world.run(&["repair"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    for line in [
        "damage: pack ",
        "web1 p",
        "kept, but out of use: 1 damaged pack;",
        "noted as lost: 1 damaged record;",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {ran:#?}");
    }
    let checked = world.run(&["check", "--json"]);
    assert_eq!(
        (
            checked.code,
            checked.json().pop().unwrap()["wanted"].as_u64()
        ),
        (4, Some(1))
    );

    // Nothing of the disk has changed; only what is wanted is stored.
    let again = world.ok(&[&backup[..], &["--json"]].concat());
    let summary = again.json().pop().unwrap();
    assert_eq!(
        (&summary["wanted"], &summary["new_bytes"]),
        (&0.into(), &65536.into())
    );
    assert!(
        world
            .ok(&["check", "--read-data"])
            .stdout
            .contains("no damage")
    );
    world.ok(&["restore", "web1@latest~1", "--to", "out", "--format", "raw"]);
    assert!(fs::read(world.path("out/disk.raw")).unwrap() == vda);

    let last = world.ok(&["repair", "--yes", "--json"]);
    assert_eq!(last.json()[0]["packs_removed"], 1);
    assert!(
        world
            .ok(&["repair"])
            .stdout
            .contains("every point can be restored")
    );
}

#[test]
fn with_a_wrong_key_nothing_is_mended_away() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(3)));
    let config = world.path("repo/config.toml");
    let right = fs::read_to_string(&config).unwrap();
    let at = right.find("id_key = ").unwrap() + 10;
    let mut wrong = right.clone();
    let digit = if right.as_bytes()[at] == b'0' {
        "1"
    } else {
        "0"
    };
    wrong.replace_range(at..=at, digit);
    for args in [&["repair", "--yes"][..], &["repair", "--index"]] {
        fs::write(&config, &wrong).unwrap();
        world
            .run(args)
            .refused(4, "Put a copy of the right config.toml back");
        fs::write(&config, &right).unwrap();
        world.ok(&["check", "--read-data"]);
    }
}
