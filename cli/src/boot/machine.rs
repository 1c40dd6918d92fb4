//! The domain of a recovery, as libvirt has it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use virt::connect::Connect;
use virt::domain::{
    Domain, DomainPausedReason, DomainState, DomainStateReason, DomainStateReasonEnum,
};
use virt::error::ErrorNumber;
use virt::sys;
use virtkeep_capture::{BlockJob, LibvirtError};

use super::record::Recovery;
use crate::define::backing::{leaning_on, without_server};
use crate::output::shown;

/// How long a daemon may take to come back.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

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
    /// It is off.
    ShutOff,
    /// libvirt does not know it.
    Gone,
}

impl State {
    /// In words.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting => "waiting for its disk",
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
        virt::error::clear_error_callback();
        let connection = Connect::open(recovery.libvirt.as_deref())
            .map_err(LibvirtError::from)
            .context(
                "cannot connect to libvirt: is the daemon running, and may this user use it?",
            )?;
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
                    if let Ok(again) = Connect::open(self.recovery.libvirt.as_deref()) {
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
        match self.ask("ask for the state of", |domain| Ok(domain.state()?)) {
            Ok((state, reason)) => Ok(match state.known() {
                Some(DomainState::Shutoff | DomainState::Crashed) => State::ShutOff,
                Some(DomainState::Paused) => match reason {
                    DomainStateReasonEnum::Known(DomainStateReason::Paused(paused))
                        if paused.is(DomainPausedReason::IOError) =>
                    {
                        State::Waiting
                    }
                    _ => State::Paused,
                },
                _ => State::Running,
            }),
            Err(error) if is_missing(&error) => Ok(State::Gone),
            Err(error) => Err(error),
        }
    }

    /// The disks that still read from the server: of the running guest, and of its definition.
    pub(crate) fn leaning(&mut self) -> Result<Vec<String>> {
        let mut leaning = leaning_on(&self.xml(0)?, &self.recovery.socket_text())?;
        let defined = self.xml(sys::VIR_DOMAIN_XML_INACTIVE)?;
        leaning.extend(leaning_on(&defined, &self.recovery.socket_text())?);
        leaning.sort();
        leaning.dedup();
        Ok(leaning)
    }

    fn xml(&mut self, flags: u32) -> Result<String> {
        self.ask("ask for the definition of", |domain| {
            Ok(domain.xml_desc(flags | sys::VIR_DOMAIN_XML_SECURE)?)
        })
    }

    /// Whether its definition is ours: one of our images is in it.
    pub(crate) fn is_ours(&mut self) -> Result<bool> {
        let xml = self.xml(sys::VIR_DOMAIN_XML_INACTIVE)?;
        let document = roxmltree::Document::parse(&xml).context("cannot read the definition")?;
        let files: Vec<&str> = document
            .descendants()
            .filter_map(|node| node.attribute("file"))
            .collect();
        let mut overlays = self.recovery.disks.iter();
        Ok(overlays.any(|disk| files.iter().any(|file| disk.overlay.to_str() == Some(file))))
    }

    /// Starts moving the data of a disk in.
    pub(crate) fn pull(&mut self, target: &str) -> Result<()> {
        let what = format!("begin to move the data of {} into", shown(target));
        self.ask(&what, |domain| virtkeep_capture::pull_disk(domain, target))
    }

    /// How far that has come; none when nothing is moving.
    pub(crate) fn job(&mut self, target: &str) -> Result<Option<BlockJob>> {
        self.ask("ask for block jobs of", |domain| {
            virtkeep_capture::block_job(domain, target)
        })
    }

    /// Lets a guest go on that waits for its disk.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.ask("resume", |domain| Ok(domain.resume().map(drop)?))
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

    /// Takes the server, and what was arranged for its absence, out of the definition.
    pub(crate) fn free_definition(&mut self) -> Result<()> {
        let xml = self.xml(sys::VIR_DOMAIN_XML_INACTIVE)?;
        let recovery = self.recovery;
        let new = without_server(&xml, &recovery.socket_text(), &recovery.policies())?;
        if let Some(new) = new {
            self.connection
                .define_domain_xml(&new)
                .map_err(LibvirtError::from)
                .context("libvirt does not accept the definition without the server")?;
        }
        Ok(())
    }

    /// Ends the guest as a power cut does.
    pub(crate) fn destroy(&mut self) -> Result<()> {
        self.ask("end", |domain| match domain.destroy() {
            Err(error) if error.code() != ErrorNumber::OperationInvalid.into() => Err(error.into()),
            _ => Ok(()),
        })
    }

    /// Removes the definition, with all that libvirt keeps for it.
    pub(crate) fn undefine(&mut self) -> Result<()> {
        let flags = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
        self.ask("undefine", |domain| Ok(domain.undefine_flags(flags)?))
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let libvirt = error.downcast_ref::<LibvirtError>();
    libvirt.is_some_and(|error| error.kind() == virtkeep_capture::ErrorKind::NoDomain)
}
