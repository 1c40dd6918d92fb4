//! A small cache of shared values in two generations: when the young one is full, the old one goes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// Keeps the values asked for most recently; at most `entries_max` of them.
pub(crate) struct Cache<K, V> {
    entries_max: usize,
    generations: Mutex<Generations<K, V>>,
}

struct Generations<K, V> {
    young: HashMap<K, Arc<V>>,
    old: HashMap<K, Arc<V>>,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    /// An empty cache.
    pub(crate) fn new(entries_max: usize) -> Self {
        let generations = Generations {
            young: HashMap::new(),
            old: HashMap::new(),
        };
        Self {
            entries_max,
            generations: Mutex::new(generations),
        }
    }

    /// The value, from the cache or else from `load`. Two threads may load the same value at once.
    pub(crate) fn get_or<E>(
        &self,
        key: K,
        load: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        let value = Arc::new(load()?);
        let evicted = self.insert(&mut lock(&self.generations), key, Arc::clone(&value));
        drop(evicted);
        Ok(value)
    }

    /// The value, if it is in the cache.
    pub(crate) fn get(&self, key: K) -> Option<Arc<V>> {
        let mut generations = lock(&self.generations);
        if let Some(value) = generations.young.get(&key) {
            return Some(Arc::clone(value));
        }
        let value = generations.old.remove(&key)?;
        let evicted = self.insert(&mut generations, key, Arc::clone(&value));
        drop(generations);
        drop(evicted);
        Some(value)
    }

    /// Takes a value out of the cache.
    pub(crate) fn remove(&self, key: K) {
        let mut generations = lock(&self.generations);
        generations.young.remove(&key);
        generations.old.remove(&key);
    }

    /// Puts a value in. What has to go for it is handed back: it may be much, and is dropped without
    /// the lock.
    fn insert(
        &self,
        generations: &mut Generations<K, V>,
        key: K,
        value: Arc<V>,
    ) -> HashMap<K, Arc<V>> {
        let mut evicted = HashMap::new();
        if generations.young.len() >= self.entries_max.div_ceil(2) {
            evicted =
                std::mem::replace(&mut generations.old, std::mem::take(&mut generations.young));
        }
        generations.young.insert(key, value);
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cache: &Cache<u32, u32>, key: u32, loads: &mut u32) {
        let value = cache.get_or(key, || {
            *loads += 1;
            Ok::<_, ()>(key * 10)
        });
        assert_eq!(*value.unwrap(), key * 10);
    }

    #[test]
    fn a_value_in_use_stays_while_others_come_and_go() {
        let (cache, mut loads) = (Cache::new(4), 0);
        load(&cache, 1, &mut loads);
        for other in 2..50 {
            load(&cache, other, &mut loads);
            load(&cache, 1, &mut loads);
        }
        assert_eq!(loads, 49, "1 was loaded once");
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let (cache, mut loads) = (Cache::new(4), 0);
        for key in 0..100 {
            load(&cache, key, &mut loads);
        }
        let generations = lock(&cache.generations);
        assert!(generations.young.len() + generations.old.len() <= 4);
    }
}
