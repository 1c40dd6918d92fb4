//! The keys of one repository, and the ids and checksums made with them.
//!
//! Every key is derived from the id key in `config.toml` with a context string of its own, one per
//! kind of record: a guest can neither craft bytes that pass for a node nor two chunks that share
//! an id. Invariant: an id of a chunk is always that of the chunk padded with zeroes to the full
//! chunk size, so [`Keys`] knows that size and nobody passes a wrong one.

use crate::format::geometry::ChunkSize;
use crate::ids::ContentId;
use crate::{BlobId, ChunkId, NodeId, RawId, RecordKind, RootId};

/// Context strings of the key derivation. Part of the format: never change one.
pub mod context {
    /// For ids of chunks.
    pub const CHUNK: &str = "virtkeep repository v1: id of a chunk";
    /// For ids of manifest nodes.
    pub const NODE: &str = "virtkeep repository v1: id of a manifest node";
    /// For ids of root records.
    pub const ROOT: &str = "virtkeep repository v1: id of a disk root";
    /// For ids of blobs.
    pub const BLOB: &str = "virtkeep repository v1: id of a blob";
    /// For checksums of pack parts and point records.
    pub const CHECKSUM: &str = "virtkeep repository v1: checksum of an object";
}

/// The secret of a repository, as `config.toml` holds it: whoever lacks it cannot make ids.
#[derive(Clone, PartialEq, Eq)]
pub struct IdKey([u8; 32]);

impl IdKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for IdKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdKey(..)")
    }
}

/// All keys of a repository.
#[derive(Clone)]
pub struct Keys {
    chunk_size: ChunkSize,
    chunk: [u8; 32],
    node: [u8; 32],
    root: [u8; 32],
    blob: [u8; 32],
    checksum: [u8; 32],
}

impl Keys {
    /// Derives the keys of a repository with this id key and chunk size.
    pub fn new(id_key: &IdKey, chunk_size: ChunkSize) -> Self {
        let derive = |context| blake3::derive_key(context, id_key.as_bytes());
        Self {
            chunk_size,
            chunk: derive(context::CHUNK),
            node: derive(context::NODE),
            root: derive(context::ROOT),
            blob: derive(context::BLOB),
            checksum: derive(context::CHECKSUM),
        }
    }

    /// The size chunks are padded to before they are hashed.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// The id of a chunk. `raw` may lack zeroes at its end; it is not longer than a chunk.
    pub fn chunk_id(&self, raw: &[u8]) -> ChunkId {
        let chunk_size = self.chunk_size.bytes();
        assert!(raw.len() <= chunk_size, "a chunk is at most one chunk long");
        if raw.len() == chunk_size {
            return ChunkId::from_raw(hash(&self.chunk, raw));
        }
        const ZEROES: [u8; 16 << 10] = [0; 16 << 10];
        let mut hasher = blake3::Hasher::new_keyed(&self.chunk);
        hasher.update(raw);
        let mut missing = chunk_size - raw.len();
        while missing > 0 {
            let step = missing.min(ZEROES.len());
            hasher.update(&ZEROES[..step]);
            missing -= step;
        }
        ChunkId::from_bytes(*hasher.finalize().as_bytes())
    }

    /// The id of an encoded manifest node.
    pub fn node_id(&self, encoded: &[u8]) -> NodeId {
        NodeId::from_raw(hash(&self.node, encoded))
    }

    /// The id of an encoded root record.
    pub fn root_id(&self, encoded: &[u8]) -> RootId {
        RootId::from_raw(hash(&self.root, encoded))
    }

    /// The id of a blob.
    pub fn blob_id(&self, raw: &[u8]) -> BlobId {
        BlobId::from_raw(hash(&self.blob, raw))
    }

    /// The id of a record of any kind.
    pub fn id_of(&self, kind: RecordKind, raw: &[u8]) -> RawId {
        match kind {
            RecordKind::Chunk => self.chunk_id(raw).raw(),
            RecordKind::Node => self.node_id(raw).raw(),
            RecordKind::Root => self.root_id(raw).raw(),
            RecordKind::Blob => self.blob_id(raw).raw(),
        }
    }

    /// Begins a checksum over parts of an object.
    pub fn checksum(&self) -> Checksum {
        Checksum(blake3::Hasher::new_keyed(&self.checksum))
    }
}

fn hash(key: &[u8; 32], bytes: &[u8]) -> RawId {
    RawId::from_bytes(*blake3::keyed_hash(key, bytes).as_bytes())
}

/// A checksum in the making.
#[derive(Clone)]
pub struct Checksum(blake3::Hasher);

impl Checksum {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// The checksum of everything added.
    pub fn full(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }

    /// Its first 8 bytes, for headers.
    pub fn short(&self) -> [u8; 8] {
        let mut short = [0; 8];
        short.copy_from_slice(&self.full()[..8]);
        short
    }
}
