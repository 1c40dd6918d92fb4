//! Points as NBD exports, to the clients people use.

mod changes;
mod held;
mod limits;
mod past;
mod places;
mod weeks;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::serving::Serving;
use crate::world::{NOON, Ran, TestDomain, World, disk, tool, wait_until};

const MINUTE: u64 = 60_000;

/// Three points of `web1`, a minute apart, of disks that differ in places.
fn history(world: &World) -> Vec<Vec<u8>> {
    let mut content = disk(1);
    let mut all = Vec::new();
    for age in 0..3 {
        if age > 0 {
            content[age << 20] = 7;
            content[3 << 20..(3 << 20) + 70_000].fill(0);
        }
        world.add(TestDomain {
            time: NOON + age as u64 * MINUTE,
            ..TestDomain::web1(&content)
        });
        all.push(content.clone());
    }
    all
}

/// Ends what is done beside, also when something was not as it should be.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes all chunks away; what is left are manifests.
fn remove_data(world: &World) {
    let packs = std::fs::read_dir(world.path("repo/packs")).unwrap();
    for folder in packs.map(|entry| entry.unwrap().path()) {
        for pack in std::fs::read_dir(folder).unwrap() {
            let pack = pack.unwrap().path();
            const DATA: u8 = 1;
            if std::fs::read(&pack).unwrap()[10] == DATA {
                std::fs::remove_file(pack).unwrap();
            }
        }
    }
}

#[test]
fn every_point_of_a_history_is_served_as_it_is_restored() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    for (export, content) in [
        ("web1/vda@2026-11-22T11:00:00", &history[0]),
        ("web1/vda@latest~1", &history[1]),
        ("web1@latest", &history[2]),
    ] {
        assert!(serving.copy(export) == *content, "{export}");
        let restored = world.run(&["restore", export, "--to", "-"]);
        assert!(restored.out == *content, "{export}");
        let info = serving.info(export);
        assert_eq!(info["export-size"], content.len());
        assert_eq!(info["is_read_only"], true);
        // Several connections to a name that moves could be to several points.
        assert_eq!(info["can_multi_conn"], !export.contains("latest"));
    }
    // The same, read by QEMU.
    let raw = world.text("qemu.raw");
    let uri = serving.uri("web1/vda@latest");
    tool("qemu-img", &["convert", "-O", "raw", &uri, &raw]);
    let compared = tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, &raw],
    );
    assert!(compared.contains("identical"), "{compared}");
    assert!(std::fs::read(raw).unwrap()[..history[2].len()] == history[2]);
}

#[test]
fn holes_are_told_from_data_without_reading_it() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    let serving = Serving::start(&world, &[]);
    remove_data(&world);
    let map = tool(
        "nbdinfo",
        &["--map", "--json", &serving.uri("web1/vda@latest")],
    );
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let extents: Vec<(u64, u64)> = map
        .iter()
        .map(|extent| {
            let field = |name: &str| extent[name].as_u64().unwrap();
            (field("length"), field("type"))
        })
        .collect();
    const CHUNK: u64 = 64 << 10;
    let at = |mib: u64| mib << 20;
    assert_eq!(
        extents,
        [
            (5 * CHUNK, 0),
            (at(3) - 5 * CHUNK, 3),
            (at(1) + CHUNK, 0),
            (at(2) - CHUNK, 3),
            (CHUNK, 0),
            (at(6) - 2 * CHUNK, 3),
            (CHUNK + 512, 0),
        ]
    );
}

#[test]
fn the_list_names_every_disk_and_follows_the_repository() {
    let world = World::new();
    let content = disk(1);
    let serving = Serving::start(&world, &[]);
    assert_eq!(serving.names(), [""; 0]);
    let mut both = TestDomain::web1(&content);
    both.disks.push(("vdb", &content));
    let point = world.add(both);
    assert_eq!(
        serving.names(),
        [
            "web1/vda@latest",
            "web1/vda@2026-11-22T11:00:00",
            "web1/vdb@latest",
            "web1/vdb@2026-11-22T11:00:00",
        ]
    );
    world.add(TestDomain {
        time: NOON + MINUTE,
        ..TestDomain::web1(&content)
    });
    assert_eq!(
        serving.names(),
        [
            "web1/vda@latest",
            "web1/vda@2026-11-22T11:01:00",
            "web1/vda@2026-11-22T11:00:00",
            "web1/vdb@2026-11-22T11:00:00",
        ]
    );
    let description = serving.info(&format!("web1/vda@{}", point.id))["description"].clone();
    assert_eq!(
        description,
        format!(
            "vda of web1 at 2026-11-22T11:00:00, 12 MiB, point {}",
            point.id
        )
    );
    let several = serving.refused(&point.id.to_string());
    assert!(several.contains("2 disks (vda, vdb)"), "{several}");
    std::fs::remove_file(world.path(&format!("repo/points/{}", point.id))).unwrap();
    assert_eq!(serving.names().len(), 2);
    let gone = serving.refused(&format!("web1/vda@{}", point.id));
    assert!(gone.contains("no restore point"), "{gone}");
}

