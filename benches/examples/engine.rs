//! The engine alone: a disk image read through the page cache into a repository and back.
//!
//! Run with `cargo run --release -p virtkeep-benches --example engine -- IMAGE [CODEC]`, where IMAGE
//! is raw. Each step prints its seconds; compare steps of one run, several times.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use virtkeep_benches::draft;
use virtkeep_repo::{
    ByteLen, Cancel, DiskOffset, DiskSink, DiskSource, Env, Extent, ExtentState, InitOptions, Next,
    NoProgress, Point, ReadQueue, Repository, SourceError,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().ok_or("name a raw disk image")?;
    let codec = arguments
        .next()
        .unwrap_or_else(|| "lz4".to_owned())
        .parse()?;
    let beside = Path::new(&image).parent().unwrap_or(Path::new("."));
    let dir = tempfile::tempdir_in(beside)?;
    let options = InitOptions {
        codec,
        ..InitOptions::default()
    };
    let repo = Repository::init(&dir.path().join("repo"), &options, Env::system())?;
    let source = ImageSource {
        file: File::open(&image)?,
        len: fs::metadata(&image)?.len(),
    };

    let mut null = vec![0; 1 << 20];
    step("read the image", || {
        for offset in (0..source.len).step_by(null.len()) {
            let step = null.len().min((source.len - offset) as usize);
            source.file.read_exact_at(&mut null[..step], offset)?;
        }
        Ok(())
    })?;
    let mut points = Vec::new();
    for what in [
        "full backup",
        "full again, with parent",
        "full again, without parent",
    ] {
        let parent = points.last().filter(|_| what.ends_with("with parent"));
        let point = step(what, || store(&repo, &source, parent))?;
        println!("    {:?}", point.disks[0].stats);
        points.push(point);
    }
    println!("    {:?}", repo.stats()?);
    let reader = repo.read_disk(&points[0], &points[0].disks[0])?;
    let end = DiskOffset(source.len);
    let cancel = Cancel::new();
    step("restore to nowhere", || {
        Ok(reader.copy_to(DiskOffset(0), end, &Nowhere, &NoProgress, &cancel)?)
    })?;
    let target = File::create_new(dir.path().join("restored.raw"))?;
    target.set_len(source.len)?;
    step("restore to a file", || {
        reader.copy_to(DiskOffset(0), end, &FileSink(&target), &NoProgress, &cancel)?;
        Ok(target.sync_all()?)
    })?;
    let status = fs::read_to_string("/proc/self/status")?;
    println!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap_or("no VmHWM")
    );
    Ok(())
}

fn step<T>(
    what: &str,
    work: impl FnOnce() -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    let started = Instant::now();
    let done = work()?;
    println!("{what}: {:.2} s", started.elapsed().as_secs_f64());
    Ok(done)
}

fn store(
    repo: &Repository,
    source: &ImageSource,
    parent: Option<&Point>,
) -> Result<Point, Box<dyn Error>> {
    let parents: Vec<_> = parent.iter().map(|point| point.id).collect();
    let backup = repo.begin_backup(&parents, "bench")?;
    let disk = parent.map(|point| &point.disks[0]);
    let stored = backup.store_disk(source, disk, &NoProgress, &Cancel::new())?;
    Ok(backup.commit(draft(source.size(), stored))?)
}

/// A raw image, all of it taken for data.
struct ImageSource {
    file: File,
    len: u64,
}

impl DiskSource for ImageSource {
    fn size(&self) -> ByteLen {
        ByteLen(self.len)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        let len = ByteLen(self.len - from.0);
        Ok(vec![Extent {
            start: from,
            len,
            state: ExtentState::Data,
        }])
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        while let Next::Read(mut request) = queue.next(true) {
            self.file
                .read_exact_at(&mut request.buffer, request.offset.0)?;
            queue.complete(request);
        }
        Ok(())
    }
}

/// Takes everything, keeps nothing.
struct Nowhere;

impl DiskSink for Nowhere {
    fn write(&self, _: DiskOffset, _: &[u8]) -> Result<(), SourceError> {
        Ok(())
    }

    fn zero(&self, _: DiskOffset, _: ByteLen) -> Result<(), SourceError> {
        Ok(())
    }
}

/// A new sparse file.
struct FileSink<'a>(&'a File);

impl DiskSink for FileSink<'_> {
    fn write(&self, offset: DiskOffset, bytes: &[u8]) -> Result<(), SourceError> {
        Ok(self.0.write_all_at(bytes, offset.0)?)
    }

    fn zero(&self, _: DiskOffset, _: ByteLen) -> Result<(), SourceError> {
        Ok(())
    }
}
