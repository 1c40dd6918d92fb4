//! Points as files in a mounted directory. Where `/dev/fuse` is missing or forbidden, as in many
//! containers, these stories say so and are skipped.

mod many;
mod tables;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, Command, Stdio};

use virtkeep_repo::FileRole;

use crate::world::{NOON, Ran, TestDomain, World, disk, tool, wait_until};

const MINUTE: u64 = 60_000;

/// `virtkeep mount` on the directory `mnt` of a world, unmounted with the story.
struct Mounted<'a> {
    world: &'a World,
    child: Child,
}

impl<'a> Mounted<'a> {
    /// None where nothing can be mounted, said with the output of the story.
    #[track_caller]
    fn start(world: &'a World) -> Option<Self> {
        Self::run(world, &mut world.command(&["--json", "mount", "mnt"]))
    }

    /// The same in a process that may open so many files at most.
    #[track_caller]
    fn start_within(world: &'a World, files_max: usize) -> Option<Self> {
        Self::run(
            world,
            &mut world.command_within(files_max, &["--json", "mount", "mnt"]),
        )
    }

    #[track_caller]
    fn run(world: &'a World, command: &mut Command) -> Option<Self> {
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse");
        if let Err(error) = device {
            eprintln!("skipped: /dev/fuse cannot be opened here: {error}");
            return None;
        }
        std::fs::create_dir(world.path("mnt")).unwrap();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert!(line.contains(r#""type":"mounted""#), "{line:?}");
        Some(Self { world, child })
    }

    /// The bytes of a file.
    #[track_caller]
    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.world.path("mnt").join(name)).unwrap()
    }

    /// Whether anything is mounted there.
    fn is_there(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        mounts.contains(&format!(" {} ", self.world.text("mnt")))
    }

    /// Waits for the end of the program, which must be a good one; what it said.
    #[track_caller]
    fn ended(mut self) -> String {
        let mut said = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{said}");
        assert!(!self.is_there(), "{said}");
        said
    }

