//! Point records.

use proptest::prelude::*;
use virtkeep_repo::format::point::{decode, decode_body, encode};
use virtkeep_repo::{
    BlobId, ByteLen, CaptureMode, Consistency, Disk, DiskStats, Domain, DomainUuid, FileRole,
    Point, PointId, RootId, SourceKind, StoredFile, UnixMillis,
};

use super::keys;

/// The point the document shows.
pub(super) fn example(root: RootId) -> Point {
    Point {
        id: "p0123456789abcdef".parse().unwrap(),
        domain: Domain {
            uuid: DomainUuid::from_bytes([0x11; 16]),
            name: "web".into(),
        },
        source: SourceKind::Live,
        host: "hv1".into(),
        time: UnixMillis(1_795_392_000_000),
        committed: UnixMillis(1_795_392_002_500),
        consistency: Consistency::Frozen,
        checkpoint: None,
        disks: vec![Disk {
            target: "vda".into(),
            size: ByteLen(8192),
            root,
            mode: CaptureMode::Full,
            reason: "first backup".into(),
            checkpoint: None,
            parent: None,
            format: "qcow2".into(),
            location: "/var/lib/libvirt/images/web.qcow2".into(),
            backing: Vec::new(),
            stats: DiskStats::default(),
        }],
        files: vec![],
        tags: vec![],
    }
}

pub(super) fn some_point() -> Point {
    let mut point = example(RootId::from_bytes([3; 32]));
    point.files.push(StoredFile {
        role: FileRole::DomainXml,
        name: "web.xml".into(),
        size: ByteLen(5),
        pieces: vec![BlobId::from_bytes([4; 32])],
    });
    point
}

#[test]
fn a_point_decodes_to_itself() {
    let point = some_point();
    let record = encode(&point, &keys()).unwrap();
    assert_eq!(decode(&record, point.id, &keys()).unwrap(), point);
}

#[test]
fn a_record_under_the_name_of_another_point_is_refused() {
    let record = encode(&some_point(), &keys()).unwrap();
    let other = PointId::from_bytes([0; 10]);
    let error = decode(&record, other, &keys()).unwrap_err();
    assert!(error.to_string().contains("p0123456789abcdef"), "{error}");
}

/// A record whose envelope is sound around any body.
fn record_around(body: &[u8]) -> Vec<u8> {
    let mut record = encode(&some_point(), &keys()).unwrap();
    record.truncate(24);
    record[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
    record.extend_from_slice(body);
    let checksum = keys().checksum().update(&record).full();
    [record, checksum.to_vec()].concat()
}

#[test]
fn fields_of_later_versions_are_ignored() {
    let point = some_point();
    let record = encode(&point, &keys()).unwrap();
    let body = std::str::from_utf8(decode_body(&record, &keys()).unwrap()).unwrap();
    let later = body.replacen('{', r#"{"later":{"a":[1,2]},"#, 1);
    assert_eq!(
        decode(&record_around(later.as_bytes()), point.id, &keys()).unwrap(),
        point
    );
}

#[test]
fn a_later_version_or_a_cipher_is_refused() {
    for at in [8, 10] {
        let mut record = record_around(b"{}");
        record.truncate(record.len() - 32);
        record[at] += 1;
        let checksum = keys().checksum().update(&record).full();
        record.extend_from_slice(&checksum);
        let error = decode_body(&record, &keys()).unwrap_err();
        assert!(
            error.expected.starts_with("version 1 without cipher"),
            "{error:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_changed_or_cut_record_decodes(
        place in any::<prop::sample::Index>(),
        change in 1..=255_u8,
    ) {
        let point = some_point();
        let record = encode(&point, &keys()).unwrap();
        let place = place.index(record.len());
        let mut changed = record.clone();
        changed[place] ^= change;
        prop_assert!(decode(&changed, point.id, &keys()).is_err());
        prop_assert!(decode(&record[..place], point.id, &keys()).is_err());
    }

    #[test]
    fn any_body_decodes_or_fails(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let record = record_around(&body);
        prop_assert_eq!(decode_body(&record, &keys()).unwrap(), &body[..]);
        prop_assert!(decode(&record, some_point().id, &keys()).is_err());
    }

    #[test]
    fn any_bytes_whatever_are_no_point(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_body(&bytes, &keys()).is_err());
    }
}
