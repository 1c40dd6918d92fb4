//! Whether a client wants anything just now: when too many are connected, one that has not asked for
//! anything for long makes room.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a connection has to do.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests that have begun to arrive and are not answered.
    requests: usize,
    /// When it last had one.
    since: Instant,
}

/// A request, from its first byte to its answer.
#[derive(Debug)]
pub(crate) struct Beat<'a>(&'a Pulse);

impl Pulse {
    /// Of a connection that has just begun.
    pub(crate) fn new() -> Self {
        Pulse(Mutex::new(State {
            requests: 0,
            since: Instant::now(),
        }))
    }

    /// A request begins to arrive.
    pub(crate) fn beat(&self) -> Beat<'_> {
        self.state().requests += 1;
        Beat(self)
    }

    /// For how long nothing was asked; none while there is a request.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let state = self.state();
        (state.requests == 0).then(|| state.since.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Beat<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        state.since = Instant::now();
    }
}
