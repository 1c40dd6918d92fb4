//! The tables of `index.redb` and how their rows are laid out.
//!
//! Not part of the repository's format: the index is a cache, and another schema version is met by
//! building it anew.

use redb::TableDefinition;

use crate::{LeaseId, PackId, PackKind};

/// Version of what is written here; another one means: rebuild.
pub(super) const SCHEMA: u64 = 2;

/// Where each id lives: pack number, offset in the pack, stored length with the record's header.
pub(super) const IDS: TableDefinition<[u8; 32], (u32, u32, u32)> = TableDefinition::new("ids");

/// What each pack is, by its number.
pub(super) const PACKS: TableDefinition<u32, &[u8]> = TableDefinition::new("packs");

/// The number of each pack.
pub(super) const PACK_NUMBERS: TableDefinition<[u8; 16], u32> =
    TableDefinition::new("pack-numbers");

/// Copies of the point records.
pub(super) const POINTS: TableDefinition<[u8; 10], &[u8]> = TableDefinition::new("points");

/// Ids that were found damaged and must be stored anew.
pub(super) const WANTED: TableDefinition<[u8; 32], ()> = TableDefinition::new("wanted");

/// Leases that ended without a point, and when that was noticed: what they stored is kept for the
/// next try, for a while.
pub(super) const UNFINISHED: TableDefinition<[u8; 16], u64> = TableDefinition::new("unfinished");

/// Single numbers, by the names below.
pub(super) const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");

/// The schema version.
pub(super) const N_SCHEMA: &str = "schema";
/// Rises each time packs are condemned.
pub(super) const N_EPOCH: &str = "epoch";
/// The number the next new pack gets.
pub(super) const N_NEXT_PACK: &str = "next-pack";
/// The `index_owner` of `config.toml` this index was built under.
pub(super) const N_OWNER: &str = "owner";
/// The two halves of the id of the pack up to which the last check of a share of the packs has read.
pub(super) const N_CHECKED: [&str; 2] = ["checked-high", "checked-low"];
/// The two halves of the repository's id.
pub(super) const N_REPO: [&str; 2] = ["repo-high", "repo-low"];

/// Whether a pack may still be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PackState {
    /// Its entries are being added; a crash left some out. They count, and adding the pack again
    /// completes it.
    Entering,
    /// In use.
    Live,
    /// About to be deleted, since this epoch: still read from, but no longer relied on for
    /// deduplication.
    Condemned(u64),
    /// Decided: nothing needs it, it is being taken away. What is still found in it counts as gone.
    Dead,
}

impl PackState {
    /// Whether a new point may refer to what lies in such a pack.
    pub fn is_relied_on(self) -> bool {
        matches!(self, Self::Entering | Self::Live)
    }
}

/// The number by which the index knows a pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PackNumber(pub(super) u32);

/// What the index knows of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackRow {
    /// Its name.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The lease of its writer.
    pub lease: LeaseId,
    /// Size of the file.
    pub bytes: u64,
    /// Number of records in it.
    pub records: u32,
    /// Whether it may be relied on.
    pub state: PackState,
}

const ROW_BYTES: usize = 16 + 16 + 8 + 4 + 1 + 1 + 8;

impl PackRow {
    /// Id, lease, bytes, records, kind, state, epoch; little-endian.
    pub(super) fn encode(&self) -> [u8; ROW_BYTES] {
        let (state, epoch) = match self.state {
            PackState::Entering => (0, 0),
            PackState::Live => (1, 0),
            PackState::Condemned(epoch) => (2, epoch),
            PackState::Dead => (3, 0),
        };
        let mut row = [0; ROW_BYTES];
        row[..16].copy_from_slice(self.id.as_bytes());
        row[16..32].copy_from_slice(self.lease.as_bytes());
        row[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        row[40..44].copy_from_slice(&self.records.to_le_bytes());
        row[44] = self.kind as u8;
        row[45] = state;
        row[46..].copy_from_slice(&epoch.to_le_bytes());
        row
    }

    /// The row these bytes stand for; none when they are no row.
    pub(super) fn decode(row: &[u8]) -> Option<Self> {
        let row: &[u8; ROW_BYTES] = row.try_into().ok()?;
        let epoch = u64::from_le_bytes(row[46..].try_into().ok()?);
        Some(Self {
            id: PackId::from_bytes(row[..16].try_into().ok()?),
            lease: LeaseId::from_bytes(row[16..32].try_into().ok()?),
            bytes: u64::from_le_bytes(row[32..40].try_into().ok()?),
            records: u32::from_le_bytes(row[40..44].try_into().ok()?),
            kind: match row[44] {
                1 => PackKind::Data,
                2 => PackKind::Meta,
                _ => return None,
            },
            state: match row[45] {
                0 => PackState::Entering,
                1 => PackState::Live,
                2 => PackState::Condemned(epoch),
                3 => PackState::Dead,
                _ => return None,
            },
        })
    }
}
