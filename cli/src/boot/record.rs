//! The record of a recovery: what was made for it and where, written once, before any of it is made.
//!
//! It lies in the pin that keeps the recovery's point, so there is one durable file that appears
//! first and goes last: whoever finds the pin can finish or undo all the rest, also after a reboot. What
//! changes (how far the data has been moved, whether the guest runs) is nowhere written down but asked of
//! libvirt and of the images.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use virtkeep_repo::{Pin, PinKind, PointId, Repository, UnixMillis};

use super::claim::Claim;
use crate::define::backing::Policies;
use crate::exit::usage;
use crate::output::shown;

/// What a recovery consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// The name that its domain got.
    pub(crate) domain: String,
    /// The domain's uuid.
    pub(crate) uuid: String,
    /// Whether the domain is the original, and not a clone.
    pub(crate) as_original: bool,
    /// Whether its data is moved in without being asked for again.
    pub(crate) pull: bool,
    /// The host and the user that began it: nobody else sees its guest.
    pub(crate) home: Home,
    /// The libvirt that runs it: a URI, in full.
    pub(crate) libvirt: String,
    /// Where its images and files are. Absolute.
    pub(crate) directory: PathBuf,
    /// Whether the directory was made for it.
    pub(crate) made_directory: bool,
    /// The socket on which the point is served to QEMU.
    pub(crate) socket: PathBuf,
    /// User and group that QEMU runs as, where they are not ours.
    pub(crate) qemu: Option<(u32, u32)>,
    /// Its disks.
    pub(crate) disks: Vec<RecoveredDisk>,
    /// Firmware variables and the like, and the files that its domain writes.
    pub(crate) files: Vec<PathBuf>,
}

/// Where a recovery is at home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Home {
    /// Tells hosts apart; none where the host has no such id.
    machine_id: Option<String>,
    /// The user.
    uid: u32,
}

impl Home {
    /// This host, and this user.
    pub(crate) fn here() -> Self {
        let machine_id = std::fs::read_to_string("/etc/machine-id").ok();
        Self {
            machine_id: machine_id.map(|id| id.trim().to_owned()),
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    /// Whether this host is it, whoever the user is.
    pub(crate) fn is_here(&self) -> bool {
        self.machine_id == Self::here().machine_id
    }

    /// An error that says what to do, unless this host and this user are it.
    pub(super) fn check(&self, recovery: &Recovery) -> Result<()> {
        self.check_user(recovery)?;
        if *self != Self::here() {
            bail!(
                "the recovery of {} was begun on a host with another machine-id, and only there its guest can be \
                 seen. If that is this one, and its machine-id has changed, say so: pass --same-host with --finish \
                 or --abort",
                shown(&recovery.domain)
            );
        }
        Ok(())
    }

    fn check_user(&self, recovery: &Recovery) -> Result<()> {
        if self.uid != Self::here().uid {
            bail!(
                "the recovery of {} was begun by another user, with the id {}, and only that one can see its guest: \
                 run virtkeep as that user",
                shown(&recovery.domain),
                self.uid
            );
        }
        Ok(())
    }
}

/// A disk of a recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecoveredDisk {
    /// Its target in the domain XML.
    pub(crate) target: String,
    /// The image that the guest writes to.
    pub(crate) overlay: PathBuf,
    /// Size of the disk.
    pub(crate) size_bytes: u64,
    /// What its definition said about errors before.
    pub(crate) policies: Policies,
}

/// A recovery that has not ended.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    /// The name of its pin.
    pub(crate) pin: String,
    /// The point it runs from.
    pub(crate) point: PointId,
    /// When it began.
    pub(crate) since: UnixMillis,
    /// What it consists of.
    pub(crate) recovery: Recovery,
    /// Whether the user says that the host that began it is this one.
    pub(crate) same_host: bool,
}

impl Pinned {
    /// Writes a record down and pins the point with it. From here on the recovery exists.
    pub(crate) fn create(repo: &Repository, point: PointId, recovery: Recovery) -> Result<Self> {
        let reason = format!(
            "the domain {} runs from it, recovered to {}",
            shown(&recovery.domain),
            recovery.directory.display()
        );
        let details = serde_json::to_value(&recovery)?;
        let pin = repo.pin_with(&[point], PinKind::InUse, &reason, Some(details))?;
        Self::of(repo, &pin)?.with_context(|| format!("the pin {pin} has gone"))
    }

    /// The recovery of this pin; none once it has ended.
    pub(crate) fn of(repo: &Repository, pin: &str) -> Result<Option<Self>> {
        let mut all = Self::all(repo)?;
        all.retain(|found| found.pin == pin);
        if all.is_empty() {
            // One that is damaged has not ended.
            repo.pins().list()?;
        }
        Ok(all.pop())
    }

    /// All recoveries that have not ended, the oldest first.
    pub(crate) fn all(repo: &Repository) -> Result<Vec<Self>> {
        let pins = repo.pins().scan()?.sound.into_iter();
        let mut all: Vec<Self> = pins.filter_map(|(name, pin)| from_pin(name, pin)).collect();
        all.sort_by(|a, b| (a.since, &a.pin).cmp(&(b.since, &b.pin)));
        Ok(all)
    }

