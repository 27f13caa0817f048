//! Judges what clients of a family of partitions saw, by what was committed.
//!
//! A key's history is what was committed of it in one partition after the other, for an heir's entries have higher
//! numbers than those that it was made of; so is a bucket's. What must hold:
//! - every request is committed at most once, in whatever partition; one that was acknowledged, by that entry; one
//!   that was refused not at all;
//! - versions rise, and conditions held where their entries stand;
//! - every read, and every refusal, tells of a state that was committed before it ended, and not older than anything
//!   that had been acknowledged, or read, before it began.

use std::collections::BTreeMap;

use ashlar_cluster_index::{Change, Item, Object};
use ashlar_layout::ids::{ClientId, PartitionId, RequestNo, Seq};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::{Op, Precondition, Then};
use ashlar_layout::message::ErrorCode;
use bytes::Bytes;

use crate::api::Event;
use crate::bounds::Splitting;
use crate::replica::Replica;
use crate::sim_family::World;
use crate::sim_family_clients::{Current, Seen, Told, What};
use crate::sim_family_map::Place;
use crate::sim_index::items_of;

/// A key, or with an empty one a bucket, from one entry to the next.
#[derive(Clone, Debug)]
struct State {
    seq: u64,
    /// It is there.
    there: bool,
    /// It is a marker that says that it is not.
    marker: bool,
    /// It is a version that is kept.
    kept: bool,
    /// When somebody knew that it was committed,
    committed: u64,
    /// and when it was told to a client, or a newer one was.
    told: u64,
}

/// By which entry each request was done.
type Done = BTreeMap<(ClientId, RequestNo), (PartitionId, Seq)>;

type Histories = BTreeMap<Place, Vec<State>>;

fn nothing() -> State {
    State {
        seq: 0,
        there: false,
        marker: false,
        kept: false,
        committed: 0,
        told: 0,
    }
}

/// The states that may be told from one moment to another.
fn tellable(states: &[State], from: u64, to: u64) -> impl Iterator<Item = &State> {
    let oldest = states.iter().rposition(|it| it.told < from).unwrap_or(0);
    states[oldest..]
        .iter()
        .take_while(move |it| it.committed <= to)
}

fn place_of(op: &Op) -> Option<Place> {
    Some(match op {
        Op::Put { bucket, key, .. }
        | Op::Delete { bucket, key }
        | Op::PutVersion { bucket, key, .. }
        | Op::DropVersion { bucket, key, .. }
        | Op::LockVersion { bucket, key, .. }
        | Op::Rename { bucket, key, .. }
        | Op::Relocate { bucket, key, .. } => (bucket.clone(), key.clone()),
        Op::CreateBucket { bucket } | Op::DeleteBucket { bucket } => {
            (bucket.clone(), String::new())
        }
        _ => return None,
    })
}

/// Where the null version of an object has its own history: there is no such key.
fn null_of(place: &Place) -> Place {
    (place.0.clone(), format!("{}{NULL}", place.1))
}

const NULL: char = '\0';

/// Where an object stood that an entry gives another key, and which entry had written it.
fn source_of(op: &Op) -> Option<(Place, u64)> {
    match op {
        Op::Rename {
            bucket,
            source,
            seen,
            ..
        } => Some(((bucket.clone(), source.clone()), seen.0)),
        _ => None,
    }
}

/// Whether somebody wants to give an object another key.
pub(crate) fn renames(what: &What) -> bool {
    matches!(what, What::Write { op, .. } if source_of(op).is_some())
}

/// Why an object is refused another key, by what stands under the one that it has, and under the other one.
fn refused_key(source: &State, seen: u64, current: &State) -> Option<ErrorCode> {
    match (source.there || source.marker) && source.seq == seen {
        false => Some(ErrorCode::PreconditionFailed),
        true => (source.kept || current.kept).then_some(ErrorCode::BadRequest),
    }
}

