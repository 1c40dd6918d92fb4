//! A real Linux guest, that freezes its file systems, keeps writing files, and knows their sums.

use rustix::process::Signal;
use virtkeep_tests::{Machine, run, stack, text, wait_until};

use crate::world::{World, id, unique_name};

/// A guest with one file system of this size; `words` go to `domain-xml`.
pub(crate) fn booted(words: &[&str]) -> World {
    let boot = run(stack("guest.sh"), &["build"]);
    let mut words = words.to_vec();
    words.extend(["--boot", boot.trim()]);
    let world = World::with(|dir| {
        let disk = dir.path().join("a.qcow2");
        run(stack("guest.sh"), &["disk", text(&disk), "256M"]);
        Machine::define_with(dir.path(), &unique_name(), &[disk], &words)
    });
    world.machine.virsh("start", &[]);
    wait_for_agent(&world.machine.uuid);
    world
}

pub(crate) fn wait_for_agent(uuid: &str) {
    run(stack("guest.sh"), &["wait", uuid, "120"]);
}

pub(crate) fn in_guest(uuid: &str, command: &str) -> String {
    run(stack("guest.sh"), &["run", uuid, command])
}

fn is_frozen(machine: &Machine) -> bool {
    let ask = "{\"execute\":\"guest-fsfreeze-status\"}";
    machine
        .virsh("qemu-agent-command", &[ask])
        .contains("\"frozen\"")
}

#[test]
fn a_guest_that_is_frozen_when_the_backup_is_ended_is_thawed() {
    let world = booted(&[]);
    let machine = &world.machine;
    let point = world.back_up(&[]);
    let shown = world
        .program
        .ok(&["--json", "show", id(&point)])
        .line("point");
    assert_eq!(shown["consistency"], "frozen");
    for signal in [Signal::TERM, Signal::KILL] {
        let mut running = world.program.start(&["backup", &machine.uuid]);
        assert!(running.wait_for("guest frozen"));
        running.signal(signal);
        running.wait();
        wait_until("the guest is thawed", || !is_frozen(machine));
        in_guest(&machine.uuid, "echo alive >/disks/vda/alive; sync");
    }
    world.back_up(&[]);
}

#[test]
fn a_restored_machine_boots_and_finds_its_files_as_they_were() {
    let world = booted(&["--busy"]);
    let machine = &world.machine;
    let lines_of = |uuid: &str| -> u32 {
        in_guest(uuid, "grep -c . /disks/vda/sums || true")
            .trim()
            .parse()
            .unwrap()
    };
    wait_until("the guest has written files", || {
        lines_of(&machine.uuid) >= 5
    });
    world.program.backup(&machine.uuid, &[]);
    wait_until("the guest has written more", || {
        lines_of(&machine.uuid) >= 10
    });
    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["mode"], "incremental");

    let name = format!("{}-clone", machine.name);
    let to = world.path("clone");
    let words = ["--json", "restore", id(&point), "--to", text(&to)];
    let define = ["--define", "--name", &name, "--start"];
    let restored = world
        .program
        .ok(&[&words[..], &define[..]].concat())
        .line("restored");
    let uuid = restored["defined"]["uuid"].as_str().unwrap().to_owned();
    let clone = Defined(uuid);
    assert_ne!(clone.0, machine.uuid);
    assert!(machine.is_active());
    wait_for_agent(&clone.0);
    assert_all_right(&clone.0);
    drop(clone);

    let as_original = ["--define", "--as-original", "--start"];
    let to = world.path("original");
    let words = ["--json", "restore", id(&point), "--to", text(&to)];
    let words = [&words[..], &as_original[..]].concat();
    world.program.run(&words).refused(1, "undefine it first");
    machine.power_off();
    world.program.ok(&["release", &machine.uuid]);
    machine.virsh("undefine", &[]);
    let restored = world.program.ok(&words).line("restored");
    assert_eq!(restored["defined"]["uuid"], *machine.uuid);
    assert_eq!(restored["defined"]["name"], *machine.name);
    wait_for_agent(&machine.uuid);
    assert_all_right(&machine.uuid);

    let point = world.back_up(&[]);
    assert_eq!(point["disks"][0]["mode"], "full");
}

/// All files that the guest recorded are as it recorded them; it goes on writing meanwhile.
pub(crate) fn assert_all_right(uuid: &str) {
    let said = in_guest(
        uuid,
        "killall busy; verify /disks/vda; (busy /disks/vda >/dev/null 2>&1 &)",
    );
    assert!(said.contains("recorded files are right"), "{said}");
}

/// A domain that virtkeep defined.
pub(crate) struct Defined(pub(crate) String);

impl Drop for Defined {
    fn drop(&mut self) {
        for words in [&["destroy", &self.0][..], &["undefine", "--nvram", &self.0]] {
            let _ = std::process::Command::new("virsh").args(words).output();
        }
    }
}
