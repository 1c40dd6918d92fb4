//! The files that are kept with a point beside its disks: domain and network XML, firmware
//! variables, kernel, initial RAM disk, loader and TPM state, and the log of the run.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use virtkeep_repo::{Backup, FileRole, StoredFile};

use crate::domain_xml::{DomainXml, TpmState};
use crate::error::{Error, Result};
use crate::event::Journal;
use crate::host::{DomainRef, Host};
use crate::libvirt::{RunState, XmlKind};

/// Where libvirt keeps the state of emulated TPMs.
const TPM_DIR: &str = "/var/lib/libvirt/swtpm";

/// Stores everything a domain needs beside its disks. What cannot be read is a warning: a backup
/// of the disks is worth having all the same. The domain's own XML is not optional.
pub(crate) fn store(
    backup: &Backup,
    host: &Host,
    domain: &DomainRef,
    xml: &DomainXml,
    state: RunState,
    journal: &Journal<'_>,
) -> Result<Vec<StoredFile>> {
    let mut files = Vec::new();
    let mut text = |role, name: &str, content: String| -> Result<()> {
        files.push(backup.store_file(role, name, &mut content.as_bytes())?);
        Ok(())
    };
    let read_xml = |kind| {
        domain.handle.xml(kind).map_err(Error::libvirt(format!(
            "read the XML of domain {}",
            domain.name()
        )))
    };
    text(
        FileRole::DomainXml,
        "domain.xml",
        read_xml(XmlKind::Inactive)?,
    )?;
    if state != RunState::ShutOff {
        text(FileRole::LiveXml, "live.xml", read_xml(XmlKind::Live)?)?;
    }
    for network in &xml.networks {
        match host.network_xml(network) {
            Ok(content) => text(FileRole::NetworkXml, network, content)?,
            Err(error) => journal.warn(format!("network {network} is not kept: {error}")),
        }
    }
    let on_host = [
        (FileRole::Loader, &xml.loader),
        (FileRole::Nvram, &xml.nvram),
        (FileRole::Kernel, &xml.kernel),
        (FileRole::Initrd, &xml.initrd),
    ];
    for (role, path) in on_host {
        if let Some(path) = path {
            files.extend(store_host_file(backup, role, Path::new(path), journal)?);
        }
    }
    if let Some(tpm) = &xml.tpm {
        let dir = match tpm {
            TpmState::Default => Path::new(TPM_DIR).join(domain.uuid().to_string()),
            TpmState::Path(path) => PathBuf::from(path),
        };
        let found = files_below(&dir);
        if found.is_empty() {
            journal.warn(format!("no TPM state can be read in {}", dir.display()));
        }
        for path in found {
            files.extend(store_host_file(backup, FileRole::Tpm, &path, journal)?);
        }
    }
    Ok(files)
}

/// Stores the log as it is now.
pub(crate) fn store_log(backup: &Backup, journal: &Journal<'_>) -> Result<StoredFile> {
    let text = journal.text();
    Ok(backup.store_file(FileRole::Log, "log", &mut text.as_bytes())?)
}

fn store_host_file(
    backup: &Backup,
    role: FileRole,
    path: &Path,
    journal: &Journal<'_>,
) -> Result<Option<StoredFile>> {
    let mut content = match open(path) {
        Ok(file) => file,
        Err(error) => {
            journal.warn(format!("{} is not kept: {error}", path.display()));
            return Ok(None);
        }
    };
    let name = path.to_string_lossy();
    Ok(Some(backup.store_file(role, &name, &mut content)?))
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// All regular files below a directory (or the file itself), in a stable order.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    if dir.is_file() {
        return vec![dir.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| !path.is_symlink())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .flat_map(|path| files_below(&path))
        .collect()
}