/// What an entry makes of its place, and of that of the null version, if it touches them.
fn made_by(op: &Op) -> (Option<State>, Option<State>) {
    let state = |there, marker, kept| {
        Some(State {
            there,
            marker,
            kept,
            ..nothing()
        })
    };
    let gone = || state(false, false, false);
    match op {
        Op::Put { .. } | Op::CreateBucket { .. } | Op::Rename { .. } => {
            (state(true, false, false), None)
        }
        Op::PutVersion { tag, .. } => {
            let version = state(true, tag.marker, true);
            (state(!tag.marker, tag.marker, true), version)
        }
        Op::DropVersion {
            then: Then::Same, ..
        } => (None, gone()),
        Op::DropVersion { .. } => (gone(), gone()),
        _ => (gone(), None),
    }
}

/// Why a change of versions is refused, by what is current and by the null version that is kept.
fn refused(op: &Op, current: &State, null: &State) -> Option<ErrorCode> {
    let stands = current.there || current.marker;
    let twice = current.there && !current.kept && null.there;
    match op {
        Op::PutVersion { .. } => twice.then_some(ErrorCode::NotKept),
        Op::DropVersion {
            then: Then::Same, ..
        } => match (stands, null.there) {
            (true, _) => Some(ErrorCode::PreconditionFailed),
            (false, false) => Some(ErrorCode::NotFound),
            (false, true) => None,
        },
        Op::DropVersion { .. } if !stands => Some(ErrorCode::PreconditionFailed),
        Op::DropVersion { .. } => twice.then_some(ErrorCode::NotKept),
        _ => None,
    }
}

fn holds(precondition: Precondition, state: &State) -> bool {
    match precondition {
        Precondition::None => true,
        Precondition::Absent => !state.there,
        Precondition::Present => state.there,
        Precondition::Version(seq) => (state.there || state.marker) && state.seq == seq.0,
    }
}

/// What a parent keeps to on its device while a child is made, whatever becomes of it: until the child is durable no
/// root covers the entry, nothing is hidden before one does, and no other split begins before the end of this one.
pub(crate) fn judge_split(before: Option<&Splitting>, replica: &Replica) {
    let covered = replica.index.covered();
    let now = replica.splitting.as_ref();
    if let Some(now) = now {
        assert!(now.durable || covered < now.seq, "a root before the child");
    }
    let Some(before) = before.filter(|it| now.is_none_or(|now| now.seq != it.seq)) else {
        return;
    };
    assert!(covered >= before.seq, "hidden before a root covers that");
    assert!(
        before.durable || now.is_none(),
        "another split before the end of {before:?}"
    );
}

impl World {
    /// Judges the whole history.
    pub(crate) fn judge(&self) {
        let mut seen: Vec<&Seen> = self.clients.seen.iter().collect();
        seen.sort_by_key(|it| it.to);
        let changes = seen.iter().filter_map(|it| match &it.current.what {
            What::Write { precondition, .. } => {
                Some(((it.client, it.current.request), *precondition))
            }
            _ => None,
        });
        let (histories, done) = self.histories(&changes.collect());
        let mut histories = histories;
        for seen in seen {
            Self::judge_one(&mut histories, &done, seen);
        }
        for part in &self.maps[self.maps.len() - 1].parts {
            self.judge_contents(&histories, part.id);
        }
    }

    /// What gives an object another key that was found under this one, if it is no version; and its payload.
    pub(crate) fn rename(
        &self,
        bucket: String,
        key: String,
        (source, version): (String, u64),
    ) -> Option<(Op, Bytes)> {
        let at = (bucket.clone(), source.clone());
        let written = self.written.iter();
        let mut written = written.filter(|((.., seq), _)| seq.0 == version);
        let (manifest, inline) = written.find_map(|(_, bytes)| {
            let entry = Entry::decode(bytes).ok()?;
            let op = entry.op().ok()?;
            let place = place_of(&op);
            match op {
                Op::Put { manifest, .. } | Op::Rename { manifest, .. } => (place.as_ref()
                    == Some(&at))
                .then(|| (manifest, Bytes::copy_from_slice(entry.inline))),
                _ => None,
            }
        })?;
        let op = Op::Rename {
            bucket,
            key,
            source,
            seen: Seq(version),
            modified_ms: 7,
            manifest,
        };
        Some((op, inline))
    }

