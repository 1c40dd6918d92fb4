//! The time in a POINT, as typed; and that times as printed are read back.
#![no_main]

use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;
use virtkeep_repo::UnixMillis;

#[path = "../../cli/src/when.rs"]
#[allow(dead_code)]
mod when;

use when::{When, local_time, local_time_exact, rfc3339};

const ZONES: [&str; 4] = [
    "UTC0",
    "CET-1CEST,M3.5.0,M10.5.0/3",
    "NST3:30NDT,M3.2.0,M11.1.0",
    "LINT-14",
];
/// 9998-01-01: printed times have four digits for the year, and local time may be ahead.
const LAST: u64 = 253_339_228_800_000;

fuzz_target!(|input: (u8, u64, &str)| {
    let (zone, millis, text) = input;
    let zone = ZONES[usize::from(zone) % ZONES.len()];
    let zone = TimeZone::posix(zone).expect("a zone in the words of POSIX");
    let _ = When::parse(text, &zone);

    // A day after the epoch at least: local time may lag behind.
    let time = UnixMillis(86_400_000 + millis % (LAST - 86_400_000));
    for (text, unit) in [
        (local_time(time, &zone), 1000),
        (local_time_exact(time, &zone), 1),
        (rfc3339(time), 1),
    ] {
        let Ok(When::Before { start, end }) = When::parse(&text, &zone) else {
            panic!("{text} is not understood");
        };
        assert!(start <= time && time < end, "{text}: {start:?} to {end:?}");
        assert_eq!(end.0 - start.0, unit, "{text}");
    }
});
