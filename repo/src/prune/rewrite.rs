//! Copying what is needed of sparse and small packs into new ones.
//!
//! Records are copied as they are, each verified first. The new packs are durable before the index
//! points to them; the old ones are untouched. A record that cannot be verified stays where it is,
//! and its pack with it.

use rayon::prelude::*;

use super::plan::PackUse;
use super::{Prune, PruneStage};
use crate::format::pack::{FinishedPack, PackEntry, PackWriter, read_table};
use crate::format::record;
use crate::index::Move;
use crate::lease::MoverLease;
use crate::limits::PACK_READ_GAP_MAX;
use crate::storage::ObjectName;
use crate::{Error, LeaseId, PackId, PackKind, RawId, Result};

/// Bytes copied before the old packs are given up, so that prune needs little room.
const BATCH_BYTES: u64 = 1 << 30;

/// Records in the packs of a batch, some 130 bytes of memory each while they move.
const BATCH_RECORDS: u64 = 512 << 10;

/// Bytes that are read and verified at once.
const RUN_BYTES_MAX: u32 = 8 << 20;

/// The new packs so far.
struct Copies {
    lease: LeaseId,
    writer: Option<PackWriter>,
    finished: Vec<FinishedPack>,
    moves: Vec<Move>,
}

impl Prune<'_> {
    /// The packs to rewrite, in batches of limited size.
    pub fn batches(&self) -> Vec<Vec<PackId>> {
        let mut batches: Vec<Vec<PackId>> = Vec::new();
        let (mut bytes, mut records) = (0, 0);
        for pack in &self.plan.rewrite {
            bytes += pack.compact_bytes();
            records += u64::from(pack.records);
            match batches.last_mut() {
                Some(batch) if bytes <= BATCH_BYTES && records <= BATCH_RECORDS => {
                    batch.push(pack.id);
                }
                _ => {
                    batches.push(vec![pack.id]);
                    (bytes, records) = (pack.compact_bytes(), u64::from(pack.records));
                }
            }
        }
        batches
    }

    /// Copies what is needed of these packs, and answers with those in which nothing needed is left.
    pub fn rewrite(&mut self, packs: &[PackId]) -> Result<Vec<PackId>> {
        if self.report.out_of_space {
            return Ok(Vec::new());
        }
        let planned = self.plan.rewrite.iter();
        let packs: Vec<PackUse> = planned
            .filter(|pack| packs.contains(&pack.id))
            // Of one that a root reaches which was marked late, not all that is needed is known.
            .filter(|pack| !self.reached.contains(&pack.id))
            .copied()
            .collect();
        match self.try_rewrite(&packs) {
            Err(error) if error.is_no_space() => {
                self.report.out_of_space = true;
                Ok(Vec::new())
            }
            emptied => emptied,
        }
    }

    fn try_rewrite(&mut self, packs: &[PackUse]) -> Result<Vec<PackId>> {
        self.progress
            .begin(PruneStage::Rewriting, packs.len() as u64);
        if self.lease.is_none() {
            let lease = self
                .repo
                .leases
                .mover("virtkeep prune", &self.store.index)?;
            self.lease = Some(lease);
        }
        let lease = self.lease.as_ref().map(MoverLease::id);
        let mut copies = Copies {
            lease: lease.ok_or(Error::Poisoned)?,
            writer: None,
            finished: Vec::new(),
            moves: Vec::new(),
        };
        let (emptied, mut damage) = match self.copy_all(packs, &mut copies) {
            Err(error) if error.is_no_space() => {
                // Nothing points to them yet.
                for pack in &copies.finished {
                    self.store.storage.delete(&ObjectName::Pack(pack.id))?;
                }
                return Err(error);
            }
            copied => copied?,
        };
        self.with_room(|| {
            self.store
                .index
                .move_records(&copies.finished, &copies.moves)
        })?;
        self.report.packs_rewritten += emptied.len() as u64;
        self.report.bytes_rewritten += copies.finished.iter().map(|pack| pack.bytes).sum::<u64>();
        self.report.damage.append(&mut damage);
        Ok(emptied)
    }

    /// Copies what is needed of these packs. Answers with those of which all was copied, and with what
    /// is damaged in others.
    fn copy_all(
        &self,
        packs: &[PackUse],
        copies: &mut Copies,
    ) -> Result<(Vec<PackId>, Vec<String>)> {
        let (mut emptied, mut damage) = (Vec::new(), Vec::new());
        for kind in [PackKind::Data, PackKind::Meta] {
            for pack in packs.iter().filter(|pack| pack.kind == kind) {
                match self.copy(pack.id, copies)? {
                    None => emptied.push(pack.id),
                    Some(why) => damage.push(why),
                }
                self.progress.done();
            }
            copies.finish()?;
        }
        Ok((emptied, damage))
    }

    /// Copies what is needed of a pack. Answers with what is damaged in it, if anything is.
    fn copy(&self, pack: PackId, copies: &mut Copies) -> Result<Option<String>> {
        let table = match read_table(&*self.store.storage, pack, &self.store.keys) {
            Err(error @ (Error::Corrupt { .. } | Error::Missing { .. })) => {
                return Ok(Some(crate::check::reason(&error)));
            }
            table => table?,
        };
        let needed = match self.needed(pack, table.entries)? {
            Ok(needed) => needed,
            Err(why) => return Ok(Some(format!("the pack {pack} is kept: {why}"))),
        };
        let mut damage = None;
        for run in runs(&needed) {
            self.cancel.check()?;
            for (entry, sealed) in run.iter().zip(self.read_verified(pack, run)?) {
                match sealed {
                    Ok(sealed) => copies.append(self, pack, entry, &sealed)?,
                    Err(error) => damage = Some(crate::check::reason(&error)),
                }
            }
        }
        Ok(damage)
    }

    /// Which records of a pack are needed; or why the pack has to stay.
    fn needed(
        &self,
        pack: PackId,
        mut entries: Vec<PackEntry>,
    ) -> Result<Result<Vec<PackEntry>, String>> {
        let usage = &self.usages[&pack];
        if let Some(needed) = usage.needed(&entries) {
            return Ok(Ok(needed));
        }
        // The index finds some of them elsewhere.
        let ids: Vec<RawId> = entries.iter().map(|entry| entry.id).collect();
        let places = self.store.index.locate(&ids)?;
        if let Some(why) = self.doubt(pack, &entries, &places)? {
            return Ok(Err(why));
        }
        let mut places = places.into_iter();
        entries.retain(|_| places.next().flatten().is_some_and(|at| at.pack == pack));
        // When that has changed since they were counted, nobody knows: then all are kept.
        Ok(Ok(usage.needed(&entries).unwrap_or(entries)))
    }

    /// The sealed bytes of neighbouring records, each with what is wrong with it.
    fn read_verified(
        &self,
        pack: PackId,
        run: &[PackEntry],
    ) -> Result<Vec<Result<Vec<u8>, Error>>> {
        let (first, last) = (run[0], run[run.len() - 1]);
        let start = first.offset;
        let mut bytes = vec![0; (last.offset + last.len - start) as usize];
        let name = ObjectName::Pack(pack);
        match self.store.storage.read_at(&name, start.into(), &mut bytes) {
            // A medium that cannot be read is damage like any other.
            Err(Error::Corrupt { .. } | Error::Io { .. }) if run.len() > 1 => {
                let single = run.iter().map(|entry| {
                    let alone = self.read_verified(pack, std::slice::from_ref(entry))?;
                    alone.into_iter().next().ok_or(Error::Poisoned)?
                });
                return Ok(single.collect());
            }
            Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => return Ok(vec![Err(error)]),
            read => read?,
        }
        let verified = run.par_iter().map(|entry| {
            let at = (entry.offset - start) as usize;
            let sealed = &bytes[at..at + entry.len as usize];
            let what = format!(
                "{} {} in pack {pack} at offset {}",
                entry.kind.name(),
                entry.id,
                entry.offset
            );
            record::open(&self.store.keys, entry.kind, entry.id, sealed)
                .map_err(|damage| damage.at(what))?;
            Ok(sealed.to_vec())
        });
        Ok(verified.collect())
    }
}

