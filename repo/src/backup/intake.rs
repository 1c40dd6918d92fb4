//! Taking in records: what is new goes into packs, packs into the index.
//!
//! The order that nothing may break: a pack is durable before the index names it, and an id counts
//! as known only once this run has it in hand or the index names it. The first failure poisons the
//! intake; nothing is written after it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use crossbeam_channel::{Receiver, Sender};

use crate::PackKind;
use crate::format::geometry::CHUNK_BYTES_MIN;
use crate::format::node::{Node, Root};
use crate::format::pack::{FinishedPack, PackWriter};
use crate::format::record;
use crate::ids::ContentId;
use crate::manifest::{NodeSink, Stored};
use crate::store::Store;
use crate::sync::lock;
use crate::{Error, LeaseId, NodeId, PackId, RawId, RecordKind, Result, RootId};

/// Packs waiting to become durable while the next ones are written.
const PACKS_FINISHING_MAX: usize = 1;

/// Takes in the records of one backup, from all its threads.
pub(super) struct Intake {
    shared: Arc<Shared>,
    data: Mutex<Option<PackWriter>>,
    meta: Mutex<Option<PackWriter>>,
    distrust_nodes: AtomicBool,
    finishing: Option<Sender<PackWriter>>,
    finisher: Option<thread::JoinHandle<()>>,
}

/// What the finishing thread works with, too.
struct Shared {
    store: Arc<Store>,
    lease: LeaseId,
    /// Ids stored by this run whose packs are not indexed yet.
    in_hand: Mutex<HashSet<RawId>>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Intake {
    /// An intake whose packs carry `lease`.
    pub(super) fn start(store: Arc<Store>, lease: LeaseId) -> Self {
        let shared = Arc::new(Shared {
            store,
            lease,
            in_hand: Mutex::default(),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
        });
        let (finishing, packs) = crossbeam_channel::bounded(PACKS_FINISHING_MAX);
        let finisher = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.finish_packs(&packs)
        });
        Self {
            shared,
            data: Mutex::default(),
            meta: Mutex::default(),
            distrust_nodes: AtomicBool::new(false),
            finishing: Some(finishing),
            finisher: Some(finisher),
        }
    }

    /// Stores the records that the repository does not hold; one answer per item.
    pub(super) fn put(&self, kind: RecordKind, items: &[(RawId, &[u8])]) -> Result<Vec<Stored>> {
        self.shared.refuse_after_failure()?;
        let mut answers = vec![Stored::default(); items.len()];
        for index in self.unknown(items)? {
            let (id, raw) = items[index];
            answers[index] = self.put_unknown(kind, id, raw)?;
        }
        Ok(answers)
    }

    /// Stores a record that the index does not name, unless this run has it in hand.
    fn put_unknown(&self, kind: RecordKind, id: RawId, raw: &[u8]) -> Result<Stored> {
        if !self.shared.in_hand().insert(id) {
            return Ok(Stored::default());
        }
        let store = &self.shared.store;
        let sealed = record::seal(&store.keys, store.codec_for(kind), kind, id, raw);
        self.shared.note(self.append(kind, id, &sealed))?;
        Ok(Stored {
            new: true,
            bytes: sealed.len() as u64,
        })
    }

    /// Stores a node or root record.
    fn put_encoded<I: ContentId>(&self, id: I, raw: &[u8], fresh: bool) -> Result<Stored> {
        let distrust = self.distrust_nodes.load(Ordering::SeqCst);
        if fresh && !distrust {
            self.shared.refuse_after_failure()?;
            return self.put_unknown(I::KIND, id.raw(), raw);
        }
        let stored = self.put(I::KIND, &[(id.raw(), raw)])?[0];
        if !stored.new && distrust {
            return self.put_unless_readable(id, raw);
        }
        Ok(stored)
    }

    /// From now on a node that the index knows is read before it is relied on: damage to nodes was
    /// seen, and may reach further than what was looked at.
    pub(super) fn distrust_nodes(&self) {
        self.distrust_nodes.store(true, Ordering::SeqCst);
    }

    fn put_unless_readable<I: ContentId>(&self, id: I, raw: &[u8]) -> Result<Stored> {
        let store = &self.shared.store;
        if self.shared.in_hand().contains(&id.raw()) {
            return Ok(Stored::default());
        }
        match store.fetch(id) {
            Err(Error::Corrupt { .. } | Error::Missing { .. }) => {
                self.shared
                    .note(store.index.write(|edit| edit.want(&[id.raw()])))?;
                self.put_unknown(I::KIND, id.raw(), raw)
            }
            fetched => fetched.map(|_| Stored::default()),
        }
    }

    /// Makes everything taken in durable and known to the index.
    pub(super) fn finish(mut self) -> Result<()> {
        for place in [&self.data, &self.meta] {
            if let Some(writer) = lock(place).take() {
                self.hand_over(writer)?;
            }
        }
        self.wait_for_packs();
        self.failure()
    }

    /// An error once something failed: the failure itself to the disk that asks first, that an
    /// earlier write failed to the others.
    pub(super) fn failure(&self) -> Result<()> {
        self.shared
            .refuse_after_failure()
            .map_err(|poisoned| lock(&self.shared.failure).take().unwrap_or(poisoned))
    }

    /// Puts the reason in the place of the remark that there is one, for the first who asks.
    pub(super) fn explain<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(Error::Poisoned) => self.failure().and(Err(Error::Poisoned)),
            result => result,
        }
    }

    fn hand_over(&self, full: PackWriter) -> Result<()> {
        // Waits for an earlier pack when the disk is slower than we are.
        let finishing = self
            .finishing
            .as_ref()
            .expect("open until the intake is finished");
        finishing.send(full).map_err(|_| Error::Poisoned)
    }

    fn wait_for_packs(&mut self) {
        self.finishing = None;
        if let Some(Err(panic)) = self.finisher.take().map(thread::JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }

    /// Positions of the items that are neither in hand nor in the index.
    fn unknown(&self, items: &[(RawId, &[u8])]) -> Result<Vec<usize>> {
        let mut asked = Vec::with_capacity(items.len());
        {
            let in_hand = self.shared.in_hand();
            asked.extend((0..items.len()).filter(|index| !in_hand.contains(&items[*index].0)));
        }
        if asked.is_empty() {
            return Ok(asked);
        }
        let ids: Vec<RawId> = asked.iter().map(|index| items[*index].0).collect();
        let known = self.shared.note(self.shared.store.index.known(&ids))?;
        let mut known = known.into_iter();
        asked.retain(|_| known.next() == Some(false));
        Ok(asked)
    }

    fn append(&self, kind: RecordKind, id: RawId, sealed: &[u8]) -> Result<()> {
        let pack_kind = PackKind::holding(kind);
        let place = match pack_kind {
            PackKind::Data => &self.data,
            PackKind::Meta => &self.meta,
        };
        let mut place = lock(place);
        if place.is_none() {
            let store = &self.shared.store;
            let name = PackId::from_bytes(store.env.random_bytes());
            let storage = &*store.storage;
            let lease = self.shared.lease;
            *place = Some(PackWriter::create(
                storage,
                name,
                pack_kind,
                lease,
                &store.keys,
            )?);
        }
        let writer = place.as_mut().expect("made just above");
        writer.append(kind, id, sealed)?;
        if writer.bytes() < self.shared.store.pack_bytes_target {
            return Ok(());
        }
        let full = place.take().expect("just written to");
        // Holding the place meanwhile keeps more than one next pack from being started.
        self.hand_over(full)
    }
}

