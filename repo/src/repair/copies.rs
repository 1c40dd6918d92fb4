//! Other copies of what was lost: two backups that ran at once may have stored the same content, and
//! prune may have been killed between copying and removing.

use super::Lost;
use super::salvage::good_entries;
use crate::check::Health;
use crate::format::pack::FinishedPack;
use crate::index::{PackRow, PackState};
use crate::{Cancel, Repository, Result};

/// Makes the index find good copies of lost records; how many there were.
pub(super) fn find(
    repo: &Repository,
    health: &Health,
    lost: &Lost<'_>,
    cancel: &Cancel,
) -> Result<u64> {
    let store = repo.store();
    let mut found = 0;
    for row in store.index.packs()? {
        cancel.check()?;
        let (Some(pack_health), PackState::Live) = (health.get(&row.id), row.state) else {
            continue;
        };
        let mut entries = good_entries(store, row.id, pack_health)?;
        entries.retain(|entry| lost.contains(entry.id));
        if entries.is_empty() {
            continue;
        }
        found += entries.len() as u64;
        // They are wanted, so their entries move to this pack; and are wanted no more.
        let PackRow {
            id,
            kind,
            lease,
            bytes,
            ..
        } = row;
        store.index.add_packs(&[FinishedPack {
            id,
            kind,
            lease,
            bytes,
            entries,
        }])?;
    }
    Ok(found)
}
