//! The subtrees that a walk has been through, so that what points share is walked once.
//!
//! Bounded: of the ids 16 bytes are kept (keyed hashes: nobody can craft two that agree), in two
//! generations. When the younger is full the older is forgotten, which costs a second walk of what
//! was in it, and nothing else; what is in use stays.

use std::collections::HashSet;

use crate::RawId;

/// Ids in one generation: with both about 40 MB.
const GENERATION_MAX: usize = 900_000;

/// Ids that were seen, as far as they are remembered.
#[derive(Default)]
pub(crate) struct Seen {
    young: HashSet<[u8; 16]>,
    old: HashSet<[u8; 16]>,
}

impl Seen {
    /// Remembers an id.
    pub(crate) fn insert(&mut self, id: RawId) {
        self.insert_key(key(id));
    }

    /// Whether an id is remembered; it was needed now, and stays the longer.
    pub(crate) fn contains(&mut self, id: RawId) -> bool {
        let key = key(id);
        if self.young.contains(&key) {
            return true;
        }
        let known = self.old.contains(&key);
        if known {
            self.insert_key(key);
        }
        known
    }

    fn insert_key(&mut self, key: [u8; 16]) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key);
    }
}

fn key(id: RawId) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&id.as_bytes()[..16]);
    key
}
