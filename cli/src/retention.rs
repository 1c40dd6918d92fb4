//! Which points a policy keeps, and why.
//!
//! A function of the points, the policy, the moment and the time zone, without side effects. Every
//! domain is looked at by itself. Days, ISO weeks, months and years are local ones.
//!
//! - Of each hour, day, week, month or year the newest point counts, from the newest period that has
//!   one backwards; a period without points takes no place. Of two points of the same time, the one
//!   with the greater id is the newer: the answer never depends on an order of listing.
//! - `--keep-within` counts from the newest point of the domain, so that a domain which is no longer
//!   backed up keeps its last points.
//! - A point whose time lies in the future was made while a clock was wrong. It is kept, takes no
//!   place of another one, and `--keep-within` does not count from it.
//! - To apply a policy again to what it kept changes nothing; to ask for more keeps all that was kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Span, Zoned};
use virtkeep_repo::{DomainUuid, Point, PointId, UnixMillis};

use crate::output::shown;
use crate::when::zoned;

/// What points are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Every {
    /// Each point for itself.
    Point,
    /// An hour; the one that comes twice when clocks are set back is two.
    Hour,
    /// A day.
    Day,
    /// A week from Monday to Sunday (ISO 8601).
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

/// What is to be kept. A point goes when nothing keeps it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    /// Of how many points, hours, days and so on the newest point is kept.
    pub(crate) counts: BTreeMap<Every, u64>,
    /// How long before the newest point of its domain a point may lie.
    pub(crate) within: Option<Span>,
    /// Points with one of these labels.
    pub(crate) tags: Vec<String>,
}

/// Why a point is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is the newest of its period, and the period is one of those counted.
    Counted {
        /// The kind of period.
        every: Every,
        /// Which one, from the newest: 1 and up.
        place: u64,
        /// How many count.
        of: u64,
    },
    /// It is not much older than the newest one.
    Within(String),
    /// It has this label.
    Tag(String),
    /// It is pinned, for this reason.
    Pinned(String),
    /// Its time is still to come.
    Future,
}

/// One point and what becomes of it.
#[derive(Debug)]
pub(crate) struct Verdict<'a> {
    /// The point.
    pub(crate) point: &'a Point,
    /// All that keeps it; it goes when there is nothing.
    pub(crate) reasons: Vec<Reason>,
}

impl Verdict<'_> {
    /// Whether the point stays.
    pub(crate) fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

impl Policy {
    /// Whether nothing is asked for, so that everything would go.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.values().all(|count| *count == 0)
            && self.within.is_none()
            && self.tags.is_empty()
    }

    /// Says of every point why it stays or that it goes: a list per domain, each from old to new.
    /// `pins` holds the reasons of the pins of a point.
    pub(crate) fn apply<'a>(
        &self,
        points: impl IntoIterator<Item = &'a Point>,
        pins: &HashMap<PointId, Vec<String>>,
        now: UnixMillis,
        zone: &TimeZone,
    ) -> Vec<Vec<Verdict<'a>>> {
        let mut domains: BTreeMap<DomainUuid, Vec<&Point>> = BTreeMap::new();
        for point in points {
            domains.entry(point.domain.uuid).or_default().push(point);
        }
        let mut verdicts: Vec<_> = domains
            .into_values()
            .map(|points| self.apply_to_domain(points, pins, now, zone))
            .collect();
        // By the name the domain has now; never empty.
        verdicts.sort_by(|a, b| name(a).cmp(&name(b)));
        verdicts
    }

    fn apply_to_domain<'a>(
        &self,
        mut points: Vec<&'a Point>,
        pins: &HashMap<PointId, Vec<String>>,
        now: UnixMillis,
        zone: &TimeZone,
    ) -> Vec<Verdict<'a>> {
        points.sort_by_key(|point| (point.time, point.id));
        let first_future = points.partition_point(|point| point.time <= now);
        let past = &points[..first_future];
        let earliest = self.earliest(past, zone);
        let mut verdicts: Vec<Verdict> = points
            .iter()
            .map(|point| Verdict {
                point,
                reasons: Vec::new(),
            })
            .collect();
        for (every, count) in &self.counts {
            for (place, at) in (1..=*count).zip(newest_of_each(*every, past, zone)) {
                verdicts[at].reasons.push(Reason::Counted {
                    every: *every,
                    place,
                    of: *count,
                });
            }
        }
        for (at, verdict) in verdicts.iter_mut().enumerate() {
            let Verdict { point, reasons } = verdict;
            if at >= first_future {
                reasons.push(Reason::Future);
            } else if let (Some(within), Some(earliest)) = (self.within, earliest)
                && point.time >= earliest
            {
                reasons.push(Reason::Within(format!("{within:#}")));
            }
            let tags = self.tags.iter().filter(|tag| point.tags.contains(tag));
            reasons.extend(tags.cloned().map(Reason::Tag));
            let pins = pins.get(&point.id).into_iter().flatten();
            reasons.extend(pins.cloned().map(Reason::Pinned));
        }
        verdicts
    }

    /// The earliest time that lies within the span before the newest point.
    fn earliest(&self, past: &[&Point], zone: &TimeZone) -> Option<UnixMillis> {
        let newest = zoned(past.last()?.time, zone);
        let millis = match newest.checked_sub(self.within?) {
            Ok(earliest) => earliest.timestamp().as_millisecond(),
            // Before all time.
            Err(_) => 0,
        };
        Some(UnixMillis(u64::try_from(millis).unwrap_or(0)))
    }
}

