//! The domain of a recovery, as libvirt has it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use virt::connect::Connect;
use virt::domain::{
    Domain, DomainPausedReason, DomainPausedReasonEnum, DomainState, DomainStateReason,
    DomainStateReasonEnum,
};
use virt::error::ErrorNumber;
use virt::sys;
use virtkeep_capture::{BlockJob, LibvirtError};

use super::record::{Pinned, Recovery};
use crate::define::backing::{self, Backing, Place, leaning_on, without_server};
use crate::output::shown;

/// How long a daemon may take to come back.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// How long a guest may take to end.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// The libvirt that knows what is to become of the state of a TPM: 8.9.0.
const TPM_SINCE: u32 = 8_009_000;

/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It runs.
    Running,
    /// Somebody has paused it.
    Paused,
    /// QEMU has paused it, since a disk did not answer.
    Waiting,
    /// QEMU has paused it, since no space was left for what it writes.
    NoSpace,
    /// It is just ending.
    Ending,
    /// It is off.
    ShutOff,
    /// libvirt does not know it.
    Gone,
}

impl State {
    /// Whether QEMU is there.
    pub(crate) fn is_active(self) -> bool {
        !matches!(self, Self::ShutOff | Self::Gone)
    }

    /// In words.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting => "waiting for its disk",
            Self::NoSpace => "waiting for space",
            Self::Ending => "ending",
            Self::ShutOff => "shut off",
            Self::Gone => "gone",
        }
    }
}

/// The domain of a recovery.
pub(crate) struct Machine<'a> {
    recovery: &'a Recovery,
    connection: Connect,
}

impl<'a> Machine<'a> {
    /// Connects to its libvirt. The domain itself need not be there.
    pub(crate) fn connect(recovery: &'a Recovery) -> Result<Self> {
        recovery.home.check(recovery)?;
        virt::error::clear_error_callback();
        let connection = Connect::open(Some(&recovery.libvirt))
            .map_err(LibvirtError::from)
            .with_context(|| {
                format!(
                    "cannot connect to libvirt at {}: is the daemon running, and may this user use it?",
                    recovery.libvirt
                )
            })?;
        Ok(Self {
            recovery,
            connection,
        })
    }

    /// Asks libvirt, which may have been restarted meanwhile.
    fn ask<T>(
        &mut self,
        what: &str,
        ask: impl Fn(&Domain) -> Result<T, LibvirtError>,
    ) -> Result<T> {
        let deadline = Instant::now() + DAEMON_LIMIT;
        loop {
            let asked = self
                .connection
                .lookup_domain_by_uuid_string(&self.recovery.uuid)
                .map_err(LibvirtError::from)
                .and_then(|domain| ask(&domain));
            match asked {
                Ok(answer) => return Ok(answer),
                Err(_) if !self.connection.is_alive().unwrap_or(false) => {
                    if Instant::now() > deadline {
                        bail!("libvirt has gone and does not come back");
                    }
                    std::thread::sleep(Duration::from_millis(250));
                    if let Ok(again) = Connect::open(Some(&self.recovery.libvirt)) {
                        self.connection = again;
                    }
                }
                Err(error) => {
                    let name = shown(&self.recovery.domain);
                    return Err(error).with_context(|| format!("cannot {what} {name}"));
                }
            }
        }
    }

    /// What the guest is doing.
    pub(crate) fn state(&mut self) -> Result<State> {
        let ask = |domain: &Domain| Ok((domain.state()?, domain.is_active()?));
        let ((state, reason), is_active) = match self.ask("ask for the state of", ask) {
            Err(error) if is_missing(&error) => return Ok(State::Gone),
            asked => asked?,
        };
        Ok(match (state.known(), reason) {
            _ if !is_active => State::ShutOff,
            (Some(DomainState::Shutdown | DomainState::Shutoff), _) => State::Ending,
            (
                Some(DomainState::Paused),
                DomainStateReasonEnum::Known(DomainStateReason::Paused(paused)),
            ) if has_failed(&paused) => self.why_waiting()?,
            (Some(DomainState::Paused | DomainState::Crashed | DomainState::PMSuspended), _) => {
                State::Paused
            }
            _ => State::Running,
        })
    }

    /// What a guest waits for that QEMU has paused.
    fn why_waiting(&mut self) -> Result<State> {
        let ask = "ask for errors of disks of";
        let asked = self.ask(ask, virtkeep_capture::disks_without_space);
        Ok(match asked?.is_empty() {
            true => State::Waiting,
            false => State::NoSpace,
        })
    }

    /// The state, once a guest that is just ending has ended.
    pub(crate) fn settled_state(&mut self) -> Result<State> {
        let deadline = Instant::now() + ENDING_LIMIT;
        loop {
            match self.state() {
                Ok(State::Ending) | Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                state => return state,
            }
        }
    }

    /// The disks of the running guest that still read from the server.
    pub(crate) fn leaning(&mut self) -> Result<Vec<String>> {
        Ok(leaning_on(&self.xml(0)?, &self.recovery.socket_text())?)
    }

    fn xml(&mut self, flags: u32) -> Result<String> {
        self.ask("ask for the definition of", |domain| {
            Ok(domain.xml_desc(flags | sys::VIR_DOMAIN_XML_SECURE)?)
        })
    }

