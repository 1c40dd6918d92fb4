//! Ending a capture from outside: one flag for all its threads, and an alarm for calls that block.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use libnbd::Waker;
use virtkeep_repo::Cancel;

/// How often flags, the domain and free space are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Tells every part of one capture to stop.
pub(crate) struct Stop {
    /// Set by the user, by signal handlers for instance.
    user: Cancel,
    /// Set when the capture has to end, whoever wants it; the engine looks at this one.
    all: Cancel,
    silence_max: Duration,
    watched: Mutex<Vec<Weak<BlockingCall>>>,
}

/// A connection whose calls block, so that somebody else has to look at the time.
pub(crate) struct BlockingCall {
    waker: Waker,
    since: Mutex<Option<Instant>>,
    rang: AtomicBool,
}

impl Stop {
    pub(crate) fn new(user: &Cancel, silence_max: Duration) -> Self {
        Self {
            user: user.clone(),
            all: Cancel::new(),
            silence_max,
            watched: Mutex::default(),
        }
    }

    /// How long a server may say nothing.
    pub(crate) fn silence_max(&self) -> Duration {
        self.silence_max
    }

    /// What the engine is to look at.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.all
    }

    /// Whether the user wants an end.
    pub(crate) fn user_wants_it(&self) -> bool {
        self.user.is_cancelled()
    }

    /// Makes everything stop.
    pub(crate) fn stop(&self) {
        self.all.cancel();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.all.is_cancelled() || self.user.is_cancelled()
    }

    pub(crate) fn watch(&self, waker: Waker) -> Arc<BlockingCall> {
        let call = Arc::new(BlockingCall {
            waker,
            since: Mutex::default(),
            rang: AtomicBool::new(false),
        });
        lock(&self.watched).push(Arc::downgrade(&call));
        call
    }

    /// Passes the user's wish on, and wakes calls that have to end. To be called every [`TICK`].
    pub(crate) fn tick(&self) {
        if self.user.is_cancelled() {
            self.stop();
        }
        let stopping = self.is_stopping();
        lock(&self.watched).retain(|call| {
            let Some(call) = call.upgrade() else {
                return false;
            };
            let since = *lock(&call.since);
            if since.is_some_and(|since| stopping || since.elapsed() > self.silence_max) {
                call.rang.store(true, Ordering::SeqCst);
                call.waker.wake();
            }
            true
        });
    }
}

impl BlockingCall {
    /// Does `work`, which blocks, under the eyes of [`Stop::tick`].
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        *lock(&self.since) = Some(Instant::now());
        let result = work();
        *lock(&self.since) = None;
        result
    }

    /// Whether a call had to be ended.
    pub(crate) fn rang(&self) -> bool {
        self.rang.load(Ordering::SeqCst)
    }
}

/// Calls [`Stop::tick`] and `more` every tick while `work` runs.
pub(crate) fn while_ticking<T>(
    stop: &Stop,
    mut more: impl FnMut() + Send,
    work: impl FnOnce() -> T,
) -> T {
    let (done, finished) = crossbeam_channel::bounded::<()>(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            use crossbeam_channel::RecvTimeoutError::Timeout;
            // The sender is dropped, and the wait over, when the work is done or has panicked.
            while finished.recv_timeout(TICK) == Err(Timeout) {
                stop.tick();
                more();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// A poisoned lock is taken all the same: what it guards here is replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
