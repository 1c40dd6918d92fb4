//! What differs between points: for a client of the server, and for the one who asks the program.

use std::process::Command;

use serde_json::Value;

use super::{MINUTE, history, remove_data};
use crate::serving::Serving;
use crate::world::{NOON, Ran, TestDomain, World, disk, tool};

/// The ranges that differ, in whole chunks of the later disk, and all behind the end of the earlier.
fn differences(before: &[u8], after: &[u8]) -> Vec<(u64, u64)> {
    const CHUNK: usize = 64 << 10;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut add = |start: usize, end: usize| match ranges.last_mut() {
        Some(last) if last.1 == start as u64 => last.1 = end as u64,
        _ => ranges.push((start as u64, end as u64)),
    };
    let both = before.len().min(after.len());
    for start in (0..both).step_by(CHUNK) {
        let end = (start + CHUNK).min(both);
        // What follows in the same chunk of one disk only counts as zeroes in the other.
        let rest = |disk: &[u8]| {
            disk[end..disk.len().min(start + CHUNK)]
                .iter()
                .any(|b| *b != 0)
        };
        if before[start..end] != after[start..end] || rest(before) || rest(after) {
            add(start, end);
        }
    }
    if both < after.len() {
        add(both, after.len());
    }
    ranges
}

#[test]
fn what_changed_since_a_point_is_told_without_reading_data() {
    let world = World::new();
    let mut disks = history(&world);
    // It grows, and shrinks.
    let mut larger = disks[2].clone();
    larger.resize(40 << 20, 0);
    larger[30 << 20] = 1;
    let smaller = larger[..(8 << 20) + 1536].to_vec();
    for disk in [larger, smaller] {
        world.add(TestDomain {
            time: NOON + disks.len() as u64 * MINUTE,
            ..TestDomain::web1(&disk)
        });
        disks.push(disk);
    }
    let serving = Serving::start(&world, &[]);
    let listed = serving.info("web1/vda@latest")["contexts"].clone();
    assert_eq!(listed.as_array().unwrap().len(), disks.len(), "{listed}");
    assert_eq!(listed[0], "base:allocation");
    assert!(
        listed[1]
            .as_str()
            .unwrap()
            .starts_with("virtkeep:changed-since:p")
    );
    remove_data(&world);
    for (age, after) in disks.iter().rev().enumerate() {
        let export = format!("web1/vda@latest~{age}");
        for (base_age, before) in disks.iter().rev().enumerate() {
            let context = format!("virtkeep:changed-since:web1@latest~{base_age}");
            let expected = differences(before, after);
            let map = format!("--map={context}");
            let map = tool("nbdinfo", &[&map, "--json", &serving.uri(&export)]);
            let map: Vec<Value> = serde_json::from_str(&map).unwrap();
            let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
            let changed: Vec<(u64, u64)> = map
                .iter()
                .filter(|extent| field(extent, "type") == 1)
                .map(|extent| {
                    let start = field(extent, "offset");
                    (start, start + field(extent, "length"))
                })
                .collect();
            assert_eq!(changed, expected, "{export} since latest~{base_age}");

            // The program says the same.
            let base = format!("web1/vda@latest~{base_age}");
            let ran = world.ok(&["--json", "diff", &base, &export, "--ranges"]);
            let mut lines = ran.json();
            let total = lines.pop().unwrap();
            let of = |line: &Value, name: &str| line[name].as_u64().unwrap();
            let told: Vec<_> = lines
                .iter()
                .map(|l| (of(l, "start"), of(l, "end")))
                .collect();
            assert_eq!(told, expected, "{base} {export}");
            let sum: u64 = expected.iter().map(|(start, end)| end - start).sum();
            assert_eq!(total["disks"][0]["changed_bytes"], sum);
            assert_eq!(total["disks"][0]["size_bytes"], after.len());
        }
    }
    let uri = serving.uri("web1@latest");
    let mut unknown = Command::new("nbdinfo");
    unknown.args(["--map=virtkeep:changed-since:web1@1999", &uri]);
    assert_ne!(Ran::of(&mut unknown).code, 0);
    let said = serving.end("-TERM");
    assert!(said.contains("no point of web1 that old"), "{said}");
}

#[test]
fn qemu_and_nbdinfo_map_the_same_changes() {
    let world = World::new();
    let disks = history(&world);
    let expected = differences(&disks[0], &disks[2]);
    let serving = Serving::start(&world, &[]);
    let context = "virtkeep:changed-since:web1@latest~2";
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=web1/vda@latest,x-dirty-bitmap={context}",
        world.text("socket")
    );
    let words = ["map", "--output=json", "--image-opts", &image];
    let map: Vec<Value> = serde_json::from_str(&tool("qemu-img", &words)).unwrap();
    let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    // QEMU shows what is dirty as if it were no data.
    let dirty = map.iter().filter(|extent| extent["data"] == false);
    let ranges = dirty.map(|extent| {
        let start = field(extent, "start");
        (start, start + field(extent, "length"))
    });
    assert_eq!(ranges.collect::<Vec<_>>(), expected, "{map:?}");

    let map = format!("--map={context}");
    let uri = serving.uri("web1/vda@latest");
    let totals = tool("nbdinfo", &[&map, "--totals", "--json", &uri]);
    let totals: Vec<Value> = serde_json::from_str(&totals).unwrap();
    let changed: u64 = expected.iter().map(|(start, end)| end - start).sum();
    let size = disks[2].len() as u64;
    for (flag, bytes) in [(0, size - changed), (1, changed)] {
        let total = totals.iter().find(|total| field(total, "type") == flag);
        assert_eq!(field(total.unwrap(), "size"), bytes, "{totals:?}");
    }
    // For people, a line per range.
    let lines = tool("nbdinfo", &[&map, &uri]);
    let changed = lines
        .lines()
        .filter(|line| line.split_whitespace().nth(2) == Some("1"));
    assert_eq!(changed.count(), expected.len(), "{lines}");
}

#[test]
fn disks_that_only_one_point_has_are_listed_by_diff() {
    let world = World::new();
    let content = disk(1);
    let point = |disks: &[&'static str], time| {
        let disks = disks.iter().map(|target| (*target, &content[..]));
        world.add(TestDomain {
            disks: disks.collect(),
            time,
            ..TestDomain::web1(&content)
        });
    };
    point(&["vda", "vdb"], NOON);
    point(&["vda", "vdc"], NOON + MINUTE);
    let ran = world.ok(&["diff", "web1@latest~1", "web1@latest"]);
    let rows: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            vec!["DISK", "BEFORE", "SIZE", "CHANGED"],
            vec!["vda", "12", "MiB", "12", "MiB", "0", "B"],
            vec!["vdc", "-", "12", "MiB", "-"],
            vec!["vdb", "12", "MiB", "-", "-"],
        ]
    );
    let two = world.run(&["diff", "web1/vda@latest", "web1/vdc@latest"]);
    two.refused(1, "compare a disk with itself");
}
