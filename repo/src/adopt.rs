//! Taking over what a killed backup left: packs that are complete but that the index was not told of.
//!
//! Their chunks are then found like any others, so the next backup does not store them again.

use std::collections::HashSet;

use crate::format::pack::{read_header, read_table};
use crate::index::PackState;
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::{LeaseId, PackId, Result};

/// Tells the index of every complete pack that it does not know, or knows in part, and that none of
/// the `alive` leases wrote. The caller holds the maintenance lock: nobody deletes such packs meanwhile.
/// Answers with the packs that cannot be read.
pub(crate) fn adopt_packs(store: &Store, alive: &HashSet<LeaseId>) -> Result<Vec<PackId>> {
    let rows = store.index.packs()?;
    let entered = |state| state != PackState::Entering;
    let known: HashSet<PackId> = rows
        .iter()
        .filter(|row| entered(row.state))
        .map(|row| row.id)
        .collect();
    let mut settled = false;
    let mut unreadable = Vec::new();
    for name in store.storage.list(Folder::Packs)? {
        let ObjectName::Pack(id) = name else { continue };
        if known.contains(&id) {
            continue;
        }
        let pack = read_header(&*store.storage, id, &store.keys).and_then(|header| {
            let orphan = !alive.contains(&header.lease);
            orphan
                .then(|| read_table(&*store.storage, id, &store.keys))
                .transpose()
        });
        match pack {
            Ok(Some(pack)) => {
                if !settled {
                    store.storage.settle(Folder::Packs)?;
                    settled = true;
                }
                store.index.add_packs(&[pack])?;
            }
            Ok(None) => {}
            // Not ours to judge, and no reason to refuse a backup.
            Err(_) => unreadable.push(id),
        }
    }
    Ok(unreadable)
}
