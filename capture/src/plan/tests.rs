//! Decisions about single disks, on literal descriptions.

use virtkeep_repo::{Consistency, DiskStats, DomainUuid, RootId, UnixMillis};

use super::*;

const GIB: u64 = 1 << 30;

fn disk_xml() -> DiskXml {
    DiskXml {
        target: "vda".into(),
        format: "qcow2".into(),
        source: SourceXml::File("/images/a.qcow2".into()),
        ..DiskXml::default()
    }
}

fn point(number: u8, checkpoint: Option<&str>) -> Point {
    Point {
        id: PointId::from_bytes([number; 10]),
        domain: Domain {
            uuid: DomainUuid::from_bytes([1; 16]),
            name: "web".into(),
        },
        source: SourceKind::Live,
        host: "host".into(),
        time: UnixMillis(u64::from(number)),
        committed: UnixMillis(u64::from(number)),
        consistency: Consistency::Crash,
        checkpoint: checkpoint.map(Into::into),
        disks: vec![Disk {
            target: "vda".into(),
            size: ByteLen(GIB),
            root: RootId::from_bytes([number; 32]),
            mode: CaptureMode::Full,
            reason: String::new(),
            checkpoint: checkpoint.map(Into::into),
            parent: None,
            format: "qcow2".into(),
            location: "/images/a.qcow2".into(),
            backing: Vec::new(),
            stats: DiskStats::default(),
        }],
        files: Vec::new(),
        tags: Vec::new(),
    }
}

fn sound(checkpoints: &[(&str, &[&str])]) -> Sound {
    checkpoints
        .iter()
        .map(|(name, disks)| {
            let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
            ((*name).to_owned(), disks)
        })
        .collect()
}

fn decide_for(disk: &DiskXml, size: u64, points: &[Point], sound: &Sound) -> (CaptureMode, String) {
    let plan = disk_plan(
        disk,
        ByteLen(size),
        &Options::default(),
        points,
        sound,
        true,
    );
    (plan.mode, plan.reason)
}

#[test]
fn a_disk_with_a_sound_bitmap_of_the_last_point_is_read_incrementally() {
    let points = [point(2, Some("b")), point(1, Some("a"))];
    let sound = sound(&[("a", &["vda"]), ("b", &["vda"])]);
    let plan = disk_plan(
        &disk_xml(),
        ByteLen(GIB),
        &Options::default(),
        &points,
        &sound,
        true,
    );
    assert_eq!(plan.mode, CaptureMode::Incremental);
    assert_eq!(plan.since.as_deref(), Some("b"));
    assert_eq!(plan.parent.unwrap().0, points[0].id);
}

#[test]
fn a_point_made_at_rest_does_not_hide_the_checkpoint_before_it() {
    let points = [point(2, None), point(1, Some("a"))];
    let sound = sound(&[("a", &["vda"])]);
    let plan = disk_plan(
        &disk_xml(),
        ByteLen(GIB),
        &Options::default(),
        &points,
        &sound,
        true,
    );
    assert_eq!(plan.since.as_deref(), Some("a"));
    assert_eq!(plan.parent.unwrap().0, points[1].id);
}

#[test]
fn whatever_is_not_proved_is_read_in_full_and_says_why() {
    let points = [point(1, Some("a"))];
    let good = sound(&[("a", &["vda"])]);
    let full = |disk: &DiskXml, size, points: &[Point], sound: &Sound| {
        let (mode, reason) = decide_for(disk, size, points, sound);
        assert_eq!(mode, CaptureMode::Full, "{reason}");
        reason
    };
    let disk = disk_xml();
    assert_eq!(full(&disk, GIB, &[], &good), "first backup");
    assert_eq!(
        full(&disk, GIB, &points, &sound(&[("a", &["vdb"])])),
        "the bitmap of the last point is missing or broken"
    );
    assert_eq!(
        full(&disk, GIB, &points, &sound(&[])),
        "the checkpoint of the last point is gone"
    );
    assert_eq!(
        full(&disk, GIB, &[point(1, None)], &good),
        "the last point was made without a checkpoint"
    );
    let mut overlay = point(1, Some("a"));
    overlay.disks[0].backing = vec!["/images/base.qcow2".into()];
    assert_eq!(
        full(&disk, GIB, &[overlay], &good),
        "its backing images changed"
    );
    assert_eq!(
        full(&disk, GIB / 2, &points, &good),
        "the size shrank: was 1073741824 bytes"
    );
    let mut other = disk_xml();
    other.source = SourceXml::File("/images/b.qcow2".into());
    assert_eq!(
        full(&other, GIB, &points, &good),
        "the disk was replaced: was /images/a.qcow2"
    );
    let mut raw = disk_xml();
    raw.format = "raw".into();
    assert_eq!(
        full(&raw, GIB, &points, &good),
        "raw image has no dirty bitmap"
    );
    let mut new = disk_xml();
    new.target = "vdb".into();
    assert_eq!(
        full(&new, GIB, &points, &good),
        "new disk: no earlier point holds it"
    );
}

#[test]
fn an_overlay_over_the_last_points_image_is_the_same_disk() {
    let mut disk = disk_xml();
    disk.source = SourceXml::File("/images/overlay.qcow2".into());
    disk.backing = vec![SourceXml::File("/images/a.qcow2".into())];
    let (mode, reason) = decide_for(
        &disk,
        GIB,
        &[point(1, Some("a"))],
        &sound(&[("a", &["vda"])]),
    );
    assert_eq!(mode, CaptureMode::Incremental, "{reason}");
}

#[test]
fn media_and_read_only_disks_are_left_out_and_shared_ones_refused() {
    let mut cdrom = disk_xml();
    cdrom.device = Device::Cdrom;
    assert!(matches!(fitness(&cdrom, true), Fitness::LeftOut(reason) if reason == "CD-ROM"));
    let mut readonly = disk_xml();
    readonly.readonly = true;
    assert!(matches!(fitness(&readonly, true), Fitness::LeftOut(_)));
    let mut shared = disk_xml();
    shared.shareable = true;
    assert!(matches!(fitness(&shared, true), Fitness::Unsupported(_)));
    let mut network = disk_xml();
    network.source = SourceXml::Network("rbd:pool/image".into());
    assert!(matches!(fitness(&network, true), Fitness::Fit));
    assert!(matches!(fitness(&network, false), Fitness::Unsupported(_)));
    let mut lun = disk_xml();
    lun.device = Device::Other("lun".into());
    assert!(matches!(fitness(&lun, true), Fitness::Unsupported(_)));
}

#[test]
fn the_guest_is_frozen_only_when_it_runs_with_an_agent() {
    let options = Options::default();
    let plan = |state, agent| freeze_plan(&options, state, agent);
    assert_eq!(
        plan(RunState::Running, Agent::Connected),
        FreezePlan::Freeze
    );
    for (state, agent) in [
        (RunState::Running, Agent::NotConfigured),
        (RunState::Running, Agent::Disconnected),
        (RunState::Paused, Agent::Connected),
        (RunState::ShutOff, Agent::NotConfigured),
    ] {
        assert!(matches!(plan(state, agent), FreezePlan::Skip(_)));
    }
}
