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
//!
//! The map is asked for as the engine gets there, so that memory never holds more of it than one
//! reply (QEMU: 131,072 extents per context), however fragmented the disk is. Where the server
//! takes several connections the map has one of its own; else it shares the only one with the reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libnbd::{Builder, Endpoint, Handle, Polled, STATE_DIRTY, STATE_ZERO, StatusMap, StatusRange};
use virtkeep_repo::{
    ByteLen, DiskOffset, DiskSource, Extent, ExtentState, Next, ReadQueue, SourceError,
};

use crate::error::{Error, Result};
use crate::flight::Flight;
use crate::overlay;
use crate::stop::{BlockingCall, Stop, lock};

const ALLOCATION: &str = "base:allocation";

/// Reads in flight on one connection. QEMU works on 16 of each at a time.
const IN_FLIGHT_MAX: usize = 16;
/// How long connecting may take. A server that is full does not refuse, it keeps silent.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Ranges of the map looked at per call at most.
const RANGES_MAX: usize = 1024;
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
    /// The cluster size of an image whose changes are not all told: see [`overlay`].
    pub(crate) overlay_cluster: Option<ByteLen>,
}

/// An open export.
pub(crate) struct NbdSource {
    export: Export,
    size: ByteLen,
    /// Whether the server tells what is allocated.
    allocation: bool,
    incremental: bool,
    /// Whether reads use the map's connection, there being no other.
    one_connection: bool,
    stop: Arc<Stop>,
    map: Mutex<Map>,
}

/// What the server says of its ranges, asked for as it is needed.
struct Map {
    handle: Handle,
    walk: Option<StatusMap>,
    call: Arc<BlockingCall>,
}

impl NbdSource {
    /// Connects and learns what the export offers. The changes asked for may turn out to be
    /// unknown to the server: [`is_incremental`](Self::is_incremental) tells.
    pub(crate) fn open(mut export: Export, stop: Arc<Stop>) -> Result<Self> {
        let handle = connect(&export)?;
        let allocation = handle.has_context(ALLOCATION);
        let changes = export.changes.as_ref();
        let tells_changes = changes.is_some_and(|changes| handle.has_context(&changes.context));
        let one_connection = !handle.flags().multi_conn;
        if one_connection {
            export.connections = 1;
        }
        let size = ByteLen(handle.size());
        let call = stop.watch(handle.waker());
        let map = Map {
            handle,
            walk: None,
            call,
        };
        Ok(Self {
            export,
            size,
            allocation,
            incremental: allocation && tells_changes,
            one_connection,
            stop,
            map: Mutex::new(map),
        })
    }

    /// Whether `Unchanged` will be told from `Data`.
    pub(crate) fn is_incremental(&self) -> bool {
        self.incremental
    }

    /// The next extents from the server.
    fn ask(&self, map: &mut Map, from: DiskOffset) -> Result<Vec<Extent>> {
        let Map { handle, walk, call } = map;
        let walk = match walk {
            Some(walk) if walk.position() == from.0 => walk,
            _ => {
                let rest = from.0..self.size.0;
                let begun = StatusMap::new(handle, &self.contexts(), rest);
                walk.insert(begun.map_err(|source| self.failure(source, false))?)
            }
        };
        let mut extents = Vec::new();
        for _ in 0..RANGES_MAX {
            let next = call.run(|| walk.next(handle));
            match next.map_err(|source| self.failure(source, call.rang()))? {
                Some(range) => self.translate(range, &mut extents),
                None => break,
            }
        }
        let changes = self.export.changes.as_ref();
        Ok(match changes.and_then(|changes| changes.overlay_cluster) {
            Some(cluster) => overlay::distrust_before_zeroes(&extents, cluster),
            None => extents,
        })
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
        let mut flight = Flight::default();
        let mut last_answer = Instant::now();
        let mut more = true;
        loop {
            while more && flight.len() < IN_FLIGHT_MAX {
                let asked = Instant::now();
                let next = queue.next(flight.is_empty());
                // The engine's time is not the server's.
                last_answer += asked.elapsed();
                match next {
                    Next::Read(request) => {
                        if flight.is_empty() {
                            last_answer = Instant::now();
                        }
                        self.with(&mut connection, |handle| flight.submit(handle, request))?;
                    }
                    Next::Later => break,
                    Next::Done => more = false,
                }
            }
            if flight.is_empty() {
                return Ok(());
            }
            let landed = self.with(&mut connection, |handle| {
                let is_answer = handle.poll(Some(POLL))? == Polled::Ready;
                let mut landed = Vec::new();
                while let Some(completion) = handle.next_completion() {
                    landed.extend(flight.land(completion)?);
                }
                Ok((is_answer, landed))
            });
            let (is_answer, landed) = landed?;
            if is_answer {
                last_answer = Instant::now();
            }
            for request in landed {
                queue.complete(request);
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

    /// Uses the connection that reads go over: one of their own, or the only one there may be.
    fn with<T>(
        &self,
        own: &mut Option<Handle>,
        work: impl FnOnce(&mut Handle) -> std::result::Result<T, libnbd::Error>,
    ) -> Result<T> {
        let done = if self.one_connection {
            work(&mut lock(&self.map).handle)
        } else {
            match own {
                Some(handle) => work(handle),
                None => work(own.insert(connect(&self.export)?)),
            }
        };
        done.map_err(|source| self.failure(source, false))
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
        if !self.allocation {
            return Ok(vec![self.rest(from)]);
        }
        Ok(self.ask(&mut lock(&self.map), from)?)
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