#[test]
fn a_name_that_means_two_things_is_listed_with_the_uuid() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    world.add(TestDomain {
        uuid: 0x22,
        ..TestDomain::web1(&content)
    });
    // A domain whose name is that of a disk of another.
    world.add(TestDomain {
        name: "db",
        uuid: 0x33,
        ..TestDomain::web1(&content)
    });
    world.add(TestDomain {
        name: "db/vda",
        uuid: 0x44,
        ..TestDomain::web1(&content)
    });
    let serving = Serving::start(&world, &[]);
    let names = serving.names();
    let latest: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_suffix("@latest"))
        .collect();
    assert_eq!(
        latest,
        [
            "33333333-3333-3333-3333-333333333333/vda",
            "db/vda/vda",
            "11111111-1111-1111-1111-111111111111/vda",
            "22222222-2222-2222-2222-222222222222/vda",
        ]
    );
    for name in names {
        serving.info(&name);
    }
}

#[test]
fn only_what_was_chosen_is_served() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &["web1/vda@latest"]);
    assert_eq!(
        serving.names(),
        ["web1/vda@latest", "web1/vda@2026-11-22T11:02:00"]
    );
    world.add(TestDomain {
        name: "secret",
        uuid: 0x99,
        ..TestDomain::web1(&history[2])
    });
    // Of all others nothing is told, not even whether there are any.
    let refused = |export: &str| {
        let said = serving.refused(export);
        let (_, said) = said.rsplit_once("server reported: ").unwrap();
        said.strip_prefix(export).unwrap().to_owned()
    };
    let unknown = refused("nobody@latest");
    assert!(unknown.contains("is not among the points"), "{unknown}");
    for export in [
        "web1/vda@latest~1",
        "secret@latest",
        "secret/vdq@latest",
        "secret@2020",
        "p",
    ] {
        assert_eq!(refused(export), unknown, "{export}");
    }
    // Nor whether they are equal.
    assert_eq!(
        serving.info("web1/vda@latest")["contexts"],
        serde_json::json!(["base:allocation"])
    );
    for other in ["web1@latest~1", "secret@latest"] {
        let map = format!("--map=virtkeep:changed-since:{other}");
        let mut compare = Command::new("nbdinfo");
        compare.args([&map, &serving.uri("web1/vda@latest")]);
        assert_ne!(Ran::of(&mut compare).code, 0, "{other}");
    }
    // The only one needs no name.
    assert!(serving.copy("") == history[2]);
    // `latest` means what is latest now.
    let newer = disk(3);
    world.add(TestDomain {
        time: NOON + 9 * MINUTE,
        ..TestDomain::web1(&newer)
    });
    assert!(serving.copy("") == newer);
    let missing = world.run(&["serve", "web9@latest", "--listen", "unix:socket2"]);
    missing.refused(1, "there is no point of web9");
}

#[test]
fn the_name_of_a_point_that_was_forgotten_means_no_other() {
    let world = World::new();
    let disks = [disk(1), disk(2)];
    let [_, last] = [0, 1].map(|number| {
        world.add(TestDomain {
            time: NOON + number * MINUTE,
            ..TestDomain::web1(&disks[number as usize])
        })
    });
    let serving = Serving::start(&world, &[]);
    let multi_conn = |export: &str| serving.info(export)["can_multi_conn"].as_bool().unwrap();
    let (second, minute) = ("web1/vda@2026-11-22T11:01:00", "web1/vda@2026-11-22T11:01");
    let id = format!("web1/vda@{}", last.id);
    for export in [second, minute, &id] {
        assert!(serving.copy(export) == disks[1], "{export}");
        // Two connections to a name that moves could be to two points.
        assert_eq!(multi_conn(export), export != minute, "{export}");
    }
    world.ok(&["forget", &last.id.to_string()]);
    for export in [second, &id] {
        serving.refused(export);
    }
    assert!(
        serving.copy(minute) == disks[0],
        "the newest in or before it"
    );
}

#[test]
fn a_connection_holds_a_lease_on_its_disk_and_an_idle_server_none() {
    let world = World::new();
    let point = world.add(TestDomain::web1(&disk(1)));
    let serving = Serving::start(&world, &[]);
    serving.names();
    wait_until("let go", || world.names("repo/leases").is_empty());
    let mut client = serving.connect("web1/vda@latest");
    wait_until("held", || world.names("repo/leases").len() == 1);
    let lease = &world.names("repo/leases")[0];
    let lease = std::fs::read(world.path(&format!("repo/leases/{lease}"))).unwrap();
    let lease: Value = serde_json::from_slice(&lease).unwrap();
    assert_eq!(lease["kind"], "reader");
    let disks = lease["roots"]["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0], point.disks[0].root.to_string());
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
    wait_until("let go", || world.names("repo/leases").is_empty());
}

#[test]
fn points_are_served_while_others_are_made() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    std::thread::scope(|scope| {
        let backups = scope.spawn(|| {
            for seed in 10..14 {
                std::fs::write(world.path("other.raw"), disk(seed)).unwrap();
                let image = world.text("other.raw");
                world.ok(&["backup", "--image", &image, "--name", "other"]);
            }
        });
        while !backups.is_finished() {
            assert!(serving.copy("web1/vda@latest") == history[2]);
        }
    });
    assert_eq!(serving.names().len(), 3 + 1 + 4 + 1);
    assert!(serving.copy("other@latest")[..] == disk(13)[..]);
}

#[test]
fn damage_is_an_error_for_the_client_and_a_line_for_the_operator() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    world.damage_packs();
    let serving = Serving::start(&world, &[]);
    let uri = serving.uri("web1/vda@latest");
    let copied = Ran::of(Command::new("nbdcopy").args([&uri, &world.text("copy.raw")]));
    assert_ne!(copied.code, 0);
    let said = serving.end("-TERM");
    assert_eq!(said.matches("a read failed").count(), 1, "{said}");
}