    fn signal(&self, signal: &str) {
        tool("kill", &[signal, &self.child.id().to_string()]);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("fusermount3")
                .args(["-u", "-z", &self.world.text("mnt")])
                .status();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn is_root() -> bool {
    tool("id", &["-u"]).trim() == "0"
}

#[test]
fn every_file_of_a_mount_is_what_a_restore_writes() {
    let world = World::new();
    let (first, second, other) = (disk(1), disk(2), disk(3));
    let xml: &[u8] = b"<domain/>";
    world.add(TestDomain {
        files: vec![(FileRole::DomainXml, "domain.xml", xml)],
        ..TestDomain::web1(&first)
    });
    world.add(TestDomain {
        time: NOON + MINUTE,
        disks: vec![("vda", &second), ("vdb", &other)],
        ..TestDomain::web1(&first)
    });
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    assert_eq!(world.names("mnt"), ["web1"]);
    let points = ["2026-11-22T11:00:00", "2026-11-22T11:01:00", "latest"];
    assert_eq!(world.names("mnt/web1"), points);
    let names = world.names("mnt/web1/2026-11-22T11:00:00");
    assert_eq!(names, ["domain.xml", "vda.raw"]);
    assert_eq!(world.names("mnt/web1/latest"), ["vda.raw", "vdb.raw"]);
    assert!(mounted.read("web1/2026-11-22T11:00:00/vda.raw") == first);
    assert!(mounted.read("web1/2026-11-22T11:00:00/domain.xml") == xml);
    assert!(mounted.read("web1/latest/vda.raw") == second);
    let restored = world.ok(&["restore", "web1/vdb@latest", "--to", "-"]).out;
    assert!(mounted.read("web1/latest/vdb.raw") == restored);
    // Holes are told, so that a copy is as sparse as the disk.
    let copy = world.text("copy.raw");
    tool("cp", &[&world.text("mnt/web1/latest/vda.raw"), &copy]);
    assert!(std::fs::read(&copy).unwrap() == second);
    assert!(std::fs::metadata(&copy).unwrap().blocks() * 512 < 4 << 20);
    // Reads at odd places, and over the end.
    let file = std::fs::File::open(world.path("mnt/web1/latest/vdb.raw")).unwrap();
    let mut part = vec![0; 100_000];
    file.read_exact_at(&mut part, 3_333_333).unwrap();
    assert!(part == other[3_333_333..3_433_333]);
    let end = other.len() as u64 - 10;
    assert_eq!(file.read_at(&mut part, end).unwrap(), 10);
    std::fs::write(world.path("mnt/web1/latest/new"), "").expect_err("it is read-only");
}

#[test]
fn a_lost_file_is_found_in_a_partition() {
    let world = World::new();
    std::fs::create_dir(world.path("tree")).unwrap();
    std::fs::write(world.path("tree/lost.txt"), "found again\n").unwrap();
    let (tree, image) = (world.text("tree"), world.text("fs.ext4"));
    tool("mkfs.ext4", &["-q", "-d", &tree, &image, "8M"]);
    let fs = std::fs::read(image).unwrap();
    // A GPT with two partitions, the second of them the file system.
    let sectors = (fs.len() as u64).div_ceil(512);
    let mut disk = std::io::Cursor::new(vec![0; fs.len() + (4 << 20)]);
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .create_from_device(&mut disk, None)
        .unwrap();
    let linux = gpt::partition_types::LINUX_FS;
    table
        .add_partition("boot", 1 << 20, linux.clone(), 0, None)
        .unwrap();
    table
        .add_partition("root", sectors * 512, linux, 0, None)
        .unwrap();
    let start = table.partitions()[&2].first_lba as usize * 512;
    table.write().unwrap();
    let mut disk = disk.into_inner();
    disk[start..start + fs.len()].copy_from_slice(&fs);
    world.add(TestDomain::web1(&disk));

    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    let names = ["vda.p1.raw", "vda.p2.raw", "vda.raw"];
    assert_eq!(world.names("mnt/web1/latest"), names);
    assert!(mounted.read("web1/latest/vda.p2.raw") == fs);
    let partition = world.text("mnt/web1/latest/vda.p2.raw");
    let lost = tool("debugfs", &["-R", "cat /lost.txt", &partition]);
    assert_eq!(lost, "found again\n");
    if !is_root() || !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: no loop devices here");
    } else {
        std::fs::create_dir(world.path("files")).unwrap();
        let files = world.text("files");
        tool("mount", &["-o", "loop,ro,noload", &partition, &files]);
        let lost = std::fs::read_to_string(world.path("files/lost.txt"));
        // A process that another story is just starting has the file open, too, for a moment.
        let umount = || Ran::of(Command::new("umount").arg(&files)).code == 0;
        wait_until("unmounted", umount);
        assert_eq!(lost.unwrap(), "found again\n");
    }
}

#[test]
fn points_come_and_go_under_a_mount() {
    let world = World::new();
    let (first, second) = (disk(1), disk(2));
    world.add(TestDomain::web1(&first));
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    assert_eq!(world.names("mnt/web1"), ["2026-11-22T11:00:00", "latest"]);
    world.add(TestDomain {
        time: NOON + MINUTE,
        ..TestDomain::web1(&second)
    });
    wait_until("a new point", || world.names("mnt/web1").len() == 3);
    wait_until("the latest", || {
        std::fs::read_link(world.path("mnt/web1/latest"))
            .unwrap()
            .to_str()
            == Some("2026-11-22T11:01:00")
    });
    assert!(mounted.read("web1/latest/vda.raw") == second);
    // What is open outlives forget and prune; what is not, leaves.
    let old = std::fs::File::open(world.path("mnt/web1/2026-11-22T11:00:00/vda.raw")).unwrap();
    world.ok(&["forget", "web1@latest~1"]);
    world.ok(&["prune", "--max-unused", "0"]);
    wait_until("a point less", || {
        world.names("mnt/web1") == ["2026-11-22T11:01:00", "latest"]
    });
    let mut content = vec![0; first.len()];
    old.read_exact_at(&mut content, 0).unwrap();
    assert!(content == first);
    drop(old);
    let again = world.path("mnt/web1/2026-11-22T11:00:00/vda.raw");
    wait_until("gone", || std::fs::File::open(&again).is_err());
    // Nothing is held back by a mount in which nothing is open.
    wait_until("the lease ends", || {
        world.ok(&["prune", "--max-unused", "0"]);
        mounted.world.names("repo/leases").is_empty()
    });
}

#[test]
fn names_that_cannot_be_file_names_or_are_shared_are_told_apart() {
    let world = World::new();
    let content = disk(1);
    for (name, uuid) in [("twin", 0x22), ("twin", 0x33), ("../a/b", 0x44)] {
        world.add(TestDomain {
            name,
            uuid,
            disks: vec![("../vda", &content)],
            ..TestDomain::web1(&content)
        });
    }
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    let twins = [
        "22222222-2222-2222-2222-222222222222",
        "33333333-3333-3333-3333-333333333333",
    ];
    assert_eq!(world.names("mnt"), ["%2E.%2Fa%2Fb", twins[0], twins[1]]);
    assert_eq!(world.names("mnt/%2E.%2Fa%2Fb/latest"), ["%2E.%2Fvda.raw"]);
    for domain in ["%2E.%2Fa%2Fb", twins[0], twins[1]] {
        assert!(mounted.read(&format!("{domain}/latest/%2E.%2Fvda.raw")) == content);
    }
}

#[test]
fn names_and_sizes_need_no_data_and_damage_is_an_error_of_its_file() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    world.damage_packs();
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    assert_eq!(world.names("mnt/web1/latest"), ["vda.raw"]);
    let path = world.path("mnt/web1/latest/vda.raw");
    assert_eq!(path.metadata().unwrap().len(), content.len() as u64);
    std::fs::read(&path).expect_err("damage is never handed out");
    assert_eq!(world.names("mnt/web1"), ["2026-11-22T11:00:00", "latest"]);
    mounted.signal("-TERM");
    let said = mounted.ended();
    assert!(said.contains("web1/vda@p"), "{said}");
    assert!(said.contains("a read failed, of bytes 0 to "), "{said}");
}

