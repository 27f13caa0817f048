//! What the device has to hold: the readable specification of the engine.
//!
//! - A shard that was acknowledged, and not told to be deleted, is there, byte for byte.
//! - One that was told to be written, but not acknowledged, is wholly there or not at all. Whichever a
//!   recovery shows, it stays so. (Torn, with newer ones behind it, it cannot be told from a rotten one: it
//!   is answered as damaged, never as other bytes.)
//! - One whose deletion was acknowledged is gone for good; one whose deletion was not may be either,
//!   and stays what a recovery shows.
//! - Acknowledged journal entries are there, byte for byte, at the place that was told.
//! - What a crash takes of a partition's journal is a tail: before an entry that is there, none is
//!   missing (but those that were refused, and those that were trimmed).
//! - For indexes, and what is trimmed of journals, see [`crate::replicas`].

use std::collections::{BTreeMap, HashMap};

use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_node_engine::api::Event;
use ashlar_node_engine::clean::Cleaned;
use ashlar_node_engine::error::EngineError;

use crate::disk::Rng;
use crate::replicas::{AskedIndex, Replicas};
use crate::rig::{Answer, Crash, Opened2, Rig, payload, shard};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Written, not acknowledged: either.
    Writing,
    Present,
    /// Deletion not acknowledged: either.
    Deleting,
    Absent,
    /// Never acknowledged, torn by a crash, and told as damaged.
    Damaged,
}

#[derive(Clone, Copy, Debug)]
pub struct ShardModel {
    pub len: usize,
    pub fate: Fate,
}

#[derive(Clone, Debug)]
pub struct Entries {
    pub bytes: Vec<u8>,
    pub first: u64,
    pub last: u64,
    pub at: Option<u64>,
    /// Of its record, once it is there.
    pub sequence: u64,
    pub refused: bool,
}

pub enum Asked {
    Write(u64),
    Delete(u64),
    Read { number: u64, offset: u32, len: u32 },
    Journal { partition: u32, at: usize },
    Index { partition: u32, what: AskedIndex },
}

#[derive(Default)]
pub struct Model {
    pub shards: BTreeMap<u64, ShardModel>,
    pub journal: BTreeMap<u32, Vec<Entries>>,
    pub replicas: Replicas,
    pub asked: HashMap<u64, Asked>,
    pub full: u64,
    pub acknowledged: u64,
    pub reads_checked: u64,
    pub damaged: u64,
    /// What was cleaned up to each crash.
    pub cleaned: Cleaned,
    /// Extents that were opened again after they had been freed.
    pub reused: u64,
}

impl Model {
    /// The same expectations, with nothing asked.
    pub fn copy(&self) -> Model {
        Model {
            shards: self.shards.clone(),
            journal: self.journal.clone(),
            replicas: self.replicas.clone(),
            ..Model::default()
        }
    }

    pub fn pick(&self, rng: &mut Rng, fate: Fate) -> Option<u64> {
        let of_fate: Vec<u64> = self
            .shards
            .iter()
            .filter(|(_, shard)| shard.fate == fate)
            .map(|(number, _)| *number)
            .collect();
        (!of_fate.is_empty()).then(|| of_fate[rng.below(of_fate.len() as u64) as usize])
    }

    pub fn write(&mut self, rig: &mut Rig, number: u64, len: usize) {
        self.shards.insert(
            number,
            ShardModel {
                len,
                fate: Fate::Writing,
            },
        );
        let op = rig.write_shard(shard(number), &payload(number, len));
        self.asked.insert(op, Asked::Write(number));
    }

    /// Writes a shard once more, with the same bytes.
    pub fn write_again(&mut self, rig: &mut Rig, number: u64) {
        let len = self.shards[&number].len;
        let op = rig.write_shard(shard(number), &payload(number, len));
        self.asked.insert(op, Asked::Write(number));
    }

    pub fn delete(&mut self, rig: &mut Rig, number: u64) {
        self.shards.get_mut(&number).unwrap().fate = Fate::Deleting;
        let op = rig.delete(shard(number));
        self.asked.insert(op, Asked::Delete(number));
    }

    pub fn read(&mut self, rig: &mut Rig, number: u64, offset: u32, len: u32) {
        let op = rig.read(shard(number), offset, len);
        self.asked.insert(
            op,
            Asked::Read {
                number,
                offset,
                len,
            },
        );
    }

    pub fn append(&mut self, rig: &mut Rig, partition: u32, count: u64, bytes: usize) {
        let list = self.journal.entry(partition).or_default();
        let first = list.last().map_or(1, |entries| entries.last + 1);
        let last = first + count - 1;
        let bytes = payload(u64::from(partition) << 32 | first, bytes.max(1));
        list.push(Entries {
            bytes: bytes.clone(),
            first,
            last,
            at: None,
            sequence: 0,
            refused: false,
        });
        let at = list.len() - 1;
        let op = rig.append(partition, first..last + 1, bytes);
        self.asked.insert(op, Asked::Journal { partition, at });
    }

