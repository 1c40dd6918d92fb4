//! The host whose domains are backed up: a connection to its libvirt.

use std::time::Duration;

use virt::connect::Connect;
use virt::storage_pool::StoragePool;
use virtkeep_repo::DomainUuid;

use crate::error::{Error, Result};
use crate::libvirt::{DomainHandle, ErrorKind, LibvirtError, RunState};

/// The oldest libvirt whose backups and checkpoints are complete: 7.2.0.
const LIBVIRT_MIN: u32 = 7_002_000;
/// The oldest QEMU that libvirt offers incremental backups with: 6.0.0.
const QEMU_MIN: u32 = 6_000_000;

/// A connection to libvirt.
pub struct Host {
    connection: Connect,
    uri: String,
    name: String,
}

/// A domain of a [`Host`], known by its uuid.
#[derive(Clone)]
pub struct DomainRef {
    pub(crate) handle: DomainHandle,
    uuid: DomainUuid,
    name: String,
}

impl std::fmt::Debug for DomainRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.uuid)
    }
}

impl Host {
    /// Connects to libvirt at `uri`, or where libvirt's own rules say.
    ///
    /// # Errors
    /// [`Error::NoDaemon`], [`Error::TooOld`], [`Error::RemoteHost`].
    pub fn connect(uri: Option<&str>) -> Result<Self> {
        // libvirt would print its errors by itself, beside ours.
        virt::error::clear_error_callback();
        let wanted = uri.unwrap_or("its default address");
        let no_daemon = |source: virt::error::Error| Error::NoDaemon {
            uri: wanted.into(),
            source: source.into(),
        };
        let connection = Connect::open(uri).map_err(no_daemon)?;
        let uri = connection.uri().map_err(no_daemon)?;
        let ask = |what: &str| {
            let what = format!("ask libvirt at {uri} for its {what}");
            move |source: virt::error::Error| Error::libvirt(what)(source.into())
        };
        if is_remote(&uri) {
            return Err(Error::RemoteHost { uri });
        }
        let libvirt = connection.lib_version().map_err(ask("version"))?;
        require_version("libvirt", libvirt, LIBVIRT_MIN)?;
        let qemu = connection.hyp_version().map_err(ask("QEMU version"))?;
        require_version("QEMU", qemu, QEMU_MIN)?;
        let name = connection.hostname().map_err(ask("host name"))?;
        Ok(Self {
            connection,
            uri,
            name,
        })
    }

    /// The URI that was connected to.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The name of the host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All domains, running or not, by name.
    pub fn domains(&self) -> Result<Vec<DomainRef>> {
        let list = self
            .connection
            .list_all_domains(0)
            .map_err(|source| Error::libvirt("list the domains")(source.into()))?;
        let mut domains = list
            .into_iter()
            .filter_map(|domain| match DomainRef::new(domain) {
                // One that has just gone is no domain any more.
                Err(Error::Libvirt { source, .. }) if source.kind() == ErrorKind::NoDomain => None,
                other => Some(other),
            })
            .collect::<Result<Vec<_>>>()?;
        domains.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
        Ok(domains)
    }

    /// The domain with this name or uuid.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`]; [`Error::AmbiguousDomain`] when the text is the name of one domain
    /// and the uuid of another.
    pub fn domain(&self, name_or_uuid: &str) -> Result<DomainRef> {
        let mut all = self.domains()?;
        let uuid: Option<DomainUuid> = name_or_uuid.parse().ok();
        let is_meant = |domain: &DomainRef| {
            domain.name == name_or_uuid || uuid.is_some_and(|uuid| uuid == domain.uuid)
        };
        let names: Vec<String> = all.iter().map(|domain| domain.name.clone()).collect();
        all.retain(is_meant);
        match all.len() {
            1 => Ok(all.remove(0)),
            0 => Err(Error::NoSuchDomain {
                name: name_or_uuid.into(),
                similar: similar_names(name_or_uuid, &names),
            }),
            _ => Err(Error::AmbiguousDomain {
                name: name_or_uuid.into(),
                candidates: all
                    .iter()
                    .map(|domain| format!("{:?} ({})", domain.name, domain.uuid))
                    .collect(),
            }),
        }
    }

    /// The path behind a volume of a storage pool.
    pub(crate) fn volume_path(&self, pool: &str, volume: &str) -> Result<String> {
        let find = || -> std::result::Result<String, virt::error::Error> {
            let pool: StoragePool = self.connection.lookup_storage_pool_by_name(pool)?;
            pool.lookup_storage_vol_by_name(volume)?.path()
        };
        find().map_err(|source| {
            Error::libvirt(format!("find volume {volume} of pool {pool}"))(source.into())
        })
    }

