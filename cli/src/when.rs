//! The WHEN of a restore point: `latest`, `latest~3`, a time, or a point id.
//!
//! A time that leaves something out covers its whole unit, and means the newest point in or before
//! it: `2026-11-22` is good up to the end of that day. Times without a zone are local.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp, ToSpan, Zoned};
use virtkeep_repo::UnixMillis;

/// What stands behind the last `@`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The newest point but this many.
    Latest(usize),
    /// The newest point before `end`, where the unit ends that began at `start`.
    Before { start: UnixMillis, end: UnixMillis },
    /// The point whose id begins with this.
    Id(String),
}

impl When {
    /// Reads `text`, with local times in `zone`. The error says what would be understood.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest(0));
        }
        if let Some(count) = text.strip_prefix("latest~") {
            return count
                .parse()
                .map(Self::Latest)
                .map_err(|_| format!("`latest~` wants a number, not {count:?}"));
        }
        if is_id_prefix(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        unit(text, zone).ok_or_else(|| {
            format!(
                "{text:?} is neither `latest`, `latest~2`, a time like 2026-11-22T22:11, nor a point id"
            )
        })
    }
}

/// Whether `text` could be a point id or the beginning of one: `p`, then `0-9a-v`.
pub(crate) fn is_id_prefix(text: &str) -> bool {
    text.strip_prefix('p').is_some_and(|rest| {
        rest.len() <= 16 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'v'))
    })
}

/// The unit that `text` names.
fn unit(text: &str, zone: &TimeZone) -> Option<When> {
    if !text.is_ascii() {
        return None;
    }
    let (local, offset) = split_zone(text);
    let zone = offset.as_ref().unwrap_or(zone);
    let (start, unit) = civil(local)?;
    let end = start.checked_add(unit).ok()?;
    let (start, end) = (
        zone.to_ambiguous_timestamp(start),
        zone.to_ambiguous_timestamp(end),
    );
    // When clocks are set back, a local time comes twice: what begins in the hour that does, ends in its second
    // coming, since "in or before it" means the later one; what begins before that hour ends before its first.
    let end = match start.offset() {
        AmbiguousOffset::Fold { .. } => end.later(),
        _ => end.compatible(),
    };
    let (start, end) = (start.earlier().ok()?, end.ok()?);
    // Points are known to the millisecond; a finer end is rounded up so that it still covers them.
    let nanos = end.as_nanosecond();
    let end = nanos.div_euclid(1_000_000) + i128::from(nanos.rem_euclid(1_000_000) != 0);
    Some(When::Before {
        start: u64::try_from(start.as_millisecond()).ok().map(UnixMillis)?,
        end: u64::try_from(end).ok().map(UnixMillis)?,
    })
}

/// Cuts `Z` or `+01:00` off the end of a time of day.
fn split_zone(text: &str) -> (&str, Option<TimeZone>) {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return (local, Some(TimeZone::UTC));
    }
    let Some(time_starts) = text.find(['T', 't', ' ']) else {
        return (text, None);
    };
    let Some(sign) = text[time_starts..].rfind(['+', '-']) else {
        return (text, None);
    };
    let (local, offset) = text.split_at(time_starts + sign);
    match parse_offset(offset) {
        Some(zone) => (local, Some(zone)),
        None => (text, None),
    }
}

/// `+01:00`, `+0100` or `+01`.
fn parse_offset(text: &str) -> Option<TimeZone> {
    let (sign, digits) = match text.split_at(1) {
        ("+", digits) => (1, digits.replace(':', "")),
        ("-", digits) => (-1, digits.replace(':', "")),
        _ => return None,
    };
    if !matches!(digits.len(), 2 | 4) {
        return None;
    }
    let hours = number(&digits[..2], 0..=23)?;
    let minutes = match &digits[2..] {
        "" => 0,
        minutes => number(minutes, 0..=59)?,
    };
    let seconds = sign * (hours * 3600 + minutes * 60);
    jiff::tz::Offset::from_seconds(seconds)
        .ok()
        .map(TimeZone::fixed)
}

