//! Taking over what a killed backup left: packs that are complete but that the index was not told of.
//!
//! Their chunks are then found like any others, so the next backup does not store them again.

use std::collections::HashSet;

use crate::format::pack::{read_header, read_table};
use crate::index::NewPack;
use crate::storage::{Folder, ObjectName};
use crate::store::Store;
use crate::{Error, LeaseId, PackId, Result};

/// Tells the index of every complete pack that it does not know and that one of the `dead` leases
/// wrote. The caller holds the maintenance lock: nobody deletes such packs meanwhile.
pub(crate) fn adopt_packs(store: &Store, dead: &HashSet<LeaseId>) -> Result<()> {
    let known: HashSet<PackId> = store.index.packs()?.iter().map(|row| row.id).collect();
    for name in store.storage.list(Folder::Packs)? {
        let ObjectName::Pack(id) = name else { continue };
        if known.contains(&id) {
            continue;
        }
        let read = read_header(&*store.storage, id, &store.keys).and_then(|header| {
            let orphan = dead.contains(&header.lease);
            orphan
                .then(|| read_table(&*store.storage, id, &store.keys))
                .transpose()
        });
        match read {
            Ok(Some(pack)) => store.index.add_packs(&[NewPack::from(pack)])?,
            // Not ours to judge: `check` tells of it.
            Ok(None) | Err(Error::Corrupt { .. } | Error::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
