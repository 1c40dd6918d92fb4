//! Domains that are defined from a point, by `restore --define` and by `boot`, on the real libvirt: whatever the
//! original was made of, they stand on what was restored, and start.

use std::path::Path;

use virtkeep_tests::{DiskSpec, MIB, Machine, run, text};

use crate::guest::{Defined, booted, in_guest, wait_for_agent};
use crate::world::{World, id, unique_name};

/// A drive for media.
fn drive(kind: &str, target: &str, source: &str) -> String {
    format!(
        "<disk type='{kind}' device='cdrom'><driver name='qemu' type='raw'/>{source}\
         <target dev='{target}' bus='scsi'/><readonly/></disk>"
    )
}

/// Drives with media in files and in a storage pool.
fn drives(dir: &Path) -> String {
    let file = |name: &str| format!("<source file='{}'/>", text(&dir.join(name)));
    let volume = |name: &str| format!("<source pool='{}' volume='{name}'/>", pool(dir));
    [
        "<controller type='scsi' model='virtio-scsi'/>".to_owned(),
        drive("file", "sda", &file("pool/here.iso")),
        drive("file", "sdb", &file("gone.iso")),
        drive("volume", "sdc", &volume("here.iso")),
        drive("volume", "sdd", &volume("gone-too.iso")),
    ]
    .concat()
}

/// Redefines a machine with more devices.
fn add_devices(machine: &Machine, devices: &str) {
    let xml = machine.virsh("dumpxml", &["--inactive"]);
    machine.define_xml(&xml.replace("</devices>", &format!("{devices}</devices>")));
}

/// The name of a storage pool that nobody else has.
fn pool(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_str().unwrap();
    format!("pool-{}", name.trim_start_matches('.'))
}

/// A running domain whose disks are chains of snapshots, with drives for media of all kinds.
fn many_layers() -> World {
    let world = World::with(|dir| {
        let dir = dir.path();
        std::fs::create_dir(dir.join("pool")).unwrap();
        for name in ["pool/here.iso", "pool/gone-too.iso", "gone.iso"] {
            std::fs::write(dir.join(name), vec![0; 64 << 10]).unwrap();
        }
        let to = dir.join("pool");
        let words = ["pool-create-as", &pool(dir), "dir", "--target", text(&to)];
        run("virsh", &words);
        let disks = [
            DiskSpec::new("a.qcow2", 32 * MIB),
            DiskSpec::new("b.qcow2", 16 * MIB),
        ];
        let machine = Machine::define(dir, &unique_name(), &disks);
        add_devices(&machine, &drives(dir));
        machine
    });
    let machine = &world.machine;
    machine.start_paused();
    // Nobody serves it, so it could not start with this one.
    let far = "<source protocol='https' name='/far.iso'><host name='localhost' port='1'/></source>";
    add_devices(machine, &drive("network", "sde", far));
    machine.write_random(0, 1, 0, 5 * MIB);
    machine.write_random(1, 2, MIB, 3 * MIB);
    for (number, name) in ["s1", "s2"].into_iter().enumerate() {
        machine.virsh("snapshot-create-as", &[name, "--disk-only"]);
        let seed = 10 + u64::try_from(number).unwrap();
        machine.write_random(0, seed, seed * MIB, 2 * MIB);
    }
    world
}

/// The definition of a domain, which stands on images in `dir` and nothing else.
#[track_caller]
fn assert_stands_alone(uuid: &str, dir: &Path) -> String {
    let xml = run("virsh", &["dumpxml", "--inactive", uuid]);
    for target in ["vda", "vdb"] {
        let source = format!("<source file='{}/{target}.qcow2'/>", text(dir));
        assert!(xml.contains(&source), "{xml}");
        let info = run(
            "qemu-img",
            &["info", "-U", text(&dir.join(format!("{target}.qcow2")))],
        );
        assert!(!info.contains("backing file"), "{info}");
    }
    assert!(!xml.contains("<backingStore type="), "{xml}");
    let snapshots = run("virsh", &["--quiet", "snapshot-list", uuid]);
    assert_eq!(snapshots.trim(), "");
    xml
}

#[track_caller]
fn assert_media(xml: &str) {
    let media: Vec<&str> = xml.lines().filter(|line| line.contains(".iso")).collect();
    assert_eq!(media.len(), 2, "{media:?}");
    assert!(
        media.iter().all(|line| line.contains("here.iso")),
        "{media:?}"
    );
    assert_eq!(xml.matches("device='cdrom'").count(), 5, "{xml}");
}

