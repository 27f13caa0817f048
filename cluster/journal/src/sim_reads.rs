//! Reads in the simulated world: at the head within its lease, and cached ones that ask witnesses.

use std::collections::BTreeMap;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::journal::Entry;
use ashlar_layout::slot::slot_of;

use crate::api::{Event, ListParams};
use crate::sim::{Happening, MICRO, MILLI, World, node_of};
use crate::sim_clients::{Contents, Seen};

/// A manifest in a client's cache, and how its validation goes.
#[derive(Clone, Debug)]
pub(crate) struct Cached {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) as_of: Seq,
    config: u64,
    /// Who is still to be asked.
    left: Vec<DeviceNo>,
    /// What was committed, as far as anybody knew, when the read began.
    pub(crate) committed: u64,
    pub(crate) confirmed: bool,
}

impl World {
    /// Reads at whoever serves.
    pub(crate) fn look(&mut self) {
        let mut serving = Vec::new();
        for node in 0..self.nodes.len() as u8 {
            let now = self.clock(node);
            let held = &self.nodes[usize::from(node)];
            let Some(replica) = held.replica.as_ref().filter(|_| !held.paused) else {
                continue;
            };
            if replica.serving(now) {
                serving.push(node);
            } else {
                assert!(
                    replica.lookup(now, "first", "a").is_err(),
                    "answered while not serving"
                );
            }
        }
        assert!(serving.len() <= 1, "several serve: {serving:?}");
        if let Some(node) = serving.pop() {
            self.look_at(node);
        }
    }

    fn look_at(&mut self, node: u8) {
        let now = self.clock(node);
        let replica = self.replica(node);
        let committed = replica.committed.0;
        assert!(
            committed >= self.clients.seen_max(),
            "a read at replica {node} would miss what was acknowledged or read before: {committed}"
        );
        let (buckets, _) = replica.list_buckets(now, "", 100).unwrap();
        let buckets: Vec<String> = buckets.into_iter().map(|bucket| bucket.name).collect();
        let mut contents = Contents::new();
        let mut unreadable = Vec::new();
        let mut found = Vec::new();
        for bucket in &buckets {
            let params = ListParams {
                bucket: bucket.clone(),
                max: 100,
                ..ListParams::default()
            };
            for object in replica.list(now, &params).unwrap().objects {
                let (meta, inline, as_of, config) =
                    replica.lookup(now, bucket, &object.key).unwrap();
                assert_eq!(meta.version, object.version);
                found.push((bucket.clone(), object.key.clone(), as_of, config));
                if let Some(inline) = inline {
                    let device = &self.nodes[usize::from(node)].device;
                    let bytes = device.read(inline.at, inline.len);
                    let good = bytes.as_ref().is_some_and(|bytes| {
                        let entry = Entry::decode(bytes).expect("what is not rotten is whole");
                        assert_eq!(
                            (entry.header.seq, entry.header.term),
                            (inline.seq, inline.term)
                        );
                        assert_eq!(crc32(entry.inline), meta.manifest.crc);
                        true
                    });
                    if !good {
                        unreadable.push(inline.seq);
                    }
                }
                contents.insert((bucket.clone(), object.key), meta.version.0);
            }
        }
        let chain = replica.log.chain().clone();
        self.clients.saw(Seen {
            committed,
            contents,
            buckets,
        });
        for seq in unreadable {
            if self.clients.lose(node, seq) {
                self.tell_later(0, node, Event::InlineLost { seq });
            }
        }
        if !found.is_empty() && self.rng.one_in(2) {
            let (bucket, key, as_of, config) =
                found.swap_remove(self.rng.below(found.len() as u64) as usize);
            let mut left = chain.members;
            let needed = left.len() + 1 - (left.len() - left.len().saturating_sub(1) / 2);
            while left.len() > needed {
                left.remove(self.rng.below(left.len() as u64) as usize);
            }
            self.cached.push(Cached {
                bucket,
                key,
                as_of,
                config,
                left,
                committed: 0,
                confirmed: false,
            });
            let read = self.cached.len() - 1;
            let most = if self.rng.one_in(2) { 3 } else { 150 };
            let delay = self.rng.below(most * MILLI);
            self.at(delay, Happening::Witness { read });
        }
    }

    /// A read begins, or goes on with the next witness.
    pub(crate) fn ask_witness(&mut self, read: usize) {
        let committed = self.committed();
        let cached = &mut self.cached[read];
        if cached.committed == 0 {
            cached.committed = committed;
        }
        let Some(member) = cached.left.pop() else {
            cached.confirmed = true;
            return self.count("confirmed by witnesses");
        };
        let cached = cached.clone();
        let held = &self.nodes[usize::from(node_of(member))];
        let answer = held.replica.as_ref().filter(|_| !held.paused);
        let answer = answer.map(|replica| replica.witness(slot_of(&cached.bucket, &cached.key)));
        let same = answer.is_some_and(|(config, highest)| {
            config == Some(cached.config) && highest <= cached.as_of
        });
        if !same {
            return self.count("not confirmed by witnesses");
        }
        let most = if self.rng.one_in(5) {
            50 * MILLI
        } else {
            200 * MICRO
        };
        let delay = self.rng.below(most);
        self.at(delay, Happening::Witness { read });
    }

    /// No confirmed read missed a change that had been committed when it began.
    pub(crate) fn judge_cached(&self, changes: &BTreeMap<(String, String), Vec<u64>>) {
        for cached in self.cached.iter().filter(|cached| cached.confirmed) {
            let name = (cached.bucket.clone(), cached.key.clone());
            let missed = changes
                .get(&name)
                .into_iter()
                .flatten()
                .find(|seq| (cached.as_of.0 + 1..=cached.committed).contains(seq));
            assert_eq!(missed, None, "stale by witnesses: {cached:?}");
        }
    }
}
