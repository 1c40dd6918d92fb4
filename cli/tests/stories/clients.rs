//! The tools people read a served point with: each gets the very bytes that were backed up.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::authority::Authority;
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

    let map = tool("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let mut at = 0;
    for extent in &map {
        let field = |name: &str| extent[name].as_u64().unwrap() as usize;
        assert_eq!(field("start"), at, "{map:?}");
        let end = at + field("length");
        let is_zero = content[at..end].iter().all(|byte| *byte == 0);
        assert_eq!(extent["zero"], is_zero, "{extent}");
        at = end;
    }
    assert_eq!(at, content.len());

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
fn nbdinfo_tells_all_about_a_point() {
    let world = World::new();
    let content = disk(1);
    let point = world.add(TestDomain::web1(&content));
    let serving = Serving::start(&world, &[]);
    let uri = serving.uri(&format!("web1/vda@{}", point.id));
    let says = |question: &str, what: &str| {
        Ran::of(Command::new("nbdinfo").args([question, what, &uri])).code == 0
    };
    for can in [
        "connect",
        "read",
        "df",
        "cache",
        "multi-conn",
        "structured-reply",
    ] {
        assert!(says("--can", can), "{can}");
    }
    for cannot in ["write", "trim", "zero", "fast-zero"] {
        assert!(!says("--can", cannot), "{cannot}");
    }
    assert!(says("--is", "read-only"));
    assert!(!says("--is", "tls"));
    let size = tool("nbdinfo", &["--size", &uri]);
    assert_eq!(size.trim(), content.len().to_string());
    let totals = tool("nbdinfo", &["--map", "--totals", "--json", &uri]);
    let totals: Vec<Value> = serde_json::from_str(&totals).unwrap();
    let sum: u64 = totals
        .iter()
        .map(|total| total["size"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, content.len() as u64);
    let list = tool("nbdinfo", &["--list", "--json", &serving.uri("")]);
    let list: Value = serde_json::from_str(&list).unwrap();
    for export in list["exports"].as_array().unwrap() {
        assert_eq!(export["export-size"], content.len());
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["block_size_preferred"], 64 << 10);
        let description = export["description"].as_str().unwrap();
        assert!(description.starts_with("vda of web1 at 2026-11-22T11:00:00, 12 MiB"));
    }
    // For people, too.
    assert!(tool("nbdinfo", &[&uri]).contains("export-size: 12583424"));
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

/// `nbd-client`, which may set up no device, whatever kernel there is: what it says up to there.
fn nbd_client(words: &[&str]) -> Ran {
    let mut client = Command::new("unshare");
    client.args(["--map-root-user", "/usr/sbin/nbd-client"]);
    Ran::of(client.args(words))
}

#[test]
fn nbd_client_lists_points_and_agrees_with_the_server_on_all_but_the_kernels_part() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    let authority = Authority::new();
    let (socket, ca) = (world.text("socket"), authority.file("ca-cert.pem"));
    let local = Serving::start(&world, &[]);
    let plain = Serving::start_at(&world, "127.0.0.1:0", &[]);
    let remote = Serving::start_secured(&world, "localhost:0", &authority, &[]);
    let (port, tls_port) = (plain.port().to_string(), remote.port().to_string());
    let unix = ["-unix", &socket];
    let tcp = ["127.0.0.1", &port];
    let without_tls = ["localhost", &tls_port];
    let with_tls = ["localhost", &tls_port, "-x", "-A", &ca, "-H", "localhost"];
    for server in [&unix[..], &tcp, &with_tls] {
        let listed = nbd_client(&[&["-l"], server].concat());
        assert_eq!(listed.code, 0, "{server:?}: {listed:#?}");
        for name in local.names() {
            let line = format!("{name}: vda of web1 at 2026-11-22T11:00:00, 12 MiB");
            assert!(listed.stdout.contains(&line), "{server:?}: {listed:#?}");
        }
    }
    let connect = |server: &[&str], export: &str| {
        let ran = nbd_client(&[server, &["-N", export, "/dev/nbd0"]].concat());
        assert_ne!(ran.code, 0, "there is no device: {ran:#?}");
        format!("{}{}", ran.stdout, ran.stderr)
    };
    for server in [&unix[..], &tcp, &with_tls] {
        let said = connect(server, "web1/vda@latest");
        assert!(said.contains("size = 12MB"), "{server:?}: {said}");
    }
    let said = connect(&unix, "web1/vdb@latest");
    assert!(said.contains("has no disk vdb"), "{said}");
    let said = connect(&without_tls, "web1/vda@latest");
    assert!(said.contains("this server requires TLS"), "{said}");
}
