//! The lines of the manual that lead to one lost file, or to a whole disk, typed as they stand there:
//! `doc/restore-files.md`, and what README says of `serve`, `mount` and systemd.
//!
//! They are typed by root into a shell that has its own `/mnt`, `/root`, `/run`, `/srv`, `/tmp` and `/var/tmp`. Where
//! that cannot be, or a tool is missing, the stories say so and are skipped.

use std::path::Path;
use std::process::Command;

use virtkeep_repo::FileRole;

use crate::world::{NOON, Ran, TestDomain, World, disk, tool};

const MANUAL: &str = include_str!("../../../doc/restore-files.md");
const README: &str = include_str!("../../../README.md");

/// The times of two points: 2026-11-22T22:11:07 and 2026-11-23T01:08:30.
const LATE: u64 = NOON + 40_267_000;
const LATER: u64 = NOON + 50_910_000;

/// What somebody types, and what the manual says that comes of it; nothing if it does not matter.
struct Typed {
    line: String,
    printed: String,
}

/// The first block of commands below a heading of the manual.
#[track_caller]
fn below(heading: &str) -> Vec<Typed> {
    first_block(MANUAL, &format!("# {heading}\n"))
}

/// The first block of commands after some words of a text.
#[track_caller]
fn first_block(text: &str, words: &str) -> Vec<Typed> {
    let (_, section) = text.split_once(words).unwrap();
    let (_, block) = section.split_once("```console\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let mut typed: Vec<Typed> = Vec::new();
    for line in block.lines() {
        if let Some(line) = line.strip_prefix("# ").or(line.strip_prefix("$ ")) {
            typed.push(line.into());
            continue;
        }
        let last = typed.last_mut().unwrap();
        match line.strip_prefix("><fs> ") {
            // What is typed into a program that asks.
            Some(line) if last.line.contains("<<") => {
                let end = last.line.len() - "END\n".len();
                last.line.insert_str(end, &format!("{line}\n"));
            }
            Some(line) => last.line.push_str(&format!(" <<END\n{line}\nEND\n")),
            None if line.starts_with("> ") => last.line.push_str(&format!("\n{}", &line[2..])),
            None => last.printed.push_str(&format!("{line}\n")),
        }
    }
    typed
}

impl From<&str> for Typed {
    fn from(line: &str) -> Self {
        Self {
            line: line.to_owned(),
            printed: String::new(),
        }
    }
}

/// Whether all that is needed is here; says so if not.
fn can_type(tools: &[&str]) -> bool {
    let missing = |tool: &&&str| !tool_is_here(tool);
    let why = if tool("id", &["-u"]).trim() != "0" {
        "only root does that"
    } else if std::fs::File::open("/dev/fuse").is_err() || !Path::new("/dev/loop-control").exists()
    {
        "no /dev/fuse or no loop devices here"
    } else if let Some(tool) = tools.iter().find(missing) {
        tool
    } else {
        return true;
    };
    eprintln!("skipped: {why}");
    false
}

fn tool_is_here(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
    path.split(':')
        .any(|dir| Path::new(dir).join(tool).exists())
}

/// What to wait for after a line that goes on in the background, as people do.
fn sign_of(line: &str) -> String {
    match line.split(' ').find(|word| word.starts_with("/mnt/")) {
        Some(place) if line.starts_with("nbdfuse") => format!("[ -f {place} -o -f {place}/nbd ]"),
        _ => "grep -q 'Ctrl-C ends it' $said".to_owned(),
    }
}

/// Types all lines; what each printed. Fails if one of them does, or prints something else than it should.
#[track_caller]
fn type_all(world: &World, lines: Vec<Typed>) -> Vec<String> {
    let mut script = format!(
        "set -e\n\
         PATH=/mnt/bin:$PATH:/usr/sbin:/sbin\n\
         export TZ=UTC VIRTKEEP_REPO=/mnt/story/repo LIBGUESTFS_CACHEDIR=/mnt/cache\n\
         export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg\n\
         mkdir -p {world}/root {world}/run {world}/srv {world}/tmp {world}/var-tmp\n\
         mount -t tmpfs none /mnt\n\
         mkdir /mnt/story /mnt/cache /mnt/bin\n\
         touch /mnt/bin/virtkeep\n\
         mount --bind {program} /mnt/bin/virtkeep\n\
         mount --bind {world} /mnt/story\n\
         mount --bind /var/tmp /mnt/cache\n\
         for place in root run srv tmp var-tmp; do mount --bind /mnt/story/$place /${{place/-//}}; done\n\
         cd /root\n",
        program = env!("CARGO_BIN_EXE_virtkeep"),
        world = world.path("").display(),
    );
    for (number, Typed { line, .. }) in lines.iter().enumerate() {
        script += &format!("said=/mnt/said.{number}\n");
        script += &match line.strip_suffix(" &") {
            Some(line) => format!(
                "{line} >$said 2>&1 &\n\
                 until {}; do kill -0 $!; sleep 0.02; done\n",
                sign_of(line)
            ),
            None => format!("{{ {line}\n}} >$said 2>&1 || {{ cat $said; exit 1; }}\n"),
        };
        script += "cat $said; printf '\\0'\n";
    }
    let file = world.text("typed.sh");
    std::fs::write(&file, script).unwrap();
    let mut shell = Command::new("unshare");
    // All that is left in the background ends with the shell.
    shell.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let ran = Ran::of(shell.args(["bash", &file]));
    let said: Vec<String> = ran.stdout.split('\0').map(str::to_owned).collect();
    let done = said.len() - 1;
    assert_eq!(
        ran.code,
        0,
        "{:?}: {ran:#?}",
        lines.get(done).map(|l| &l.line)
    );
    for (Typed { line, printed }, said) in lines.iter().zip(&said) {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(said).contains(&words(printed)), "{line}: {said}");
    }
    said
}

