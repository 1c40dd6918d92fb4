//! `boot --test`: does a point start? A throw-away guest without network is watched for a sign of life.
//!
//! All of it lives in this process or hangs on it: the server runs here, libvirt ends the domain with
//! our connection, and the images lose their names as soon as QEMU has them open. So nothing of weight
//! is left even when the command is killed, and the next trial removes the rest ([`scene`]).

mod activity;
mod agent;
mod console;
mod scene;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use virt::domain::{
    Domain, DomainPausedReason, DomainState, DomainStateReason, DomainStateReasonEnum,
};
use virt::sys;
use virtkeep_capture::{ErrorKind, LibvirtError};
use virtkeep_repo::{Cancel, Point, Repository};

use self::activity::{Activity, Done, Processor};
use self::agent::Agent;
use self::console::Console;
use self::scene::{Names, Scene};
use super::record::export;
use super::space::Space;
use super::start::{place_files, plan};
use super::{overlay, place, server};
use crate::context::Context;
use crate::define::throw_away::{Restart, throw_away};
use crate::define::{As, Definer, console as console_xml, utf8};
use crate::restore::directory::Restored;

/// How often it is looked for a sign of life.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A point that is to be tried.
pub(crate) struct Trial<'a> {
    /// The surroundings.
    pub(crate) context: &'a Context,
    /// Where the point is kept.
    pub(crate) repo: &'a Repository,
    /// The point.
    pub(crate) point: &'a Point,
    /// Where images may lie meanwhile.
    pub(crate) directory: Option<&'a Path>,
    /// What must appear on the serial console.
    pub(crate) expect: Option<&'a str>,
    /// How long to wait for a sign of life.
    pub(crate) limit: Duration,
}

/// How it went.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// Whether there was a sign of life.
    pub(crate) passed: bool,
    /// What was seen, or missed.
    pub(crate) seen: String,
    /// From the command to the verdict.
    pub(crate) took: Duration,
}

/// Whether there was a sign of life, and what was seen of it or instead.
struct Seen(bool, String);