impl Drop for Intake {
    /// The lease must outlive the last pack.
    fn drop(&mut self) {
        self.finishing = None;
        let finished = self.finisher.take().map(thread::JoinHandle::join);
        if let (Some(Err(panic)), false) = (finished, thread::panicking()) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl NodeSink for Intake {
    fn put_node(&self, node: &Node, fresh: bool) -> Result<(NodeId, Stored)> {
        let encoded = node.encode();
        let id = self.shared.store.keys.node_id(&encoded);
        let stored = self.put_encoded(id, &encoded, fresh)?;
        Ok((id, stored))
    }

    fn put_root(&self, root: &Root, fresh: bool) -> Result<(RootId, Stored)> {
        let encoded = root.encode();
        let id = self.shared.store.keys.root_id(&encoded);
        let stored = self.put_encoded(id, &encoded, fresh)?;
        Ok((id, stored))
    }
}

impl Shared {
    /// Finishes packs until no more come. Their entries are gathered, since the index takes many at
    /// once for little more than few.
    fn finish_packs(&self, packs: &Receiver<PackWriter>) {
        let mut gathered = Vec::new();
        for writer in packs {
            // After a failure a pack is dropped unfinished, and removes itself.
            if !self.failed.load(Ordering::SeqCst) {
                self.note(self.finish_pack(writer, &mut gathered)).ok();
            }
        }
        // After a failure, too: what is stored will be found by the next try.
        self.note(self.index_packs(&mut gathered)).ok();
    }

    /// The index is told of as many records at once as a pack holds of the smallest chunks. Packs of
    /// a killed run that it was not told of are adopted by the next.
    fn finish_pack(&self, writer: PackWriter, gathered: &mut Vec<FinishedPack>) -> Result<()> {
        gathered.push(writer.finish()?);
        let entries: usize = gathered.iter().map(|pack| pack.entries.len()).sum();
        if entries as u64 >= self.store.pack_bytes_target / u64::from(CHUNK_BYTES_MIN) {
            self.index_packs(gathered)
        } else {
            Ok(())
        }
    }

    /// Tells the index of durable packs; from then on their records are found there.
    fn index_packs(&self, gathered: &mut Vec<FinishedPack>) -> Result<()> {
        if gathered.is_empty() {
            return Ok(());
        }
        self.store.index.add_packs(gathered)?;
        let mut in_hand = self.in_hand();
        for pack in gathered.drain(..) {
            for entry in pack.entries {
                in_hand.remove(&entry.id);
            }
        }
        Ok(())
    }

    /// Remembers the first failure; whoever meets a failure is only told that there was one.
    fn note<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            lock(&self.failure).get_or_insert(error);
            self.failed.store(true, Ordering::SeqCst);
            Error::Poisoned
        })
    }

    fn refuse_after_failure(&self) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            Err(Error::Poisoned)
        } else {
            Ok(())
        }
    }

    fn in_hand(&self) -> MutexGuard<'_, HashSet<RawId>> {
        lock(&self.in_hand)
    }
}