    /// Takes in the answers that have come.
    pub fn hear(&mut self, rig: &mut Rig) {
        for (op, answer) in std::mem::take(&mut rig.answers) {
            let Some(asked) = self.asked.remove(&op) else {
                panic!("an answer to nothing: {op} {answer:?}");
            };
            if matches!(answer.error(), Some(EngineError::Fenced { .. })) {
                // It may have been done or not, as after a crash.
                assert!(rig.fenced.is_some());
                continue;
            }
            if let Some(EngineError::Forgotten { partition, .. }) = answer.error() {
                assert!(self.replicas.retired.contains(&partition.0));
                continue;
            }
            let refused = matches!(
                answer.error(),
                Some(EngineError::DeviceFull { .. } | EngineError::Busy { .. })
            );
            if refused {
                self.full += 1;
            } else {
                self.acknowledged += 1;
            }
            match asked {
                Asked::Write(number) => {
                    let fate = &mut self.shards.get_mut(&number).unwrap().fate;
                    match (&answer, *fate) {
                        (Answer::Durable, Fate::Writing) => *fate = Fate::Present,
                        (Answer::Durable, _) => {}
                        (_, Fate::Writing | Fate::Deleting) if refused => *fate = Fate::Absent,
                        (_, Fate::Present | Fate::Absent) if refused => {}
                        (
                            Answer::Failed(EngineError::Deleted { .. }),
                            Fate::Deleting | Fate::Absent,
                        ) => {}
                        _ => panic!("write of {number} ({fate:?}): {answer:?}"),
                    }
                }
                Asked::Delete(number) => {
                    let fate = &mut self.shards.get_mut(&number).unwrap().fate;
                    match &answer {
                        Answer::Durable => *fate = Fate::Absent,
                        // It is still there.
                        _ if refused && *fate == Fate::Deleting => *fate = Fate::Present,
                        _ if refused => {}
                        _ => panic!("delete of {number}: {answer:?}"),
                    }
                }
                Asked::Read {
                    number,
                    offset,
                    len,
                } => {
                    self.check_read(number, offset, len, &answer, refused);
                }
                Asked::Index { partition, what } => {
                    self.hear_index(rig, partition, what, &answer, refused);
                }
                Asked::Journal { partition, at } => {
                    let Some(list) = self.journal.get_mut(&partition) else {
                        assert!(self.replicas.retired.contains(&partition));
                        continue;
                    };
                    let entries = &mut list[at];
                    match answer {
                        Answer::Journal(place) => {
                            entries.at = Some(place);
                            entries.sequence = rig.sequences[&place];
                        }
                        _ if refused => entries.refused = true,
                        _ => panic!("append to {partition}: {answer:?}"),
                    }
                }
            }
        }
    }

    fn check_read(&mut self, number: u64, offset: u32, len: u32, answer: &Answer, refused: bool) {
        let ShardModel { len: whole, fate } = self.shards[&number];
        match answer {
            Answer::Bytes(bytes) => {
                let all = payload(number, whole);
                let from = offset as usize;
                let to = if len == u32::MAX {
                    whole
                } else {
                    from + len as usize
                };
                assert!(
                    *bytes == all[from..to],
                    "shard {number}: other bytes at {offset}+{len}"
                );
                self.reads_checked += 1;
            }
            Answer::Failed(EngineError::NotFound { .. }) => {
                assert_ne!(fate, Fate::Present, "shard {number} is not found");
            }
            _ if refused => {}
            _ => panic!("read of {number}: {answer:?}"),
        }
    }

    /// The engine is about to go: what it cleaned is added up.
    pub fn count_cleaned(&mut self, rig: &mut Rig) {
        let more = rig.engine().stats().cleaned;
        self.cleaned.extents += more.extents;
        self.cleaned.records += more.records;
        self.cleaned.tombstones += more.tombstones;
    }

