//! Points by the thousand in one directory, and more of them open than there are files for.
//!
//! `VIRTKEEP_MOUNTED_POINTS` is how many points.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{MINUTE, Mounted};
use crate::world::{NOON, TestDomain, World, tool, wait_until};

const LEN: usize = 200_704;

/// The disk of a point: no other is like it.
fn content(number: usize) -> Vec<u8> {
    let mut content = vec![0; LEN];
    content[100_000..100_008].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    content
}

/// None is in the future.
fn time(number: usize) -> u64 {
    NOON - 10_000 * MINUTE + number as u64 * MINUTE
}

fn add(world: &World, number: usize) {
    world.add(TestDomain {
        time: time(number),
        ..TestDomain::web1(&content(number))
    });
}

/// The disks of all points, in order.
fn disks(world: &World) -> Vec<String> {
    let points = world.names("mnt/web1").into_iter();
    let points = points.filter(|name| name != "latest");
    points
        .map(|name| format!("mnt/web1/{name}/vda.raw"))
        .collect()
}

#[test]
fn points_by_the_thousand_are_all_there_and_come_and_go() {
    let count = std::env::var("VIRTKEEP_MOUNTED_POINTS").map_or(1000, |n| n.parse().unwrap());
    let world = World::in_memory();
    (0..count).for_each(|number| add(&world, number));
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    let all = disks(&world);
    assert_eq!(all.len(), count);
    for (number, disk) in all.iter().enumerate() {
        let path = world.path(disk);
        let attributes = path.metadata().unwrap();
        assert_eq!(attributes.len(), LEN as u64);
        assert_eq!(attributes.mtime() as u64 * 1000, time(number));
        if number % 50 == 7 {
            assert!(std::fs::read(path).unwrap() == content(number), "{disk}");
        }
    }
    // Each has its directory, and there is the link.
    let found = tool(
        "find",
        &[&world.text("mnt"), "-type", "f", "-name", "vda.raw"],
    );
    assert_eq!(found.lines().count(), count);

    add(&world, count);
    wait_until("a new point", || disks(&world).len() == count + 1);
    assert!(mounted.read("web1/latest/vda.raw") == content(count));
    world.ok(&["forget", "--domain", "web1", "--keep-last", "2"]);
    wait_until("most are gone", || disks(&world).len() == 2);
    assert!(mounted.read("web1/latest/vda.raw") == content(count));
    world.ok(&["prune", "--max-unused", "0"]);
    wait_until("nothing is held", || world.names("repo/leases").is_empty());
}

#[test]
fn more_open_disks_than_there_are_files_for_are_refused_and_harm_no_others() {
    const POINTS: usize = 120;
    let world = World::in_memory();
    (0..POINTS).for_each(|number| add(&world, number));
    let Some(mounted) = Mounted::start_within(&world, 120) else {
        return;
    };
    let all = disks(&world);
    let open = |disk: &String| File::open(world.path(disk));
    let held: Vec<File> = all.iter().map_while(|disk| open(disk).ok()).collect();
    assert!(held.len() > 20 && held.len() < POINTS, "{}", held.len());
    for (number, file) in held.iter().enumerate() {
        let mut bytes = vec![0; LEN];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(number), "{number}");
    }
    // Points are still seen, and what is open already can be opened again.
    assert_eq!(disks(&world).len(), POINTS);
    drop((open(&all[0]).unwrap(), held));
    let last = all.last().unwrap();
    wait_until("there is room again", || open(last).is_ok());
    mounted.signal("-TERM");
    let said = mounted.ended();
    assert!(said.contains("as many as there may be"), "{said}");
}
