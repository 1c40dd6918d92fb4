//! Image files that others copy from and write to: through a whole program on this library,
//! `examples/serve-file.rs`, to a file of a real file system.
//!
//! `cargo test` builds the example; `cargo test --test copying` alone takes the one that is there.

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use common::{MIB, pattern, run, serve_file};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SIZE: u64 = 24 * MIB + 512;

/// A process that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn terminate(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("signalled");
        assert!(self.0.wait().expect("our child").success());
    }
}

fn wait_for(path: &str, child: &mut Child) {
    while !fs::exists(path).unwrap_or(false) {
        let ended = child.try_wait().expect("our child");
        assert!(ended.is_none(), "{path} never came: {ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory of images.
struct Images(TempDir);

impl Images {
    fn new() -> Images {
        Images(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("an image")
    }

    /// Data at the beginning, in the middle and at the end; nothing elsewhere.
    fn sparse(&self, name: &str) {
        let file = fs::File::create(self.path(name)).expect("made");
        file.set_len(SIZE).expect("a size");
        let data = pattern(3 * MIB as usize);
        file.write_all_at(&data, 0).expect("written");
        file.write_all_at(&data[777..MIB as usize], 9 * MIB + 5)
            .expect("written");
        file.write_all_at(&data[..700], SIZE - 700)
            .expect("written");
    }

    /// Data everywhere.
    fn full(&self, name: &str) {
        fs::write(self.path(name), pattern(SIZE as usize)).expect("written");
    }

    /// Serves one of them for writing, and says under which URI.
    fn serve(&self, name: &str) -> (Running, String) {
        let socket = self.path(&format!("{name}.sock"));
        let mut child = Process::new(serve_file())
            .args(["--write", &self.path(name), &socket])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cargo built it");
        wait_for(&socket, &mut child);
        (Running(child), format!("nbd+unix:///?socket={socket}"))
    }
}

#[test]
fn nbdcopy_copies_both_ways_whatever_it_is_told() {
    let images = Images::new();
    images.sparse("from");
    let (_source, from) = images.serve("from");
    let several = ["--connections=4", "--threads=4", "--requests=32"];
    let ways: [&[&str]; 7] = [
        &[],
        &["--synchronous"],
        &several,
        &["--connections=1", "--request-size=65536"],
        &["--allocated"],
        &["--no-extents", "--sparse=0"],
        &["--flush", "--request-size=33554432"],
    ];
    for words in ways {
        images.full("to");
        let (mut target, to) = images.serve("to");
        run("nbdcopy", &[words, &[&from, &to]].concat());
        target.terminate();
        assert!(images.bytes("to") == images.bytes("from"), "{words:?}");

        let file = images.path("file");
        run("nbdcopy", &[words, &[&from, &file]].concat());
        assert!(images.bytes("file") == images.bytes("from"), "{words:?}");
        images.full("to");
        let (mut target, to) = images.serve("to");
        run("nbdcopy", &[words, &[&file, &to]].concat());
        target.terminate();
        assert!(images.bytes("to") == images.bytes("from"), "{words:?}");
    }
    // What is known to be empty stays so, and holes are copied as holes.
    fs::File::create(images.path("to"))
        .and_then(|file| file.set_len(SIZE))
        .expect("made");
    let (mut target, to) = images.serve("to");
    run("nbdcopy", &["--destination-is-zero", &from, &to]);
    target.terminate();
    assert!(images.bytes("to") == images.bytes("from"));
    let blocks = fs::metadata(images.path("to")).expect("there").blocks();
    assert!(blocks * 512 < 6 * MIB, "{blocks} blocks");
}

#[test]
fn qemu_writes_zeroes_and_discards_in_a_file() {
    let images = Images::new();
    images.full("disk");
    let (mut server, uri) = images.serve("disk");
    let commands = [
        "write -P 0x11 1000 3M",
        "write -z 4M 1M",
        "write -z -u 6M 1M",
        "discard 8M 2M",
        "writev -P 0x22 12M 4k 8k 12k",
        "aio_write -P 0x33 13M 2M",
        "aio_write -f -P 0x44 15M 1M",
        "aio_write -z -u 16M 64k",
        "aio_flush",
        "flush",
    ];
    let mut words = vec!["-f", "raw"];
    for command in &commands {
        words.extend(["-c", command]);
    }
    words.push(&uri);
    let said = run("qemu-io", &words);
    assert!(!said.contains("failed"), "{said}");
    server.terminate();

    let mut expected = pattern(SIZE as usize);
    let mib = MIB as usize;
    for (range, byte) in [
        (1000..1000 + 3 * mib, 0x11),
        (4 * mib..5 * mib, 0),
        (6 * mib..7 * mib, 0),
        (8 * mib..10 * mib, 0),
        (12 * mib..12 * mib + (24 << 10), 0x22),
        (13 * mib..15 * mib, 0x33),
        (15 * mib..16 * mib, 0x44),
        (16 * mib..16 * mib + (64 << 10), 0),
    ] {
        expected[range].fill(byte);
    }
    assert!(images.bytes("disk") == expected);
}

#[test]
fn fio_finds_in_the_file_what_it_wrote_to_the_export() {
    let images = Images::new();
    images.full("disk");
    let fio = |words: &[&str]| {
        let aside = format!("--aux-path={}", images.0.path().display());
        let pattern = ["--name=job", "--bsrange=512-128k", "--size=16M"];
        let verify = ["--verify=crc32c", "--verify_fatal=1", &aside];
        run("fio", &[&pattern[..], &verify, words].concat());
    };
    let (mut server, uri) = images.serve("disk");
    let uri = format!("--uri={uri}");
    let export = ["--ioengine=nbd", &uri, "--iodepth=32"];
    // Reads and verifies while it writes.
    let mixed = ["--rw=randrw", "--rwmixread=30", "--verify_backlog=16"];
    fio(&[&export[..], &mixed].concat());
    fio(&[&export[..], &["--rw=randwrite", "--do_verify=0"]].concat());
    server.terminate();
    let file = format!("--filename={}", images.path("disk"));
    fio(&[&file, "--rw=randwrite", "--verify_only"]);
}

#[test]
fn what_is_written_through_nbdfuse_is_in_the_file() {
    if fs::File::open("/dev/fuse").is_err() {
        eprintln!("skipped: no /dev/fuse here");
        return;
    }
    let images = Images::new();
    images.full("disk");
    let (mut server, uri) = images.serve("disk");
    fs::create_dir(images.path("mount")).expect("made");
    let file = images.path("mount/disk");
    let child = Process::new("nbdfuse")
        .args([&file, &uri])
        .stdin(Stdio::null())
        .spawn()
        .expect("nbdfuse is installed");
    let mut nbdfuse = Running(child);
    wait_for(&file, &mut nbdfuse.0);
    let into = format!("of={file}");
    let dd = ["if=/dev/zero", &into, "bs=100000", "seek=7", "count=3"];
    run(
        "dd",
        &[&dd[..], &["conv=notrunc,fsync", "status=none"]].concat(),
    );
    kill_process(Pid::from_child(&nbdfuse.0), Signal::TERM).expect("signalled");
    nbdfuse.0.wait().expect("our child");
    server.terminate();
    let mut expected = pattern(SIZE as usize);
    expected[700_000..1_000_000].fill(0);
    assert!(images.bytes("disk") == expected);
}
