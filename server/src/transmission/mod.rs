//! The transmission phase: requests in, replies out, in whatever order they get done
//! ("Transmission").
//!
//! A connection has a crew of threads, one of which leads. The leader reads the next request,
//! hands over the lead, and carries out the request itself, so that in the usual case no request
//! passes from thread to thread. A thread done with its request waits for the lead. The first of
//! the crew is the connection's own thread; helpers are hired while there are requests and the
//! limits allow, and let go when idle. With no helper left to hire, a connection still gets its
//! requests done, one after the other.
//!
//! Waking a thread costs as much as reading a few KiB does. So with as many requests being carried
//! out as the export says are worth it, nobody is woken: whoever is done first finds the lead free.
//!
//! - Only the leader reads from the client; whoever holds `output` writes to it.
//! - When the connection ends, nobody takes the lead any more, and every request that was read is
//!   still carried out and answered, if the client takes the answer.

mod answer;
mod check;
mod receive;

use std::fmt;
use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use crate::channel::{Incoming, Outgoing};
use crate::error::Error;
use crate::limits::Limits;
use crate::negotiation::Agreed;
use crate::pulse::Pulse;
use answer::Workspace;

/// A connection whose client has chosen an export.
pub struct Session<R, W> {
    reader: BufReader<Incoming<R>>,
    writer: Outgoing<W>,
    agreed: Agreed,
    limits: Limits,
    hang_up: Option<Box<dyn Fn() + Send + Sync>>,
    pulse: Arc<Pulse>,
}

impl<R: Read + Send, W: Write + Send> Session<R, W> {
    /// Names a function that makes reads and writes of the connection return at once. It is called
    /// when one of its threads finds the connection broken while others may be blocked in it.
    #[must_use]
    pub fn hang_up_with(mut self, hang_up: impl Fn() + Send + Sync + 'static) -> Self {
        self.hang_up = Some(Box::new(hang_up));
        self
    }

    /// Has it told there whether the client wants anything.
    #[must_use]
    pub(crate) fn with_pulse(mut self, pulse: Arc<Pulse>) -> Self {
        self.pulse = pulse;
        self
    }

    /// Serves the client until it disconnects or is lost; then until its last request is done.
    ///
    /// # Errors
    /// Why the client was lost. That it went away between two requests is no error.
    pub fn serve(self, helpers: &Helpers) -> Result<(), Error> {
        let line = Line {
            agreed: self.agreed,
            limits: self.limits,
            helpers,
            hang_up: self.hang_up,
            pulse: &self.pulse,
            intake: Mutex::new(self.reader),
            output: Mutex::new(self.writer),
            crew: Mutex::new(Crew {
                worth: 1,
                ..Crew::default()
            }),
            lead_is_free: Condvar::new(),
        };
        thread::scope(|scope| line.work(scope, None));
        let output = line.output.into_inner();
        output.unwrap_or_else(PoisonError::into_inner).close();
        let crew = line.crew.into_inner();
        match crew.unwrap_or_else(PoisonError::into_inner).failure {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl<R, W> Session<R, W> {
    pub(crate) fn new(
        reader: BufReader<Incoming<R>>,
        writer: Outgoing<W>,
        agreed: Agreed,
        limits: Limits,
    ) -> Self {
        Session {
            reader,
            writer,
            agreed,
            limits,
            hang_up: None,
            pulse: Arc::new(Pulse::new()),
        }
    }

    /// The name of the export the client chose.
    pub fn export_name(&self) -> &str {
        &self.agreed.name
    }
}

impl<R, W> fmt::Debug for Session<R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("export_name", &self.agreed.name)
            .finish_non_exhaustive()
    }
}

/// The helper threads that connections share.
#[derive(Debug, Clone)]
pub struct Helpers {
    free: Arc<AtomicUsize>,
    /// How many of them a connection has a right to.
    share: usize,
    /// How many are kept for those that have not had their share.
    kept: usize,
}

impl Helpers {
    /// At most `count` helpers at one time, for whoever comes first.
    pub fn new(count: usize) -> Self {
        Helpers {
            free: Arc::new(AtomicUsize::new(count)),
            share: 0,
            kept: 0,
        }
    }

    /// Keeps half of the helpers for connections that have none, or fewer than their share where
    /// there are more helpers than connections: clients that ask for much and take their replies slowly
    /// can hire the other half at most.
    #[must_use]
    pub fn shared_by(mut self, connections: usize) -> Self {
        self.kept = self.free.load(Ordering::Relaxed) / 2;
        self.share = self.kept.checked_div(connections).unwrap_or(1).max(1);
        self
    }

