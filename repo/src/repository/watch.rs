//! The points of a repository for programs that go on asking: looked at again only when something
//! may have changed.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::Repository;
use crate::sync::lock;
use crate::{Error, Point, Result};

/// A directory that changed less than this before it was looked at may change again without showing a
/// newer time: file systems count time in ticks.
const TICK_MAX: Duration = Duration::from_secs(1);

/// What was seen of the points the last time.
#[derive(Debug, Default)]
pub struct PointWatch(Mutex<Option<Seen>>);

#[derive(Debug)]
struct Seen {
    /// When the directory of points had changed last; trusted only when that was long enough ago.
    changed: SystemTime,
    points: Arc<Vec<Point>>,
}

impl PointWatch {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All points, oldest first, as [`Repository::points`] gives them.
    pub fn points(&self, repo: &Repository) -> Result<Arc<Vec<Point>>> {
        let directory = repo.path().join("points");
        // Before looking: what changes from here on shows a later time.
        let now = SystemTime::now();
        let changed = fs::metadata(&directory)
            .and_then(|metadata| metadata.modified())
            .map_err(Error::io("look at", &directory))?;
        let mut seen = lock(&self.0);
        if let Some(seen) = &*seen
            && seen.changed == changed
        {
            return Ok(Arc::clone(&seen.points));
        }
        let points = Arc::new(repo.points()?);
        let settled = now
            .duration_since(changed)
            .is_ok_and(|since| since > TICK_MAX);
        *seen = settled.then(|| Seen {
            changed,
            points: Arc::clone(&points),
        });
        Ok(points)
    }
}