#[test]
fn a_mount_ends_with_a_signal_or_umount_and_leaves_nothing_mounted() {
    for end in ["-TERM", "-INT", "umount", "-TERM while open"] {
        let world = World::new();
        let content = disk(1);
        world.add(TestDomain::web1(&content));
        let Some(mounted) = Mounted::start(&world) else {
            return;
        };
        assert!(mounted.is_there());
        match end {
            "umount" => drop(tool("fusermount3", &["-u", &world.text("mnt")])),
            "-TERM while open" => {
                let file = std::fs::File::open(world.path("mnt/web1/latest/vda.raw")).unwrap();
                mounted.signal("-TERM");
                wait_until("unmounted", || !mounted.is_there());
                let mut part = vec![0; 4096];
                file.read_exact_at(&mut part, 4 << 20).unwrap();
                assert!(part == content[4 << 20..(4 << 20) + 4096]);
            }
            signal => mounted.signal(signal),
        }
        mounted.ended();
        assert_eq!(world.names("mnt"), [""; 0]);
    }
}

#[test]
fn a_repository_that_goes_away_for_a_while_is_an_error_as_long() {
    let world = World::new();
    let content = disk(1);
    world.add(TestDomain::web1(&content));
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    std::fs::rename(world.path("repo"), world.path("away")).unwrap();
    let domains = || std::fs::read_dir(world.path("mnt"));
    wait_until("an error", || domains().is_err());
    domains().expect_err("it stays away");
    std::fs::rename(world.path("away"), world.path("repo")).unwrap();
    wait_until("it is back", || domains().is_ok());
    assert!(mounted.read("web1/latest/vda.raw") == content);
    mounted.signal("-TERM");
    let said = mounted.ended();
    assert_eq!(said.matches("cannot list the points").count(), 1, "{said}");
}

#[test]
fn what_a_killed_mount_leaves_is_named_with_the_way_out() {
    let world = World::new();
    world.add(TestDomain::web1(&disk(1)));
    let Some(mut mounted) = Mounted::start(&world) else {
        return;
    };
    mounted.child.kill().unwrap();
    mounted.child.wait().unwrap();
    let ran = world.run(&["mount", "mnt"]);
    ran.refused(2, "run `fusermount3 -u mnt` first");
    tool("fusermount3", &["-u", &world.text("mnt")]);
    assert!(!mounted.is_there());
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_keeps_nobody_waiting() {
    if !is_root() {
        eprintln!("skipped: only root makes mount namespaces");
        return;
    }
    for end in ["-TERM", "umount"] {
        let world = World::new();
        world.add(TestDomain::web1(&disk(1)));
        let Some(mounted) = Mounted::start(&world) else {
            return;
        };
        // As a container or a guest that is started meanwhile. QEMU's goes on for weeks.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sleep", "600"]);
        let mut elsewhere = command.spawn().unwrap();
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
        wait_until("another namespace", || {
            namespace(&elsewhere.id().to_string()).unwrap() != namespace("self").unwrap()
        });
        match end {
            "umount" => drop(tool("umount", &[&world.text("mnt")])),
            signal => mounted.signal(signal),
        }
        mounted.ended();
        assert!(elsewhere.try_wait().unwrap().is_none(), "it ended first");
        elsewhere.kill().unwrap();
        elsewhere.wait().unwrap();
    }
}

#[test]
fn a_place_where_nothing_can_be_mounted_is_refused_with_the_reason() {
    let world = World::new();
    std::fs::create_dir(world.path("full")).unwrap();
    std::fs::write(world.path("full/file"), "").unwrap();
    for (place, reason) in [
        ("missing", "there is no directory missing"),
        ("full", "full is not empty"),
        ("full/file", "is no directory"),
    ] {
        world.run(&["mount", place]).refused(2, reason);
    }
    world
        .run(&["mount", "repo/leases"])
        .refused(2, "in the repository");
    if let Some(_mounted) = Mounted::start(&world) {
        // It has no points, and looks empty.
        world
            .run(&["mount", "mnt"])
            .refused(2, "something is mounted on mnt already");
    }
    let bare = World::bare();
    std::fs::create_dir(bare.path("mnt")).unwrap();
    assert_eq!(bare.run(&["mount", "mnt"]).code, 10);
}
