//! `restore --define` and `boot`: making a libvirt domain of what was restored.
//!
//! [`Definer::prepare`] refuses what cannot work before anything is restored; the XML is rewritten
//! by [`rewrite`] without knowledge of the host; [`Definer::define`] brings both together.

pub(crate) mod backing;
mod character;
pub(crate) mod console;
mod devices;
mod firmware;
mod host_ties;
mod rewrite;
mod splice;
pub(crate) mod throw_away;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virtkeep_capture::LibvirtError;
use virtkeep_repo::{DomainUuid, FileRole, Point};

pub(crate) use self::rewrite::Rewritten;
use self::rewrite::{Identity, MovedFile, Placement, RestoredDisk};
use crate::output::shown;
use crate::restore::directory::{Restored, RestoredFile};

/// As whom a restored domain is to be defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// As itself.
    Original,
    /// As a copy of this name.
    Clone {
        /// The name.
        name: String,
        /// Whether its network links are up.
        network: bool,
    },
}

/// Defines one domain, once its disks are there.
pub(crate) struct Definer {
    connection: Connect,
    identity: Identity,
    name: String,
    uuid: DomainUuid,
}

/// A domain that was defined.
pub(crate) struct Defined {
    /// Its name.
    pub(crate) name: String,
    /// Its uuid.
    pub(crate) uuid: String,
    /// What the user should know about it.
    pub(crate) notes: Vec<String>,
    domain: Domain,
}

impl Definer {
    /// Connects to libvirt and makes sure that the domain can be defined.
    pub(crate) fn prepare(uri: Option<&str>, point: &Point, wanted: As) -> Result<Self> {
        let has_xml = point.files.iter().any(|file| is_domain_xml(file.role));
        ensure!(
            has_xml,
            "the point {} holds no domain XML, so no domain can be made of it: restore its disks",
            point.id
        );
        virt::error::clear_error_callback();
        let connection = Connect::open(uri)
            .map_err(LibvirtError::from)
            .with_context(|| {
                format!(
                    "cannot connect to libvirt{}: is the daemon running, and may this user use it?",
                    uri.map(|uri| format!(" at {uri}")).unwrap_or_default()
                )
            })?;
        let (identity, name, uuid) = match wanted {
            As::Original => {
                let uuid = point.domain.uuid.to_string();
                if exists(connection.lookup_domain_by_uuid_string(&uuid))? {
                    bail!(
                        "a domain with the uuid {uuid} exists: undefine it first (after `virtkeep release`, which takes the checkpoint off it), or define a clone with --name"
                    );
                }
                ensure_free(&connection, &point.domain.name)?;
                let (name, uuid) = (point.domain.name.clone(), point.domain.uuid);
                (Identity::Original, name, uuid)
            }
            As::Clone { name, network } => {
                rewrite::check_name(&name)?;
                ensure_free(&connection, &name)?;
                let uuid = random_uuid()?;
                let identity = Identity::Clone {
                    name: name.clone(),
                    uuid,
                    network,
                };
                (identity, name, uuid)
            }
        };
        Ok(Self {
            connection,
            identity,
            name,
            uuid,
        })
    }

    /// The name that the domain will have.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The uuid that the domain will have.
    pub(crate) fn uuid(&self) -> DomainUuid {
        self.uuid
    }

    /// Whether it is defined as itself.
    pub(crate) fn is_original(&self) -> bool {
        matches!(self.identity, Identity::Original)
    }

    /// Makes sure, once more, that there is no such domain.
    pub(crate) fn check_free(&self) -> Result<()> {
        ensure_free(&self.connection, &self.name)
    }

    /// The connection to libvirt.
    pub(crate) fn connection(&self) -> &Connect {
        &self.connection
    }

    /// Defines the domain on what was restored.
    pub(crate) fn define(&self, restored: &Restored) -> Result<Defined> {
        self.define_rewritten(self.rewritten(restored)?)
    }

    /// The same with a definition that was made before.
    pub(crate) fn define_rewritten(&self, rewritten: Rewritten) -> Result<Defined> {
        let domain = self
            .connection
            .define_domain_xml(&rewritten.xml)
            .map_err(LibvirtError::from)
            .context("libvirt does not accept the definition; the restored files are complete")?;
        Ok(Defined {
            name: domain.name()?,
            uuid: domain.uuid_string()?,
            notes: rewritten.notes,
            domain,
        })
    }

