//! `boot --test`: does a point start? A throw-away guest without network is watched for a sign of life.
//!
//! All of it lives in this process or hangs on it: the server runs here, libvirt ends the domain with
//! our connection, and the images lose their names as soon as QEMU has them open. So nothing of weight
//! is left even when the command is killed: a directory without images, and a socket.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use virt::domain::{Domain, DomainState};
use virt::sys;
use virtkeep_capture::LibvirtError;
use virtkeep_repo::{Cancel, FileRole, Point, Repository};

use super::record::export;
use super::start::{place_files, plan};
use super::{overlay, place, server};
use crate::context::Context;
use crate::define::{As, Definer, console, utf8};
use crate::output::{shown, size};
use crate::restore::directory::Restored;

/// How often it is looked for a sign of life.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a guest without an agent is watched.
const ACTIVE: Duration = Duration::from_secs(30);
/// What a guest reads that does more than look for something to boot.
const READ_MIN: u64 = 4 << 20;
/// What a guest computes that does more than stand still.
const CPU_MIN: Duration = Duration::from_secs(1);
/// How much of the console is kept to look for the text, in bytes.
const CONSOLE_BYTES_MAX: usize = 4 << 20;

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

impl Trial<'_> {
    /// Tries it.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<Verdict> {
        let began = Instant::now();
        let mut tag = [0; 3];
        getrandom::fill(&mut tag).context("no randomness")?;
        let tag: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        let wanted = As::Clone {
            name: format!("{}-test-{tag}", self.point.domain.name),
            network: false,
        };
        let definer = Definer::prepare(self.context.libvirt_uri(), self.point, wanted)?;
        place::check_local(definer.connection())?;
        let usual = place::usual_directory("");
        let parent = self.directory.unwrap_or(&usual);
        let dir = tempfile::Builder::new()
            .prefix("virtkeep-test-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot create a directory in {}", parent.display()))?;
        let path = std::path::absolute(dir.path())?;
        place::let_pass(&path)?;
        let plan = plan(self.repo, self.point, &definer, &path)?;
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
        place_files(&plan)?;
        for disk in &plan.disks {
            let export = export(self.point.id, &disk.target);
            overlay::create(&disk.path, disk.size_bytes, &socket, &export)?;
        }
        cancel.check()?;
        let console = path.join("console.log");
        let domain = self.start(&definer, &plan, &console)?;
        for disk in &plan.disks {
            // Should it fail, they go with the directory.
            let _ = std::fs::remove_file(&disk.path);
        }
        let watched = self.watch(&domain, &plan, &console, began, cancel);
        // It may have ended by itself.
        let _ = domain.destroy();
        let _ = server.stop(Duration::from_secs(1));
        let (passed, seen) = watched?;
        let took = began.elapsed();
        Ok(Verdict { passed, seen, took })
    }

    fn start(&self, definer: &Definer, plan: &Restored, console: &Path) -> Result<Domain> {
        let rewritten = definer.rewritten(plan)?;
        for note in &rewritten.notes {
            self.context.reporter.note(&format!("note: {note}"));
        }
        let xml = if self.expect.is_some() {
            console::to_file(&rewritten.xml, &utf8(console)?)?
        } else {
            rewritten.xml
        };
        let flags = sys::VIR_DOMAIN_START_AUTODESTROY;
        let started = definer.connection().create_domain_xml(&xml, flags);
        started
            .map_err(LibvirtError::from)
            .with_context(|| format!("{} does not start", shown(&self.point.domain.name)))
    }

    /// Waits for a sign of life: whether there was one, and what it was.
    fn watch(
        &self,
        domain: &Domain,
        plan: &Restored,
        console: &Path,
        began: Instant,
        cancel: &Cancel,
    ) -> Result<(bool, String)> {
        let has_agent = plan
            .files
            .iter()
            .any(|file| file.role == FileRole::DomainXml && names_agent(&file.content));
        loop {
            cancel.check()?;
            let (state, _) = domain.state().map_err(LibvirtError::from)?;
            if state.known() != Some(DomainState::Running) {
                return Ok((false, "the guest has stopped".to_owned()));
            }
            let late = began.elapsed() > self.limit;
            match self.expect {
                Some(text) => {
                    if said(console, text) {
                        return Ok((true, format!("the console says {text:?}")));
                    }
                    if late {
                        return Ok((false, format!("the console does not say {text:?}")));
                    }
                }
                None => {
                    if has_agent && domain.time(0).is_ok() {
                        return Ok((true, "the guest agent answers".to_owned()));
                    }
                    let activity = Activity::of(domain, plan)?;
                    let long_enough = began.elapsed() > ACTIVE && !has_agent && activity.is_life();
                    if late || long_enough {
                        let silent = if has_agent {
                            "the guest agent does not answer; "
                        } else {
                            ""
                        };
                        return Ok((activity.is_life(), format!("{silent}{}", activity.words())));
                    }
                }
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Whether a definition has a channel for the guest agent.
fn names_agent(xml: &[u8]) -> bool {
    String::from_utf8_lossy(xml).contains("org.qemu.guest_agent")
}

fn said(console: &Path, text: &str) -> bool {
    let said = std::fs::read(console).unwrap_or_default();
    let from = said.len().saturating_sub(CONSOLE_BYTES_MAX);
    String::from_utf8_lossy(&said[from..]).contains(text)
}

/// What a guest has done so far.
struct Activity {
    cpu: Duration,
    read_bytes: u64,
}

impl Activity {
    fn of(domain: &Domain, plan: &Restored) -> Result<Self> {
        let info = domain.info().map_err(LibvirtError::from)?;
        let read = plan.disks.iter().filter_map(|disk| {
            let stats = domain.block_stats(&disk.target).ok()?;
            u64::try_from(stats.rd_bytes).ok()
        });
        Ok(Self {
            cpu: Duration::from_nanos(info.cpu_time),
            read_bytes: read.sum(),
        })
    }

    fn is_life(&self) -> bool {
        self.cpu >= CPU_MIN && self.read_bytes >= READ_MIN
    }

    fn words(&self) -> String {
        format!(
            "the guest has computed for {:.0} s and read {} from its disks",
            self.cpu.as_secs_f64(),
            size(self.read_bytes)
        )
    }
}
