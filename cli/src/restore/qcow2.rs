//! Writing a qcow2 image: QEMU's own tools know the format, we speak NBD to them.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libnbd::{Builder, Endpoint, Handle};
use tempfile::TempDir;
use virtkeep_repo::{ByteLen, Cancel};

use super::nbd_sink::{Before, NbdSink};

/// How long `qemu-nbd` may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has come so far.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// An empty qcow2 image that is being filled.
pub(crate) struct Qcow2Image {
    server: Server,
    sink: NbdSink,
}

impl Qcow2Image {
    /// Makes `path`, an empty file so far, a qcow2 image of this size, and opens it for writing.
    pub(crate) fn create(path: &Path, size: ByteLen, cancel: &Cancel) -> Result<Self> {
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(path)
            .arg(size.0.to_string())
            .stdin(Stdio::null())
            .output()
            .context("cannot run qemu-img: install qemu-utils, or restore with --format raw")?;
        if !made.status.success() {
            bail!("qemu-img failed: {}", last_line(&made.stderr));
        }
        let mut server = Server::start(path)?;
        let endpoint = Endpoint::unix(server.socket());
        let builder = Builder::new();
        let first = server.connect(&builder, &endpoint)?;
        let sink = NbdSink::new(first, &builder, &endpoint, Before::Zeroes, cancel)?;
        Ok(Self { server, sink })
    }

    /// Where the bytes go.
    pub(crate) fn sink(&self) -> &NbdSink {
        &self.sink
    }

    /// Completes the image: afterwards the file is whole, though not yet synced.
    pub(crate) fn finish(self) -> Result<()> {
        self.sink.finish()?;
        self.server.wait()
    }
}

/// A running `qemu-nbd`, which ends with its last connection or when this is dropped.
struct Server {
    child: Child,
    socket_dir: TempDir,
}

impl Server {
    fn start(path: &Path) -> Result<Self> {
        let socket_dir = tempfile::Builder::new()
            .prefix("virtkeep-")
            .tempdir()
            .context("cannot create a directory for a socket")?;
        let child = Command::new("qemu-nbd")
            .args(["--format=qcow2", "--shared=16", "--cache=writeback"])
            .arg("--discard=unmap")
            .arg("--socket")
            .arg(socket_dir.path().join("nbd"))
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run qemu-nbd: install qemu-utils, or restore with --format raw")?;
        Ok(Self { child, socket_dir })
    }

    fn socket(&self) -> std::path::PathBuf {
        self.socket_dir.path().join("nbd")
    }

    fn connect(&mut self, builder: &Builder, endpoint: &Endpoint) -> Result<Handle> {
        let started = Instant::now();
        loop {
            let refused = match builder.connect(endpoint) {
                Ok(handle) => return Ok(handle),
                Err(error) => error,
            };
            if self.child.try_wait()?.is_some() {
                bail!("qemu-nbd failed: {}", self.complaint());
            }
            if started.elapsed() > PATIENCE {
                return Err(refused).context("qemu-nbd does not answer");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until it has ended by itself, having written everything.
    fn wait(mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => bail!("qemu-nbd failed: {}", self.complaint()),
                None if started.elapsed() > PATIENCE => bail!("qemu-nbd does not end"),
                None => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.take(64 << 10).read_to_end(&mut text);
        }
        last_line(&text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last thing a program said.
fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it gave no reason").to_owned()
}
