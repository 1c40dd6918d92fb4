//! Fetching many records at once: looked up together, read in the order of the packs, verified on all
//! cores.

use rayon::prelude::*;

use super::reads::{Located, of_neighbours, span};
use crate::Result;
use crate::format::record;
use crate::ids::ContentId;
use crate::index::Location;
use crate::storage::ObjectName;
use crate::store::Store;

/// A record that is wanted.
struct Item<I> {
    /// Its position in the question.
    position: usize,
    id: I,
    location: Location,
}

impl<I> Located for Item<I> {
    fn location(&self) -> Location {
        self.location
    }
}

/// The raw bytes of each record, verified, or why there are none. The caller bounds how many it asks
/// for. An error of the index is an error of the whole.
pub(crate) fn fetch_many<I: ContentId + Send + Sync>(
    store: &Store,
    ids: &[I],
) -> Result<Vec<Result<Vec<u8>>>> {
    let raw: Vec<_> = ids.iter().map(|id| id.raw()).collect();
    let places = store.index.locate(&raw)?;
    let (mut items, mut nowhere) = (Vec::with_capacity(ids.len()), Vec::new());
    for (position, (id, place)) in ids.iter().zip(places).enumerate() {
        match place {
            Some(location) => items.push(Item {
                position,
                id: *id,
                location,
            }),
            None => nowhere.push(position),
        }
    }
    items.sort_unstable_by_key(|item| (item.location.pack, item.location.offset));
    let reads: Vec<Vec<Item<I>>> = of_neighbours(items).collect();
    let mut answers: Vec<(usize, Result<Vec<u8>>)> = reads
        .par_iter()
        .flat_map_iter(|read| fetch_neighbours(store, read))
        .collect();
    answers.extend(
        nowhere
            .into_iter()
            .map(|position| (position, store.fetch(ids[position]))),
    );
    answers.sort_unstable_by_key(|(position, _)| *position);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

fn fetch_neighbours<I: ContentId>(
    store: &Store,
    read: &[Item<I>],
) -> Vec<(usize, Result<Vec<u8>>)> {
    let span = span(read);
    let mut bytes = vec![0; (span.end - span.start) as usize];
    let pack = ObjectName::Pack(read[0].location.pack);
    let fetched = store.storage.read_at(&pack, span.start, &mut bytes).is_ok();
    let one = |item: &Item<I>| {
        let from = (u64::from(item.location.offset) - span.start) as usize;
        let sealed = &bytes[from..from + item.location.len as usize];
        fetched
            .then(|| record::open(&store.keys, I::KIND, item.id.raw(), sealed).ok())
            .flatten()
            // Moved meanwhile, or damaged: asked for alone it is found, or says what is wrong.
            .map_or_else(|| store.fetch(item.id), Ok)
    };
    read.iter().map(|item| (item.position, one(item))).collect()
}
