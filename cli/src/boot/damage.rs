//! Stored bytes that a recovery cannot have: told as they are met, or, with `--salvage`, given up.
//!
//! The server meets them, since QEMU asks for them. It answers an error, which stands the guest still or breaks
//! the pull off, and leaves a note beside its socket that tells whoever looks after the recovery why.
//!
//! With `--salvage` it answers zeroes. **It gives no zero for a lost byte that is not written down first**,
//! durably, in the [list](Recovery::lost_ranges) beside the images, and none for what may only be away for a
//! moment. That the list is there, if empty, says that lost bytes are given up: also to a server that is started
//! anew, and after a crash; a later `--finish` tells it, but does not take it back, since what was given up is zero
//! already. In the end it stays unless it is empty, for nothing else tells later which zeroes are none of the
//! guest's.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};
use nbd_server::{BlockSizes, ErrorCode, Export, ExportError, Extents, Features, Holes, OpenError};
use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use virtkeep_repo::{DiskOffset, DiskReader, Error, PointId, Repository};

use super::record::Recovery;
use super::server::remove;
use crate::context::Context;
use crate::output::{bytes_range, shown};
use crate::restore::staging::sync_dir;

/// What to say as long as lost bytes are given up, which was said once.
pub(crate) const STILL_GIVEN_UP: &str =
    "what cannot be read is put to zero and listed, since `--finish --salvage` was said";

/// A range of a disk that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// The disk.
    pub(crate) target: String,
    /// Its first byte.
    pub(crate) start: u64,
    /// The byte behind it.
    pub(crate) end: u64,
    /// Why, for its first part.
    pub(crate) message: String,
}

/// Bytes cannot be read, and so the recovery cannot go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: {} cannot be read from the repository: {}. A guest that needs them is paused, and nothing is lost yet. \
     `virtkeep repair` or another backup may mend them; `virtkeep boot --finish --salvage` does without: it puts \
     zeroes in their place, and lists them",
    shown(&.0.target),
    bytes_range(.0.start, .0.end),
    .0.message
)]
pub(crate) struct Unreadable(Lost);

/// What the server could not read last; told once.
pub(super) fn take(recovery: &Recovery) -> Option<Unreadable> {
    let path = recovery.unreadable();
    let text = std::fs::read(&path).ok()?;
    // Worst case, it is told twice.
    let _ = remove(&path);
    serde_json::from_slice(&text).ok().map(Unreadable)
}

/// From now on lost bytes are given up.
pub(super) fn salvage(recovery: &Recovery) -> Result<()> {
    let path = recovery.lost_ranges();
    let mut file = OpenOptions::new();
    file.create(true)
        .append(true)
        .open(&path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot create {}", path.display()))?;
    sync_dir(&recovery.directory)?;
    take(recovery);
    Ok(())
}

/// Whether lost bytes are given up, since `--salvage` was said.
pub(crate) fn is_salvaging(recovery: &Recovery) -> bool {
    recovery.lost_ranges().exists()
}

/// What was given up so far, in the order of the disks; none where nothing is.
pub(crate) fn given_up(recovery: &Recovery) -> Result<Vec<Lost>> {
    let path = recovery.lost_ranges();
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    // What a crash cut short was never answered.
    let lines = text.lines().map(serde_json::from_str);
    Ok(joined(lines.filter_map(Result::ok).collect()))
}

/// Removes the list of what was given up, if that is nothing.
pub(super) fn remove_empty_list(recovery: &Recovery) -> Result<()> {
    match given_up(recovery)?.is_empty() {
        true => remove(&recovery.lost_ranges()),
        false => Ok(()),
    }
}

/// The same ranges in order, those that touch as one.
fn joined(mut all: Vec<Lost>) -> Vec<Lost> {
    all.sort_by(|a, b| (&a.target, a.start).cmp(&(&b.target, b.start)));
    all.dedup_by(|next, last| {
        let touch = next.target == last.target && next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
        }
        touch
    });
    all
}

/// Where the server of a recovery writes down what it could not read.
pub(super) struct Ledger {
    unreadable: PathBuf,
    list: PathBuf,
    /// A file that every repository has.
    config: PathBuf,
    /// What is in the list for sure.
    listed: Mutex<HashSet<(String, u64)>>,
}