/// Runs a script in a directory of a world, in a mount namespace of its own.
#[track_caller]
fn prepare(world: &World, script: &str) {
    let dir = world.path("");
    let script = format!(
        "set -e; PATH=$PATH:/usr/sbin:/sbin; cd {}; {script}",
        dir.display()
    );
    tool("unshare", &["--mount", "bash", "-c", &script]);
}

/// Two points of a disk with two partitions: an ext4 file system in use, whose newest file is only in its
/// journal, and another one.
fn web1(world: &World) {
    prepare(
        world,
        "mkdir -p tree/etc mounted; echo '# of web1' >tree/etc/fstab
         mkfs.ext4 -q -d tree fs 8M
         truncate -s 12M disk
         printf 'start=1MiB,size=8MiB\\nsize=1MiB\\n' | sfdisk -q --label gpt disk
         mount -o loop fs mounted; echo newest >mounted/newest; sync mounted/newest
         dd if=fs of=disk bs=1M seek=1 conv=notrunc status=none
         umount mounted",
    );
    let disk = std::fs::read(world.path("disk")).unwrap();
    for time in [LATE, LATER] {
        let xml: &[u8] = b"<domain/>";
        world.add(TestDomain {
            time,
            files: vec![(FileRole::DomainXml, "domain.xml", xml)],
            ..TestDomain::web1(&disk)
        });
    }
}

