//! Block status of real images, and the map over several contexts.

mod common;

use std::path::{Path, PathBuf};

use common::{Server, path, qcow2, qemu_io, run};
use libnbd::{Builder, Error, Handle, STATE_DIRTY, STATE_ZERO, StatusMap, StatusRange, WriteFlags};
use tempfile::TempDir;

const ALLOCATION: &str = "base:allocation";
const BITMAP: &str = "qemu:dirty-bitmap:changes";

/// Both contexts of an image, from a `qemu-nbd` that exports its bitmap.
fn serve(dir: TempDir, image: &Path) -> (Server, Handle) {
    let server = Server::qemu_nbd(dir, ["-r", "-f", "qcow2", "-B", "changes", path(image)]);
    let builder = Builder::new().meta_context(ALLOCATION).meta_context(BITMAP);
    let nbd = server.connect_with(&builder);
    (server, nbd)
}

fn add_bitmap(image: &Path, granularity: &str) {
    let image = path(image);
    run(
        "qemu-img",
        ["bitmap", "--add", "-g", granularity, image, "changes"],
    );
}

fn walk(nbd: &mut Handle, contexts: &[&str]) -> Vec<StatusRange> {
    let mut map = StatusMap::new(nbd, contexts, 0..nbd.size()).expect("contexts are there");
    let mut ranges: Vec<StatusRange> = Vec::new();
    while let Some(next) = map.next(nbd).expect("the server answers") {
        assert_eq!(
            next.range.start,
            ranges.last().map_or(0, |last| last.range.end)
        );
        assert!(!next.range.is_empty());
        match ranges.last_mut() {
            Some(last) if last.flags == next.flags => last.range.end = next.range.end,
            _ => ranges.push(next),
        }
    }
    assert_eq!(ranges.last().map_or(0, |last| last.range.end), nbd.size());
    ranges
}

#[test]
fn allocation_and_dirty_bitmap_merge_into_one_map() {
    let (dir, image) = qcow2("16M");
    qemu_io(&image, &["write -P 1 1M 2M", "write -P 1 8M 1M"]);
    add_bitmap(&image, "64k");
    qemu_io(
        &image,
        &[
            "write -P 2 2M 64k",
            "write -z 8M 128k",
            "write -P 3 12M 64k",
        ],
    );
    let (_server, mut nbd) = serve(dir, &image);
    assert_eq!(nbd.contexts(), [ALLOCATION, BITMAP]);

    let merged: Vec<_> = walk(&mut nbd, &[ALLOCATION, BITMAP])
        .into_iter()
        .map(|part| {
            let zero = part.flags[0] & STATE_ZERO != 0;
            let dirty = part.flags[1] & STATE_DIRTY != 0;
            (part.range.start >> 16, part.range.end >> 16, zero, dirty)
        })
        .collect();
    assert_eq!(
        merged,
        [
            (0, 16, true, false),
            (16, 32, false, false),
            (32, 33, false, true),
            (33, 48, false, false),
            (48, 128, true, false),
            (128, 130, true, true),
            (130, 144, false, false),
            (144, 192, true, false),
            (192, 193, false, true),
            (193, 256, true, false),
        ]
    );
    let single = walk(&mut nbd, &[BITMAP]);
    assert_eq!(
        single
            .iter()
            .filter(|part| part.flags == [STATE_DIRTY])
            .count(),
        3
    );
}

#[test]
fn a_context_that_the_server_lacks_is_an_error_and_not_an_empty_map() {
    let server = Server::nbdkit(["memory", "1M"]);
    let builder = Builder::new().meta_context(ALLOCATION).meta_context(BITMAP);
    let mut nbd = server.connect_with(&builder);
    assert!(nbd.has_context(ALLOCATION) && !nbd.has_context(BITMAP));
    let error = StatusMap::new(&nbd, &[ALLOCATION, BITMAP], 0..512).expect_err("no bitmap");
    assert!(
        matches!(&error, Error::MissingContext(name) if name == BITMAP),
        "{error}"
    );
    assert!(StatusMap::new(&nbd, &[], 0..512).is_err());
    assert!(StatusMap::new(&nbd, &[ALLOCATION], 0..nbd.size() + 1).is_err());
    assert_eq!(walk(&mut nbd, &[ALLOCATION]).len(), 1);

    let mut plain = server.connect();
    assert!(
        plain.block_status(0, 512).is_err(),
        "no context was asked for"
    );
}

