//! The tools people read a served point with: each gets the very bytes that were backed up.

use std::process::{Command, Stdio};

use crate::serving::Serving;
use crate::world::{NbdServer, Ran, TestDomain, World, disk, tool, wait_until};

#[test]
fn qemu_nbdkit_and_fuse_read_a_point_as_it_was_backed_up() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    let (original, copy) = (world.text("original.raw"), world.text("copy.raw"));
    std::fs::write(&original, &content).unwrap();
    let serving = Serving::start(&world, &["web1/vda@latest"]);
    let uri = serving.uri("");

    let compare = ["compare", "-f", "raw", "-F", "raw", &original, &uri];
    assert!(tool("qemu-img", &compare).contains("identical"));
    let size = content.len().to_string();
    let read = format!("read 0 {size}");
    tool("qemu-io", &["-r", "-f", "raw", "-c", &read, &uri]);
    let write = ["-f", "raw", "-c", "write 0 512", &uri];
    assert_ne!(Ran::of(Command::new("qemu-io").args(write)).code, 0);

    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--exit-with-parent", "-f", "-r", "-U"]);
    nbdkit.arg(&socket).arg("nbd");
    nbdkit.arg(format!("uri={}", uri));
    let proxy = NbdServer::start(&mut nbdkit, &socket);
    tool("nbdcopy", &[&proxy.uri, &copy]);
    assert!(std::fs::read(&copy).unwrap() == content, "through nbdkit");

    if std::fs::File::open("/dev/fuse").is_err() {
        eprintln!("skipped: no /dev/fuse here");
        return;
    }
    std::fs::create_dir(world.path("mount")).unwrap();
    let file = world.path("mount/vda");
    let mut nbdfuse = Command::new("nbdfuse")
        .arg("-r")
        .arg(&file)
        .arg(&uri)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("mounted", || {
        file.exists() || nbdfuse.try_wait().unwrap().is_some()
    });
    let found = std::fs::read(&file);
    tool("kill", &[&nbdfuse.id().to_string()]);
    nbdfuse.wait().unwrap();
    assert!(found.unwrap() == content, "through nbdfuse");
}

#[test]
fn fio_finds_in_a_point_what_it_wrote_to_the_image() {
    let world = World::new();
    let fio = |words: &[&str]| {
        let pattern = ["--name=job", "--bsrange=512-64k", "--size=4M"];
        let verify = ["--verify=crc32c", "--verify_fatal=1", "--rw=randwrite"];
        let aside = format!("--aux-path={}", world.path("").display());
        let mut fio = Command::new("fio");
        fio.args(pattern).args(verify).arg(aside).args(words);
        Ran::of(&mut fio)
    };
    let image = world.text("image.raw");
    let filename = format!("--filename={image}");
    let written = fio(&[&filename, "--do_verify=0"]);
    assert_eq!(written.code, 0, "{written:#?}");
    world.ok(&["backup", "--image", &image, "--name", "good"]);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[3 << 20] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    world.ok(&["backup", "--image", &image, "--name", "bad"]);

    for (point, sound) in [("good@latest", true), ("bad@latest", false)] {
        let serving = Serving::start(&world, &[point]);
        let uri = format!("--uri={}", serving.uri(""));
        let verified = fio(&["--ioengine=nbd", &uri, "--iodepth=16", "--verify_only"]);
        assert_eq!(verified.code == 0, sound, "{point}: {verified:#?}");
    }
}
