//! Objects' metadata, kept to be validated by witnesses instead of looked up.
//!
//! Invariants:
//! - at most so many entries and so many bytes are held; what was used longest ago goes first;
//! - nothing here is true by itself: an entry is used only once witnesses have said that no entry
//!   behind `as_of` touches its key, so a wrong or old one costs a look-up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::INLINE_MAX;
use ashlar_layout::manifest::Body;
use ashlar_layout::message::ObjectMeta;
use bytes::Bytes;

/// What an entry takes beside its key, its stripes, its attributes and its payload, about.
const ENTRY_BYTES: usize = 256;
/// The same for a stripe.
const STRIPE_BYTES: usize = 56;

/// What the head said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// What is known of it.
    pub meta: ObjectMeta,
    /// It holds for as long as no entry behind this one touches the key.
    pub as_of: Seq,
    /// The chain's composition then.
    pub config: u64,
    /// The object, if it is inline and came.
    pub payload: Option<Bytes>,
}

impl Cached {
    fn bytes(&self, name: &str) -> usize {
        let stripes = self.meta.manifest.body.stripes();
        let listed: usize = stripes
            .iter()
            .map(|s| STRIPE_BYTES + 4 * s.shard_crcs.len())
            .sum();
        let attributes = self.meta.manifest.attributes.len();
        let payload = self.payload.as_ref().map_or(0, Bytes::len);
        ENTRY_BYTES + 2 * name.len() + listed + attributes + payload
    }
}

#[derive(Debug)]
struct Held {
    cached: Arc<Cached>,
    bytes: usize,
    used: u64,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    entries_max: usize,
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    by_name: HashMap<Arc<str>, Held>,
    by_use: BTreeMap<u64, Arc<str>>,
}

fn name(bucket: &str, key: &str) -> String {
    // No bucket's name holds a zero byte.
    [bucket, "\0", key].concat()
}

impl Cache {
    /// A cache of at most so many entries and bytes; it holds nothing if either is 0.
    pub fn new(entries_max: usize, bytes_max: usize) -> Cache {
        Cache {
            entries_max,
            bytes_max,
            bytes: 0,
            clock: 0,
            by_name: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    /// What is held of this object.
    pub fn get(&mut self, bucket: &str, key: &str) -> Option<Arc<Cached>> {
        let name = name(bucket, key);
        let held = self.by_name.get_mut(name.as_str())?;
        let at = self.by_use.remove(&held.used)?;
        self.clock += 1;
        held.used = self.clock;
        self.by_use.insert(self.clock, at);
        Some(held.cached.clone())
    }

    /// Holds this, unless what is held was said later.
    pub fn put(&mut self, bucket: &str, key: &str, mut cached: Cached) {
        let name = name(bucket, key);
        if let Some(held) = self.by_name.get(name.as_str()) {
            if held.cached.as_of > cached.as_of {
                return;
            }
            if cached.payload.is_none() && held.cached.meta.version == cached.meta.version {
                // The same object, this time without its bytes.
                cached.payload.clone_from(&held.cached.payload);
            }
        }
        let fits = |payload: &Bytes| payload.len() <= INLINE_MAX as usize;
        let inline = cached.meta.manifest.body == Body::Inline;
        cached.payload = cached.payload.filter(|p| inline && fits(p));
        self.drop_name(&name);
        let bytes = cached.bytes(&name);
        if self.entries_max == 0 || bytes > self.bytes_max {
            return;
        }
        while self.by_name.len() >= self.entries_max || self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                return;
            };
            if let Some(held) = self.by_name.remove(&oldest) {
                self.bytes -= held.bytes;
            }
        }
        self.clock += 1;
        let name: Arc<str> = name.into();
        let held = Held {
            cached: Arc::new(cached),
            bytes,
            used: self.clock,
        };
        self.by_use.insert(self.clock, name.clone());
        self.by_name.insert(name, held);
        self.bytes += bytes;
    }

    /// Forgets this object.
    pub fn remove(&mut self, bucket: &str, key: &str) {
        if !self.by_name.is_empty() {
            self.drop_name(&name(bucket, key));
        }
    }

    fn drop_name(&mut self, name: &str) {
        if let Some(held) = self.by_name.remove(name) {
            self.by_use.remove(&held.used);
            self.bytes -= held.bytes;
        }
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::manifest::Manifest;
    use proptest::prelude::*;

    use super::*;

    fn cached(version: u64, as_of: u64, payload: Option<usize>) -> Cached {
        let manifest = Manifest::plain(payload.unwrap_or(7) as u64, 0, Body::Inline);
        Cached {
            meta: ObjectMeta {
                version: Seq(version),
                modified_ms: 0,
                manifest,
                tag: None,
            },
            as_of: Seq(as_of),
            config: 1,
            payload: payload.map(|n| vec![0; n].into()),
        }
    }

    #[test]
    fn what_was_said_later_stays() {
        let mut cache = Cache::new(10, 100_000);
        cache.put("b", "k", cached(5, 9, Some(7)));
        cache.put("b", "k", cached(4, 8, Some(7)));
        assert_eq!(cache.get("b", "k").unwrap().meta.version, Seq(5));
        cache.put("b", "k", cached(5, 12, None));
        let held = cache.get("b", "k").unwrap();
        assert_eq!((held.as_of, held.payload.is_some()), (Seq(12), true));
        cache.put("b", "k", cached(13, 13, None));
        assert_eq!(cache.get("b", "k").unwrap().payload, None);
        cache.remove("b", "k");
        assert!(cache.get("b", "k").is_none() && cache.is_empty());
    }

    #[test]
    fn what_was_used_longest_ago_goes() {
        let mut cache = Cache::new(2, 100_000);
        cache.put("b", "1", cached(1, 1, None));
        cache.put("b", "2", cached(2, 2, None));
        cache.get("b", "1").unwrap();
        cache.put("b", "3", cached(3, 3, None));
        assert!(cache.get("b", "2").is_none());
        assert!(cache.get("b", "1").is_some() && cache.get("b", "3").is_some());
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(
            steps in prop::collection::vec((0u8..30, 0usize..3000, any::<bool>()), 1..300),
        ) {
            let mut cache = Cache::new(8, 10_000);
            for (i, (key, len, remove)) in steps.into_iter().enumerate() {
                let key = format!("{key}");
                if remove {
                    cache.remove("b", &key);
                } else {
                    cache.put("b", &key, cached(i as u64, i as u64, Some(len)));
                    prop_assert!(cache.get("b", &key).is_some());
                }
                prop_assert!(cache.len() <= 8 && cache.bytes <= 10_000);
                prop_assert_eq!(cache.by_use.len(), cache.by_name.len());
                let sum: usize = cache.by_name.values().map(|h| h.bytes).sum();
                prop_assert_eq!(sum, cache.bytes);
            }
        }
    }
}