    /// The one that is meant: by the name or uuid of its domain or its pin, or the only one there is.
    pub(crate) fn find(repo: &Repository, name: Option<&str>) -> Result<Self> {
        let mut all = Self::all(repo)?;
        let names = names(&all);
        if let Some(name) = name {
            all.retain(|one| one.is_called(name));
        }
        if all.is_empty() {
            // One that is damaged may be the one that is meant.
            repo.pins().list()?;
        }
        match (all.len(), name) {
            (1, _) => Ok(all.remove(0)),
            (0, None) => bail!("no recovery is under way"),
            (0, Some(name)) if names.is_empty() => Err(anyhow!(
                "no recovery of {} is under way, nor of anything else",
                shown(name)
            )),
            (0, Some(name)) => Err(anyhow!(
                "no recovery of {} is under way: there is {names}",
                shown(name)
            )),
            (_, _) => Err(usage(format!(
                "say which recovery is meant, by name or id: {}",
                self::names(&all)
            ))),
        }
    }

    /// Takes it that this host, which has another machine-id now, began the recovery. Its images are here at least.
    pub(crate) fn say_same_host(&mut self) -> Result<()> {
        self.recovery.home.check_user(&self.recovery)?;
        if !Claim::of(self).holds()? {
            bail!(
                "{} is not there, or not marked as that of the recovery of {}: it belongs to another host. If that is \
                 gone for good, `virtkeep unpin {} --all` gives the recovery up",
                self.recovery.directory.display(),
                shown(&self.recovery.domain),
                self.pin
            );
        }
        self.recovery.home = Home::here();
        self.same_host = true;
        Ok(())
    }

    /// The name of a disk's export.
    pub(super) fn export(&self, disk: &RecoveredDisk) -> String {
        export(self.point, &disk.target)
    }

    fn is_called(&self, name: &str) -> bool {
        [&self.recovery.domain, &self.recovery.uuid, &self.pin]
            .into_iter()
            .any(|one| one == name)
    }
}

/// How recoveries are called, so that one can be named.
fn names(all: &[Pinned]) -> String {
    let names = all
        .iter()
        .map(|one| format!("{} ({})", shown(&one.recovery.domain), one.pin));
    names.collect::<Vec<_>>().join(", ")
}

/// The export of a disk of a point. The point is part of the name, so that no image ever reads another's.
pub(super) fn export(point: PointId, target: &str) -> String {
    format!("{target}@{point}")
}

/// None of pins that others set.
pub(crate) fn from_pin(name: String, pin: Pin) -> Option<Pinned> {
    let recovery = serde_json::from_value(pin.details?).ok()?;
    Some(Pinned {
        pin: name,
        point: *pin.points.first()?,
        since: pin.created,
        recovery,
        same_host: false,
    })
}

impl Recovery {
    /// Beside the socket: locked while somebody looks after the server.
    pub(crate) fn keeper_file(&self) -> PathBuf {
        beside(&self.socket, "keeper")
    }

    /// Beside the socket: locked while somebody works on the recovery.
    pub(crate) fn work_file(&self) -> PathBuf {
        beside(&self.socket, "work")
    }

    /// Beside the socket: what the server could not read last.
    pub(crate) fn unreadable(&self) -> PathBuf {
        beside(&self.socket, "unreadable")
    }

    /// The list of what was given up, if lost bytes are.
    pub(crate) fn lost_ranges(&self) -> PathBuf {
        self.directory.join("lost-ranges.jsonl")
    }

    /// What the server has to say.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("virtkeep-server.log")
    }

    /// Its definition as it is to be in the end, should libvirt lose the other. Once it is there, all that the domain
    /// needs has been made.
    pub(crate) fn definition(&self) -> PathBuf {
        self.directory.join("domain.xml")
    }

    /// The same until it is complete.
    pub(crate) fn definition_in_work(&self) -> PathBuf {
        self.directory.join("domain.xml.partial")
    }

    /// All files that are made for it, whether they are there yet or not.
    pub(crate) fn all_files(&self) -> Vec<PathBuf> {
        let overlays = self.disks.iter().map(|disk| disk.overlay.clone());
        let own = [
            self.log(),
            self.definition(),
            self.definition_in_work(),
            self.lost_ranges(),
        ];
        overlays.chain(self.files.clone()).chain(own).collect()
    }

    /// Where its disks are found, as text: as in domain XML.
    pub(crate) fn socket_text(&self) -> String {
        self.socket.to_string_lossy().into_owned()
    }

    /// What its disks said about errors before.
    pub(crate) fn policies(&self) -> Vec<(String, Policies)> {
        let disks = self.disks.iter();
        disks
            .map(|disk| (disk.target.clone(), disk.policies.clone()))
            .collect()
    }
}

fn beside(socket: &Path, kind: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".");
    name.push(kind);
    PathBuf::from(name)
}
