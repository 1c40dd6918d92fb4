//! The document is enough: a reader written from it alone, in another language, restores a disk
//! that the engine stored.

use std::path::Path;
use std::process::Command;

use virtkeep_repo::{
    ByteLen, Cancel, CaptureMode, Codec, Consistency, Disk, DiskOffset, DiskSource, Domain, Env,
    Extent, ExtentState, InitOptions, Next, NoProgress, PointDraft, ReadQueue, Repository,
    SourceError, SourceKind, UnixMillis,
};

use super::noise;

/// A disk in memory, all of it data.
struct Bytes(Vec<u8>);

impl DiskSource for Bytes {
    fn size(&self) -> ByteLen {
        ByteLen(self.0.len() as u64)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        let len = ByteLen(self.0.len() as u64 - from.0);
        let state = ExtentState::Data;
        Ok(vec![Extent {
            start: from,
            len,
            state,
        }])
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        while let Next::Read(mut request) = queue.next(true) {
            let start = request.offset.0 as usize;
            let end = start + request.buffer.len();
            request.buffer.copy_from_slice(&self.0[start..end]);
            queue.complete(request);
        }
        Ok(())
    }
}

/// Text, noise and gaps of zeroes; three levels of nodes at fan-out 64, and a last chunk cut short.
fn content() -> Vec<u8> {
    const CHUNK: usize = 4096;
    let mut disk = vec![0; 64 * 64 * CHUNK + 5 * CHUNK + 1536];
    let text = b"virtkeep ".repeat(1000);
    disk[..9000].copy_from_slice(&text);
    disk[100 * CHUNK + 512..104 * CHUNK].copy_from_slice(&noise(4 * CHUNK - 512));
    disk[60 * 64 * CHUNK - 300..][..600].copy_from_slice(&noise(600));
    let end = disk.len();
    disk[end - 2000..].copy_from_slice(&text[..2000]);
    disk
}

fn store(path: &Path, content: Vec<u8>) -> String {
    let options = InitOptions {
        chunk_size: ByteLen(4096),
        fan_out: 64,
        codec: Codec::Lz4,
        unsafe_network_fs: false,
    };
    let repository = Repository::init(path, &options, Env::system()).unwrap();
    let backup = repository.begin_backup(&[], "test").unwrap();
    let source = Bytes(content);
    let stored = backup
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    let draft = PointDraft {
        domain: Domain {
            uuid: repository.uuid_for_name("disk"),
            name: "disk".into(),
        },
        source: SourceKind::Image,
        host: "here".into(),
        time: UnixMillis(0),
        consistency: Consistency::Clean,
        checkpoint: None,
        disks: vec![Disk {
            target: "vda".into(),
            size: source.size(),
            root: stored.root,
            mode: CaptureMode::Full,
            reason: "test".into(),
            checkpoint: None,
            parent: None,
            format: "raw".into(),
            location: String::new(),
            backing: Vec::new(),
            stats: stored.stats,
        }],
        files: vec![],
        tags: vec![],
    };
    backup.commit(draft).unwrap().id.to_string()
}

#[test]
fn a_reader_written_from_the_document_alone_restores_a_disk() {
    let directory = tempfile::tempdir().unwrap();
    let repository = directory.path().join("repository");
    let restored = directory.path().join("restored");
    let content = content();
    let point = store(&repository, content.clone());
    std::fs::remove_file(repository.join("index.redb")).unwrap();

    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/reader.py");
    let status = Command::new("python3")
        .arg(reader)
        .args([
            repository.as_os_str(),
            point.as_ref(),
            "vda".as_ref(),
            restored.as_os_str(),
        ])
        .status()
        .expect("python3 is installed where the tests run");
    assert!(status.success());
    assert!(
        std::fs::read(restored).unwrap() == content,
        "the disks differ"
    );
}
