//! Every point of a long history, served while the repository changes: its bytes are those that were
//! backed up, and those that a restore gives.
//!
//! `VIRTKEEP_POINTS` is how long the history is, `VIRTKEEP_SEED` which one.

use std::sync::atomic::{AtomicBool, Ordering};

use super::weeks::PRUNE;
use super::{MINUTE, OnDrop};
use crate::serving::{Serving, read_all};
use crate::world::{NOON, TestDomain, World};

/// Chance that can be repeated.
struct Chance(u64);

impl Chance {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }

    /// What a guest does between two backups: it writes, zeroes and moves, and its disk may be resized.
    fn change(&mut self, disk: &mut Vec<u8>) {
        if self.below(8) == 0 {
            disk.resize((1 + self.below(3000)) * 512, 0);
        }
        for _ in 0..self.below(6) {
            let start = self.below(disk.len());
            let end = (start + 1 + self.below(60_000)).min(disk.len());
            match self.below(4) {
                0 => disk[start..end].fill(0),
                1 => {
                    let to = self.below(disk.len() - (end - start) + 1);
                    disk.copy_within(start..end, to);
                }
                _ => {
                    let written = self.bytes(end - start);
                    disk[start..end].copy_from_slice(&written);
                }
            }
        }
    }
}

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |number| number.parse().unwrap())
}

#[test]
fn every_point_of_a_long_history_is_served_as_it_was_beside_backups_and_prunes() {
    let count = number("VIRTKEEP_POINTS", 40);
    let seed = number("VIRTKEEP_SEED", 4) as u64;
    eprintln!("VIRTKEEP_POINTS={count} VIRTKEEP_SEED={seed}");
    let mut chance = Chance(seed);
    let world = World::bare();
    world.ok(&["init", "--chunk-size", "4KiB"]);
    let mut content = chance.bytes(1 << 20);
    let history: Vec<(String, Vec<u8>)> = (0..count)
        .map(|age| {
            chance.change(&mut content);
            let point = world.add(TestDomain {
                time: NOON + age as u64 * MINUTE,
                ..TestDomain::web1(&content)
            });
            (format!("web1/vda@{}", point.id), content.clone())
        })
        .collect();
    let serving = Serving::start(&world, &[]);
    // They stay, with what they found out about where everything is.
    let mut staying: Vec<_> = history
        .iter()
        .step_by(7)
        .map(|(name, content)| {
            let mut client = serving.open(name);
            assert!(read_all(&mut client) == *content, "{name}");
            (client, name, content)
        })
        .collect();

    let done = AtomicBool::new(false);
    let rewritten = std::thread::scope(|scope| {
        let beside = scope.spawn(|| change_much(&world, Chance(seed + 1), &done));
        let end = OnDrop(&done);
        let mut order: Vec<usize> = (0..count).collect();
        while !order.is_empty() {
            let age = order.swap_remove(chance.below(order.len()));
            let (id, content) = &history[age];
            let by_place = format!("web1/vda@latest~{}", count - 1 - age);
            for name in [id, &by_place] {
                assert!(read_all(&mut serving.open(name)) == *content, "{name}");
            }
            if age.is_multiple_of(8) {
                assert!(serving.copy(id) == *content, "{id} by nbdcopy");
            }
            let restored = world.ok(&["restore", id, "--to", "-"]);
            assert!(restored.out == *content, "{id} restored");
        }
        for (client, name, content) in &mut staying {
            assert!(read_all(client) == **content, "{name} again");
        }
        drop(end);
        beside.join().unwrap()
    });
    assert!(rewritten > 0, "nothing was moved meanwhile");
    for (client, name, content) in &mut staying {
        assert!(read_all(client) == **content, "{name} at the end");
    }
}

/// Backs up another machine, forgets and prunes, until it is `done`; how many packs were rewritten.
fn change_much(world: &World, mut chance: Chance, done: &AtomicBool) -> u64 {
    let image = world.text("other.raw");
    let mut content = chance.bytes(300_000);
    let mut rewritten = 0;
    while !done.load(Ordering::Relaxed) {
        chance.change(&mut content);
        std::fs::write(&image, &content).unwrap();
        world.ok(&["backup", "--image", &image, "--name", "other"]);
        world.ok(&["forget", "--domain", "other", "--keep-last", "1"]);
        let pruned = world.ok(&PRUNE).json().pop().unwrap();
        rewritten += pruned["packs_rewritten"].as_u64().unwrap();
    }
    rewritten
}
