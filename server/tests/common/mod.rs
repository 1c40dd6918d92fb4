//! A server on a unix socket, a client that can say anything, and the tools of others.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of this"
)]

pub mod authority;
#[cfg(feature = "tls")]
pub mod secured;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_server::wire::handshake::ClientFlags;
use nbd_server::wire::option::{ClientOption, ContextRequest, InfoRequest};
use nbd_server::wire::option_reply::{OptionReply, ReplyBody};
use nbd_server::wire::reply::{ErrorCode, ReplyHead};
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{
    Export, ExportError, ExportMap, Exports, Limits, Listener, MemoryDisk, Running, Server, TlsMode,
};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// A running server and its directory.
pub struct Served {
    pub running: Option<Running>,
    pub dir: TempDir,
}

impl Served {
    /// One export, under the name `disk`.
    pub fn one(export: impl Export + 'static) -> Served {
        let exports = ExportMap::new().with("disk", Arc::new(export));
        Served::start(exports, Limits::default())
    }

    pub fn start(exports: impl Exports + 'static, limits: Limits) -> Served {
        Served::start_with_tls(exports, limits, TlsMode::Off)
    }

    pub fn start_with_tls(exports: impl Exports + 'static, limits: Limits, tls: TlsMode) -> Served {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = Listener::unix(dir.path().join("s")).expect("a socket");
        let listener = listener.with_tls(tls).expect("a unix socket");
        let running = Server::new(Arc::new(exports))
            .with_limits(limits)
            .start(vec![listener])
            .expect("the server starts");
        Served {
            running: Some(running),
            dir,
        }
    }

