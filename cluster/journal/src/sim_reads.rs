//! Reads in the simulated world: at the head within its lease, and cached ones that ask witnesses.

use std::collections::BTreeMap;

use ashlar_cluster_index::Name;
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::{Body, Manifest, VersionTag};
use ashlar_layout::message::ErrorCode;
use ashlar_layout::slot::slot_of;
use bytes::Bytes;

use crate::api::{Answer, Ask, Event, ListParams};
use crate::sim::{Happening, MICRO, MILLI, World, node_of};
use crate::sim_clients::Seen;
use crate::sim_model::{Contents, Version};

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

/// All that a replica tells.
#[derive(Default)]
struct All {
    buckets: Vec<String>,
    contents: Contents,
    versions: Vec<Version>,
    /// What a cache would keep.
    found: Vec<(String, String, Seq, u64)>,
    /// Payloads that cannot be read.
    lost: Vec<(Name, Seq)>,
}

impl All {
    /// Whether the listing of objects told of it: then that of versions does.
    fn listed(&self, name: &Name) -> bool {
        self.contents
            .contains_key(&(name.bucket.clone(), name.key.clone()))
    }
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
                let ask = Ask::Lookup {
                    bucket: "first".to_owned(),
                    key: "a".to_owned(),
                    id: None,
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
        let Some(all) = self.read_all(node) else {
            return self.count("unreadable pages");
        };
        let All {
            buckets,
            contents,
            versions,
            mut found,
            lost,
        } = all;
        let chain = self.replica(node).log.chain().clone();
        self.clients.saw(Seen {
            committed,
            contents,
            versions,
            buckets,
        });
        for (name, version) in lost {
            if self.clients.lose(node, name.clone(), version) {
                let event = Event::InlineLost { name, version };
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

    /// None if a page of the index cannot be read.
    fn peek_or_none(&self, node: u8, ask: Ask) -> Option<Answer> {
        let rotten = self.plan.victim == Some(node);
        match self.peek(node, ask) {
            Ok(answer) => Some(answer),
            Err(error) => {
                // What it had under way made it hand over, or showed a damaged page.
                let over = self.replica(node).leaves || rotten;
                let over = over && error.code == ErrorCode::NotHead;
                let damaged = rotten && error.code == ErrorCode::Corrupt;
                assert!(over || damaged, "{error:?}");
                None
            }
        }
    }

    /// All that it tells. None if a page of the index cannot be read.
    fn read_all(&self, node: u8) -> Option<All> {
        let (after, max) = (String::new(), 100);
        let Answer::Buckets { buckets, .. } =
            self.peek_or_none(node, Ask::Buckets { after, max })?
        else {
            panic!("no buckets")
        };
        let mut all = All {
            buckets: buckets.into_iter().map(|bucket| bucket.name).collect(),
            ..All::default()
        };
        for bucket in all.buckets.clone() {
            let params = ListParams {
                bucket: bucket.clone(),
                max: 100,
                ..ListParams::default()
            };
            let Answer::Page(page) = self.peek_or_none(node, Ask::List(params.clone()))? else {
                panic!("no page")
            };
            for object in page.objects {
                let name = Name {
                    bucket: bucket.clone(),
                    key: object.key,
                    id: None,
                };
                self.read_one(node, name, object.version, object.tag, &mut all)?;
            }
            let Answer::Versions(page) = self.peek_or_none(node, Ask::Versions(params, None))?
            else {
                panic!("no page of versions")
            };
            for version in page.versions {
                let name = Name {
                    bucket: bucket.clone(),
                    key: version.key,
                    id: version.tag.map(VersionTag::slot),
                };
                self.read_one(node, name, version.version, version.tag, &mut all)?;
            }
        }
        Some(all)
    }

    /// Looks up what a listing told of.
    fn read_one(
        &self,
        node: u8,
        name: Name,
        version: Seq,
        tag: Option<VersionTag>,
        all: &mut All,
    ) -> Option<()> {
        let rotten = self.plan.victim == Some(node);
        let Name { bucket, key, id } = name.clone();
        let ask = Ask::Lookup { bucket, key, id };
        let Answer::Found {
            meta,
            mut payload,
            place,
            as_of,
            config,
        } = self.peek_or_none(node, ask)?
        else {
            panic!("not found")
        };
        if let Some(tag) = tag
            && tag.null
            && meta.tag.is_none()
        {
            // What is current is the null version as well, and the one that is found: the other one is hidden.
            let place = (name.bucket, name.key);
            assert_eq!(all.contents.get(&place), Some(&meta.version.0));
            all.versions.push(self.hidden(place, version, tag));
            return Some(());
        }
        assert_eq!((meta.version, meta.tag), (version, tag), "{name:?}");
        let (bucket, key) = (name.bucket.clone(), name.key.clone());
        let inline = meta.manifest.body == Body::Inline;
        if let Some(place) = place {
            let device = &self.nodes[usize::from(node)].device;
            let bytes = device.read(place.at, place.len);
            let good = bytes.as_ref().is_some_and(|bytes| {
                let entry = Entry::decode(bytes).expect("what is not rotten is whole");
                let named = (entry.header.seq, entry.header.term);
                assert_eq!(named, (place.seq, place.term));
                assert_eq!(crc32(entry.inline), meta.manifest.crc);
                payload = Bytes::copy_from_slice(entry.inline);
                true
            });
            assert!(good || rotten, "a payload was freed: {name:?} {place:?}");
            if !good {
                all.lost.push((name.clone(), meta.version));
            }
        } else if inline {
            assert_eq!(crc32(&payload), meta.manifest.crc);
        }
        if name.id.is_none() && tag.is_none_or(|tag| !tag.marker) && !all.listed(&name) {
            all.contents
                .insert((bucket.clone(), key.clone()), meta.version.0);
            all.found.push((bucket.clone(), key.clone(), as_of, config));
        } else {
            let tag = tag.unwrap_or(VersionTag::of_plain(meta.version));
            all.versions.push(Version {
                place: (bucket, key),
                id: tag.id.0,
                entry: meta.version.0,
                null: tag.null,
                marker: tag.marker,
                lock: tag.lock,
                manifest: meta.manifest,
                payload,
            });
        }
        Some(())
    }

    /// A version that nobody can read now: what it is made of is known if it was read before.
    fn hidden(&self, place: (String, String), entry: Seq, tag: VersionTag) -> Version {
        let unread = Version {
            place,
            id: tag.id.0,
            entry: entry.0,
            null: tag.null,
            marker: tag.marker,
            lock: tag.lock,
            manifest: Manifest::plain(1, 0, Body::Inline),
            payload: Bytes::new(),
        };
        let before = self.clients.seen_before(&unread.brief());
        before.cloned().unwrap_or(unread)
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