fn name<'a>(verdicts: &[Verdict<'a>]) -> Option<(&'a str, DomainUuid)> {
    let newest = verdicts.last()?.point;
    Some((&newest.domain.name, newest.domain.uuid))
}

/// The places of the newest points of each period, the newest period first.
fn newest_of_each(every: Every, past: &[&Point], zone: &TimeZone) -> Vec<usize> {
    let mut places = Vec::new();
    let mut last = None;
    for (place, point) in past.iter().enumerate().rev() {
        let period = period(every, place, &zoned(point.time, zone));
        if last != Some(period) {
            places.push(place);
            last = Some(period);
        }
    }
    places
}

/// Names the period that a time lies in: year, part of it, hour, offset of the local time.
fn period(every: Every, place: usize, time: &Zoned) -> (i64, i64, i64, i64) {
    let (year, day) = (i64::from(time.year()), i64::from(time.day_of_year()));
    match every {
        Every::Point => (place as i64, 0, 0, 0),
        Every::Hour => {
            let offset = i64::from(time.offset().seconds());
            (year, day, i64::from(time.hour()), offset)
        }
        Every::Day => (year, day, 0, 0),
        Every::Week => {
            let week = time.date().iso_week_date();
            (i64::from(week.year()), i64::from(week.week()), 0, 0)
        }
        Every::Month => (year, i64::from(time.month()), 0, 0),
        Every::Year => (year, 0, 0, 0),
    }
}

impl Every {
    /// As in the name of the option.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Point => "last",
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }
}

impl Reason {
    /// The rule that keeps the point, as a stable word.
    pub(crate) fn rule(&self) -> &'static str {
        match self {
            Self::Counted { every, .. } => every.word(),
            Self::Within(_) => "within",
            Self::Tag(_) => "tag",
            Self::Pinned(_) => "pinned",
            Self::Future => "future",
        }
    }

    /// What else there is to say of it.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::Counted { place, of, .. } => Some(format!("{place} of {of}")),
            Self::Within(text) | Self::Tag(text) | Self::Pinned(text) => Some(text.clone()),
            Self::Future => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted { .. } | Self::Within(_) => {
                write!(f, "{} {}", self.rule(), self.detail().unwrap_or_default())
            }
            Self::Tag(tag) => write!(f, "tag {}", shown(tag)),
            Self::Pinned(reason) => write!(f, "pinned ({})", shown(reason)),
            Self::Future => f.write_str("its time is in the future"),
        }
    }
}

/// Reads the span of `--keep-within`: `36h`, `14d`, `8w`, `6mo`, `1y6mo`.
pub(crate) fn parse_within(text: &str) -> Result<Span, String> {
    let meant = "write it like 36h, 14d, 8w, 6mo or 1y";
    let span: Span = text.parse().map_err(|_| meant.to_owned())?;
    if !span.is_positive() {
        return Err(format!("it must be longer than nothing: {meant}"));
    }
    let hours_and_more = Span::new()
        .years(span.get_years())
        .months(span.get_months())
        .weeks(span.get_weeks())
        .days(span.get_days())
        .hours(span.get_hours());
    // `6m` are minutes for some and months for others.
    if span.fieldwise() != hours_and_more {
        return Err(format!("a span of hours and longer is wanted: {meant}"));
    }
    Ok(span)
}

/// Reads how many are to be kept.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "a whole number is needed, such as 7".to_owned())
}

/// Reads a label of points.
pub(crate) fn parse_tag(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err("a label cannot be empty".to_owned()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
