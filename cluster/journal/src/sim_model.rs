//! The plainest store there is: what the simulation's clients should see.
//!
//! It has of each key what is current and what versions there are, and knows nothing of how these are kept.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{Seq, StripeId};
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{Manifest, Op, Precondition, Then, VersionTag};
use ashlar_layout::message::ErrorCode;
use bytes::Bytes;

type Place = (String, String);

/// Objects that there are, and the entries that wrote them.
pub(crate) type Contents = BTreeMap<Place, u64>;

/// A version, as a client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) place: Place,
    /// Its name.
    pub(crate) id: u64,
    /// The entry that wrote it.
    pub(crate) entry: u64,
    pub(crate) null: bool,
    pub(crate) marker: bool,
    pub(crate) lock: Lock,
    pub(crate) manifest: Manifest,
    pub(crate) payload: Bytes,
}

/// What of a version is compared: where, the entry that wrote it, and what it is called, with its lock.
pub(crate) type Brief = (Place, u64, VersionTag);

impl Version {
    pub(crate) fn brief(&self) -> Brief {
        (self.place.clone(), self.entry, self.tag())
    }

    pub(crate) fn tag(&self) -> VersionTag {
        VersionTag {
            id: Seq(self.id),
            null: self.null,
            marker: self.marker,
            lock: self.lock,
        }
    }
}

/// What stands somewhere.
#[derive(Clone, Debug)]
struct Held {
    entry: u64,
    tag: Option<VersionTag>,
    manifest: Manifest,
}

impl Held {
    fn id(&self) -> u64 {
        self.tag.map_or(self.entry, |tag| tag.id.0)
    }

    fn is_null(&self) -> bool {
        self.tag.is_none_or(|tag| tag.null)
    }

    fn named(&self) -> VersionTag {
        self.tag.unwrap_or(VersionTag::of_plain(Seq(self.entry)))
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) buckets: Vec<String>,
    current: BTreeMap<Place, Held>,
    /// By name; of the null one that is `u64::MAX`.
    kept: BTreeMap<Place, BTreeMap<u64, Held>>,
}

impl Model {
    pub(crate) fn contents(&self) -> Contents {
        let there = |held: &Held| held.tag.is_none_or(|tag| !tag.marker);
        let current = self.current.iter().filter(|(_, held)| there(held));
        current
            .map(|(place, held)| (place.clone(), held.entry))
            .collect()
    }

