//! `virtkeep serve`, as it runs beside a story.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use libnbd::{Builder, Endpoint, Handle};
use serde_json::Value;

use crate::authority::Authority;
use crate::world::{Ran, World, tool};

/// `virtkeep serve` in one place, killed with the story unless it was ended before.
pub(crate) struct Serving<'a> {
    world: &'a World,
    pub(crate) child: Child,
    out: BufReader<ChildStdout>,
    /// Its standard error.
    log: File,
    /// The URI of the export without a name.
    uri: String,
}

impl<'a> Serving<'a> {
    /// Starts it on a socket of its own, and waits until it accepts clients.
    #[track_caller]
    pub(crate) fn start(world: &'a World, points: &[&str]) -> Self {
        Self::start_at(world, &format!("unix:{}", world.text("socket")), points)
    }

    /// The same at another address, with more on the command line.
    #[track_caller]
    pub(crate) fn start_at(world: &'a World, address: &str, words: &[&str]) -> Self {
        let mut command = world.command(&["--json", "serve", "--listen", address]);
        Self::run(world, command.args(words), None)
    }

    /// The same over TLS, with the certificate that this authority gave servers.
    #[track_caller]
    pub(crate) fn start_secured(
        world: &'a World,
        address: &str,
        authority: &Authority,
        words: &[&str],
    ) -> Self {
        let (certificate, key) = (
            authority.file("server-cert.pem"),
            authority.file("server-key.pem"),
        );
        let with_tls = ["--tls-cert", &certificate, "--tls-key", &key];
        Self::start_at(world, address, &[&with_tls, words].concat())
    }

    /// The same on a socket of its own, when nobody reads its standard error any more.
    #[track_caller]
    pub(crate) fn start_unheard(world: &'a World) -> Self {
        let listen = format!("unix:{}", world.text("socket"));
        let mut command = world.command(&["--json", "serve", "--listen", &listen]);
        let (_, nobody_reads) = std::io::pipe().unwrap();
        Self::run(world, &mut command, Some(nobody_reads.into()))
    }

    /// The same for all points, in a process that may open so many files at most, and no more than 64
    /// unless it asks for more.
    #[track_caller]
    pub(crate) fn start_within(world: &'a World, files_max: usize) -> Self {
        let listen = format!("unix:{}", world.text("socket"));
        let words = ["--json", "serve", "--listen", &listen];
        let mut command = world.command_within(files_max, &words);
        Self::run(world, &mut command, None)
    }

    #[track_caller]
    fn run(world: &'a World, command: &mut Command, stderr: Option<Stdio>) -> Self {
        let log = tempfile::tempfile().unwrap();
        let to_log = || log.try_clone().unwrap().into();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(stderr.unwrap_or_else(to_log))
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.contains(r#""type":"listening""#), "{line:?}");
        let line: Value = serde_json::from_str(&line).unwrap();
        let uri = line["uri"].as_str().unwrap().to_owned();
        Self {
            world,
            child,
            out,
            log,
            uri,
        }
    }

    /// What clients call an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        match self.uri.split_once('?') {
            Some((start, query)) => format!("{start}{export}?{query}"),
            None => format!("{}{export}", self.uri),
        }
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        let (_, port) = self.uri.trim_end_matches('/').rsplit_once(':').unwrap();
        port.parse().unwrap()
    }

    /// What `nbdinfo` says of an export.
    #[track_caller]
    pub(crate) fn info(&self, export: &str) -> Value {
        let all: Value =
            serde_json::from_str(&tool("nbdinfo", &["--json", &self.uri(export)])).unwrap();
        all["exports"][0].clone()
    }

    /// The names of all exports.
    #[track_caller]
    pub(crate) fn names(&self) -> Vec<String> {
        let all = tool("nbdinfo", &["--json", "--list", &self.uri("")]);
        let all: Value = serde_json::from_str(&all).unwrap();
        let exports = all["exports"].as_array().unwrap().iter();
        exports
            .map(|export| export["export-name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The bytes of an export.
    #[track_caller]
    pub(crate) fn copy(&self, export: &str) -> Vec<u8> {
        let copy = self.world.text("copy.raw");
        tool("nbdcopy", &[&self.uri(export), &copy]);
        std::fs::read(copy).unwrap()
    }

    /// What QEMU says when it is refused an export.
    #[track_caller]
    pub(crate) fn refused(&self, export: &str) -> String {
        let ran = Ran::of(Command::new("qemu-img").args(["info", &self.uri(export)]));
        assert_ne!(ran.code, 0, "{ran:#?}");
        ran.stderr
    }

    /// A client that has an export open.
    #[track_caller]
    pub(crate) fn open(&self, export: &str) -> Handle {
        let endpoint = Endpoint::uri(self.uri(export));
        Builder::new().connect(&endpoint).unwrap()
    }

    /// A client that stays connected to an export until its standard input is closed.
    pub(crate) fn connect(&self, export: &str) -> Child {
        let uri = self.uri(export);
        let mut client = Command::new("qemu-io");
        client.args(["-r", "-f", "raw", &uri]);
        client
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// A line of what the kernel knows of its memory, in bytes: `VmHWM`, the most it ever took, or `VmRSS`.
    pub(crate) fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    /// What it has open.
    pub(crate) fn open_files(&self) -> Vec<PathBuf> {
        let descriptors = std::fs::read_dir(self.proc("fd")).unwrap();
        // One may be closed between two looks.
        descriptors
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .collect()
    }

    /// How many threads it has for its clients.
    pub(crate) fn threads_of_clients(&self) -> usize {
        let threads = std::fs::read_dir(self.proc("task")).unwrap();
        // One may end between two looks.
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
            .filter(|name| name.starts_with("nbd-") && name.trim() != "nbd-accept")
            .count()
    }

    fn proc(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.child.id())
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        tool("kill", &[signal, &pid]);
    }

    /// Ends it with a signal; what it said on standard error.
    #[track_caller]
    pub(crate) fn end(mut self, signal: &str) -> String {
        self.signal(signal);
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        said
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All bytes of an export, in pieces.
#[track_caller]
pub(crate) fn read_all(client: &mut Handle) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < client.size() {
        let at = bytes.len() as u64;
        let len = (client.size() - at).min(1 << 20) as usize;
        bytes.extend(client.read(at, len).unwrap().bytes);
    }
    bytes
}
