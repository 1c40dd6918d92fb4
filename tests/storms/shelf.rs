//! A repository, the images that are backed up into it, and what every point must hold.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blake3::Hash;
use fastrand::Rng;
use serde_json::Value;
use virtkeep_tests::{Program, Ran, text};

/// Bytes in a chunk of these repositories.
pub(crate) const CHUNK_BYTES: usize = 4096;
/// Chunks in an image: 4 MiB, and a piece of one.
const CHUNKS: usize = 1024;
/// The end of an image fills no chunk.
const TAIL_BYTES: usize = 1536;
/// So many different contents a chunk may have: few enough for images to share many.
const CONTENTS: u32 = 6000;

/// A repository with small chunks, and work space beside it.
pub(crate) struct Shelf {
    pub(crate) program: Program,
    work: PathBuf,
}

impl Shelf {
    /// A new one in a directory that exists; images and restored disks go to `work`.
    pub(crate) fn new(dir: &Path, work: &Path) -> Self {
        Self {
            program: Program::init(&dir.join("repo"), &["--chunk-size", "4KiB"]),
            work: work.to_owned(),
        }
    }

    /// A new image.
    pub(crate) fn image(&self, name: &str, random: &mut Rng) -> Image {
        let mut image = Image {
            name: name.to_owned(),
            path: self.work.join(format!("{name}.img")),
            chunks: vec![0; CHUNKS + 1],
        };
        image.change(random, CHUNKS / 2);
        image
    }

    /// Words of the command that backs an image up.
    pub(crate) fn backup<'a>(&self, image: &'a Image) -> Vec<&'a str> {
        let path = text(&image.path);
        vec!["--json", "backup", "--image", path, "--name", &image.name]
    }

    /// What a point holds, by the program's word; an error of the program where it does not restore.
    pub(crate) fn restore(&self, point: &str) -> Result<Hash, Ran> {
        let words = ["restore", point, "--disk", "disk", "--to", "-"];
        hash_of_output(&mut self.program.command(&words))
    }

    /// Fails unless a point restores, and to this.
    #[track_caller]
    pub(crate) fn assert_restores(&self, point: &str, content: Hash, what: &str) {
        let restored = self.restore(point);
        let restored = restored.unwrap_or_else(|ran| panic!("{what}: {point}: {ran:?}"));
        assert_eq!(restored, content, "{what}: {point} restores something else");
    }

    /// Fails unless exactly these points are there, each restores to what it held, and every byte of
    /// the repository is sound.
    #[track_caller]
    pub(crate) fn assert_sound(&self, points: &BTreeMap<String, Hash>, what: &str) {
        let mut listed = self.program.points();
        listed.sort();
        let expected: Vec<&String> = points.keys().collect();
        assert_eq!(listed.iter().collect::<Vec<_>>(), expected, "{what}");
        for (point, content) in points {
            self.assert_restores(point, *content, what);
        }
        self.assert_clean(what);
    }

    /// Fails if the program finds any damage, reading everything.
    #[track_caller]
    pub(crate) fn assert_clean(&self, what: &str) {
        let ran = self.program.run(&["check", "--read-data"]);
        assert_eq!(ran.code(), Some(0), "{what}: {ran:?}");
    }

    /// The repository in numbers.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        self.program.ok(&["--json", "stats"]).line("stats")
    }
}

/// Hash of what a command prints, if it succeeds.
pub(crate) fn hash_of_output(command: &mut Command) -> Result<Hash, Ran> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(child.stdout.take().unwrap()).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    match ran.code() {
        Some(0) => Ok(hasher.finalize()),
        _ => Err(ran),
    }
}

/// A disk image, made of chunks with numbered contents; content 0 is a hole.
pub(crate) struct Image {
    pub(crate) name: String,
    path: PathBuf,
    chunks: Vec<u32>,
}

impl Image {
    /// Gives some chunks other contents, in runs, and writes the image anew.
    pub(crate) fn change(&mut self, random: &mut Rng, count: usize) {
        let mut changed = 0;
        while changed < count {
            let start = random.usize(..self.chunks.len());
            let len = random.usize(1..64).min(self.chunks.len() - start);
            let hole = random.u8(..4) == 0;
            for chunk in &mut self.chunks[start..start + len] {
                *chunk = if hole { 0 } else { random.u32(1..CONTENTS) };
            }
            changed += len;
        }
        let file = std::fs::File::create(&self.path).unwrap();
        file.set_len(self.len()).unwrap();
        for (number, content) in (0u64..).zip(&self.chunks) {
            if *content != 0 {
                let bytes = chunk(*content);
                let start = number * CHUNK_BYTES as u64;
                let len = (self.len() - start).min(CHUNK_BYTES as u64) as usize;
                file.write_all_at(&bytes[..len], start).unwrap();
            }
        }
    }

    /// Hash of the whole image.
    pub(crate) fn content(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        let file = std::fs::File::open(&self.path).unwrap();
        hasher.update_reader(file).unwrap();
        hasher.finalize()
    }

    fn len(&self) -> u64 {
        (CHUNKS * CHUNK_BYTES + TAIL_BYTES) as u64
    }
}

/// A content: half of it noise, so that it compresses a little.
fn chunk(content: u32) -> Vec<u8> {
    let mut random = Rng::with_seed(content.into());
    let mut bytes = vec![content as u8; CHUNK_BYTES];
    random.fill(&mut bytes[..CHUNK_BYTES / 2]);
    bytes
}