    /// All versions, by key and then from the newest to the oldest.
    pub(crate) fn versions(&self) -> Vec<Brief> {
        let mut all = Vec::new();
        let mut add = |place: &Place, held: &Held| {
            all.push((place.clone(), held.entry, held.named()));
        };
        for (place, held) in self.current.iter().filter(|(_, held)| held.tag.is_none()) {
            add(place, held);
        }
        for (place, versions) in &self.kept {
            versions.values().for_each(|held| add(place, held));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0).then(b.2.id.cmp(&a.2.id)));
        all
    }

    /// All stripes that anything is made of.
    pub(crate) fn stripes(&self) -> BTreeSet<StripeId> {
        let kept = self.kept.values().flat_map(BTreeMap::values);
        let all = self.current.values().chain(kept);
        let stripes = all.flat_map(|held| held.manifest.body.stripes());
        stripes.map(|stripe| stripe.id).collect()
    }

    fn kept(&self, place: &Place, slot: Seq) -> Option<&Held> {
        self.kept.get(place)?.get(&slot.0)
    }

    /// Why a change is refused at this time, if it is.
    pub(crate) fn refuses(
        &self,
        op: &Op,
        precondition: Precondition,
        now_ms: u64,
    ) -> Option<ErrorCode> {
        let exists = |bucket: &String| self.buckets.contains(bucket);
        let (bucket, key) = match op {
            Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {
                return Some(ErrorCode::BadRequest);
            }
            // Two may be the null one: neither comes in the other's place by that.
            Op::DropVersion {
                id,
                then: Then::Version { tag, .. },
                ..
            } if tag.slot() == *id => return Some(ErrorCode::BadRequest),
            Op::LockVersion { tag, .. } if tag.marker => return Some(ErrorCode::BadRequest),
            Op::Rename { key, source, .. } if key == source => return Some(ErrorCode::BadRequest),
            Op::CreateBucket { bucket } => {
                return exists(bucket).then_some(ErrorCode::BucketExists);
            }
            Op::DeleteBucket { bucket } if !exists(bucket) => {
                return Some(ErrorCode::NoSuchBucket);
            }
            Op::DeleteBucket { bucket } => {
                let kept = self
                    .kept
                    .iter()
                    .filter(|(_, versions)| !versions.is_empty());
                let mut all = self.current.keys().chain(kept.map(|(place, _)| place));
                let full = all.any(|(b, _)| b == bucket);
                return full.then_some(ErrorCode::BucketNotEmpty);
            }
            Op::Put { bucket, key, .. }
            | Op::Delete { bucket, key }
            | Op::PutVersion { bucket, key, .. }
            | Op::DropVersion { bucket, key, .. }
            | Op::LockVersion { bucket, key, .. }
            | Op::Rename { bucket, key, .. }
            | Op::Relocate { bucket, key, .. } => (bucket, key),
        };
        if !exists(bucket) {
            return Some(ErrorCode::NoSuchBucket);
        }
        let place = (bucket.clone(), key.clone());
        let current = self.current.get(&place);
        let there = current.is_some_and(|held| held.tag.is_none_or(|tag| !tag.marker));
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => !there,
            Precondition::Present => there,
            Precondition::Version(seq) => current.is_some_and(|held| held.entry == seq.0),
        };
        if !holds {
            return Some(ErrorCode::PreconditionFailed);
        }
        if let Op::Rename {
            source,
            seen,
            manifest,
            ..
        } = op
        {
            let is_version = |held: &Held| held.tag.is_some();
            return match self.current.get(&(bucket.clone(), source.clone())) {
                Some(held) if held.entry == seen.0 => {
                    assert_eq!(held.manifest, *manifest, "an entry of two things");
                    let versions = is_version(held) || current.is_some_and(is_version);
                    versions.then_some(ErrorCode::BadRequest)
                }
                _ => Some(ErrorCode::PreconditionFailed),
            };
        }
        let refused = self.refuses_version(op, &place, current);
        refused.or_else(|| self.refuses_lock(op, &place, current, now_ms))
    }

    fn refuses_version(&self, op: &Op, place: &Place, current: Option<&Held>) -> Option<ErrorCode> {
        let is_current = |slot: Seq| {
            current.is_some_and(|held| match held.is_null() {
                true => slot.0 == u64::MAX,
                false => held.id() == slot.0,
            })
        };
        let lost = Some(ErrorCode::PreconditionFailed);
        match op {
            Op::PutVersion {
                tag, current: true, ..
            } if tag.id == Seq(0) => {
                let plain = current.is_some_and(|held| held.tag.is_none());
                let kept = self.kept(place, Seq(u64::MAX)).is_some();
                (plain && (!tag.null || kept)).then_some(ErrorCode::NotKept)
            }
            Op::PutVersion {
                tag,
                current: true,
                manifest,
                ..
            } => {
                let own_name = |held: &Held| VersionTag {
                    id: Seq(held.entry),
                    ..VersionTag::default()
                };
                let same = |held: &Held| {
                    let named = held.named() == *tag;
                    let stays = held.manifest.body == manifest.body;
                    stays && (named || held.tag.is_none() && *tag == own_name(held))
                };
                (!current.is_some_and(same)).then_some(ErrorCode::PreconditionFailed)
            }
            Op::LockVersion {
                tag,
                seen,
                current: at_top,
                ..
            } => {
                let kept = self.kept(place, tag.slot());
                if *at_top && current.is_some_and(|held| held.tag.is_none()) && kept.is_some() {
                    // Only of the null version two can be there.
                    return match tag.null {
                        true => Some(ErrorCode::NotKept),
                        false => lost,
                    };
                }
                let Some(held) = (if *at_top { current } else { kept }) else {
                    return Some(ErrorCode::NotFound);
                };
                let lock = held.named().lock;
                let same = held.entry == seen.0 && held.named() == VersionTag { lock, ..*tag };
                (!same || is_current(tag.slot()) != *at_top)
                    .then_some(ErrorCode::PreconditionFailed)
            }
            Op::Relocate {
                tag,
                seen,
                current: at_top,
                ..
            } => {
                let slot = tag.map_or(Seq(u64::MAX), VersionTag::slot);
                let kept = self.kept(place, slot);
                let Some(held) = (if *at_top { current } else { kept }) else {
                    return Some(ErrorCode::NotFound);
                };
                let same = held.entry == seen.0 && held.tag == *tag;
                (!same || is_current(slot) != *at_top).then_some(ErrorCode::PreconditionFailed)
            }
            Op::PutVersion { tag, manifest, .. } => match self.kept(place, tag.slot()) {
                None => Some(ErrorCode::NotFound),
                Some(held) if held.manifest.body != manifest.body => lost,
                Some(held) if held.named() != *tag => lost,
                Some(_) if is_current(tag.slot()) => lost,
                Some(_) => None,
            },
            Op::DropVersion { id, then, .. } => match then {
                Then::Same if is_current(*id) => lost,
                Then::Same if self.kept(place, *id).is_none() => Some(ErrorCode::NotFound),
                Then::Same => None,
                _ if !is_current(*id) => lost,
                _ if current.is_some_and(|held| held.tag.is_none())
                    && self.kept(place, *id).is_some() =>
                {
                    Some(ErrorCode::NotKept)
                }
                Then::Version { tag, seen, .. } => {
                    let next = self.kept(place, tag.slot());
                    let same = next.is_some_and(|held| held.entry == seen.0);
                    if same { None } else { lost }
                }
                Then::Nothing => None,
            },
            _ => None,
        }
    }

    /// What nobody may do because of a lock, told once more in the plainest way.
    fn refuses_lock(
        &self,
        op: &Op,
        place: &Place,
        current: Option<&Held>,
        now_ms: u64,
    ) -> Option<ErrorCode> {
        let null = || self.kept(place, Seq(u64::MAX));
        let kept = |held: Option<&Held>, bypass: bool| {
            let Some(Lock { retention, hold }) = held.map(|held| held.named().lock) else {
                return false;
            };
            let forced = |it: Retention| bypass && it.mode == RetentionMode::Governance;
            let retained = retention.is_some_and(|it| now_ms < it.until_ms && !forced(it));
            retained || hold == Some(true)
        };
        let refused = match op {
            Op::PutVersion { tag, .. } if tag.null && tag.id == Seq(0) => kept(null(), false),
            Op::PutVersion {
                tag, current: true, ..
            } if tag.null && current.is_some_and(|held| held.tag.is_none()) => kept(null(), false),
            Op::DropVersion { id, bypass, .. } => kept(self.kept(place, *id), *bypass),
            Op::LockVersion {
                tag,
                current: at_top,
                bypass,
                ..
            } => {
                let held = match at_top {
                    true => current,
                    false => self.kept(place, tag.slot()),
                };
                let before = held.and_then(|held| held.named().lock.retention);
                let lasts = before.filter(|it| now_ms < it.until_ms);
                match (lasts, tag.lock.retention) {
                    (None, _) => false,
                    (Some(was), _) if *bypass && was.mode == RetentionMode::Governance => false,
                    (Some(was), Some(is)) => was.mode != is.mode || is.until_ms < was.until_ms,
                    (Some(_), None) => true,
                }
            }
            _ => false,
        };
        refused.then_some(ErrorCode::Locked)
    }

    pub(crate) fn apply(&mut self, seq: u64, op: Op) {
        match op {
            Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {}
            Op::CreateBucket { bucket } => {
                self.buckets.push(bucket);
                self.buckets.sort();
            }
            Op::DeleteBucket { bucket } => self.buckets.retain(|held| *held != bucket),
            Op::Put {
                bucket,
                key,
                manifest,
            }
            | Op::Relocate {
                bucket,
                key,
                tag: None,
                manifest,
                ..
            } => {
                let held = Held {
                    entry: seq,
                    tag: None,
                    manifest,
                };
                self.current.insert((bucket, key), held);
            }
            Op::Delete { bucket, key } => {
                self.current.remove(&(bucket, key));
            }
            Op::Rename {
                bucket,
                key,
                source,
                manifest,
                ..
            } => {
                self.current.remove(&(bucket.clone(), source));
                let held = Held {
                    entry: seq,
                    tag: None,
                    manifest,
                };
                self.current.insert((bucket, key), held);
            }
            Op::Relocate {
                bucket,
                key,
                tag: Some(mut tag),
                current,
                manifest,
                ..
            }
            | Op::PutVersion {
                bucket,
                key,
                mut tag,
                current,
                manifest,
                ..
            }
            | Op::LockVersion {
                bucket,
                key,
                mut tag,
                current,
                manifest,
                ..
            } => {
                if tag.id == Seq(0) {
                    tag.id = Seq(seq);
                }
                let held = Held {
                    entry: seq,
                    tag: Some(tag),
                    manifest,
                };
                let place = (bucket, key);
                if current {
                    self.current.insert(place.clone(), held.clone());
                }
                let slot = if tag.null { u64::MAX } else { tag.id.0 };
                self.kept.entry(place).or_default().insert(slot, held);
            }
            Op::DropVersion {
                bucket,
                key,
                id,
                then,
                ..
            } => {
                let place = (bucket, key);
                if let Some(versions) = self.kept.get_mut(&place) {
                    versions.remove(&id.0);
                }
                match then {
                    Then::Same => {}
                    Then::Nothing => {
                        self.current.remove(&place);
                    }
                    Then::Version { tag, manifest, .. } => {
                        let held = Held {
                            entry: seq,
                            tag: Some(tag),
                            manifest,
                        };
                        self.current.insert(place, held);
                    }
                }
            }
        }
    }
}
