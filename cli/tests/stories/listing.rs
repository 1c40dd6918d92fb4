//! `list`, `show`, `stats`, `check`, `init`, `completions`.

use virtkeep_repo::FileRole;

use crate::world::{NOON, TestDomain, World, disk};

/// A name that would clear the screen, leave a directory, and end a POINT early.
const HOSTILE: &str = "../a b@c/\u{1b}[2J\u{202e}ü";

#[test]
fn a_repository_is_made_and_described() {
    let world = World::bare();
    let ran = world.ok(&[
        "init",
        "--codec",
        "zstd:5",
        "--chunk-size",
        "128KiB",
        "--json",
    ]);
    let line = &ran.json()[0];
    assert_eq!(line["type"], "repository");
    assert_eq!(line["codec"], "zstd:5");
    assert_eq!(line["chunk_size_bytes"], 131_072);
    world.run(&["init"]).refused(1, "already exists");
    let ran = world.ok(&["list"]);
    assert!(ran.stdout.contains("No points yet"), "{ran:#?}");
}

#[test]
fn what_list_prints_can_be_pasted_back() {
    let world = World::new();
    let vda = disk(1);
    let times = [NOON, NOON + 250, NOON + 5_000, NOON + 86_400_000];
    let points = times.map(|time| {
        world.add(TestDomain {
            time,
            ..TestDomain::web1(&vda)
        })
    });
    let ran = world.ok(&["list", "web1"]);
    let lines: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 4, "{ran:#?}");
    for (cells, point) in lines.iter().zip(&points) {
        for text in [format!("{}@{}", cells[0], cells[1]), cells[2].to_owned()] {
            let shown = world.ok(&["show", &text, "--json"]);
            assert_eq!(shown.json()[0]["point"], point.id.to_string(), "{text}");
        }
    }
}

#[test]
fn programs_get_a_line_of_json_for_each_point() {
    let world = World::new();
    let vda = disk(2);
    let point = world.add(TestDomain::web1(&vda));
    let ran = world.ok(&["list", "--json"]);
    let line = &ran.json()[0];
    assert_eq!(line["type"], "point");
    assert_eq!(line["point"], point.id.to_string());
    assert_eq!(line["time"], "2026-11-22T11:00:00.000Z");
    assert_eq!(line["disks"][0]["mode"], "full");
    assert_eq!(line["disks"][0]["size_bytes"], vda.len());
    let time = line["time"].as_str().unwrap();
    world.ok(&["show", &format!("web1@{time}")]);
}

#[test]
fn hostile_names_are_shown_harmlessly_and_found_again() {
    let world = World::new();
    let vda = disk(3);
    let long = "長".repeat(200);
    for (uuid, name) in [(1, HOSTILE), (2, long.as_str())] {
        let point = world.add(TestDomain {
            name,
            uuid,
            ..TestDomain::web1(&vda)
        });
        let ran = world.ok(&["show", &format!("{name}@latest"), "--json"]);
        assert_eq!(ran.json()[0]["point"], point.id.to_string());
        assert_eq!(ran.json()[0]["domain"], name);
        let dir = format!("out{uuid}");
        let point = format!("{name}/vda@latest");
        world.ok(&["restore", &point, "--to", &dir, "--format", "raw"]);
        assert_eq!(world.names(&dir), ["vda.raw"]);
    }
    let ran = world.ok(&["list"]);
    assert!(
        ran.stdout.contains("../a b@c/\\u{1b}[2J\\u{202e}ü"),
        "{ran:#?}"
    );
    assert!(!ran.stdout.contains('\u{1b}') && !ran.stdout.contains('\u{202e}'));
    let ran = world.run(&["show", "\u{1b}[31mred@latest"]);
    ran.refused(1, "there is no point of \\u{1b}[31mred");
}

#[test]
fn the_log_and_the_xml_of_a_point_can_be_read() {
    let world = World::new();
    let vda = disk(4);
    world.add(TestDomain {
        files: vec![
            (FileRole::DomainXml, "domain.xml", b"<domain>\n</domain>\n"),
            (FileRole::Log, "log", b"1795345200123 first\nsecond\n"),
        ],
        ..TestDomain::web1(&vda)
    });
    assert_eq!(
        world.ok(&["show", "web1@latest", "--log"]).stdout,
        "2026-11-22T11:00:00.123  first\nsecond\n"
    );
    let ran = world.ok(&["show", "web1@latest", "--xml", "--json"]);
    assert_eq!(ran.json()[0]["content"], "<domain>\n</domain>\n");
    let ran = world.ok(&["show", "web1@latest"]);
    for text in [
        "web1@2026-11-22T11:00:00",
        "kvm1",
        "/images/vda.qcow2",
        "domain XML",
    ] {
        assert!(ran.stdout.contains(text), "{ran:#?}");
    }
}

