//! Names of things: content ids, and the random names of packs, points and repositories.
//!
//! Content ids are BLAKE3 hashes keyed per repository and per kind, so a guest cannot craft bytes
//! that pass for a manifest node. The newtypes keep a chunk from being looked up as a node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The text of a name is not of the right form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

impl ParseIdError {
    fn new(what: &'static str, text: &str) -> Self {
        Self {
            what,
            text: text.chars().take(100).collect(),
        }
    }
}

macro_rules! hex_name {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The name with these bytes.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The bytes of the name.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                data_encoding::HEXLOWER
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError::new($what, text))
            }
        }

        text_serde!($name);
    };
}

macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }
    };
}

hex_name!(
    /// Keyed hash of a chunk, zero-padded to the full chunk size.
    ChunkId, 32, "chunk id (64 hexadecimal digits)"
);
hex_name!(
    /// Keyed hash of an encoded manifest node.
    NodeId, 32, "node id (64 hexadecimal digits)"
);
hex_name!(
    /// Keyed hash of a disk's root record: one disk content, one root id.
    RootId, 32, "root id (64 hexadecimal digits)"
);
hex_name!(
    /// Keyed hash of a blob: a piece of a file kept with a point.
    BlobId, 32, "blob id (64 hexadecimal digits)"
);
hex_name!(
    /// The random name of a pack, never used twice.
    PackId, 16, "pack id (32 hexadecimal digits)"
);
hex_name!(
    /// The random name of a lease, never used twice.
    LeaseId, 16, "lease id (32 hexadecimal digits)"
);
hex_name!(
    /// The random name of a remark about a point, never used twice.
    NoteId, 16, "note id (32 hexadecimal digits)"
);
hex_name!(
    /// The random name of a repository.
    RepoId, 16, "repository id (32 hexadecimal digits)"
);

/// The uuid of a domain, written in libvirt's form with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainUuid([u8; 16]);

impl DomainUuid {
    /// The uuid with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes of the uuid.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DomainUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = data_encoding::HEXLOWER.encode(&self.0);
        write!(
            f,
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }
}

impl fmt::Debug for DomainUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainUuid({self})")
    }
}

impl FromStr for DomainUuid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.replace('-', "").as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| ParseIdError::new("uuid", text))
    }
}

text_serde!(DomainUuid);

/// The name of a restore point: `p` and 16 characters of the set `0-9a-v`.
///
/// Random, so that the first few characters are enough to tell points apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId([u8; 10]);

impl PointId {
    /// The name made of these random bytes.
    pub const fn from_bytes(bytes: [u8; 10]) -> Self {
        Self(bytes)
    }

    /// The bytes of the name.
    pub const fn as_bytes(&self) -> &[u8; 10] {
        &self.0
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = data_encoding::BASE32HEX_NOPAD
            .encode(&self.0)
            .to_lowercase();
        f.pad(&format!("p{text}"))
    }
}

impl fmt::Debug for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PointId({self})")
    }
}

impl FromStr for PointId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bytes = text
            .strip_prefix('p')
            .filter(|rest| !rest.bytes().any(|b| b.is_ascii_uppercase()))
            .and_then(|rest| {
                data_encoding::BASE32HEX_NOPAD
                    .decode(rest.to_uppercase().as_bytes())
                    .ok()
            })
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| ParseIdError::new("point id", text))
    }
}

text_serde!(PointId);

/// The kinds of records a pack can hold, as numbered on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// A piece of a disk.
    Chunk = 1,
    /// A leaf or inner node of a manifest.
    Node = 2,
    /// The root record of a disk.
    Root = 3,
    /// A piece of a file kept with a point.
    Blob = 4,
}

/// The kinds of packs, as numbered on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum PackKind {
    /// Chunks.
    Data = 1,
    /// Manifest nodes, root records and blobs.
    Meta = 2,
}

/// An id of any kind, as packs and the index see it. Two kinds never share an id: their keys differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawId(pub(crate) [u8; 32]);

impl RawId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RawId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for RawId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawId({self})")
    }
}

/// A typed content id: knows its kind, and what it is to packs and the index.
pub(crate) trait ContentId: Copy + Eq + std::hash::Hash + fmt::Display {
    /// The kind of record the id names.
    const KIND: RecordKind;
    /// The id of these bytes.
    fn from_raw(raw: RawId) -> Self;
    /// The id as packs and the index see it.
    fn raw(self) -> RawId;
}

macro_rules! content_id {
    ($($name:ident => $kind:ident),*) => {$(
        impl ContentId for $name {
            const KIND: RecordKind = RecordKind::$kind;
            fn from_raw(raw: RawId) -> Self {
                Self(raw.0)
            }
            fn raw(self) -> RawId {
                RawId(self.0)
            }
        }
    )*};
}

content_id!(ChunkId => Chunk, NodeId => Node, RootId => Root, BlobId => Blob);
