//! The index of a partition: buckets and their objects, in memory, in UTF-8 byte order.
//!
//! Invariants:
//! - it is a function of the applied entries alone: two replicas that applied the same prefix of
//!   the log have equal indexes;
//! - an object's version is the number of the entry that made it; its inline payload, if it has
//!   one, is in that entry on the device and nowhere in here;
//! - what is displaced never names a stripe of what displaced it: if a change were ever applied twice,
//!   the object's own shards would be freed otherwise;
//! - applying is total: an operation that the state does not allow (the head never lets one through)
//!   changes nothing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{Hash, Hasher};

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::manifest::{Manifest, Op};
use ashlar_layout::message::{BucketMeta, ObjectMeta};

/// An object as the index holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) version: Seq,
    pub(crate) modified_ms: u64,
    pub(crate) manifest: Manifest,
}

impl Object {
    pub(crate) fn meta(&self) -> ObjectMeta {
        ObjectMeta {
            version: self.version,
            modified_ms: self.modified_ms,
            manifest: self.manifest.clone(),
        }
    }
}

impl Hash for Object {
    /// The version names the entry, and the entry determines the rest.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
        self.manifest.crc.hash(state);
    }
}

/// A bucket's objects by key.
pub(crate) type Objects = BTreeMap<Box<str>, Object>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    created_ms: u64,
    objects: Objects,
}

/// Buckets and objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Index {
    buckets: BTreeMap<Box<str>, Bucket>,
    objects: u64,
}

impl Index {
    /// Applies entry `seq`; gives what it displaced.
    pub(crate) fn apply(&mut self, seq: Seq, time_ms: u64, op: Op) -> Option<Manifest> {
        match op {
            Op::TermStart | Op::Chain { .. } => None,
            Op::CreateBucket { bucket } => {
                self.buckets
                    .entry(bucket.into_boxed_str())
                    .or_insert_with(|| Bucket {
                        created_ms: time_ms,
                        objects: Objects::new(),
                    });
                None
            }
            Op::DeleteBucket { bucket } => {
                if self
                    .buckets
                    .get(bucket.as_str())
                    .is_some_and(|b| b.objects.is_empty())
                {
                    self.buckets.remove(bucket.as_str());
                }
                None
            }
            Op::Put {
                bucket,
                key,
                manifest,
            } => {
                let bucket = self.buckets.get_mut(bucket.as_str())?;
                let object = Object {
                    version: seq,
                    modified_ms: time_ms,
                    manifest,
                };
                match bucket.objects.entry(key.into_boxed_str()) {
                    Entry::Vacant(place) => {
                        place.insert(object);
                        self.objects += 1;
                        None
                    }
                    Entry::Occupied(mut place) => {
                        let Manifest { size, crc, body } = place.insert(object).manifest;
                        let body = body.without(&place.get().manifest.body)?;
                        Some(Manifest { size, crc, body })
                    }
                }
            }
            Op::Delete { bucket, key } => {
                let old = self
                    .buckets
                    .get_mut(bucket.as_str())?
                    .objects
                    .remove(key.as_str())?;
                self.objects -= 1;
                Some(old.manifest)
            }
        }
    }

    /// Whether there is such a bucket.
    pub(crate) fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets.contains_key(bucket)
    }

    /// A bucket's objects.
    pub(crate) fn bucket(&self, bucket: &str) -> Option<&Objects> {
        self.buckets.get(bucket).map(|bucket| &bucket.objects)
    }

    /// An object; `None` too if there is no such bucket.
    pub(crate) fn object(&self, bucket: &str, key: &str) -> Option<&Object> {
        self.bucket(bucket)?.get(key)
    }

    /// How many objects in all.
    pub(crate) fn objects(&self) -> u64 {
        self.objects
    }

    /// Buckets after `after`, at most `max`; and whether there are more.
    pub(crate) fn buckets(&self, after: &str, max: u32) -> (Vec<BucketMeta>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let max = max.min(LIST_PAGE_MAX) as usize;
        let mut rest = self.buckets.range::<str, _>((Excluded(after), Unbounded));
        let page: Vec<_> = rest
            .by_ref()
            .take(max)
            .map(|(name, bucket)| BucketMeta {
                name: name.to_string(),
                created_ms: bucket.created_ms,
            })
            .collect();
        let more = max > 0 && rest.next().is_some();
        (page, more)
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::{PgId, StripeId};
    use ashlar_layout::manifest::{Body, Stripe};

    use super::*;

    fn put(attempts: &[u64]) -> Op {
        let stripes = attempts.iter().map(|attempt| Stripe {
            id: StripeId {
                writer: 1,
                attempt: *attempt,
            },
            pg: PgId(1),
            k: 2,
            m: 1,
            data_len: 100,
            shard_crcs: vec![1, 2, 3],
        });
        Op::Put {
            bucket: "bucket".to_owned(),
            key: "key".to_owned(),
            manifest: Manifest {
                size: 100 * attempts.len() as u64,
                crc: 9,
                body: Body::Stripes(stripes.collect()),
            },
        }
    }

    #[test]
    fn what_is_live_is_never_displaced() {
        let mut index = Index::default();
        let bucket = "bucket".to_owned();
        index.apply(Seq(1), 0, Op::CreateBucket { bucket });
        assert_eq!(index.apply(Seq(2), 0, put(&[1, 2])), None);
        assert_eq!(index.apply(Seq(3), 0, put(&[1, 2])), None, "done again");
        let ids = |manifest: Option<Manifest>| -> Vec<u64> {
            let manifest = manifest.unwrap();
            manifest
                .body
                .stripes()
                .iter()
                .map(|s| s.id.attempt)
                .collect()
        };
        assert_eq!(ids(index.apply(Seq(4), 0, put(&[2, 3]))), [1]);
        assert_eq!(ids(index.apply(Seq(5), 0, put(&[4]))), [2, 3]);
        assert_eq!(index.objects(), 1);
        assert_eq!(index.object("bucket", "key").unwrap().version, Seq(5));
    }
}
