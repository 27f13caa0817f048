//! A simulated device with replicas of many partitions: one sequence of journal records, and chunks that
//! partitions share.
//!
//! Fault model: as of the simulator with one partition. What is freed is gone at once, and whoever wants to read it
//! is found out: a chunk when no partition holds it, a record when its own partition does not need it and no partition
//! pins its extent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ashlar_cluster_index::{Action as IndexAction, Config, Event as IndexEvent, Index, Opened};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::root::Chunk;
use bytes::Bytes;

use crate::sim_device::{EXTENT, Record, Rng, read_records};
use crate::sim_index::opened;

/// Where the first chunk stands: far from the journal.
const BASE: u64 = 1 << 40;
const CHUNK: u64 = 1 << 20;

#[derive(Clone, Debug)]
struct Held {
    bytes: Bytes,
    /// Its write is known to have ended.
    written: bool,
    durable: bool,
    /// How often each partition holds it.
    holders: BTreeMap<PartitionId, u32>,
}

/// A write of the journal that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    pub(crate) partition: PartitionId,
    /// Of the replica that wants it.
    pub(crate) life: u64,
    pub(crate) token: u64,
    pub(crate) record: Record,
}

/// By partition, lane and token.
type Name = (PartitionId, u32, u64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct FamilyDevice {
    pub(crate) records: Vec<(PartitionId, Record)>,
    pub(crate) inflight: VecDeque<Writing>,
    end: u64,
    pub(crate) busy_until: u64,
    pub(crate) positions: u64,
    chunks: BTreeMap<u64, Held>,
    next: u64,
    pub(crate) roots: BTreeMap<PartitionId, (u64, Bytes)>,
    roots_under_way: Vec<(PartitionId, u64, Bytes)>,
    syncs: BTreeMap<Name, BTreeSet<u64>>,
    writes: BTreeMap<Name, u64>,
    /// What each partition said of its journal since the device was opened.
    trims: BTreeMap<PartitionId, (Seq, u64, Vec<u32>)>,
    /// Partitions that had a root when the device was opened, and have not said that yet.
    awaited: BTreeSet<PartitionId>,
}

impl FamilyDevice {
    pub(crate) fn new() -> Self {
        Self {
            end: 4096,
            ..Self::default()
        }
    }

    /// A place for a record of so many bytes, within one extent.
    pub(crate) fn place(&mut self, gap: u64, len: u64) -> u64 {
        let mut at = self.end + gap;
        if at / EXTENT != (at + len.max(1) - 1) / EXTENT {
            at = at.next_multiple_of(EXTENT);
        }
        self.end = at + len;
        at
    }

    /// A partition says what it needs of its journal.
    pub(crate) fn trim(&mut self, partition: PartitionId, said: (Seq, u64, Vec<u32>)) {
        self.trims.insert(partition, said);
        self.awaited.remove(&partition);
        self.free_records();
    }

    /// A partition that is about to begin needs these extents besides what it said of its journal.
    pub(crate) fn pin(&mut self, partition: PartitionId, pins: Vec<u32>) {
        let nothing = (Seq(0), 0, Vec::new());
        self.trims
            .entry(partition)
            .or_insert(nothing)
            .2
            .extend(pins);
    }

    fn free_records(&mut self) {
        if !self.awaited.is_empty() {
            return;
        }
        let pins: BTreeSet<u32> = self.trims.values().flat_map(|it| it.2.clone()).collect();
        let trims = &self.trims;
        self.records.retain(|(partition, record)| {
            let Some((through, position, _)) = trims.get(partition) else {
                return true;
            };
            let needed = record.last > *through || record.position > *position;
            needed || pins.contains(&((record.at / EXTENT) as u32))
        });
    }

    /// A partition is gone.
    pub(crate) fn forget(&mut self, partition: PartitionId) {
        for held in self.chunks.values_mut() {
            held.holders.remove(&partition);
        }
        self.chunks.retain(|_, held| !held.holders.is_empty());
        self.roots.remove(&partition);
        self.roots_under_way.retain(|(of, ..)| *of != partition);
        self.writes.retain(|(of, ..), _| *of != partition);
        self.syncs.retain(|(of, ..), _| *of != partition);
        let nothing = (Seq(u64::MAX), u64::MAX, Vec::new());
        self.trim(partition, nothing);
    }

    /// Bytes of one or more records that stand without a gap; `None` if not all can be read.
    pub(crate) fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        read_records(&self.records, |(_, record)| record, at, len)
    }

    pub(crate) fn read_chunk(&self, at: u64, len: u32) -> Option<Bytes> {
        let (start, chunk) = self.chunks.range(..=at).next_back()?;
        let from = (at - start) as usize;
        let to = from + len as usize;
        (to <= chunk.bytes.len()).then(|| chunk.bytes.slice(from..to))
    }

    /// The process ends: what becomes of what was not durable.
    pub(crate) fn crash(&mut self, rng: &mut Rng, tear: bool) {
        self.syncs.clear();
        self.writes.clear();
        self.trims.clear();
        self.awaited.clear();
        for chunk in self.chunks.values_mut().filter(|chunk| !chunk.durable) {
            if rng.one_in(2) {
                chunk.bytes = Bytes::from(vec![0xee; chunk.bytes.len()]);
            }
        }
        for (partition, generation, bytes) in std::mem::take(&mut self.roots_under_way) {
            if rng.one_in(2) {
                self.become_root(partition, (generation, bytes));
            }
        }
        let inflight = std::mem::take(&mut self.inflight);
        let survive = rng.below(inflight.len() as u64 + 1);
        let (tear, hint) = (tear && rng.one_in(2), rng.one_in(2));
        for (nth, writing) in inflight.into_iter().enumerate() {
            let (partition, mut record) = (writing.partition, writing.record);
            if nth as u64 == survive && tear {
                record.rotten = true;
                record.hint = record.hint.filter(|_| hint);
                self.records.push((partition, record));
            } else if (nth as u64) < survive {
                self.records.push((partition, record));
            }
        }
    }

    fn become_root(&mut self, partition: PartitionId, root: (u64, Bytes)) {
        let held = self.roots.get(&partition);
        if held.is_none_or(|(generation, _)| *generation < root.0) {
            self.roots.insert(partition, root);
        }
    }

    /// Opens a partition's newest root: with what of its chunks is in use.
    pub(crate) fn open(&self, config: &Config) -> (Index, Bytes, Vec<Chunk>) {
        let root = self.roots.get(&config.partition);
        let root = root.map(|(_, root)| &root[..]);
        let opened = opened(config, root, |at, len| self.read_chunk(at, len));
        let opened = opened.expect("what a root names is there");
        assert!(opened.findings.is_empty(), "{:?}", opened.findings);
        let Opened {
            index,
            attachment,
            live,
            ..
        } = opened;
        (index, attachment, live)
    }

    /// What is in use at an opening: all else is free.
    pub(crate) fn keep(&mut self, all: &[(PartitionId, Vec<Chunk>)]) {
        for held in self.chunks.values_mut() {
            held.holders.clear();
        }
        for (partition, chunks) in all {
            self.hold(*partition, chunks);
            self.awaited.insert(*partition);
        }
        self.chunks.retain(|_, held| !held.holders.is_empty());
    }

    /// A partition holds each of these once more.
    pub(crate) fn hold(&mut self, partition: PartitionId, chunks: &[Chunk]) {
        for chunk in chunks {
            let held = self.chunks.get_mut(&chunk.at);
            let held = held.unwrap_or_else(|| panic!("{partition} holds what is free: {chunk:?}"));
            *held.holders.entry(partition).or_default() += 1;
        }
    }

    fn free(&mut self, partition: PartitionId, chunk: &Chunk) {
        let held = self.chunks.get_mut(&chunk.at);
        let held = held.unwrap_or_else(|| panic!("{partition} frees what is free: {chunk:?}"));
        let count = held.holders.get_mut(&partition);
        let count = count.unwrap_or_else(|| panic!("{partition} does not hold {chunk:?}"));
        *count -= 1;
        if *count == 0 {
            held.holders.remove(&partition);
        }
        if held.holders.is_empty() {
            self.chunks.remove(&chunk.at);
        }
    }

    /// What a partition holds, and how often.
    pub(crate) fn held_by(&self, partition: PartitionId) -> BTreeMap<u64, u32> {
        let chunks = self.chunks.iter();
        let held = chunks.filter_map(|(at, it)| Some((*at, *it.holders.get(&partition)?)));
        held.collect()
    }

    pub(crate) fn holders(&self) -> BTreeSet<PartitionId> {
        let chunks = self.chunks.values();
        chunks.flat_map(|it| it.holders.keys().copied()).collect()
    }

    pub(crate) fn is_writing(&self) -> bool {
        !self.writes.is_empty() || !self.roots_under_way.is_empty() || !self.inflight.is_empty()
    }

    /// An index wants something: whether it takes time.
    pub(crate) fn wants(
        &mut self,
        partition: PartitionId,
        lane: u32,
        action: &IndexAction,
    ) -> bool {
        match action {
            IndexAction::Write { token, bytes } => {
                let at = BASE + self.next * CHUNK;
                self.next += 1;
                let held = Held {
                    bytes: bytes.clone(),
                    written: false,
                    durable: false,
                    holders: BTreeMap::from([(partition, 1)]),
                };
                self.chunks.insert(at, held);
                self.writes.insert((partition, lane, *token), at);
            }
            IndexAction::Sync { token } => {
                let written = self.chunks.iter().filter(|(_, chunk)| chunk.written);
                let written = written.map(|(at, _)| *at).collect();
                self.syncs.insert((partition, lane, *token), written);
            }
            IndexAction::WriteRoot {
                generation, bytes, ..
            } => self
                .roots_under_way
                .push((partition, *generation, bytes.clone())),
            IndexAction::Free { chunks } => {
                for chunk in chunks {
                    self.free(partition, chunk);
                }
                return false;
            }
            IndexAction::Read { at, len, .. } => {
                let whole = self.read_chunk(*at, *len).is_some();
                let held = self.chunks.range(..=*at).next_back();
                let held = held.is_some_and(|(_, it)| it.holders.contains_key(&partition));
                assert!(whole && held, "{partition} reads what is free: {at:x}");
            }
            other => panic!("not for the device: {other:?}"),
        }
        true
    }

    /// It has done what an index wanted.
    pub(crate) fn done(
        &mut self,
        partition: PartitionId,
        lane: u32,
        action: &IndexAction,
    ) -> IndexEvent {
        match action {
            IndexAction::Read { token, at, len } => {
                let (token, bytes) = (*token, self.read_chunk(*at, *len));
                IndexEvent::Read { token, bytes }
            }
            IndexAction::Write { token, .. } => {
                let at = self.writes.remove(&(partition, lane, *token));
                let at = at.expect("it is under way");
                if let Some(chunk) = self.chunks.get_mut(&at) {
                    chunk.written = true;
                }
                let (token, result) = (*token, Ok(at));
                IndexEvent::Written { token, result }
            }
            IndexAction::Sync { token } => {
                let name = (partition, lane, *token);
                for at in self.syncs.remove(&name).unwrap_or_default() {
                    if let Some(chunk) = self.chunks.get_mut(&at) {
                        chunk.durable = true;
                    }
                }
                let (token, ok) = (*token, true);
                IndexEvent::Synced { token, ok }
            }
            IndexAction::WriteRoot {
                token, generation, ..
            } => {
                let mut roots = self.roots_under_way.iter();
                let nth = roots.position(|(of, g, _)| *of == partition && g == generation);
                let (_, generation, bytes) =
                    self.roots_under_way.remove(nth.expect("it is under way"));
                self.become_root(partition, (generation, bytes));
                let (token, ok) = (*token, true);
                IndexEvent::RootWritten { token, ok }
            }
            other => panic!("nothing to be done: {other:?}"),
        }
    }
}