impl Ledger {
    /// Of a recovery from this repository.
    pub(super) fn of(recovery: &Recovery, context: &Context) -> Result<Self> {
        Ok(Self {
            unreadable: recovery.unreadable(),
            list: recovery.lost_ranges(),
            config: context.repository_path()?.join("config.toml"),
            listed: Mutex::default(),
        })
    }

    /// Whether lost bytes are given up.
    fn is_salvaging(&self) -> bool {
        self.list.exists()
    }

    /// Whether the device of the repository can be read at all: one that is away comes back. What is in the page
    /// cache says nothing of that.
    fn storage_answers(&self) -> bool {
        File::open(&self.config)
            .and_then(|mut file| {
                fadvise(&file, 0, None, Advice::DontNeed)?;
                file.read(&mut [0; 1])
            })
            .is_ok_and(|read| read == 1)
    }

    /// Tells why a read failed. Nothing depends on it.
    fn tell(&self, lost: &Lost) {
        let staged = self.unreadable.with_extension("unreadable.new");
        let written = serde_json::to_vec(lost).map(|text| std::fs::write(&staged, text));
        if let Ok(Ok(())) = written {
            let _ = std::fs::rename(&staged, &self.unreadable);
        }
    }

    /// Writes durably down what is given up.
    fn give_up(&self, lost: Vec<Lost>) -> std::io::Result<()> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = Vec::new();
        let is_new = |lost: &Lost| !listed.contains(&(lost.target.clone(), lost.start));
        let new: Vec<_> = lost.iter().filter(|lost| is_new(lost)).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        for range in joined(new.clone()) {
            // A line of its own, whatever a crash has left behind the last one.
            text.push(b'\n');
            serde_json::to_writer(&mut text, &range)?;
        }
        text.push(b'\n');
        let mut file = OpenOptions::new().append(true).open(&self.list)?;
        file.write_all(&text)?;
        file.sync_data()?;
        listed.extend(new.into_iter().map(|lost| (lost.target, lost.start)));
        Ok(())
    }
}

/// A disk of a recovery, whatever has become of its bytes.
pub(super) struct Fragile {
    disk: Arc<dyn Export>,
    target: String,
    point: PointId,
    repo: Arc<Repository>,
    ledger: Arc<Ledger>,
    /// To read what of it can be read; opened when a read has failed.
    reader: OnceLock<DiskReader>,
}

impl Fragile {
    /// The disk `target` of a point, which `served` serves as long as nothing is wrong with it. Where it could not
    /// even be opened, what can be read without its root record, if it is to be given up.
    pub(super) fn open(
        served: Result<Arc<dyn Export>, OpenError>,
        target: &str,
        point: PointId,
        repo: &Arc<Repository>,
        ledger: &Arc<Ledger>,
    ) -> Result<Self> {
        let (is_open, disk): (_, Arc<dyn Export>) = match served {
            Ok(disk) => (Ok(()), disk),
            Err(error) => (
                Err(error),
                Arc::new(Bare(open_to_salvage(repo, point, target)?)),
            ),
        };
        let fragile = Self {
            disk,
            target: target.to_owned(),
            point,
            repo: Arc::clone(repo),
            ledger: Arc::clone(ledger),
            reader: OnceLock::new(),
        };
        if let Err(error) = is_open {
            let answered = ledger.storage_answers();
            let lost: Vec<_> = fragile.reader()?.losses();
            let Some(first) = lost.first() else {
                return Err(error.into());
            };
            ensure!(
                answered && ledger.storage_answers(),
                "{} cannot be opened, since the repository cannot be read now: {}",
                shown(target),
                first.why
            );
            ensure!(
                ledger.is_salvaging(),
                "all of {} is lost: {}. A recovery that is under way can be finished without it: \
                 `virtkeep boot --finish --salvage`",
                shown(target),
                first.why
            );
            let lost = lost.into_iter().map(|loss| Lost {
                target: target.to_owned(),
                start: loss.range.start,
                end: loss.range.end,
                message: loss.why,
            });
            ledger
                .give_up(lost.collect())
                .context("cannot write down what is lost")?;
        }
        Ok(fragile)
    }