/// The first moment of the unit that `text` names, and how long the unit is.
fn civil(text: &str) -> Option<(DateTime, Span)> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = i16::try_from(field(parts.next()?, 4, 1970..=9998)?).ok()?;
    let month = parts.next().map(|t| field(t, 2, 1..=12));
    let day = parts.next().map(|t| field(t, 2, 1..=31));
    if parts.next().is_some() {
        return None;
    }
    let whole_date = day.is_some();
    let (month, day, unit) = match (month, day) {
        (None, _) => (1, 1, 1.year()),
        (Some(month), None) => (month?, 1, 1.month()),
        (Some(month), Some(day)) => (month?, day?, 1.day()),
    };
    let date = Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
    match time {
        None => Some((date.to_datetime(Time::midnight()), unit)),
        Some(_) if !whole_date => None,
        Some(time) => {
            let (time, unit) = time_of_day(time)?;
            Some((date.to_datetime(time), unit))
        }
    }
}

fn time_of_day(text: &str) -> Option<(Time, Span)> {
    let (text, fraction) = match text.split_once('.') {
        Some((text, fraction)) => (text, Some(fraction)),
        None => (text, None),
    };
    let mut parts = text.split(':');
    let hour = field(parts.next()?, 2, 0..=23)?;
    let minute = parts.next().map(|t| field(t, 2, 0..=59));
    let second = parts.next().map(|t| field(t, 2, 0..=60));
    if parts.next().is_some() {
        return None;
    }
    let (minute, second, mut unit) = match (minute, second) {
        (None, _) => (0, 0, 1.hour()),
        (Some(minute), None) => (minute?, 0, 1.minute()),
        (Some(minute), Some(second)) => (minute?, second?.min(59), 1.second()),
    };
    let mut nanos = 0;
    if let Some(fraction) = fraction {
        if second_is_missing(text) || fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let scale = 10_i32.pow(9 - u32::try_from(fraction.len()).ok()?);
        nanos = number(fraction, 0..=999_999_999)? * scale;
        unit = i64::from(scale).nanoseconds();
    }
    let small = |value: i32| i8::try_from(value).ok();
    let time = Time::new(small(hour)?, small(minute)?, small(second)?, nanos).ok()?;
    Some((time, unit))
}

fn second_is_missing(text: &str) -> bool {
    text.matches(':').count() != 2
}

/// A number of exactly `digits` digits in `range`.
fn field(text: &str, digits: usize, range: std::ops::RangeInclusive<i32>) -> Option<i32> {
    (text.len() == digits)
        .then(|| number(text, range))
        .flatten()
}

fn number(text: &str, range: std::ops::RangeInclusive<i32>) -> Option<i32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| range.contains(n))
}

/// The shortest local time, not shorter than seconds, that [`When::parse`] takes back to a point of
/// this time, as long as no other point of the domain lies in the same second.
pub(crate) fn local_time(time: UnixMillis, zone: &TimeZone) -> String {
    written(time, zone, false)
}

/// As [`local_time`], down to the millisecond: for points that share a second.
pub(crate) fn local_time_exact(time: UnixMillis, zone: &TimeZone) -> String {
    written(time, zone, true)
}

/// RFC 3339 in UTC with milliseconds, for programs.
pub(crate) fn rfc3339(time: UnixMillis) -> String {
    format!("{:.3}", timestamp(time))
}

fn timestamp(time: UnixMillis) -> Timestamp {
    i64::try_from(time.0)
        .ok()
        .and_then(|millis| Timestamp::from_millisecond(millis).ok())
        .unwrap_or(Timestamp::MAX)
}

/// A moment in a zone.
pub(crate) fn zoned(time: UnixMillis, zone: &TimeZone) -> Zoned {
    timestamp(time).to_zoned(zone.clone())
}

