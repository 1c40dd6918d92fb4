//! Running and paused domains, when all goes well.

use virtkeep_capture::{FreezePlan, Options, plan, release};
use virtkeep_repo::{Cancel, CaptureMode, Consistency, FileRole, SourceKind};

use crate::world::{Log, MIB, World, options, run, text};

#[test]
fn every_point_restores_written_zeroed_and_discarded_ranges_byte_for_byte() {
    let world = World::started(&["a.qcow2", "b.qcow2"]);
    world.io(0, "write -P 0x5a 0 32M");
    world.io(1, "write -P 0x11 1000k 5M");
    let first = (world.backup(), world.references());

    world.io(0, "write -P 0x77 5000192 70656");
    world.io(0, "write -z 8M 1M");
    world.io(0, "write -z -u 12M 512k");
    world.io(0, "write -z 20000256 1536");
    world.io(0, "discard 16M 2M");
    world.io(1, "write -P 0x22 60M 4M");
    let second = (world.backup(), world.references());
    let idle = (world.backup(), world.references());

    for disk in &first.0.disks {
        assert_eq!(
            (disk.mode, &*disk.reason),
            (CaptureMode::Full, "first backup")
        );
    }
    for disk in &second.0.disks {
        assert_eq!(disk.mode, CaptureMode::Incremental, "{}", disk.reason);
        assert!(disk.stats.read_bytes < 5 * MIB, "{:?}", disk.stats);
        assert_eq!(disk.parent, Some(first.0.id));
    }
    for disk in &idle.0.disks {
        assert_eq!((disk.stats.read_bytes, disk.stats.dirty_bytes), (0, 0));
    }
    for (point, references) in [&first, &second, &idle] {
        world.assert_restores(point, references);
    }
    assert_ne!(first.1, second.1);
    assert_eq!(world.checkpoints(), [idle.0.checkpoint.clone().unwrap()]);
    world.assert_nothing_runs();
}

#[test]
fn a_disk_that_shrank_and_grew_again_reads_zero_where_it_was_cut() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 64M");
    world.backup();
    world.virsh(&["blockresize", &world.name, "vda", "60M"]);
    world.virsh(&["blockresize", &world.name, "vda", "64M"]);
    let point = world.backup();
    assert_eq!(point.disks[0].mode, CaptureMode::Incremental);
    world.assert_restores(&point, &world.references());
}

#[test]
fn a_disk_that_grew_is_still_read_incrementally_and_one_that_shrank_in_full() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 64M");
    world.backup();
    world.virsh(&["blockresize", &world.name, "vda", "72M"]);
    world.io(0, "write -P 0x33 66M 100k");
    let grown = world.backup();
    assert_eq!(grown.disks[0].mode, CaptureMode::Incremental);
    world.assert_restores(&grown, &world.references());
    world.virsh(&["blockresize", &world.name, "vda", "50M"]);
    let shrunk = world.backup();
    assert_eq!(shrunk.disks[0].mode, CaptureMode::Full);
    assert!(shrunk.disks[0].reason.contains("shrank"));
    world.assert_restores(&shrunk, &world.references());
}

#[test]
fn raw_disks_are_read_in_full_beside_incremental_ones() {
    let world = World::started(&["a.qcow2", "b.raw"]);
    world.io(0, "write -P 0x5a 0 4M");
    world.io(1, "write -P 0x5b 1M 4M");
    world.backup();
    world.io(1, "write -z 2M 1M");
    let point = world.backup();
    assert_eq!(point.disks[0].mode, CaptureMode::Incremental);
    assert_eq!(point.disks[1].mode, CaptureMode::Full);
    assert_eq!(point.disks[1].reason, "raw image has no dirty bitmap");
    assert_eq!(point.disks[1].checkpoint, None);
    assert_eq!(point.disks[1].stats.new_chunks, 0);
    world.assert_restores(&point, &world.references());
}

#[test]
fn an_external_snapshot_between_two_backups_is_followed() {
    let world = World::started(&["a.qcow2"]);
    world.io(0, "write -P 0x5a 0 8M");
    world.backup();
    world.io(0, "write -P 0x01 1M 64k");
    let overlay = world.dir.path().join("overlay.qcow2");
    let spec = format!("vda,file={}", text(&overlay));
    world.virsh(&[
        "snapshot-create-as",
        &world.name,
        "s",
        "--disk-only",
        "--diskspec",
        &spec,
    ]);
    world.io(0, "write -P 0x02 2M 64k");
    world.io(0, "flush");
    let point = world.backup();
    assert_eq!(
        point.disks[0].mode,
        CaptureMode::Incremental,
        "{}",
        point.disks[0].reason
    );
    assert!(point.disks[0].stats.read_bytes < MIB);
    world.assert_restores(&point, &[crate::world::read_image(&overlay, "qcow2")]);
    world.virsh(&["snapshot-delete", &world.name, "s", "--metadata"]);
}

