//! The keeper of a recovery: the process that brings it to its end when no command does.
//!
//! It starts the server again whenever that has ended ([`super::server`]), lets a guest go on that was
//! waiting for it, begins jobs again that broke off, and settles and lets go in the end; so a
//! terminal that is lost, or a command that is killed, changes nothing. It leaves alone a guest that is
//! off, which its owner may want to start, and the data of a recovery with `--no-pull`. It ends when its pin
//! has gone.
//!
//! It needs little memory: the kernel, when short of it, takes the server, which is below it.

use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals as Arriving;
use virtkeep_repo::{Cancel, Repository};

use super::finish::{self, Complete};
use super::machine::{Machine, State};
use super::record::Pinned;
use super::server;
use super::wake::Waker;
use super::work::{self, Work};
use crate::context::Context;
use crate::output::complain;

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often the guest is looked at.
const TURN: Duration = Duration::from_secs(1);
/// How long commands are left alone that have asked for the work.
const STAND_BACK: Duration = Duration::from_secs(5);
/// How long to wait after something went wrong.
const AFTER_TROUBLE: Duration = Duration::from_secs(30);
/// How long to wait before another server is started.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server that lived longer than this was all right.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How often a file may be found locked by one who only looks whether it is.
const TRIES_MAX: u32 = 20;

/// Looks after a recovery until it ends, or until told to stop.
pub(crate) fn keep(context: &Context, pin: &str) -> Result<()> {
    // From here on no terminal can end it. Fails where it leads a session already.
    let _ = rustix::process::setsid();
    let mut signals = Arriving::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let Some(pinned) = Pinned::of(&context.open_to_read()?, pin)? else {
        return Ok(());
    };
    let path = pinned.recovery.keeper_file();
    let mut locked = None;
    for _ in 0..TRIES_MAX {
        locked = work::lock(&path)?;
        if locked.is_some() {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    let mut locked = locked.context("somebody else looks after this recovery")?;
    work::write_number(&mut locked, pin)
        .with_context(|| format!("cannot write {}", path.display()))?;

    let mut lower = Lower::new(context, pin);
    let asked = Asked::default();
    let ended = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(context, &pinned, &asked));
        while !worker.is_finished() {
            for signal in signals.pending() {
                match signal {
                    SIGTERM | SIGINT => asked.to_end(),
                    SIGUSR1 => asked.to_stand_back(),
                    _ => {}
                }
            }
            if !asked.is_to_end() {
                lower.look();
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        worker.join()
    });
    lower.stop()?;
    match ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        Ended::Told => Ok(()),
        Ended::Gone => server::remove_traces(&pinned.recovery),
        Ended::Complete(repo, work) => {
            server::remove_traces(&pinned.recovery)?;
            finish::let_go(&repo, &pinned, work, true)
        }
    }
}

/// Why the work is over.
enum Ended {
    /// We were told to end.
    Told,
    /// Somebody else has brought the recovery to its end.
    Gone,
    /// All data is there, and the definition is free.
    Complete(Box<Repository>, Work),
}

/// The work of the keeper, turn by turn.
fn work(context: &Context, pinned: &Pinned, asked: &Asked) -> Ended {
    let mut said = String::new();
    let mut next = Instant::now() + TURN;
    loop {
        if asked.is_to_end() {
            return Ended::Told;
        }
        if Instant::now() < next || !asked.may_work() {
            std::thread::sleep(LOOK_AGAIN);
            continue;
        }
        next = Instant::now() + TURN;
        match turn(context, pinned, &asked.cancel()) {
            Ok(Some(ended)) => return ended,
            Ok(None) => said.clear(),
            Err(error) => {
                next = Instant::now() + AFTER_TROUBLE;
                let text = format!("{error:#}");
                if text != said {
                    complain(&text);
                }
                said = text;
            }
        }
    }
}

fn turn(context: &Context, pinned: &Pinned, cancel: &Cancel) -> Result<Option<Ended>> {
    let repo = context.open()?;
    let Some(mut work) = Work::try_take(&pinned.recovery)? else {
        return Ok(None);
    };
    if Pinned::of(&repo, &pinned.pin)?.is_none() {
        work.end()?;
        return Ok(Some(Ended::Gone));
    }
    let mut machine = Machine::connect(&pinned.recovery)?;
    let state = machine.state()?;
    if matches!(state, State::Gone | State::ShutOff) || !machine.is_ours()? {
        return Ok(None);
    }
    finish::go_on(&mut machine, &mut work)?;
    if !pinned.recovery.pull {
        if server::is_serving(&pinned.recovery) {
            Waker::default().look(pinned, &mut machine, state)?;
        }
        return Ok(None);
    }
    match finish::running(context, pinned, &mut machine, &mut work, cancel)? {
        Complete::Yes => {
            machine.free_definition()?;
            Ok(Some(Ended::Complete(Box::new(repo), work)))
        }
        Complete::Interrupted | Complete::Stopped => Ok(None),
    }
}

/// What signals have asked for.
#[derive(Default)]
struct Asked(Mutex<Wishes>);

#[derive(Default)]
struct Wishes {
    end: bool,
    not_before: Option<Instant>,
    cancel: Cancel,
}

impl Asked {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_end(&self) {
        let mut wishes = self.wishes();
        wishes.end = true;
        wishes.cancel.cancel();
    }

    fn to_stand_back(&self) {
        let mut wishes = self.wishes();
        wishes.not_before = Some(Instant::now() + STAND_BACK);
        wishes.cancel.cancel();
    }

    fn is_to_end(&self) -> bool {
        self.wishes().end
    }

    fn may_work(&self) -> bool {
        let mut wishes = self.wishes();
        let may = wishes.not_before.is_none_or(|time| Instant::now() >= time);
        if may && wishes.not_before.take().is_some() {
            wishes.cancel = Cancel::new();
        }
        may
    }

    fn cancel(&self) -> Cancel {
        self.wishes().cancel.clone()
    }
}

/// The process that serves, started again whenever it has ended.
struct Lower<'a> {
    context: &'a Context,
    pin: &'a str,
    child: Option<Child>,
    since: Instant,
    pause: Duration,
}

impl<'a> Lower<'a> {
    fn new(context: &'a Context, pin: &'a str) -> Self {
        Self {
            context,
            pin,
            child: None,
            since: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    fn look(&mut self) {
        match &mut self.child {
            Some(child) => {
                if let Ok(Some(status)) = child.try_wait() {
                    complain(&format!(
                        "the server has ended ({status}): starting it again"
                    ));
                    if self.since.elapsed() > LONG_LIFE {
                        self.pause = Duration::ZERO;
                    }
                    self.child = None;
                    self.since = Instant::now();
                }
            }
            None if self.since.elapsed() >= self.pause => {
                self.pause = (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX);
                self.since = Instant::now();
                match self.start() {
                    Ok(child) => self.child = Some(child),
                    Err(error) => complain(&format!("{error:#}")),
                }
            }
            None => {}
        }
    }

    fn start(&self) -> Result<Child> {
        server::this_program(self.context, self.pin)?
            .args(["--serve", &std::process::id().to_string()])
            .spawn()
            .context("cannot start the server")
    }

    fn stop(self) -> Result<()> {
        if let Some(mut child) = self.child {
            let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
            child.wait()?;
        }
        Ok(())
    }
}