/// Restores a clone of a point and starts it; the domain, and the notes about it.
fn restore_clone(world: &World, point: &str, to: &Path) -> (Defined, String) {
    let name = format!("{}-clone", world.machine.name);
    let words = ["--json", "restore", point, "--to", text(to), "--define"];
    let all = [&words[..], &["--name", &name, "--start"]].concat();
    let defined = world.program.ok(&all).line("restored")["defined"].take();
    let uuid = defined["uuid"].as_str().unwrap().to_owned();
    (Defined(uuid), defined["notes"].to_string())
}

/// Boots a clone of a point, and has its data moved in.
fn boot_clone(world: &World, point: &str, to: &Path) -> Defined {
    let name = format!("{}-boot", world.machine.name);
    let words = ["--json", "boot", point, "--to", text(to), "--name", &name];
    let line = world.program.ok(&words).line("booted");
    Defined(line["uuid"].as_str().unwrap().to_owned())
}

#[test]
fn a_machine_of_chains_and_media_is_defined_flat_with_what_is_there() {
    let world = many_layers();
    let expected = world.now();
    let point = world.back_up(&[]);
    let machine = &world.machine;
    machine.power_off();
    for name in ["gone.iso", "pool/gone-too.iso"] {
        std::fs::remove_file(world.path(name)).unwrap();
    }
    run("virsh", &["pool-refresh", &pool(world.path("").as_path())]);

    let to = world.path("clone");
    let (clone, notes) = restore_clone(&world, id(&point), &to);
    for medium in ["gone.iso", "gone-too.iso", "/far.iso"] {
        assert!(notes.contains(medium), "{notes}");
    }
    assert_media(&assert_stands_alone(&clone.0, &to));
    run("virsh", &["destroy", &clone.0]);
    world.images.compare(&expected, &to, "qcow2", "the clone");

    let to = world.path("boot");
    let booted = boot_clone(&world, id(&point), &to);
    assert_media(&assert_stands_alone(&booted.0, &to));
    run("virsh", &["destroy", &booted.0]);
    world
        .images
        .compare(&expected, &to, "qcow2", "what was booted");

    let words = ["--checkpoints-metadata", "--snapshots-metadata"];
    machine.virsh("undefine", &words);
    let to = world.path("original");
    let words = ["restore", id(&point), "--to", text(&to), "--define"];
    world
        .program
        .ok(&[&words[..], &["--as-original", "--start"]].concat());
    assert_media(&assert_stands_alone(&machine.uuid, &to));
    machine.power_off();
    world
        .images
        .compare(&expected, &to, "qcow2", "the original");
    run("virsh", &["pool-destroy", &pool(world.path("").as_path())]);
}

#[test]
fn a_machine_with_uefi_finds_its_firmware_variables_again() {
    let world = booted(&["--uefi"]);
    let machine = &world.machine;
    let variable = "/sys/firmware/efi/efivars/Story-12345678-1234-4321-8765-123456789abc";
    // Four bytes of attributes come first.
    let write = format!("printf '\\007\\000\\000\\000before' >{variable}");
    in_guest(&machine.uuid, &write);
    let point = world.back_up(&[]);
    in_guest(&machine.uuid, &write.replace("Story-", "Later-"));
    machine.power_off();
    let variables_of_original = std::fs::read(world.path(&format!("{}.variables", machine.name)));

    let to = world.path("clone");
    let (clone, _) = restore_clone(&world, id(&point), &to);
    let booted = world.path("boot");
    let recovered = boot_clone(&world, id(&point), &booted);
    for (domain, dir) in [(&clone, &to), (&recovered, &booted)] {
        wait_for_agent(&domain.0);
        let all = "/sys/firmware/efi/efivars/*-12345678-1234-4321-8765-123456789abc";
        let found = in_guest(&domain.0, &format!("ls {all}; tail -c 6 {variable}"));
        assert_eq!(found, format!("{variable}\nbefore"));
        let xml = run("virsh", &["dumpxml", "--inactive", &domain.0]);
        assert!(
            xml.contains(&format!("{}/nvram.fd</nvram>", text(dir))),
            "{xml}"
        );
    }
    let still = std::fs::read(world.path(&format!("{}.variables", machine.name)));
    assert!(still.unwrap() == variables_of_original.unwrap());
    let trials = world.path("trials");
    std::fs::create_dir(&trials).unwrap();
    world
        .program
        .ok(&["boot", id(&point), "--test", "--to", text(&trials)]);
    assert_eq!(std::fs::read_dir(&trials).unwrap().count(), 0);
}