    fn histories(
        &self,
        asked: &BTreeMap<(ClientId, RequestNo), Precondition>,
    ) -> (Histories, Done) {
        let mut histories = Histories::new();
        let mut done = BTreeMap::new();
        for (partition, entries) in &self.committed {
            for (seq, known) in entries {
                let bytes = &self.written[&(*partition, known.term, *seq)];
                let entry = Entry::decode(bytes).expect("it is whole");
                let op = entry.op().expect("it can be read");
                let Some(place) = place_of(&op) else {
                    continue;
                };
                let (state, null) = made_by(&op);
                let there = state.as_ref().is_some_and(|it| it.there);
                let name = (entry.header.client, entry.header.request);
                let before = done.insert(name, (*partition, *seq));
                assert!(
                    before.is_none(),
                    "{name:?} twice: {before:?}, {partition} {seq}"
                );
                let bucket = (place.0.clone(), String::new());
                if place != bucket {
                    let exists = histories.get(&bucket).and_then(|it| it.last());
                    let exists = exists.is_some_and(|it| it.there);
                    assert!(exists, "{partition} {seq}: {op:?} without a bucket");
                } else if !there {
                    let mut keys = histories.iter();
                    let full = keys.find(|(it, states)| {
                        it.0 == bucket.0
                            && !it.1.is_empty()
                            && states.last().is_some_and(|s| s.there)
                    });
                    assert!(full.is_none(), "{partition} {seq}: {op:?}, but {full:?}");
                }
                let last = |histories: &Histories, place: &Place| {
                    let states = histories.get(place).and_then(|it| it.last());
                    states.cloned().unwrap_or_else(nothing)
                };
                let (kept, last) = (
                    last(&histories, &null_of(&place)),
                    &last(&histories, &place),
                );
                assert_eq!(
                    refused(&op, last, &kept),
                    None,
                    "{partition} {seq}: {op:?} at {last:?}, {kept:?}"
                );
                let mut left = None;
                if let Some((source, seen)) = source_of(&op) {
                    let states = histories.get(&source).and_then(|it| it.last());
                    let before = states.cloned().unwrap_or_else(nothing);
                    let refused = refused_key(&before, seen, last);
                    assert_eq!(refused, None, "{partition} {seq}: {op:?} at {before:?}");
                    left = Some((source, nothing()));
                }
                if let Some(precondition) = asked.get(&name) {
                    assert!(
                        holds(*precondition, last),
                        "{op:?} at {last:?}: {precondition:?}"
                    );
                }
                if place == bucket {
                    assert_ne!(there, last.there, "{partition} {seq}: {op:?}");
                }
                let null = null.map(|null| (null_of(&place), null));
                let made = state.map(|state| (place, state)).into_iter();
                for (place, state) in made.chain(null).chain(left) {
                    let states = histories
                        .entry(place.clone())
                        .or_insert_with(|| vec![nothing()]);
                    let last = states.last().expect("one at the least");
                    assert!(
                        seq.0 > last.seq,
                        "{place:?} goes back: {last:?}, {partition} {seq}"
                    );
                    assert!(
                        last.committed <= known.at,
                        "{place:?}: an heir before its parents"
                    );
                    states.push(State {
                        seq: seq.0,
                        committed: known.at,
                        told: u64::MAX,
                        ..state
                    });
                }
            }
        }
        (histories, done)
    }

