//! Bad input gets one clear line and the right exit code, and costs nothing.

use std::os::unix::fs::PermissionsExt;

use crate::world::{NOON, Ran, TestDomain, World, disk};

#[test]
fn no_repository_is_exit_code_10() {
    let world = World::bare();
    let ran = world.run(&["list"]);
    ran.refused(10, "no repository at");
    assert!(ran.stderr.contains("init"), "{ran:#?}");
    let mut unset = world.command(&["list"]);
    Ran::of(unset.env_remove("VIRTKEEP_REPO")).refused(10, "use -r REPO");
    Ran::of(unset.env("VIRTKEEP_REPO", "")).refused(10, "use -r REPO");
    std::fs::create_dir(world.path("repo")).unwrap();
    std::fs::write(world.path("repo/letter.txt"), "dear").unwrap();
    world
        .run(&["list"])
        .refused(10, "is not a virtkeep repository");
    world.run(&["init"]).refused(1, "already exists");
    assert_eq!(world.names("repo"), ["letter.txt"]);
    std::fs::write(world.path("file"), "").unwrap();
    let ran = world.run(&["-r", "file", "list"]);
    assert!(ran.code != 0 && ran.stderr.contains("file"), "{ran:#?}");
}

#[test]
fn programs_are_told_the_kind_of_error() {
    let world = World::bare();
    let ran = world.run(&["list", "--json"]);
    assert_eq!(ran.code, 10);
    assert_eq!(ran.json()[0]["type"], "error");
    assert_eq!(ran.json()[0]["code"], "no-repository");
}

#[test]
fn a_newer_or_unknown_format_is_refused() {
    let config = |change: fn(&str) -> String| {
        let world = World::new();
        let path = world.path("repo/config.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = change(&text);
        assert_ne!(text, changed);
        std::fs::write(path, changed).unwrap();
        world.run(&["list"])
    };
    let newer = |text: &str| {
        let lines = text.lines().map(|line| match line.split_once('=') {
            Some((key, _)) if key.contains("version") => format!("{key}= 99"),
            _ => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    config(newer).refused(1, "newer than this virtkeep");
    let unknown = |text: &str| {
        text.replace(
            "\nincompatible_features = []",
            "\nincompatible_features = [\"time-travel\"]",
        )
    };
    config(unknown).refused(1, "time-travel");
}

#[test]
fn points_and_disks_that_are_not_there_are_answered_with_those_that_are() {
    let world = World::new();
    let vda = disk(1);
    world.add(TestDomain::web1(&vda));
    let show = |point: &str| world.run(&["show", point]);
    show("web2@latest").refused(1, "the repository holds points of web1");
    show("web1@latest~1").refused(1, "the domain has 1 point");
    show("web1@2020").refused(1, "the oldest is web1@2026-11-22T11:00:00");
    show("web1@pvvvv").refused(1, "no restore point pvvvv");
    show("web1/sda@latest").refused(1, "has no disk sda: it has vda");
    show("web1").refused(2, "DOMAIN@latest");
    show("web1@whenever").refused(2, "neither `latest`");
    world.run(&["list", "web2"]).refused(1, "no point of web2");
}

#[test]
fn ambiguous_names_and_ids_list_the_candidates() {
    let world = World::new();
    let vda = disk(2);
    for uuid in [0xaa, 0xbb] {
        world.add(TestDomain {
            uuid,
            time: NOON + u64::from(uuid),
            ..TestDomain::web1(&vda)
        });
    }
    let ran = world.run(&["restore", "web1@latest", "--to", "out"]);
    ran.refused(1, "2 different domains");
    let uuid = "bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb";
    assert!(ran.stderr.contains(uuid), "{ran:#?}");
    world.ok(&["restore", &format!("{uuid}@latest"), "--to", "out"]);
    world
        .run(&["show", "p"])
        .refused(1, "2 point ids begin with p");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let world = World::new();
    for args in [
        &["frobnicate"][..],
        &["backup"],
        &["backup", "web1", "--all"],
        &["backup", "--image", "x.raw"],
        &["backup", "web1", "--name", "x"],
        &["backup", "--image", "x.raw", "--name", ""],
        &["restore", "web1@latest"],
        &["restore", "web1@latest", "--to", "a", "--onto", "b"],
        &["restore", "web1@latest", "--to", "a", "--format", "vmdk"],
        &["init", "--chunk-size", "3"],
        &["init", "--codec", "gzip"],
    ] {
        let ran = world.run(args);
        assert!(
            ran.code == 2 && !ran.stderr.is_empty(),
            "{args:?}: {ran:#?}"
        );
    }
}

#[test]
fn a_libvirt_that_cannot_make_backups_is_named() {
    let world = World::new();
    let uri = format!("qemu+unix:///system?socket={}", world.text("nobody.sock"));
    let ran = world.run(&["-c", &uri, "backup", "web1"]);
    ran.refused(1, "cannot reach libvirt at qemu+unix");
    let ran = world.run(&["-c", &uri, "backup", "web1", "--json"]);
    assert_eq!(ran.json()[0]["code"], "no-libvirt");
}

#[test]
fn a_target_directory_that_cannot_be_written_is_named() {
    let world = World::new();
    let vda = disk(3);
    world.add(TestDomain::web1(&vda));
    std::fs::write(world.path("file"), "").unwrap();
    let ran = world.run(&["restore", "web1@latest", "--to", "file"]);
    ran.refused(1, "file");
    std::fs::create_dir(world.path("closed")).unwrap();
    let closed = std::fs::Permissions::from_mode(0o500);
    std::fs::set_permissions(world.path("closed"), closed).unwrap();
    let ran = world.run(&["restore", "web1@latest", "--to", "closed/out"]);
    // Root may write everywhere.
    if ran.code != 0 {
        ran.refused(
            1,
            "cannot create the directory closed/out: Permission denied",
        );
    }
}

#[test]
fn without_a_command_the_help_is_shown_but_no_hidden_command() {
    let ran = World::bare().run(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("Examples:"), "{ran:#?}");
    assert!(!ran.stderr.contains("thaw-guard"), "{ran:#?}");
}
