//! A server that runs for weeks: points come and go, packs are rewritten and deleted, and clients by the
//! thousand leave nothing behind.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::{MINUTE, history};
use crate::serving::{Serving, read_all};
use crate::world::{NOON, TestDomain, World, disk, wait_until};

/// The size of all packs together.
pub(super) fn packed_bytes(world: &World) -> u64 {
    let folders = world.names("repo/packs").into_iter();
    let packs = folders.flat_map(|folder| {
        let folder = format!("repo/packs/{folder}");
        let names = world.names(&folder).into_iter();
        names.map(move |name| format!("{folder}/{name}"))
    });
    packs
        .map(|pack| std::fs::metadata(world.path(&pack)).unwrap().len())
        .sum()
}

pub(super) const PRUNE: [&str; 4] = ["--json", "prune", "--max-unused", "0%"];

#[test]
fn a_client_that_stays_and_asks_for_nothing_holds_no_space_of_what_is_pruned() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    let mut client = serving.open("web1/vda@latest");
    assert!(read_all(&mut client) == history[2]);
    world.ok(&["forget", "web1@latest~1", "web1@latest~2"]);
    // What it reads is copied together, and the packs that it was read from are deleted.
    let pruned = world.ok(&PRUNE).json().pop().unwrap();
    assert!(pruned["packs_rewritten"].as_u64().unwrap() > 0, "{pruned}");
    wait_until("let go", || {
        let packs = world.path("repo/packs");
        let mut open = serving.open_files().into_iter();
        !open.any(|file| file.starts_with(&packs) && !file.exists())
    });
    assert!(read_all(&mut client) == history[2], "where it is now");
}

#[test]
fn what_a_client_has_open_outlives_forget_and_prune_until_it_leaves() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    let content = disk(2);
    let point = world.add(TestDomain {
        time: NOON + MINUTE,
        ..TestDomain::web1(&content)
    });
    let serving = Serving::start(&world, &[]);
    let mut client = serving.open("web1/vda@latest");
    world.ok(&["forget", "web1@latest"]);
    serving.refused(&point.id.to_string());
    world.ok(&PRUNE);
    let held = packed_bytes(&world);
    // It had read nothing before: whatever it gets comes from packs that were spared.
    assert!(read_all(&mut client) == content);
    world.ok(&PRUNE);
    assert!(read_all(&mut client) == content);
    assert_eq!(packed_bytes(&world), held);

    client.shutdown(None).unwrap();
    wait_until("let go", || world.names("repo/leases").is_empty());
    world.ok(&PRUNE);
    let kept = packed_bytes(&world);
    // Nothing that the disk has alone can be compressed.
    assert!(kept < held - (1 << 20), "{kept} of {held} bytes");
    assert!(read_all(&mut serving.open("web1/vda@latest"))[..] == disk(1)[..]);
}

#[test]
fn clients_by_the_thousand_leave_nothing_behind() {
    let count: usize = std::env::var("VIRTKEEP_CLIENTS").map_or(1000, |n| n.parse().unwrap());
    let world = World::new();
    history(&world);
    let serving = Serving::start(&world, &[]);
    let come_and_go = |clients: std::ops::Range<usize>| {
        for number in clients {
            let export = format!("web1/vda@latest~{}", number % 3);
            match number % 5 {
                // In order, or without a word after a read.
                0 => serving.open(&export).shutdown(None).unwrap(),
                1 => drop(serving.open(&export).read(0, 100_000).unwrap()),
                2 => drop(serving.open(&export).submit_read(0, vec![0; 4 << 20])),
                // In the handshake, in the middle of a word.
                3 => drop(UnixStream::connect(world.path("socket")).unwrap()),
                _ => {
                    let mut client = UnixStream::connect(world.path("socket")).unwrap();
                    client.read_exact(&mut [0; 18]).unwrap();
                    client.write_all(b"\0\0\0\x03IHAVE").unwrap();
                }
            }
        }
        wait_until("let go", || world.names("repo/leases").is_empty());
    };
    come_and_go(0..100);
    let settle = || {
        wait_until("alone", || serving.threads_of_clients() == 0);
        (serving.open_files().len(), serving.memory("VmRSS"))
    };
    let (files, memory) = settle();
    come_and_go(0..count);
    let (files_after, memory_after) = settle();
    assert_eq!(files_after, files);
    let grown = memory_after.saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes after {count} clients");
}
