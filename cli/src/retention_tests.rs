use proptest::prelude::*;
use virtkeep_repo::{Consistency, Domain, SourceKind};

use super::*;

/// Noon of 1 January 2026, in UTC.
const NEW_YEAR: u64 = 1_767_268_800_000;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn point(domain: u8, number: u16, time: u64) -> Point {
    let mut id = [0; 10];
    id[..2].copy_from_slice(&number.to_be_bytes());
    Point {
        id: PointId::from_bytes(id),
        domain: Domain {
            uuid: DomainUuid::from_bytes([domain; 16]),
            name: format!("vm{domain}"),
        },
        source: SourceKind::Live,
        host: String::new(),
        time: UnixMillis(time),
        committed: UnixMillis(time),
        consistency: Consistency::Crash,
        checkpoint: None,
        disks: Vec::new(),
        files: Vec::new(),
        tags: Vec::new(),
    }
}

/// Points of one domain at these times.
fn at(times: impl IntoIterator<Item = u64>) -> Vec<Point> {
    let times = times.into_iter().enumerate();
    times
        .map(|(number, time)| point(1, number as u16, time))
        .collect()
}

fn time(text: &str) -> u64 {
    let time: jiff::Timestamp = text.parse().unwrap();
    time.as_millisecond() as u64
}

fn keep(every: Every, count: u64) -> Policy {
    Policy {
        counts: [(every, count)].into(),
        ..Policy::default()
    }
}

fn within(text: &str) -> Policy {
    Policy {
        within: Some(parse_within(text).unwrap()),
        ..Policy::default()
    }
}

/// The places in `points` of those that stay, long after the last of them.
fn kept(policy: &Policy, points: &[Point]) -> Vec<usize> {
    kept_at(policy, points, u64::MAX)
}

fn kept_at(policy: &Policy, points: &[Point], now: u64) -> Vec<usize> {
    let domains = policy.apply(points, &HashMap::new(), UnixMillis(now), &berlin());
    let kept = domains.iter().flatten().filter(|verdict| verdict.is_kept());
    let mut places: Vec<usize> = kept
        .map(|verdict| points.iter().position(|p| p == verdict.point).unwrap())
        .collect();
    places.sort_unstable();
    places
}

#[test]
fn the_last_points_are_those_with_the_latest_times_whatever_their_order() {
    let points = at([5, 1, 4, 2, 3].map(|n| NEW_YEAR + n));
    assert_eq!(kept(&keep(Every::Point, 2), &points), [0, 2]);
    assert_eq!(kept(&keep(Every::Point, 9), &points), [0, 1, 2, 3, 4]);
}

#[test]
fn of_points_at_the_same_time_the_one_with_the_greater_id_is_the_newer() {
    let mut points = at([NEW_YEAR; 3]);
    assert_eq!(kept(&keep(Every::Point, 1), &points), [2]);
    points.reverse();
    assert_eq!(kept(&keep(Every::Day, 1), &points), [0]);
}

#[test]
fn the_newest_of_each_local_day_counts_and_a_day_without_points_takes_no_place() {
    // In Berlin the second one already belongs to the 2nd of January.
    let points = at([
        "2026-01-01T22:30:00Z",
        "2026-01-01T23:30:00Z",
        "2026-01-02T10:00:00Z",
        "2026-01-09T10:00:00Z",
    ]
    .map(time));
    assert_eq!(kept(&keep(Every::Day, 2), &points), [2, 3]);
    assert_eq!(kept(&keep(Every::Day, 3), &points), [0, 2, 3]);
}

#[test]
fn weeks_begin_on_monday_and_may_reach_over_the_new_year() {
    let points = at([
        "2025-12-28T12:00:00Z", // Sunday, week 52 of 2025
        "2025-12-29T12:00:00Z", // Monday, week 1 of 2026
        "2026-01-04T12:00:00Z", // Sunday, week 1 of 2026
        "2026-01-05T12:00:00Z", // Monday, week 2
    ]
    .map(time));
    assert_eq!(kept(&keep(Every::Week, 3), &points), [0, 2, 3]);
    assert_eq!(kept(&keep(Every::Month, 9), &points), [1, 3]);
    assert_eq!(kept(&keep(Every::Year, 9), &points), [1, 3]);
}

