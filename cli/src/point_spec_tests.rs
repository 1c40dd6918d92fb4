//! Tests of POINT: a small repository of points, asked in every way.

use jiff::tz::TimeZone;
use virtkeep_repo::{
    ByteLen, CaptureMode, Consistency, Disk, DiskStats, Domain, DomainUuid, Point, PointId, RootId,
    SourceKind, UnixMillis,
};

use super::{PointError, PointSpec, times};

const NOON: u64 = 1_795_345_200_000; // 2026-11-22T12:00:00+01:00 = 11:00:00Z

fn zone() -> TimeZone {
    TimeZone::posix("CET-1").unwrap()
}

fn point(id: &str, uuid: u8, name: &str, time: u64) -> Point {
    Point {
        id: format!("p{id:0<16}").parse().unwrap(),
        domain: Domain {
            uuid: DomainUuid::from_bytes([uuid; 16]),
            name: name.to_owned(),
        },
        source: SourceKind::Live,
        host: "host".to_owned(),
        time: UnixMillis(time),
        committed: UnixMillis(time),
        consistency: Consistency::Frozen,
        checkpoint: None,
        disks: vec![disk("vda"), disk("vdb")],
        files: Vec::new(),
        tags: Vec::new(),
    }
}

fn disk(target: &str) -> Disk {
    Disk {
        target: target.to_owned(),
        size: ByteLen(1 << 30),
        root: RootId::from_bytes([0; 32]),
        mode: CaptureMode::Full,
        reason: String::new(),
        checkpoint: None,
        parent: None,
        format: "qcow2".to_owned(),
        location: String::new(),
        backing: Vec::new(),
        stats: DiskStats::default(),
    }
}

fn points() -> Vec<Point> {
    vec![
        point("aa1", 1, "web1", NOON),
        point("aa2", 1, "web1", NOON + 60_000),
        point("bb1", 2, "a@b/c", NOON + 61_000),
        point("aa3", 1, "web1", NOON + 86_400_000),
        point("cc1", 3, "twin", NOON + 86_401_000),
        point("cc2", 4, "twin", NOON + 86_402_000),
    ]
}

/// The first characters of the id found, and the disk.
fn find(text: &str) -> Result<(String, Option<String>), PointError> {
    let points = points();
    let spec = PointSpec::parse(text, &zone())?;
    let found = spec.find(&points, &zone())?;
    let id = found.point.id.to_string();
    Ok((id[1..4].to_owned(), found.disk.map(str::to_owned)))
}

fn id(text: &str) -> String {
    match find(text) {
        Ok((id, None)) => id,
        other => panic!("{text}: {other:?}"),
    }
}

fn refusal(text: &str) -> String {
    match find(text) {
        Err(error) => error.to_string(),
        Ok(found) => panic!("{text}: {found:?}"),
    }
}

#[test]
fn latest_counts_back_from_the_newest() {
    assert_eq!(id("web1@latest"), "aa3");
    assert_eq!(id("web1@latest~0"), "aa3");
    assert_eq!(id("web1@latest~2"), "aa1");
    assert!(refusal("web1@latest~3").contains("the domain has 3 points"));
}

#[test]
fn a_time_means_the_newest_point_in_or_before_its_unit() {
    assert_eq!(id("web1@2026-11-22"), "aa2");
    assert_eq!(id("web1@2026-11-22T12"), "aa2");
    assert_eq!(id("web1@2026-11-22T12:00"), "aa1");
    assert_eq!(id("web1@2026-11-22T12:01"), "aa2");
    assert_eq!(id("web1@2026-11-22T11:00:59Z"), "aa1");
    assert_eq!(id("web1@2026-11-23T11"), "aa2");
    assert_eq!(id("web1@2027"), "aa3");
    let refusal = refusal("web1@2026-11-22T11:59");
    assert!(
        refusal.contains("the oldest is web1@2026-11-22T12:00:00"),
        "{refusal}"
    );
}

/// Which point an export of this name is, and whether the name can come to mean another one.
fn exactly(text: &str, points: &[super::Point]) -> Result<(String, bool), String> {
    let spec = PointSpec::parse(text, &zone()).unwrap();
    let found = spec.find_exactly(points, &zone());
    let found = found.map_err(|error| error.to_string())?;
    Ok((found.point.id.to_string()[1..4].to_owned(), spec.moves()))
}

