//! `doc/format.md` against the code: constants, key contexts, byte tables and the worked example.

use std::collections::BTreeMap;

use virtkeep_repo::config::CONFIG_BYTES_MAX;
use virtkeep_repo::format::geometry::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, DISK_BYTES_MAX, FanOut, SECTOR_BYTES,
};
use virtkeep_repo::format::node::{NODE_BYTES_MAX, Node, ROOT_BYTES, Root};
use virtkeep_repo::format::pack::*;
use virtkeep_repo::format::point::*;
use virtkeep_repo::format::record::*;
use virtkeep_repo::format::{FORMAT_VERSION, pack, point, record};
use virtkeep_repo::keys::context;
use virtkeep_repo::storage::{MemoryStorage, ObjectName, Storage};
use virtkeep_repo::{Codec, LeaseId, PackId, PackKind, RawId, RecordKind, RootId};

use super::{chunk_size, id_key, keys, points};

const DOCUMENT: &str = include_str!("../../../doc/format.md");

/// The lines of the fenced block with this title.
fn block(title: &str) -> Vec<&'static str> {
    let fence = format!("```text {title}");
    let mut lines = DOCUMENT.lines();
    assert!(lines.any(|line| line == fence), "no block {title:?}");
    lines.take_while(|line| *line != "```").collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

/// The bytes of the fenced block with this title.
fn dump(title: &str) -> Vec<u8> {
    unhex(&block(title).concat())
}

/// The named ids or keys of the block with this title.
fn named(title: &str) -> BTreeMap<&'static str, Vec<u8>> {
    let pairs = block(title).into_iter().map(|line| {
        let (name, bytes) = line.split_once("  ").unwrap();
        (name, unhex(bytes))
    });
    pairs.collect()
}

/// The rows of the first table behind the line `heading`, without its head.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let mut lines = DOCUMENT.lines();
    assert!(lines.any(|line| line == heading), "no line {heading:?}");
    lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().trim_matches('`'))
                .collect()
        })
        .collect()
}

/// What an expression of the byte tables is, with nothing auxiliary, the example's body, F = 64.
fn value(expression: &str) -> usize {
    let terms = expression.trim_end_matches("each").split('+');
    terms
        .map(|term| match term.trim() {
            "a" => 0,
            "b" => example_point().len() - POINT_HEADER_BYTES - POINT_CHECKSUM_BYTES,
            "F / 8" => 8,
            number => number.parse().unwrap_or_else(|_| panic!("{expression:?}?")),
        })
        .sum()
}

/// Cuts `bytes` into fields as the byte table says, which must have no gap, and returns them with
/// how many bytes the table covers. A magic must be the one the table shows.
fn fields<'a>(name: &str, bytes: &'a [u8]) -> (BTreeMap<&'static str, &'a [u8]>, usize) {
    let mut fields = BTreeMap::new();
    let mut end = 0;
    for row in table(&format!("<!-- bytes: {name} -->")) {
        let (offset, size, field) = (value(row[0]), value(row[1]), row[2]);
        assert_eq!(
            offset, end,
            "{field} of the {name} follows the field before it"
        );
        end = offset + size;
        let content = &bytes[offset..end];
        if field.ends_with("magic") {
            assert_eq!(content, unhex(row[3]), "{field} of the {name}");
        }
        if field == "reserved" {
            assert!(
                content.iter().all(|byte| *byte == 0),
                "reserved in the {name}"
            );
        }
        fields.insert(field, content);
    }
    (fields, end)
}

fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

fn example_chunk() -> (RawId, Vec<u8>) {
    let id = keys().id_of(RecordKind::Chunk, b"virtkeep");
    let sealed = record::seal(&keys(), Codec::None, RecordKind::Chunk, id, b"virtkeep");
    (id, sealed)
}

fn example_node() -> Vec<u8> {
    let mut node = Node::empty(0, FanOut::new(64).unwrap());
    node.children[0] = Some(example_chunk().0);
    node.encode()
}

fn example_root() -> Vec<u8> {
    Root {
        size: 8192,
        chunk_size: chunk_size(),
        fan_out: FanOut::new(64).unwrap(),
        top: Some(keys().node_id(&example_node())),
    }
    .encode()
}

fn example_root_id() -> RootId {
    keys().root_id(&example_root())
}

