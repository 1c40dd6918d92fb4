//! The storage engine of virtkeep.
//!
//! A [`Repository`] keeps restore points of disks. A backup ([`Repository::begin_backup`]) reads a
//! [`DiskSource`] in chunks, stores the ones that are new in packs, describes each disk by a Merkle
//! tree of chunk ids, and commits a [`Point`] with one rename. A [`DiskReader`] gives back any disk
//! of any point, verified, without replaying anything.
//!
//! The crate knows nothing of NBD, libvirt or command lines.

mod adopt;
mod backup;
mod budget;
mod cache;
mod cancel;
mod check;
#[doc(hidden)]
pub mod codec;
#[doc(hidden)]
pub mod config;
mod env;
mod error;
#[doc(hidden)]
pub mod file_system;
mod forget;
#[doc(hidden)]
pub mod format;
mod hold;
mod ids;
#[doc(hidden)]
pub mod index;
#[doc(hidden)]
pub mod keys;
#[doc(hidden)]
pub mod lease;
mod limits;
mod lock;
mod manifest;
mod note;
#[doc(hidden)]
pub mod pin;
mod point;
#[cfg(test)]
mod processes;
mod progress;
#[doc(hidden)]
pub mod prune;
mod reach;
mod read;
mod repair;
mod repository;
mod reserve;
mod seen;
mod source;
#[doc(hidden)]
pub mod storage;
mod store;
mod sync;
mod units;

pub use backup::{Backup, PointDraft, StoredDisk};
pub use cancel::Cancel;
pub use check::{Affected, CheckOptions, CheckProgress, CheckReport, POINT_RECORD, ReadData};
pub use codec::Codec;
pub use env::{Clock, Env, Random};
pub use error::{Error, Result};
pub use forget::Forgotten;
pub use hold::Hold;
pub use ids::{
    BlobId, ChunkId, DomainUuid, LeaseId, NodeId, NoteId, PackId, PackKind, ParseIdError, PointId,
    RawId, RecordKind, RepoId, RootId,
};
pub use lock::{DomainLock, MaintenanceLock};
pub use note::{Note, Remark};
pub use pin::{DamagedPin, Pin, PinKind, Pins};
pub use point::{
    CaptureMode, Consistency, Disk, DiskStats, Domain, FileRole, Point, SourceKind, StoredFile,
};
pub use progress::{NoProgress, Progress};
pub use prune::{PruneOptions, PruneProgress, PruneReport, PruneStage};
pub use read::{Change, DiskReader, DiskSink, Loss};
pub use repair::{RepairOptions, RepairReport};
pub use repository::{
    InitOptions, OpenOptions, Parts, PointWatch, RebuildReport, Repository, Stats,
};
pub use source::{DiskSource, Extent, ExtentState, Next, ReadQueue, ReadRequest, SourceError};
pub use units::{ByteLen, DiskOffset, UnixMillis};