    /// The definition of the domain on what was restored.
    pub(crate) fn rewritten(&self, restored: &Restored) -> Result<Rewritten> {
        let xml = domain_xml(&restored.files)?;
        let disks = restored
            .disks
            .iter()
            .map(|disk| {
                Ok(RestoredDisk {
                    target: disk.target.clone(),
                    path: utf8(&disk.path)?,
                    format: disk.format.name(),
                    backing: disk.backing.clone(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let files = moved_files(&restored.files)?;
        let placement = Placement {
            disks: &disks,
            directory: &utf8(&restored.directory)?,
            files: &files,
            host_has: &|path| Path::new(path).exists(),
            host_has_volume: &|pool, volume| self.has_volume(pool, volume),
            new_mac: &random_mac,
        };
        Ok(rewrite::rewrite(xml, &self.identity, &placement)?)
    }

    /// Whether the storage pool has the volume, and is active: only then a domain finds it.
    fn has_volume(&self, pool: &str, volume: &str) -> bool {
        let pool = self.connection.lookup_storage_pool_by_name(pool);
        pool.is_ok_and(|pool| {
            pool.is_active().unwrap_or(false) && pool.lookup_storage_vol_by_name(volume).is_ok()
        })
    }
}

impl Defined {
    /// Starts the domain.
    pub(crate) fn start(&self) -> Result<()> {
        self.domain
            .create()
            .map_err(LibvirtError::from)
            .with_context(|| format!("{} is defined, but does not start", shown(&self.name)))
    }
}

fn ensure_free(connection: &Connect, name: &str) -> Result<()> {
    if exists(connection.lookup_domain_by_name(name))? {
        bail!(
            "a domain named {} exists: undefine or rename it first, or choose another --name",
            shown(name)
        );
    }
    Ok(())
}

fn exists(looked_up: Result<Domain, virt::error::Error>) -> Result<bool> {
    match looked_up {
        Ok(_) => Ok(true),
        Err(error) if error.code() == ErrorNumber::NoDomain.into() => Ok(false),
        Err(error) => Err(LibvirtError::from(error)).context("cannot ask libvirt for its domains"),
    }
}

fn is_domain_xml(role: FileRole) -> bool {
    matches!(role, FileRole::DomainXml | FileRole::LiveXml)
}

/// The persistent XML; of a transient domain there is only the live one.
pub(crate) fn domain_xml(files: &[RestoredFile]) -> Result<&str> {
    let of = |role| files.iter().find(move |file| file.role == role);
    let file = of(FileRole::DomainXml).or_else(|| of(FileRole::LiveXml));
    let file = file.context("the point holds no domain XML")?;
    std::str::from_utf8(&file.content).context("the point's domain XML is not text")
}

/// Whether a definition names firmware variables of its own.
pub(crate) fn has_nvram(xml: &str) -> bool {
    let document = roxmltree::Document::parse(xml);
    document.is_ok_and(|xml| xml.descendants().any(|node| node.has_tag_name("nvram")))
}

/// The files that the definition must find at their restored place: firmware variables always, for
/// they belong to this domain; the others where the host does not have the same.
fn moved_files(files: &[RestoredFile]) -> Result<Vec<MovedFile>> {
    let moved = files.iter().filter(|file| is_moved(file)).map(|file| {
        Ok(MovedFile {
            from: file.name.clone(),
            to: utf8(&file.path)?,
        })
    });
    moved.collect()
}

/// Whether the definition must find this file at its restored place.
pub(crate) fn is_moved(file: &RestoredFile) -> bool {
    match file.role {
        FileRole::Nvram => true,
        FileRole::Loader | FileRole::Kernel | FileRole::Initrd => !host_has_same(file),
        _ => false,
    }
}

fn host_has_same(file: &RestoredFile) -> bool {
    std::fs::read(&file.name).is_ok_and(|content| content == file.content)
}

pub(crate) fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| {
        format!(
            "libvirt cannot use {}: its name is not UTF-8",
            path.display()
        )
    })
}

/// A random uuid (version 4 of RFC 9562).
fn random_uuid() -> Result<DomainUuid> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("no randomness")?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(DomainUuid::from_bytes(bytes))
}

/// A random address in the range that QEMU guests use.
fn random_mac() -> String {
    let mut tail = [0; 3];
    // Without randomness the uuid would have failed before.
    let _ = getrandom::fill(&mut tail);
    format!("52:54:00:{:02x}:{:02x}:{:02x}", tail[0], tail[1], tail[2])
}