#[test]
fn an_hour_that_comes_twice_is_two_hours_and_its_day_is_one() {
    let points = at([
        "2026-10-25T00:30:00Z", // 02:30 in summer time
        "2026-10-25T01:30:00Z", // 02:30 in winter time
        "2026-10-25T01:45:00Z",
    ]
    .map(time));
    assert_eq!(kept(&keep(Every::Hour, 9), &points), [0, 2]);
    assert_eq!(kept(&keep(Every::Day, 9), &points), [2]);
}

#[test]
fn days_before_the_newest_point_are_calendar_days() {
    // Clocks are set forward in the night: the day before it is 23 hours ago.
    let points = at([
        "2026-03-28T10:59:59.999Z",
        "2026-03-28T11:00:00Z", // noon, the day before
        "2026-03-29T10:00:00Z", // noon
    ]
    .map(time));
    assert_eq!(kept(&within("1d"), &points), [1, 2]);
    assert_eq!(kept(&within("23h"), &points), [1, 2]);
    assert_eq!(kept(&within("22h"), &points), [2]);
    assert_eq!(kept(&within("9000y"), &points), [0, 1, 2]);
}

#[test]
fn a_domain_that_is_no_longer_backed_up_keeps_its_last_points() {
    let points = at([NEW_YEAR, NEW_YEAR + DAY]);
    assert_eq!(kept_at(&within("2d"), &points, NEW_YEAR + 9 * YEAR), [0, 1]);
}

#[test]
fn a_point_of_the_future_is_kept_and_takes_nobodys_place() {
    let points = at([NEW_YEAR, NEW_YEAR + DAY, NEW_YEAR + 9 * YEAR]);
    let now = NEW_YEAR + 2 * DAY;
    assert_eq!(kept_at(&keep(Every::Point, 1), &points, now), [1, 2]);
    assert_eq!(kept_at(&within("1h"), &points, now), [1, 2]);
    // Once that time has come, it is a point like any other.
    let later = NEW_YEAR + 10 * YEAR;
    assert_eq!(kept_at(&keep(Every::Point, 1), &points, later), [2]);
    // A clock that has gone back makes the future of everything: nothing goes.
    assert_eq!(kept_at(&keep(Every::Point, 1), &points, 0), [0, 1, 2]);
}

#[test]
fn every_domain_is_counted_by_itself_whatever_its_name() {
    let mut points = at([NEW_YEAR, NEW_YEAR + 1]);
    points.extend([point(2, 8, NEW_YEAR + 2), point(2, 9, NEW_YEAR + 3)]);
    points[0].domain.name = "vm2".to_owned();
    assert_eq!(kept(&keep(Every::Point, 1), &points), [1, 3]);
}

#[test]
fn tags_and_pins_keep_a_point_and_all_reasons_are_told() {
    let mut points = at([NEW_YEAR, NEW_YEAR + DAY, NEW_YEAR + 2 * DAY]);
    points[0].tags = vec!["release".to_owned(), "other".to_owned()];
    let policy = Policy {
        counts: [(Every::Point, 1), (Every::Day, 7)].into(),
        within: Some(parse_within("1d").unwrap()),
        tags: vec!["release".to_owned()],
    };
    let pins = [(points[0].id, vec!["audit".to_owned()])].into();
    let verdicts = policy.apply(&points, &pins, UnixMillis(u64::MAX), &berlin());
    let told: Vec<Vec<String>> = verdicts[0]
        .iter()
        .map(|verdict| verdict.reasons.iter().map(Reason::to_string).collect())
        .collect();
    assert_eq!(told[0], ["daily 3 of 7", "tag release", "pinned (audit)"]);
    assert_eq!(told[1], ["daily 2 of 7", "within 1d"]);
    assert_eq!(told[2], ["last 1 of 1", "daily 1 of 7", "within 1d"]);
}

#[test]
fn a_policy_of_zeroes_is_an_empty_one() {
    assert!(Policy::default().is_empty());
    assert!(keep(Every::Point, 0).is_empty());
    assert!(!keep(Every::Year, 1).is_empty());
    assert!(!within("1d").is_empty());
}

