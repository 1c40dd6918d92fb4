//! A repository in a directory of its own, the program to use on it, and disks to compare with.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtkeep_repo::{
    ByteLen, Cancel, CaptureMode, Consistency, Disk, DiskOffset, DiskSource, Domain, DomainUuid,
    Env, Extent, ExtentState, FileRole, InitOptions, Next, NoProgress, OpenOptions, Point,
    PointDraft, ReadQueue, Repository, SourceError, SourceKind, StoredFile, UnixMillis,
};

/// 2026-11-22T11:00:00Z.
pub(crate) const NOON: u64 = 1_795_345_200_000;

/// A directory with a repository and whatever a story puts beside it.
pub(crate) struct World {
    dir: TempDir,
}

/// What a run of the program gave.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl std::fmt::Debug for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}", self.code)?;
        let start: String = self.stdout.chars().take(4000).collect();
        write!(f, "\nstdout: {start}\nstderr: {}", self.stderr)
    }
}

impl Ran {
    /// Runs a command to its end.
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            out: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The lines of JSON on standard output.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let lines = self.stdout.lines();
        lines.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Fails unless the program failed with this code and said this on standard error, in a line
    /// that a person can read.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, text: &str) {
        assert!(self.code == code && self.stderr.contains(text), "{self:#?}");
        let has_noise = ["panicked", "Error {", "\x1b", "<domain"].map(|n| self.stderr.contains(n));
        assert!(!has_noise.contains(&true), "{self:#?}");
    }
}

impl World {
    /// With an empty repository.
    pub(crate) fn new() -> Self {
        Self::bare().with_repository()
    }

    /// In memory, if there is a place for that, where very many points are made in no time.
    pub(crate) fn in_memory() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm");
        let dir = dir.unwrap_or_else(|_| tempfile::tempdir().unwrap());
        Self { dir }.with_repository()
    }

    fn with_repository(self) -> Self {
        let options = InitOptions::default();
        Repository::init(&self.path("repo"), &options, Env::system()).unwrap();
        self
    }

    /// Without a repository.
    pub(crate) fn bare() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A path beside the repository.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The program, in this world: its repository, UTC, and libvirt's built-in test driver, which
    /// needs no daemon.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtkeep"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("VIRTKEEP_REPO", self.path("repo"))
            .env("LIBVIRT_DEFAULT_URI", "test:///default")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    /// The program in a process that may open so many files at most, and no more than 64 unless it asks for
    /// more.
    pub(crate) fn command_within(&self, files_max: usize, args: &[&str]) -> Command {
        let usual = self.command(args);
        let script = format!("ulimit -Sn 64; ulimit -Hn {files_max}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(usual.get_program())
            .args(usual.get_args())
            .envs(
                usual
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Runs the program, which must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert!(ran.code == 0, "{args:?}: {ran:#?}");
        ran
    }

    /// Names in a directory, sorted.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Spoils a quarter of every pack.
    pub(crate) fn damage_packs(&self) {
        let dirs = std::fs::read_dir(self.path("repo/packs")).unwrap();
        for dir in dirs.map(|entry| entry.unwrap().path()) {
            for pack in std::fs::read_dir(dir).unwrap() {
                let pack = pack.unwrap().path();
                let mut bytes = std::fs::read(&pack).unwrap();
                let len = bytes.len();
                bytes[len / 4..len / 2].iter_mut().for_each(|b| *b ^= 0xff);
                std::fs::remove_file(&pack).unwrap();
                std::fs::write(&pack, bytes).unwrap();
            }
        }
    }

    /// Flips a bit where `content`, which does not compress, is kept.
    pub(crate) fn damage_where(&self, content: &[u8]) {
        let dirs = std::fs::read_dir(self.path("repo/packs")).unwrap();
        for dir in dirs.map(|entry| entry.unwrap().path()) {
            for pack in std::fs::read_dir(dir).unwrap() {
                let pack = pack.unwrap().path();
                let mut bytes = std::fs::read(&pack).unwrap();
                let mut windows = bytes.windows(content.len());
                if let Some(at) = windows.position(|window| window == content) {
                    bytes[at + content.len() / 2] ^= 1;
                    std::fs::write(&pack, bytes).unwrap();
                    return;
                }
            }
        }
        panic!("that is in no pack");
    }

    /// Puts a point into the repository.
    pub(crate) fn add(&self, domain: TestDomain<'_>) -> Point {
        let options = OpenOptions::default();
        let repo = Repository::open(&self.path("repo"), &options, Env::system()).unwrap();
        let backup = repo.begin_backup(&[], "test").unwrap();
        let store_disk = |(target, content): &(&str, &[u8])| {
            let source = Memory(content);
            let stored = backup
                .store_disk(&source, None, &NoProgress, &Cancel::new())
                .unwrap();
            Disk {
                target: (*target).to_owned(),
                size: source.size(),
                root: stored.root,
                mode: CaptureMode::Full,
                reason: "first backup".to_owned(),
                checkpoint: None,
                parent: None,
                format: "qcow2".to_owned(),
                location: format!("/images/{target}.qcow2"),
                backing: Vec::new(),
                stats: stored.stats,
            }
        };
        let disks: Vec<Disk> = domain.disks.iter().map(store_disk).collect();
        let store_file = |(role, name, content): &(FileRole, &str, &[u8])| -> StoredFile {
            backup
                .store_file(*role, name, &mut Cursor::new(content))
                .unwrap()
        };
        let files: Vec<StoredFile> = domain.files.iter().map(store_file).collect();
        backup
            .commit(PointDraft {
                domain: Domain {
                    uuid: DomainUuid::from_bytes([domain.uuid; 16]),
                    name: domain.name.to_owned(),
                },
                source: SourceKind::Live,
                host: "kvm1".to_owned(),
                time: UnixMillis(domain.time),
                consistency: Consistency::Frozen,
                checkpoint: None,
                disks,
                files,
                tags: Vec::new(),
            })
            .unwrap()
    }
}

/// A domain at some time.
pub(crate) struct TestDomain<'a> {
    pub(crate) name: &'a str,
    pub(crate) uuid: u8,
    pub(crate) time: u64,
    pub(crate) disks: Vec<(&'a str, &'a [u8])>,
    pub(crate) files: Vec<(FileRole, &'a str, &'a [u8])>,
}

