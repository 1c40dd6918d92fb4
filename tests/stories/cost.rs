//! What backups and restores cost follows from what changed, not from how much or how often.

use serde_json::Value;
use virtkeep_tests::{MIB, Machine, text};

use crate::world::{World, figure, id, unique_name};

const CHUNK: u64 = 64 << 10;

#[test]
fn an_incremental_after_twenty_dirty_chunks_reads_and_stores_only_those() {
    let world = World::with_disk(512 * MIB);
    world.machine.write_random(0, 1, 0, 160 * MIB);
    let full = world.back_up(&[]);
    assert_eq!(figure(&full, "read_bytes"), 160 * MIB);
    assert_eq!(figure(&full, "new_bytes"), 160 * MIB);

    // One sector each; two chunks share a leaf of the manifest.
    for number in 0..20 {
        let start = (number / 2) * 16 * MIB + (number % 2) * MIB + 4096;
        world.machine.write_random(0, 100 + number, start, 512);
    }
    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["mode"], "incremental");
    assert_eq!(figure(&point, "dirty_bytes"), 20 * CHUNK);
    assert_eq!(figure(&point, "read_bytes"), 20 * CHUNK);
    assert_eq!(figure(&point, "new_bytes"), 20 * CHUNK);
    // Ten leaves, what is above them, and the small header of each record.
    let shown = world
        .program
        .ok(&["--json", "show", id(&point)])
        .line("point");
    assert_eq!(figure(&shown, "new_chunks"), 20);
    let nodes = figure(&shown, "new_nodes");
    assert!((11..=13).contains(&nodes), "{nodes} nodes");
    let stored = figure(&point, "stored_bytes");
    let most = 20 * (CHUNK + 200) + nodes * 8400;
    assert!(
        (20 * CHUNK..most).contains(&stored),
        "{stored} bytes, at most {most}"
    );

    let idle = world.back_up(&[]);
    for name in ["dirty_bytes", "read_bytes", "new_bytes", "stored_bytes"] {
        assert_eq!(figure(&idle, name), 0, "{name} of an idle disk");
    }
    world.assert_restores(id(&idle), &world.now());
}

#[test]
fn a_second_full_read_stores_no_new_chunk() {
    let world = World::with_disk(64 * MIB);
    world.machine.write_random(0, 1, 0, 40 * MIB);
    world.back_up(&[]);
    let again = world.back_up(&["--full"]);
    assert_eq!(again["disks"][0]["mode"], "full");
    assert_eq!(figure(&again, "read_bytes"), 40 * MIB);
    assert_eq!(figure(&again, "new_bytes"), 0);
    assert_eq!(figure(&again, "stored_bytes"), 0);
}

#[test]
fn a_clone_of_a_machine_adds_almost_nothing() {
    let world = World::with_disk(64 * MIB);
    world.machine.write_random(0, 1, 0, 40 * MIB);
    world.back_up(&[]);
    world.machine.power_off();
    let image = world.path("clone.qcow2");
    std::fs::copy(world.path("a.qcow2"), &image).unwrap();
    let dir = image.parent().unwrap();
    let clone = Machine::define_with(dir, &unique_name(), std::slice::from_ref(&image), &[]);
    clone.start_paused();
    clone.write_random(0, 2, 10 * MIB, 4096);
    let point = world.program.backup(&clone.uuid, &[]);
    assert_eq!(point["disks"][0]["reason"], "first backup");
    assert_eq!(figure(&point, "read_bytes"), 40 * MIB);
    assert_eq!(figure(&point, "new_bytes"), CHUNK);
    let content = world.images.keep(&clone);
    world.assert_restores(id(&point), &content);
}

#[test]
fn the_first_and_the_last_point_of_a_history_take_the_same_work_to_restore() {
    let world = World::with_disk(48 * MIB);
    world.machine.write_random(0, 1, 0, 32 * MIB);
    let mut points: Vec<Value> = vec![world.back_up(&[])];
    let first = world.now();
    for number in 0..24 {
        let start = (number * 7 % 32) * MIB;
        world
            .machine
            .write_random(0, 100 + number, start, 256 << 10);
        points.push(world.back_up(&[]));
    }
    let [oldest, .., newest] = &points[..] else {
        panic!()
    };
    world.assert_restores(id(oldest), &first);
    world.assert_restores(id(newest), &world.now());
    let work = |point: &Value| {
        let to = world.path(id(point));
        let words = ["restore", id(point), "--to", text(&to), "--format", "raw"];
        world.program.start(&words).bytes_read()
    };
    let (oldest, newest) = (work(oldest), work(newest));
    // Headers and tables of more packs, but no chunk of any point between.
    assert!(oldest >= 32 * MIB);
    assert!(
        newest < oldest + oldest / 20,
        "{oldest} bytes read for the first, {newest} for the last"
    );
}
