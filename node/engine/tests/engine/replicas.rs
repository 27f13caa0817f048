//! What the device has to hold of indexes and trimmed journals: the other half of [`crate::model`].
//!
//! Each partition is played by a replica that keeps to the order that it promises: chunks, a sync, a root, and only
//! then the release of what the root before it named, and the trim.
//!
//! - An opening gives the newest root that was acknowledged, or the one under way, whole. It calls it the newest.
//! - Every chunk that a root names, or that a partition holds, reads back whole.
//! - A journal record that was not trimmed, or whose extent is pinned, is there.
//! - As long as a partition has not spoken since the opening, nothing of what it holds is gone.
//! - When all are forgotten, nothing is in use but what is open.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::PartitionId;
use ashlar_node_engine::api::Event;

use crate::disk::Rng;
use crate::model::{Asked, Model};
use crate::rig::{Answer, MIB, Opened2, Rig, payload};

/// A chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub at: u64,
    pub number: u64,
    pub grains: usize,
}

impl Chunk {
    pub fn bytes(&self) -> Vec<u8> {
        payload(self.number ^ 0x1dec_0000_0000, self.grains * 4096)
    }
}

/// A root, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub generation: u64,
    pub chunks: Vec<Chunk>,
    pub through: u64,
    pub position: u64,
    pub pins: Vec<u32>,
    /// First numbers of the entries that are in those extents. (Others may have been there earlier.)
    pub pinned: Vec<u64>,
    pub padding: usize,
}

impl Root {
    fn encode(&self, partition: u32) -> Vec<u8> {
        let mut text = format!("{partition} {self:?}").into_bytes();
        text.extend(payload(self.generation, self.padding));
        text
    }
}

/// The replica of a partition.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// It has said what it keeps and needs.
    pub spoken: bool,
    generation: u64,
    pub durable: Option<Root>,
    /// Under way.
    flying: Option<Root>,
    /// Written, and not synced; and synced, but not named by a durable root.
    written: Vec<Chunk>,
    synced: Vec<Chunk>,
    /// What was told.
    pub through: u64,
    pub position: u64,
    pins: Vec<u32>,
    pinned: Vec<u64>,
}

impl Replica {
    fn named(&self) -> Vec<Chunk> {
        self.durable
            .iter()
            .flat_map(|root| root.chunks.clone())
            .collect()
    }

    /// All that it holds.
    fn held(&self) -> Vec<Chunk> {
        let mut held = self.named();
        held.extend(&self.written);
        held.extend(&self.synced);
        held
    }

    /// Whether a record with this last entry and sequence number need not be there.
    pub fn trimmed(&self, last: u64, sequence: u64) -> bool {
        last <= self.through && sequence <= self.position
    }
}

/// All replicas of a device.
#[derive(Clone, Default)]
pub struct Replicas {
    pub of: BTreeMap<u32, Replica>,
    /// Partitions that were forgotten: what is found of them does not matter.
    pub retired: BTreeSet<u32>,
    chunks: u64,
    pub roots_checked: u64,
    pub chunks_checked: u64,
    /// Journal entries that were trimmed, and of these: those read because of a pin.
    pub trimmed: u64,
    pub pinned: u64,
    /// Roots that were under way when the device died, and came to be the newest.
    pub overtaken: u64,
}

pub enum AskedIndex {
    Chunk(Chunk),
    Sync(Vec<Chunk>),
    Root,
    Read {
        chunk: Chunk,
        from: usize,
        to: usize,
    },
}

impl Model {
    fn replica(&mut self, partition: u32) -> &mut Replica {
        let new = || Replica {
            spoken: true,
            ..Replica::default()
        };
        self.replicas.of.entry(partition).or_insert_with(new)
    }

    fn ask(&mut self, op: u64, partition: u32, what: AskedIndex) {
        self.asked.insert(op, Asked::Index { partition, what });
    }

    /// After an opening: says what it keeps of the index, and needs of the journal.
    pub fn speak(&mut self, rig: &mut Rig, partition: u32) {
        let replica = self.replica(partition);
        if replica.spoken {
            return;
        }
        replica.spoken = true;
        let ats: Vec<u64> = replica.named().iter().map(|chunk| chunk.at).collect();
        let (through, position) = (replica.through, replica.position);
        let pins = replica.pins.clone();
        if replica.durable.is_some() {
            rig.keep(partition, &ats);
        }
        rig.trim(partition, through, position, &pins);
    }