    /// Whether it is the domain of the recovery: one of the images is in use by it or its definition.
    pub(crate) fn is_ours(&mut self) -> Result<bool> {
        for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
            let xml = self.xml(flags)?;
            for disk in &self.recovery.disks {
                if backing::place_of(&xml, &disk.overlay)? != Place::Nowhere {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Where each image of the recovery is in the disks of the running guest.
    pub(crate) fn places(&mut self) -> Result<Vec<Place>> {
        let xml = self.xml(0)?;
        let disks = self.recovery.disks.iter();
        let places = disks.map(|disk| backing::place_of(&xml, &disk.overlay));
        Ok(places.collect::<Result<_, _>>()?)
    }

    /// Starts moving the data of a disk in.
    pub(crate) fn pull(&mut self, target: &str) -> Result<()> {
        let what = format!("begin to move the data of {} into", shown(target));
        self.ask(&what, |domain| virtkeep_capture::pull_disk(domain, target))
    }

    /// Stops that, where it is under way.
    pub(crate) fn stop_pull(&mut self, target: &str) -> Result<()> {
        if self.job(target)?.is_none() {
            return Ok(());
        }
        let what = format!("stop to move the data of {} into", shown(target));
        let stopped = self.ask(&what, |domain| {
            virtkeep_capture::stop_block_job(domain, target)
        });
        match stopped {
            // It has just ended by itself.
            Err(_) if self.job(target)?.is_none() => Ok(()),
            stopped => stopped,
        }
    }

    /// How far that has come; none when nothing is moving.
    pub(crate) fn job(&mut self, target: &str) -> Result<Option<BlockJob>> {
        self.ask("ask for block jobs of", |domain| {
            virtkeep_capture::block_job(domain, target)
        })
    }

    /// Lets a guest go on that waits for its disk, or was paused for a moment.
    pub(crate) fn resume(&mut self) -> Result<()> {
        let resumed = self.ask("resume", |domain| Ok(domain.resume().map(drop)?));
        match resumed {
            // Somebody else was faster.
            Err(_) if self.state()? == State::Running => Ok(()),
            resumed => resumed,
        }
    }

    /// Stands the guest still; QEMU writes out all that it holds of its images meanwhile.
    pub(crate) fn suspend(&mut self) -> Result<()> {
        self.ask("pause", |domain| Ok(domain.suspend().map(drop)?))
    }

    /// Whether a saved state waits to be continued.
    pub(crate) fn has_saved_state(&mut self) -> Result<bool> {
        self.ask("ask for a saved state of", |domain| {
            Ok(domain.has_managed_save(0)?)
        })
    }

    /// Puts the server back into the definition where libvirt has taken it out, as it does at the end of a pull. But
    /// the image is not proved complete then: should the host crash, a guest that is started by hand must still
    /// read from the server what it lacks, or not start.
    pub(crate) fn lean_definition(&mut self, pinned: &Pinned) -> Result<()> {
        let recovery = self.recovery;
        let wanted = recovery.disks.iter().map(|disk| {
            let backing = Backing {
                socket: recovery.socket_text(),
                export: pinned.export(disk),
            };
            (&disk.target[..], &disk.overlay as &Path, backing)
        });
        let xml = self.xml(sys::VIR_DOMAIN_XML_INACTIVE)?;
        match backing::with_server(&xml, &wanted.collect::<Vec<_>>())? {
            Some(new) => self.define(&new, "with"),
            None => Ok(()),
        }
    }

    fn define(&self, xml: &str, how: &str) -> Result<()> {
        let defined = self.connection.define_domain_xml(xml);
        defined
            .map(drop)
            .map_err(LibvirtError::from)
            .with_context(|| format!("libvirt does not accept the definition {how} the server"))
    }

    /// Takes the server, and what was arranged for its absence, out of the definition.
    pub(crate) fn free_definition(&mut self) -> Result<()> {
        let xml = self.xml(sys::VIR_DOMAIN_XML_INACTIVE)?;
        let recovery = self.recovery;
        let new = without_server(&xml, &recovery.socket_text(), &recovery.policies())?;
        match new {
            Some(new) => self.define(&new, "without"),
            None => Ok(()),
        }
    }

    /// Ends the guest as a power cut does.
    pub(crate) fn destroy(&mut self) -> Result<()> {
        self.ask("end", |domain| match domain.destroy() {
            Err(error) if error.code() != ErrorNumber::OperationInvalid.into() => Err(error.into()),
            _ => Ok(()),
        })
    }

    /// Removes the definition, with all that libvirt keeps for it; but what it keeps of an original was
    /// there before the recovery.
    pub(crate) fn undefine(&mut self) -> Result<()> {
        let (nvram, tpm) = if self.recovery.as_original {
            (
                sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM,
                sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM,
            )
        } else {
            (sys::VIR_DOMAIN_UNDEFINE_NVRAM, sys::VIR_DOMAIN_UNDEFINE_TPM)
        };
        let flags = nvram
            | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
        self.ask("undefine", |domain| {
            let knows_tpm = domain.connect()?.lib_version()? >= TPM_SINCE;
            Ok(domain.undefine_flags(if knows_tpm { flags | tpm } else { flags })?)
        })
    }
}

/// Whether QEMU has paused a guest for an error of a disk. libvirt does not know why where QEMU tells of the error
/// late, as it does of all but the first in a second.
fn has_failed(paused: &DomainPausedReasonEnum) -> bool {
    paused.is(DomainPausedReason::IOError) || paused.is(DomainPausedReason::Unknown)
}

fn is_missing(error: &anyhow::Error) -> bool {
    let libvirt = error.downcast_ref::<LibvirtError>();
    libvirt.is_some_and(|error| error.kind() == virtkeep_capture::ErrorKind::NoDomain)
}