#[test]
fn a_file_is_copied_out_of_ext4_and_what_was_in_the_journal_through_an_overlay() {
    if !can_type(&["sfdisk"]) {
        return;
    }
    let world = World::new();
    web1(&world);
    let mut lines = below("The way");
    lines.extend(below("ext4"));
    lines.insert(lines.len() - 1, "! ls /mnt/web1/newest".into());
    lines.push("cat fstab".into());
    lines.push("rm fstab".into());
    let dump = MANUAL
        .lines()
        .find_map(|line| line.strip_prefix("# debugfs "));
    lines.push(format!("debugfs {}", dump.unwrap()).as_str().into());
    lines.push("cat fstab".into());
    lines.extend(below("With its journal"));
    lines.push("cat /mnt/web1/newest".into());
    // What the text says, too.
    for line in [
        "umount /mnt/web1",
        "fusermount3 -u /mnt/overlay",
        "rm /var/tmp/web1.qcow2",
    ] {
        assert!(MANUAL.contains(&format!("`{line}`")), "{line}");
        lines.push(line.into());
    }
    let said = type_all(&world, lines);
    let files: Vec<&String> = said
        .iter()
        .filter(|said| said.contains("of web1"))
        .collect();
    assert_eq!(files, ["# of web1\n", "# of web1\n"]);
    assert!(said.contains(&"newest\n".to_owned()), "{said:?}");
}

#[test]
fn xfs_is_mounted_beside_another_point_of_the_same_file_system() {
    if !can_type(&["sfdisk", "mkfs.xfs"]) {
        return;
    }
    let world = World::new();
    prepare(
        &world,
        "mkdir mounted; mkfs.xfs -q --unsupported -d size=20m,file,name=fs
         truncate -s 22M disk
         printf 'start=1MiB,size=20MiB\\n' | sfdisk -q --label dos disk
         mount -o loop fs mounted; echo before >mounted/lost; sync -f mounted
         umount mounted
         dd if=fs of=disk bs=1M seek=1 conv=notrunc status=none",
    );
    let disk = std::fs::read(world.path("disk")).unwrap();
    for time in [NOON, NOON + 60_000] {
        world.add(TestDomain {
            time,
            ..TestDomain::web1(&disk)
        });
    }
    let mut lines: Vec<Typed> = below("The way");
    lines.truncate(2);
    lines.extend(below("xfs"));
    let again = lines
        .last()
        .unwrap()
        .line
        .replace("latest", "2026-11-22T11:00:00");
    let again = again.replace("/mnt/web1", "/mnt/web1-before");
    for line in ["mkdir /mnt/web1-before", &again, "cat /mnt/web1*/lost"] {
        lines.push(line.into());
    }
    let said = type_all(&world, lines);
    assert_eq!(said[said.len() - 2], "before\nbefore\n");
}

