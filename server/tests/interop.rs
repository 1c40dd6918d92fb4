//! What others wrote, against this server.

mod common;

use std::fs;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use common::{MIB, Served, pattern, run};
use nbd_server::{Context, Export, ExportError, ExportMap, Extents, Features, Limits, MemoryDisk};
use serde_json::Value;

/// Data in the first MiB, nothing in the second, data in the third, nothing after it.
fn disk() -> MemoryDisk {
    let disk = MemoryDisk::new(64 * MIB);
    disk.write(0, &pattern(MIB as usize)).expect("written");
    disk.write(2 * MIB, &pattern(MIB as usize))
        .expect("written");
    disk
}

fn bytes(disk: &dyn Export) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &mut bytes).expect("read");
    bytes
}

/// A read-only disk that knows which of its halves was changed.
struct Changed(MemoryDisk);

struct SecondHalf;

impl Export for Changed {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        self.0.read(offset, buffer)
    }

    fn features(&self) -> Features {
        Features {
            multi_conn: true,
            ..Features::default()
        }
    }

    fn description(&self) -> Option<String> {
        Some("yesterday's disk".to_owned())
    }

    fn contexts(&self) -> Vec<String> {
        vec!["x-test:changed".to_owned()]
    }

    fn context(&self, name: &str) -> Option<Box<dyn Context>> {
        (name == "x-test:changed").then(|| Box::new(SecondHalf) as Box<dyn Context>)
    }
}

impl Context for SecondHalf {
    fn status(&self, offset: u64, length: u64, extents: &mut Extents) -> Result<(), ExportError> {
        extents.push((32 * MIB).saturating_sub(offset), 0);
        extents.push(length, 1);
        Ok(())
    }
}

#[test]
fn nbdinfo_lists_the_exports_with_all_they_have() {
    let exports = ExportMap::new()
        .with("new", Arc::new(disk()))
        .with("old", Arc::new(Changed(disk())));
    let served = Served::start(exports, Limits::default());
    let list = run("nbdinfo", &["--list", "--json", &served.uri("")]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let exports = list["exports"].as_array().expect("a list");
    assert_eq!(exports.len(), 2);
    let (new, old) = (&exports[0], &exports[1]);
    assert_eq!(new["export-name"], "new");
    assert_eq!(new["is_read_only"], false);
    assert_eq!(new["can_trim"], true);
    assert_eq!(new["can_fast_zero"], true);
    assert_eq!(old["export-name"], "old");
    assert_eq!(old["description"], "yesterday's disk");
    assert_eq!(old["export-size"], 64 * MIB);
    assert_eq!(old["is_read_only"], true);
    assert_eq!(old["can_multi_conn"], true);
    assert_eq!(old["can_df"], true);
    assert_eq!(old["block_size_maximum"], 32 * MIB);
    let contexts = serde_json::json!(["base:allocation", "x-test:changed"]);
    assert_eq!(old["contexts"], contexts);
}

#[test]
fn nbdinfo_maps_holes_and_contexts_of_the_exports_own() {
    let served = Served::one(Changed(disk()));
    let own = run("nbdinfo", &["--map=x-test:changed", &served.uri("disk")]);
    let lines: Vec<Vec<&str>> = own
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..3], ["0", "33554432", "0"]);
    assert_eq!(lines[1][..3], ["33554432", "33554432", "1"]);

    let served = Served::one(disk());
    let map = run("nbdinfo", &["--map", "--json", &served.uri("disk")]);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let extent = |number: usize| {
        let extent = &map[number];
        [&extent["offset"], &extent["length"], &extent["type"]]
            .map(|v| v.as_u64().expect("a number"))
    };
    assert_eq!(extent(0), [0, MIB, 0]);
    assert_eq!(extent(1), [MIB, MIB, 3]);
    assert_eq!(extent(2), [2 * MIB, MIB, 0]);
    assert_eq!(extent(3), [3 * MIB, 61 * MIB, 3]);
}

#[test]
fn nbdcopy_copies_both_ways() {
    let disk = Arc::new(disk());
    let empty = Arc::new(MemoryDisk::new(64 * MIB));
    let exports = ExportMap::new()
        .with("from", disk.clone())
        .with("to", empty.clone());
    let served = Served::start(exports, Limits::default());
    run("nbdcopy", &[&served.uri("from"), &served.path("copy")]);
    assert!(fs::read(served.path("copy")).expect("a file") == bytes(&*disk));
    run("nbdcopy", &[&served.path("copy"), &served.uri("to")]);
    assert!(bytes(&*empty) == bytes(&*disk));
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let from = Arc::new(disk());
    let to = Arc::new(MemoryDisk::new(64 * MIB));
    to.write(40 * MIB, &pattern(100_000)).expect("written");
    let exports = ExportMap::new()
        .with("from", from.clone())
        .with("to", to.clone());
    let served = Served::start(exports, Limits::default());
    let (uri, copy) = (served.uri("from"), served.path("copy.qcow2"));
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, &copy],
    );
    run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &copy, &uri],
    );
    let back = [
        "convert",
        "-n",
        "-f",
        "qcow2",
        "-O",
        "raw",
        &copy,
        &served.uri("to"),
    ];
    run("qemu-img", &back);
    assert!(bytes(&*to) == bytes(&*from), "also what is zero was copied");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    assert_eq!(map[1]["start"], MIB);
    assert_eq!(map[1]["length"], MIB);
    assert_eq!(map[1]["zero"], true);
}