    pub fn speak_all(&mut self, rig: &mut Rig) {
        let all: Vec<u32> = self.replicas.of.keys().copied().collect();
        for partition in all {
            self.speak(rig, partition);
        }
    }

    pub fn write_chunk(&mut self, rig: &mut Rig, partition: u32, grains: usize) {
        self.speak(rig, partition);
        self.replicas.chunks += 1;
        let chunk = Chunk {
            at: 0,
            number: self.replicas.chunks,
            grains,
        };
        let op = rig.write_index(partition, chunk.bytes());
        self.ask(op, partition, AskedIndex::Chunk(chunk));
    }

    pub fn sync(&mut self, rig: &mut Rig, partition: u32) {
        self.speak(rig, partition);
        // What was not heard of yet was not reported yet.
        let written = self.replica(partition).written.clone();
        let op = rig.sync_index();
        self.ask(op, partition, AskedIndex::Sync(written));
    }

    /// Writes a root of what is durable, and leaves out some; trims up to some entry, and pins some extents.
    pub fn write_root(&mut self, rig: &mut Rig, partition: u32, rng: &mut Rng, keep: u64) {
        self.speak(rig, partition);
        let list = self.journal.get(&partition).cloned().unwrap_or_default();
        let replica = self.replica(partition);
        if replica.flying.is_some() {
            return;
        }
        let mut chunks = replica.named();
        chunks.retain(|_| rng.chance(keep));
        chunks.extend(replica.synced.iter().filter(|_| rng.chance(95)));
        let refused = |e: &&crate::model::Entries| !e.refused;
        let whole = list.iter().filter(refused).take_while(|e| e.at.is_some());
        let whole: Vec<_> = whole.collect();
        let (mut through, mut position) = (replica.through, replica.position);
        if !whole.is_empty() && rng.chance(70) {
            let upto = &whole[whole.len() - 1 - rng.below(whole.len().min(4) as u64) as usize];
            through = through.max(upto.last);
            position = position.max(upto.sequence);
        }
        // It may pin what it pinned, and what it needs anyway.
        let there = whole
            .iter()
            .filter(|e| !replica.trimmed(e.last, e.sequence) || replica.pinned.contains(&e.first));
        let there: Vec<(u32, u64)> = there
            .filter_map(|e| Some(((e.at? / MIB) as u32, e.first)))
            .collect();
        let mut pins: Vec<u32> = there.iter().map(|(no, _)| *no).collect();
        pins.sort_unstable();
        pins.dedup();
        pins.retain(|_| rng.chance(40));
        let pinned = there.into_iter().filter(|(no, _)| pins.contains(no));
        let pinned = pinned.map(|(_, first)| first).collect();
        replica.generation += 1;
        let root = Root {
            generation: replica.generation,
            chunks,
            through,
            position,
            pins,
            pinned,
            padding: if rng.chance(80) {
                50
            } else {
                rng.below(60_000) as usize
            },
        };
        let bytes = root.encode(partition);
        let op = rig.write_root(partition, root.generation, bytes);
        replica.flying = Some(root);
        self.ask(op, partition, AskedIndex::Root);
    }

    /// Another partition comes to hold chunks of this one.
    pub fn share(&mut self, rig: &mut Rig, from: u32, to: u32, rng: &mut Rng) {
        self.speak(rig, from);
        self.speak(rig, to);
        let mut shared = self.replica(from).named();
        shared.extend(&self.replica(from).synced);
        shared.retain(|_| rng.chance(50));
        let ats: Vec<u64> = shared.iter().map(|chunk| chunk.at).collect();
        rig.hold(to, &ats);
        self.replica(to).synced.extend(shared);
    }

    /// Gives up chunks that no root names.
    pub fn give_up(&mut self, rig: &mut Rig, partition: u32) {
        self.speak(rig, partition);
        let replica = self.replica(partition);
        if replica.flying.is_some() {
            return;
        }
        let given: Vec<u64> = replica.synced.drain(..).map(|chunk| chunk.at).collect();
        rig.free(partition, &given);
    }

