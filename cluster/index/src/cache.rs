//! Pages in memory, shared by all partitions of a core: bounded, by the clock's hand.
//!
//! Invariants:
//! - what is in here was decoded and checked under its name;
//! - it never holds more bytes than it may, pages larger than all of it included;
//! - the order in which pages leave depends on what was asked for, not on chance.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use ashlar_layout::ids::PartitionId;
use ashlar_layout::page::{Page, RunId};
use bytes::Bytes;

/// A run's name on its device: the partition that wrote it, and its number there. Several partitions may
/// have the run, and share its pages in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunName {
    pub(crate) origin: PartitionId,
    pub(crate) id: RunId,
}

/// A page's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageKey {
    pub(crate) run: RunName,
    pub(crate) grain: u32,
}

/// A page that several may hold.
pub(crate) type Shared = Arc<Page<Bytes>>;

/// Mixes numbers: the keys are ours, nobody chooses them so that they collide.
#[derive(Clone, Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

#[derive(Clone, Debug)]
struct Slot {
    key: PageKey,
    page: Shared,
    used: bool,
}

/// The cache.
#[derive(Clone, Debug)]
pub struct Cache {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    places: HashMap<PageKey, usize, BuildHasherDefault<NumberHasher>>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
    hits: u64,
    misses: u64,
}

/// What a cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of pages in it.
    pub bytes: usize,
    /// Questions that it could answer.
    pub hits: u64,
    /// Questions that it could not.
    pub misses: u64,
}

impl Cache {
    /// Holds at most so many bytes of pages.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            places: HashMap::default(),
            hand: 0,
            bytes: 0,
            bytes_max,
            hits: 0,
            misses: 0,
        }
    }

    /// What it did.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            bytes: self.bytes,
            hits: self.hits,
            misses: self.misses,
        }
    }

    /// Forgets everything: for measurements without it.
    pub fn clear(&mut self) {
        *self = Self {
            hits: self.hits,
            misses: self.misses,
            ..Self::new(self.bytes_max)
        };
    }

    pub(crate) fn get(&mut self, key: &PageKey) -> Option<Shared> {
        let slot = self.places.get(key).copied();
        let Some(slot) = slot.and_then(|place| self.slots[place].as_mut()) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        slot.used = true;
        Some(slot.page.clone())
    }

    pub(crate) fn insert(&mut self, key: PageKey, page: Shared) {
        let len = page.bytes().len();
        if len > self.bytes_max || self.places.contains_key(&key) {
            return;
        }
        while self.bytes + len > self.bytes_max {
            self.evict_one();
        }
        // Unused until somebody asks again: a long scan pushes out what only scans touched.
        let used = false;
        let slot = Some(Slot { key, page, used });
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.places.insert(key, place);
        self.bytes += len;
    }

    /// Forgets the pages of a run. A partition that still has it reads them again.
    pub(crate) fn drop_run(&mut self, run: RunName) {
        for place in 0..self.slots.len() {
            let of_run = |slot: &Slot| slot.key.run == run;
            if self.slots[place].as_ref().is_some_and(of_run) {
                self.remove(place);
            }
        }
    }

    fn evict_one(&mut self) {
        loop {
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            match self.slots.get_mut(self.hand) {
                Some(Some(slot)) if slot.used => slot.used = false,
                Some(Some(_)) => return self.remove(self.hand),
                Some(None) => {}
                None => return,
            }
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(slot) = self.slots[place].take() {
            self.places.remove(&slot.key);
            self.bytes -= slot.page.bytes().len();
            self.free.push(place);
        }
    }
}
