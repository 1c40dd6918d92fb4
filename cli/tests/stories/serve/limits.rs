//! Clients that want too much, and surroundings that give too little.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use libnbd::{Builder, Endpoint, Handle, Reply, Tls};
use nbd_server::wire::option::{ClientOption, ContextRequest, InfoRequest};
use nbd_server::wire::option_reply::{OptionReply, ReplyBody};
use nbd_server::wire::request::{CommandFlags, Request};

use super::{MINUTE, history};
use crate::authority::Authority;
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

/// A client that never stops asking, and checks what it is told, until the server ends; how often it
/// was answered so far is told to `answered`.
fn ask_on_and_on(mut client: Handle, content: &[u8], answered: &AtomicU64) {
    const LEN: usize = 64 << 10;
    let mut at = 0;
    loop {
        while client.outstanding() < 16 {
            if client.submit_read(at as u64, vec![0; LEN]).is_err() {
                return;
            }
            at = (at + LEN) % (content.len() - LEN);
        }
        let Ok(Some(completion)) = client.wait() else {
            return;
        };
        match completion.result {
            Ok(Reply::Read(read)) => {
                let start = read.offset as usize;
                assert!(read.bytes == content[start..start + LEN], "at {start}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
            // Only because the connection has ended: it was asked for after the end.
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(
                client.submit_read(0, vec![0; LEN]).is_err(),
                "an error reply"
            ),
        }
    }
}

#[test]
fn sigterm_ends_a_server_in_order_while_clients_ask_on_and_on_over_unix_tcp_and_tls() {
    let world = World::new();
    let history = history(&world);
    let authority = Authority::new();
    let secured = Tls::require(authority.folder());
    for (serving, builder) in [
        (Serving::start(&world, &[]), Builder::new()),
        (
            Serving::start_at(&world, "127.0.0.1:0", &[]),
            Builder::new(),
        ),
        (
            Serving::start_secured(&world, "localhost:0", &authority, &[]),
            Builder::new().tls(secured),
        ),
    ] {
        let uri = serving.uri("web1/vda@latest");
        let endpoint = Endpoint::uri(&uri);
        let clients: Vec<Handle> = (0..3)
            .map(|_| builder.connect(&endpoint).unwrap())
            .collect();
        let (content, answered) = (&history[2], &AtomicU64::new(0));
        std::thread::scope(|scope| {
            for client in clients {
                scope.spawn(move || ask_on_and_on(client, content, answered));
            }
            wait_until("busy", || answered.load(Ordering::Relaxed) > 200);
            // With exit code 0: nobody was cut.
            let said = serving.end("-TERM");
            assert!(!said.contains("lost"), "{uri}: {said}");
        });
    }
}

#[test]
fn a_flood_of_wishes_to_read_ahead_leaves_memory_alone_and_others_their_service() {
    const LEN: usize = 160 << 20;
    let world = World::new();
    let mut content = vec![0; LEN];
    for (number, chunk) in content.chunks_mut(64 << 10).enumerate() {
        chunk.fill(number as u8);
        chunk[..8].copy_from_slice(&number.to_le_bytes());
    }
    world.add(TestDomain::web1(&content));
    let serving = Serving::start(&world, &[]);
    let flood = |seed: u64| {
        let client = chosen(&world, "web1@latest", &[]).unwrap();
        let wish = |cookie: u64| Request {
            flags: CommandFlags(0),
            command: nbd_server::wire::request::Command::Cache,
            cookie,
            offset: (cookie.wrapping_mul(seed) % 39) << 22,
            length: 4 << 20,
        };
        let wishes: Vec<u8> = (0..5000).flat_map(|cookie| wish(cookie).encode()).collect();
        let mut writer = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(&wishes));
        (client, sender)
    };
    let clients = [7919, 104_729, 1_299_709, 15_485_863].map(flood);
    let mut good = serving.open("web1/vda@latest");
    let len = 1 << 20;
    for at in (0..LEN - len).step_by(7 << 20) {
        assert!(good.read(at as u64, len).unwrap().bytes == content[at..at + len]);
    }
    for (mut client, sender) in clients {
        // Each is answered, with a simple reply.
        client.read_exact(&mut vec![0; 5000 * 16]).unwrap();
        sender.join().unwrap().unwrap();
    }
    let peak = serving.memory("VmHWM");
    // It would be twice as much if all that is wished for were queued.
    assert!(peak < 160 << 20, "{peak} bytes");
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
