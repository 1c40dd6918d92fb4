//! What boot tests have found out about points.

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{Point, Remark, Repository, UnixMillis};

use crate::context::Context;
use crate::output::{seconds, shown};
use crate::when::{local_time, rfc3339};

/// One boot test, as programs see it.
#[derive(Serialize)]
pub(super) struct BootTest {
    #[serde(skip)]
    when: UnixMillis,
    time: String,
    passed: bool,
    seen: String,
    seconds: f64,
    host: String,
}

impl BootTest {
    /// All of a point, the oldest first.
    pub(super) fn all(repo: &Repository, point: &Point) -> Result<Vec<Self>> {
        let notes = repo.notes(point.id)?.into_iter();
        let tests = notes.filter_map(|note| match note.remark {
            Remark::BootTest {
                passed,
                seen,
                seconds,
            } => Some(Self {
                when: note.created,
                time: rfc3339(note.created),
                passed,
                seen,
                seconds,
                host: note.host,
            }),
            _ => None,
        });
        Ok(tests.collect())
    }

    /// The verdict in a word or two.
    pub(super) fn word(&self) -> &'static str {
        if self.passed {
            "alive"
        } else {
            "no sign of life"
        }
    }

    /// The whole of it in a line.
    pub(super) fn describe(&self, context: &Context) -> String {
        format!(
            "{} after {} on {}, {}: {}",
            self.word(),
            seconds(self.seconds),
            shown(&self.host),
            local_time(self.when, &context.zone),
            shown(&self.seen)
        )
    }
}