    fn judge_one(histories: &mut Histories, done: &Done, seen: &Seen) {
        let Seen {
            from,
            to,
            client,
            current,
            told,
        } = seen;
        let name = (*client, current.request);
        let Current { place, what, .. } = current;
        let entry = done.get(&name);
        let bucket = (place.0.clone(), String::new());
        match (what, told) {
            (What::Write { .. }, Told::Done(seq)) => {
                let (_, at) = entry.unwrap_or_else(|| panic!("lost: {seen:?}"));
                assert_eq!(at, seq, "another entry: {seen:?}");
                tell(histories, place, seq.0, *to);
                tell(histories, &null_of(place), seq.0, *to);
                if let What::Write { op, .. } = what
                    && let Some((source, _)) = source_of(op)
                {
                    tell(histories, &source, seq.0, *to);
                }
            }
            (_, Told::Refused(ErrorCode::OutcomeUnknown)) => {}
            (
                What::Write {
                    precondition, op, ..
                },
                Told::Refused(code),
            ) => {
                assert_eq!(entry, None, "refused, but done: {seen:?}");
                let states = |place: &Place| {
                    histories
                        .get(place)
                        .cloned()
                        .unwrap_or_else(|| vec![nothing()])
                };
                let (own, of) = (states(place), states(&bucket));
                let null = states(&null_of(place));
                let of_versions = |code: ErrorCode| {
                    tellable(&own, *from, *to).any(|own| {
                        let mut null = tellable(&null, *from, *to);
                        null.any(|null| refused(op, own, null) == Some(code))
                    })
                };
                let of_keys = |code: ErrorCode| {
                    source_of(op).is_some_and(|(source, seen)| {
                        let source = states(&source);
                        tellable(&source, *from, *to).any(|source| {
                            let mut own = tellable(&own, *from, *to);
                            own.any(|own| refused_key(source, seen, own) == Some(code))
                        })
                    })
                };
                let right = match code {
                    ErrorCode::PreconditionFailed => {
                        tellable(&own, *from, *to).any(|it| !holds(*precondition, it))
                            || of_versions(*code)
                            || of_keys(*code)
                    }
                    ErrorCode::BadRequest => of_keys(*code),
                    // Where its keys are is the map's concern, which is not told.
                    ErrorCode::Apart => source_of(op).is_some(),
                    ErrorCode::NotKept | ErrorCode::NotFound => of_versions(*code),
                    ErrorCode::NoSuchBucket => tellable(&of, *from, *to).any(|it| !it.there),
                    ErrorCode::BucketExists => tellable(&of, *from, *to).any(|it| it.there),
                    ErrorCode::BucketNotEmpty => {
                        let mut keys = histories.iter().filter(|(it, _)| it.0 == place.0);
                        keys.any(|(it, states)| {
                            !it.1.is_empty() && tellable(states, *from, *to).any(|it| it.there)
                        })
                    }
                    // Whether it does is not told.
                    ErrorCode::BucketSpans => {
                        matches!(op, Op::CreateBucket { .. } | Op::DeleteBucket { .. })
                    }
                    _ => false,
                };
                assert!(right, "never right: {seen:?} {own:?}");
            }
            (_, Told::Version(version)) => {
                Self::judge_version(histories, seen, place, *version);
            }
            (_, Told::NoBucket) => Self::judge_version(histories, seen, &bucket, None),
            (_, Told::Keys(keys)) => {
                let sorted = keys.windows(2).all(|two| two[0].0 < two[1].0);
                assert!(sorted, "twice, or out of order: {seen:?}");
                let all: Vec<Place> = histories.keys().cloned().collect();
                for (_, key) in all
                    .into_iter()
                    .filter(|it| it.0 == place.0 && !it.1.is_empty() && !it.1.ends_with(NULL))
                {
                    let found = keys.iter().find(|it| it.0 == key);
                    let place = (place.0.clone(), key);
                    Self::judge_version(histories, seen, &place, found.map(|it| it.1));
                }
            }
            _ => panic!("{seen:?}"),
        }
    }

