//! Manifest nodes and the root record of a disk.
//!
//! Invariants: one content has one encoding, so equal subtrees share one id; a node has at least
//! one child, because an all-zero subtree is absent altogether; a tree is as low as its disk's size
//! allows.

use super::bytes::{Malformed, Reader};
use super::geometry::{ChunkSize, DISK_BYTES_MAX, FanOut, SECTOR_BYTES, height_for, height_max};
use crate::{NodeId, RawId};

/// Bytes of a node before the bitmap.
pub const NODE_HEADER_BYTES: usize = 2;
/// Bytes of the largest node.
pub const NODE_BYTES_MAX: usize = NODE_HEADER_BYTES + 256 / 8 + 256 * 32;
/// Bytes of every root record.
pub const ROOT_BYTES: usize = 48;

/// A leaf or inner node of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// 0 for a leaf, whose children are chunks; the children of a node at level n are nodes at n - 1.
    pub level: u8,
    /// As many as the fan-out. `None` reads as zeroes; not all may be `None`.
    pub children: Vec<Option<RawId>>,
}

impl Node {
    /// A node without children yet.
    pub fn empty(level: u8, fan_out: FanOut) -> Self {
        Self {
            level,
            children: vec![None; fan_out.children()],
        }
    }

    /// Whether no child is present: such a node is never stored.
    pub fn is_empty(&self) -> bool {
        self.children.iter().all(Option::is_none)
    }

    /// The stored form. The node must have a child, and as many places as a fan-out.
    pub fn encode(&self) -> Vec<u8> {
        let places = self.children.len();
        let fan_out = FanOut::new(places as u64).expect("a node has as many places as a fan-out");
        let present = self.children.iter().flatten().count();
        assert!(present > 0, "an empty node is absent, not stored");

        let bitmap_at = NODE_HEADER_BYTES;
        let mut out = Vec::with_capacity(bitmap_at + places / 8 + present * 32);
        out.push(self.level);
        out.push(fan_out.bits() as u8);
        out.resize(bitmap_at + places / 8, 0);
        for (index, id) in self.children.iter().enumerate() {
            if let Some(id) = id {
                out[bitmap_at + index / 8] |= 1 << (index % 8);
                out.extend_from_slice(id.as_bytes());
            }
        }
        out
    }

    /// Reads a node of a repository with this fan-out. Refuses everything [`encode`](Self::encode)
    /// would not have written.
    pub fn decode(bytes: &[u8], fan_out: FanOut) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let short = || Malformed::new("a whole node", format!("{} bytes", bytes.len()));
        let level = reader.u8().ok_or_else(short)?;
        let bits = reader.u8().ok_or_else(short)?;
        if level >= height_max(fan_out) {
            return Err(Malformed::new(
                format!("a level below {}", height_max(fan_out)),
                format!("level {level}"),
            ));
        }
        if u32::from(bits) != fan_out.bits() {
            return Err(Malformed::new(
                format!("fan-out 2^{}", fan_out.bits()),
                format!("2^{bits}"),
            ));
        }
        let bitmap = reader.take(fan_out.children() / 8).ok_or_else(short)?;
        let mut node = Self::empty(level, fan_out);
        for (index, place) in node.children.iter_mut().enumerate() {
            if bitmap[index / 8] & (1 << (index % 8)) != 0 {
                *place = Some(RawId::from_bytes(reader.array().ok_or_else(short)?));
            }
        }
        if node.is_empty() {
            return Err(Malformed::new("at least one child", "none"));
        }
        if !reader.is_empty() {
            return Err(Malformed::new("the end of the node", "more bytes"));
        }
        Ok(node)
    }
}

/// The root record of a disk: its id names the disk's whole content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes per chunk.
    pub chunk_size: ChunkSize,
    /// Children per node.
    pub fan_out: FanOut,
    /// The top node; none when the whole disk is zero.
    pub top: Option<NodeId>,
}

impl Root {
    /// The number of node levels; the top node is at level `height - 1`.
    pub fn height(&self) -> u8 {
        height_for(self.size, self.chunk_size, self.fan_out)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROOT_BYTES);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.chunk_size.as_u32().to_le_bytes());
        out.extend_from_slice(&self.fan_out.as_u16().to_le_bytes());
        out.push(self.height());
        out.push(u8::from(self.top.is_some()));
        let top = self.top.map_or([0; 32], |top| *top.as_bytes());
        out.extend_from_slice(&top);
        out
    }

    /// Reads a root record. Refuses everything [`encode`](Self::encode) would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() != ROOT_BYTES {
            return Err(Malformed::new(
                format!("{ROOT_BYTES} bytes of root record"),
                format!("{} bytes", bytes.len()),
            ));
        }
        let mut reader = Reader::new(bytes);
        let short = || Malformed::new("a whole root record", "its end");
        let size = reader.u64().ok_or_else(short)?;
        let chunk_size = reader.u32().ok_or_else(short)?;
        let fan_out = reader.u16().ok_or_else(short)?;
        let height = reader.u8().ok_or_else(short)?;
        let presence = reader.u8().ok_or_else(short)?;
        let top: [u8; 32] = reader.array().ok_or_else(short)?;

        if size > DISK_BYTES_MAX || size % SECTOR_BYTES != 0 {
            return Err(Malformed::new(
                "a disk size that is a multiple of 512, at most 2^63",
                size.to_string(),
            ));
        }
        let chunk_size = ChunkSize::new(chunk_size.into()).ok_or_else(|| {
            Malformed::new(
                "a chunk size that is a power of two from 4 KiB to 4 MiB",
                chunk_size.to_string(),
            )
        })?;
        let fan_out = FanOut::new(fan_out.into())
            .ok_or_else(|| Malformed::new("fan-out 64 or 256", fan_out.to_string()))?;
        let top = match (presence, top) {
            (0, top) if top == [0; 32] => None,
            (1, top) => Some(NodeId::from_bytes(top)),
            (other, _) => {
                return Err(Malformed::new(
                    "a top node or none",
                    format!("presence {other} with an id that does not fit it"),
                ));
            }
        };
        let root = Self {
            size,
            chunk_size,
            fan_out,
            top,
        };
        if height != root.height() {
            return Err(Malformed::new(
                format!("height {}", root.height()),
                format!("height {height}"),
            ));
        }
        Ok(root)
    }
}
