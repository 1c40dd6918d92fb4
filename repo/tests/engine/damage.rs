//! The damage matrix: every way to spoil a file × everything in it that can be spoiled.
//!
//! A repository holds two points of one disk; the second changes a few chunks. Each cell spoils one
//! place in one way and states, for the older and the newer point: what can be restored, what `check`
//! says, what can be restored after `repair`, and after the next backup, which is incremental and told
//! that nothing has changed; last, what `check` says once `repair --yes` has cleared up. `w` is the whole disk, byte for byte; `p` is the disk but for the ranges that
//! `restore --salvage` lists, with all other bytes as they were; `-` is a point that is not there any more.
//!
//! Root reads what it may not read, so "unreadable" is a directory in the place of the file: it can be
//! looked at, and every read of it fails.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use virtkeep_repo::{
    ByteLen, Cancel, CheckOptions, Codec, DiskOffset, Env, Error, InitOptions, NoProgress,
    OpenOptions, PinKind, Point, PointId, ReadData, RepairOptions, Repository,
};

use crate::check::Witness;
use crate::disk::{MemoryDisk, MemorySink, backup};

const CHUNK: usize = 4096;
const CHUNKS: usize = 300;

/// One way to spoil a place in a file.
#[derive(Clone, Copy, Debug)]
enum Way {
    Truncated,
    BitFlipped,
    Zeroed,
    Swapped,
    Deleted,
    Unreadable,
}

const WAYS: [Way; 6] = [
    Way::Truncated,
    Way::BitFlipped,
    Way::Zeroed,
    Way::Swapped,
    Way::Deleted,
    Way::Unreadable,
];

/// What is spoiled: a range of a file, and the file it is swapped with.
struct Place {
    file: PathBuf,
    range: Range<u64>,
    other: PathBuf,
}

/// A row of the matrix: the place, and one cell per way.
type Row = (&'static str, [&'static str; 6]);

/// Before; what check says (`c`lean or `D`amage, `!` where the repository does not open); after repair;
/// after the next backup; what check says in the end.
#[rustfmt::skip]
const MATRIX: [Row; 12] = [
    // truncated, bit flipped, zeroed, swapped, deleted, unreadable
    ("1 pack header", ["pp D pp pw D", "ww D ww ww c", "ww D ww ww c", "pp D ww ww c", "pp D pp pw D", "pp D pp pw D"]),
    ("2 record of both points", ["pp D pp ww c", "pp D pp ww c", "pp D pp ww c", "pp D ww ww c", "pp D pp pw D", "pp D pp pw D"]),
    ("3 record of the older point", ["pp D pp pw D", "pw D pw pw D", "pw D pw pw D", "pp D ww ww c", "pp D pp pw D", "pp D pp pw D"]),
    ("4 pack table", ["ww D ww ww c", "ww D ww ww c", "ww D ww ww c", "pp D ww ww c", "pp D pp pw D", "pp D pp pw D"]),
    ("5 pack checksum", ["ww D ww ww c", "ww D ww ww c", "ww D ww ww c", "pp D ww ww c", "pp D pp pw D", "pp D pp pw D"]),
    ("6 manifest leaf", ["wp D wp ww c", "wp D wp ww c", "wp D wp ww c", "pp D ww ww c", "wp D wp ww c", "wp D wp ww c"]),
    ("7 disk root", ["wp D wp ww c", "wp D wp ww c", "wp D wp ww c", "pp D ww ww c", "wp D wp ww c", "wp D wp ww c"]),
    ("8 point record", ["ww D ww ww c", "ww D ww ww c", "ww D ww ww c", "ww D ww ww c", "w- D ww ww c", "ww D ww ww D"]),
    ("9 index", ["!! ! ww ww c", "!! ! ww ww c", "!! ! ww ww c", "!! ! ww ww c", "!! ! ww ww c", "!! ! ww ww c"]),
    ("A config", ["!! ! ww ww c", "-- D ww ww c", "!! ! ww ww c", "!! ! ww ww c", "!! ! ww ww c", "!! ! ww ww c"]),
    ("B lease", ["ww c ww ww c", "ww c ww ww c", "ww c ww ww c", "ww D ww ww c", "ww c ww ww c", "ww c ww ww c"]),
    ("C pin", ["ww D ww ww D", "ww D ww ww D", "ww D ww ww D", "ww D ww ww D", "ww c ww ww c", "ww D ww ww D"]),
];

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    places: BTreeMap<&'static str, Place>,
    older: (PointId, Vec<u8>),
    newer: (PointId, Vec<u8>),
    disk: MemoryDisk,
}

