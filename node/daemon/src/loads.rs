//! From a device that was just opened to the indexes of its replicas.
//!
//! Invariants:
//! - only the newest root that was ever durable is opened. An older one is of no use: the journal behind it may
//!   have been trimmed since. A replica whose newest root is damaged, or names what cannot be read and cannot be
//!   done without, is blank: it counts for nothing until it has learned from another one;
//! - a replica without a root is bare: it counts for nothing until others have told what it may have lost; but not
//!   one that is yet to be made of others which its device has had from their beginning;
//! - the engine is told what each replica keeps once all of them are known, before its log is replayed;
//! - the chunks of an index that is whole but for what could not be read now are kept until another index is
//!   durable in its place: the next opening may be luckier;
//! - every partition that left anything here has a replica, whether the map wants it in the chain or not: what
//!   it promised stays promised, and what it needs of the device is known. Only a partition that is
//!   not in the map at all has none; then nothing of any partition is freed on this device.

use std::collections::BTreeSet;

use ashlar_cluster_index::{self as index, Index, IndexError};
use ashlar_cluster_journal::{self as journal, Replica};
use ashlar_layout::ids::PartitionId;
use ashlar_layout::message::FindingKind;
use ashlar_layout::root::Root;
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_engine::opening::{DamagedRoot, IndexRoot, Opened};
use ashlar_node_reactor::{Buf, Driver};
use bytes::Bytes;

use crate::core::{Core, LoadRead, Pending, PoolMemory, Todo};
use crate::devices::Phase;
use crate::replicas::ReplicaSlot;
use crate::words::say;

/// A replica whose index is being opened.
pub(crate) struct Load {
    /// Its slot.
    pub(crate) replica: usize,
    config: journal::Config,
    /// The newest root, if it had one.
    root: Option<IndexRoot>,
    state: State,
    /// The chunks that the root names.
    named: Vec<u64>,
    /// What the engine is to be told that it keeps.
    pub(crate) keeps: Vec<u64>,
}

enum State {
    /// Nothing was read yet.
    New,
    Opening(Box<index::Opening>),
    Ended(Box<Replica>),
    /// The replica is on its way to its slot.
    Taken,
}

impl Load {
    /// Whether its index is open, or it is blank.
    pub(crate) fn ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// The replica, once.
    pub(crate) fn take(&mut self) -> Option<Replica> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ended(replica) => Some(*replica),
            _ => None,
        }
    }
}

/// Whether a partition's newest root is not the one that was found, or may not be.
fn lost_root(roots: &[IndexRoot], damaged: &[DamagedRoot], partition: PartitionId) -> bool {
    match roots.iter().find(|root| root.partition == partition) {
        Some(root) => !root.newest,
        // Whose it was may not be known.
        None => damaged
            .iter()
            .any(|it| it.root.is_none_or(|(of, _)| of == partition)),
    }
}

impl Core {
    /// Makes slots for all partitions that left something on a device.
    pub(crate) fn find_partitions(&mut self, device: usize, opened: &Opened<PoolMemory>) {
        let records = opened.journal.iter().map(|record| record.partition);
        let roots = opened.roots.iter().map(|root| root.partition);
        let lost = opened.damaged_roots.iter();
        let lost = lost.filter_map(|damaged| damaged.root.map(|(of, _)| of));
        let all: BTreeSet<PartitionId> = records.chain(roots).chain(lost).collect();
        let no = self.devices[device].no;
        let maps = self.maps.clone();
        let mut made = false;
        self.devices[device].strangers.clear();
        let mut unnamed = opened.damaged_roots.iter();
        self.devices[device].unnamed = unnamed.any(|damaged| damaged.root.is_none());
        for partition in all {
            let held = self.slot_of(partition, device);
            if held.is_some_and(|held| !self.replicas[held].over) {
                continue;
            }
            let Some(known) = maps.map.known_partition(partition) else {
                self.devices[device].strangers.insert(partition);
                if maps.map.is_over(partition) {
                    continue;
                }
                say!(
                    "device {no}: there is a journal or an index of partition {partition} on it, which is not \
                     in the cluster map: nothing of any journal or index is freed on this device"
                );
                continue;
            };
            self.replicas.push(ReplicaSlot::of(known, no, device));
            made = true;
        }
        if made {
            self.follow_map();
        }
    }

