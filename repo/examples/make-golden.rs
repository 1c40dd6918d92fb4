//! Makes a golden repository: `cargo run -p virtkeep-repo --example make-golden -- DIR`
//!
//! Run once for each version of the format, by the program that is the first to write it; what it made is
//! never changed again, and neither is this, except to make one of a new version. It holds a bit of
//! everything that the format knows: see `tests/golden/README.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtkeep_repo::{
    Backup, ByteLen, Cancel, CaptureMode, Clock, Codec, Consistency, Disk, DiskOffset, DiskSource,
    Domain, DomainUuid, Env, Extent, ExtentState, FileRole, InitOptions, Next, NoProgress,
    OpenOptions, PinKind, Point, PointDraft, Random, ReadQueue, Repository, SourceError,
    SourceKind, UnixMillis,
};

const CHUNK: usize = 4096;
/// 2026-11-22T22:00:00Z; each look at the clock takes a minute.
const BEGIN: u64 = 1_795_384_800_000;

type Made<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Made<()> {
    let dir = PathBuf::from(std::env::args().nth(1).expect("a directory to make it in"));
    let repository = dir.join("repository");
    fs::create_dir_all(&dir)?;
    let mut content = String::new();
    make(&repository, &mut content)?;
    fs::write(dir.join("CONTENT"), content)?;

    let index = fs::read(repository.join("index.redb"))?;
    fs::write(
        dir.join("index.redb.zst"),
        zstd::bulk::compress(&index, 19)?,
    )?;
    fs::remove_file(repository.join("index.redb"))?;
    for folder in ["locks", "leases"] {
        fs::remove_dir_all(repository.join(folder))?;
    }
    let mut files = String::new();
    list(&dir, Path::new(""), &mut files)?;
    fs::write(dir.join("FILES"), files)?;
    Ok(())
}

fn make(path: &Path, content: &mut String) -> Made<()> {
    let env = Env {
        clock: Arc::new(Minutes(AtomicU64::new(BEGIN))),
        random: Arc::new(Counted(AtomicU64::new(0))),
    };
    let options = InitOptions {
        chunk_size: ByteLen(CHUNK as u64),
        fan_out: 64,
        codec: Codec::Lz4,
        unsafe_network_fs: false,
    };
    let repo = Repository::init(path, &options, env.clone())?;

    // Three levels of nodes, and a last chunk cut short.
    let mut vda = vec![0; 64 * 64 * CHUNK + 5 * CHUNK + 1536];
    let end = vda.len();
    vda[..9000].copy_from_slice(&text(9000));
    vda[100 * CHUNK + 512..130 * CHUNK].copy_from_slice(&noise(1, 30 * CHUNK - 512));
    vda[60 * 64 * CHUNK - 300..][..600].copy_from_slice(&noise(2, 600));
    vda[200 * CHUNK..260 * CHUNK].copy_from_slice(&text(60 * CHUNK));
    vda[end - 2000..].copy_from_slice(&noise(3, 2000));
    let mut vdb = vec![0; 1 << 20];
    vdb[..300_000].copy_from_slice(&text(300_000));
    vdb[700_000..750_000].copy_from_slice(&noise(4, 50_000));

    let full = [disk("vda", &vda, None), disk("vdb", &vdb, None)];
    let first = Work {
        tags: &["monthly", "before the move"],
        ..web(&full)
    };
    let first = store(&repo, &first, None, content)?;
    repo.pin(&[first.id], PinKind::User, "the golden one")?;

    // Written, zeroed, and the end gone; the rest unchanged. By Zstandard from here on.
    let repo = with_codec(path, "zstd:19", &env)?;
    let (vda_before, vdb_before) = (vda.clone(), vdb.clone());
    vda[110 * CHUNK..112 * CHUNK].fill(0);
    vda[210 * CHUNK + 100..230 * CHUNK].copy_from_slice(&text(20 * CHUNK - 100));
    vda[64 * CHUNK * 30..][..CHUNK].copy_from_slice(&text(CHUNK));
    vda[end - 1000..].fill(0);
    vdb[..100_000].fill(0);
    let changed = [
        disk("vda", &vda, Some(&vda_before)),
        disk("vdb", &vdb, Some(&vdb_before)),
    ];
    let second = Work {
        hours: 24,
        ..web(&changed)
    };
    let second = store(&repo, &second, Some(&first), content)?;

    // Two backups at once that do not know of each other: the same chunks twice.
    let repo = with_codec(path, "none", &env)?;
    vdb.resize(1_234_432, 0);
    vdb[1_100_000..1_110_000].copy_from_slice(&text(10_000));
    let other_first = repo.begin_backup(&[], "make-golden")?;
    let other_disk = disk("hda", &vdb, None);
    let hda = put(&repo, &other_first, &other_disk, None, content)?;
    let grown = [disk("vda", &vda, None), disk("vdb", &vdb, None)];
    let third = Work {
        hours: 48,
        ..web(&grown)
    };
    let third = store(&repo, &third, Some(&second), content)?;
    let other = Work {
        domain: ("db/üñí@1", [0x22; 16]),
        disks: &[],
        tags: &[],
        files: false,
        hours: 49,
    };
    let other = commit(other_first, &other, vec![hda], Vec::new())?;
    name_last(content, &other, 1);

    // Nothing but zeroes; and a disk of one sector.
    let repo = with_codec(path, "lz4", &env)?;
    let empty = [disk("vda", &[], None), disk("vdb", &[0x5a; 512], None)];
    let empty = Work {
        domain: ("empty", [0x33; 16]),
        hours: 50,
        ..web(&empty)
    };
    store(&repo, &empty, None, content)?;

    repo.forget(&[second.id])?;
    assert_eq!(repo.forgotten()?.points.len(), 1);
    assert_eq!(third.disks.len(), 2);
    // As a killed program leaves them. To be ignored.
    fs::write(path.join("points/p0000000000000000.tmp"), b"VKPOINT\n")?;
    fs::create_dir_all(path.join("packs/00"))?;
    fs::write(
        path.join(format!("packs/00/{}.pack.tmp", "0".repeat(32))),
        b"VKPACK",
    )?;
    Ok(())
}

