//! Points as NBD exports, to the clients people use.

mod limits;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::world::{NOON, Ran, TestDomain, World, disk, tool, wait_until};

const MINUTE: u64 = 60_000;

/// `virtkeep serve` on a socket of its own, killed with the story unless it was ended before.
struct Serving<'a> {
    world: &'a World,
    child: Child,
    out: BufReader<ChildStdout>,
}

impl<'a> Serving<'a> {
    /// Starts it and waits until it accepts clients.
    #[track_caller]
    fn start(world: &'a World, points: &[&str]) -> Self {
        let listen = format!("unix:{}", world.text("socket"));
        let mut args = vec!["--json", "serve", "--listen", &listen];
        args.extend(points);
        Self::run(world, &mut world.command(&args))
    }

    /// The same for all points, in a process that may open so many files at most, and no more than 64
    /// unless it asks for more.
    #[track_caller]
    fn start_within(world: &'a World, files_max: usize) -> Self {
        let listen = format!("unix:{}", world.text("socket"));
        let usual = world.command(&["--json", "serve", "--listen", &listen]);
        let mut command = Command::new("sh");
        let script = format!("ulimit -Sn 64; ulimit -Hn {files_max}; exec \"$0\" \"$@\"");
        command.args(["-c", &script]).arg(usual.get_program());
        command.args(usual.get_args());
        for (name, value) in usual.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(usual.get_current_dir().unwrap_or(Path::new(".")));
        Self::run(world, &mut command)
    }

    #[track_caller]
    fn run(world: &'a World, command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.contains(r#""type":"listening""#), "{line:?}");
        Self { world, child, out }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.world.text("socket"))
    }

    /// What `nbdinfo` says of an export.
    #[track_caller]
    fn info(&self, export: &str) -> Value {
        let all: Value =
            serde_json::from_str(&tool("nbdinfo", &["--json", &self.uri(export)])).unwrap();
        all["exports"][0].clone()
    }

    /// The names of all exports.
    #[track_caller]
    fn names(&self) -> Vec<String> {
        let all = tool("nbdinfo", &["--json", "--list", &self.uri("")]);
        let all: Value = serde_json::from_str(&all).unwrap();
        let exports = all["exports"].as_array().unwrap().iter();
        exports
            .map(|export| export["export-name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The bytes of an export.
    #[track_caller]
    fn copy(&self, export: &str) -> Vec<u8> {
        let copy = self.world.text("copy.raw");
        tool("nbdcopy", &[&self.uri(export), &copy]);
        std::fs::read(copy).unwrap()
    }

    /// What QEMU says when it is refused an export.
    #[track_caller]
    fn refused(&self, export: &str) -> String {
        let ran = Ran::of(Command::new("qemu-img").args(["info", &self.uri(export)]));
        assert_ne!(ran.code, 0, "{ran:#?}");
        ran.stderr
    }

    /// A client that stays connected to an export until its standard input is closed.
    fn connect(&self, export: &str) -> Child {
        let uri = self.uri(export);
        let mut client = Command::new("qemu-io");
        client.args(["-r", "-f", "raw", &uri]);
        client
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        tool("kill", &[signal, &pid]);
    }

    /// Ends it with a signal; what it said on standard error.
    #[track_caller]
    fn end(mut self, signal: &str) -> String {
        self.signal(signal);
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        let mut said = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        said
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three points of `web1`, a minute apart, of disks that differ in places.
fn history(world: &World) -> Vec<Vec<u8>> {
    let mut content = disk(1);
    let mut all = Vec::new();
    for age in 0..3 {
        if age > 0 {
            content[age << 20] = 7;
            content[3 << 20..(3 << 20) + 70_000].fill(0);
        }
        world.add(TestDomain {
            time: NOON + age as u64 * MINUTE,
            ..TestDomain::web1(&content)
        });
        all.push(content.clone());
    }
    all
}

/// Takes all chunks away; what is left are manifests.
fn remove_data(world: &World) {
    let packs = std::fs::read_dir(world.path("repo/packs")).unwrap();
    for folder in packs.map(|entry| entry.unwrap().path()) {
        for pack in std::fs::read_dir(folder).unwrap() {
            let pack = pack.unwrap().path();
            const DATA: u8 = 1;
            if std::fs::read(&pack).unwrap()[10] == DATA {
                std::fs::remove_file(pack).unwrap();
            }
        }
    }
}

#[test]
fn every_point_of_a_history_is_served_as_it_is_restored() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    for (export, content) in [
        ("web1/vda@2026-11-22T11:00", &history[0]),
        ("web1/vda@latest~1", &history[1]),
        ("web1@latest", &history[2]),
    ] {
        assert!(serving.copy(export) == *content, "{export}");
        let restored = world.run(&["restore", export, "--to", "-"]);
        assert!(restored.out == *content, "{export}");
        let info = serving.info(export);
        assert_eq!(info["export-size"], content.len());
        assert_eq!(info["is_read_only"], true);
        // Several connections to a name that moves could be to several points.
        assert_eq!(info["can_multi_conn"], !export.contains("latest"));
    }
    // The same, read by QEMU.
    let raw = world.text("qemu.raw");
    let uri = serving.uri("web1/vda@latest");
    tool("qemu-img", &["convert", "-O", "raw", &uri, &raw]);
    let compared = tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, &raw],
    );
    assert!(compared.contains("identical"), "{compared}");
    assert!(std::fs::read(raw).unwrap()[..history[2].len()] == history[2]);
}

#[test]
fn holes_are_told_from_data_without_reading_it() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    let serving = Serving::start(&world, &[]);
    remove_data(&world);
    let map = tool(
        "nbdinfo",
        &["--map", "--json", &serving.uri("web1/vda@latest")],
    );
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let extents: Vec<(u64, u64)> = map
        .iter()
        .map(|extent| {
            let field = |name: &str| extent[name].as_u64().unwrap();
            (field("length"), field("type"))
        })
        .collect();
    const CHUNK: u64 = 64 << 10;
    let at = |mib: u64| mib << 20;
    assert_eq!(
        extents,
        [
            (5 * CHUNK, 0),
            (at(3) - 5 * CHUNK, 3),
            (at(1) + CHUNK, 0),
            (at(2) - CHUNK, 3),
            (CHUNK, 0),
            (at(6) - 2 * CHUNK, 3),
            (CHUNK + 512, 0),
        ]
    );
}

