//! Clients that read on and on while all that they have open is forgotten, pruned and moved.

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