fn options() -> InitOptions {
    InitOptions {
        chunk_size: ByteLen(CHUNK as u64),
        codec: Codec::None,
        ..InitOptions::default()
    }
}

fn open(path: &Path) -> virtkeep_repo::Result<Repository> {
    Repository::open(path, &OpenOptions::default(), Env::system())
}

/// The packs of this kind (1: data, 2: meta).
fn packs(path: &Path, kind: u8) -> Vec<PathBuf> {
    fs::read_dir(path.join("packs"))
        .unwrap()
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|file| fs::read(file).unwrap()[10] == kind)
        .collect()
}

/// Where the table of a pack begins, and its records: offset, length, kind.
fn table(pack: &Path) -> (u64, Vec<(u64, u64, u8)>) {
    let bytes = fs::read(pack).unwrap();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into();
    let trailer = bytes.len() - 80;
    let start: u64 = number(trailer);
    let records = (start as usize + 4..trailer)
        .step_by(44)
        .map(|at| (number(at + 32), number(at + 36), bytes[at + 40]))
        .collect();
    (start, records)
}

/// The digits of the key that all ids are made with.
fn id_key(config: &Path) -> Range<u64> {
    let text = fs::read_to_string(config).unwrap();
    let start = text.find("id_key = ").unwrap() as u64 + 10;
    start..start + 64
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo");
        let repo = Repository::init(&path, &options(), Env::system()).unwrap();
        let mut disk = MemoryDisk::new(CHUNKS * CHUNK);
        for (n, at) in (0..CHUNKS * CHUNK).step_by(CHUNK).enumerate() {
            disk.write(at, &[(n as u64 + 1).to_le_bytes(); 512].concat());
        }
        let older = backup(&repo, &disk.whole(), None);
        let older_bytes = disk.bytes.clone();
        let old_packs = [packs(&path, 1), packs(&path, 2)].concat();
        // The older point alone needs the first two records of the pack. (Several threads fill it, so
        // their places on the disk are left to chance.)
        let data = packs(&path, 1).remove(0);
        let (_, records) = table(&data);
        for record in &records[..2] {
            let content = &fs::read(&data).unwrap()[record.0 as usize + 60..][..CHUNK];
            let at = older_bytes
                .windows(CHUNK)
                .position(|w| w == content)
                .unwrap();
            disk.write(at, &[(at as u64 + 5000).to_le_bytes(); 512].concat());
        }
        let newer = backup(&repo, &disk.changes(), Some(&older));

        let is_new = |pack: &PathBuf| !old_packs.contains(pack);
        let of_kind = |kind, new| {
            let all = packs(&path, kind).into_iter();
            all.filter(|pack| is_new(pack) == new).collect::<Vec<_>>()
        };
        let (data, new_data) = (of_kind(1, false), of_kind(1, true));
        let (meta, new_meta) = (of_kind(2, false), of_kind(2, true));
        let len = |file: &Path| fs::metadata(file).unwrap().len();
        let in_pack = |range| Place {
            file: data[0].clone(),
            range,
            other: new_data[0].clone(),
        };
        let (table_start, _) = table(&data[0]);
        let end = len(&data[0]);
        let nth = |n: usize| records[n].0..records[n].0 + records[n].1;
        let in_new_meta = |(offset, len, _): (u64, u64, u8)| Place {
            file: new_meta[0].clone(),
            range: offset..offset + len,
            other: meta[0].clone(),
        };
        let (_, nodes) = table(&new_meta[0]);
        let whole = |file: PathBuf, other: PathBuf| Place {
            range: 0..len(&file),
            file,
            other,
        };
        let points = path.join("points");
        let record = |id: PointId| points.join(id.to_string());

        // Of another repository.
        let foreign = dir.path().join("foreign");
        Repository::init(&foreign, &options(), Env::system()).unwrap();
        // A lease as a killed command leaves it, and a pin.
        let reader = repo.read_disk(&newer, &newer.disks[0]).unwrap();
        let lease = fs::read_dir(path.join("leases")).unwrap().next().unwrap();
        let dead = path.join("leases").join("0123456789abcdef".repeat(2));
        fs::copy(lease.unwrap().path(), &dead).unwrap();
        drop(reader);
        let pin = repo.pin(&[newer.id], PinKind::User, "test").unwrap();
        let pin = path.join("pins").join(pin);

        let places = BTreeMap::from([
            ("1 pack header", in_pack(0..64)),
            ("2 record of both points", in_pack(nth(CHUNKS - 1))),
            ("3 record of the older point", in_pack(nth(0))),
            ("4 pack table", in_pack(table_start..end - 80)),
            ("5 pack checksum", in_pack(end - 40..end - 8)),
            ("6 manifest leaf", in_new_meta(nodes[0])),
            ("7 disk root", in_new_meta(nodes[nodes.len() - 1])),
            ("8 point record", whole(record(newer.id), record(older.id))),
            (
                "9 index",
                Place {
                    range: 0..8,
                    ..whole(path.join("index.redb"), foreign.join("index.redb"))
                },
            ),
            (
                "A config",
                Place {
                    range: id_key(&path.join("config.toml")),
                    ..whole(path.join("config.toml"), foreign.join("config.toml"))
                },
            ),
            ("B lease", whole(dead, points.join(older.id.to_string()))),
            ("C pin", whole(pin, record(older.id))),
        ]);
        let pair = |point: &Point, bytes: &[u8]| (point.id, bytes.to_vec());
        Self {
            older: pair(&older, &older_bytes),
            newer: pair(&newer, &disk.bytes),
            _dir: dir,
            path,
            places,
            disk,
        }
    }
}