impl<'a> TestDomain<'a> {
    /// `web1` at noon, with a disk `vda`.
    pub(crate) fn web1(vda: &'a [u8]) -> Self {
        Self {
            name: "web1",
            uuid: 0x11,
            time: NOON,
            disks: vec![("vda", vda)],
            files: Vec::new(),
        }
    }
}

/// The content of a disk: data, repeated data, and wide holes; the size is a multiple of 512 only.
pub(crate) fn disk(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; (12 << 20) + 512];
    let mut state = seed | 1;
    for range in [
        0..300_000,
        3 << 20..(4 << 20) + 77,
        (12 << 20) - 5..(12 << 20) + 512,
    ] {
        for byte in &mut bytes[range] {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
    }
    bytes.copy_within(0..65536, 6 << 20);
    bytes
}

/// A disk in memory, all of it data as far as anyone is told.
struct Memory<'a>(&'a [u8]);

impl DiskSource for Memory<'_> {
    fn size(&self) -> ByteLen {
        ByteLen(self.0.len() as u64)
    }

    fn extents(&self, from: DiskOffset) -> Result<Vec<Extent>, SourceError> {
        Ok(vec![Extent {
            start: from,
            len: DiskOffset(self.0.len() as u64).since(from),
            state: ExtentState::Data,
        }])
    }

    fn read(&self, queue: &dyn ReadQueue) -> Result<(), SourceError> {
        while let Next::Read(mut request) = queue.next(true) {
            let start = request.offset.0 as usize;
            let len = request.buffer.len();
            request.buffer.copy_from_slice(&self.0[start..start + len]);
            queue.complete(request);
        }
        Ok(())
    }
}

/// A server of one NBD export on a unix socket, ended with the story.
pub(crate) struct NbdServer {
    child: Child,
    pub(crate) uri: String,
}

impl NbdServer {
    /// Runs a server that listens on `socket`.
    pub(crate) fn start(command: &mut Command, socket: &Path) -> Self {
        // What it says of clients that go away is no part of a story.
        let command = command.stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let server = Self { child, uri };
        wait_until("an NBD server", || socket.exists());
        server
    }

    /// `qemu-nbd` on an image.
    pub(crate) fn qemu(world: &World, format: &str, image: &Path) -> Self {
        let socket = world.path("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=16", "--format", format]);
        command.arg("--socket").arg(&socket).arg(image);
        Self::start(&mut command, &socket)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool, which must succeed, and gives its standard output.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for something that must happen; how long it takes is no part of any story.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
