//! `restore --onto`: over a block device or an NBD export that exists.
//!
//! Whatever was there is lost, so the target is shown and the user asked first; nothing is written
//! before the answer.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use libnbd::{Builder, Endpoint, Handle};
use virtkeep_repo::{Cancel, DiskReader, Progress};

use super::copy;
use super::file_sink::Device;
use super::nbd_sink::{Before, NbdSink};
use super::signature::{self, HEAD_BYTES};
use super::target_device::TargetDevice;
use crate::exit::usage;
use crate::output::{complain, shown, size};
use crate::progress::Reporter;

/// An existing target, opened but not yet written to.
pub(crate) enum Target {
    /// A block device of this host.
    Device(TargetDevice),
    /// An NBD export.
    Nbd {
        /// The first connection to it.
        first: Box<Handle>,
        /// For more connections.
        endpoint: Endpoint,
    },
}

impl Target {
    /// Opens a device path or an NBD URI, refusing one that is in use.
    pub(crate) fn open(text: &str, libvirt: Option<&str>, reporter: &Reporter) -> Result<Self> {
        if is_nbd_uri(text) {
            let endpoint = Endpoint::uri(text);
            let first = Builder::new()
                .connect(&endpoint)
                .with_context(|| format!("cannot connect to {text}"))?;
            if first.flags().read_only {
                bail!("the export {text} is read-only: it cannot be restored onto");
            }
            let first = Box::new(first);
            return Ok(Self::Nbd { first, endpoint });
        }
        let device = TargetDevice::open(Path::new(text))?;
        match device.used_by_domain(libvirt) {
            Ok(None) => {}
            Ok(Some(domain)) => bail!(
                "{text} is a disk of the domain {domain}: take it out of the domain first, or choose another device"
            ),
            Err(_) => reporter.note(&format!(
                "note: libvirt cannot be asked whether a domain uses {text}"
            )),
        }
        Ok(Self::Device(device))
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Device(device) => device.size(),
            Self::Nbd { first, .. } => first.size(),
        }
    }

    /// What is on it now.
    pub(crate) fn contents(&mut self) -> Result<String> {
        let len = HEAD_BYTES.min(usize::try_from(self.size()).unwrap_or(HEAD_BYTES));
        let size = self.size();
        let head = match self {
            Self::Device(device) => {
                let mut head = vec![0; len];
                device.file().read_exact_at(&mut head, 0)?;
                head
            }
            Self::Nbd { first, .. } => first.read(0, len)?.bytes,
        };
        Ok(signature::describe(&head, size))
    }

    /// Overwrites it with the disk, durably. What lies behind the disk's end stays.
    pub(crate) fn overwrite(
        self,
        reader: &DiskReader,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        match self {
            Self::Device(device) => {
                copy(reader, &Device(device.file()), progress, cancel)?;
                device.file().sync_all().context("cannot sync the device")
            }
            Self::Nbd { first, endpoint } => {
                let builder = Builder::new();
                let sink = NbdSink::new(*first, &builder, &endpoint, Before::Anything, cancel)?;
                copy(reader, &sink, progress, cancel)?;
                sink.finish()
            }
        }
    }
}

/// Whether `--onto` means an NBD server rather than a path.
fn is_nbd_uri(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    matches!(
        scheme,
        Some("nbd" | "nbds" | "nbd+unix" | "nbds+unix" | "nbd+vsock" | "nbds+vsock")
    )
}

/// Shows what will be lost and asks. Without a terminal only `--yes` will do.
pub(crate) fn confirm(name: &str, target: &mut Target, disk: &str, yes: bool) -> Result<()> {
    let what = format!(
        "{} ({}) holds {}",
        shown(name),
        size(target.size()),
        target
            .contents()
            .with_context(|| format!("cannot read {name}"))?
    );
    if yes {
        complain(&format!("{what}: it is overwritten"));
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(usage(format!(
            "{what}. There is no terminal to ask on: pass --yes to overwrite it"
        )));
    }
    let mut err = std::io::stderr().lock();
    write!(
        err,
        "{what}.\nOverwrite it with {disk}? All of that will be lost. Type yes: "
    )?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("not confirmed: nothing was written to {name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_uris() {
        assert!(is_nbd_uri("nbd://host/export"));
        assert!(is_nbd_uri("nbd+unix:///?socket=/run/s"));
        assert!(!is_nbd_uri("/dev/vg/nbd"));
        assert!(!is_nbd_uri("http://host/"));
    }
}
