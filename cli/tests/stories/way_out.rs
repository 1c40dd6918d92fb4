//! Whoever meets a repository that was damaged by hand, copied in part or misconfigured gets a message
//! that says what to do, the right exit code, and, having done it, a repository that works.

use std::fs;

use serde_json::Value;

use crate::world::{NOON, Ran, TestDomain, World, disk};

const DAY: u64 = 86_400_000;

/// A world with points of web1, at noon of these days before the 22nd of November 2026; their ids.
fn world<const N: usize>(days_ago: [u64; N]) -> (World, [String; N]) {
    let world = World::new();
    let points = days_ago.map(|days| {
        let vda = disk(days + 1);
        let domain = TestDomain {
            time: NOON - days * DAY,
            ..TestDomain::web1(&vda)
        };
        world.add(domain).id.to_string()
    });
    (world, points)
}

/// The path of the only file in a folder of the repository, within the world, and its name.
fn only_file(world: &World, folder: &str) -> (String, String) {
    let mut names = world.names(&format!("repo/{folder}"));
    assert_eq!(names.len(), 1, "{names:?}");
    let name = names.remove(0);
    (format!("repo/{folder}/{name}"), name)
}

fn remove_all(world: &World, path: &str) {
    let path = world.path(path);
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

/// Replaces a line of `config.toml`; its number, from 1.
fn set(world: &World, key: &str, line: &str) -> usize {
    let config = world.path("repo/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let is_it = |line: &&str| line.starts_with(&format!("{key} ="));
    let at = text.lines().position(|line| is_it(&line)).unwrap();
    let old = text.lines().nth(at).unwrap();
    fs::write(&config, text.replace(old, line)).unwrap();
    at + 1
}

fn last(ran: &Ran) -> Value {
    ran.json().pop().unwrap()
}

#[test]
fn a_damaged_pin_is_found_by_check_stops_forgetting_and_is_removed_by_its_name() {
    let (world, [old, _]) = world([1, 0]);
    world.ok(&["pin", &old, "--reason", "audit"]);
    let (path, name) = only_file(&world, "pins");
    fs::write(world.path(&path), "{\"points\":[").unwrap();

    let checked = world.run(&["check"]);
    assert_eq!(checked.code, 4, "{checked:#?}");
    assert!(checked.stdout.contains(&path), "{checked:#?}");
    assert!(
        checked.stdout.contains(&format!("virtkeep unpin {name}")),
        "{checked:#?}"
    );
    let checked = world.run(&["check", "--json"]);
    assert_eq!(checked.json()[0]["type"], "damage");
    assert_eq!(last(&checked)["clean"], false);
    let repaired = world.run(&["repair"]);
    assert!(
        repaired.code == 4 && repaired.stdout.contains(&name),
        "{repaired:#?}"
    );

    let listed = world.ok(&["list"]);
    assert!(listed.stderr.contains(&name), "{listed:#?}");
    for args in [
        &["forget", &old][..],
        &["forget", "--keep-last", "1"],
        &["prune"],
        &["prune", "--dry-run"],
    ] {
        world
            .run(args)
            .refused(4, &format!("`virtkeep unpin {name}`"));
    }
    // What must stay can be pinned anew, and other pins can be removed.
    world.ok(&["pin", &old, "--reason", "audit"]);
    world.ok(&["unpin", &old]);
    world.ok(&["pin", &old, "--reason", "audit"]);
    let removed = world.ok(&["unpin", &name, "--json"]);
    assert_eq!(removed.json()[0]["type"], "unpinned");
    assert_eq!(removed.json()[0]["point"], Value::Null);
    world.run(&["unpin", &name]).refused(1, "there is no pin");

    world.ok(&["check"]);
    world.run(&["forget", &old]).refused(1, "is pinned (audit)");
    world.ok(&["prune"]);
}

#[test]
fn folders_that_a_copy_lacks_are_made_anew() {
    for folder in ["locks", "leases", "pins"] {
        for args in [
            &["list"][..],
            &["backup", "--image", "a.raw", "--name", "a"],
            &["restore", "web1@latest", "--to", "out"],
            &["pin", "web1@latest"],
            &["prune"],
            &["repair"],
            &["repair", "--index"],
        ] {
            let (world, _) = world([0]);
            fs::write(world.path("a.raw"), disk(7)).unwrap();
            remove_all(&world, &format!("repo/{folder}"));
            let ran = world.run(args);
            assert_eq!(ran.code, 0, "without {folder}: {args:?}: {ran:#?}");
            world.ok(&["check", "--read-data"]);
        }
    }
}

#[test]
fn what_is_wrong_with_the_settings_is_told_with_its_line_and_the_way_out() {
    let wrong = |key: &str, line: &str, says: &str| {
        let (world, _) = world([0]);
        let at = set(&world, key, line);
        let ran = world.run(&["list", "--json"]);
        ran.refused(1, &format!("config.toml, line {at}: "));
        ran.refused(1, says);
        assert_eq!(ran.json()[0]["code"], "settings");
    };
    wrong("codec", "codec = \"zst\"", "It may be \"lz4\", \"zstd:N\"");
    wrong("codec", "codec = lz4", "Correct the line");
    wrong("append_only", "append_only = \"yes\"", "true or false");
    wrong(
        "chunk_size",
        "chunk_size = 1",
        "Put a copy of the file back",
    );

    let (world, _) = world([0]);
    let at = set(
        &world,
        "append_only",
        "append_only = false\napend_only = true",
    ) + 1;
    let ran = world.ok(&["list"]);
    assert!(
        ran.stderr
            .contains(&format!("line {at}: there is no setting apend_only")),
        "{ran:#?}"
    );

    fs::write(world.path("repo/config.toml"), "").unwrap();
    world
        .run(&["check"])
        .refused(1, "Put a copy of the file back");
    remove_all(&world, "repo/config.toml");
    world
        .run(&["check"])
        .refused(1, "Put a copy of the file back");
    let ran = world.run(&["init"]);
    ran.refused(1, "put a copy of that file back");
    remove_all(&world, "repo/points");
    remove_all(&world, "repo/packs");
    world
        .run(&["check"])
        .refused(10, "is not a virtkeep repository");
}

#[test]
fn absurd_wishes_are_refused_before_anything_is_done() {
    let (world, [old, _, _]) = world([2, 1, 0]);
    world.ok(&["forget", &old]);
    for (args, says) in [
        (&["forget", "--undo", "--keep-last", "3"][..], "--keep-last"),
        (&["forget", "--undo", &old, "--keep-tag", "x"], "--keep-tag"),
        (&["forget", "--undo", "--domain", "web1"], "--domain"),
        (&["forget", "--keep-tag", ""], "a label cannot be empty"),
        (&["forget", "--keep-tag", " "], "a label cannot be empty"),
        (&["forget", "--keep-last", "-1"], "a whole number is needed"),
        (
            &["forget", "--keep-daily", "1.5"],
            "a whole number is needed",
        ),
        (&["forget", "--keep-within", "-5d"], "longer than nothing"),
        (&["prune", "--max-unused", "-1"], "from 0% to 100%"),
        (
            &["prune", "--keep-unfinished", "-1d"],
            "weeks, days or hours",
        ),
        (
            &["prune", "--keep-unfinished", "1mo"],
            "weeks, days or hours",
        ),
        (&["check", "--read-data", "0%"], "from 1% to 100%"),
        (&["pin", "web1@latest", "--reason", " "], "cannot be empty"),
        (&["unpin", "web1/vda@latest"], "leave the disk out"),
        (&["restore", "web1@latest", "--to", "out", "--yes"], "--yes"),
        (&["restore", "web1@latest", "--onto", ""], "--onto"),
        (
            &["backup", "--image", "a", "--name", "a", "--tag", ""],
            "a label",
        ),
    ] {
        world.run(args).refused(2, says);
    }
    assert!(!world.path("out").exists());
    // A space does for the sign between them.
    world.ok(&["check", "--read-data", "50%"]);
    // The beginning of several ids is none of a forgotten point.
    world
        .run(&["forget", "p"])
        .refused(1, "2 point ids begin with p");
}

#[test]
fn a_damaged_record_of_a_forgotten_point_is_named_and_goes_with_the_next_prune() {
    let (world, [old, _]) = world([1, 0]);
    world.ok(&["forget", &old]);
    for spoil in ["", "garbage"] {
        fs::write(world.path(&format!("repo/forgotten/{old}")), spoil).unwrap();
        let listed = world.ok(&["list", "--forgotten"]);
        assert!(listed.stderr.contains(&old), "{listed:#?}");
        world
            .run(&["forget", "--undo", &old])
            .refused(1, "cannot be brought back");
        let ran = world.ok(&["forget", &old]);
        assert!(ran.stderr.contains("is forgotten already"), "{ran:#?}");
        let checked = world.ok(&["check"]);
        assert!(
            checked
                .stdout
                .contains("1 forgotten point cannot be brought back"),
            "{checked:#?}"
        );
        let checked = world.ok(&["check", "--json"]);
        assert_eq!(last(&checked)["forgotten_damaged"], 1);
    }
    let dry = world.ok(&["prune", "--dry-run"]);
    assert!(dry.stderr.contains(&old), "{dry:#?}");
    let ran = world.ok(&["prune"]);
    assert!(
        ran.stdout.contains("gone for good: 1 forgotten point"),
        "{ran:#?}"
    );
    assert_eq!(
        last(&world.ok(&["check", "--json"]))["forgotten_damaged"],
        0
    );
}

#[test]
fn lost_records_are_missed_by_list_check_and_a_dry_repair_and_put_back() {
    let (world, [old, new]) = world([1, 0]);
    let before = world.ok(&["list"]).stdout;
    remove_all(&world, "repo/points");
    let listed = world.ok(&["list"]);
    for id in [&old, &new] {
        assert!(listed.stderr.contains(id.as_str()), "{listed:#?}");
    }
    assert!(listed.stderr.contains("virtkeep repair"), "{listed:#?}");
    let checked = world.run(&["check"]);
    assert_eq!(checked.code, 4, "{checked:#?}");
    assert!(
        checked.stdout.ends_with("run `virtkeep repair`\n"),
        "{checked:#?}"
    );
    let looked = world.run(&["repair", "--dry-run"]);
    assert_eq!(looked.code, 4, "{looked:#?}");
    assert!(looked.stdout.contains(&old), "{looked:#?}");
    world.ok(&["repair"]);
    assert_eq!(world.ok(&["list"]).stdout, before);
    world.ok(&["check", "--read-data"]);
}

#[test]
fn a_point_that_lost_its_record_and_its_data_can_be_forgotten() {
    let (world, [old]) = world([1]);
    remove_all(&world, &format!("repo/points/{old}"));
    remove_all(&world, "repo/packs");
    // Something else is there, so that the packs cannot just be somewhere else.
    world.add(TestDomain {
        name: "db",
        uuid: 0x22,
        ..TestDomain::web1(&disk(9))
    });
    let ran = world.run(&["repair"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(ran.stdout.contains("virtkeep forget"), "{ran:#?}");
    world.ok(&["forget", &old]);
    world.ok(&["check", "--read-data"]);
    world.ok(&["prune"]);
}

#[test]
fn packs_that_are_all_gone_are_not_taken_for_a_wrong_key() {
    let (world, [point]) = world([0]);
    fs::rename(world.path("repo/packs"), world.path("packs")).unwrap();
    let ran = world.run(&["repair", "--yes", "--json"]);
    ran.refused(4, "is gone from");
    assert!(!ran.stderr.contains("config.toml"), "{ran:#?}");
    assert_eq!(last(&ran)["code"], "damage");
    world.ok(&["forget", &point]);
    world
        .run(&["restore", &point, "--to", "out"])
        .refused(4, "is lost");

    // Mounted again, all is well.
    fs::rename(world.path("packs"), world.path("repo/packs")).unwrap();
    world.ok(&["forget", "--undo", &point]);
    world.ok(&["repair"]);
    world.ok(&["check", "--read-data"]);

    // Gone for good: the way on.
    remove_all(&world, "repo/packs");
    let ran = world.run(&["repair", "--index"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    world.ok(&["forget", &point]);
    world.ok(&["prune"]);
    world.ok(&["check"]);
    world.add(TestDomain::web1(&disk(1)));
    world.ok(&["check", "--read-data"]);
}

#[test]
fn what_is_left_of_a_forgotten_point_can_be_salvaged() {
    let (world, [old, _]) = world([1, 0]);
    world.ok(&["forget", &old]);
    world.damage_packs();
    let restore = ["restore", old.as_str(), "--format", "raw", "--to"];
    world
        .run(&[&restore[..], &["out"]].concat())
        .refused(4, "--salvage");
    let ran = world.run(&[&restore[..], &["out", "--salvage"]].concat());
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.stderr.contains("are lost, and zero now"), "{ran:#?}");
    assert_eq!(
        fs::metadata(world.path("out/vda.raw")).unwrap().len(),
        disk(2).len() as u64
    );
    world
        .run(&["forget", "--undo", &old])
        .refused(4, &format!("`virtkeep restore {old} --salvage`"));
}

#[test]
fn a_forgotten_point_named_by_its_id_is_compared_and_otherwise_told_to_be_forgotten() {
    let (world, [old, new]) = world([1, 0]);
    world.ok(&["forget", &old]);
    let ran = world.ok(&["diff", &old, &new, "--ranges"]);
    assert!(ran.stdout.contains("vda: bytes 0 to "), "{ran:#?}");
    for args in [
        &["serve", &old][..],
        &["boot", &old, "--name", "x"],
        &["pin", &old],
    ] {
        world
            .run(args)
            .refused(1, &format!("`virtkeep forget --undo {old}` brings it back"));
    }
    let listed = world.ok(&["list", "--forgotten", "web1"]);
    assert!(listed.stdout.contains(&old), "{listed:#?}");
    world.ok(&["forget", "--undo", &old]);
    let listed = world.ok(&["list", "--forgotten", "web1"]);
    assert!(listed.stdout.contains("No forgotten points"), "{listed:#?}");
}

#[test]
fn what_stands_in_the_place_of_something_else_is_named_with_what_to_do() {
    for (path, directory) in [
        ("points", false),
        ("packs", false),
        ("forgotten", false),
        ("pins", false),
        ("leases", false),
        ("locks", false),
        ("index.redb", true),
        ("config.toml", true),
    ] {
        let (world, _) = world([0]);
        let path = format!("repo/{path}");
        if world.path(&path).exists() {
            fs::rename(world.path(&path), world.path("aside")).unwrap();
        }
        if directory {
            fs::create_dir(world.path(&path)).unwrap();
        } else {
            fs::write(world.path(&path), "").unwrap();
        }
        let ran = world.run(&["prune"]);
        ran.refused(1, "move it away");
        ran.refused(1, &path);
        remove_all(&world, &path);
        if world.path("aside").exists() && path != "repo/index.redb" {
            fs::rename(world.path("aside"), world.path(&path)).unwrap();
        }
        world.ok(&["repair"]);
        world.ok(&["check", "--read-data"]);
    }
}

#[test]
fn a_new_index_forgets_no_record_that_is_damaged() {
    let (world, [point]) = world([0]);
    fs::write(world.path(&format!("repo/points/{point}")), "").unwrap();
    let ran = world.ok(&["repair", "--index"]);
    assert!(
        ran.stdout.contains("was put back from the index"),
        "{ran:#?}"
    );
    world.ok(&["check", "--read-data"]);
}
