//! The keeper of a recovery: the process that brings it to its end when no command does.
//!
//! It starts the server again whenever that has ended ([`super::server`]), lets a guest go on that was
//! waiting for it, begins jobs again that broke off, and settles and lets go in the end; so a
//! terminal that is lost, or a command that is killed, changes nothing. It leaves alone a guest that is
//! off, which its owner may want to start, and the data of a recovery with `--no-pull` until `--finish`. It ends when its pin
//! has gone.
//!
//! What is in its way it says in the log, and, as long as it is, in the file that it holds locked: from there
//! `--status` has it.
//!
//! It needs little memory: the kernel, when short of it, takes the server, which is below it.

use std::fs::File;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals as Arriving;
use virtkeep_repo::{Cancel, Repository};

use super::claim::Claim;
use super::damage::Unreadable;
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
const AFTER_TROUBLE: Duration = Duration::from_secs(10);
/// The same where stored bytes are damaged, which takes somebody to mend them: to try again may mean to go over
/// a whole disk.
const AFTER_DAMAGE: Duration = Duration::from_secs(300);
/// How long to wait before another server is started.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server that lived longer than this was all right.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How often a file may be found locked by one who only looks whether it is.
const TRIES_MAX: u32 = 20;

/// Looks after a recovery until it ends, or until told to stop.
pub(crate) fn keep(context: &Context, pin: &str, same_host: bool) -> Result<()> {
    // From here on no terminal can end it. Fails where it leads a session already.
    let _ = rustix::process::setsid();
    let mut signals = Arriving::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let Some(mut pinned) = Pinned::of(&context.open_to_read()?, pin)? else {
        return Ok(());
    };
    if same_host {
        pinned.say_same_host()?;
    }
    let path = pinned.recovery.keeper_file();
    let mut locked = None;
    for _ in 0..TRIES_MAX {
        locked = work::lock(&path)?;
        if locked.is_some() {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    let locked = locked.context("somebody else looks after this recovery")?;
    let troubles =
        Troubles::new(locked, pin).with_context(|| format!("cannot write {}", path.display()))?;

    let mut lower = Lower::new(context, &pinned, &troubles);
    let asked = Asked::default();
    let ended = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(context, &pinned, &asked, &troubles));
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

/// What came of a turn.
enum Turn {
    /// The work is over.
    Ended(Ended),
    /// There is nothing more to do for now.
    Idle,
    /// A command is at work.
    Busy,
}

/// The work of the keeper, turn by turn.
fn work(context: &Context, pinned: &Pinned, asked: &Asked, troubles: &Troubles<'_>) -> Ended {
    let mut next = Instant::now() + TURN;
    loop {
        if asked.is_to_end() {
            return Ended::Told;
        }
        if Instant::now() < next || !asked.may_work() {
            std::thread::sleep(LOOK_AGAIN);
            continue;
        }
        let came = turn(context, pinned, &asked.cancel());
        next = Instant::now() + TURN;
        match came {
            Ok(Turn::Ended(ended)) => return ended,
            Ok(Turn::Idle) => troubles.set(About::Work, None),
            Ok(Turn::Busy) => {}
            Err(error) => {
                let pause = match error.is::<Unreadable>() {
                    true => AFTER_DAMAGE,
                    false => AFTER_TROUBLE,
                };
                next = Instant::now() + pause;
                troubles.set(About::Work, Some(format!("{error:#}")));
            }
        }
    }
}

fn turn(context: &Context, pinned: &Pinned, cancel: &Cancel) -> Result<Turn> {
    let repo = context.open()?;
    let Some(mut work) = Work::try_take(&pinned.recovery)? else {
        return Ok(Turn::Busy);
    };
    if Pinned::of(&repo, &pinned.pin)?.is_none() {
        work.end()?;
        return Ok(Turn::Ended(Ended::Gone));
    }
    Claim::of(pinned).check(&pinned.recovery)?;
    let mut machine = Machine::connect(&pinned.recovery)?;
    let state = machine.state()?;
    if matches!(state, State::Gone | State::ShutOff) || !machine.is_ours()? {
        return Ok(Turn::Idle);
    }
    finish::go_on(&mut machine, &mut work)?;
    // Somebody else may have pulled a disk.
    machine.lean_definition(pinned)?;
    if !pinned.recovery.pull && !work.is_moving {
        if server::is_serving(&pinned.recovery) {
            Waker::default().look(pinned, &mut machine, state)?;
        }
        return Ok(Turn::Idle);
    }
    match finish::running(context, pinned, &mut machine, &mut work, cancel)? {
        Complete::Yes => {
            machine.free_definition()?;
            Ok(Turn::Ended(Ended::Complete(Box::new(repo), work)))
        }
        Complete::Stopped => Ok(Turn::Idle),
        Complete::Interrupted => Ok(Turn::Busy),
    }
}

/// What a trouble is about.
#[derive(Clone, Copy)]
enum About {
    Work,
    Server,
}

/// What is in the way, for whoever asks.
struct Troubles<'a> {
    pin: &'a str,
    told: Mutex<Told>,
}

struct Told {
    file: File,
    /// By [`About`].
    now: [Option<String>; 2],
}

impl<'a> Troubles<'a> {
    /// None so far. The file is locked.
    fn new(mut file: File, pin: &'a str) -> Result<Self> {
        work::write_number(&mut file, pin)?;
        let now = [None, None];
        let told = Mutex::new(Told { file, now });
        Ok(Self { pin, told })
    }

    fn set(&self, about: About, trouble: Option<String>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Told { file, now } = &mut *told;
        if now[about as usize] == trouble {
            return;
        }
        if let Some(trouble) = &trouble {
            complain(trouble);
        }
        now[about as usize] = trouble;
        let lines = now.iter().flatten();
        let lines = lines.map(|trouble| format!("\n{}", trouble.replace('\n', " ")));
        let text = format!("{}{}", self.pin, lines.collect::<String>());
        // Who cannot read it here finds it in the log.
        let _ = work::write_number(file, &text);
    }

    fn is_set(&self, about: About) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.now[about as usize].is_some()
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
    pinned: &'a Pinned,
    troubles: &'a Troubles<'a>,
    child: Option<Child>,
    since: Instant,
    pause: Duration,
}

impl<'a> Lower<'a> {
    fn new(context: &'a Context, pinned: &'a Pinned, troubles: &'a Troubles<'a>) -> Self {
        Self {
            context,
            pinned,
            troubles,
            child: None,
            since: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    fn look(&mut self) {
        match &mut self.child {
            Some(child) => {
                if let Ok(Some(status)) = child.try_wait() {
                    self.ended(status);
                } else if self.troubles.is_set(About::Server)
                    && server::is_serving(&self.pinned.recovery)
                {
                    self.troubles.set(About::Server, None);
                }
            }
            None if self.since.elapsed() >= self.pause => {
                self.pause = (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX);
                self.since = Instant::now();
                match self.start() {
                    Ok(child) => self.child = Some(child),
                    Err(error) => {
                        let trouble = format!("{error:#}");
                        self.troubles.set(About::Server, Some(trouble));
                    }
                }
            }
            None => {}
        }
    }

    fn ended(&mut self, status: ExitStatus) {
        let why = match status.code() {
            Some(_) => server::last_line(&self.pinned.recovery.log()),
            None => status.to_string(),
        };
        let trouble = format!("{}: {why}", server::ENDED);
        self.troubles.set(About::Server, Some(trouble));
        if self.since.elapsed() > LONG_LIFE {
            self.pause = Duration::ZERO;
        }
        self.child = None;
        self.since = Instant::now();
    }

    fn start(&self) -> Result<Child> {
        server::this_program(self.context, &self.pinned.pin)?
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
