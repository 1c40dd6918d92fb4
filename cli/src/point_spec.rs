//! POINT: how a restore point is named on the command line.
//!
//! `DOMAIN@WHEN`, or `DOMAIN/DISK@WHEN` where one disk is meant, or a point id alone. Domain names
//! are hostile: they may hold `@` and `/` themselves. So a POINT is split at the *last* `@`, and a
//! name with a slash is a domain first, and a domain with a disk only if there is no such domain.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

use jiff::tz::TimeZone;
use virtkeep_repo::{DomainUuid, Point, PointId, UnixMillis};

use crate::output::{counted, shown};
use crate::when::{self, When, is_id_prefix};

/// A POINT as it was typed, split but not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PointSpec {
    /// The point whose id begins with this, of whatever domain.
    Id(String),
    /// A point of a domain (or of a disk of a domain) at some time.
    At {
        /// What stands before the last `@`.
        name: String,
        /// What stands behind it.
        when: When,
    },
}

/// A POINT that names a point of this repository, and perhaps one of its disks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// The point.
    pub(crate) point: &'a Point,
    /// The disk, where the POINT named one.
    pub(crate) disk: Option<&'a str>,
}

/// Why a POINT names no point.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PointError {
    /// It is not written as a POINT: a mistake in usage.
    #[error("{0}")]
    Syntax(String),
    /// Nothing has this name or time.
    #[error("{0}")]
    NotFound(String),
    /// Several have it.
    #[error("{0}")]
    Ambiguous(String),
}

impl PointSpec {
    /// Splits `text`; local times are taken in `zone`.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Result<Self, PointError> {
        if let Some((name, when)) = text.rsplit_once('@') {
            if name.is_empty() {
                return Err(syntax(text, "the domain is missing before `@`"));
            }
            let when = When::parse(when, zone).map_err(|why| syntax(text, &why))?;
            return Ok(Self::At {
                name: name.to_owned(),
                when,
            });
        }
        if is_id_prefix(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        Err(syntax(
            text,
            "write DOMAIN@latest, DOMAIN@2026-11-22T22:11, or a point id from `virtkeep list`",
        ))
    }

    /// Whether it can come to mean another point: unless it is a whole id, or a time to the second, as long as
    /// that is [taken at its word](Self::find_exactly).
    pub(crate) fn moves(&self) -> bool {
        match self.id_prefix() {
            Some(prefix) => prefix.parse::<PointId>().is_err(),
            None => self.second().is_none(),
        }
    }

    /// The time that was named, where it is one to the second or finer.
    fn second(&self) -> Option<Range<UnixMillis>> {
        match self {
            Self::At {
                when: When::Before { start, end },
                ..
            } if end.0 - start.0 <= 1000 => Some(*start..*end),
            _ => None,
        }
    }

    /// The id, or the beginning of it, where the point is named by that.
    pub(crate) fn id_prefix(&self) -> Option<&str> {
        match self {
            Self::Id(prefix)
            | Self::At {
                when: When::Id(prefix),
                ..
            } => Some(prefix),
            Self::At { .. } => None,
        }
    }

    /// Looks the point up among `points`, which are sorted from old to new.
    pub(crate) fn find<'a>(
        &'a self,
        points: &'a [Point],
        zone: &TimeZone,
    ) -> Result<Found<'a>, PointError> {
        match self {
            Self::Id(prefix) => find_id(prefix, points.iter().collect(), zone)
                .map(|point| Found { point, disk: None })
                .map_err(|error| match named(prefix, points) {
                    Named::Nobody => error,
                    _ => syntax(
                        prefix,
                        "that is a domain; say which of its points: DOMAIN@latest, for example",
                    ),
                }),
            Self::At { name, when } => {
                let (owned, disk) = domain_and_disk(name, points)?;
                let point = find_when(name, when, owned, zone)?;
                if let Some(disk) = disk
                    && !point.disks.iter().any(|d| d.target == disk)
                {
                    return Err(PointError::NotFound(no_such_disk(point, disk)));
                }
                Ok(Found { point, disk })
            }
        }
    }

    /// The same, but a time to the second means the one point of that second, and nothing older: whoever uses a
    /// name again and again gets that very point, or none.
    pub(crate) fn find_exactly<'a>(
        &'a self,
        points: &'a [Point],
        zone: &TimeZone,
    ) -> Result<Found<'a>, PointError> {
        let found = self.find(points, zone)?;
        let Some(second) = self.second() else {
            return Ok(found);
        };
        let domain = &found.point.domain;
        let is_meant = |p: &&Point| p.domain.uuid == domain.uuid && second.contains(&p.time);
        match points.iter().filter(is_meant).count() {
            1 => Ok(found),
            0 => Err(PointError::NotFound(format!(
                "there is no point of {} at that very time any more: the one before it is {}",
                shown(&domain.name),
                when::local_time(found.point.time, zone)
            ))),
            count => Err(PointError::Ambiguous(format!(
                "{} lie in that second: name the milliseconds, or the id",
                counted(count, "point")
            ))),
        }
    }
}

fn syntax(text: &str, why: &str) -> PointError {
    PointError::Syntax(format!("cannot understand the point {:?}: {why}", text))
}

/// The sentence for a disk that a point does not have.
pub(crate) fn no_such_disk(point: &Point, disk: &str) -> String {
    let has: Vec<_> = point.disks.iter().map(|d| shown(&d.target)).collect();
    format!(
        "the point {} of {} has no disk {}: it has {}",
        point.id,
        shown(&point.domain.name),
        shown(disk),
        if has.is_empty() {
            "none".to_owned()
        } else {
            has.join(", ")
        }
    )
}

