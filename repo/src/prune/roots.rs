//! What everything that is needed hangs from: leases, pins, points.
//!
//! They are listed in that order. A command puts its point, or its pin, before it drops its lease; so
//! whatever it needs is seen in one place or in the other. Under the exclusive index lock the list is
//! exact as far as leases go: who is not in it has looked nothing up yet.

use std::collections::HashSet;

use crate::format;
use crate::index::View;
use crate::lease::{LeaseKind, Roots, SeenLease};
use crate::reach::{Absence, Target};
use crate::storage::{Folder, ObjectName};
use crate::{DomainUuid, Error, LeaseId, Point, PointId, RawId, Repository, Result, UnixMillis};

/// How many point records are looked up at once.
const RECORDS_AT_ONCE: usize = 256;

/// The roots there are at one moment.
pub(super) struct Listing {
    leases: Vec<SeenLease>,
    pinned: Vec<PointId>,
    points: Vec<PointId>,
}

impl Listing {
    /// Lists them, in the order that matters.
    pub(super) fn take(repo: &Repository) -> Result<Self> {
        let mut leases = repo.leases.list()?;
        leases.retain(|lease| lease.alive);
        let pins = repo.pins().list()?;
        let pinned = pins.into_iter().flat_map(|(_, pin)| pin.points).collect();
        let names = repo.store().storage.list(Folder::Points)?;
        let points = names.into_iter().filter_map(|name| match name {
            ObjectName::Point(id) => Some(id),
            _ => None,
        });
        Ok(Self {
            leases,
            pinned,
            points: points.collect(),
        })
    }

    /// As [`take`](Self::take), under the exclusive index lock: nobody is writing a lease now, so one
    /// that cannot be understood is a command of which nothing is known but that it lives.
    pub(super) fn take_exact(repo: &Repository) -> Result<Self> {
        let listing = Self::take(repo)?;
        match listing.leases.iter().find(|lease| lease.content.is_none()) {
            Some(lease) => Err(Error::Busy {
                what: "the repository".to_owned(),
                holder: format!(
                    "a command whose lease {} cannot be understood, so that nothing may be removed; it may be another version of virtkeep",
                    lease.id
                ),
            }),
            None => Ok(listing),
        }
    }

    /// The leases of running commands.
    pub(super) fn alive(&self) -> HashSet<LeaseId> {
        self.leases.iter().map(|lease| lease.id).collect()
    }

    /// The living writers.
    pub(super) fn writers(&self) -> impl Iterator<Item = LeaseId> {
        let is_writer = |lease: &&SeenLease| {
            let content = lease.content.as_ref();
            content.is_some_and(|content| content.kind == LeaseKind::Writer)
        };
        self.leases.iter().filter(is_writer).map(|lease| lease.id)
    }

    /// The least epoch under which a living writer may have found something; none when no writer has
    /// begun to look.
    pub(super) fn oldest_writer(&self) -> Option<u64> {
        let contents = self
            .leases
            .iter()
            .filter_map(|lease| lease.content.as_ref());
        contents
            .filter(|content| content.kind == LeaseKind::Writer)
            .filter_map(|content| content.epoch)
            .min()
    }

    /// Whether somebody relies on this point, by a lease or a pin, or it is there.
    pub(super) fn names(&self, point: PointId) -> bool {
        let mut leased = self.leased();
        self.pinned.contains(&point)
            || self.points.binary_search(&point).is_ok()
            || leased.any(|(_, roots)| roots.points.contains(&point))
    }

    fn leased(&self) -> impl Iterator<Item = (LeaseId, &Roots)> {
        let leases = self.leases.iter();
        leases.filter_map(|lease| Some((lease.id, &lease.content.as_ref()?.roots)))
    }
}

/// The roots that have been marked.
#[derive(Default)]
pub(super) struct Marked {
    points: HashSet<PointId>,
    /// Pinned points that are forgotten. Something of them may be gone, and be there again when the point
    /// comes back: then it is marked once more.
    forgotten: HashSet<PointId>,
    /// Pinned points of which there is no record, forgotten or not.
    vanished: HashSet<PointId>,
    /// What points need.
    needed: HashSet<RawId>,
    /// What only leases relied on, and which. Something of it may be gone, and be there again when another
    /// lease is taken on it, by whoever brings a point back: then it is marked once more.
    relied_on: HashSet<(LeaseId, RawId)>,
}

