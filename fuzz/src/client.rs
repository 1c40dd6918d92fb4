//! A hostile NBD client: what it says is a list of messages, most of them well formed.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use nbd_server::wire::handshake::ClientFlags;
use nbd_server::wire::option::{ClientOption, ContextRequest, InfoRequest, OptionHeader};
use nbd_server::wire::request::{Command, CommandFlags, Request};
use nbd_server::{ExportMap, Limits};

use crate::disk::{DISK_BYTES, Disk, own_context};

/// One option of the handshake.
#[derive(Arbitrary, Debug)]
pub enum Said {
    /// As the protocol has it.
    Option(Asked),
    /// With a header that may lie about its data.
    Header {
        option: u8,
        length: u32,
        data: Vec<u8>,
    },
    /// Anything.
    Bytes(Vec<u8>),
}

/// A well-formed option.
#[derive(Arbitrary, Debug)]
pub enum Asked {
    /// `NBD_OPT_EXPORT_NAME`
    ExportName(Name),
    /// `NBD_OPT_ABORT`
    Abort,
    /// `NBD_OPT_LIST`
    List,
    /// `NBD_OPT_STARTTLS`
    StartTls,
    /// `NBD_OPT_INFO`
    Info(Name, Vec<u16>),
    /// `NBD_OPT_GO`
    Go(Name, Vec<u16>),
    /// `NBD_OPT_STRUCTURED_REPLY`
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`
    ListContexts(Name, Vec<Query>),
    /// `NBD_OPT_SET_META_CONTEXT`
    SetContexts(Name, Vec<Query>),
}

/// The name of an export.
#[derive(Arbitrary, Debug)]
pub enum Name {
    /// One there is.
    Disk,
    /// Any other.
    Other(String),
}

/// A query for metadata contexts.
#[derive(Arbitrary, Debug)]
pub enum Query {
    /// `base:allocation`
    Allocation,
    /// A context of the export's own.
    Own(u8),
    /// All of a namespace.
    Namespace { own: bool },
    /// Any other.
    Other(String),
}

/// One request of the transmission phase.
#[derive(Arbitrary, Debug)]
pub enum Sent {
    /// A request whose range is in the disk, or nearly.
    Near {
        command: u8,
        flags: u8,
        offset: u32,
        length: u32,
    },
    /// A request of any range.
    Far {
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
    },
    /// Anything.
    Bytes(Vec<u8>),
}

/// The bytes of the client's flags and options.
pub fn handshake(flags: Option<[u8; 4]>, said: &[Said]) -> Vec<u8> {
    let usual = ClientFlags {
        fixed_newstyle: true,
        no_zeroes: true,
    };
    let mut bytes = flags.unwrap_or(usual.encode()).to_vec();
    for said in said {
        match said {
            Said::Option(asked) => bytes.extend(asked.option().encode()),
            Said::Header {
                option,
                length,
                data,
            } => {
                let header = OptionHeader {
                    option: (*option).into(),
                    length: *length,
                };
                bytes.extend(header.encode());
                bytes.extend(data);
            }
            Said::Bytes(any) => bytes.extend(any),
        }
    }
    bytes
}

/// A client that reaches the transmission phase.
pub struct Session {
    /// What it says, the data of writes included.
    pub bytes: Vec<u8>,
    /// What it asks for; cookies are [`FIRST_COOKIE`] and those that follow.
    pub requests: Vec<Request>,
    /// How many of them are whole.
    pub whole: usize,
}

/// No accident: what is no request may look like one.
pub const FIRST_COOKIE: u64 = 0x0bad_c00c_1e00_0000;

/// A client that selects contexts, chooses the disk and sends these requests.
pub fn session(structured: bool, contexts: Vec<Query>, sent: &[Sent]) -> Session {
    let mut asked = Vec::new();
    if structured {
        asked.push(Said::Option(Asked::StructuredReply));
    }
    if !contexts.is_empty() {
        asked.push(Said::Option(Asked::SetContexts(Name::Disk, contexts)));
    }
    asked.push(Said::Option(Asked::Go(Name::Disk, Vec::new())));
    let mut session = Session {
        bytes: handshake(None, &asked),
        requests: Vec::new(),
        whole: 0,
    };
    let Session {
        bytes,
        requests,
        whole,
    } = &mut session;
    for (sent, cookie) in sent.iter().zip(FIRST_COOKIE..) {
        let request = match sent {
            Sent::Near {
                command,
                flags,
                offset,
                length,
            } => Request {
                flags: CommandFlags((*flags).into()),
                command: Command::from(u16::from(command % 9)),
                cookie,
                offset: u64::from(*offset) % (DISK_BYTES + 4096),
                length: length % (DISK_BYTES as u32 + 4096),
            },
            Sent::Far {
                command,
                flags,
                offset,
                length,
            } => Request {
                flags: CommandFlags(*flags),
                command: Command::from(*command),
                cookie,
                offset: *offset,
                length: *length,
            },
            Sent::Bytes(any) => {
                bytes.extend(any);
                break;
            }
        };
        bytes.extend(request.encode());
        requests.push(request);
        match request.command {
            Command::Disconnect => break,
            Command::Write if request.length > WRITE_BYTES_MAX => break,
            Command::Write => bytes.resize(bytes.len() + request.length as usize, 0x5a),
            _ => {}
        }
        *whole += 1;
    }
    session
}

/// No more than this is sent along with a write; one that announces more is cut short.
const WRITE_BYTES_MAX: u32 = 2 << 20;

impl Asked {
    fn option(&self) -> ClientOption {
        let info = |name: &Name, items: &[u16]| InfoRequest {
            name: name.text(),
            items: items.to_vec(),
        };
        let contexts = |name: &Name, queries: &[Query]| ContextRequest {
            name: name.text(),
            queries: queries.iter().map(Query::text).collect(),
        };
        match self {
            Self::ExportName(name) => ClientOption::ExportName(name.text()),
            Self::Abort => ClientOption::Abort,
            Self::List => ClientOption::List,
            Self::StartTls => ClientOption::StartTls,
            Self::Info(name, items) => ClientOption::Info(info(name, items)),
            Self::Go(name, items) => ClientOption::Go(info(name, items)),
            Self::StructuredReply => ClientOption::StructuredReply,
            Self::ListContexts(name, queries) => {
                ClientOption::ListMetaContext(contexts(name, queries))
            }
            Self::SetContexts(name, queries) => {
                ClientOption::SetMetaContext(contexts(name, queries))
            }
        }
    }
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Disk => "disk".to_owned(),
            Self::Other(name) => name.clone(),
        }
    }
}

impl Query {
    fn text(&self) -> String {
        match self {
            Self::Allocation => "base:allocation".to_owned(),
            Self::Own(number) => own_context(*number),
            Self::Namespace { own: false } => "base:".to_owned(),
            Self::Namespace { own: true } => "own:".to_owned(),
            Self::Other(query) => query.clone(),
        }
    }
}

/// One export, `disk`.
pub fn exports() -> ExportMap {
    ExportMap::new().with("disk", Arc::new(Disk::new()))
}

/// Limits under which nothing waits.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.helper_idle = Duration::from_millis(1);
    limits
}

/// What the client says, in pieces of a few bytes at times, and then no more.
pub struct Mouth<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl<'a> Mouth<'a> {
    /// Says `bytes`, at most `piece` of them at once (0: as many as are asked for).
    pub fn new(bytes: &'a [u8], piece: u8) -> Self {
        let piece = match piece {
            0 => usize::MAX,
            piece => piece.into(),
        };
        Self { bytes, piece }
    }
}

impl Read for Mouth<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.piece).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(len);
        buffer[..len].copy_from_slice(now);
        self.bytes = later;
        Ok(len)
    }
}

/// What the client hears. It leaves once it has heard too much.
pub struct Ear<'a> {
    heard: &'a mut Vec<u8>,
    room: usize,
}

impl<'a> Ear<'a> {
    /// Notes what it hears in `heard`, as far as its capacity goes.
    pub fn new(heard: &'a mut Vec<u8>) -> Self {
        let room = heard.capacity();
        Self { heard, room }
    }
}

impl Write for Ear<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.heard.len() + bytes.len() > self.room {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.heard.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