fn example_pack() -> Vec<u8> {
    let storage = MemoryStorage::new();
    let id = PackId::from_bytes([0xaa; 16]);
    let lease = LeaseId::from_bytes([0xbb; 16]);
    let mut writer =
        pack::PackWriter::create(&storage, id, PackKind::Data, lease, &keys()).unwrap();
    let (chunk, sealed) = example_chunk();
    writer.append(RecordKind::Chunk, chunk, &sealed).unwrap();
    writer.finish().unwrap();
    storage
        .read_whole(&ObjectName::Pack(id), PACK_BYTES_MAX)
        .unwrap()
}

fn example_point() -> Vec<u8> {
    point::encode(&points::example(example_root_id()), &keys()).unwrap()
}

#[test]
fn the_constants_are_the_documented_ones() {
    let code: BTreeMap<&str, u64> = [
        ("FORMAT_VERSION", FORMAT_VERSION.into()),
        ("PACK_VERSION", PACK_VERSION.into()),
        ("POINT_VERSION", POINT_VERSION.into()),
        ("CHUNK_BYTES_MIN", CHUNK_BYTES_MIN.into()),
        ("CHUNK_BYTES_MAX", CHUNK_BYTES_MAX.into()),
        ("DISK_BYTES_MAX", DISK_BYTES_MAX),
        ("SECTOR_BYTES", SECTOR_BYTES),
        ("HEADER_BYTES", HEADER_BYTES as u64),
        ("HEADER_BYTES_MAX", HEADER_BYTES_MAX as u64),
        ("BLOB_BYTES_MAX", BLOB_BYTES_MAX as u64),
        ("NODE_BYTES_MAX", NODE_BYTES_MAX as u64),
        ("ROOT_BYTES", ROOT_BYTES as u64),
        ("PACK_HEADER_BYTES", PACK_HEADER_BYTES as u64),
        ("TABLE_ENTRY_BYTES", TABLE_ENTRY_BYTES as u64),
        ("TRAILER_BYTES", TRAILER_BYTES as u64),
        ("PACK_BYTES_TARGET", PACK_BYTES_TARGET),
        ("PACK_BYTES_MAX", PACK_BYTES_MAX),
        ("POINT_HEADER_BYTES", POINT_HEADER_BYTES as u64),
        ("POINT_CHECKSUM_BYTES", POINT_CHECKSUM_BYTES as u64),
        ("POINT_BODY_BYTES_MAX", POINT_BODY_BYTES_MAX as u64),
        ("CONFIG_BYTES_MAX", CONFIG_BYTES_MAX),
    ]
    .into();
    let documented = table("## 12. Constants")
        .into_iter()
        .map(|row| (row[0], row[1].parse().unwrap()))
        .collect();
    assert_eq!(code, documented);
}

#[test]
fn the_keys_are_derived_as_documented() {
    let code = [
        ("chunk", context::CHUNK),
        ("node", context::NODE),
        ("root", context::ROOT),
        ("blob", context::BLOB),
        ("checksum", context::CHECKSUM),
    ];
    let example = named("keys");
    let documented = table("## 4. Keys, ids and checksums");
    assert_eq!(documented.len(), code.len());
    for ((name, context), row) in code.into_iter().zip(documented) {
        assert_eq!(row, [&format!("{name} key"), context]);
        assert_eq!(
            example[name],
            blake3::derive_key(context, id_key().as_bytes())
        );
    }
}

#[test]
fn the_ids_of_the_example_are_those_of_its_content() {
    let ids = named("ids");
    let padded = [&b"virtkeep"[..], &[0; 4088]].concat();
    let chunk_key: [u8; 32] = named("keys")["chunk"].clone().try_into().unwrap();
    assert_eq!(
        ids["chunk"],
        blake3::keyed_hash(&chunk_key, &padded).as_bytes()
    );
    assert_eq!(ids["chunk"], example_chunk().0.as_bytes());
    assert_eq!(ids["node"], keys().node_id(&dump("node")).as_bytes());
    assert_eq!(ids["root"], keys().root_id(&dump("root")).as_bytes());
}

#[test]
fn a_record_is_laid_out_as_documented() {
    let (id, record) = example_chunk();
    assert_eq!(dump("record"), record);
    let (fields, header_bytes) = fields("record", &record);
    assert_eq!(header_bytes, HEADER_BYTES);
    let expected = [
        ("header length", 60),
        ("kind", 1),
        ("codec", 0),
        ("cipher", 0),
        ("key slot", 0),
        ("auxiliary length", 0),
        ("raw length", 8),
        ("stored length", 8),
    ];
    for (field, value) in expected {
        assert_eq!(number(fields[field]), value, "{field}");
    }
    assert_eq!(fields["id"], id.as_bytes());
    assert_eq!(
        fields["header checksum"],
        keys().checksum().update(&record[..52]).short()
    );
    assert_eq!(&record[header_bytes..], b"virtkeep");
}

