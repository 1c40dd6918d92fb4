//! A bound on the bytes in flight.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

/// How long a waiter sleeps before it looks again whether its work was given up.
const RECHECK: Duration = Duration::from_millis(50);

/// Bytes that may be in memory at once, shared by all threads of one backup or restore.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

/// The right to hold some bytes in memory; goes back to the budget when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `bytes_max`.
    pub(crate) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            used: Mutex::new(0),
            freed: Condvar::new(),
        })
    }

    /// Takes `bytes` if they are free. One request larger than the whole budget passes when nothing
    /// else is in flight.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        let mut used = lock(&self.used);
        (*used == 0 || *used + bytes <= self.bytes_max).then(|| {
            *used += bytes;
            Permit {
                budget: Arc::clone(self),
                bytes,
            }
        })
    }

    /// Waits until `bytes` are free and takes them; gives up once `stop` says so.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64, stop: impl Fn() -> bool) -> Option<Permit> {
        while !stop() {
            if let Some(permit) = self.try_take(bytes) {
                return Some(permit);
            }
            let used = lock(&self.used);
            drop(
                self.freed
                    .wait_timeout(used, RECHECK)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        None
    }
}

impl Permit {
    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let spare = self.bytes.saturating_sub(bytes);
        self.bytes -= spare;
        self.give(spare);
    }

    fn give(&self, bytes: u64) {
        *lock(&self.budget.used) -= bytes;
        self.budget.freed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_until_bytes_come_back() {
        let budget = Budget::new(10);
        let permit = budget.try_take(6).unwrap();
        assert!(budget.try_take(5).is_none());
        drop(permit);
        assert!(budget.try_take(5).is_some());
    }

    #[test]
    fn a_permit_can_be_given_back_in_part() {
        let budget = Budget::new(10);
        let mut permit = budget.try_take(10).unwrap();
        permit.shrink_to(4);
        assert!(budget.try_take(6).is_some());
        assert!(budget.try_take(7).is_none());
    }

    #[test]
    fn a_request_larger_than_the_budget_passes_alone() {
        let budget = Budget::new(10);
        let _all = budget.try_take(100).unwrap();
        assert!(budget.try_take(1).is_none());
    }

    #[test]
    fn a_waiter_gives_up_when_told_to() {
        let budget = Budget::new(1);
        let _all = budget.try_take(1).unwrap();
        assert!(budget.take(1, || true).is_none());
    }
}