/// What one backup stores.
struct Work<'a> {
    domain: (&'a str, [u8; 16]),
    disks: &'a [Picture<'a>],
    tags: &'a [&'a str],
    files: bool,
    hours: u64,
}

/// A backup of the first domain.
fn web<'a>(disks: &'a [Picture<'a>]) -> Work<'a> {
    Work {
        domain: ("web", [0x11; 16]),
        disks,
        tags: &[],
        files: true,
        hours: 0,
    }
}

fn store(
    repo: &Repository,
    work: &Work<'_>,
    parent: Option<&Point>,
    content: &mut String,
) -> Made<Point> {
    let parents: Vec<_> = parent.iter().map(|point| point.id).collect();
    let backup = repo.begin_backup(&parents, "make-golden")?;
    let mut lines = String::new();
    let mut disks = Vec::new();
    for picture in work.disks {
        disks.push(put(repo, &backup, picture, parent, &mut lines)?);
    }
    let mut files = Vec::new();
    if work.files {
        let xml = format!("<domain><name>{}</name></domain>\n", work.domain.0);
        // More than one piece.
        let nvram = b"firmware ".repeat(140_000);
        for (role, name, bytes) in [
            (FileRole::DomainXml, "domain.xml", xml.as_bytes()),
            (
                FileRole::Nvram,
                "/var/lib/libvirt/qemu/nvram/web_VARS.fd",
                &nvram,
            ),
            (FileRole::Log, "log", b""),
        ] {
            files.push(backup.store_file(role, name, &mut &bytes[..])?);
            describe(
                &mut lines,
                "file",
                name,
                bytes.len() as u64,
                blake3::hash(bytes),
            );
        }
    }
    let point = commit(backup, work, disks, files)?;
    for line in lines.lines() {
        writeln!(content, "{} {line}", point.id)?;
    }
    Ok(point)
}

fn put(
    repo: &Repository,
    backup: &Backup,
    picture: &Picture<'_>,
    parent: Option<&Point>,
    lines: &mut String,
) -> Made<Disk> {
    let before = parent.and_then(|point| point.disks.iter().find(|d| d.target == picture.target));
    let stored = backup.store_disk(picture, before, &NoProgress, &Cancel::new())?;
    let incremental = picture.before.is_some();
    describe(
        lines,
        "disk",
        picture.target,
        picture.size().0,
        picture.hash(),
    );
    Ok(Disk {
        target: picture.target.into(),
        size: picture.size(),
        root: stored.root,
        mode: if incremental {
            CaptureMode::Incremental
        } else {
            CaptureMode::Full
        },
        reason: "golden".into(),
        checkpoint: Some(format!("virtkeep-{}", repo.id())),
        parent: parent.filter(|_| incremental).map(|point| point.id),
        format: "qcow2".into(),
        location: format!("/var/lib/libvirt/images/{}.qcow2", picture.target),
        backing: vec!["/var/lib/libvirt/images/base.qcow2".into()],
        stats: stored.stats,
    })
}

fn commit(
    backup: Backup,
    work: &Work<'_>,
    disks: Vec<Disk>,
    files: Vec<virtkeep_repo::StoredFile>,
) -> Made<Point> {
    let (name, uuid) = work.domain;
    Ok(backup.commit(PointDraft {
        domain: Domain {
            uuid: DomainUuid::from_bytes(uuid),
            name: name.into(),
        },
        source: SourceKind::Live,
        host: "hv1".into(),
        time: UnixMillis(BEGIN + work.hours * 3_600_000),
        consistency: Consistency::Frozen,
        checkpoint: None,
        disks,
        files,
        tags: work.tags.iter().map(|tag| (*tag).to_owned()).collect(),
    })?)
}

fn with_codec(path: &Path, codec: &str, env: &Env) -> Made<Repository> {
    let config = path.join("config.toml");
    let lines = fs::read_to_string(&config)?;
    let lines = lines
        .lines()
        .map(|line| match line.starts_with("codec = ") {
            true => format!("codec = \"{codec}\"\n"),
            false => format!("{line}\n"),
        });
    fs::write(&config, lines.collect::<String>())?;
    Ok(Repository::open(
        path,
        &OpenOptions::default(),
        env.clone(),
    )?)
}

fn describe(lines: &mut String, what: &str, name: &str, size: u64, hash: blake3::Hash) {
    writeln!(lines, "{what} {name} {size} {hash}").expect("a string takes all");
}

/// Puts the name of a point before the last lines, which have none yet.
fn name_last(content: &mut String, point: &Point, lines: usize) {
    let mut all: Vec<String> = content.lines().map(str::to_owned).collect();
    let nameless: Vec<_> = all
        .iter_mut()
        .filter(|line| !line.starts_with('p'))
        .collect();
    assert_eq!(nameless.len(), lines);
    for line in nameless {
        *line = format!("{} {line}", point.id);
    }
    *content = all.join("\n") + "\n";
}

fn list(dir: &Path, below: &Path, files: &mut String) -> Made<()> {
    let mut names: Vec<_> = fs::read_dir(dir.join(below))?.collect::<Result<_, _>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(dir, &path, files)?;
        } else {
            let hash = blake3::hash(&fs::read(entry.path())?);
            writeln!(files, "{hash}  {}", path.display())?;
        }
    }
    Ok(())
}

