//! Taking our checkpoints off a domain again.

use std::collections::BTreeSet;

use virtkeep_repo::{Cancel, Repository};

use crate::checkpoints;
use crate::error::{Error, Result};
use crate::event::{Event, Journal, Observer};
use crate::host::{DomainRef, Host};
use crate::libvirt::RunState;
use crate::names::Names;
use crate::offline::qcow2_paths;
use crate::plan;

/// Takes every checkpoint of this repository off the domain, with their bitmaps. Running or shut
/// off; nobody else's checkpoints are touched. Returns the names of those removed.
///
/// # Errors
/// [`virtkeep_repo::Error::Busy`] while the domain is being backed up.
pub fn release(
    host: &Host,
    domain: &DomainRef,
    repo: &Repository,
    observer: &dyn Observer,
) -> Result<Vec<String>> {
    let _lock = repo.lock_domain(domain.uuid())?;
    let journal = Journal::new(observer);
    let names = Names::new(repo, domain.uuid());
    let xml = plan::read_xml(host, domain)?;
    let removed = match domain.settled_state(&Cancel::new())? {
        RunState::ShutOff => {
            checkpoints::remove_offline(&domain.handle, &qcow2_paths(&xml), |name| {
                names.is_our_checkpoint(name)
            })?
        }
        _ => {
            let all: Vec<&str> = xml.disks.iter().map(|disk| &*disk.target).collect();
            let points = plan::points_of(repo, domain)?;
            if let Some((name, disks)) = plan::lost_checkpoint(domain, &names, &points) {
                let disks: Vec<&str> = disks
                    .into_iter()
                    .filter(|disk| all.contains(disk))
                    .collect();
                checkpoints::redefine_lost(&domain.handle, name, &disks, &all)?;
            }
            let ours = checkpoints::ours(&domain.handle, &names)
                .map_err(Error::libvirt("list the domain's checkpoints"))?;
            for name in &ours {
                checkpoints::remove(&domain.handle, name, &all)
                    .map_err(Error::libvirt(format!("delete checkpoint {name}")))?;
            }
            ours.into_iter().collect::<BTreeSet<_>>()
        }
    };
    for name in &removed {
        journal.event(Event::CheckpointDeleted { name: name.clone() });
    }
    Ok(removed.into_iter().collect())
}