impl Way {
    fn spoil(self, file: &Path, range: &Range<u64>, other: &Path) {
        let write = || fs::OpenOptions::new().write(true).open(file).unwrap();
        let middle = range.start + (range.end - range.start) / 2;
        match self {
            Self::Truncated => write().set_len(middle).unwrap(),
            Self::BitFlipped => {
                let bytes = fs::read(file).unwrap();
                // A digit of the key stays a digit: that makes another key, not an unreadable one.
                let stays = |at: &u64| {
                    let byte = bytes[*at as usize];
                    !byte.is_ascii_hexdigit() || (byte ^ 1).is_ascii_hexdigit()
                };
                let at = (middle..range.end).find(stays).unwrap();
                write().write_all_at(&[bytes[at as usize] ^ 1], at).unwrap();
            }
            Self::Zeroed => {
                let zeroes = vec![0; (range.end - range.start) as usize];
                write().write_all_at(&zeroes, range.start).unwrap();
            }
            Self::Swapped => {
                let (one, two) = (fs::read(file).unwrap(), fs::read(other).unwrap());
                fs::write(file, two).unwrap();
                fs::write(other, one).unwrap();
            }
            Self::Deleted => fs::remove_file(file).unwrap(),
            Self::Unreadable => {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            }
        }
    }
}

/// `c` when `check --read-data` finds nothing, else `D`.
fn checked(repo: &Repository) -> char {
    let read_data = ReadData::ALL;
    let report = repo.check(
        CheckOptions { read_data },
        &Witness::default(),
        &Cancel::new(),
    );
    if report.unwrap().is_clean() { 'c' } else { 'D' }
}