/// The ranges that differ, in whole chunks of the later disk, and all behind the end of the earlier.
fn differences(before: &[u8], after: &[u8]) -> Vec<(u64, u64)> {
    const CHUNK: usize = 64 << 10;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut add = |start: usize, end: usize| match ranges.last_mut() {
        Some(last) if last.1 == start as u64 => last.1 = end as u64,
        _ => ranges.push((start as u64, end as u64)),
    };
    let both = before.len().min(after.len());
    for start in (0..both).step_by(CHUNK) {
        let end = (start + CHUNK).min(both);
        // What follows in the same chunk of one disk only counts as zeroes in the other.
        let rest = |disk: &[u8]| {
            disk[end..disk.len().min(start + CHUNK)]
                .iter()
                .any(|b| *b != 0)
        };
        if before[start..end] != after[start..end] || rest(before) || rest(after) {
            add(start, end);
        }
    }
    if both < after.len() {
        add(both, after.len());
    }
    ranges
}

#[test]
fn what_changed_since_a_point_is_told_without_reading_data() {
    let world = World::new();
    let mut disks = history(&world);
    // It grows, and shrinks.
    let mut larger = disks[2].clone();
    larger.resize(40 << 20, 0);
    larger[30 << 20] = 1;
    let smaller = larger[..(8 << 20) + 1536].to_vec();
    for disk in [larger, smaller] {
        world.add(TestDomain {
            time: NOON + disks.len() as u64 * MINUTE,
            ..TestDomain::web1(&disk)
        });
        disks.push(disk);
    }
    let serving = Serving::start(&world, &[]);
    let listed = serving.info("web1/vda@latest")["contexts"].clone();
    assert_eq!(listed.as_array().unwrap().len(), disks.len(), "{listed}");
    assert_eq!(listed[0], "base:allocation");
    assert!(
        listed[1]
            .as_str()
            .unwrap()
            .starts_with("virtkeep:changed-since:p")
    );
    remove_data(&world);
    for (age, after) in disks.iter().rev().enumerate() {
        let export = format!("web1/vda@latest~{age}");
        for (base_age, before) in disks.iter().rev().enumerate() {
            let context = format!("virtkeep:changed-since:web1@latest~{base_age}");
            let expected = differences(before, after);
            let map = format!("--map={context}");
            let map = tool("nbdinfo", &[&map, "--json", &serving.uri(&export)]);
            let map: Vec<Value> = serde_json::from_str(&map).unwrap();
            let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
            let changed: Vec<(u64, u64)> = map
                .iter()
                .filter(|extent| field(extent, "type") == 1)
                .map(|extent| {
                    let start = field(extent, "offset");
                    (start, start + field(extent, "length"))
                })
                .collect();
            assert_eq!(changed, expected, "{export} since latest~{base_age}");

            // The program says the same.
            let base = format!("web1/vda@latest~{base_age}");
            let ran = world.ok(&["--json", "diff", &base, &export, "--ranges"]);
            let mut lines = ran.json();
            let total = lines.pop().unwrap();
            let of = |line: &Value, name: &str| line[name].as_u64().unwrap();
            let told: Vec<_> = lines
                .iter()
                .map(|l| (of(l, "start"), of(l, "end")))
                .collect();
            assert_eq!(told, expected, "{base} {export}");
            let sum: u64 = expected.iter().map(|(start, end)| end - start).sum();
            assert_eq!(total["disks"][0]["changed_bytes"], sum);
            assert_eq!(total["disks"][0]["size_bytes"], after.len());
        }
    }
    let uri = serving.uri("web1@latest");
    let mut unknown = Command::new("nbdinfo");
    unknown.args(["--map=virtkeep:changed-since:web1@1999", &uri]);
    assert_ne!(Ran::of(&mut unknown).code, 0);
    let said = serving.end("-TERM");
    assert!(said.contains("no point of web1 that old"), "{said}");
}

