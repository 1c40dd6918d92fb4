//! Partitions as partitioners write them, beside what util-linux finds in the same disk.

use std::io::Write;
use std::process::{Command, Stdio};

use super::Mounted;
use crate::world::{TestDomain, World, tool};

/// Runs a partitioner, which is told what to do on its standard input.
#[track_caller]
fn partition(program: &str, words: &[&str], input: &str) {
    let mut partitioner = Command::new(format!("/usr/sbin/{program}"));
    let piped = partitioner.args(words).stdin(Stdio::piped());
    let mut child = piped.stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "{program} {words:?}");
}

/// Each partition's number and bytes, as `partx` finds them in an image. An extended partition holds no
/// file system, only others.
fn found_by_partx(image: &str, sector: &str, extended: &[&str]) -> Vec<(String, Vec<u8>)> {
    let disk = std::fs::read(image).unwrap();
    let columns = ["--raw", "--noheadings", "--output=NR,START,SECTORS"];
    let table = tool(
        "partx",
        &[&columns[..], &["--sector-size", sector, image]].concat(),
    );
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        // In sectors of 512 bytes, whatever those of the disk.
        let [start, len] =
            [1, 2].map(|column: usize| words[column].parse::<usize>().unwrap() * 512);
        (words[0].to_owned(), disk[start..start + len].to_vec())
    };
    let partitions = table.lines().map(of_line);
    partitions
        .filter(|(number, _)| !extended.contains(&number.as_str()))
        .collect()
}

#[test]
fn partitions_are_where_others_find_them_whoever_made_them() {
    let world = World::new();
    let image = |name: &str| {
        // Each sector is like no other, and not zero.
        let sectors = (1..=32_768_u32).flat_map(|number| number.to_le_bytes().repeat(128));
        std::fs::write(world.path(name), sectors.collect::<Vec<u8>>()).unwrap();
        world.text(name)
    };
    let [gpt, mbr, large] = ["gpt", "mbr", "gpt-4k"].map(image);
    let sfdisk = ["--quiet", "--wipe=never", "--label"];
    let three = "start=1MiB,size=2MiB\nstart=4MiB,size=3MiB,type=swap\nsize=1MiB\n";
    partition("sfdisk", &[&sfdisk[..], &["gpt", &gpt]].concat(), three);
    // The second is extended: it holds the fifth and the sixth.
    let six =
        "size=2MiB,bootable\nsize=8MiB,type=E\nsize=1MiB,type=7\nsize=2MiB\nsize=3MiB\nsize=1MiB\n";
    partition("sfdisk", &[&sfdisk[..], &["dos", &mbr]].concat(), six);
    let two = "g\nn\n1\n\n+2M\nn\n5\n\n+1M\nw\n";
    partition("fdisk", &["--wipe=never", "-b", "4096", &large], two);

    let disks: [(&str, &str, &str, &[&str], usize); 3] = [
        ("vda", &gpt, "512", &[], 3),
        ("vdb", &mbr, "512", &["2"], 5),
        ("vdc", &large, "4096", &[], 2),
    ];
    let contents = disks.map(|(target, image, ..)| (target, std::fs::read(image).unwrap()));
    let slices = contents
        .iter()
        .map(|(target, content)| (*target, &content[..]));
    world.add(TestDomain {
        disks: slices.collect(),
        ..TestDomain::web1(&[])
    });
    let Some(mounted) = Mounted::start(&world) else {
        return;
    };
    let names = world.names("mnt/web1/latest");
    for (target, image, sector, extended, count) in disks {
        let expected = found_by_partx(image, sector, extended);
        assert_eq!(expected.len(), count, "{target}");
        let begin = format!("{target}.p");
        let shown: Vec<&String> = names
            .iter()
            .filter(|name| name.starts_with(&begin))
            .collect();
        let numbers = expected
            .iter()
            .map(|(number, _)| format!("{begin}{number}.raw"));
        assert_eq!(
            shown,
            numbers.collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
        for (number, bytes) in &expected {
            let name = format!("web1/latest/{begin}{number}.raw");
            assert!(mounted.read(&name) == *bytes, "{name}");
        }
    }
}