/// What can be had of a point.
fn state(repo: &Repository, (id, bytes): &(PointId, Vec<u8>)) -> char {
    let points = repo.points().unwrap();
    let Some(point) = points.iter().find(|point| point.id == *id) else {
        return '-';
    };
    let end = DiskOffset(bytes.len() as u64);
    let reader = repo.salvage_disk(point, &point.disks[0]).unwrap();
    let sink = MemorySink::filled(reader.size());
    reader
        .copy_to(DiskOffset(0), end, &sink, &NoProgress, &Cancel::new())
        .unwrap();
    let (saved, mut expected) = (sink.into_bytes(), bytes.clone());
    let lost: Vec<Range<u64>> = reader.losses().into_iter().map(|loss| loss.range).collect();
    for range in &lost {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    assert!(saved == expected, "all but {lost:?} is as it was");

    let restored = repo.read_disk(point, &point.disks[0]).and_then(|reader| {
        let sink = MemorySink::filled(reader.size());
        reader.copy_to(DiskOffset(0), end, &sink, &NoProgress, &Cancel::new())?;
        Ok(sink.into_bytes())
    });
    match restored {
        Ok(restored) => {
            assert!(lost.is_empty() && restored == *bytes);
            'w'
        }
        Err(Error::DiskDamage { start, end, .. }) => {
            let named = |range: &Range<u64>| range.start <= start && end <= range.end;
            assert!(lost.iter().any(named), "{start}..{end} of {lost:?}");
            'p'
        }
        Err(error) => panic!("{error}"),
    }
}

impl Fixture {
    fn states(&self, repo: &Repository) -> String {
        [state(repo, &self.older), state(repo, &self.newer)]
            .into_iter()
            .collect()
    }

    /// What becomes of one cell.
    fn cell(&self, place: &Place, way: Way) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo");
        let copied = Command::new("cp")
            .arg("-a")
            .args([&self.path, &path])
            .status();
        assert!(copied.unwrap().success());
        let here = |file: &Path| match file.strip_prefix(&self.path) {
            Ok(inside) => path.join(inside),
            Err(_) => {
                let copy = dir.path().join("other");
                fs::copy(file, &copy).unwrap();
                copy
            }
        };
        way.spoil(&here(&place.file), &place.range, &here(&place.other));

        let (before, found) = match open(&path) {
            Ok(repo) => {
                let found = checked(&repo);
                (self.states(&repo), found)
            }
            Err(Error::Index { .. } | Error::Settings { .. } | Error::Io { .. }) => {
                ("!!".to_owned(), '!')
            }
            Err(error) => panic!("{error}"),
        };
        let repo = self.repaired(&path);
        let repaired = self.states(&repo);

        let parent = repo.point(self.newer.0).ok();
        let mut disk = self.disk.clone();
        let source = match &parent {
            Some(_) => disk.changes(),
            None => disk.whole(),
        };
        let new = backup(&repo, &source, parent.as_ref());
        let new = (new.id, self.newer.1.clone());
        // Opened anew, so that nothing is remembered.
        let repo = open(&path).unwrap();
        assert_eq!(state(&repo, &new), 'w', "no new point inherits damage");
        let healed = self.states(&repo);

        // Whatever damaged pack is left can go, and nothing with it.
        let remove = RepairOptions {
            remove: true,
            ..RepairOptions::default()
        };
        let report = repo
            .repair(remove, &Witness::default(), &Cancel::new())
            .unwrap();
        let repo = open(&path).unwrap();
        assert_eq!(self.states(&repo).replace('-', ""), healed.replace('-', ""));
        assert_eq!(state(&repo, &new), 'w');
        let end = checked(&repo);
        assert_eq!(report.is_whole(), end == 'c', "{report:?}");
        format!("{before} {found} {repaired} {healed} {end}")
    }

    /// After `repair`; and where that is refused, after somebody has put a copy of the settings back, and
    /// taken a directory away that has the name of the index.
    fn repaired(&self, path: &Path) -> Repository {
        let mend = || {
            let options = OpenOptions::default();
            let (witness, cancel) = (Witness::default(), Cancel::new());
            if let Err(error) = open(path) {
                if !matches!(error, Error::Index { .. }) {
                    return Err(error);
                }
                let env = Env::system();
                Repository::rebuild_index(path, &options, env, &witness, &cancel)?;
            }
            let repo = open(path)?;
            repo.repair(RepairOptions::default(), &witness, &cancel)?;
            Ok(repo)
        };
        match mend() {
            Ok(repo) => repo,
            Err(Error::Settings { .. } | Error::NothingVerifies { .. } | Error::Io { .. }) => {
                let config = path.join("config.toml");
                if fs::remove_file(&config).is_err() {
                    fs::remove_dir(&config).ok();
                }
                fs::copy(self.path.join("config.toml"), &config).unwrap();
                fs::remove_dir(path.join("index.redb")).ok();
                mend().unwrap()
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_is_spoiled_costs_what_the_matrix_says_and_no_more() {
    let fixture = Fixture::new();
    let mut wrong = Vec::new();
    let expected: BTreeMap<&str, [&str; 6]> = MATRIX.into_iter().collect();
    println!(
        "{:28} {}",
        "",
        WAYS.map(|way| format!("{:14}", format!("{way:?}")))
            .join(" ")
    );
    for (name, place) in &fixture.places {
        let cells = WAYS.map(|way| {
            let cell = AssertUnwindSafe(|| fixture.cell(place, way));
            catch_unwind(cell).unwrap_or_else(|_| format!("{name} {way:?} failed"))
        });
        println!(
            "{name:28} {}",
            cells.each_ref().map(|c| format!("{c:12}")).join(" ")
        );
        if expected
            .get(name)
            .is_none_or(|expected| *expected != cells.each_ref().map(String::as_str))
        {
            wrong.push(format!("{name}: {cells:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
