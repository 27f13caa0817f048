//! Decode tables of the loss patterns seen last.
//!
//! Invariants:
//! - A pattern (which shards are used, which are wanted) determines its tables, so an entry is never stale.
//! - At most `SETS * WAYS` entries are kept, and each set drops its least recently used one.
//! - A lock is held for a search among `WAYS` keys, never while a matrix is inverted: two threads that
//!   miss at once both compute, and both are right.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::CodecError;
use crate::kernel::Tables;

const SETS: usize = 32;
const WAYS: usize = 8;

/// A loss pattern: shards used and shards wanted, as bit sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) present: u64,
    pub(crate) wanted: u64,
}

impl Pattern {
    fn set(self) -> usize {
        // Fibonacci hashing: the product's top bits depend on every bit of the pattern.
        let mixed =
            (self.present ^ self.wanted.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (u64::BITS - SETS.ilog2())) as usize
    }
}

/// Entries of one set, most recently used first.
type Set = Mutex<Vec<(Pattern, Arc<Tables>)>>;

/// The cache; see the module.
#[derive(Debug)]
pub(crate) struct DecodeCache {
    sets: [Set; SETS],
}

impl DecodeCache {
    pub(crate) fn new() -> Self {
        Self {
            sets: [const { Mutex::new(Vec::new()) }; SETS],
        }
    }

    /// The tables of `pattern`, made by `make` unless they are here.
    pub(crate) fn get(
        &self,
        pattern: Pattern,
        make: impl FnOnce() -> Result<Tables, CodecError>,
    ) -> Result<Arc<Tables>, CodecError> {
        let set = &self.sets[pattern.set()];
        {
            // A panic elsewhere cannot leave a set half changed: the entries are only moved about.
            let mut entries = set.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = entries.iter().position(|(key, _)| *key == pattern) {
                entries[..=at].rotate_right(1);
                return Ok(Arc::clone(&entries[0].1));
            }
        }
        let tables = Arc::new(make()?);
        let mut entries = set.lock().unwrap_or_else(PoisonError::into_inner);
        entries.truncate(WAYS - 1);
        entries.insert(0, (pattern, Arc::clone(&tables)));
        Ok(tables)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::kernel::Kernel;

    fn tables() -> Tables {
        Tables::new(Kernel::portable(), 1, &[1])
    }

    #[test]
    fn it_keeps_what_was_used_last_and_no_more() {
        let cache = DecodeCache::new();
        let made = Cell::new(0);
        let get = |present| {
            let before = made.get();
            cache
                .get(Pattern { present, wanted: 1 }, || {
                    made.set(before + 1);
                    Ok(tables())
                })
                .unwrap();
            made.get() > before
        };
        let hot = 0xf0;
        assert!(get(hot));
        for present in 1000..100_000 {
            assert!(get(present), "a new pattern is computed");
            assert!(!get(hot), "what is used all the time stays");
        }
        assert!(get(1000), "what was not used for long is gone");
        for set in &cache.sets {
            assert!(set.lock().unwrap().len() <= WAYS);
        }
        assert!(
            cache
                .sets
                .iter()
                .all(|set| set.lock().unwrap().len() == WAYS),
            "patterns spread over the sets"
        );
    }

    #[test]
    fn a_refusal_is_not_kept() {
        let cache = DecodeCache::new();
        let pattern = Pattern {
            present: 3,
            wanted: 4,
        };
        let refused = cache.get(pattern, || Err(CodecError::Singular { present: 3 }));
        assert_eq!(refused.unwrap_err(), CodecError::Singular { present: 3 });
        assert!(cache.get(pattern, || Ok(tables())).is_ok());
    }

    #[test]
    fn threads_share_it() {
        let cache = DecodeCache::new();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..5_000 {
                        let present = (i * 7 + thread) % 300;
                        #[allow(clippy::cast_possible_truncation, reason = "below 300")]
                        let columns = present as usize + 1;
                        let tables = cache
                            .get(Pattern { present, wanted: 1 }, || {
                                Ok(Tables::new(Kernel::portable(), columns, &vec![1; columns]))
                            })
                            .unwrap();
                        assert_eq!(
                            tables.columns(),
                            columns,
                            "the tables are the pattern's own"
                        );
                    }
                });
            }
        });
    }
}
