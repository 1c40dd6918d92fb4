//! Ctrl-C and SIGTERM: ended in order, with nothing incomplete left.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::world::{NbdServer, TestDomain, World, disk};

/// Runs the program, sends it a signal once it has said `when`, and gives its exit code and what
/// it said from then on.
fn interrupt(command: &mut Command, when: &str, signal: &str) -> (i32, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut before = Vec::new();
    while !before
        .last()
        .is_some_and(|line: &String| line.contains(when))
    {
        let line = said.next();
        before.push(
            line.unwrap_or_else(|| panic!("never {when:?}: {before:?}"))
                .unwrap(),
        );
    }
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(sent.success());
    let rest: Vec<String> = said.map(|line| line.unwrap()).collect();
    (child.wait().unwrap().code().unwrap_or(-1), rest.join("\n"))
}

/// An export so slow that there is time for a signal.
fn slow_export(world: &World, delay: &str) -> NbdServer {
    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--filter=delay", "pattern", "1G", delay]);
    nbdkit.arg("--unix").arg(&socket);
    NbdServer::start(&mut nbdkit, &socket)
}

#[test]
fn an_interrupted_backup_makes_no_point() {
    // A server each: nbdkit does not always survive clients that hang up on it.
    for (signal, expected) in [("-INT", 130), ("-TERM", 143)] {
        let world = World::new();
        let server = slow_export(&world, "delay-read=500ms");
        let backup = ["backup", "--nbd", &server.uri, "--name", "slow"];
        let (code, said) = interrupt(&mut world.command(&backup), "disk: full", signal);
        assert_eq!(code, expected, "{said}");
        assert!(said.contains("interrupted, ending the backup"), "{said}");
        assert!(world.ok(&["list"]).stdout.contains("No points yet"));
    }
}

#[test]
fn an_interrupted_restore_says_what_it_leaves() {
    let world = World::new();
    let vda = disk(1).repeat(4);
    world.add(TestDomain::web1(&vda));
    let socket = world.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args([
        "--foreground",
        "--filter=delay",
        "memory",
        "64M",
        "delay-write=700ms",
    ]);
    nbdkit.arg("--unix").arg(&socket);
    let server = NbdServer::start(&mut nbdkit, &socket);
    let restore = ["restore", "web1/vda@latest", "--onto", &server.uri, "--yes"];
    let (code, said) = interrupt(&mut world.command(&restore), "vda: restoring", "-INT");
    assert_eq!(code, 130, "{said}");
    assert!(said.contains("the target is incomplete"), "{said}");
}
