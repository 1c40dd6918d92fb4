//! Everything needed to find, read and verify a record: storage, index, keys.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::cache::Cache;
use crate::format::geometry::FanOut;
use crate::format::node::{Node, Root};
use crate::format::record;
use crate::ids::ContentId;
use crate::index::{Index, Location};
use crate::keys::Keys;
use crate::manifest::NodeSource;
use crate::read::{Pace, PlacedLeaf, Slot, Touched};
use crate::storage::{ObjectName, Storage};
use crate::{
    ChunkId, Codec, Env, Error, NodeId, PackId, PointId, RawId, RecordKind, Result, RootId,
};

/// How often a read is tried again after the pack it aimed at has gone: prune may have moved the
/// record, and then the index knows where.
const MOVED_RETRIES: usize = 3;

/// The parts of an open repository that reading and writing share.
pub(crate) struct Store {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) index: Index,
    pub(crate) keys: Keys,
    pub(crate) fan_out: FanOut,
    pub(crate) codec: Codec,
    /// A pack with this many bytes is finished.
    pub(crate) pack_bytes_target: u64,
    pub(crate) env: Env,
    pub(crate) nodes: Cache<NodeId, Node>,
    pub(crate) places: Cache<NodeId, PlacedLeaf>,
    pub(crate) chunks: Cache<ChunkId, Slot>,
    pub(crate) touched: Touched,
    /// How many chunks are being unpacked ahead.
    pub(crate) ahead: Arc<AtomicUsize>,
    pub(crate) pace: Pace,
}

impl Store {
    /// The codec for records of a kind. Ids do not compress: nodes are stored as they are.
    pub(crate) fn codec_for(&self, kind: RecordKind) -> Codec {
        match kind {
            RecordKind::Node | RecordKind::Root => Codec::None,
            RecordKind::Chunk | RecordKind::Blob => self.codec,
        }
    }

    /// Where a chunk is kept once it is unpacked.
    pub(crate) fn slot(&self, id: ChunkId) -> Arc<Slot> {
        let slot = self.chunks.get_or(id, || Ok(Slot::default()));
        slot.unwrap_or_else(|never: std::convert::Infallible| match never {})
    }

    /// The raw bytes of a record, verified.
    pub(crate) fn fetch<I: ContentId>(&self, id: I) -> Result<Vec<u8>> {
        let mut retries = 0;
        loop {
            let location = self.locate(I::KIND, &[id.raw()])?[0];
            let mut sealed = vec![0; location.len as usize];
            let name = ObjectName::Pack(location.pack);
            match self
                .storage
                .read_at(&name, location.offset.into(), &mut sealed)
            {
                Err(error) if retries < MOVED_RETRIES && self.is_gone(location.pack, &error) => {
                    retries += 1;
                }
                read => {
                    read?;
                    return record::open(&self.keys, I::KIND, id.raw(), &sealed)
                        .map_err(|damage| damage.at(describe(I::KIND, id.raw(), location)));
                }
            }
        }
    }

    /// Where each record is; an id that is nowhere is an error.
    pub(crate) fn locate(&self, kind: RecordKind, ids: &[RawId]) -> Result<Vec<Location>> {
        let found = self.index.locate(ids)?;
        ids.iter()
            .zip(found)
            .map(|(id, at)| at.ok_or_else(|| Error::missing(kind, *id)))
            .collect()
    }

    /// Unpacks and verifies the stored bytes of a record into `out`, zero-filled behind its end.
    pub(crate) fn open_into(
        &self,
        kind: RecordKind,
        id: RawId,
        location: Location,
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        record::open_into(&self.keys, kind, id, sealed, out)
            .map_err(|damage| damage.at(describe(kind, id, location)))
    }

    /// Gives a point its row in the index, unless it has been forgotten by now: a row without a record
    /// would look like a record that was lost. The record is durable.
    pub(crate) fn cache_point(&self, id: PointId, record: &[u8]) -> Result<()> {
        self.index.write(|edit| {
            if self.storage.len(&ObjectName::Point(id))?.is_some() {
                edit.put_point(id, record)?;
            }
            Ok(())
        })
    }

    /// Reads the record with this id at this place, of whatever kind, and verifies it.
    pub(crate) fn verify_at(&self, id: RawId, at: Location) -> Result<()> {
        let mut sealed = vec![0; at.len as usize];
        let name = ObjectName::Pack(at.pack);
        self.storage.read_at(&name, at.offset.into(), &mut sealed)?;
        let place = || format!("record {id} in pack {} at offset {}", at.pack, at.offset);
        let (header, _) =
            record::open_unknown(&sealed, &self.keys).map_err(|damage| damage.at(place()))?;
        if header.id == id {
            return Ok(());
        }
        Err(Error::Corrupt {
            what: place(),
            expected: id.to_string(),
            found: header.id.to_string(),
        })
    }

    /// Whether a read failed because the pack is no longer there.
    pub(crate) fn is_gone(&self, pack: PackId, error: &Error) -> bool {
        matches!(error, Error::Missing { .. })
            && matches!(self.storage.len(&ObjectName::Pack(pack)), Ok(None))
    }
}

/// A record and its place, for messages.
fn describe(kind: RecordKind, id: RawId, location: Location) -> String {
    let Location { pack, offset, .. } = location;
    format!("{} {id} in pack {pack} at offset {offset}", kind.name())
}

impl NodeSource for Store {
    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get_or(id, || {
            let encoded = self.fetch(id)?;
            Node::decode(&encoded, self.fan_out)
                .map_err(|damage| damage.at(format!("manifest node {id}")))
        })
    }

    fn root(&self, id: RootId) -> Result<Root> {
        let encoded = self.fetch(id)?;
        Root::decode(&encoded).map_err(|damage| damage.at(format!("disk root {id}")))
    }
}
