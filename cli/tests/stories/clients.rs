//! The tools people read a served point with: each gets the very bytes that were backed up.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::world::{NbdServer, Ran, TestDomain, World, disk, tool, wait_until};

/// `virtkeep serve` of one point.
fn serve(world: &World, point: &str) -> NbdServer {
    let socket = world.path("serve.sock");
    let listen = format!("unix:{}", socket.display());
    NbdServer::start(
        world
            .command(&["serve", point, "--listen", &listen])
            .stdout(Stdio::null()),
        &socket,
    )
}

#[test]
fn qemu_nbdkit_and_fuse_read_a_point_as_it_was_backed_up() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    let (original, copy) = (world.text("original.raw"), world.text("copy.raw"));
    std::fs::write(&original, &content).unwrap();
    let server = serve(&world, "web1/vda@latest");

    let compare = ["compare", "-f", "raw", "-F", "raw", &original, &server.uri];
    assert!(tool("qemu-img", &compare).contains("identical"));
    let size = content.len().to_string();
    let read = format!("read 0 {size}");
    tool("qemu-io", &["-r", "-f", "raw", "-c", &read, &server.uri]);
    let write = ["-f", "raw", "-c", "write 0 512", &server.uri];
    assert_ne!(Ran::of(Command::new("qemu-io").args(write)).code, 0);

    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--exit-with-parent", "-f", "-r", "-U"]);
    nbdkit.arg(&socket).arg("nbd");
    nbdkit.arg(format!("uri={}", server.uri));
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
        .arg(&server.uri)
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
        let server = serve(&world, point);
        let uri = format!("--uri={}", server.uri);
        let verified = fio(&["--ioengine=nbd", &uri, "--iodepth=16", "--verify_only"]);
        assert_eq!(verified.code == 0, sound, "{point}: {verified:#?}");
        drop(server);
        std::fs::remove_file(world.path("serve.sock")).unwrap();
    }
}

/// A certificate and its key, `NAME-cert.pem` and `NAME-key.pem`, of an authority whose files have a
/// folder of their own.
fn certificate(world: &World, authority: &str, name: &str) {
    let file = |file: &str| world.text(&format!("{authority}/{file}"));
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let (ca, ca_key) = (file("ca-cert.pem"), file("ca-key.pem"));
    if !world.path(authority).exists() {
        std::fs::create_dir(world.path(authority)).unwrap();
        let mut made = vec!["req", "-x509", "-subj", "/CN=Authority", "-days", "2"];
        made.extend(new_key);
        made.extend(["-nodes", "-keyout", &ca_key, "-out", &ca]);
        tool("openssl", &made);
    }
    let (request, names) = (file("request.pem"), file("names"));
    let key = file(&format!("{name}-key.pem"));
    let mut asked = vec!["req", "-new", "-subj", "/CN=localhost", "-nodes"];
    asked.extend(new_key);
    asked.extend(["-keyout", &key, "-out", &request]);
    tool("openssl", &asked);
    std::fs::write(&names, "subjectAltName=DNS:localhost\n").unwrap();
    let signed = file(&format!("{name}-cert.pem"));
    let mut sign = vec!["x509", "-req", "-days", "2", "-CAcreateserial"];
    sign.extend(["-in", &request, "-CA", &ca, "-CAkey", &ca_key]);
    sign.extend(["-extfile", &names, "-out", &signed]);
    tool("openssl", &sign);
}

#[test]
fn only_clients_with_a_certificate_of_the_chosen_authority_read_over_tls() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    certificate(&world, "ours", "server");
    certificate(&world, "ours", "client");
    certificate(&world, "foreign", "client");
    let own = ["client-cert.pem", "client-key.pem"];
    for folder in ["without", "impostor"] {
        std::fs::create_dir(world.path(folder)).unwrap();
        let copied = format!("{folder}/ca-cert.pem");
        std::fs::copy(world.path("ours/ca-cert.pem"), world.path(&copied)).unwrap();
    }
    for file in own {
        let foreign = world.path("foreign").join(file);
        std::fs::copy(foreign, world.path("impostor").join(file)).unwrap();
    }

    let (ca, certificate) = (
        world.text("ours/ca-cert.pem"),
        world.text("ours/server-cert.pem"),
    );
    let key = world.text("ours/server-key.pem");
    let mut command = world.command(&["serve", "--json", "--listen", "localhost:0"]);
    command.args(["--tls-cert", &certificate, "--tls-key", &key]);
    command.args(["--tls-client-ca", &ca]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let (_, port) = line["address"].as_str().unwrap().rsplit_once(':').unwrap();

    let copy = world.text("copy.raw");
    let read_by = |folder: &str| {
        let certificates = world.text(folder);
        let point = "web1/vda@latest";
        let uri = format!("nbds://localhost:{port}/{point}?tls-certificates={certificates}");
        Ran::of(Command::new("nbdcopy").args([&uri, &copy])).code == 0
    };
    assert!(read_by("ours"));
    assert!(std::fs::read(&copy).unwrap() == content);
    std::fs::remove_file(&copy).unwrap();
    assert!(!read_by("without"), "without a certificate");
    assert!(!read_by("impostor"), "with one of another authority");
    assert!(!world.path("copy.raw").exists() || std::fs::read(&copy).unwrap() != content);
    child.kill().unwrap();
    child.wait().unwrap();
}