#[test]
fn a_disk_of_terabytes_is_walked_in_32_bit_steps() {
    let server = Server::nbdkit(["memory", "4T"]);
    let mut nbd = server.connect_with(&Builder::new().meta_context(ALLOCATION));
    let far = (3 << 40) + 12345;
    nbd.write(far, vec![1], WriteFlags::default())
        .expect("writes");
    let data: Vec<_> = walk(&mut nbd, &[ALLOCATION])
        .into_iter()
        .filter(|part| part.flags[0] & STATE_ZERO == 0)
        .map(|part| part.range)
        .collect();
    assert_eq!(data.len(), 1);
    assert!(
        data[0].contains(&far) && data[0].end - data[0].start <= 65536,
        "{data:?}"
    );
}

#[test]
fn a_failing_block_status_is_an_error_of_the_map() {
    let server = Server::nbdkit([
        "--filter=error",
        "memory",
        "1M",
        "error-extents=EIO",
        "error-extents-rate=100%",
    ]);
    let mut nbd = server.connect_with(&Builder::new().meta_context(ALLOCATION));
    let mut map = StatusMap::new(&nbd, &[ALLOCATION], 0..nbd.size()).expect("is offered");
    assert_eq!(map.next(&mut nbd).expect_err("fails").errno(), Some(5));
    assert_eq!(map.position(), 0, "nothing was handed out");
}

/// An image in which every second `step` bytes of `count` are dirty.
fn fragmented(count: u64, step: u64) -> (TempDir, PathBuf) {
    let (dir, image) = qcow2(&(count * 2 * step).to_string());
    add_bitmap(&image, &step.to_string());
    let writer_dir = tempfile::tempdir().expect("a directory");
    let writer = Server::qemu_nbd(writer_dir, ["-f", "qcow2", "--cache=unsafe", path(&image)]);
    let mut nbd = writer.connect();
    for block in 0..count {
        while nbd.outstanding() >= 64 {
            let completion = nbd.wait().expect("waits").expect("in flight");
            completion.result.expect("writes");
        }
        nbd.submit_write(block * 2 * step, [1u8; 512], WriteFlags::default())
            .expect("submits");
    }
    nbd.shutdown(None).expect("all writes succeed");
    writer.finish();
    (dir, image)
}

#[test]
fn a_bitmap_with_more_extents_than_one_reply_holds_is_walked_whole() {
    // 140,000 extents; QEMU sends at most 131,072 in one reply.
    const COUNT: u64 = 70_000;
    const STEP: u64 = 512;
    let (dir, image) = fragmented(COUNT, STEP);
    let (_server, mut nbd) = serve(dir, &image);
    let size = nbd.size();
    let reply = nbd.block_status(0, size).expect("answers");
    let bitmap = reply
        .iter()
        .find(|c| c.context == BITMAP)
        .expect("is there");
    let covered: u64 = bitmap.extents.iter().map(|extent| extent.length).sum();
    assert!(
        covered < size,
        "the server sent everything at once: {}",
        bitmap.extents.len()
    );

    let dirty: Vec<_> = walk(&mut nbd, &[BITMAP, ALLOCATION])
        .into_iter()
        .filter(|part| part.flags[0] == STATE_DIRTY)
        .map(|part| part.range)
        .collect();
    assert_eq!(dirty.len() as u64, COUNT);
    for (block, range) in (0..).zip(dirty) {
        assert_eq!(range, block * 2 * STEP..(block * 2 + 1) * STEP);
    }
}