#[test]
fn a_node_and_a_root_are_laid_out_as_documented() {
    let node = example_node();
    assert_eq!(dump("node"), node);
    let (parts, len) = fields("node", &node);
    assert_eq!(len, node.len());
    assert_eq!((number(parts["level"]), number(parts["fan-out"])), (0, 6));
    assert_eq!(number(parts["bitmap"]), 1);
    assert_eq!(parts["ids"], named("ids")["chunk"]);

    let root = example_root();
    assert_eq!(dump("root"), root);
    let (parts, len) = fields("root", &root);
    assert_eq!(len, root.len());
    let expected = [
        ("size", 8192),
        ("chunk size", 4096),
        ("fan-out", 64),
        ("height", 1),
        ("top present", 1),
    ];
    for (field, value) in expected {
        assert_eq!(number(parts[field]), value, "{field}");
    }
    assert_eq!(parts["top id"], named("ids")["node"]);
}

#[test]
fn a_pack_is_laid_out_as_documented() {
    let pack = example_pack();
    assert_eq!(dump("pack"), pack);
    let sum = |parts: &[&[u8]]| {
        let mut checksum = keys().checksum();
        parts.iter().for_each(|part| {
            checksum.update(part);
        });
        checksum
    };

    let (header, len) = fields("pack header", &pack);
    assert_eq!(len, PACK_HEADER_BYTES);
    assert_eq!((number(header["version"]), number(header["kind"])), (1, 1));
    assert_eq!(
        (header["pack id"], header["lease id"]),
        (&[0xaa; 16][..], &[0xbb; 16][..])
    );
    assert_eq!(header["header checksum"], sum(&[&pack[..56]]).short());

    let table_at = PACK_HEADER_BYTES + example_chunk().1.len();
    assert_eq!(pack[table_at..table_at + 4], TABLE_MAGIC);
    assert!(DOCUMENT.contains("begins with the magic 76 6b 74 f1"));
    let (entry, len) = fields("table entry", &pack[table_at + 4..]);
    assert_eq!(len, TABLE_ENTRY_BYTES);
    assert_eq!(entry["id"], example_chunk().0.as_bytes());
    assert_eq!(number(entry["offset"]), PACK_HEADER_BYTES as u64);
    assert_eq!(number(entry["length"]), example_chunk().1.len() as u64);
    assert_eq!(number(entry["kind"]), 1);

    let trailer_at = table_at + 4 + len;
    let (trailer, len) = fields("trailer", &pack[trailer_at..]);
    assert_eq!(trailer_at + len, pack.len());
    assert_eq!(number(trailer["table offset"]), table_at as u64);
    assert_eq!(number(trailer["entry count"]), 1);
    let covered = [
        &pack[..64],
        &pack[table_at..trailer_at],
        &pack[trailer_at..trailer_at + 8],
    ];
    assert_eq!(trailer["table checksum"], sum(&covered).full());
    assert_eq!(
        trailer["file checksum"],
        sum(&[&pack[..trailer_at + 40]]).full()
    );
}

#[test]
fn a_point_is_laid_out_as_documented() {
    let record = example_point();
    let body: String = block("point body")
        .into_iter()
        .map(str::trim_start)
        .collect();
    let documented = [
        &dump("point header")[..],
        body.as_bytes(),
        &dump("point checksum"),
    ]
    .concat();
    assert_eq!(documented, record);
    let (fields, len) = fields("point", &record);
    assert_eq!(len, record.len());
    assert_eq!(number(fields["version"]), 1);
    assert_eq!(number(fields["body length"]), body.len() as u64);
    let covered = &record[..len - POINT_CHECKSUM_BYTES];
    assert_eq!(fields["checksum"], keys().checksum().update(covered).full());
}

#[test]
fn every_key_of_a_point_is_documented() {
    fn keys_of(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                for (key, value) in object {
                    found.push(key.clone());
                    keys_of(value, found);
                }
            }
            serde_json::Value::Array(array) => array.iter().for_each(|value| keys_of(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    keys_of(
        &serde_json::to_value(points::some_point()).unwrap(),
        &mut found,
    );
    let section = DOCUMENT
        .split("\n## ")
        .find(|section| section.starts_with("8."))
        .unwrap();
    for key in found {
        assert!(
            section.contains(&format!("`{key}`")),
            "{key} is not documented"
        );
    }
}
