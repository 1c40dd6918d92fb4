//! What a command works with: the repository, libvirt, the local time zone, the output.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use jiff::tz::TimeZone;
use virtkeep_capture::Host;
use virtkeep_repo::{DamagedPin, Env, OpenOptions, Pin, Point, PointId, Repository};

use crate::args::Global;
use crate::output::{Output, counted, shown};
use crate::point_spec::{Found, PointError, PointSpec};
use crate::progress::Reporter;
use crate::when;

/// The surroundings of one command.
#[derive(Debug)]
pub(crate) struct Context {
    global: Global,
    /// Where results go.
    pub(crate) output: Output,
    /// Where progress and notes go.
    pub(crate) reporter: Reporter,
    /// The zone of local times.
    pub(crate) zone: TimeZone,
}

/// No repository was named.
#[derive(Debug, thiserror::Error)]
#[error("no repository given: use -r REPO, or set VIRTKEEP_REPO")]
pub(crate) struct NoRepositoryGiven;

impl Context {
    /// For these options.
    pub(crate) fn new(global: Global) -> Self {
        Self {
            output: Output::new(global.json),
            reporter: Reporter::new(),
            zone: TimeZone::system(),
            global,
        }
    }

    /// The path of the repository.
    pub(crate) fn repository_path(&self) -> Result<&Path, NoRepositoryGiven> {
        let path = self.global.repository.as_ref();
        path.filter(|path| !path.as_os_str().is_empty())
            .map(PathBuf::as_path)
            .ok_or(NoRepositoryGiven)
    }

    /// Whether a network file system is accepted.
    pub(crate) fn unsafe_network_fs(&self) -> bool {
        self.global.unsafe_network_fs
    }

    /// The libvirt to talk to, where one was named.
    pub(crate) fn libvirt_uri(&self) -> Option<&str> {
        self.global.connect.as_deref()
    }

    /// Opens the repository to add to it.
    pub(crate) fn open(&self) -> Result<Repository> {
        self.open_with(false)
    }

    /// Opens the repository to read it: read-only media will do.
    pub(crate) fn open_to_read(&self) -> Result<Repository> {
        self.open_with(true)
    }

    fn open_with(&self, read_only: bool) -> Result<Repository> {
        let options = OpenOptions {
            read_only,
            no_lock: self.global.no_lock,
            unsafe_network_fs: self.global.unsafe_network_fs,
            ..OpenOptions::default()
        };
        let repo = Repository::open(self.repository_path()?, &options, Env::system())?;
        for warning in repo.warnings() {
            self.reporter.note(&format!("warning: {warning}"));
        }
        Ok(repo)
    }

    /// All points that can be read, oldest first. Those whose records are damaged are named on
    /// standard error, so that nobody takes an older point for the latest unknowingly.
    pub(crate) fn points(&self, repo: &Repository) -> Result<Vec<Point>> {
        for (id, error) in repo.damaged_points()? {
            self.reporter.note(&format!(
                "warning: the point {id} is damaged and left out here: {}. `virtkeep repair` may put its record back",
                error.reason()
            ));
        }
        let lost = repo.lost_points()?;
        if !lost.is_empty() {
            const FEW: usize = 5;
            let mut ids: Vec<String> = lost.iter().take(FEW).map(PointId::to_string).collect();
            ids.extend((lost.len() > FEW).then(|| "…".to_owned()));
            self.reporter.note(&format!(
                "warning: {} left out here, since the record is lost: {}. `virtkeep repair` may put it back",
                counted(lost.len(), "point"),
                ids.join(", ")
            ));
        }
        Ok(repo.points()?)
    }

    /// As [`points`](Self::points), for a POINT that may name a forgotten one by its id: where no other
    /// point has that id, the forgotten ones that do are added.
    pub(crate) fn points_named(&self, repo: &Repository, spec: &PointSpec) -> Result<Vec<Point>> {
        let mut points = self.points(repo)?;
        if let Some(prefix) = spec.id_prefix() {
            let fits = |point: &Point| point.id.to_string().starts_with(prefix);
            if !points.iter().any(fits) {
                let forgotten = repo.forgotten()?;
                for (id, error) in forgotten.damaged {
                    if id.to_string().starts_with(prefix) {
                        let why = error.reason();
                        self.reporter.note(&format!(
                            "warning: the record of the forgotten point {id} is damaged: {why}"
                        ));
                    }
                }
                points.extend(forgotten.points.into_iter().filter(fits));
            }
        }
        Ok(points)
    }

    /// What keeps points from being forgotten. Pins that cannot be read are named on standard error:
    /// no reason not to show the points.
    pub(crate) fn pins(&self, repo: &Repository) -> HashMap<PointId, Vec<Pin>> {
        let mut pins: HashMap<PointId, Vec<Pin>> = HashMap::new();
        match repo.pins().scan() {
            Ok(found) => {
                for (_, pin) in found.sound {
                    for point in &pin.points {
                        pins.entry(*point).or_default().push(pin.clone());
                    }
                }
                self.warn_of_pins(&found.damaged);
            }
            Err(error) => self
                .reporter
                .note(&format!("warning: no pins are shown: {error}")),
        }
        pins
    }

    /// Names damaged pins on standard error.
    pub(crate) fn warn_of_pins(&self, damaged: &[DamagedPin]) {
        for pin in damaged {
            self.reporter.note(&format!(
                "warning: the pin {} is damaged ({}), and nobody knows which points it keeps: `virtkeep unpin {}` removes it",
                pin.path.display(),
                pin.why,
                pin.name
            ));
        }
    }

    /// Connects to libvirt.
    pub(crate) fn host(&self) -> Result<Host> {
        Ok(Host::connect(self.libvirt_uri())?)
    }

    /// Reads a POINT.
    pub(crate) fn parse_point(&self, text: &str) -> Result<PointSpec> {
        Ok(PointSpec::parse(text, &self.zone)?)
    }

    /// Looks a POINT up among the points there are; one that is forgotten is no use to the caller, and
    /// the error tells how it comes back.
    pub(crate) fn find_kept<'a>(
        &self,
        repo: &Repository,
        spec: &'a PointSpec,
        points: &'a [Point],
    ) -> Result<Found<'a>> {
        let error = match spec.find(points, &self.zone) {
            Err(error @ PointError::NotFound(_)) => error,
            found => return Ok(found?),
        };
        let forgotten = repo.forgotten()?.points;
        let found = spec.id_prefix().map(|_| spec.find(&forgotten, &self.zone));
        let Some(Ok(Found { point, .. })) = found else {
            return Err(error.into());
        };
        let (what, id) = (self.describe(point), point.id);
        Err(PointError::NotFound(format!(
            "{what} is forgotten: `virtkeep forget --undo {id}` brings it back"
        ))
        .into())
    }

    /// Looks a POINT up.
    pub(crate) fn find_point<'a>(
        &self,
        spec: &'a PointSpec,
        points: &'a [Point],
    ) -> Result<Found<'a>> {
        Ok(spec.find(points, &self.zone)?)
    }

    /// `DOMAIN@TIME (ID)`, for saying which point was chosen.
    pub(crate) fn describe(&self, point: &Point) -> String {
        format!(
            "{}@{} ({})",
            shown(&point.domain.name),
            when::local_time(point.time, &self.zone),
            point.id
        )
    }
}
