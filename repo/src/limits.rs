//! Named limits of the engine. What is not bounded here is bounded by the format.

/// Disk bytes being read, hashed and compressed at once by one backup, over all its disks.
pub(crate) const BACKUP_BYTES_IN_FLIGHT_MAX: u64 = 48 << 20;

/// One read from a source. QEMU serves up to 32 MiB; a larger read than this gains nothing, a
/// smaller one has fewer ids to look up at once.
pub(crate) const SOURCE_READ_BYTES_MAX: u64 = 1 << 20;

/// Leaves of one disk that are being worked on or wait for an earlier one.
pub(crate) const LEAVES_OPEN_MAX: usize = 1024;

/// Decoded bytes in flight while a disk is restored.
pub(crate) const RESTORE_BYTES_IN_FLIGHT_MAX: u64 = 48 << 20;

/// One read from a pack while restoring; neighbouring records are fetched together up to here.
pub(crate) const PACK_READ_BYTES_MAX: u32 = 1 << 20;

/// Unwanted bytes between two records that are read along rather than skipped.
pub(crate) const PACK_READ_GAP_MAX: u32 = 32 << 10;

/// Manifest nodes kept decoded per open repository.
pub(crate) const NODES_CACHED_MAX: usize = 4096;

/// Length of the pieces that files kept with a point are cut into.
pub(crate) const FILE_PIECE_BYTES: usize = 1 << 20;

/// The largest file kept with a point (firmware, kernel, initial RAM disk).
pub(crate) const FILE_BYTES_MAX: u64 = 2 << 30;

/// Unpacked chunks kept for reads of parts of them, per open repository.
pub(crate) const CHUNK_CACHE_BYTES_MAX: u64 = 64 << 20;

/// Chunks that are remembered to have been asked for, per open repository: 8 bytes each.
pub(crate) const TOUCHED_CHUNKS_MAX: usize = 8192;

/// Chunks whose places are kept, per open repository: 64 bytes each. At 64 KiB they cover 16 GiB.
pub(crate) const PLACES_CACHED_MAX: usize = 256 << 10;

/// How far it is read ahead for a client that reads in order, one request at a time.
pub(crate) const READ_AHEAD_BYTES: u64 = 4 << 20;

/// Chunks that wait to be unpacked ahead, per open repository, whoever reads: the work that clients can
/// cause without waiting for it.
pub(crate) const CHUNKS_AHEAD_MAX: usize = 256;

/// Extents in one answer.
pub(crate) const EXTENTS_PER_CALL_MAX: usize = 4096;

/// Chunks looked at for one answer about extents, so that asking again and again for the next piece
/// of a full disk costs the disk once, not its square.
pub(crate) const EXTENTS_CHUNKS_MAX: usize = COPY_WINDOW_CHUNKS_MAX;

/// Chunks whose places are looked up and sorted at once while a disk is restored: the larger, the
/// fewer seeks in a scattered point.
pub(crate) const COPY_WINDOW_CHUNKS_MAX: usize = 16 << 10;

/// One write to the target of a restore.
pub(crate) const SINK_WRITE_BYTES_MAX: u64 = 1 << 20;
