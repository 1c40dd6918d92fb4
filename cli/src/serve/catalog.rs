//! Which exports there are, and which disk a name means.
//!
//! Nothing is remembered of the points: every listing and every opening looks at the repository
//! anew, so points come and go while the server runs. What is open is shared by all connections to
//! it and holds a reader lease on that one disk; the last connection to go ends it. Where the file system
//! has no space for a lease, it is read without one, which whoever runs the server is told. Packs that
//! were read and then pruned are let go, also while nobody asks for anything.
//!
//! Where points were chosen, nothing is told of any other, not even whether it is equal.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use jiff::tz::TimeZone;
use nbd_server::{Client, Export, ExportError, Exports, Listing, OpenError};
use virtkeep_repo::{Disk, DomainUuid, Error, Point, PointId, PointWatch, Repository, StoredFile};

use super::disk::OpenDisk;
use crate::output::{shown, size};
use crate::point_spec::{Found, PointError, PointSpec, no_such_disk, points_of, times};
use crate::progress::Reporter;
use crate::when::local_time;

/// How long the space of a pruned pack may be held back.
const LET_GO_AFTER: Duration = Duration::from_secs(5);

/// The exports of one repository.
#[derive(Clone)]
pub(crate) struct Catalog(Arc<Shared>);

struct Shared {
    repo: Repository,
    watch: PointWatch,
    zone: TimeZone,
    reporter: Reporter,
    /// Only these; all points if there are none here.
    chosen: Vec<PointSpec>,
    /// How many disks may be open.
    disks_max: usize,
    open: Mutex<OpenDisks>,
    /// There was no space for the lease that was wanted last.
    lacks_leases: AtomicBool,
    listed: Mutex<Option<Listed>>,
}

/// What was listed last, and of which points: clients share it.
struct Listed {
    points: Weak<Vec<Point>>,
    entries: Arc<[Listing]>,
}

/// By point and target, and whether the name it was opened by can come to mean another point.
type OpenDisks = HashMap<(PointId, String, bool), Weak<OpenDisk>>;