#[test]
fn a_time_to_the_second_and_an_id_name_one_point_for_good() {
    let mut points = points();
    let ok = |id: &str, moves| Ok((id.to_owned(), moves));
    assert_eq!(exactly("web1@latest", &points), ok("aa3", true));
    assert_eq!(exactly("web1@2026-11-22T12:01", &points), ok("aa2", true));
    assert_eq!(
        exactly("web1@2026-11-22T12:01:00", &points),
        ok("aa2", false)
    );
    let aa2 = points[1].id.to_string();
    assert_eq!(exactly(&aa2, &points), ok("aa2", false));
    assert_eq!(exactly(&format!("web1@{aa2}"), &points), ok("aa2", false));
    assert_eq!(exactly("paa2", &points), ok("aa2", true));

    let again = point("aa9", 1, "web1", NOON + 60_500);
    points.insert(2, again);
    let refused = exactly("web1@2026-11-22T12:01:00", &points).unwrap_err();
    assert!(refused.contains("2 points lie in that second"), "{refused}");
    assert_eq!(
        exactly("web1@2026-11-22T12:01:00.500", &points),
        ok("aa9", false)
    );

    points.drain(1..3);
    assert_eq!(exactly("web1@2026-11-22T12:01", &points), ok("aa1", true));
    let refused = exactly("web1@2026-11-22T12:01:00", &points).unwrap_err();
    assert!(
        refused.contains("no point of web1 at that very time"),
        "{refused}"
    );
    assert!(exactly(&aa2, &points).is_err());
}

#[test]
fn ids_and_their_unambiguous_beginnings_name_points() {
    assert_eq!(id("paa10000000000000"), "aa1");
    assert_eq!(id("paa2"), "aa2");
    assert_eq!(id("pb"), "bb1");
    assert_eq!(id("web1@paa3"), "aa3");
    assert!(refusal("web1@pbb").contains("no restore point pbb"));
    assert!(refusal("pv").contains("no restore point pv"));
    let refusal = refusal("paa");
    assert!(refusal.contains("3 point ids begin with paa"), "{refusal}");
    assert!(
        refusal.contains("paa30000000000000  web1@2026-11-23T12:00:00"),
        "{refusal}"
    );
}

#[test]
fn a_disk_may_follow_the_domain() {
    let disk = |d: &str| Some(d.to_owned());
    assert_eq!(
        find("web1/vdb@latest").unwrap(),
        ("aa3".to_owned(), disk("vdb"))
    );
    assert!(refusal("web1/vdz@latest").contains("has no disk vdz: it has vda, vdb"));
}

#[test]
fn names_may_hold_at_signs_and_slashes() {
    assert_eq!(id("a@b/c@latest"), "bb1");
    assert_eq!(
        find("a@b/c/vda@latest").unwrap(),
        ("bb1".to_owned(), Some("vda".to_owned()))
    );
}

#[test]
fn a_name_of_two_domains_is_settled_by_uuid() {
    let refusal = refusal("twin@latest");
    assert!(
        refusal.contains("03030303-0303-0303-0303-030303030303  1 point\n"),
        "{refusal}"
    );
    assert_eq!(id("04040404-0404-0404-0404-040404040404@latest"), "cc2");
}

#[test]
fn unknown_domains_are_answered_with_the_known_ones() {
    assert_eq!(
        refusal("web2@latest"),
        "there is no point of web2: the repository holds points of a@b/c, twin, web1"
    );
    assert!(refusal("\x1b[2J@latest").contains("no point of \\u{1b}[2J"));
}

#[test]
fn what_is_no_point_is_a_mistake_in_usage() {
    for text in ["", "web1", "@latest", "web1@", "web1@noon", "web1@latest~x"] {
        let parsed = PointSpec::parse(text, &zone());
        assert!(matches!(parsed, Err(PointError::Syntax(_))), "{text:?}");
    }
}

#[test]
fn a_domain_without_a_time_gets_a_hint() {
    let points = vec![point("aa1", 1, "pc", NOON)];
    let spec = PointSpec::parse("pc", &zone()).unwrap();
    let error = spec.find(&points, &zone()).unwrap_err();
    assert!(error.to_string().contains("DOMAIN@latest"), "{error}");
}

#[test]
fn every_time_that_is_listed_can_be_pasted_back() {
    // Around the end of summer time, where local times repeat, and within one second.
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let fold = 1_792_886_400_000; // 2026-10-25T00:00:00Z, 02:00 CEST
    let points: Vec<Point> = [0, 1, 999, 1000, 1_800_000, 3_600_000, 3_600_500, 7_200_000]
        .iter()
        .enumerate()
        .map(|(n, offset)| {
            let mut point = point("0", 1, "web1", fold + offset);
            point.id = PointId::from_bytes([n as u8; 10]);
            point
        })
        .collect();
    let listed: Vec<&Point> = points.iter().collect();
    for (point, time) in points.iter().zip(times(&listed, &zone)) {
        let spec = PointSpec::parse(&format!("web1@{time}"), &zone).unwrap();
        let found = spec.find(&points, &zone).unwrap();
        assert_eq!(found.point.id, point.id, "{time}");
    }
}