#[test]
fn spans_are_read_in_hours_and_longer_and_nothing_ambiguous() {
    for text in ["36h", "14d", "8w", "6mo", "1y6mo", "1y 2d"] {
        assert!(parse_within(text).is_ok(), "{text}");
    }
    for text in ["", "0d", "-1d", "6m", "90s", "14", "d", "soon", "1d ago"] {
        assert!(parse_within(text).is_err(), "{text}");
    }
}

fn any_points() -> impl Strategy<Value = Vec<Point>> {
    // Near enough to share hours and days, far enough for years; equal times among them.
    let gap = prop_oneof![0..2 * HOUR, 0..3 * DAY, 0..YEAR / 2, Just(0)];
    let one = (1..=2_u8, gap, any::<bool>());
    prop::collection::vec(one, 0..40).prop_map(|list| {
        let mut now = NEW_YEAR - 3 * YEAR;
        let points = list.into_iter().enumerate().map(|(number, one)| {
            let (domain, gap, tagged) = one;
            now += gap;
            let mut point = point(domain, number as u16, now);
            point.tags.extend(tagged.then(|| "t".to_owned()));
            point
        });
        points.collect()
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let counts = prop::array::uniform6(0..6_u64);
    (counts, prop::option::of(0..60_i64), any::<bool>()).prop_map(|(counts, days, tagged)| {
        let every = [
            Every::Point,
            Every::Hour,
            Every::Day,
            Every::Week,
            Every::Month,
            Every::Year,
        ];
        Policy {
            counts: every.into_iter().zip(counts).collect(),
            within: days.map(|days| Span::new().days(days)),
            tags: tagged.then(|| "t".to_owned()).into_iter().collect(),
        }
    })
}

fn some_moment() -> impl Strategy<Value = u64> {
    NEW_YEAR - 3 * YEAR..NEW_YEAR + 20 * YEAR
}

proptest! {
    #[test]
    fn to_apply_a_policy_again_changes_nothing(
        points in any_points(),
        policy in any_policy(),
        now in some_moment(),
    ) {
        let first = kept_at(&policy, &points, now);
        let left: Vec<Point> = first.iter().map(|at| points[*at].clone()).collect();
        let all: Vec<usize> = (0..left.len()).collect();
        prop_assert_eq!(kept_at(&policy, &left, now), all);
    }

    #[test]
    fn to_ask_for_more_keeps_all_that_was_kept(
        points in any_points(),
        policy in any_policy(),
        more in any_policy(),
        now in some_moment(),
    ) {
        let few = kept_at(&policy, &points, now);
        let mut larger = policy;
        for (every, count) in &more.counts {
            *larger.counts.entry(*every).or_default() += count;
        }
        let days = |span: Option<Span>| span.map(|span| span.get_days());
        larger.within = days(larger.within).max(days(more.within)).map(|days| Span::new().days(days));
        larger.tags.extend(more.tags);
        let many = kept_at(&larger, &points, now);
        prop_assert!(few.iter().all(|at| many.contains(at)), "{:?} {:?}", few, many);
    }

    #[test]
    fn each_period_keeps_its_newest_point_and_no_more_than_asked_for(
        points in any_points(),
        count in 1..6_u64,
        which in 0..6_usize,
    ) {
        let every = [
            Every::Point, Every::Hour, Every::Day, Every::Week, Every::Month, Every::Year,
        ][which];
        let kept = kept(&keep(every, count), &points);
        for domain in [1, 2].map(|n| DomainUuid::from_bytes([n; 16])) {
            let mine: Vec<usize> = (0..points.len())
                .filter(|at| points[*at].domain.uuid == domain)
                .collect();
            let stay = || mine.iter().filter(|at| kept.contains(at));
            prop_assert!(stay().count() as u64 <= count);
            // Made in the order of time: the last one is the newest.
            prop_assert_eq!(stay().next_back(), mine.last());
            for at in stay() {
                let newer = mine.iter().find(|other| *other > at);
                let period = |at: usize| period(every, at, &zoned(points[at].time, &berlin()));
                prop_assert!(newer.is_none_or(|newer| period(*newer) != period(*at)));
            }
        }
    }
}