    /// The partition leaves this device.
    pub fn retire(&mut self, rig: &mut Rig, partition: u32) {
        rig.forget(partition);
        self.replicas.of.remove(&partition);
        self.journal.remove(&partition);
        self.replicas.retired.insert(partition);
    }

    /// Reads a part of some chunk that a partition holds.
    pub fn read_chunk(&mut self, rig: &mut Rig, rng: &mut Rng) {
        let all = self.replicas.of.iter();
        let held = all.flat_map(|(p, replica)| replica.held().into_iter().map(|c| (*p, c)));
        let held: Vec<(u32, Chunk)> = held.collect();
        if held.is_empty() {
            return;
        }
        let (partition, chunk) = held[rng.below(held.len() as u64) as usize];
        let len = chunk.grains as u64 * 4096;
        let from = rng.below(len);
        let to = from + 1 + rng.below(len - from);
        let op = rig.read_index(chunk.at + from, (to - from) as usize);
        let (from, to) = (from as usize, to as usize);
        self.ask(op, partition, AskedIndex::Read { chunk, from, to });
    }

    /// Takes in an answer.
    pub fn hear_index(
        &mut self,
        rig: &mut Rig,
        partition: u32,
        what: AskedIndex,
        answer: &Answer,
        refused: bool,
    ) {
        if self.replicas.retired.contains(&partition) {
            return;
        }
        let replica = self.replica(partition);
        match (what, answer) {
            (AskedIndex::Chunk(chunk), Answer::Index(at)) => {
                assert!(at.is_multiple_of(4096));
                replica.written.push(Chunk { at: *at, ..chunk });
            }
            (AskedIndex::Sync(chunks), Answer::Durable) => {
                replica.written.retain(|chunk| !chunks.contains(chunk));
                // Several syncs may have been under way for the same ones.
                let new = chunks
                    .iter()
                    .filter(|c| !replica.synced.contains(c) && !replica.is_named(c));
                let new: Vec<Chunk> = new.copied().collect();
                replica.synced.extend(new);
            }
            (AskedIndex::Root, Answer::Durable) => {
                let root = replica.flying.take().unwrap();
                let mut given = replica.held();
                given.retain(|chunk| !replica.written.contains(chunk));
                for chunk in &root.chunks {
                    let at = given.iter().position(|c| c == chunk).unwrap();
                    given.swap_remove(at);
                }
                // Those that were synced since are not given up by it.
                replica.synced.retain(|chunk| {
                    let named = root.chunks.contains(chunk);
                    let at = given.iter().position(|c| c == chunk);
                    if let Some(at) = at.filter(|_| !named) {
                        given.swap_remove(at);
                        return true;
                    }
                    false
                });
                let ats: Vec<u64> = given.iter().map(|chunk| chunk.at).collect();
                (replica.through, replica.position) = (root.through, root.position);
                replica.pins = root.pins.clone();
                replica.pinned = root.pinned.clone();
                let pins = root.pins.clone();
                let (through, position) = (root.through, root.position);
                replica.durable = Some(root);
                rig.free(partition, &ats);
                rig.trim(partition, through, position, &pins);
            }
            (AskedIndex::Read { chunk, from, to }, Answer::Bytes(bytes)) => {
                // It may have been freed meanwhile, and used again.
                if replica.held().contains(&chunk) {
                    assert!(
                        *bytes == chunk.bytes()[from..to],
                        "{chunk:?} is not what it was"
                    );
                    self.replicas.chunks_checked += 1;
                }
            }
            (AskedIndex::Read { chunk, .. }, _) if !replica.held().contains(&chunk) => {}
            (AskedIndex::Root, _) if refused => replica.flying = None,
            (AskedIndex::Chunk(_) | AskedIndex::Read { .. }, _) if refused => {}
            (_, answer) => panic!("partition {partition}: {answer:?}"),
        }
    }