#[test]
fn qemu_io_reads_what_it_wrote_zeroed_and_discarded() {
    let served = Served::one(MemoryDisk::new(64 * MIB));
    let commands = [
        "write -P 0x11 1000 3M",
        "write -f -P 0x22 5M 64k",
        "write -z 1M 64k",
        "write -z -u 5M 4k",
        "discard 2M 1M",
        "flush",
        "read -P 0x11 1000 100000",
        "read -P 0 1M 64k",
        "read -P 0x11 1114112 900000",
        "read -P 0 2M 1M",
        "read -P 0 5M 4k",
        "read -P 0x22 5246976 60k",
        "read -P 0 8M 32M",
    ];
    let uri = served.uri("disk");
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let output = run("qemu-io", &arguments);
    assert!(!output.contains("failed"), "{output}");
}

#[test]
fn fio_verifies_what_it_wrote_with_many_requests_in_flight() {
    let served = Served::one(MemoryDisk::new(32 * MIB));
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", served.uri("disk")),
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--size=32M",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            // Where it puts a file of its own.
            &format!("--aux-path={}", served.dir.path().display()),
        ],
    );
}

#[test]
fn nbdkit_passes_an_export_on() {
    let disk = Arc::new(disk());
    let served = Served::start(
        ExportMap::new().with("disk", disk.clone()),
        Limits::default(),
    );
    let proxy = served.path("proxy");
    let uri = format!("uri={}", served.uri("disk"));
    let mut nbdkit = Process::new("nbdkit")
        .args(["--exit-with-parent", "-f", "-U", &proxy, "nbd", &uri])
        .stdin(Stdio::null())
        .spawn()
        .expect("nbdkit is installed");
    while !fs::exists(&proxy).expect("a directory") {
        assert!(
            nbdkit.try_wait().expect("our child").is_none(),
            "nbdkit ended"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let copy = served.path("copy");
    run("nbdcopy", &[&format!("nbd+unix:///?socket={proxy}"), &copy]);
    nbdkit.kill().expect("our child");
    nbdkit.wait().expect("our child");
    assert!(fs::read(copy).expect("a file") == bytes(&*disk));
}

#[test]
fn a_read_only_export_refuses_qemu_io_to_write() {
    let served = Served::one(Changed(disk()));
    let write = Process::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k", &served.uri("disk")])
        .output()
        .expect("qemu-io is installed");
    assert!(!write.status.success());
    let said = String::from_utf8_lossy(&write.stderr);
    assert!(said.contains("Permission denied"), "{said}");
}

/// What `nbdinfo --can` and `--is` say: an exit code.
fn nbdinfo_says(question: &str, what: &str, uri: &str) -> bool {
    let status = Process::new("nbdinfo").args([question, what, uri]).status();
    status.expect("nbdinfo is installed").success()
}

#[test]
fn nbdinfo_knows_what_each_export_can_and_is() {
    let exports = ExportMap::new()
        .with("new", Arc::new(disk()))
        .with("old", Arc::new(Changed(disk())));
    let served = Served::start(exports, Limits::default());
    let (new, old) = (served.uri("new"), served.uri("old"));
    for can in [
        "connect",
        "read",
        "write",
        "df",
        "flush",
        "fua",
        "multi-conn",
        "trim",
        "zero",
        "fast-zero",
        "structured-reply",
    ] {
        assert!(nbdinfo_says("--can", can, &new), "{can}");
    }
    for cannot in ["cache", "write", "trim", "zero", "fast-zero"] {
        assert!(!nbdinfo_says("--can", cannot, &old), "{cannot}");
    }
    assert!(nbdinfo_says("--is", "read-only", &old));
    assert!(!nbdinfo_says("--is", "read-only", &new));
    assert!(!nbdinfo_says("--is", "rotational", &new));
    assert!(!nbdinfo_says("--is", "tls", &new));
    assert_eq!(run("nbdinfo", &["--size", &old]).trim(), "67108864");
    let totals = run("nbdinfo", &["--map", "--totals", "--json", &new]);
    let totals: Value = serde_json::from_str(&totals).expect("JSON");
    assert_eq!(totals[0]["size"], 2 * MIB);
    assert_eq!(totals[1]["size"], 62 * MIB);
}

#[test]
fn qemu_reads_a_context_of_the_exports_own() {
    let served = Served::one(Changed(disk()));
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=disk,x-dirty-bitmap=x-test:changed",
        served.socket().display()
    );
    let map = run(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &image],
    );
    let map: Value = serde_json::from_str(&map).expect("JSON");
    // QEMU shows what is dirty as if it were a hole in the data.
    assert_eq!(map[0]["length"], 32 * MIB);
    assert_ne!(map[0]["data"], map[1]["data"]);
}

#[test]
fn nbdfuse_shows_an_export_as_a_file() {
    if fs::File::open("/dev/fuse").is_err() {
        eprintln!("skipped: no /dev/fuse here");
        return;
    }
    let disk = Arc::new(disk());
    let exports = ExportMap::new().with("disk", disk.clone());
    let served = Served::start(exports, Limits::default());
    let mount = served.path("mount");
    fs::create_dir(&mount).expect("made");
    let file = format!("{mount}/disk");
    let mut nbdfuse = Process::new("nbdfuse")
        .args(["-r", &file, &served.uri("disk")])
        .stdin(Stdio::null())
        .spawn()
        .expect("nbdfuse is installed");
    while !fs::exists(&file).unwrap_or(false) {
        assert!(
            nbdfuse.try_wait().expect("our child").is_none(),
            "nbdfuse ended"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let found = fs::read(&file);
    let pid = rustix::process::Pid::from_child(&nbdfuse);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    nbdfuse.wait().expect("our child");
    assert!(found.expect("a file") == bytes(&*disk));
}