    /// What is to be opened of a device's replicas; or why there is not a number left to begin with.
    pub(crate) fn loads(
        &mut self,
        device: usize,
        opened: &mut Opened<PoolMemory>,
    ) -> Option<Vec<Load>> {
        let mut loads = Vec::new();
        let extent_size = opened.engine.geometry().extent_size;
        let id = opened.engine.device();
        for (replica, slot) in self.replicas.iter_mut().enumerate() {
            if slot.device != device || slot.over {
                continue;
            }
            slot.orphans.clear();
            let life = opened.engine.take_life()?;
            let tuning = &self.shared.tuning;
            let config = slot.config(tuning, id, extent_size, life);
            let root = opened.roots.iter().find(|r| r.partition == slot.partition);
            let mut load = Load {
                replica,
                config,
                root: root.copied(),
                state: State::New,
                named: Vec::new(),
                keeps: Vec::new(),
            };
            if lost_root(&opened.roots, &opened.damaged_roots, slot.partition) {
                let why = "its newest root, or what may be that, is damaged";
                load.blank(slot, why);
            }
            loads.push(load);
        }
        Some(loads)
    }

    /// Begins to open the indexes of a device. (It goes on in [`Core::loaded`].)
    pub(crate) fn begin_loads(&mut self, device: usize, now: Instant, io: &mut impl Driver) {
        let generation = self.devices[device].generation();
        let mut reads = Vec::new();
        let Phase::Replaying(replay) = &mut self.devices[device].phase else {
            return;
        };
        for (nth, load) in replay.loads.iter_mut().enumerate() {
            match load.root.filter(|_| !load.ended()) {
                Some(IndexRoot { at, len, .. }) => reads.push(LoadRead {
                    device,
                    generation,
                    nth,
                    token: None,
                    at,
                    len,
                }),
                None if !load.ended() => {
                    let index = Index::new(load.config.index.clone());
                    let replica = Replica::bare(load.config.clone(), index);
                    load.state = State::Ended(Box::new(replica));
                }
                None => {}
            }
        }
        for read in reads {
            self.read_for_load(read, now, io);
        }
        self.loads_ended(device, now, io);
    }

    /// Reads something for an index that is being opened.
    pub(crate) fn read_for_load(&mut self, read: LoadRead, now: Instant, io: &mut impl Driver) {
        let slot = &self.devices[read.device];
        if slot.generation() != read.generation || !matches!(slot.phase, Phase::Replaying(_)) {
            return;
        }
        let op = self.ops.insert(Pending::Load(read));
        let LoadRead { at, len, .. } = read;
        let event = api::Event::ReadIndex { op, at, len };
        self.engine_event(read.device, event, now, io);
    }