/// Who goes by a name among the domains of some points.
enum Named {
    Nobody,
    One(DomainUuid),
    Several(Vec<DomainUuid>),
}

/// Finds a domain by its uuid, by the name it has now, or by one that it had.
fn named(name: &str, points: &[Point]) -> Named {
    if let Ok(uuid) = name.parse::<DomainUuid>()
        && points.iter().any(|p| p.domain.uuid == uuid)
    {
        return Named::One(uuid);
    }
    let mut uuids: Vec<DomainUuid> = Vec::new();
    for point in points.iter().filter(|p| p.domain.name == name) {
        if !uuids.contains(&point.domain.uuid) {
            uuids.push(point.domain.uuid);
        }
    }
    match uuids[..] {
        [] => Named::Nobody,
        [uuid] => Named::One(uuid),
        _ => Named::Several(uuids),
    }
}

/// The points of the domain `name`, which is a name or a uuid; oldest first.
pub(crate) fn points_of<'a>(name: &str, points: &'a [Point]) -> Result<Vec<&'a Point>, PointError> {
    match named(name, points) {
        Named::One(uuid) => Ok(points.iter().filter(|p| p.domain.uuid == uuid).collect()),
        Named::Nobody => Err(PointError::NotFound(no_such_domain(name, points))),
        Named::Several(uuids) => {
            let mut text = format!(
                "{} different domains were backed up under the name {}: use the uuid instead.",
                uuids.len(),
                shown(name)
            );
            for uuid in uuids {
                let count = points.iter().filter(|p| p.domain.uuid == uuid).count();
                let _ = write!(text, "\n  {uuid}  {}", counted(count, "point"));
            }
            Err(PointError::Ambiguous(text))
        }
    }
}

fn no_such_domain(name: &str, points: &[Point]) -> String {
    if points.is_empty() {
        return format!(
            "there is no point of {}: the repository is empty",
            shown(name)
        );
    }
    let mut names: Vec<_> = points.iter().map(|p| shown(&p.domain.name)).collect();
    names.sort();
    names.dedup();
    const FEW: usize = 8;
    let more = if names.len() > FEW { ", …" } else { "" };
    names.truncate(FEW);
    format!(
        "there is no point of {}: the repository holds points of {}{more}",
        shown(name),
        names.join(", ")
    )
}

/// Takes `name` for a domain, and failing that for DOMAIN/DISK.
fn domain_and_disk<'a, 'n>(
    name: &'n str,
    points: &'a [Point],
) -> Result<(Vec<&'a Point>, Option<&'n str>), PointError> {
    let whole = points_of(name, points);
    match (whole, name.rsplit_once('/')) {
        (Err(PointError::NotFound(_)), Some((domain, disk))) if !domain.is_empty() => {
            Ok((points_of(domain, points)?, Some(disk)))
        }
        (whole, _) => Ok((whole?, None)),
    }
}

fn find_when<'a>(
    name: &str,
    when: &When,
    owned: Vec<&'a Point>,
    zone: &TimeZone,
) -> Result<&'a Point, PointError> {
    let not_found = |why: String| Err(PointError::NotFound(why));
    let count = owned.len();
    match when {
        When::Latest(back) => match owned.iter().rev().nth(*back) {
            Some(point) => Ok(point),
            None => not_found(format!(
                "there is no {}@latest~{back}: the domain has {}",
                shown(name),
                counted(count, "point")
            )),
        },
        When::Before { end, .. } => match owned.iter().rev().find(|p| p.time < *end) {
            Some(point) => Ok(point),
            None => not_found(match owned.first() {
                Some(oldest) => format!(
                    "there is no point of {} that old: the oldest is {}@{}",
                    shown(name),
                    shown(&oldest.domain.name),
                    when::local_time(oldest.time, zone)
                ),
                None => format!("there is no point of {}", shown(name)),
            }),
        },
        When::Id(prefix) => find_id(prefix, owned, zone),
    }
}

fn find_id<'a>(
    prefix: &str,
    among: Vec<&'a Point>,
    zone: &TimeZone,
) -> Result<&'a Point, PointError> {
    let matches: Vec<_> = among
        .into_iter()
        .filter(|p| p.id.to_string().starts_with(prefix))
        .collect();
    match matches[..] {
        [point] => Ok(point),
        [] => Err(PointError::NotFound(format!(
            "no restore point {prefix}: `virtkeep list` shows the points there are"
        ))),
        _ => {
            let mut text = format!(
                "{} point ids begin with {prefix}: type more of the one you mean.",
                matches.len()
            );
            const FEW: usize = 10;
            for point in matches.iter().rev().take(FEW) {
                let _ = write!(
                    text,
                    "\n  {}  {}@{}",
                    point.id,
                    shown(&point.domain.name),
                    when::local_time(point.time, zone)
                );
            }
            if matches.len() > FEW {
                text.push_str("\n  …");
            }
            Err(PointError::Ambiguous(text))
        }
    }
}

/// The times to print for `points`: local, and precise enough that `DOMAIN@TIME` means that very
/// point again.
pub(crate) fn times(points: &[&Point], zone: &TimeZone) -> Vec<String> {
    let second = |p: &Point| (p.domain.uuid, p.time.0 / 1000);
    let mut sharing: HashMap<(DomainUuid, u64), usize> = HashMap::new();
    for point in points {
        *sharing.entry(second(point)).or_default() += 1;
    }
    points
        .iter()
        .map(|point| match sharing[&second(point)] {
            1 => when::local_time(point.time, zone),
            _ => when::local_time_exact(point.time, zone),
        })
        .collect()
}

#[cfg(test)]
#[path = "point_spec_tests.rs"]
mod tests;