impl Trial<'_> {
    /// Tries it. An error means that it was not tried; whatever the guest does or fails to do is a verdict.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<Verdict> {
        let began = Instant::now();
        let wanted = As::Clone {
            name: self.name()?,
            network: false,
        };
        let definer = Definer::prepare(self.context.libvirt_uri(), self.point, wanted)?;
        let libvirt = place::check_local(definer.connection())?;
        let usual = place::usual_directory("");
        let parent = self.directory.unwrap_or(&usual);
        scene::clear_up(parent);
        Space::at(parent)?.check_trial()?;
        let names = Names {
            domain: definer.name().to_owned(),
            uuid: definer.uuid().to_string(),
            libvirt,
        };
        let scene = Scene::set(parent, names)?;
        let plan = plan(self.repo, self.point, &definer, scene.path())?;
        let socket = place::socket(definer.name(), definer.uuid());
        place::make_socket_directory(&socket)?;
        let targets: Vec<&str> = plan.disks.iter().map(|disk| &disk.target[..]).collect();
        let qemu = place::qemu_user(definer.connection())?;
        let serving = server::Serving {
            repo: self.context.open_to_read()?,
            point: self.point.id,
            targets: &targets,
            socket: &socket,
            qemu,
        };
        let server = serving.start(self.context)?;
        let seen = self.try_it(&definer, &plan, &socket, began, cancel);
        // While its disks are still served, it ends at once.
        scene.end_domain();
        let _ = server.stop(Duration::from_secs(1));
        let Seen(passed, seen) = seen?;
        let took = began.elapsed();
        Ok(Verdict { passed, seen, took })
    }

    /// A name that no other domain has, short enough for a socket that QEMU can reach.
    fn name(&self) -> Result<String> {
        let mut tag = [0; 3];
        getrandom::fill(&mut tag).context("no randomness")?;
        let tag: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = &self.point.domain.name;
        Ok(place::name_with_socket(name, &format!("-test-{tag}")))
    }

    fn try_it(
        &self,
        definer: &Definer,
        plan: &Restored,
        socket: &Path,
        began: Instant,
        cancel: &Cancel,
    ) -> Result<Seen> {
        place_files(plan)?;
        for disk in &plan.disks {
            let export = export(self.point.id, &disk.target);
            overlay::create(&disk.path, disk.size_bytes, socket, &export)?;
        }
        cancel.check()?;
        let agent = Agent::of(&plan.files);
        let path = plan.directory.join("console.log");
        let xml = self.definition(definer, plan, agent, &path)?;
        let connection = definer.connection();
        let flags = sys::VIR_DOMAIN_START_AUTODESTROY;
        let domain = match connection.create_domain_xml(&xml, flags) {
            Ok(domain) => domain,
            Err(error) if connection.is_alive().unwrap_or(false) => {
                let error = LibvirtError::from(error);
                return Ok(Seen(false, format!("it does not start: {error}")));
            }
            Err(error) => {
                return Err(LibvirtError::from(error)).context("libvirt has gone");
            }
        };
        for disk in &plan.disks {
            // Should it fail, they go with the directory.
            let _ = std::fs::remove_file(&disk.path);
        }
        let mut guest = Guest {
            domain,
            targets: plan.disks.iter().map(|disk| &disk.target[..]).collect(),
            agent,
            console: self.expect.map(|text| Console::new(path, text)),
            activity: Activity::default(),
        };
        let started = Instant::now();
        loop {
            cancel.check()?;
            Space::at(&plan.directory)?.check_trial()?;
            let is_late = began.elapsed() > self.limit;
            if let Some(seen) = guest.look(started.elapsed(), is_late)? {
                return Ok(seen);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn definition(
        &self,
        definer: &Definer,
        plan: &Restored,
        agent: Agent,
        console: &Path,
    ) -> Result<String> {
        let rewritten = definer.rewritten(plan)?;
        for note in &rewritten.notes {
            self.context.reporter.note(&format!("note: {note}"));
        }
        // Whoever is to say something says it also after a restart.
        let is_heard = self.expect.is_some() || agent == Agent::Expected;
        let restart = if is_heard {
            Restart::Allowed
        } else {
            Restart::Ends
        };
        let variables = utf8(&plan.directory.join("variables.fd"))?;
        let xml = throw_away(&rewritten.xml, restart, &variables)?;
        if self.expect.is_none() {
            return Ok(xml);
        }
        Ok(console_xml::to_file(&xml, &utf8(console)?)?)
    }
}

/// A guest that is watched.
struct Guest<'a> {
    domain: Domain,
    targets: Vec<&'a str>,
    agent: Agent,
    /// Where a text is to appear, if one is.
    console: Option<Console>,
    activity: Activity,
}

impl Guest<'_> {
    /// Looks for a sign of life, `at` this time after its start. `is_late` says that it is the last look.
    fn look(&mut self, at: Duration, is_late: bool) -> Result<Option<Seen>> {
        // Before anything else: what it says last still counts.
        let stopped = self.stopped()?;
        if let Some(console) = &mut self.console {
            let says_it = console
                .says_it(stopped.is_some())
                .context("cannot read the console")?;
            let text = console.text();
            return Ok(match stopped {
                _ if says_it => Some(Seen(true, format!("the console says {text:?}"))),
                Some(why) => Some(Seen(
                    false,
                    format!("{why}; the console did not say {text:?}"),
                )),
                None if is_late => Some(Seen(false, format!("the console does not say {text:?}"))),
                None => None,
            });
        }
        if let Some(done) = self.done() {
            self.activity.see(at, done);
        }
        if let Some(why) = stopped {
            let seen = format!("{why}; {}", self.activity.words());
            return Ok(Some(Seen(false, seen)));
        }
        if self.agent.answers(&self.domain) {
            return Ok(Some(Seen(true, "the guest agent answers".to_owned())));
        }
        let words = self.activity.words();
        Ok(match self.agent {
            Agent::Expected if is_late => {
                let missed =
                    "the guest agent, which was there when the point was made, does not answer";
                Some(Seen(false, format!("{missed}; {words}")))
            }
            Agent::Expected => None,
            _ if self.activity.is_life() => Some(Seen(true, words)),
            _ if is_late => Some(Seen(false, words)),
            _ => None,
        })
    }

    /// Why it does not run any more, if it does not.
    fn stopped(&self) -> Result<Option<String>> {
        let (state, reason) = match self.domain.state().map_err(LibvirtError::from) {
            Err(error) if error.kind() == ErrorKind::NoDomain => {
                return Ok(Some("the guest has shut down or restarted".to_owned()));
            }
            state => state.context("cannot ask libvirt for the state of the guest")?,
        };
        let is_io_error = match reason {
            DomainStateReasonEnum::Known(DomainStateReason::Paused(reason)) => {
                reason.is(DomainPausedReason::IOError)
            }
            _ => false,
        };
        let why = match state.known() {
            Some(DomainState::Running | DomainState::Blocked | DomainState::NoState) => {
                return Ok(None);
            }
            Some(DomainState::Paused) if is_io_error => "the guest met an error of a disk",
            Some(DomainState::Paused) => "the guest was paused",
            Some(DomainState::Crashed) => "the guest has crashed",
            Some(DomainState::PMSuspended) => "the guest has suspended itself",
            Some(DomainState::Shutdown | DomainState::Shutoff) | None => {
                "the guest has shut down or restarted"
            }
        };
        Ok(Some(why.to_owned()))
    }

    /// What it has done so far; none where it ends right now.
    fn done(&self) -> Option<Done> {
        let mut done = Done {
            cpu: Duration::from_nanos(self.domain.info().ok()?.cpu_time),
            processors: virtkeep_capture::processor_times(&self.domain)
                .ok()?
                .into_iter()
                .map(|(ran, waited)| Processor { ran, waited })
                .collect(),
            ..Done::default()
        };
        for target in &self.targets {
            let stats = self.domain.block_stats(target).ok()?;
            // Negative where QEMU does not count it.
            let counted = |number: i64| u64::try_from(number).unwrap_or(0);
            done.read_bytes += counted(stats.rd_bytes);
            done.written_bytes += counted(stats.wr_bytes);
            done.requests += counted(stats.rd_req) + counted(stats.wr_req);
        }
        Some(done)
    }
}