    /// Waits until so many clients are left.
    pub fn wait_for_connections(&self, count: usize) {
        let running = self.running.as_ref().expect("running");
        for _ in 0..6000 {
            if running.connections() == count {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} connections remain", running.connections());
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub fn client(&self) -> Client {
        Client::greet(self.connect())
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("the server listens")
    }

    /// A client in the transmission phase of `disk`, with structured replies.
    pub fn session(&self) -> Client {
        let mut client = self.client();
        client.accepted(&ClientOption::StructuredReply);
        client.go("disk");
        client
    }
}

/// A disk whose reads at offset 0 wait for leave, and fail beyond 1 MiB.
pub struct Gate {
    entered: Mutex<Sender<()>>,
    leave: Mutex<Receiver<()>>,
}

impl Gate {
    pub fn new() -> (Gate, Receiver<()>, Sender<()>) {
        let (entered, has_entered) = channel();
        let (open, leave) = channel();
        let gate = Gate {
            entered: Mutex::new(entered),
            leave: Mutex::new(leave),
        };
        (gate, has_entered, open)
    }
}

impl Export for Gate {
    fn size(&self) -> u64 {
        8 * MIB
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        if offset == 0 {
            self.entered
                .lock()
                .expect("unpoisoned")
                .send(())
                .expect("a test");
            self.leave
                .lock()
                .expect("unpoisoned")
                .recv()
                .expect("a test");
        }
        if offset + buffer.len() as u64 > MIB + MIB / 2 {
            return Err(ExportError::new(ErrorCode::Io, "the disk ends in smoke"));
        }
        buffer.fill(7);
        Ok(())
    }
}

/// A client written for these tests, on the library's own wire types.
pub struct Client<S = UnixStream> {
    pub stream: S,
}

/// How long a client waits, so that a server that does not answer fails the test instead of
/// blocking it.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

impl Client {
    pub fn greet(stream: UnixStream) -> Client {
        stream.set_read_timeout(PATIENCE).expect("a timeout");
        stream.set_write_timeout(PATIENCE).expect("a timeout");
        Client::answer_greeting(stream)
    }
}

impl Client<TcpStream> {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(PATIENCE).expect("a timeout");
        stream.set_write_timeout(PATIENCE).expect("a timeout");
        Client::answer_greeting(stream)
    }

    /// Waits until the other end has received all that was sent.
    pub fn wait_until_received(&self) {
        let port = self.stream.local_addr().expect("an address").port();
        let own = format!("0100007F:{port:04X}");
        loop {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
            let mut lines = table.lines().map(|line| line.split_whitespace());
            let mut line = lines.find(|line| line.clone().nth(1) == Some(&own));
            let queues = line.as_mut().and_then(|line| line.nth(4));
            if queues.expect("our socket").starts_with("00000000:") {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl<S: Read + Write> Client<S> {
    fn answer_greeting(mut stream: S) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        let flags = ClientFlags {
            fixed_newstyle: true,
            no_zeroes: true,
        };
        stream.write_all(&flags.encode()).expect("flags sent");
        Client { stream }
    }

    pub fn option(&mut self, option: &ClientOption) -> Vec<ReplyBody> {
        self.raw_option(&option.encode())
    }

    /// Sends an option and returns all replies to it.
    pub fn raw_option(&mut self, bytes: &[u8]) -> Vec<ReplyBody> {
        self.stream.write_all(bytes).expect("option sent");
        let mut replies = Vec::new();
        loop {
            let mut bytes = vec![0; OptionReply::HEAD_BYTES];
            self.stream.read_exact(&mut bytes).expect("a reply");
            let head = bytes.first_chunk().expect("a head");
            let length = OptionReply::data_bytes(head).expect("a valid head");
            bytes.resize(bytes.len() + length as usize, 0);
            let data = &mut bytes[OptionReply::HEAD_BYTES..];
            self.stream.read_exact(data).expect("data of a reply");
            let body = OptionReply::decode(&bytes).expect("a valid reply").body;
            let last = matches!(body, ReplyBody::Ack | ReplyBody::Error { .. });
            replies.push(body);
            if last {
                return replies;
            }
        }
    }

    pub fn accepted(&mut self, option: &ClientOption) -> Vec<ReplyBody> {
        let mut replies = self.option(option);
        assert_eq!(replies.pop(), Some(ReplyBody::Ack), "{option:?}");
        replies
    }

    pub fn go(&mut self, name: &str) -> Vec<ReplyBody> {
        self.accepted(&ClientOption::Go(info(name)))
    }

    pub fn send(&mut self, command: Command, cookie: u64, offset: u64, length: u32) {
        self.send_with(command, 0, cookie, offset, length);
    }

    pub fn send_with(
        &mut self,
        command: Command,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) {
        let request = Request {
            flags: CommandFlags(flags),
            command,
            cookie,
            offset,
            length,
        };
        let bytes = request.encode();
        self.stream.write_all(&bytes).expect("request sent");
    }

    /// The next reply or chunk: its head, cookie and content.
    pub fn reply(&mut self) -> (ReplyHead, u64, Vec<u8>) {
        self.reply_or_end().expect("a reply")
    }

    /// As [`reply`](Self::reply); none once the server has ended the connection in order.
    pub fn reply_or_end(&mut self) -> Option<(ReplyHead, u64, Vec<u8>)> {
        let mut byte = [0];
        if self.stream.read(&mut byte).expect("a reply or the end") == 0 {
            return None;
        }
        let mut bytes = vec![byte[0]];
        loop {
            self.stream.read_exact(&mut byte).expect("a reply");
            bytes.push(byte[0]);
            if bytes.len() >= 16
                && let Ok((head, cookie, _)) = ReplyHead::decode(&bytes)
            {
                let content = self.bytes(head.content_bytes() as usize);
                return Some((head, cookie, content));
            }
            assert!(bytes.len() <= 32, "no reply: {bytes:x?}");
        }
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut content = vec![0; length];
        self.stream.read_exact(&mut content).expect("content");
        content
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        !matches!(self.stream.read(&mut [0]), Ok(1..))
    }

    /// Reads the first four bytes of the disk: the server still serves this client.
    pub fn assert_served(&mut self) {
        self.send(Command::Read, 4711, 0, 4);
        let (head, cookie, _) = self.reply();
        assert!(
            matches!(head, ReplyHead::Data { .. } | ReplyHead::Hole { .. }),
            "{head:?}"
        );
        assert_eq!(cookie, 4711);
    }
}

pub fn info(name: &str) -> InfoRequest {
    InfoRequest {
        name: name.to_owned(),
        items: vec![],
    }
}

pub fn contexts(name: &str, queries: &[&str]) -> ContextRequest {
    ContextRequest {
        name: name.to_owned(),
        queries: queries.iter().map(|&query| query.to_owned()).collect(),
    }
}

/// A disk of 40 MiB with data in the first one.
pub fn disk() -> MemoryDisk {
    let disk = MemoryDisk::new(40 * MIB);
    disk.write(0, &pattern(MIB as usize)).expect("written");
    disk
}

/// Bytes that differ from place to place and are never all zero.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (state >> 56) as u8 | 1
        })
        .collect()
}

/// A whole program on this library, where cargo has put it: beside the directory of the tests.
pub fn serve_file() -> String {
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    path.set_file_name("examples");
    path.push("serve-file");
    path.display().to_string()
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Process::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).expect("text")
}