#[test]
fn guestfish_finds_file_systems_in_partitions_and_in_lvm() {
    if !can_type(&["guestfish", "sfdisk", "pvcreate"]) {
        return;
    }
    let kernels = std::fs::read_dir("/boot").into_iter().flatten();
    let mut names = kernels.map(|kernel| kernel.unwrap().file_name());
    if !names.any(|name| name.to_str().unwrap().starts_with("vmlinuz")) {
        eprintln!("skipped: guestfish finds no kernel in /boot");
        return;
    }
    let world = World::new();
    prepare(
        &world,
        "mkdir -p tree/etc; echo '# of web1' >tree/etc/fstab
         mkfs.ext4 -q -d tree lv 4M
         mkfs.ext4 -q p1 4M
         truncate -s 8M volumes
         device=$(losetup --find --show volumes)
         trap 'losetup -d $device' EXIT
         on() { \"$@\" -q --driverloaded n --devices $device --config 'backup {backup=0 archive=0}'; }
         on pvcreate $device
         on vgcreate -s 1M vg1 $device
         on lvcreate -an -Zn -Wn -l 4 -n root vg1
         start=$(on pvs --noheadings --nosuffix --units b -o pe_start)
         dd if=lv of=volumes oflag=seek_bytes seek=$((start)) conv=notrunc status=none
         truncate -s 20M disk
         printf 'start=1MiB,size=4MiB\\nsize=8MiB\\n' | sfdisk -q --label gpt disk
         dd if=p1 of=disk bs=1M seek=1 conv=notrunc status=none
         dd if=volumes of=disk bs=1M seek=5 conv=notrunc status=none",
    );
    world.add(TestDomain::web1(
        &std::fs::read(world.path("disk")).unwrap(),
    ));
    let mut lines = below("Without root: guestfish");
    lines.push("cat fstab".into());
    let said = type_all(&world, lines);
    assert!(said.contains(&"# of web1\n".to_owned()), "{said:?}");
}

const ID_IN_README: &str = "a68922a9";

/// What the repository is called in the names of sockets.
fn short_id(world: &World) -> String {
    let config = std::fs::read_to_string(world.path("repo/config.toml")).unwrap();
    let (_, id) = config.split_once("repository_id = \"").unwrap();
    id[..8].to_owned()
}

#[test]
fn what_serve_prints_gives_the_list_and_the_disk() {
    if !can_type(&[]) {
        return;
    }
    let world = World::new();
    web1(&world);
    let mut lines = first_block(README, "Or restore nothing at all.");
    lines[0].line += " &";
    let id = short_id(&world);
    lines[0].printed = lines[0].printed.replace(ID_IN_README, &id);
    let printed = lines[0].printed.clone();
    let told = |what: &str| {
        printed
            .lines()
            .find_map(|line| line.trim().strip_prefix(what))
            .unwrap()
    };
    for what in ["list", "raw image", "qcow2"] {
        lines.push(told(what).trim().into());
    }
    lines.push("cmp disk.raw /mnt/story/disk".into());
    lines.push("qemu-img compare disk.raw disk.qcow2".into());
    let said = type_all(&world, lines);
    assert!(
        said[1].contains("vda of web1 at 2026-11-23T01:08:30, 12 MiB"),
        "{said:?}"
    );
}

#[test]
fn three_lines_of_readme_lead_to_one_file() {
    if !can_type(&["sfdisk"]) {
        return;
    }
    let world = World::new();
    web1(&world);
    let mut lines = first_block(README, "To one lost file it is three lines");
    assert_eq!(lines.len(), 3);
    lines.insert(0, "mkdir /mnt/points /mnt/web1".into());
    lines.push("cat fstab".into());
    assert_eq!(type_all(&world, lines)[4], "# of web1\n");
}

#[test]
fn a_replica_follows_a_disk_by_what_has_changed() {
    if !can_type(&[]) {
        return;
    }
    let world = World::new();
    // It has grown since; one place has been written, another one zeroed.
    let old = disk(1);
    let mut new = old.clone();
    new[5 << 20..(5 << 20) + 9].fill(9);
    new[3 << 20..(4 << 20) - 7].fill(0);
    new.resize(14 << 20, 0);
    new[13 << 20] = 1;
    for (time, content) in [(LATE, &old), (LATER, &new)] {
        world.add(TestDomain {
            time,
            ..TestDomain::web1(content)
        });
    }
    std::fs::create_dir_all(world.path("srv/replica")).unwrap();
    std::fs::write(world.path("srv/replica/web1.raw"), &old).unwrap();
    let mut lines = first_block(README, "### A replica");
    for Typed { line, .. } in &mut lines {
        *line = line.replace(ID_IN_README, &short_id(&world));
    }
    lines.insert(0, "virtkeep serve &".into());
    type_all(&world, lines);
    assert!(std::fs::read(world.path("srv/replica/web1.raw")).unwrap() == new);
}

#[test]
fn systemd_understands_the_units() {
    let world = World::bare();
    let mut names = Vec::new();
    for section in README.split("`/etc/systemd/system/").skip(1) {
        let Some((name, unit)) = section.split_once("`:\n\n```ini\n") else {
            continue;
        };
        let (unit, _) = unit.split_once("```").unwrap();
        // It is nowhere else yet.
        let unit = unit.replace("/usr/local/bin/virtkeep", env!("CARGO_BIN_EXE_virtkeep"));
        std::fs::write(world.path(name), unit).unwrap();
        names.push(world.text(name));
    }
    assert_eq!(names.len(), 4, "{names:?}");
    let verified = Ran::of(Command::new("systemd-analyze").arg("verify").args(&names));
    assert_eq!(
        (verified.code, &verified.stderr[..]),
        (0, ""),
        "{verified:#?}"
    );
}
