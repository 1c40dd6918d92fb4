//! Real NBD servers for the tests: started on a unix socket or a loopback port, killed by
//! their own process handle when the test is over.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of this"
)]

use std::ffi::OsStr;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libnbd::{Builder, Endpoint, Handle};
use tempfile::TempDir;

/// A server process and the directory it lives in.
pub struct Server {
    child: Child,
    pub dir: TempDir,
    pub endpoint: Endpoint,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// `nbdkit ARGS` on a unix socket.
    pub fn nbdkit<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("nbd.sock");
        let mut command = Command::new("nbdkit");
        command
            .args(["--exit-with-parent", "-f", "-U"])
            .arg(&socket);
        command.args(args);
        Server::start(command, dir, Endpoint::unix(socket))
    }

    /// `nbdkit ARGS` on a loopback port.
    pub fn nbdkit_tcp<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let mut command = Command::new("nbdkit");
        command.args(["--exit-with-parent", "-f", "-i", "127.0.0.1", "-p"]);
        command.arg(port.to_string()).args(args);
        Server::start(command, dir, Endpoint::tcp("127.0.0.1", port))
    }

    /// `qemu-nbd ARGS` on a unix socket in `dir`, staying up between connections.
    pub fn qemu_nbd<S: AsRef<OsStr>>(dir: TempDir, args: impl IntoIterator<Item = S>) -> Server {
        let socket = dir.path().join("nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-k"]).arg(&socket).args(args);
        Server::start(command, dir, Endpoint::unix(socket))
    }

    fn start(mut command: Command, dir: TempDir, endpoint: Endpoint) -> Server {
        let child = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut server = Server {
            child,
            dir,
            endpoint,
        };
        for _ in 0..2000 {
            let answers = match &server.endpoint {
                Endpoint::Unix(path) => UnixStream::connect(path).is_ok(),
                Endpoint::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).is_ok(),
                other => panic!("no server listens at {other:?}"),
            };
            if answers {
                return server;
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!("{command:?} ended with {status}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{command:?} does not listen");
    }

    /// Kills the server as if by `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the server to end (so that an image is closed in order) and waits for it.
    pub fn finish(mut self) {
        run("kill", [self.child.id().to_string()]);
        let status = self.child.wait().expect("the server is our child");
        assert!(status.success(), "{status}");
    }

    pub fn connect(&self) -> Handle {
        self.connect_with(&Builder::new())
    }

    pub fn connect_with(&self, builder: &Builder) -> Handle {
        builder
            .connect(&self.endpoint)
            .expect("the server accepts the connection")
    }

    pub fn socket(&self) -> &Path {
        match &self.endpoint {
            Endpoint::Unix(path) => path,
            other => panic!("{other:?} is not a unix socket"),
        }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free loopback port")
        .port()
}

/// Runs a program to its end, which must be a success.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) {
    let mut command = Command::new(program);
    let output = command
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A new qcow2 image in a new directory.
pub fn qcow2(size: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("disk.qcow2");
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", path(&image), size],
    );
    (dir, image)
}

/// Runs commands of `qemu-io` on an image that nobody has open.
pub fn qemu_io(image: &Path, commands: &[&str]) {
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(path(image));
    run("qemu-io", args);
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// What nbdkit's pattern plugin serves: each aligned 8 bytes hold their own offset.
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64)
        .map(|at| (at & !7).to_be_bytes()[(at & 7) as usize])
        .collect()
}
