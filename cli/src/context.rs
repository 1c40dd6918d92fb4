//! What a command works with: the repository, libvirt, the local time zone, the output.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use jiff::tz::TimeZone;
use virtkeep_capture::Host;
use virtkeep_repo::{Env, OpenOptions, Pin, Point, PointId, Repository};

use crate::args::Global;
use crate::output::{Output, shown};
use crate::point_spec::{Found, PointSpec};
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
        Ok(Repository::open(
            self.repository_path()?,
            &options,
            Env::system(),
        )?)
    }

    /// All points that can be read, oldest first. Those whose records are damaged are named on
    /// standard error, so that nobody takes an older point for the latest unknowingly.
    pub(crate) fn points(&self, repo: &Repository) -> Result<Vec<Point>> {
        for (id, error) in repo.damaged_points()? {
            self.reporter.note(&format!(
                "warning: the point {id} is damaged and left out here: {error}"
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
                let forgotten = repo.forgotten()?.points;
                points.extend(forgotten.into_iter().filter(fits));
            }
        }
        Ok(points)
    }

    /// What keeps points from being forgotten. A pin that cannot be read is named on standard error:
    /// no reason not to show the points.
    pub(crate) fn pins(&self, repo: &Repository) -> HashMap<PointId, Vec<Pin>> {
        let mut pins: HashMap<PointId, Vec<Pin>> = HashMap::new();
        match repo.pins().list() {
            Ok(all) => {
                for (_, pin) in all {
                    for point in &pin.points {
                        pins.entry(*point).or_default().push(pin.clone());
                    }
                }
            }
            Err(error) => self
                .reporter
                .note(&format!("warning: no pins are shown: {error}")),
        }
        pins
    }

    /// Connects to libvirt.
    pub(crate) fn host(&self) -> Result<Host> {
        Ok(Host::connect(self.libvirt_uri())?)
    }

    /// Reads a POINT.
    pub(crate) fn parse_point(&self, text: &str) -> Result<PointSpec> {
        Ok(PointSpec::parse(text, &self.zone)?)
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