    fn judge_version(histories: &mut Histories, seen: &Seen, place: &Place, version: Option<u64>) {
        let Some(states) = histories.get(place) else {
            return assert_eq!(version, None, "never made: {seen:?}");
        };
        let seq = {
            let mut right = tellable(states, seen.from, seen.to);
            let right = right.find(|it| it.there.then_some(it.seq) == version);
            right
                .unwrap_or_else(|| panic!("{place:?} {version:?} was not so: {seen:?} {states:?}"))
                .seq
        };
        tell(histories, place, seq, seen.to);
    }

    /// All replicas of a partition have what was committed of it, and no more.
    fn judge_contents(&self, histories: &Histories, partition: PartitionId) {
        let map = &self.maps[self.maps.len() - 1];
        let part = map.find(partition).expect("it is there");
        let (from, to) = (&part.from, map.end(partition));
        let inside = histories
            .iter()
            .filter(|(it, _)| *it >= from && to.as_ref().is_none_or(|to| *it < to));
        let there = inside.filter_map(|(place, states)| {
            let last = states.last().filter(|it| it.there || it.marker)?;
            Some((place.clone(), last.seq))
        });
        let mut expected: Vec<(Place, u64)> = there.collect();
        // The bucket that it begins inside of comes along.
        let bucket = (from.0.clone(), String::new());
        let carried = histories.get(&bucket).and_then(|it| it.last());
        if let Some(carried) = carried.filter(|it| it.there && !from.1.is_empty()) {
            expected.insert(0, (bucket, carried.seq));
        }
        expected.sort();
        for member in &part.chain {
            let node = crate::sim::node_of(*member);
            let mut contents = self.contents(node, partition);
            contents.sort();
            assert_eq!(contents, expected, "{partition} on {node}");
        }
    }

    /// All that an index says; payloads can be read.
    fn contents(&self, node: u8, partition: PartitionId) -> Vec<(Place, u64)> {
        let device = &self.nodes[usize::from(node)].device;
        let replica = &self.running(node, partition).expect("it runs").replica;
        let under_way = self.reads_under_way(node, partition).into_iter();
        let under_way = under_way.filter_map(|event| match event {
            Event::Index { lane, event } if lane == replica.lane => Some(event),
            _ => None,
        });
        let index = replica.index.clone();
        let items = items_of(index, under_way, |at, len| device.read_chunk(at, len));
        let readable = |item: &Item, object: &Object, name: &Place| {
            let moved = replica.log.slot(item.version);
            let place = object
                .place
                .map(|it| (it.at, it.len))
                .filter(|_| moved.is_none());
            let readable = place.is_none_or(|(at, len)| device.read(at, len).is_some());
            assert!(
                readable,
                "{partition} on {node}: {name:?} {} at {place:?} was freed",
                item.version
            );
        };
        let item = |item: Item| match item.change() {
            Ok(Change::Put {
                bucket,
                key,
                object,
            }) => {
                let place = (bucket, key);
                readable(&item, &object, &place);
                (place, item.version.0)
            }
            Ok(Change::PutVersion {
                bucket,
                key,
                object,
                ..
            }) => {
                let place = (bucket, key);
                readable(&item, &object, &place);
                (null_of(&place), item.version.0)
            }
            Ok(Change::PutBucket { bucket, .. }) => ((bucket, String::new()), item.version.0),
            other => panic!("{other:?}"),
        };
        items.into_iter().map(item).collect()
    }
}

/// Somebody was told of the entry that stands here.
fn tell(histories: &mut Histories, place: &Place, seq: u64, at: u64) {
    let Some(states) = histories.get_mut(place) else {
        return;
    };
    for state in states.iter_mut().take_while(|it| it.seq <= seq) {
        state.told = state.told.min(at);
    }
}