#[test]
fn stats_count_what_is_stored_once() {
    let world = World::new();
    let vda = disk(5);
    world.add(TestDomain::web1(&vda));
    world.add(TestDomain::web1(&vda));
    let ran = world.ok(&["stats", "--json"]);
    let line = &ran.json()[0];
    assert_eq!(line["points"], 2);
    assert_eq!(line["disk_bytes"], 2 * vda.len());
    assert!(line["pack_bytes"].as_u64().unwrap() < 2 << 20, "{line}");
    let chunks = line["chunks"].as_u64().unwrap();
    assert_eq!(line["data_bytes"], chunks * 65536);
    let text = world.ok(&["stats"]).stdout;
    assert!(text.contains("24 MiB in all points together"), "{text}");
    let told = format!("{chunks} different, ");
    assert!(text.contains(&told), "{text}");
}

#[test]
fn a_point_whose_record_is_damaged_is_not_passed_over_in_silence() {
    let world = World::new();
    let vda = disk(8);
    let older = world.add(TestDomain::web1(&vda)).id.to_string();
    let newer = world.add(TestDomain {
        time: NOON + 1000,
        ..TestDomain::web1(&vda)
    });
    let newer = newer.id.to_string();
    let record = world.path(&format!("repo/points/{newer}"));
    let mut bytes = std::fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&record).unwrap();
    std::fs::write(&record, bytes).unwrap();
    // The index has a sound copy, from which repair would put it back.
    std::fs::remove_file(world.path("repo/index.redb")).unwrap();
    world.run(&["repair"]).refused(4, "");

    let warning = format!("warning: the point {newer} is damaged");
    let ran = world.ok(&["list"]);
    assert!(ran.stderr.contains(&warning), "{ran:#?}");
    assert!(
        ran.stdout.contains(&older) && !ran.stdout.contains(&newer),
        "{ran:#?}"
    );
    let line = &world.ok(&["list", "--json"]).json()[0];
    assert_eq!(line["type"], "damaged-point");
    assert_eq!(line["point"], newer);
    let ran = world.ok(&["restore", "web1@latest", "--to", "out"]);
    assert!(ran.stderr.contains(&warning), "{ran:#?}");
    world.run(&["show", &newer]).refused(1, &warning);
    world.run(&["check"]).refused(4, "");
}

#[test]
fn a_check_tells_a_sound_repository_from_a_damaged_one() {
    let world = World::new();
    let vda = disk(6);
    let point = world.add(TestDomain::web1(&vda));
    let ran = world.ok(&["check", "--read-data"]);
    assert!(ran.stdout.ends_with("no damage found\n"), "{ran:#?}");
    world.damage_packs();
    let ran = world.run(&["check", "--read-data", "--json"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    let lines = ran.json();
    let affected = lines
        .iter()
        .find(|line| line["type"] == "affected")
        .unwrap();
    assert_eq!(affected["point"], point.id.to_string());
    assert_eq!(lines.last().unwrap()["clean"], false);
    let ran = world.run(&["check", "--read-data"]);
    assert!(
        ran.code == 4 && ran.stdout.contains("damage found: the parts"),
        "{ran:#?}"
    );
}

#[test]
fn shells_get_completions() {
    let world = World::bare();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.ok(&["completions", shell]).stdout.contains("restore"));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let world = World::bare();
    let mut child = world
        .command(&["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn every_name_in_the_json_is_documented() {
    let manual = include_str!("../../../doc/json.md");
    let world = World::bare();
    std::fs::write(world.path("a.raw"), disk(7)).unwrap();
    for args in [
        &["init"][..],
        &["backup", "--image", "a.raw", "--name", "a"],
        &["list"],
        &["show", "a@latest"],
        &["show", "a@latest", "--log"],
        &["restore", "a@latest", "--to", "out"],
        &["check", "--read-data"],
        &["stats"],
        &["pin", "a@latest"],
        &["forget", "--keep-last", "1"],
        &["unpin", "a@latest"],
        &["forget", "a@latest"],
        &["list", "--forgotten"],
        &["forget", "--undo", "a@latest"],
    ] {
        let mut values = world.ok(&[args, &["--json"]].concat()).json();
        assert!(!values.is_empty(), "{args:?}");
        while let Some(value) = values.pop() {
            match value {
                serde_json::Value::Object(fields) => {
                    for (name, value) in fields {
                        let forms = [format!("\"{name}\""), format!("`{name}`")];
                        let is_told = forms.iter().any(|form| manual.contains(form));
                        assert!(is_told, "{args:?}: {name}");
                        values.push(value);
                    }
                }
                serde_json::Value::Array(items) => values.extend(items),
                _ => {}
            }
        }
    }
}