/// Roots that are to be marked.
#[derive(Default)]
pub(super) struct Unmarked {
    points: Vec<PointId>,
    leased: Vec<(LeaseId, Target)>,
}

impl Unmarked {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty() && self.leased.is_empty()
    }
}

impl Marked {
    /// Number of points.
    pub(super) fn points(&self) -> u64 {
        (self.points.len() + self.forgotten.len()) as u64
    }

    /// Whether the point was marked.
    pub(super) fn has(&self, point: PointId) -> bool {
        self.points.contains(&point) || self.forgotten.contains(&point)
    }

    /// The roots of `listing` that have not been marked.
    pub(super) fn missing(&self, listing: &Listing) -> Unmarked {
        let pinned = listing.pinned.iter();
        let pinned = pinned
            .filter(|point| !self.vanished.contains(point) && !self.forgotten.contains(point));
        let points = listing.points.iter().chain(pinned);
        let points = points.filter(|point| !self.points.contains(point));
        let mut leased = Vec::new();
        for (lease, roots) in listing.leased() {
            let disks = roots.disks.iter().copied().map(Target::Disk);
            let targets = disks.chain(roots.files.iter().copied().map(Target::Piece));
            leased.extend(targets.map(|target| (lease, target)));
        }
        leased.retain(|(lease, target)| {
            let id = target.id();
            !self.needed.contains(&id) && !self.relied_on.contains(&(*lease, id))
        });
        Unmarked {
            points: points.copied().collect(),
            leased,
        }
    }

    /// Notes `unmarked` as marked, and answers with what has to be walked for that: what points need,
    /// and what only leases and pins rely on, of which something may be gone.
    pub(super) fn take(
        &mut self,
        repo: &Repository,
        unmarked: &Unmarked,
    ) -> Result<[(Absence, Vec<Target>); 2]> {
        // The points of a domain together and by time: neighbours share most of their trees.
        let mut needed: Vec<((DomainUuid, UnixMillis), Target)> = Vec::new();
        let leased = unmarked.leased.iter();
        self.relied_on
            .extend(leased.clone().map(|(lease, target)| (*lease, target.id())));
        let mut relied_on: Vec<Target> = leased.map(|(_, target)| *target).collect();
        for ids in unmarked.points.chunks(RECORDS_AT_ONCE) {
            self.vanished.extend(ids);
            for (point, absence) in load(repo, ids)? {
                self.vanished.remove(&point.id);
                let roots = Roots::of([&point]);
                let disks = roots.disks.into_iter().map(Target::Disk);
                let targets = disks.chain(roots.files.into_iter().map(Target::Piece));
                match absence {
                    Absence::IsDamage => {
                        self.forgotten.remove(&point.id);
                        self.points.insert(point.id);
                        let new = targets.filter(|target| self.needed.insert(target.id()));
                        let place = (point.domain.uuid, point.time);
                        needed.extend(new.map(|target| (place, target)));
                    }
                    Absence::IsLoss => {
                        self.forgotten.insert(point.id);
                        relied_on.extend(targets);
                    }
                }
            }
        }
        needed.sort_by_key(|(place, _)| *place);
        let needed = needed.into_iter().map(|(_, target)| target).collect();
        let mut seen = HashSet::new();
        relied_on.retain(|target| {
            let id = target.id();
            !self.needed.contains(&id) && seen.insert(id)
        });
        Ok([(Absence::IsDamage, needed), (Absence::IsLoss, relied_on)])
    }
}

/// The records of points. One that has been forgotten since it was listed is left out; one that is
/// pinned may be among the forgotten.
fn load(repo: &Repository, ids: &[PointId]) -> Result<Vec<(Point, Absence)>> {
    let keys = &repo.store().keys;
    let cached = repo
        .store()
        .index
        .read(|view: &View| view.point_records(ids))?;
    let mut loaded = Vec::with_capacity(ids.len());
    for (id, cached) in ids.iter().zip(cached) {
        let cached = cached.and_then(|record| format::point::decode(&record, *id, keys).ok());
        let point = match cached.map_or_else(|| repo.point(*id), Ok) {
            Ok(point) => Some((point, Absence::IsDamage)),
            Err(Error::NoSuchPoint { .. }) => match repo.forgotten_point(*id) {
                Ok(point) => Some((point, Absence::IsLoss)),
                Err(Error::NoSuchPoint { .. }) => None,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        };
        loaded.extend(point);
    }
    Ok(loaded)
}
