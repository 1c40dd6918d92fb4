//! An NBD export as a [`DiskSource`].
//!
//! What the export says of its ranges becomes what the engine knows of them:
//!
//! | `base:allocation` | dirty bitmap | state |
//! |---|---|---|
//! | zero | any | `Zero`: also where clean, for the disk may have shrunk and grown again |
//! | else | dirty, or beyond the parent's end | `Data` |
//! | else | clean | `Unchanged` |
//!
//! Without both contexts nothing is ever `Unchanged`; without `base:allocation` all is `Data`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libnbd::{
    Builder, Endpoint, Handle, Polled, Reply, STATE_DIRTY, STATE_ZERO, StatusMap, StatusRange,
    Token,
};
use virtkeep_repo::{
    ByteLen, DiskOffset, DiskSource, Extent, ExtentState, Next, ReadQueue, ReadRequest, SourceError,
};

use crate::error::{Error, Result};
use crate::stop::{BlockingCall, Stop, lock};

const ALLOCATION: &str = "base:allocation";

/// Reads in flight on one connection. QEMU works on 16 of each at a time.
const IN_FLIGHT_MAX: usize = 16;
/// How long connecting may take. A server that is full does not refuse, it keeps silent.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Extents handed out per call at most.
const EXTENTS_MAX: usize = 1024;
/// How often a reader that waits for answers looks at the flags.
const POLL: Duration = Duration::from_millis(100);

/// Which export, and how it is to be read.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// The disk as messages call it.
    pub(crate) disk: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) name: String,
    /// The metadata context that says what changed, and the size of the disk it changed from.
    pub(crate) changes: Option<Changes>,
    /// Connections to read with, where the server allows several.
    pub(crate) connections: usize,
}

/// What an incremental read relies on.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    /// `qemu:dirty-bitmap:NAME`.
    pub(crate) context: String,
    pub(crate) parent_size: ByteLen,
}

/// An open export.
pub(crate) struct NbdSource {
    export: Export,
    size: ByteLen,
    incremental: bool,
    stop: Arc<Stop>,
    map: Mutex<Map>,
    /// The only connection there may be, where the server does not take several.
    single: Mutex<Option<Handle>>,
}

/// Where extents come from.
enum Map {
    /// Nothing is known: all is data.
    Unknown,
    /// Asked for as they are needed, on a connection of their own.
    Asked {
        handle: Box<Handle>,
        map: Option<StatusMap>,
        call: Arc<BlockingCall>,
    },
    /// Asked for beforehand.
    Known(Vec<Extent>),
}

impl NbdSource {
    /// Connects and learns what the export offers. The changes asked for may turn out to be
    /// unknown to the server: [`is_incremental`](Self::is_incremental) tells.
    pub(crate) fn open(export: Export, stop: Arc<Stop>) -> Result<Self> {
        let handle = connect(&export)?;
        let size = handle.size();
        let allocation = handle.has_context(ALLOCATION);
        let incremental = allocation
            && export
                .changes
                .as_ref()
                .is_some_and(|changes| handle.has_context(&changes.context));
        let multi = handle.flags().multi_conn;
        let mut source = Self {
            export,
            size: ByteLen(size),
            incremental,
            map: Mutex::new(Map::Unknown),
            single: Mutex::new(None),
            stop,
        };
        let call = source.stop.watch(handle.waker());
        let mut map = Map::Asked {
            handle: Box::new(handle),
            map: None,
            call,
        };
        if !multi {
            source.export.connections = 1;
            let mut known = Vec::new();
            let mut from = DiskOffset::ZERO;
            while allocation && from.0 < size {
                let part = source.ask(&mut map, from)?;
                from = part.last().map_or(from, Extent::end);
                known.extend(part);
            }
            if let Map::Asked { handle, .. } = map {
                source.single = Mutex::new(Some(*handle));
            }
            map = if allocation {
                Map::Known(known)
            } else {
                Map::Unknown
            };
        } else if !allocation {
            map = Map::Unknown;
        }
        source.map = Mutex::new(map);
        Ok(source)
    }

    /// Whether `Unchanged` will be told from `Data`.
    pub(crate) fn is_incremental(&self) -> bool {
        self.incremental
    }

    /// The next extents from the server.
    fn ask(&self, asked: &mut Map, from: DiskOffset) -> Result<Vec<Extent>> {
        let Map::Asked { handle, map, call } = asked else {
            return Ok(vec![self.rest(from)]);
        };
        let result = call.run(|| {
            let map = match map {
                Some(map) if map.position() == from.0 => map,
                _ => map.insert(StatusMap::new(
                    handle,
                    &self.contexts(),
                    from.0..self.size.0,
                )?),
            };
            let mut extents = Vec::new();
            while extents.len() < EXTENTS_MAX {
                let Some(range) = map.next(handle)? else {
                    break;
                };
                self.translate(range, &mut extents);
            }
            Ok(extents)
        });
        result.map_err(|source| self.failure(source, call.rang()))
    }

    fn contexts(&self) -> Vec<&str> {
        let changes = self.export.changes.as_ref().filter(|_| self.incremental);
        std::iter::once(ALLOCATION)
            .chain(changes.map(|changes| &*changes.context))
            .collect()
    }