#[test]
fn disks_that_only_one_point_has_are_listed_by_diff() {
    let world = World::new();
    let content = disk(1);
    let point = |disks: &[&'static str], time| {
        let disks = disks.iter().map(|target| (*target, &content[..]));
        world.add(TestDomain {
            disks: disks.collect(),
            time,
            ..TestDomain::web1(&content)
        });
    };
    point(&["vda", "vdb"], NOON);
    point(&["vda", "vdc"], NOON + MINUTE);
    let ran = world.ok(&["diff", "web1@latest~1", "web1@latest"]);
    let rows: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            vec!["DISK", "BEFORE", "SIZE", "CHANGED"],
            vec!["vda", "12", "MiB", "12", "MiB", "0", "B"],
            vec!["vdc", "-", "12", "MiB", "-"],
            vec!["vdb", "12", "MiB", "-", "-"],
        ]
    );
    let two = world.run(&["diff", "web1/vda@latest", "web1/vdc@latest"]);
    two.refused(1, "compare a disk with itself");
}

#[test]
fn the_list_names_every_disk_and_follows_the_repository() {
    let world = World::new();
    let content = disk(1);
    let serving = Serving::start(&world, &[]);
    assert_eq!(serving.names(), [""; 0]);
    let mut both = TestDomain::web1(&content);
    both.disks.push(("vdb", &content));
    let point = world.add(both);
    assert_eq!(
        serving.names(),
        [
            "web1/vda@latest",
            "web1/vda@2026-11-22T11:00:00",
            "web1/vdb@latest",
            "web1/vdb@2026-11-22T11:00:00",
        ]
    );
    world.add(TestDomain {
        time: NOON + MINUTE,
        ..TestDomain::web1(&content)
    });
    assert_eq!(
        serving.names(),
        [
            "web1/vda@latest",
            "web1/vda@2026-11-22T11:01:00",
            "web1/vda@2026-11-22T11:00:00",
            "web1/vdb@2026-11-22T11:00:00",
        ]
    );
    let description = serving.info(&format!("web1/vda@{}", point.id))["description"].clone();
    assert_eq!(
        description,
        format!(
            "vda of web1 at 2026-11-22T11:00:00, 12 MiB, point {}",
            point.id
        )
    );
    let several = serving.refused(&point.id.to_string());
    assert!(several.contains("2 disks (vda, vdb)"), "{several}");
    std::fs::remove_file(world.path(&format!("repo/points/{}", point.id))).unwrap();
    assert_eq!(serving.names().len(), 2);
    let gone = serving.refused(&format!("web1/vda@{}", point.id));
    assert!(gone.contains("no restore point"), "{gone}");
}

#[test]
fn a_name_that_means_two_things_is_listed_with_the_uuid() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    world.add(TestDomain {
        uuid: 0x22,
        ..TestDomain::web1(&content)
    });
    // A domain whose name is that of a disk of another.
    world.add(TestDomain {
        name: "db",
        uuid: 0x33,
        ..TestDomain::web1(&content)
    });
    world.add(TestDomain {
        name: "db/vda",
        uuid: 0x44,
        ..TestDomain::web1(&content)
    });
    let serving = Serving::start(&world, &[]);
    let names = serving.names();
    let latest: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_suffix("@latest"))
        .collect();
    assert_eq!(
        latest,
        [
            "33333333-3333-3333-3333-333333333333/vda",
            "db/vda/vda",
            "11111111-1111-1111-1111-111111111111/vda",
            "22222222-2222-2222-2222-222222222222/vda",
        ]
    );
    for name in names {
        serving.info(&name);
    }
}

