//! A guest with everything on its disk, as most have it: boot loader, kernel, and what they start. It boots from
//! an export of `virtkeep serve`, which is a disk of a libvirt domain like any other, and from `virtkeep boot`.

use rustix::process::Signal;
use virtkeep_tests::{Machine, run, stack, text, wait_until};

use crate::boot::{assert_over, boot};
use crate::guest::{in_guest, wait_for_agent};
use crate::world::{World, id, unique_name};

/// A domain that boots from its first disk, and finds a file on its second one.
fn made_of_disks() -> World {
    World::with(|dir| {
        let boot = run(stack("guest.sh"), &["build"]);
        let [raw, system, data, content] =
            ["boot.raw", "a.qcow2", "b.qcow2", "content"].map(|name| dir.path().join(name));
        run(stack("guest.sh"), &["bootable", text(&raw)]);
        run(
            "qemu-img",
            &["convert", "-O", "qcow2", text(&raw), text(&system)],
        );
        std::fs::create_dir(&content).unwrap();
        std::fs::write(content.join("letter"), "dear guest\n").unwrap();
        run(
            stack("guest.sh"),
            &["disk", text(&data), "256M", text(&content)],
        );
        let machine = Machine::define_with(
            dir.path(),
            &unique_name(),
            &[system, data],
            &["--boot", boot.trim()],
        );
        let xml = machine.virsh("dumpxml", &["--inactive"]);
        let interface = "<interface type='user'><model type='virtio'/></interface></devices>";
        let xml = without_kernel(&xml).replace("</devices>", interface);
        machine.define_xml(&xml);
        machine
    })
}

/// A definition whose domain has to boot by itself.
fn without_kernel(xml: &str) -> String {
    let direct = ["<kernel>", "<initrd>", "<cmdline>"];
    let kept = xml
        .lines()
        .filter(|line| !direct.iter().any(|tag| line.contains(tag)));
    kept.map(|line| format!("{line}\n")).collect()
}

/// The definition with exports of a point in the place of the images.
fn on_exports(xml: &str, domain: &str, point: &str, socket: &str) -> String {
    let disk = |target| {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
             <source protocol='nbd' name='{domain}/{target}@{point}'>\
             <host transport='unix' socket='{socket}'/></source>\
             <target dev='{target}' bus='virtio'/><readonly/></disk>"
        )
    };
    let (before, rest) = xml.split_once("<disk ").unwrap();
    let (_, after) = rest.rsplit_once("</disk>").unwrap();
    [before, &disk("vda"), &disk("vdb"), after].concat()
}

/// The guest is up, and finds on its disks what was put there.
fn assert_complete(uuid: &str) {
    wait_for_agent(uuid);
    assert_eq!(in_guest(uuid, "cat /disks/vdb/letter"), "dear guest\n");
}

#[test]
fn a_guest_boots_from_exports_of_a_point_by_its_own_boot_loader() {
    let world = made_of_disks();
    let machine = &world.machine;
    let point = world.program.backup(&machine.uuid, &[]);
    let images = machine.virsh("dumpxml", &["--inactive"]);
    let socket = world.path("serve.sock");
    let listen = format!("unix:{}", text(&socket));
    let server = world.program.start(&["serve", "--listen", &listen]);
    wait_until("the server listens", || socket.exists());

    machine.define_xml(&on_exports(
        &images,
        &machine.name,
        id(&point),
        text(&socket),
    ));
    machine.virsh("start", &[]);
    assert_complete(&machine.uuid);
    let written = in_guest(
        &machine.uuid,
        "echo mine >/disks/vdb/letter || echo refused",
    );
    assert!(written.contains("refused"), "{written}");
    // All of it, as the guest's own kernel reads it.
    let sum = in_guest(&machine.uuid, "sha256sum </dev/vda");
    let restored = run("sha256sum", &[text(&world.path("boot.raw"))]);
    assert_eq!(sum[..64], restored[..64]);

    machine.power_off();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
}

/// The only interface of a running domain: its address, and whether its link is up.
fn interface(uuid: &str) -> (String, bool) {
    let list = run("virsh", &["--quiet", "domiflist", uuid]);
    let address = list.split_whitespace().last().unwrap().to_owned();
    let link = run("virsh", &["--quiet", "domif-getlink", uuid, &address]);
    (address, link.trim().ends_with("up"))
}

#[test]
fn a_guest_that_boots_by_itself_writes_while_it_is_recovered_and_its_file_system_is_clean() {
    let world = made_of_disks();
    let machine = &world.machine;
    let point = world.program.backup(&machine.uuid, &[]);
    let (clone, dir) = boot(&world, id(&point), &[]);
    let uuid = &clone.0;
    assert_complete(uuid);
    let original = machine.virsh("dumpxml", &["--inactive"]);
    let (address, is_up) = interface(uuid);
    assert!(!is_up && !original.contains(&address), "{address}");

    in_guest(uuid, "busy /disks/vdb >/dev/null 2>&1 &");
    let recorded = |least: u32| {
        let count = in_guest(uuid, "grep -c . /disks/vdb/sums || true");
        count.trim().parse::<u32>().unwrap() >= least
    };
    wait_until("it has written files", || recorded(1));
    world.program.ok(&["boot", "--finish"]);
    assert_over(&world, uuid);
    let said = in_guest(
        uuid,
        "killall busy; verify /disks/vdb; until umount /disks/vdb; do sleep 0.2; done",
    );
    assert!(said.contains("recorded files are right"), "{said}");
    run("virsh", &["destroy", uuid]);
    let raw = world.path("vdb.raw");
    let image = dir.join("vdb.qcow2");
    run(
        "qemu-img",
        &["convert", "-O", "raw", text(&image), text(&raw)],
    );
    run("/usr/sbin/e2fsck", &["-fn", text(&raw)]);
}

#[test]
fn a_clone_is_connected_only_where_that_is_wanted() {
    let world = made_of_disks();
    let point = world.program.backup(&world.machine.uuid, &[]);
    let (clone, _) = boot(&world, id(&point), &["--network"]);
    let (_, is_up) = interface(&clone.0);
    assert!(is_up);
    world.program.ok(&["boot", "--abort", "--yes"]);
}