impl Copies {
    fn append(
        &mut self,
        prune: &Prune<'_>,
        from: PackId,
        entry: &PackEntry,
        sealed: &[u8],
    ) -> Result<()> {
        let store = prune.store;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(PackWriter::create(
                &*store.storage,
                PackId::from_bytes(store.env.random_bytes()),
                PackKind::holding(entry.kind),
                self.lease,
                &store.keys,
            )?),
        };
        self.moves.push(Move {
            from,
            pack: self.finished.len(),
            entry: writer.records(),
        });
        writer.append(entry.kind, entry.id, sealed)?;
        if writer.bytes() >= store.pack_bytes_target {
            self.finish()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            self.finished.push(writer.finish()?);
        }
        Ok(())
    }
}

/// Cuts entries, in the order of their offsets, into runs of neighbours that are read together.
fn runs(mut entries: &[PackEntry]) -> impl Iterator<Item = &[PackEntry]> {
    std::iter::from_fn(move || {
        let start = entries.first()?.offset;
        let mut end = start;
        let together = entries.iter().take_while(|entry| {
            let near = entry.offset - end <= PACK_READ_GAP_MAX;
            end = entry.offset + entry.len;
            near && (entry.offset == start || end - start <= RUN_BYTES_MAX)
        });
        let run;
        (run, entries) = entries.split_at(together.count());
        Some(run)
    })
}