impl Catalog {
    /// All points of `repo`, or those that `chosen` names, whichever these are at the time; at most
    /// `disks_max` of them are open at a time.
    pub(crate) fn new(
        repo: Repository,
        chosen: Vec<PointSpec>,
        zone: TimeZone,
        reporter: Reporter,
        disks_max: usize,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            repo,
            watch: PointWatch::new(),
            zone,
            reporter,
            chosen,
            disks_max,
            open: Mutex::default(),
            lacks_leases: AtomicBool::new(false),
            listed: Mutex::default(),
        });
        let served = Arc::downgrade(&shared);
        thread::Builder::new()
            .name("let-go".into())
            .spawn(move || {
                while let Some(shared) = served.upgrade() {
                    shared.repo.let_go_of_deleted();
                    drop(shared);
                    thread::sleep(LET_GO_AFTER);
                }
            })?;
        Ok(Self(shared))
    }

    /// All points, oldest first, whichever were chosen.
    pub(crate) fn points(&self) -> Result<Arc<Vec<Point>>, Error> {
        self.0.watch.points(&self.0.repo)
    }

    /// The zone of the times in names.
    pub(crate) fn zone(&self) -> &TimeZone {
        &self.0.zone
    }

    /// The content of a file kept with a point.
    pub(crate) fn read_file(&self, point: &Point, file: &StoredFile) -> Result<Vec<u8>, Error> {
        self.0.repo.read_file(point, file)
    }

    /// Every disk of every point, the domains in the order of their names, the newest point first: its name,
    /// `DOMAIN/DISK@WHEN`, and when, how large, and which point.
    pub(crate) fn entries(&self) -> Result<Arc<[Listing]>, Error> {
        let points = self.points()?;
        let mut listed = self.0.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listed) = &*listed
            && listed.points.as_ptr() == Arc::as_ptr(&points)
        {
            return Ok(Arc::clone(&listed.entries));
        }
        let entries: Arc<[Listing]> = self.entries_of(&points).into();
        *listed = Some(Listed {
            points: Arc::downgrade(&points),
            entries: Arc::clone(&entries),
        });
        Ok(entries)
    }

    fn entries_of(&self, points: &[Point]) -> Vec<Listing> {
        let chosen = self.chosen(points);
        let mut entries = Vec::new();
        for (domain, of_domain) in by_domain(points) {
            let mut names: HashMap<&str, String> = HashMap::new();
            let times = times(&of_domain, &self.0.zone);
            for (place, (point, time)) in of_domain.iter().zip(times).enumerate().rev() {
                let latest = (place + 1 == of_domain.len()).then_some("latest");
                for disk in &point.disks {
                    if !is_among(chosen.as_deref(), point, disk) {
                        continue;
                    }
                    let name = names
                        .entry(&disk.target)
                        .or_insert_with(|| name_of(domain, point.domain.uuid, disk, points));
                    for when in latest.into_iter().chain([&time[..]]) {
                        entries.push(Listing {
                            name: format!("{name}@{when}"),
                            description: describe(point, disk, &self.0.zone),
                        });
                    }
                }
            }
        }
        entries
    }

    /// What was chosen, as it is now; none if nothing was, which means everything. What names
    /// nothing any more chooses nothing.
    fn chosen<'a>(&'a self, points: &'a [Point]) -> Option<Vec<Found<'a>>> {
        if self.0.chosen.is_empty() {
            return None;
        }
        let found = |spec: &'a PointSpec| spec.find_exactly(points, &self.0.zone).ok();
        Some(self.0.chosen.iter().filter_map(found).collect())
    }

    /// The disk that a POINT means; `target` where it names none. Of what is not served nothing is told, not
    /// even whether it exists.
    fn resolve(
        &self,
        spec: &PointSpec,
        name: &str,
        target: Option<&str>,
        points: &[Point],
    ) -> Result<(Point, Disk), OpenError> {
        let found = self.look_up(spec, name, target, points);
        let Some(chosen) = self.chosen(points) else {
            return found;
        };
        found
            .ok()
            .filter(|(point, disk)| is_among(Some(&chosen), point, disk))
            .ok_or_else(|| {
                OpenError::Unavailable(format!(
                    "{} is not among the points that this server serves: `nbdinfo --list` shows their names",
                    shown(name)
                ))
            })
    }

    fn look_up(
        &self,
        spec: &PointSpec,
        name: &str,
        target: Option<&str>,
        points: &[Point],
    ) -> Result<(Point, Disk), OpenError> {
        let found = spec.find_exactly(points, &self.0.zone);
        let Found { point, disk } = found.map_err(unavailable)?;
        let disk = match (disk.or(target), &point.disks[..]) {
            (None, [disk]) => disk,
            (None, _) => return Err(OpenError::Unavailable(which_disk(name, point))),
            (Some(target), disks) => disks
                .iter()
                .find(|disk| disk.target == target)
                .ok_or_else(|| OpenError::Unavailable(no_such_disk(point, target)))?,
        };
        Ok((point.clone(), disk.clone()))
    }

    /// The export without a name: the only one there is.
    fn only(&self, points: &[Point]) -> Result<(Point, Disk), OpenError> {
        let chosen = self.chosen(points);
        let mut disks = points
            .iter()
            .flat_map(|point| point.disks.iter().map(move |disk| (point, disk)))
            .filter(|(point, disk)| is_among(chosen.as_deref(), point, disk));
        match (disks.next(), disks.next()) {
            (Some((point, disk)), None) => Ok((point.clone(), disk.clone())),
            _ => Err(OpenError::Unavailable(
                "say which export: `nbdinfo --list` shows their names".to_owned(),
            )),
        }
    }

    /// The disk, shared with whoever has it open already.
    pub(crate) fn open_disk(&self, point: &Point, disk: &Disk) -> Result<Arc<OpenDisk>, OpenError> {
        self.open_disk_by(point, disk, false)
    }

    /// The same; `moves` where the name can come to mean another point.
    fn open_disk_by(
        &self,
        point: &Point,
        disk: &Disk,
        moves: bool,
    ) -> Result<Arc<OpenDisk>, OpenError> {
        let key = (point.id, disk.target.clone(), moves);
        if let Some(open) = self.open_disks().get(&key).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let is_open = |disk: &&Weak<OpenDisk>| disk.strong_count() > 0;
        let count = self.open_disks().values().filter(is_open).count();
        if count >= self.0.disks_max {
            return Err(OpenError::Unavailable(format!(
                "{} disks are open, which is as many as there may be: try again later",
                self.0.disks_max
            )));
        }
        let reader = self.0.repo.read_disk(point, disk).map_err(unavailable)?;
        self.tell_of_lease(reader.is_held(), point, disk);
        let description = describe(point, disk, &self.0.zone);
        let opened = OpenDisk::new(
            self.clone(),
            reader,
            point.clone(),
            disk,
            description,
            moves,
        );
        let opened = Arc::new(opened);
        let mut disks = self.open_disks();
        disks.retain(|_, disk| disk.strong_count() > 0);
        // Somebody may have been faster.
        match disks.get(&key).and_then(Weak::upgrade) {
            Some(open) => Ok(open),
            None => {
                disks.insert(key, Arc::downgrade(&opened));
                Ok(opened)
            }
        }
    }

    /// Tells of the first disk that is read without a lease since there last was one.
    fn tell_of_lease(&self, is_held: bool, point: &Point, disk: &Disk) {
        let lacks = !is_held && self.0.repo.takes_leases();
        if lacks && !self.0.lacks_leases.swap(true, Ordering::Relaxed) {
            self.note(&format!(
                "{}/{}@{}: no space for a lease. It is read without one, as is all that is opened until there \
                 is space: do not forget points that are in use, or `virtkeep prune` may remove what is read",
                shown(&point.domain.name),
                shown(&disk.target),
                point.id
            ));
        }
        if is_held {
            self.0.lacks_leases.store(false, Ordering::Relaxed);
        }
    }

    /// What a client wants to compare with a disk whose target is `target`.
    pub(super) fn find_to_compare(
        &self,
        name: &str,
        target: &str,
    ) -> Result<(Point, Disk), OpenError> {
        let points = self.points().map_err(unavailable)?;
        let spec = PointSpec::parse(name, &self.0.zone).map_err(unavailable)?;
        self.resolve(&spec, name, Some(target), &points)
    }

    /// The same, opened.
    pub(super) fn open_to_compare(
        &self,
        name: &str,
        target: &str,
    ) -> Result<Arc<OpenDisk>, OpenError> {
        let (point, disk) = self.find_to_compare(name, target)?;
        self.open_disk(&point, &disk)
    }

    /// The points of the same domain that hold a disk of this target, are served and older than
    /// `point`; the newest first, at most `count`.
    pub(super) fn earlier(&self, point: &Point, target: &str, count: usize) -> Vec<PointId> {
        // Only to be listed: where the points cannot be read now, there is nothing to list.
        let Ok(points) = self.points() else {
            return Vec::new();
        };
        let chosen = self.chosen(&points);
        let is_served = |other: &Point| {
            let disk = other.disks.iter().find(|disk| disk.target == target);
            disk.is_some_and(|disk| is_among(chosen.as_deref(), other, disk))
        };
        points
            .iter()
            .rev()
            .skip_while(|other| other.id != point.id)
            .skip(1)
            .filter(|other| other.domain.uuid == point.domain.uuid)
            .filter(|other| is_served(other))
            .map(|other| other.id)
            .take(count)
            .collect()
    }

    fn open_disks(&self) -> MutexGuard<'_, OpenDisks> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line for whoever runs the server.
    pub(crate) fn note(&self, text: &str) {
        self.0.reporter.note(text);
    }
}