    /// Adds the extents of one range of equal flags.
    fn translate(&self, range: StatusRange, extents: &mut Vec<Extent>) {
        let parent_end = match &self.export.changes {
            Some(changes) if self.incremental => changes.parent_size.0,
            _ => 0,
        };
        let zero = range
            .flags
            .first()
            .is_some_and(|flags| flags & STATE_ZERO != 0);
        let dirty = range
            .flags
            .get(1)
            .is_none_or(|flags| flags & STATE_DIRTY != 0);
        let known_end = parent_end.clamp(range.range.start, range.range.end);
        for (part, inside) in [
            (range.range.start..known_end, true),
            (known_end..range.range.end, false),
        ] {
            if part.is_empty() {
                continue;
            }
            let state = match (zero, dirty || !inside) {
                (true, _) => ExtentState::Zero,
                (false, true) => ExtentState::Data,
                (false, false) => ExtentState::Unchanged,
            };
            let start = DiskOffset(part.start);
            let len = ByteLen(part.end - part.start);
            match extents.last_mut() {
                Some(last) if last.state == state => last.len = ByteLen(last.len.0 + len.0),
                _ => extents.push(Extent { start, len, state }),
            }
        }
    }

    fn rest(&self, from: DiskOffset) -> Extent {
        Extent {
            start: from,
            len: DiskOffset(self.size.0).since(from),
            state: ExtentState::Data,
        }
    }

    fn failure(&self, source: libnbd::Error, timed_out: bool) -> Error {
        if self.stop.is_stopping() {
            return Error::Cancelled;
        }
        let disk = self.export.disk.clone();
        if timed_out {
            let limit = self.stop.silence_max();
            return Error::Stalled { disk, limit };
        }
        Error::Nbd { disk, source }
    }

    /// One connection's share of the reading.
    fn read_share(&self, queue: &dyn ReadQueue, failed: &AtomicBool) -> Result<()> {
        let mut connection: Option<Handle> = None;
        let mut flying: HashMap<Token, ReadRequest> = HashMap::new();
        let mut last_answer = Instant::now();
        let mut more = true;
        loop {
            while more && flying.len() < IN_FLIGHT_MAX {
                let idle = flying.is_empty();
                match queue.next(idle) {
                    Next::Read(mut request) => {
                        let handle = match &mut connection {
                            Some(handle) => handle,
                            None => connection.insert(self.connection()?),
                        };
                        if idle {
                            last_answer = Instant::now();
                        }
                        let buffer = std::mem::take(&mut request.buffer);
                        let token = handle
                            .submit_read(request.offset.0, buffer)
                            .map_err(|source| self.failure(source, false))?;
                        flying.insert(token, request);
                    }
                    Next::Later => break,
                    Next::Done => more = false,
                }
            }
            let Some(handle) = connection.as_mut().filter(|_| !flying.is_empty()) else {
                return Ok(());
            };
            let polled = handle
                .poll(Some(POLL))
                .map_err(|source| self.failure(source, false))?;
            if polled == Polled::Ready {
                last_answer = Instant::now();
            }
            while let Some(completion) = handle.next_completion() {
                let reply = completion
                    .result
                    .map_err(|source| self.failure(source, false))?;
                if let (Some(mut request), Reply::Read(read)) =
                    (flying.remove(&completion.token), reply)
                {
                    request.buffer = read.bytes;
                    queue.complete(request);
                }
            }
            if self.stop.is_stopping() || failed.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if last_answer.elapsed() > self.stop.silence_max() {
                return Err(Error::Stalled {
                    disk: self.export.disk.clone(),
                    limit: self.stop.silence_max(),
                });
            }
        }
    }

    fn connection(&self) -> Result<Handle> {
        match lock(&self.single).take() {
            Some(handle) => Ok(handle),
            None => connect(&self.export),
        }
    }
}

fn connect(export: &Export) -> Result<Handle> {
    let mut builder = Builder::new()
        .export(&*export.name)
        .connect_timeout(Some(CONNECT_LIMIT))
        .meta_context(ALLOCATION);
    if let Some(changes) = &export.changes {
        builder = builder.meta_context(&*changes.context);
    }
    builder
        .connect(&export.endpoint)
        .map_err(|source| Error::Nbd {
            disk: export.disk.clone(),
            source,
        })
}

impl DiskSource for NbdSource {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn extents(&self, from: DiskOffset) -> std::result::Result<Vec<Extent>, SourceError> {
        let mut map = lock(&self.map);
        match &mut *map {
            Map::Unknown => Ok(vec![self.rest(from)]),
            Map::Known(known) => Ok(cut_at(known, from)),
            asked => Ok(self.ask(asked, from)?),
        }
    }

    fn read(&self, queue: &dyn ReadQueue) -> std::result::Result<(), SourceError> {
        let failed = AtomicBool::new(false);
        let share = || {
            self.read_share(queue, &failed)
                .inspect_err(|_| failed.store(true, Ordering::Relaxed))
        };
        let mut errors: Vec<Error> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..self.export.connections)
                .map(|_| scope.spawn(share))
                .collect();
            let mine = share().err();
            let theirs = others.into_iter().filter_map(|thread| match thread.join() {
                Ok(result) => result.err(),
                Err(panic) => std::panic::resume_unwind(panic),
            });
            mine.into_iter().chain(theirs).collect()
        });
        // The first real error tells more than "stopped because another one did".
        errors.sort_by_key(Error::is_cancelled);
        errors
            .into_iter()
            .next()
            .map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The extents from `from` on, the first one cut to start there.
fn cut_at(extents: &[Extent], from: DiskOffset) -> Vec<Extent> {
    let first = extents.partition_point(|extent| extent.end() <= from);
    let mut part: Vec<Extent> = extents[first..].iter().take(EXTENTS_MAX).copied().collect();
    if let Some(extent) = part.first_mut() {
        extent.len = extent.end().since(from);
        extent.start = from;
    }
    part
}
