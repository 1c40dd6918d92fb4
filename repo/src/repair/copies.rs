//! Other copies of what was lost: two backups that ran at once may have stored the same content, and
//! prune may have been killed between copying and removing, or the old pack waits for a running backup.

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
    lost: &mut Lost<'_>,
    cancel: &Cancel,
) -> Result<u64> {
    let store = repo.store();
    let mut found = 0;
    let (live, mut rows): (Vec<PackRow>, Vec<PackRow>) = store
        .index
        .packs()?
        .into_iter()
        .partition(|row| row.state == PackState::Live);
    rows.retain(|row| matches!(row.state, PackState::Condemned(_)));
    for row in live.into_iter().chain(rows) {
        cancel.check()?;
        let Some(pack_health) = health.get(&row.id) else {
            continue;
        };
        let entries = lost.take(row.id, good_entries(store, row.id, pack_health)?)?;
        if entries.is_empty() {
            continue;
        }
        // What was condemned is needed after all. Nobody else decides upon it: this is maintenance.
        store.index.write(|edit| edit.revive(&[row.id]))?;
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
