//! Reads in the simulated world: at the head within its lease, and cached ones that ask witnesses.

use std::collections::BTreeMap;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::Body;
use ashlar_layout::message::ErrorCode;
use ashlar_layout::slot::slot_of;

use crate::api::{Answer, Ask, Event, ListParams};
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

type All = (
    Vec<String>,
    Contents,
    Vec<(String, String, Seq, u64)>,
    Vec<(String, String, Seq)>,
);

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
                let ask = Ask::Lookup {
                    bucket: "first".to_owned(),
                    key: "a".to_owned(),
                };
                assert!(self.peek(node, ask).is_err(), "answered while not serving");
            }
        }
        assert!(serving.len() <= 1, "several serve: {serving:?}");
        if let Some(node) = serving.pop() {
            self.look_at(node);
        }
    }

    fn look_at(&mut self, node: u8) {
        // What it has applied is what it tells; nobody was told of more.
        let committed = self.replica(node).applied.0;
        assert!(
            committed >= self.clients.seen_max(),
            "a read at replica {node} would miss what was acknowledged or read before: {committed}"
        );
        let Some((buckets, contents, found, lost)) = self.read_all(node) else {
            return self.count("unreadable pages");
        };
        let mut found = found;
        let chain = self.replica(node).log.chain().clone();
        self.clients.saw(Seen {
            committed,
            contents,
            buckets,
        });
        for (bucket, key, version) in lost {
            if self
                .clients
                .lose(node, (bucket.clone(), key.clone()), version)
            {
                let event = Event::InlineLost {
                    bucket,
                    key,
                    version,
                };
                self.tell_later(0, node, event);
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

    /// Buckets, contents, what a cache would keep of them, and payloads that cannot be read. None if a page
    /// of the index cannot be read.
    fn read_all(&self, node: u8) -> Option<All> {
        let rotten = self.plan.victim == Some(node);
        let peek = |ask| match self.peek(node, ask) {
            Ok(answer) => Some(answer),
            Err(error) => {
                // What it had under way made it hand over, or showed a damaged page.
                let over = self.replica(node).leaves || rotten;
                let over = over && error.code == ErrorCode::NotHead;
                let damaged = rotten && error.code == ErrorCode::Corrupt;
                assert!(over || damaged, "{error:?}");
                None
            }
        };
        let (after, max) = (String::new(), 100);
        let Answer::Buckets { buckets, .. } = peek(Ask::Buckets { after, max })? else {
            panic!("no buckets")
        };
        let buckets: Vec<String> = buckets.into_iter().map(|bucket| bucket.name).collect();
        let (mut contents, mut found, mut lost) = (Contents::new(), Vec::new(), Vec::new());
        for bucket in &buckets {
            let params = ListParams {
                bucket: bucket.clone(),
                max: 100,
                ..ListParams::default()
            };
            let Answer::Page(page) = peek(Ask::List(params))? else {
                panic!("no page")
            };
            for object in page.objects {
                let (bucket, key) = (bucket.clone(), object.key);
                let ask = Ask::Lookup {
                    bucket: bucket.clone(),
                    key: key.clone(),
                };
                let Answer::Found {
                    meta,
                    payload,
                    place,
                    as_of,
                    config,
                } = peek(ask)?
                else {
                    panic!("not found")
                };
                assert_eq!(meta.version, object.version);
                contents.insert((bucket.clone(), key.clone()), meta.version.0);
                let inline = meta.manifest.body == Body::Inline;
                if let Some(place) = place {
                    let device = &self.nodes[usize::from(node)].device;
                    let bytes = device.read(place.at, place.len);
                    let good = bytes.as_ref().is_some_and(|bytes| {
                        let entry = Entry::decode(bytes).expect("what is not rotten is whole");
                        let named = (entry.header.seq, entry.header.term);
                        assert_eq!(named, (place.seq, place.term));
                        assert_eq!(crc32(entry.inline), meta.manifest.crc);
                        true
                    });
                    assert!(
                        good || rotten,
                        "a payload was freed: {bucket}/{key} {place:?}"
                    );
                    if !good {
                        lost.push((bucket.clone(), key.clone(), meta.version));
                    }
                } else if inline {
                    assert_eq!(crc32(&payload), meta.manifest.crc);
                }
                found.push((bucket, key, as_of, config));
            }
        }
        Some((buckets, contents, found, lost))
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