    /// After an opening: holds the roots against what may be, and reads all that they name.
    pub fn verify_roots(&mut self, rig: &mut Rig, opened: &Opened2) {
        for damaged in &opened.damaged_roots {
            // The last root of a partition that is gone may stand in an extent that was about to be used again.
            let gone = |(PartitionId(p), _)| self.replicas.retired.contains(&p);
            assert!(damaged.root.is_some_and(gone), "{damaged:?}");
        }
        let mut given = BTreeMap::new();
        for root in &opened.roots {
            assert!(root.newest, "{root:?}");
            let before = given.insert(root.partition.0, *root);
            assert!(before.is_none(), "one of each partition");
        }
        let partitions: Vec<u32> = self.replicas.of.keys().copied().collect();
        for partition in partitions {
            let found = given.remove(&partition);
            let replica = self.replica(partition);
            let generation = found.map(|root| root.generation);
            let flying = replica
                .flying
                .take_if(|root| Some(root.generation) == generation);
            let overtaken = flying.is_some();
            let root = flying.or_else(|| replica.durable.clone());
            assert_eq!(
                root.as_ref().map(|root| root.generation),
                generation,
                "partition {partition}: {replica:?}"
            );
            replica.spoken = false;
            replica.flying = None;
            replica.written.clear();
            replica.synced.clear();
            if let Some((root, found)) = root.zip(found) {
                let answer = rig.fetch_index(found.at, found.len as usize);
                assert!(answer == Answer::Bytes(root.encode(partition)), "{found:?}");
                for chunk in &root.chunks {
                    let answer = rig.fetch_index(chunk.at, chunk.grains * 4096);
                    assert!(
                        answer == Answer::Bytes(chunk.bytes()),
                        "{partition}: {chunk:?}"
                    );
                    self.replicas.chunks_checked += 1;
                }
                let replica = self.replica(partition);
                (replica.through, replica.position) = (root.through, root.position);
                replica.pins = root.pins.clone();
                replica.pinned = root.pinned.clone();
                replica.durable = Some(root);
                self.replicas.roots_checked += 1;
                self.replicas.overtaken += u64::from(overtaken);
            }
        }
        for partition in given.keys() {
            assert!(
                self.replicas.retired.contains(partition),
                "{partition} came back"
            );
        }
        // They are gone from this device for good.
        for PartitionId(partition) in rig.engine().awaited() {
            if self.replicas.retired.contains(&partition) {
                rig.forget(partition);
            }
        }
        // A partition of which nothing but journal records is left speaks, too.
        for partition in self.journal.keys().copied().collect::<Vec<_>>() {
            self.replicas.of.entry(partition).or_default();
        }
        self.verify_pinned(rig);
    }

    /// What is pinned can be read, trimmed or not.
    fn verify_pinned(&mut self, rig: &mut Rig) {
        for (partition, replica) in &self.replicas.of {
            for entries in self.journal.get(partition).into_iter().flatten() {
                let Some(at) = entries.at else {
                    continue;
                };
                if !replica.trimmed(entries.last, entries.sequence) {
                    continue;
                }
                self.replicas.trimmed += 1;
                if !replica.pinned.contains(&entries.first) {
                    continue;
                }
                self.replicas.pinned += 1;
                let len = entries.bytes.len() as u32;
                let op = rig.submit(|op| Event::ReadJournal { op, at, len });
                assert!(
                    rig.finish(op) == Answer::Bytes(entries.bytes.clone()),
                    "journal {partition}: {} in a pinned extent",
                    entries.first
                );
            }
        }
    }

    /// Once all partitions are forgotten, nothing is held.
    pub fn verify_nothing_held(&mut self, rig: &mut Rig) {
        let all: Vec<u32> = self
            .replicas
            .of
            .keys()
            .chain(self.journal.keys())
            .copied()
            .collect();
        for partition in all {
            self.retire(rig, partition);
        }
        rig.settle();
        let stats = rig.engine().stats();
        assert_eq!((stats.chunk_bytes_live, stats.partitions_awaited), (0, 0));
        assert!(
            stats.extents_index <= 1 && stats.extents_journal <= 1,
            "more than the open ones: {stats:?}"
        );
    }
}

impl Replica {
    fn is_named(&self, chunk: &Chunk) -> bool {
        self.durable
            .as_ref()
            .is_some_and(|root| root.chunks.contains(chunk))
    }
}
