//! What disks held at some moment, kept to be compared with what is restored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::tool::{run, text};

/// The disks of one moment: target to hash. Equal moments are equal.
pub type Content = BTreeMap<String, String>;

/// Keeps disk contents by hash: what did not change between two moments is kept once.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// In a directory of its own.
    pub fn new(dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).unwrap();
        Self { dir }
    }

    /// Keeps what the disks of the domain hold now (see [`Machine::copy_disks`]).
    #[track_caller]
    pub fn keep(&self, machine: &Machine) -> Content {
        let work = tempfile::tempdir_in(&self.dir).unwrap();
        let keep = |(target, raw): (String, PathBuf)| {
            let hash = hash(&raw);
            std::fs::rename(raw, self.path(&hash)).unwrap();
            (target, hash)
        };
        machine
            .copy_disks(work.path())
            .into_iter()
            .map(keep)
            .collect()
    }

    /// A disk as a raw image.
    pub fn path(&self, hash: &str) -> PathBuf {
        self.dir.join(hash)
    }

    /// Fails unless the restored images in `dir` are these disks, bit for bit and to the last
    /// sector; `format` is raw or qcow2.
    #[track_caller]
    pub fn compare(&self, content: &Content, dir: &Path, format: &str, what: &str) {
        for (target, expected) in content {
            let restored = dir.join(format!("{target}.{format}"));
            let reference = self.path(expected);
            let same_size = match format {
                "raw" => hash(&restored) == *expected,
                _ => virtual_size(&restored) == std::fs::metadata(&reference).unwrap().len(),
            };
            let compared = std::process::Command::new("qemu-img")
                .args([
                    "compare",
                    "-f",
                    format,
                    "-F",
                    "raw",
                    text(&restored),
                    text(&reference),
                ])
                .output()
                .unwrap();
            assert!(
                compared.status.success() && same_size,
                "{what}: {target} restored as {format} is not what it was: {}{}",
                String::from_utf8_lossy(&compared.stdout),
                String::from_utf8_lossy(&compared.stderr)
            );
        }
    }
}

fn virtual_size(image: &Path) -> u64 {
    let info = run("qemu-img", &["info", "--output=json", text(image)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// The hash of a file, its length included.
fn hash(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(std::fs::File::open(path).unwrap())
        .unwrap();
    let len = std::fs::metadata(path).unwrap().len();
    format!("{}-{len}", hasher.finalize())
}