#[test]
fn other_peoples_checkpoints_are_left_alone() {
    let world = World::started(&["a.qcow2"]);
    world.virsh(&[
        "checkpoint-create-as",
        &world.name,
        "foreign",
        "--diskspec",
        "vda",
    ]);
    world.backup();
    let point = world.backup();
    assert_eq!(point.disks[0].mode, CaptureMode::Incremental);
    let mut expected = vec!["foreign".to_owned(), point.checkpoint.unwrap()];
    let mut found = world.checkpoints();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn no_checkpoint_leaves_none() {
    let world = World::started(&["a.qcow2"]);
    world.backup();
    let options = Options {
        no_checkpoint: true,
        ..options()
    };
    let point = world
        .try_backup(&options, &Log::default(), &Cancel::new())
        .unwrap();
    assert_eq!(point.checkpoint, None);
    assert!(world.checkpoints().is_empty());
    let next = world.backup();
    assert_eq!(next.disks[0].mode, CaptureMode::Full);
    assert_eq!(
        next.disks[0].reason,
        "the last point was made without a checkpoint"
    );
}

#[test]
fn a_plan_says_what_a_backup_would_do_and_touches_nothing() {
    let world = World::started(&["a.qcow2", "b.raw"]);
    world.backup();
    let before = (world.checkpoints(), world.repo.points().unwrap().len());
    let plan = plan(&world.host, &world.domain(), &world.repo, &options()).unwrap();
    assert_eq!(plan.obstacle, None);
    assert_eq!(plan.source, SourceKind::Live);
    assert_eq!(plan.disks[0].mode, CaptureMode::Incremental);
    assert_eq!(
        plan.disks[0].scratch.as_ref().unwrap().dir,
        world.dir.path()
    );
    assert_eq!(plan.disks[1].reason, "raw image has no dirty bitmap");
    assert!(matches!(&plan.freeze, FreezePlan::Skip(why) if why == "the guest is paused"));
    assert_eq!(
        before,
        (world.checkpoints(), world.repo.points().unwrap().len())
    );
}

#[test]
fn the_point_keeps_the_domains_xml_and_the_log_of_the_run() {
    let world = World::started(&["a.qcow2"]);
    let log = Log::default();
    let point = world.try_backup(&options(), &log, &Cancel::new()).unwrap();
    assert_eq!(point.consistency, Consistency::Crash);
    let content = |role| {
        let file = point.files.iter().find(|file| file.role == role).unwrap();
        String::from_utf8(world.repo.read_file(&point, file).unwrap()).unwrap()
    };
    assert!(content(FileRole::DomainXml).contains(&world.name));
    assert!(content(FileRole::LiveXml).contains("id="));
    assert!(content(FileRole::Log).contains("guest not frozen: the guest is paused"));
    assert!(log.text().contains("committed"));
}

#[test]
fn release_takes_only_our_checkpoints_off_a_running_domain() {
    let world = World::started(&["a.qcow2", "b.qcow2"]);
    world.virsh(&[
        "checkpoint-create-as",
        &world.name,
        "foreign",
        "--diskspec",
        "vda",
    ]);
    let point = world.backup();
    let removed = release(&world.host, &world.domain(), &world.repo, &Log::default()).unwrap();
    assert_eq!(removed, [point.checkpoint.unwrap()]);
    assert_eq!(world.checkpoints(), ["foreign"]);
}

#[test]
fn release_takes_the_bitmaps_out_of_the_images_of_a_domain_that_is_shut_off() {
    let world = World::started(&["a.qcow2"]);
    let name = world.backup().checkpoint.unwrap();
    world.virsh(&["destroy", &world.name]);
    let info = || run("qemu-img", &["info", text(world.image(0))]);
    assert!(info().contains(&name));
    release(&world.host, &world.domain(), &world.repo, &Log::default()).unwrap();
    assert!(!info().contains(&name));
    assert!(world.checkpoints().is_empty());
}
