//! A server on a unix socket, a client that can say anything, and the tools of others.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of this"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nbd_server::wire::handshake::ClientFlags;
use nbd_server::wire::option::{ClientOption, ContextRequest, InfoRequest};
use nbd_server::wire::option_reply::{OptionReply, ReplyBody};
use nbd_server::wire::reply::ReplyHead;
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{Export, ExportMap, Exports, Limits, Listener, Running, Server, TlsMode};
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

/// A client written for these tests, on the library's own wire types.
pub struct Client<S = UnixStream> {
    pub stream: S,
}

impl Client {
    pub fn greet(mut stream: UnixStream) -> Client {
        // So that a server that does not answer fails the test instead of blocking it.
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("a timeout");
        stream.set_write_timeout(patience).expect("a timeout");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        let flags = ClientFlags {
            fixed_newstyle: true,
            no_zeroes: true,
        };
        stream.write_all(&flags.encode()).expect("flags sent");
        Client { stream }
    }
}

impl<S: Read + Write> Client<S> {
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
        let mut bytes = Vec::new();
        loop {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("a reply");
            bytes.push(byte[0]);
            if bytes.len() >= 16
                && let Ok((head, cookie, _)) = ReplyHead::decode(&bytes)
            {
                let content = self.bytes(head.content_bytes() as usize);
                return (head, cookie, content);
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
