//! A whole program on this library, `examples/serve-file.rs`: sockets passed to it, its end.
//!
//! `cargo test` builds the example; `cargo test --test program` alone takes the one that is there.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::{Client, pattern, run, serve_file};
use nbd_server::wire::request::Command;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

struct Image {
    dir: TempDir,
}

impl Image {
    fn new() -> Image {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = Image { dir };
        fs::write(image.path("disk"), pattern(1 << 20)).expect("written");
        image
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// A program that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Process) -> Running {
        Running(command.stdin(Stdio::null()).spawn().expect("started"))
    }

    fn terminate(&self) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).expect("signalled");
    }

    fn assert_success(mut self) {
        assert!(self.0.wait().expect("our child").success());
    }
}

/// Runs the program with a socket as descriptor 3, as systemd would, in a shell that can set
/// `LISTEN_PID` to its own process.
fn activate(socket: OwnedFd, arguments: &str) -> Running {
    let number = socket.as_raw_fd();
    let moved = match number {
        3 => String::new(),
        _ => format!("exec 3<&{number} {number}<&-;"),
    };
    let script = format!(
        "{moved} LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk exec {} {arguments}",
        serve_file()
    );
    // Descriptors are closed on exec unless somebody duplicates them.
    let inherited = rustix::io::fcntl_getfd(&socket).expect("a descriptor");
    rustix::io::fcntl_setfd(&socket, inherited - rustix::io::FdFlags::CLOEXEC).expect("set");
    Running::start(Process::new("bash").args(["-c", &script]))
}

#[test]
fn libnbd_starts_it_by_socket_activation() {
    let image = Image::new();
    let size = run(
        "nbdinfo",
        &["--size", "--", "[", &serve_file(), &image.path("disk"), "]"],
    );
    assert_eq!(size.trim(), "1048576");
    let copy = image.path("copy");
    run(
        "nbdcopy",
        &["--", "[", &serve_file(), &image.path("disk"), "]", &copy],
    );
    assert!(fs::read(copy).expect("a file") == pattern(1 << 20));
}

#[test]
fn a_unix_socket_and_a_port_can_be_passed() {
    let image = Image::new();
    let socket = image.path("s");
    let listener = UnixListener::bind(&socket).expect("bound");
    let _running = activate(listener.into(), &image.path("disk"));
    let uri = format!("nbd+unix:///?socket={socket}");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "1048576");

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let _running = activate(listener.into(), &image.path("disk"));
    let uri = format!("nbd://127.0.0.1:{port}");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "1048576");
}

#[test]
fn what_was_passed_is_used_only_if_it_is_safe_and_meant_for_this_process() {
    let image = Image::new();
    let any = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bound");
    let plain = File::open(image.path("disk")).expect("opened");
    for (socket, reason) in [
        (any.into(), "can be reached from other machines"),
        (
            plain.into(),
            "socket 1 passed to this process is no listening",
        ),
    ] {
        let complaint = image.path("complaint");
        let arguments = format!("{} 2>{complaint}", image.path("disk"));
        let mut running = activate(socket, &arguments);
        assert!(!running.0.wait().expect("our child").success());
        let said = fs::read_to_string(complaint).expect("a file");
        assert!(said.contains(reason), "{said}");
    }
    let output = Process::new(serve_file())
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDS", "1")
        .arg(image.path("disk"))
        .output()
        .expect("started");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no socket was passed"), "{said}");
}

#[test]
fn systemd_socket_activate_starts_it_at_the_first_client() {
    let Ok(tool) = Process::new("systemd-socket-activate")
        .arg("--version")
        .output()
    else {
        eprintln!("skipped: systemd-socket-activate is not installed");
        return;
    };
    assert!(tool.status.success());
    let image = Image::new();
    let socket = image.path("s");
    let mut command = Process::new("systemd-socket-activate");
    let _running =
        Running::start(command.args(["-l", &socket, &serve_file(), &image.path("disk")]));
    while UnixStream::connect(&socket).is_err() {
        sleep(Duration::from_millis(10));
    }
    let uri = format!("nbd+unix:///?socket={socket}");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "1048576");
}

#[test]
fn sigterm_ends_it_in_order_with_a_client_connected() {
    let image = Image::new();
    let socket = image.path("s");
    let mut command = Process::new(serve_file());
    let command = command
        .args([&image.path("disk"), &socket])
        .stderr(Stdio::piped());
    let mut running = Running::start(command);
    let stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(10)),
        }
    };
    let mut client = Client::greet(stream);
    client.go("");
    client.send(Command::Read, 1, 0, 1 << 20);
    running.terminate();
    let log = BufReader::new(running.0.stderr.take().expect("piped"));
    client.bytes(16 + (1 << 20));
    assert!(client.is_closed());
    assert!(
        log.lines()
            .any(|line| line.expect("text").contains("Closed"))
    );
    running.assert_success();
    assert!(!PathBuf::from(socket).exists());
}

#[test]
fn a_port_beyond_loopback_needs_a_certificate() {
    let image = Image::new();
    let output = Process::new(serve_file())
        .args([&image.path("disk"), "0.0.0.0:0"])
        .output()
        .expect("started");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("require TLS"), "{said}");
}