impl Exports for Catalog {
    fn list(&self, _: &Client) -> Result<Arc<[Listing]>, ExportError> {
        self.entries().map_err(|error| {
            self.note(&format!("cannot list the points: {error}"));
            ExportError::new(nbd_server::ErrorCode::Io, error.to_string())
        })
    }

    fn open(&self, name: &str, _: &Client) -> Result<Arc<dyn Export>, OpenError> {
        let points = self.points().map_err(unavailable)?;
        if name.is_empty() {
            let (point, disk) = self.only(&points)?;
            let moves = !matches!(&self.0.chosen[..], [chosen] if !chosen.moves());
            return Ok(self.open_disk_by(&point, &disk, moves)?);
        }
        let spec = PointSpec::parse(name, &self.0.zone).map_err(unavailable)?;
        let (point, disk) = self.resolve(&spec, name, None, &points)?;
        Ok(self.open_disk_by(&point, &disk, spec.moves())?)
    }
}

fn unavailable(error: impl std::error::Error) -> OpenError {
    OpenError::Unavailable(error.to_string())
}

/// The points of each domain, under the name it had last; the domains in the order of their names.
pub(crate) fn by_domain(points: &[Point]) -> Vec<(&str, Vec<&Point>)> {
    let mut domains: Vec<(&str, Vec<&Point>)> = Vec::new();
    let mut places: HashMap<DomainUuid, usize> = HashMap::new();
    for point in points {
        let place = *places.entry(point.domain.uuid).or_insert_with(|| {
            domains.push(("", Vec::new()));
            domains.len() - 1
        });
        domains[place].0 = &point.domain.name;
        domains[place].1.push(point);
    }
    domains.sort_by_key(|(name, points)| (*name, points[0].domain.uuid));
    domains
}

fn is_among(chosen: Option<&[Found<'_>]>, point: &Point, disk: &Disk) -> bool {
    chosen.is_none_or(|chosen| {
        chosen.iter().any(|found| {
            found.point.id == point.id && found.disk.is_none_or(|target| target == disk.target)
        })
    })
}

/// `DOMAIN/DISK`, with the uuid where the name would be taken for something else.
fn name_of(domain: &str, uuid: DomainUuid, disk: &Disk, points: &[Point]) -> String {
    let name = format!("{domain}/{}", disk.target);
    let is_ours = points_of(domain, points)
        .is_ok_and(|points| points.iter().all(|point| point.domain.uuid == uuid));
    let is_domain = !matches!(points_of(&name, points), Err(PointError::NotFound(_)));
    if is_ours && !is_domain {
        name
    } else {
        format!("{uuid}/{}", disk.target)
    }
}

fn describe(point: &Point, disk: &Disk, zone: &TimeZone) -> String {
    format!(
        "{} of {} at {}, {}, point {}",
        shown(&disk.target),
        shown(&point.domain.name),
        local_time(point.time, zone),
        size(disk.size.0),
        point.id
    )
}

fn which_disk(name: &str, point: &Point) -> String {
    let targets: Vec<_> = point.disks.iter().map(|disk| shown(&disk.target)).collect();
    format!(
        "{} is a point of {} disks ({}): write DOMAIN/DISK@WHEN",
        shown(name),
        targets.len(),
        targets.join(", ")
    )
}
