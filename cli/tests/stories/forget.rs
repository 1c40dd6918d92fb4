//! `forget`, `pin`, `unpin`: which points go, why, and how they come back.

use std::fs;

use crate::world::{NOON, Ran, TestDomain, World, disk};

const DAY: u64 = 86_400_000;

/// Points of web1, at noon of the days before the 22nd of November 2026; their ids.
fn days<const N: usize>(world: &World, days_ago: [u64; N]) -> [String; N] {
    let vda = disk(1);
    days_ago.map(|days| {
        let domain = TestDomain {
            time: NOON - days * DAY,
            ..TestDomain::web1(&vda)
        };
        world.add(domain).id.to_string()
    })
}

/// Ids of the points that a command lists.
fn ids(ran: &Ran) -> Vec<String> {
    let points = ran.json().into_iter().filter(|l| l["type"] == "point");
    points
        .map(|line| line["point"].as_str().unwrap().to_owned())
        .collect()
}

fn listed(world: &World) -> Vec<String> {
    ids(&world.ok(&["list", "--json"]))
}

fn set_append_only(world: &World) {
    let config = world.path("repo/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let guarded = text.replace("append_only = false", "append_only = true");
    assert_ne!(text, guarded);
    fs::write(&config, guarded).unwrap();
}

#[test]
fn a_policy_says_of_every_point_why_it_stays_or_goes() {
    let world = World::new();
    let [old, mid, new] = days(&world, [40, 1, 0]);
    let policy = ["forget", "--keep-daily", "2", "--keep-within", "14d"];

    let ran = world.ok(&[&policy[..], &["--dry-run"]].concat());
    let line = |id: &str| ran.stdout.lines().find(|l| l.contains(id)).unwrap();
    assert!(line(&old).contains("forget  no rule keeps it"), "{ran:#?}");
    assert!(
        line(&mid).contains("keep    daily 2 of 2, within 14d"),
        "{ran:#?}"
    );
    assert!(
        line(&new).contains("keep    daily 1 of 2, within 14d"),
        "{ran:#?}"
    );
    assert!(
        ran.stdout
            .ends_with("1 point would be forgotten, 2 points kept\n"),
        "{ran:#?}"
    );
    assert_eq!(listed(&world).len(), 3);

    let lines = world.ok(&[&policy[..], &["--json"]].concat()).json();
    assert_eq!(lines[0]["type"], "retention");
    assert_eq!(
        (&lines[0]["point"], &lines[0]["keep"]),
        (&old.as_str().into(), &false.into())
    );
    assert_eq!(lines[2]["reasons"][0]["rule"], "daily");
    assert_eq!(lines[2]["reasons"][0]["detail"], "1 of 2");
    assert_eq!(lines[2]["reasons"][1]["rule"], "within");
    assert_eq!(lines[3]["type"], "summary");
    assert_eq!(
        (&lines[3]["forgotten"], &lines[3]["kept"]),
        (&1.into(), &2.into())
    );
    assert_eq!(listed(&world), [mid, new]);

    let again = world.ok(&policy);
    assert!(
        again
            .stdout
            .ends_with("0 points forgotten, 2 points kept\n"),
        "{again:#?}"
    );
}

#[test]
fn a_policy_that_keeps_nothing_is_refused() {
    let world = World::new();
    let all = days(&world, [2, 1, 0]);
    world.run(&["forget"]).refused(2, "--keep-daily");
    world
        .run(&["forget", "--dry-run"])
        .refused(2, "--keep-daily");
    world
        .run(&["forget", "--keep-last", "0"])
        .refused(2, "keeps nothing");
    world
        .run(&["forget", "--keep-within", "6m"])
        .refused(2, "6mo");
    world
        .run(&["forget", "web1@latest", "--keep-last", "1"])
        .refused(2, "");
    let ran = world.run(&["forget", "--keep-tag", "nobody has this", "--json"]);
    ran.refused(1, "keeps no point of web1");
    assert_eq!(ran.json().last().unwrap()["code"], "would-empty");
    assert_eq!(listed(&world), all);
}

#[test]
fn only_points_of_the_named_domain_are_judged() {
    let world = World::new();
    let [_, web1] = days(&world, [1, 0]);
    let vda = disk(2);
    let db = [3, 4].map(|hours| {
        let domain = TestDomain {
            name: "db",
            uuid: 0x22,
            time: NOON - hours,
            ..TestDomain::web1(&vda)
        };
        world.add(domain).id.to_string()
    });
    world.ok(&["forget", "--domain", "web1", "--keep-last", "1"]);
    assert_eq!(listed(&world), [db[1].clone(), db[0].clone(), web1]);
    world
        .run(&["forget", "--domain", "mail", "--keep-last", "1"])
        .refused(1, "no point of mail");
}

#[test]
fn labelled_backups_are_kept_by_their_label() {
    let world = World::new();
    fs::write(world.path("a.raw"), disk(3)).unwrap();
    let backup = ["backup", "--image", "a.raw", "--name", "a"];
    world.ok(&[&backup[..], &["--tag", "release", "--tag", "v2"]].concat());
    world.ok(&backup);
    world.ok(&backup);
    let before = listed(&world);
    let ran = world.ok(&["forget", "--keep-last", "1", "--keep-tag", "release"]);
    assert!(ran.stdout.contains("tag release"), "{ran:#?}");
    assert_eq!(listed(&world), [before[0].clone(), before[2].clone()]);
}

#[test]
fn a_forgotten_point_is_shown_and_restored_by_its_id_and_comes_back() {
    let world = World::new();
    let [old, new] = days(&world, [1, 0]);
    let ran = world.ok(&["forget", &old[..6], "--json"]);
    assert_eq!(ran.json()[0]["type"], "forgotten");
    assert_eq!(ran.json()[0]["point"], old);
    assert_eq!(listed(&world), std::slice::from_ref(&new));
    assert_eq!(
        ids(&world.ok(&["list", "--forgotten", "--json"])),
        std::slice::from_ref(&old)
    );
    assert!(world.ok(&["list", "--forgotten"]).stdout.contains(&old));
    // A time means a point that is there.
    world
        .run(&["show", "web1@2026-11-21"])
        .refused(1, "that old");

    let ran = world.ok(&["show", &old]);
    assert!(ran.stdout.contains("forget --undo"), "{ran:#?}");
    assert_eq!(
        world.ok(&["show", &old, "--json"]).json()[0]["forgotten"],
        true
    );
    world.ok(&["restore", &old, "--to", "out", "--format", "raw"]);
    assert!(fs::read(world.path("out/vda.raw")).unwrap() == disk(1));

    // Said twice is no error.
    world.ok(&["forget", &old]);
    let ran = world.ok(&["forget", "--undo", &old]);
    assert!(
        ran.stdout.contains("Brought web1@2026-11-21T11:00:00"),
        "{ran:#?}"
    );
    world.ok(&["forget", "--undo", &old]);
    assert_eq!(listed(&world), [old, new]);
    assert!(
        world
            .ok(&["list", "--forgotten"])
            .stdout
            .contains("No forgotten points")
    );
    world.ok(&["check", "--read-data"]);
}

#[test]
fn the_last_point_of_a_domain_goes_only_by_name() {
    let world = World::new();
    let [only] = days(&world, [400]);
    world.ok(&["forget", "--keep-daily", "1"]);
    assert_eq!(listed(&world), std::slice::from_ref(&only));
    let ran = world.ok(&["forget", "web1@latest", "--dry-run"]);
    assert!(ran.stdout.contains("Would forget"), "{ran:#?}");
    let ran = world.ok(&["forget", "web1@latest"]);
    assert!(ran.stderr.contains("web1 has no other point"), "{ran:#?}");
    assert_eq!(listed(&world), [""; 0]);
    world.ok(&["forget", "--undo", "web1@latest"]);
    assert_eq!(listed(&world), [only]);
}

#[test]
fn a_pinned_point_stays_until_it_is_unpinned() {
    let world = World::new();
    let [old, new] = days(&world, [1, 0]);
    world.ok(&["pin", &old, "--reason", "before the upgrade"]);
    for args in [&["list"][..], &["show", &old]] {
        let ran = world.ok(args);
        assert!(ran.stdout.contains("before the upgrade"), "{ran:#?}");
    }
    let pins = &world.ok(&["list", "--json"]).json()[0]["pins"];
    assert_eq!(
        (&pins[0]["reason"], &pins[0]["in_use"]),
        (&"before the upgrade".into(), &false.into())
    );

    let ran = world.run(&["forget", &new, &old, "--json"]);
    ran.refused(1, "is pinned (before the upgrade)");
    assert_eq!(ran.json()[0]["code"], "pinned");
    let ran = world.ok(&["forget", "--keep-last", "1"]);
    assert!(
        ran.stdout.contains("keep    pinned (before the upgrade)"),
        "{ran:#?}"
    );
    assert_eq!(listed(&world), [old.clone(), new.clone()]);

    world.ok(&["unpin", "web1@2026-11-21"]);
    assert!(world.ok(&["unpin", &old]).stdout.contains("was not pinned"));
    world.ok(&["forget", "--keep-last", "1"]);
    assert_eq!(listed(&world), [new]);
    world.run(&["pin", &old]).refused(1, "is forgotten");
    world
        .run(&["pin", "web1/vda@latest"])
        .refused(2, "leave the disk out");
}

#[test]
fn a_point_whose_record_is_damaged_is_told_and_kept_unless_named() {
    let world = World::new();
    let [broken, new] = days(&world, [1, 0]);
    let record = world.path(&format!("repo/points/{broken}"));
    let mut bytes = fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&record, bytes).unwrap();
    // The index has a sound copy, from which repair would put it back.
    fs::remove_file(world.path("repo/index.redb")).unwrap();
    world.run(&["repair"]).refused(4, "");

    let ran = world.ok(&["forget", "--keep-last", "1"]);
    assert!(ran.stdout.contains("its record is damaged"), "{ran:#?}");
    assert!(record.exists());
    let lines = world.ok(&["forget", "--keep-last", "1", "--json"]).json();
    assert_eq!(lines[0]["type"], "damaged-point");
    world.ok(&["forget", &broken]);
    assert!(!record.exists());
    world.ok(&["check"]);
    assert_eq!(listed(&world), [new]);
}