    /// One more, for a connection that has `had` so many.
    fn hire(&self, had: usize) -> Option<Hired> {
        let kept = if had < self.share { 0 } else { self.kept };
        let less_one = |free: usize| (free > kept).then(|| free - 1);
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one)
            .ok()?;
        Some(Hired(self.clone()))
    }
}

/// The place of one helper thread, free again when dropped.
struct Hired(Helpers);

impl Drop for Hired {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who is there, and how the connection ended.
#[derive(Default)]
struct Crew {
    /// Somebody leads.
    led: bool,
    /// Threads waiting for the lead.
    waiting: usize,
    /// Threads carrying out a request.
    working: usize,
    /// How many of them are worth it, as the export said last; at least one.
    worth: usize,
    helpers: usize,
    ended: bool,
    failure: Option<Error>,
}

/// All that the threads of one connection share.
struct Line<'h, R, W> {
    agreed: Agreed,
    limits: Limits,
    helpers: &'h Helpers,
    hang_up: Option<Box<dyn Fn() + Send + Sync>>,
    pulse: &'h Pulse,
    /// Never contended: locked by the leader only.
    intake: Mutex<BufReader<Incoming<R>>>,
    output: Mutex<Outgoing<W>>,
    crew: Mutex<Crew>,
    lead_is_free: Condvar,
}

impl<R: Read + Send, W: Write + Send> Line<'_, R, W> {
    /// One thread's part, until the connection ends or, for a helper, there is nothing to do.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, hired: Option<Hired>) {
        let _alarm = PanicAlarm(self);
        let mut workspace = Workspace::default();
        while self.take_lead(hired.is_some()) {
            match self.receive(&mut workspace) {
                Ok(Some(job)) => {
                    self.hand_over_lead(scope);
                    if let Err(error) = self.answer(&job, &mut workspace) {
                        self.break_off(error);
                        break;
                    }
                    self.crew().working -= 1;
                }
                // Other threads may still have answers to send, so nobody hangs up.
                Ok(None) => {
                    self.end(None);
                    break;
                }
                Err(error) => {
                    self.end(Some(error));
                    break;
                }
            }
        }
        if hired.is_some() {
            self.crew().helpers -= 1;
        }
    }

    /// Waits for the lead; `false` when there is nothing left to do for this thread.
    fn take_lead(&self, helper: bool) -> bool {
        let mut crew = self.crew();
        loop {
            if crew.ended {
                return false;
            }
            if !crew.led && crew.working < crew.worth {
                crew.led = true;
                return true;
            }
            crew.waiting += 1;
            let (guard, timeout) = self
                .lead_is_free
                .wait_timeout(crew, self.limits.helper_idle)
                .unwrap_or_else(PoisonError::into_inner);
            crew = guard;
            crew.waiting -= 1;
            if helper && timeout.timed_out() && crew.led {
                return false;
            }
        }
    }

    /// Gives up the lead: to somebody who waits, to a new helper, or to whoever is done first.
    fn hand_over_lead<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let worth = self.agreed.export.concurrency();
        let mut crew = self.crew();
        crew.led = false;
        crew.working += 1;
        crew.worth = worth.max(1);
        if crew.working >= crew.worth {
            // The first of them who is done leads next.
            return;
        }
        if crew.waiting > 0 {
            drop(crew);
            self.lead_is_free.notify_one();
        } else if crew.helpers + 1 < self.limits.connection_requests_max
            && let Some(hired) = self.helpers.hire(crew.helpers)
        {
            crew.helpers += 1;
            drop(crew);
            let spawned = thread::Builder::new()
                .name("nbd-helper".into())
                .spawn_scoped(scope, move || self.work(scope, Some(hired)));
            if spawned.is_err() {
                // The system has no thread for us now. We go on with those we have.
                self.crew().helpers -= 1;
            }
        }
    }

    /// Ends the connection, if it has not ended yet: no request is read any more.
    fn end(&self, failure: Option<Error>) {
        let mut crew = self.crew();
        if !crew.ended {
            crew.ended = true;
            crew.failure = failure;
        }
        drop(crew);
        self.lead_is_free.notify_all();
    }

    /// Ends the connection because no answer can be sent any more, and wakes who is blocked in it.
    fn break_off(&self, failure: Error) {
        self.end(Some(failure));
        if let Some(hang_up) = &self.hang_up {
            hang_up();
        }
    }

    fn has_ended(&self) -> bool {
        self.crew().ended
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the connection when a thread of its crew panics: the others would wait for it forever.
struct PanicAlarm<'a, 'h, R: Read + Send, W: Write + Send>(&'a Line<'h, R, W>);

impl<R: Read + Send, W: Write + Send> Drop for PanicAlarm<'_, '_, R, W> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.break_off(Error::ExportPanicked);
        }
    }
}
