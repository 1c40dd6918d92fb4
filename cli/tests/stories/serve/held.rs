//! Clients that read on and on while all that they have open is forgotten, pruned and moved.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libnbd::Handle;

use super::weeks::{PRUNE, packed_bytes};
use super::{MINUTE, OnDrop};
use crate::serving::{Serving, read_all};
use crate::world::{NOON, TestDomain, World, disk, wait_until};

const POINTS: u64 = 4;

/// Reads a disk again and again until it is `done`, and counts how often.
fn read_on_and_on(mut client: Handle, content: &[u8], rounds: &AtomicU64, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        assert!(read_all(&mut client) == content);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn clients_read_what_they_opened_while_it_leaves_the_list_and_is_pruned_and_new_points_come() {
    let world = World::new();
    let disks: Vec<Vec<u8>> = (0..POINTS).map(|age| disk(2 * age)).collect();
    // All of it comes into packs together with something that nobody will need.
    let mut together = disk(99);
    for content in &disks {
        together.resize(together.len().next_multiple_of(64 << 10), 0);
        together.extend(content);
    }
    world.add(TestDomain {
        name: "together",
        uuid: 0x22,
        ..TestDomain::web1(&together)
    });
    let add = |(age, content): (u64, &Vec<u8>)| {
        let point = world.add(TestDomain {
            time: NOON + age * MINUTE,
            ..TestDomain::web1(content)
        });
        point.id.to_string()
    };
    let points: Vec<String> = (0..).zip(&disks).map(add).collect();
    let serving = Serving::start(&world, &[]);
    let clients: Vec<Handle> = points.iter().map(|id| serving.open(id)).collect();
    let rounds: Vec<AtomicU64> = disks.iter().map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);

    let moved = std::thread::scope(|scope| {
        let end = OnDrop(&done);
        let mut readers = Vec::new();
        for ((client, content), rounds) in clients.into_iter().zip(&disks).zip(&rounds) {
            let done = &done;
            readers.push(scope.spawn(move || read_on_and_on(client, content, rounds, done)));
        }
        // One round is under way, the next one begins after now.
        let wait_for_all = || {
            let now: Vec<u64> = rounds.iter().map(|n| n.load(Ordering::Relaxed)).collect();
            wait_until("read by all", || {
                assert!(!readers.iter().any(|reader| reader.is_finished()));
                let mut both = rounds.iter().zip(&now);
                both.all(|(rounds, before)| rounds.load(Ordering::Relaxed) >= before + 2)
            });
        };
        world.ok(&["forget", "together@latest"]);
        let mut moved = 0;
        for (age, point) in (0..).zip(&points) {
            wait_for_all();
            let listed = |name: &str| serving.names().iter().any(|listed| listed == name);
            let name = format!("web1/vda@2026-11-22T11:0{age}:00");
            assert!(listed(&name), "{name}");
            world.ok(&["forget", point]);
            assert!(!listed(&name), "{name}");
            serving.refused(point);

            let content = disk(10 + age);
            std::fs::write(world.path("other.raw"), &content).unwrap();
            let image = world.text("other.raw");
            world.ok(&["backup", "--image", &image, "--name", "other"]);
            assert!(serving.copy("other@latest")[..] == content[..]);
            let pruned = world.ok(&PRUNE).json().pop().unwrap();
            moved += pruned["packs_rewritten"].as_u64().unwrap();
        }
        wait_for_all();
        drop(end);
        moved
    });
    assert!(moved > 0, "nothing was moved beneath the clients");
    let others = serving.names();
    assert!(
        others.iter().all(|name| name.starts_with("other/")),
        "{others:?}"
    );
    let held = packed_bytes(&world);
    wait_until("let go", || world.names("repo/leases").is_empty());
    world.ok(&PRUNE);
    let kept = packed_bytes(&world);
    // Nothing that the disks have alone can be compressed.
    assert!(kept + (POINTS << 20) < held, "{kept} of {held} bytes");
}

/// A directory in which nothing can be made, as on a full file system.
struct Full(String);

impl Full {
    /// None where nothing can be mounted.
    fn at(dir: String) -> Option<Self> {
        let options = ["-t", "tmpfs", "-o", "nr_inodes=1,mode=700", "tmpfs", &dir];
        let mounted = Command::new("mount").args(options).status().unwrap();
        if !mounted.success() {
            eprintln!("skipped: nothing can be mounted here");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", &self.0]).status();
    }
}

#[test]
fn a_server_tells_that_it_has_no_space_for_leases_once_until_there_is_space_again() {
    let world = World::new();
    let content = disk(1);
    let points = [0, 1, 2, 3].map(|age| {
        let time = NOON + age * MINUTE;
        let domain = TestDomain {
            time,
            ..TestDomain::web1(&content)
        };
        world.add(domain).id.to_string()
    });
    let serving = Serving::start(&world, &[]);
    let read = |point: &String| {
        let mut client = serving.open(point);
        assert!(read_all(&mut client) == content);
        client
    };
    let Some(full) = Full::at(world.text("repo/leases")) else {
        return;
    };
    let clients = [read(&points[0]), read(&points[1])];
    drop(full);
    let held = read(&points[2]);
    assert_eq!(world.names("repo/leases").len(), 1);
    let Some(_full) = Full::at(world.text("repo/leases")) else {
        return;
    };
    let last = read(&points[3]);
    drop((clients, held, last));
    let said = serving.end("-TERM");
    let told: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once(": no space for a lease")?.0))
        .collect();
    let of = |point: &String| format!("web1/vda@{point}");
    assert_eq!(told, [of(&points[0]), of(&points[3])], "{said}");
}