    /// The persistent description of a network.
    pub(crate) fn network_xml(&self, name: &str) -> std::result::Result<String, LibvirtError> {
        let network = self.connection.lookup_network_by_name(name)?;
        Ok(network.xml_desc(virt_sys::VIR_NETWORK_XML_INACTIVE)?)
    }
}

impl DomainRef {
    fn new(domain: virt::domain::Domain) -> Result<Self> {
        let handle = DomainHandle::new(domain);
        let name = handle
            .name()
            .map_err(Error::libvirt("ask a domain for its name"))?;
        let uuid = handle
            .uuid()
            .map_err(Error::libvirt(format!("ask domain {name} for its uuid")))?;
        let uuid = uuid.parse().map_err(|_| Error::Xml {
            what: format!("domain {name}"),
            why: format!("{uuid:?} is not a uuid"),
        })?;
        Ok(Self { handle, uuid, name })
    }

    /// Its name now.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is known by.
    pub fn uuid(&self) -> DomainUuid {
        self.uuid
    }

    /// What it is doing.
    pub fn state(&self) -> Result<RunState> {
        self.handle.state().map_err(Error::libvirt(format!(
            "ask domain {} for its state",
            self.name
        )))
    }

    /// The state, after waiting for a domain that is stopping: it does so within half a minute.
    pub(crate) fn settled_state(&self, cancel: &virtkeep_repo::Cancel) -> Result<RunState> {
        for _ in 0..300 {
            match self.state()? {
                RunState::Stopping => {
                    cancel.check()?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                settled => return Ok(settled),
            }
        }
        Err(Error::DomainStopped {
            domain: self.name.clone(),
        })
    }
}

/// Whether the URI names a host (`qemu+ssh://host/system`), as opposed to `qemu:///system`.
pub fn is_remote(uri: &str) -> bool {
    let authority = uri.split_once("://").map_or("", |(_, rest)| rest);
    let host = authority.split('/').next().unwrap_or("");
    let host = host.rsplit('@').next().unwrap_or("");
    !matches!(host, "" | "localhost" | "127.0.0.1" | "[::1]")
}

fn require_version(program: &'static str, found: u32, needed: u32) -> Result<()> {
    if found >= needed {
        return Ok(());
    }
    let text = |v: u32| format!("{}.{}.{}", v / 1_000_000, v / 1000 % 1000, v % 1000);
    Err(Error::TooOld {
        program,
        found: text(found),
        needed: text(needed),
    })
}

/// Names that a slip of the fingers away, or that contain what was typed; the nearest first.
fn similar_names(wanted: &str, names: &[String]) -> Vec<String> {
    let lower = wanted.to_lowercase();
    let mut scored: Vec<(usize, &String)> = names
        .iter()
        .filter_map(|name| {
            let candidate = name.to_lowercase();
            let distance = edit_distance(&lower, &candidate);
            let near = distance <= 1 + lower.chars().count() / 4;
            let inside = lower.len() >= 3 && candidate.contains(&lower);
            (near || inside).then_some((distance, name))
        })
        .collect();
    scored.sort();
    scored
        .into_iter()
        .take(3)
        .map(|(_, name)| name.clone())
        .collect()
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_uris_with_a_foreign_host_are_remote() {
        for local in [
            "qemu:///system",
            "qemu:///session",
            "qemu+unix:///system?socket=/run/x",
            "qemu+ssh://root@localhost/system",
        ] {
            assert!(!is_remote(local), "{local}");
        }
        for remote in ["qemu+ssh://root@kvm1/system", "qemu://kvm1/system"] {
            assert!(is_remote(remote), "{remote}");
        }
    }

    #[test]
    fn a_mistyped_name_finds_its_neighbours_nearest_first() {
        let names = ["web1", "web2", "database", "mail"].map(String::from);
        assert_eq!(similar_names("web", &names), ["web1", "web2"]);
        assert_eq!(similar_names("databsae", &names), ["database"]);
        assert_eq!(similar_names("base", &names), ["database"]);
        assert!(similar_names("zzzz", &names).is_empty());
    }

    #[test]
    fn old_versions_are_named_in_full() {
        let error = require_version("libvirt", 6_000_003, LIBVIRT_MIN).unwrap_err();
        assert_eq!(
            error.to_string(),
            "libvirt 6.0.3 is too old: backups need 7.2.0 or newer"
        );
    }
}
