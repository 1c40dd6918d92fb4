//! Clients that want too much, and surroundings that give too little.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nbd_server::wire::option::{ClientOption, ContextRequest, InfoRequest};
use nbd_server::wire::option_reply::{OptionReply, ReplyBody};
use nbd_server::wire::request::{CommandFlags, Request};

use super::{MINUTE, history};
use crate::serving::Serving;
use crate::world::{NOON, TestDomain, World, disk, wait_until};

/// A client that has chosen an export, selected what changed since these points, and asks for nothing
/// yet; none if it was refused.
fn chosen(world: &World, export: &str, since: &[&str]) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(world.path("socket")).unwrap();
    let mut said = vec![0, 0, 0, 3];
    said.extend(ClientOption::StructuredReply.encode());
    let queries = since
        .iter()
        .map(|point| format!("virtkeep:changed-since:{point}"));
    let contexts = ContextRequest {
        name: export.to_owned(),
        queries: queries.collect(),
    };
    said.extend(ClientOption::SetMetaContext(contexts).encode());
    let items = Vec::new();
    let name = export.to_owned();
    said.extend(ClientOption::Go(InfoRequest { name, items }).encode());
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&said).unwrap();
    loop {
        let mut reply = vec![0; OptionReply::HEAD_BYTES];
        stream.read_exact(&mut reply).unwrap();
        let len = OptionReply::data_bytes(reply.first_chunk().unwrap()).unwrap();
        reply.resize(reply.len() + len as usize, 0);
        stream
            .read_exact(&mut reply[OptionReply::HEAD_BYTES..])
            .unwrap();
        let reply = OptionReply::decode(&reply).unwrap();
        const GO: u32 = 7;
        match reply.body {
            ReplyBody::Ack if reply.option == GO => return Some(stream),
            ReplyBody::Error { .. } if reply.option == GO => return None,
            _ => {}
        }
    }
}

fn reads(count: u64, length: u32) -> Vec<u8> {
    let read = |cookie| Request {
        flags: CommandFlags(0),
        command: nbd_server::wire::request::Command::Read,
        cookie,
        offset: 0,
        length,
    };
    (0..count)
        .flat_map(|cookie| read(cookie).encode())
        .collect()
}

#[test]
fn sigterm_leaves_nothing_unanswered_that_was_asked_before() {
    let world = World::new();
    history(&world);
    let serving = Serving::start(&world, &[]);
    let mut client = chosen(&world, "web1@latest", &[]).unwrap();
    client.write_all(&reads(200, 4096)).unwrap();
    let reader = std::thread::spawn(move || {
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).map(|_| answers)
    });
    serving.end("-TERM");
    let answers = reader.join().unwrap().unwrap();
    // Each in one chunk: its head, the offset and the data.
    assert_eq!(answers.len(), 200 * (20 + 8 + 4096));
}

#[test]
fn clients_that_take_no_replies_leave_memory_alone_and_others_their_service() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    let exports = ["web1@latest", "web1@latest~1", "web1@latest~2"];
    let greedy = exports.iter().cycle().take(60).map(|export| {
        let mut client = chosen(&world, export, &exports).unwrap();
        client.write_all(&reads(64, 12 << 20)).unwrap();
        client
    });
    let greedy: Vec<UnixStream> = greedy.collect();
    for _ in 0..3 {
        assert!(serving.copy("web1/vda@latest") == history[2]);
    }
    let peak = serving.memory("VmHWM");
    assert!(peak < 256 << 20, "{peak} bytes");
    drop(greedy);
}

#[test]
fn a_server_opens_no_more_disks_than_there_are_files_for() {
    let world = World::new();
    for age in 0..6 {
        world.add(TestDomain {
            time: NOON + age * MINUTE,
            ..TestDomain::web1(&disk(age))
        });
    }
    // The least there is: four disks.
    let serving = Serving::start_within(&world, 100);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", serving.child.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<&str> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["100", "100"], "all that it may have");
    let good = chosen(&world, "web1@latest", &[]).unwrap();
    let others = [
        "web1@latest~1",
        "web1@latest~2",
        "web1@latest~3",
        "web1@latest~4",
    ];
    let greedy = chosen(&world, "web1@latest", &others);
    assert!(chosen(&world, "web1@latest~5", &[]).is_none());
    let refused = serving.refused("web1@latest~5");
    assert!(refused.contains("as many as there may be"), "{refused}");
    // What is open already can be opened again, and read.
    assert!(serving.copy("web1@latest")[..] == disk(5)[..]);
    drop((good, greedy));
    wait_until("let go", || world.names("repo/leases").is_empty());
    assert!(serving.copy("web1@latest~5")[..] == disk(0)[..]);
}

#[test]
fn a_server_whose_log_nobody_reads_any_more_goes_on_and_ends_in_order() {
    let world = World::new();
    let history = history(&world);
    let mut serving = Serving::start_unheard(&world);
    for _ in 0..3 {
        // A line for each that comes, and one for each that is lost.
        assert!(serving.copy("web1/vda@latest") == history[2]);
        let mut rude = UnixStream::connect(world.path("socket")).unwrap();
        rude.write_all(&[0xff; 64]).unwrap();
    }
    wait_until("let go", || world.names("repo/leases").is_empty());
    serving.signal("-TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_flood_of_silent_clients_keeps_nobody_out() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    let mut flood: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(world.path("socket")).unwrap())
        .collect();
    for client in &mut flood {
        // Many have been turned away by now.
        let _ = client.write_all(&[0xff; 7]);
    }
    assert!(serving.copy("web1/vda@latest") == history[2]);
    drop(flood);
    assert_eq!(serving.names().len(), 4);
}