    /// Something was read for an index that is being opened.
    pub(crate) fn loaded(
        &mut self,
        read: LoadRead,
        result: Result<api::Output<Buf>, EngineError>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let device = read.device;
        if self.devices[device].generation() != read.generation {
            return;
        }
        let bytes = match result {
            Ok(api::Output::Bytes { buf, range }) => Some(Bytes::copy_from_slice(&buf[range])),
            Err(EngineError::Fenced { .. } | EngineError::ShuttingDown { .. }) => return,
            _ => None,
        };
        let Phase::Replaying(replay) = &mut self.devices[device].phase else {
            return;
        };
        let Some(load) = replay.loads.get_mut(read.nth) else {
            return;
        };
        let mut wants = Vec::new();
        let ended = match (&mut load.state, read.token) {
            (State::New, None) => load.root_read(bytes, &mut wants),
            (State::Opening(opening), Some(token)) => {
                let event = index::Event::Read { token, bytes };
                opening.on_event(event, &mut wants)
            }
            _ => return,
        };
        let mut findings = Vec::new();
        let mut why = None;
        match ended {
            None => {}
            Some(Ok(opened)) => {
                findings = opened.findings;
                let kept = opened.attachment;
                let made = Replica::new(load.config.clone(), opened.index, &kept);
                match made {
                    Ok(replica) => {
                        load.keeps = opened.live.iter().map(|chunk| chunk.at).collect();
                        load.state = State::Ended(Box::new(replica));
                    }
                    Err(e) => why = Some(e.to_string()),
                }
            }
            Some(Err(e)) => {
                why = Some(e.to_string());
                findings.push(e);
            }
        }
        if let Some(why) = why {
            load.blank(&mut self.replicas[load.replica], &why);
        }
        let no = self.devices[device].no;
        for finding in findings {
            say!("finding: device {no}: {finding}");
            self.devices[device].found(kind(&finding));
        }
        let reads: Vec<LoadRead> = wants
            .into_iter()
            .filter_map(|action| match action {
                index::Action::Read { token, at, len } => Some(LoadRead {
                    token: Some(token),
                    at,
                    len,
                    ..read
                }),
                _ => None,
            })
            .collect();
        for read in reads {
            self.todo.push_back(Todo::Load(read));
        }
        self.loads_ended(device, now, io);
    }
}

impl Load {
    /// Gives the index up.
    fn blank(&mut self, slot: &mut ReplicaSlot, why: &str) {
        say!(
            "partition {}: the index on device {} cannot be used: {why}; it is learned anew from another replica",
            slot.partition,
            slot.me
        );
        let index = Index::new(self.config.index.clone());
        let replica = Replica::blank(self.config.clone(), index);
        self.keeps = std::mem::take(&mut self.named);
        slot.orphans.clone_from(&self.keeps);
        self.state = State::Ended(Box::new(replica));
    }

    /// The root was read.
    fn root_read(
        &mut self,
        bytes: Option<Bytes>,
        wants: &mut Vec<index::Action>,
    ) -> Option<Result<index::Opened, IndexError>> {
        let config = &self.config.index;
        let bytes = bytes.unwrap_or_default();
        if let Ok(root) = Root::decode(&bytes, config.device, config.partition) {
            self.named = root.chunks().map(|chunk| chunk.at).collect();
        }
        let mut opening = match index::Opening::new(config.clone(), Some(&bytes)) {
            Ok(opening) => opening,
            Err(e) => return Some(Err(e)),
        };
        let started = opening.start(wants);
        self.state = State::Opening(Box::new(opening));
        started
    }
}

/// The kind that a damaged part of an index is counted by.
pub(crate) fn kind(error: &IndexError) -> FindingKind {
    match error {
        IndexError::Unreadable { .. } => FindingKind::Unreadable,
        _ => FindingKind::Rot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_root_that_is_certainly_the_newest_counts() {
        let root = |partition, newest| IndexRoot {
            partition: PartitionId(partition),
            generation: 7,
            at: 4096,
            len: 100,
            sequence: 50,
            newest,
        };
        let damaged = |partition: Option<u32>| DamagedRoot {
            offset: 0,
            len: 4096,
            root: partition.map(|partition| (PartitionId(partition), 8)),
            before: 60,
        };
        let lost = |roots: &[IndexRoot], damaged: &[DamagedRoot], partition| {
            lost_root(roots, damaged, PartitionId(partition))
        };
        assert!(!lost(&[], &[], 1), "it never had one");
        assert!(!lost(&[root(1, true)], &[damaged(Some(2))], 1));
        assert!(
            lost(&[root(1, false)], &[damaged(Some(1))], 1),
            "an older one"
        );
        assert!(lost(&[], &[damaged(Some(1))], 1), "the only one");
        assert!(!lost(&[], &[damaged(Some(2))], 1), "another's");
        assert!(
            lost(&[root(2, true)], &[damaged(None)], 1),
            "whose, nobody knows"
        );
        // The engine has told that this one is newer than what was lost.
        assert!(!lost(&[root(1, true)], &[damaged(None)], 1));
    }
}