fn written(time: UnixMillis, zone: &TimeZone, exact: bool) -> String {
    let zoned = zoned(time, zone);
    let local = zoned.datetime();
    let text = if exact {
        local.strftime("%Y-%m-%dT%H:%M:%S%.3f").to_string()
    } else {
        local.strftime("%Y-%m-%dT%H:%M:%S").to_string()
    };
    let twice = matches!(
        zone.to_ambiguous_timestamp(local).offset(),
        AmbiguousOffset::Fold { .. }
    );
    if twice {
        text + &zoned.strftime("%:z").to_string()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn before(text: &str) -> String {
        match When::parse(text, &berlin()) {
            Ok(When::Before { end, .. }) => rfc3339(end),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_partial_time_covers_its_whole_unit() {
        assert_eq!(before("2026"), "2026-12-31T23:00:00.000Z");
        assert_eq!(before("2026-11"), "2026-11-30T23:00:00.000Z");
        assert_eq!(before("2026-11-22"), "2026-11-22T23:00:00.000Z");
        assert_eq!(before("2026-11-22T22"), "2026-11-22T22:00:00.000Z");
        assert_eq!(before("2026-11-22T22:11"), "2026-11-22T21:12:00.000Z");
        assert_eq!(before("2026-11-22 22:11"), "2026-11-22T21:12:00.000Z");
        assert_eq!(before("2026-11-22T22:11:05"), "2026-11-22T21:11:06.000Z");
        assert_eq!(before("2026-11-22T22:11:05.5"), "2026-11-22T21:11:05.600Z");
        assert_eq!(
            before("2026-11-22T22:11:05.512"),
            "2026-11-22T21:11:05.513Z"
        );
    }

    #[test]
    fn a_time_with_a_zone_is_taken_in_that_zone() {
        assert_eq!(before("2026-11-22T22:11:05Z"), "2026-11-22T22:11:06.000Z");
        assert_eq!(before("2026-11-22T22:11Z"), "2026-11-22T22:12:00.000Z");
        assert_eq!(
            before("2026-11-22T22:11:05-05:00"),
            "2026-11-23T03:11:06.000Z"
        );
        assert_eq!(
            before("2026-11-22T22:11:05.250+0530"),
            "2026-11-22T16:41:05.251Z"
        );
    }

    #[test]
    fn an_hour_that_comes_twice_ends_with_its_second_coming() {
        assert_eq!(before("2026-10-25T01"), "2026-10-25T00:00:00.000Z");
        assert_eq!(before("2026-10-25T01:59:59"), "2026-10-25T00:00:00.000Z");
        assert_eq!(before("2026-10-25T02"), "2026-10-25T02:00:00.000Z");
        assert_eq!(before("2026-10-25T02:59:59"), "2026-10-25T02:00:00.000Z");
        assert_eq!(before("2026-10-25T02:30"), "2026-10-25T01:31:00.000Z");
        assert_eq!(before("2026-10-25T02:30+02:00"), "2026-10-25T00:31:00.000Z");
    }

    #[test]
    fn an_hour_that_is_skipped_is_still_understood() {
        assert_eq!(before("2026-03-29T02:30"), "2026-03-29T01:31:00.000Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-13",
            "2026-02-30",
            "2026-1-1",
            "20261122",
            "2026-11-22T",
            "2026-11-22T24",
            "2026-11-22T22:60",
            "2026-11T10",
            "2026-11-22T22.5",
            "2026-11-22T22:11:05.",
            "2026-11-22T22:11:05+99:00",
            "1969-01-01",
            "２０２６",
            "latest~",
            "latest~-1",
            "latest~x",
            "LATEST",
            "pw",
        ] {
            assert!(When::parse(text, &berlin()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn latest_and_ids_are_told_from_times() {
        assert_eq!(When::parse("latest", &berlin()), Ok(When::Latest(0)));
        assert_eq!(When::parse("latest~3", &berlin()), Ok(When::Latest(3)));
        assert_eq!(
            When::parse("p0a9", &berlin()),
            Ok(When::Id("p0a9".to_owned()))
        );
    }

    #[test]
    fn a_printed_time_is_read_back_as_the_same_moment() {
        // Around both changes of the clock, a quarter of an hour apart, at odd milliseconds.
        for start in [1_774_738_800_000_u64, 1_792_879_200_000] {
            for quarter in 0..24 {
                let time = UnixMillis(start + quarter * 900_000 + 123);
                for (text, unit) in [
                    (local_time(time, &berlin()), 1000),
                    (local_time_exact(time, &berlin()), 1),
                ] {
                    let Ok(When::Before { start, end }) = When::parse(&text, &berlin()) else {
                        panic!("{text} is not understood");
                    };
                    assert!(start <= time && time < end, "{text}: {start:?} to {end:?}");
                    assert_eq!(end.0 - start.0, unit, "{text}");
                }
            }
        }
    }
}