    /// After a crash: asks for everything, and holds it against what may be.
    pub fn verify(&mut self, rig: &mut Rig, opened: &Opened2) {
        self.asked.clear();
        let numbers: Vec<u64> = self.shards.keys().copied().collect();
        let mut present = 0;
        for number in numbers {
            let op = rig.read(shard(number), 0, u32::MAX);
            let answer = rig.finish(op);
            let model = self.shards.get_mut(&number).unwrap();
            match answer {
                Answer::Bytes(bytes) => {
                    assert!(
                        bytes == payload(number, model.len),
                        "shard {number}: other bytes"
                    );
                    assert_ne!(model.fate, Fate::Absent, "shard {number} came back");
                    model.fate = Fate::Present;
                    present += 1;
                }
                Answer::Failed(EngineError::NotFound { .. }) => {
                    assert_ne!(model.fate, Fate::Present, "shard {number} is lost");
                    model.fate = Fate::Absent;
                }
                Answer::Failed(EngineError::Corrupt { .. }) => {
                    assert!(
                        !matches!(model.fate, Fate::Present | Fate::Absent),
                        "shard {number} ({:?}) is damaged",
                        model.fate
                    );
                    model.fate = Fate::Damaged;
                    self.damaged += 1;
                    present += 1;
                }
                other => panic!("shard {number} ({:?}): {other:?}", model.fate),
            }
        }
        assert_eq!(
            rig.engine().stats().shards_live,
            present,
            "the index holds nothing else"
        );
        // Against what was told before the crash.
        self.verify_journal(rig, opened);
        self.verify_roots(rig, opened);
    }

    fn verify_journal(&mut self, rig: &mut Rig, opened: &Opened2) {
        let mut last_sequence = 0;
        // (partition, first) of each record, and its (last, address, bytes).
        type Found = HashMap<(u32, u64), Vec<(u64, u64, Vec<u8>)>>;
        let mut found = Found::new();
        for record in &opened.journal {
            assert!(record.sequence > last_sequence, "in the order of appends");
            last_sequence = record.sequence;
            let PartitionId(partition) = record.partition;
            let (Seq(first), Seq(last)) = (record.first, record.last);
            let replica = self.replicas.of.get(&partition);
            if self.replicas.retired.contains(&partition)
                || replica.is_some_and(|replica| replica.trimmed(last, record.sequence))
            {
                // It may have been written over.
                continue;
            }
            let (at, len) = (record.at, record.len);
            let op = rig.submit(|op| Event::ReadJournal { op, at, len });
            let Answer::Bytes(bytes) = rig.finish(op) else {
                panic!("journal record at {at} cannot be read");
            };
            found
                .entry((partition, first))
                .or_default()
                .push((last, at, bytes));
        }
        for (partition, list) in &mut self.journal {
            let replica = self.replicas.of.get(partition).cloned().unwrap_or_default();
            let trimmed = |e: &Entries| e.at.is_some() && replica.trimmed(e.last, e.sequence);
            let mut seen = vec![false; list.len()];
            for ((_, first), records) in found.iter().filter(|((p, _), _)| p == partition) {
                for (last, at, bytes) in records {
                    // A record is a run of whole appends.
                    let mut seq = *first;
                    let mut from = 0;
                    while seq <= *last {
                        let i = list
                            .iter()
                            .position(|e| e.first == seq && bytes[from..].starts_with(&e.bytes));
                        let i =
                            i.unwrap_or_else(|| panic!("journal {partition}: {seq} is not ours"));
                        if list[i].at.is_none_or(|told| told == at + from as u64) {
                            seen[i] = true;
                        }
                        from += list[i].bytes.len();
                        seq = list[i].last + 1;
                    }
                    assert_eq!((seq, from), (last + 1, bytes.len()));
                }
            }
            for (entries, seen) in list.iter().zip(&seen) {
                let acknowledged = entries.at.is_some();
                assert!(
                    *seen || !acknowledged || trimmed(entries),
                    "journal {partition}: {} is lost",
                    entries.first
                );
            }
            let mut lost = None;
            for (entries, seen) in list.iter().zip(&seen) {
                match (*seen, lost) {
                    (true, Some(lost)) => {
                        panic!("journal {partition}: {} without {lost}", entries.first)
                    }
                    (false, None) if !entries.refused && !trimmed(entries) => {
                        lost = Some(entries.first)
                    }
                    _ => {}
                }
            }
            // What was not acknowledged and is not there is as if it had never been asked for.
            let mut keep = Vec::new();
            for entries in list.drain(..) {
                let there = found.iter().any(|((p, first), records)| {
                    p == partition
                        && records
                            .iter()
                            .any(|(last, ..)| *first <= entries.first && entries.last <= *last)
                });
                if there || trimmed(&entries) {
                    keep.push(entries);
                } else {
                    assert!(entries.at.is_none());
                }
            }
            *list = keep;
        }
    }
}

/// Lets all that is under way end, and takes in what came of it.
pub fn go(rig: &mut Rig, model: &mut Model) {
    rig.settle();
    model.hear(rig);
}

/// What is there for certain.
pub fn present(model: &Model) -> Vec<u64> {
    let all = model.shards.iter();
    let present = all.filter(|(_, shard)| shard.fate == Fate::Present);
    present.map(|(number, _)| *number).collect()
}

/// It goes down so, and comes back with all that it has to hold.
pub fn crash_and_verify(rig: &mut Rig, model: &mut Model, how: Crash) {
    rig.crash(how);
    let opened = rig.open();
    model.verify(rig, &opened);
}
