//! Where a server listens, and who may come in.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::history;
use crate::authority::Authority;
use crate::serving::Serving;
use crate::world::{Ran, TestDomain, World, disk, tool, wait_until};

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_server() {
    let world = World::new();
    let history = history(&world);
    for signal in ["-TERM", "-INT"] {
        let serving = Serving::start(&world, &[]);
        let mode = std::fs::metadata(world.path("socket")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        let second = world.run(&[
            "serve",
            "--listen",
            &format!("unix:{}", world.text("socket")),
        ]);
        second.refused(1, "in use");
        assert!(serving.copy("web1@latest") == history[2]);
        let said = serving.end(signal);
        assert!(said.contains("opened web1@latest"), "{said}");
        assert!(!world.path("socket").exists());
    }
    // One that was killed leaves its socket and a dead lease, which are in nobody's way.
    let serving = Serving::start(&world, &[]);
    let mut client = serving.connect("web1/vda@latest");
    wait_until("held", || world.names("repo/leases").len() == 1);
    drop(serving);
    drop(client.stdin.take());
    client.wait().unwrap();
    assert!(world.path("socket").exists());
    let serving = Serving::start(&world, &[]);
    assert!(serving.copy("web1@latest") == history[2]);
    let content = disk(5);
    std::fs::write(world.path("new.raw"), &content).unwrap();
    world.ok(&["backup", "--image", &world.text("new.raw"), "--name", "new"]);
    assert_eq!(world.names("repo/leases"), [""; 0]);
    assert!(serving.copy("new@latest")[..] == content[..]);
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    let world = World::new();
    let wrong = world.run(&["serve", "--listen", "/run/x.sock"]);
    wrong.refused(2, "unix:PATH");
    let open = world.run(&["serve", "--listen", "0.0.0.0:0"]);
    open.refused(1, "can be reached from other machines");
    let text = world
        .command(&[
            "serve",
            "--listen",
            "unix:socket",
            "--listen",
            "127.0.0.1:0",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = text.unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("No points yet") {
        assert!(out.read_line(&mut said).unwrap() > 0, "{said}");
    }
    assert!(said.contains("and 127.0.0.1:"), "{said}");
    assert!(
        said.contains("nbdinfo --list 'nbd+unix:///?socket="),
        "{said}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

/// How clients read the first disk of `web1` over TLS, with the certificates in a folder: `nbdcopy` and
/// QEMU, into this file.
fn read_with(program: &str, serving: &Serving<'_>, folder: &str, copy: &str) -> Ran {
    let mut command = Command::new(program);
    if program == "nbdcopy" {
        command.arg(format!(
            "nbds://localhost:{}/web1/vda@latest?tls-certificates={folder}",
            serving.port()
        ));
    } else {
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={folder}");
        let image = format!(
            "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,\
             file.server.port={},file.export=web1/vda@latest,file.tls-creds=tls",
            serving.port()
        );
        command.args(["convert", "--object", &credentials, "--image-opts", &image]);
        command.args(["-O", "raw"]);
    }
    Ran::of(command.arg(copy))
}

const READERS: [&str; 2] = ["nbdcopy", "qemu-img"];

#[test]
fn other_machines_are_served_over_tls_and_see_that_it_is_the_right_server() {
    let world = World::new();
    let history = history(&world);
    let (ours, foreign) = (Authority::new(), Authority::new());
    let serving = Serving::start_secured(&world, "0.0.0.0:0", &ours, &[]);
    let copy = world.text("copy.raw");
    let (trusting, mistaken) = (ours.anonymous_client(), foreign.anonymous_client());
    for reader in READERS {
        let copied = read_with(reader, &serving, &trusting.folder(), &copy);
        assert_eq!(copied.code, 0, "{copied:#?}");
        assert!(std::fs::read(&copy).unwrap()[..history[2].len()] == history[2]);
        let refused = read_with(reader, &serving, &mistaken.folder(), &copy);
        assert_ne!(refused.code, 0, "{refused:#?}");
        assert!(refused.stderr.contains("certificate"), "{refused:#?}");
    }
    let plain = format!("nbd://localhost:{}/web1/vda@latest", serving.port());
    let plain_text = Ran::of(Command::new("nbdcopy").args([&plain, &copy]));
    assert_ne!(plain_text.code, 0, "{plain_text:#?}");

    let (certificate, key) = (ours.file("server-cert.pem"), ours.file("server-key.pem"));
    let half = world.run(&["serve", "--tls-cert", &certificate]);
    half.refused(2, "--tls-key");
    let missing = ["serve", "--tls-cert", "nowhere.pem", "--tls-key", &key];
    world.run(&missing).refused(1, "nowhere.pem");
}

#[test]
fn only_clients_with_a_certificate_of_the_chosen_authority_read_over_tls() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    let (ours, foreign) = (Authority::new(), Authority::new());
    let right = ours.folder();
    let wrong = [
        (ours.anonymous_client(), "no certificate"),
        (ours.client_of(&foreign), "BadSignature"),
        // QEMU does not even try.
        (ours.expired_client(), "Expired"),
    ];
    let only_ours = ["--tls-client-ca", &ours.file("ca-cert.pem")];
    let serving = Serving::start_secured(&world, "localhost:0", &ours, &only_ours);
    let copy = world.text("copy.raw");
    for reader in READERS {
        for (client, _) in &wrong {
            let refused = read_with(reader, &serving, &client.folder(), &copy);
            assert_ne!(refused.code, 0, "{refused:#?}");
            assert!(!world.path("copy.raw").exists() || std::fs::read(&copy).unwrap() != content);
        }
        let read = read_with(reader, &serving, &right, &copy);
        assert_eq!(read.code, 0, "{read:#?}");
        assert!(std::fs::read(&copy).unwrap()[..content.len()] == content);
        std::fs::remove_file(&copy).unwrap();
    }
    let said = serving.end("-TERM");
    for (_, reason) in wrong {
        assert!(said.contains(reason), "{reason}: {said}");
    }
}

#[test]
fn a_socket_passed_by_systemd_is_served() {
    let world = World::new();
    let history = history(&world);
    let socket = world.text("passed");
    let program = env!("CARGO_BIN_EXE_virtkeep");
    let mut child = Command::new("systemd-socket-activate")
        .args(["--listen", &socket, "--setenv=TZ=UTC"])
        .arg(format!("--setenv=VIRTKEEP_REPO={}", world.text("repo")))
        .args([program, "serve"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("listened", || world.path("passed").exists());
    let copy = world.text("copy.raw");
    let uri = format!("nbd+unix:///web1/vda@latest?socket={socket}");
    tool("nbdcopy", &[&uri, &copy]);
    assert!(std::fs::read(&copy).unwrap() == history[2]);
    child.kill().unwrap();
    child.wait().unwrap();
}
