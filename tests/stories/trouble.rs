//! What goes wrong, and whom virtkeep shares a domain with.

use rustix::process::Signal;
use virtkeep_tests::{Debris, MIB, Program, run, text};

use crate::world::{World, assert_restores, id};

#[test]
fn what_a_killed_backup_left_is_cleared_by_the_next_one() {
    let world = World::with_disk(16 * MIB);
    let machine = &world.machine;
    machine.write_random(0, 1, 0, 8 * MIB);
    let first = world.back_up(&[]);
    machine.write_random(0, 2, MIB, MIB);

    let mut running = world.program.start(&["backup", &machine.uuid]);
    assert!(running.wait_for("backup begun with checkpoint"));
    running.signal(Signal::KILL);
    assert_eq!(running.wait().signal(), Some(9));
    let left = Debris::find(&world.program, machine);
    assert!(left.job, "the backup was too quick to be killed: {left:?}");
    assert_eq!(left.checkpoints.len(), 2);
    assert!(!left.files.is_empty());
    machine.io(0, "write -z 2M 1M");

    let ran = world.program.ok(&["--json", "backup", &machine.uuid]);
    assert!(
        ran.stderr
            .contains("removed what an earlier run left: its backup job"),
        "{ran:?}"
    );
    let point = ran.line("point");
    assert_eq!(point["disks"][0]["mode"], "incremental");
    let reason = format!("changes since {}", id(&first));
    assert_eq!(point["disks"][0]["reason"], reason);
    world.assert_tidy(id(&point));
    world.assert_restores(id(&point), &world.now());
}

#[test]
fn a_backup_that_is_told_to_stop_takes_its_traces_with_it() {
    let world = World::with_disk(64 * MIB);
    let machine = &world.machine;
    machine.write_random(0, 1, 0, 48 * MIB);
    let first = world.back_up(&[]);
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        machine.write_random(0, 2, 0, 48 * MIB);
        let mut running = world.program.start(&["backup", &machine.uuid]);
        assert!(running.wait_for("backup begun with checkpoint"));
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.code(), Some(code), "{ran:?}");
        world.assert_tidy(id(&first));
    }
    assert_eq!(world.program.points(), [id(&first)]);
}

#[test]
fn somebody_elses_backup_job_is_named_and_left_alone() {
    let world = World::with_disk(16 * MIB);
    let machine = &world.machine;
    let job = world.path("job.xml");
    let socket = world.path("theirs.sock");
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
        text(&socket)
    );
    std::fs::write(&job, xml).unwrap();
    machine.virsh("backup-begin", &[text(&job)]);
    let ran = world.program.run(&["backup", &machine.uuid]);
    ran.refused(11, "theirs.sock");
    assert!(machine.virsh("backup-dumpxml", &[]).contains("theirs.sock"));
    assert!(machine.checkpoints().is_empty());
    machine.virsh("domjobabort", &[]);
    let point = world.back_up(&[]);
    world.assert_restores(id(&point), &world.now());
}

#[test]
fn two_repositories_back_up_one_machine_without_knowing_of_each_other() {
    let world = World::with_disk(16 * MIB);
    let machine = &world.machine;
    let other = Program::init(&world.path("other"), &[]);
    machine.write_random(0, 1, 0, 8 * MIB);
    world.back_up(&[]);
    let here = |number: u64| {
        machine.write_random(0, number, number * MIB, MIB);
        let point = world.back_up(&[]);
        assert_eq!(
            point["disks"][0]["mode"],
            if number == 0 { "full" } else { "incremental" }
        );
        (id(&point).to_owned(), world.now())
    };
    let there = |number: u64| {
        machine.io(0, &format!("write -z {}M 700k", number));
        let point = other.backup(&machine.uuid, &[]);
        (id(&point).to_owned(), world.now())
    };
    let theirs = [there(1)];
    let ours = [here(2), here(3)];
    let theirs = [&theirs[..], &[there(4)]].concat();
    let ours = [&ours[..], &[here(5)]].concat();
    assert_eq!(machine.checkpoints().len(), 2);
    for (point, content) in &ours {
        world.assert_restores(point, content);
    }
    for (point, content) in &theirs {
        assert_restores(&other, &world.images, point, content);
    }
    let shown = other.ok(&["--json", "show", &theirs[1].0]).line("point");
    assert_eq!(shown["disks"][0]["mode"], "incremental");
    let last = &theirs[1].0;
    Debris::find(&other, machine).assert_only(
        &[&format!("virtkeep-{}-{last}", other.short_id())],
        "after the other's backup",
    );
}

#[test]
fn release_takes_our_checkpoint_off_and_leaves_that_of_others() {
    let world = World::with_disk(16 * MIB);
    let machine = &world.machine;
    machine.virsh("checkpoint-create-as", &["somebody-elses"]);
    world.back_up(&[]);
    assert_eq!(machine.checkpoints().len(), 2);
    let released = world
        .program
        .ok(&["--json", "release", &machine.uuid])
        .line("released");
    assert_eq!(released["checkpoints"].as_array().unwrap().len(), 1);
    assert_eq!(machine.checkpoints(), ["somebody-elses"]);
    machine.write_random(0, 1, 0, MIB);
    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["mode"], "full");
    world.assert_restores(id(&point), &world.now());
}

#[test]
fn a_released_machine_can_be_undefined_also_when_it_is_shut_off() {
    let world = World::with_disk(16 * MIB);
    world.back_up(&[]);
    world.machine.power_off();
    world.program.ok(&["release", &world.machine.uuid]);
    assert!(world.machine.checkpoints().is_empty());
    let info = run("qemu-img", &["info", text(&world.path("a.qcow2"))]);
    assert!(!info.contains("virtkeep"), "{info}");
    world.machine.virsh("undefine", &[]);
}
