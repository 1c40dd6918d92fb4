//! The names of domains and points, as they are at one moment.
//!
//! Built once per change of the repository, so that a directory of thousands of points costs no more
//! than its names. Names are unique within a directory, and none can leave it.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use virtkeep_repo::{DomainUuid, Point, PointId};

use crate::point_spec::times;
use crate::restore::file_names::safe;
use crate::serve::catalog::by_domain;

/// All domains with their points.
pub(super) struct Tree {
    points: Arc<Vec<Point>>,
    domains: Vec<DomainDir>,
    by_name: HashMap<String, usize>,
    by_uuid: HashMap<DomainUuid, usize>,
    by_id: HashMap<PointId, usize>,
}

/// The directory of a domain.
pub(super) struct DomainDir {
    /// The name it had last, or its uuid where others have the same.
    pub(super) name: String,
    /// Whose it is.
    pub(super) uuid: DomainUuid,
    /// Names of points, from old to new, and their places among all points.
    points: Vec<(String, usize)>,
    by_name: HashMap<String, usize>,
}

impl Tree {
    /// The names of `points`, with times in `zone`.
    pub(super) fn new(points: Arc<Vec<Point>>, zone: &TimeZone) -> Self {
        let by_id: HashMap<PointId, usize> =
            (points.iter().map(|point| point.id)).zip(0..).collect();
        let of_domains = by_domain(&points);
        let mut sharing: HashMap<String, usize> = HashMap::new();
        for (name, _) in &of_domains {
            *sharing.entry(safe(name)).or_default() += 1;
        }
        let mut domains = Vec::new();
        let mut by_name = HashMap::new();
        let mut by_uuid = HashMap::new();
        for (name, of_domain) in of_domains {
            let uuid = of_domain[0].domain.uuid;
            let name = Some(safe(name))
                .filter(|name| sharing[name] == 1 && name.parse::<DomainUuid>().is_err())
                .unwrap_or_else(|| uuid.to_string());
            by_name.insert(name.clone(), domains.len());
            by_uuid.insert(uuid, domains.len());
            domains.push(DomainDir::new(name, &of_domain, &by_id, zone));
        }
        Self {
            domains,
            by_name,
            by_uuid,
            by_id,
            points,
        }
    }

    /// The points this was made of.
    pub(super) fn made_of(&self, points: &Arc<Vec<Point>>) -> bool {
        Arc::ptr_eq(&self.points, points)
    }

    /// All domains, by name.
    pub(super) fn domains(&self) -> &[DomainDir] {
        &self.domains
    }

    /// The domain of this name.
    pub(super) fn domain_named(&self, name: &str) -> Option<&DomainDir> {
        self.by_name.get(name).map(|place| &self.domains[*place])
    }

    /// The domain of this uuid.
    pub(super) fn domain(&self, uuid: DomainUuid) -> Option<&DomainDir> {
        self.by_uuid.get(&uuid).map(|place| &self.domains[*place])
    }

    /// The point of this id.
    pub(super) fn point(&self, id: PointId) -> Option<&Point> {
        self.by_id.get(&id).map(|place| &self.points[*place])
    }

    /// The points of a domain under their names, from old to new.
    pub(super) fn points_of<'a>(
        &'a self,
        domain: &'a DomainDir,
    ) -> impl DoubleEndedIterator<Item = (&'a str, &'a Point)> {
        let named = |(name, place): &'a (String, usize)| (&name[..], &self.points[*place]);
        domain.points.iter().map(named)
    }

    /// The point of this name.
    pub(super) fn point_named(&self, domain: &DomainDir, name: &str) -> Option<&Point> {
        domain.by_name.get(name).map(|place| &self.points[*place])
    }
}

impl DomainDir {
    fn new(
        name: String,
        points: &[&Point],
        by_id: &HashMap<PointId, usize>,
        zone: &TimeZone,
    ) -> Self {
        let mut named = Vec::new();
        let mut by_name = HashMap::new();
        for (point, time) in points.iter().zip(times(points, zone)) {
            // The same local time comes twice when clocks are set back.
            let name = match by_name.contains_key(&time) {
                false => time,
                true => format!("{time}-{}", point.id),
            };
            let place = by_id[&point.id];
            by_name.insert(name.clone(), place);
            named.push((name, place));
        }
        Self {
            name,
            uuid: points[0].domain.uuid,
            points: named,
            by_name,
        }
    }
}