/// A disk as it is now, and as it was.
struct Picture<'a> {
    target: &'a str,
    /// All zeroes when empty.
    bytes: &'a [u8],
    before: Option<&'a [u8]>,
}

fn disk<'a>(target: &'a str, bytes: &'a [u8], before: Option<&'a [u8]>) -> Picture<'a> {
    Picture {
        target,
        bytes,
        before,
    }
}

const EMPTY_BYTES: u64 = 64 << 20;

impl Picture<'_> {
    fn hash(&self) -> blake3::Hash {
        if self.bytes.is_empty() {
            let mut hasher = blake3::Hasher::new();
            for _ in 0..EMPTY_BYTES >> 20 {
                hasher.update(&[0; 1 << 20]);
            }
            return hasher.finalize();
        }
        blake3::hash(self.bytes)
    }
}

impl DiskSource for Picture<'_> {
    fn size(&self) -> ByteLen {
        ByteLen(match self.bytes.len() {
            0 => EMPTY_BYTES,
            len => len as u64,
        })
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        if self.bytes.is_empty() {
            let len = ByteLen(EMPTY_BYTES - from.0);
            return Ok(vec![Extent {
                start: from,
                len,
                state: ExtentState::Zero,
            }]);
        }
        let sectors = (from.0 as usize..self.bytes.len()).step_by(512);
        Ok(sectors
            .map(|start| {
                let sector = start..start + 512;
                let unchanged = self.before.and_then(|before| before.get(sector.clone()));
                let state = if self.bytes[sector.clone()].iter().all(|byte| *byte == 0) {
                    ExtentState::Zero
                } else if unchanged == Some(&self.bytes[sector]) {
                    ExtentState::Unchanged
                } else {
                    ExtentState::Data
                };
                Extent {
                    start: DiskOffset(start as u64),
                    len: ByteLen(512),
                    state,
                }
            })
            .collect())
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        while let Next::Read(mut request) = queue.next(true) {
            let start = request.offset.0 as usize;
            let end = start + request.buffer.len();
            request.buffer.copy_from_slice(&self.bytes[start..end]);
            queue.complete(request);
        }
        Ok(())
    }
}

/// Text that repeats itself after some thousand bytes, with numbers in between.
fn text(len: usize) -> Vec<u8> {
    let lines =
        (0..).flat_map(|n: u32| format!("virtkeep line {n}, {}\n", n * n % 977).into_bytes());
    lines.take(len).collect()
}

/// Bytes that no codec makes smaller.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

struct Minutes(AtomicU64);

impl Clock for Minutes {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.fetch_add(60_000, Ordering::Relaxed))
    }
}

struct Counted(AtomicU64);

impl Random for Counted {
    fn fill(&self, bytes: &mut [u8]) {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(bytes);
    }
}