#[test]
fn an_append_only_repository_forgets_nothing_and_says_who_can_change_that() {
    let world = World::new();
    let all = days(&world, [1, 0]);
    set_append_only(&world);
    for args in [
        &["forget", "web1@latest"][..],
        &["forget", "--keep-last", "1"],
    ] {
        let ran = world.run(args);
        ran.refused(1, "append-only");
        ran.refused(1, "append_only = false");
    }
    let ran = world.run(&["forget", "--keep-last", "1", "--json"]);
    assert_eq!(ran.json()[0]["code"], "append-only");
    assert_eq!(listed(&world), all);
    world.ok(&["forget", "--keep-last", "1", "--dry-run"]);
    world.ok(&["pin", "web1@latest"]);
    days(&world, [2]);
    assert_eq!(listed(&world).len(), 3);
}

#[test]
fn a_file_of_a_kind_that_is_not_known_is_restored_as_it_is() {
    let world = World::new();
    let vda = disk(4);
    let point = world.add(TestDomain {
        files: vec![(virtkeep_repo::FileRole::Unknown, "seals", b"content")],
        ..TestDomain::web1(&vda)
    });
    let ran = world.ok(&["show", &point.id.to_string()]);
    assert!(ran.stdout.contains("unknown"), "{ran:#?}");
    world.ok(&["restore", "web1@latest", "--to", "out"]);
    assert_eq!(fs::read(world.path("out/file-seals")).unwrap(), b"content");
}

#[test]
fn a_pinned_point_lives_through_kill_forget_prune_and_restart() {
    let world = World::new();
    let [old, new] = days(&world, [1, 0]);
    world.ok(&["pin", &old, "--reason", "audit"]);
    for command in [
        &["prune"][..],
        &["forget", "--keep-last", "1"],
        &["prune", "--exact"],
    ] {
        // Killed somewhere on its way, then done.
        let mut killed = world.command(command).spawn().unwrap();
        killed.kill().unwrap();
        killed.wait().unwrap();
        world.ok(command);
    }
    world.run(&["forget", &old, "--prune"]).refused(1, "pinned");
    assert_eq!(listed(&world), [old.clone(), new.clone()]);
    world.ok(&["restore", &old, "--to", "out", "--format", "raw"]);
    assert!(fs::read(world.path("out/vda.raw")).unwrap() == disk(1));

    world.ok(&["unpin", &old]);
    world.ok(&["forget", &old, "--prune"]);
    world
        .run(&["forget", "--undo", &old])
        .refused(1, "no restore point");
    world.run(&["show", &old]).refused(1, "no restore point");
    assert_eq!(listed(&world), [new]);
    world.ok(&["check", "--read-data"]);
}