#[test]
fn only_what_was_chosen_is_served() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &["web1/vda@latest"]);
    assert_eq!(
        serving.names(),
        ["web1/vda@latest", "web1/vda@2026-11-22T11:02:00"]
    );
    let refused = serving.refused("web1/vda@latest~1");
    assert!(refused.contains("not among the points"), "{refused}");
    // Nor is it told whether they are equal, neither older ones nor those of others.
    world.add(TestDomain {
        name: "secret",
        uuid: 0x99,
        ..TestDomain::web1(&history[2])
    });
    assert_eq!(
        serving.info("web1/vda@latest")["contexts"],
        serde_json::json!(["base:allocation"])
    );
    for other in ["web1@latest~1", "secret@latest"] {
        let map = format!("--map=virtkeep:changed-since:{other}");
        let mut compare = Command::new("nbdinfo");
        compare.args([&map, &serving.uri("web1/vda@latest")]);
        assert_ne!(Ran::of(&mut compare).code, 0, "{other}");
    }
    // The only one needs no name.
    assert!(serving.copy("") == history[2]);
    // `latest` means what is latest now.
    let newer = disk(3);
    world.add(TestDomain {
        time: NOON + 9 * MINUTE,
        ..TestDomain::web1(&newer)
    });
    assert!(serving.copy("") == newer);
    let missing = world.run(&["serve", "web9@latest", "--listen", "unix:socket2"]);
    missing.refused(1, "there is no point of web9");
}

#[test]
fn a_connection_holds_a_lease_on_its_disk_and_an_idle_server_none() {
    let world = World::new();
    let point = world.add(TestDomain::web1(&disk(1)));
    let serving = Serving::start(&world, &[]);
    serving.names();
    wait_until("let go", || world.names("repo/leases").is_empty());
    let mut client = serving.connect("web1/vda@latest");
    wait_until("held", || world.names("repo/leases").len() == 1);
    let lease = &world.names("repo/leases")[0];
    let lease = std::fs::read(world.path(&format!("repo/leases/{lease}"))).unwrap();
    let lease: Value = serde_json::from_slice(&lease).unwrap();
    assert_eq!(lease["kind"], "reader");
    let disks = lease["roots"]["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0], point.disks[0].root.to_string());
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
    wait_until("let go", || world.names("repo/leases").is_empty());
}

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
fn points_are_served_while_others_are_made() {
    let world = World::new();
    let history = history(&world);
    let serving = Serving::start(&world, &[]);
    std::thread::scope(|scope| {
        let backups = scope.spawn(|| {
            for seed in 10..14 {
                std::fs::write(world.path("other.raw"), disk(seed)).unwrap();
                let image = world.text("other.raw");
                world.ok(&["backup", "--image", &image, "--name", "other"]);
            }
        });
        while !backups.is_finished() {
            assert!(serving.copy("web1/vda@latest") == history[2]);
        }
    });
    assert_eq!(serving.names().len(), 3 + 1 + 4 + 1);
    assert!(serving.copy("other@latest")[..] == disk(13)[..]);
}

#[test]
fn damage_is_an_error_for_the_client_and_a_line_for_the_operator() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    world.damage_packs();
    let serving = Serving::start(&world, &[]);
    let uri = serving.uri("web1/vda@latest");
    let copied = Ran::of(Command::new("nbdcopy").args([&uri, &world.text("copy.raw")]));
    assert_ne!(copied.code, 0);
    let said = serving.end("-TERM");
    assert_eq!(said.matches("a read failed").count(), 1, "{said}");
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

#[test]
fn other_machines_are_served_over_tls() {
    let world = World::new();
    let history = history(&world);
    let (key, certificate) = (world.text("key.pem"), world.text("cert.pem"));
    std::fs::create_dir(world.path("client")).unwrap();
    let (subject, name) = ("/CN=localhost", "subjectAltName=DNS:localhost");
    let mut openssl = vec!["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"];
    openssl.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    openssl.extend(["-subj", subject, "-addext", name]);
    openssl.extend(["-keyout", &key, "-out", &certificate]);
    tool("openssl", &openssl);
    std::fs::copy(&certificate, world.path("client/ca-cert.pem")).unwrap();

    let listen = ["serve", "--json", "--listen", "0.0.0.0:0"];
    let mut command = world.command(&listen);
    command.args(["--tls-cert", &certificate, "--tls-key", &key]);
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
    let of = |scheme: &str, words: &str| {
        let uri = format!("{scheme}://localhost:{port}/web1/vda@latest{words}");
        Ran::of(Command::new("nbdcopy").args([&uri, &copy]))
    };
    let certificates = format!("?tls-certificates={}", world.text("client"));
    let copied = of("nbds", &certificates);
    assert_eq!(copied.code, 0, "{copied:#?}");
    assert!(std::fs::read(&copy).unwrap() == history[2]);
    assert_ne!(of("nbd", "").code, 0, "plain text is refused");
    child.kill().unwrap();
    child.wait().unwrap();

    let half = world.run(&["serve", "--tls-cert", &certificate]);
    half.refused(2, "--tls-key");
    let missing = ["serve", "--tls-cert", "nowhere.pem", "--tls-key", &key];
    world.run(&missing).refused(1, "nowhere.pem");
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
