//! Mutexes whose content outlives a panic.
//!
//! A panic in a task is passed on to the caller of the whole operation, which then commits nothing;
//! what the task left behind a lock is never relied on. So a poisoned lock is opened all the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `mutex` holds.
pub(crate) fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}