    fn reader(&self) -> Result<&DiskReader> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let reader = open_to_salvage(&self.repo, self.point, &self.target)?;
        Ok(self.reader.get_or_init(|| reader))
    }

    /// Reads chunk by chunk what could not be read as a whole.
    fn mend(
        &self,
        offset: u64,
        buffer: &mut [u8],
        failure: ExportError,
    ) -> Result<(), ExportError> {
        let Ok(reader) = self.reader() else {
            return Err(failure);
        };
        let chunk = reader.chunk_size().0;
        let mut lost = Vec::new();
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let len = usize::try_from(chunk - at % chunk).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at_mut(len.min(rest.len()));
            let start = at - at % chunk;
            let range = start..(start + chunk).min(self.size());
            match self.read_or_lose(reader, at, part) {
                Ok(None) => {}
                Ok(Some(error)) => {
                    part.fill(0);
                    lost.push(self.lost(range, &error));
                }
                Err(error) => {
                    self.ledger.tell(&self.lost(range, &error));
                    return Err(failure);
                }
            }
            at += part.len() as u64;
            rest = behind;
        }
        let Some(first) = lost.first() else {
            return Ok(());
        };
        if !self.ledger.is_salvaging() {
            self.ledger.tell(first);
            return Err(failure);
        }
        self.ledger
            .give_up(lost)
            .map_err(|error| ExportError::new(ErrorCode::Io, error.to_string()))
    }

    /// Reads a part of a chunk; why it is lost, if it is: if it cannot be read between two proofs that the
    /// storage answers.
    fn read_or_lose(
        &self,
        reader: &DiskReader,
        at: u64,
        part: &mut [u8],
    ) -> Result<Option<Error>, Error> {
        if reader.read_at(DiskOffset(at), part).is_ok() {
            return Ok(None);
        }
        let answered = self.ledger.storage_answers();
        match reader.read_at(DiskOffset(at), part) {
            Err(error) if error.is_damage() && answered && self.ledger.storage_answers() => {
                Ok(Some(error))
            }
            again => again.map(|()| None),
        }
    }

    fn lost(&self, range: Range<u64>, error: &Error) -> Lost {
        Lost {
            target: self.target.clone(),
            start: range.start,
            end: range.end,
            message: error.reason(),
        }
    }
}

impl Export for Fragile {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        let read = self.disk.read(offset, buffer);
        read.or_else(|failure| self.mend(offset, buffer, failure))
    }

    fn read_sparse(
        &self,
        offset: u64,
        buffer: &mut [u8],
        holes: &mut Holes,
    ) -> Result<(), ExportError> {
        // Holes that were found before the failure are holes.
        let read = self.disk.read_sparse(offset, buffer, holes);
        read.or_else(|failure| self.mend(offset, buffer, failure))
    }

    fn features(&self) -> Features {
        self.disk.features()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.disk.block_sizes()
    }

    fn concurrency(&self) -> usize {
        self.disk.concurrency()
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.disk.cache(offset, length)
    }

    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        // What cannot be told counts as data: whoever reads it then finds out.
        if self.disk.allocation(offset, length, extents).is_err() {
            extents.push(length, 0);
        }
        Ok(())
    }
}

fn open_to_salvage(repo: &Repository, point: PointId, target: &str) -> Result<DiskReader> {
    let point = repo.point(point)?;
    let disk = point.disks.iter().find(|disk| disk.target == target);
    let disk = disk.context("the point has no such disk")?;
    Ok(repo.salvage_disk(&point, disk)?)
}

/// What is left of a disk without its root record.
struct Bare(DiskReader);

impl Export for Bare {
    fn size(&self) -> u64 {
        self.0.size().0
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        let read = self.0.read_at(DiskOffset(offset), buffer);
        read.map_err(|error| ExportError::new(ErrorCode::Io, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(target: &str, start: u64, end: u64) -> Lost {
        Lost {
            target: target.to_owned(),
            start,
            end,
            message: format!("{start}"),
        }
    }

    #[test]
    fn a_repository_answers_while_it_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        let ledger = Ledger {
            unreadable: dir.path().join("unreadable"),
            list: dir.path().join("list"),
            config: config.clone(),
            listed: Mutex::default(),
        };
        assert!(!ledger.storage_answers());
        std::fs::write(&config, "version = 1").unwrap();
        assert!(ledger.storage_answers());
    }

    #[test]
    fn ranges_that_touch_are_told_as_one() {
        let all = [
            lost("vdb", 0, 5),
            lost("vda", 10, 20),
            lost("vda", 0, 10),
            lost("vda", 30, 40),
            lost("vda", 30, 40),
        ];
        assert_eq!(
            joined(all.to_vec()),
            [lost("vda", 0, 20), lost("vda", 30, 40), lost("vdb", 0, 5)]
        );
    }
}
