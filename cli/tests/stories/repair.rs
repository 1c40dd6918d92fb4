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
    world.run(&["list"]).refused(1, "virtkeep repair");

    let ran = world.ok(&["repair"]);
    assert!(
        ran.stdout.contains("built the index anew: 1 points"),
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
