//! From a device that was just opened to replicas that know their log again.
//!
//! Invariants:
//! - nothing is replayed before the indexes are open: what they cover is not read;
//! - records are replayed in the order in which they were appended, whatever order they are read in;
//! - damage is told in its place: just before the first record of its extent that lies behind it, or after
//!   the last one of the extent. A replica takes damage at the end of its log for a tail that may be
//!   missing, and elsewhere for a hole;
//! - a record that cannot be read is damage, never nothing.

use std::collections::BTreeMap;

use ashlar_cluster_journal::Replica;
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_engine::opening::{DamagedJournal, JournalRecord, Opened, RecoveryReport};
use ashlar_node_reactor::{Buf, Driver};
use bytes::Bytes;

use crate::core::{Core, Engine, Pending, PoolMemory};
use crate::devices::Phase;
use crate::loads::Load;
use crate::words::say;

/// Records read ahead while a log is replayed.
const AHEAD: usize = 8;

/// The replay of a device's journal.
pub(crate) struct Replay {
    pub(crate) engine: Engine,
    /// The indexes that are being opened, before anything is replayed.
    pub(crate) loads: Vec<Load>,
    /// They are open.
    loaded: bool,
    steps: Vec<Step>,
    /// Next step to be read.
    next: usize,
    /// Next step to be replayed.
    due: usize,
    /// Read, but not yet due: the bytes, or none if they could not be read.
    held: BTreeMap<usize, Option<Bytes>>,
    /// The replicas being rebuilt, by slot.
    replicas: Vec<(usize, Replica)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Record {
        partition: PartitionId,
        at: u64,
        len: u32,
        first: Seq,
        last: Seq,
        sequence: u64,
    },
    Damage {
        entries: Option<(PartitionId, Seq, Seq)>,
    },
}

impl Core {
    /// A device is recovered: its indexes are opened, and what its journal has behind them goes into its replicas.
    pub(crate) fn replay(
        &mut self,
        device: usize,
        mut opened: Opened<PoolMemory>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let slot = &self.devices[device];
        say!(
            "device {} at {}: {}",
            slot.no,
            slot.path().display(),
            summary(&opened.report)
        );
        self.find_partitions(device, &opened);
        let Some(loads) = self.loads(device, &mut opened) else {
            let why = "no number is left for an index to begin with".to_owned();
            return self.devices[device].close(why, false, now, io);
        };
        let extent_size = opened.engine.geometry().extent_size;
        let replay = Replay {
            engine: opened.engine,
            loads,
            loaded: false,
            steps: steps(&opened.journal, &opened.damaged, extent_size),
            next: 0,
            due: 0,
            held: BTreeMap::new(),
            replicas: Vec::new(),
        };
        self.devices[device].phase = Phase::Replaying(Box::new(replay));
        self.begin_loads(device, now, io);
    }

    /// Goes on to the log, if all indexes are open.
    pub(crate) fn loads_ended(&mut self, device: usize, now: Instant, io: &mut impl Driver) {
        let Phase::Replaying(replay) = &mut self.devices[device].phase else {
            return;
        };
        if replay.loaded || !replay.loads.iter().all(Load::ended) {
            return;
        }
        replay.loaded = true;
        let mut kept = Vec::new();
        for mut load in std::mem::take(&mut replay.loads) {
            let partition = self.replicas[load.replica].partition;
            kept.push((partition, std::mem::take(&mut load.keeps)));
            if let Some(replica) = load.take() {
                replay.replicas.push((load.replica, replica));
            }
        }
        let lasting = replay.replicas.iter();
        let lasting = lasting.filter(|(_, replica)| replica.keeps_past());
        let lasting: Vec<PartitionId> = lasting
            .map(|(slot, _)| self.replicas[*slot].partition)
            .collect();
        for (slot, replica) in &mut replay.replicas {
            let known = self
                .maps
                .map
                .known_partition(self.replicas[*slot].partition);
            let mut parents = known.iter().flat_map(|p| &p.parents);
            if parents.any(|parent| lasting.contains(parent)) {
                replica.has_its_past();
            }
        }
        let all = replay.steps.len();
        replay.steps.retain(|step| {
            let Step::Record {
                partition,
                last,
                sequence,
                ..
            } = *step
            else {
                return true;
            };
            // A replica of another partition has no use for it.
            let mut of = replay
                .replicas
                .iter()
                .filter(|(index, _)| self.replicas[*index].partition == partition);
            of.any(|(_, replica)| !replica.is_past(last, sequence))
        });
        let (read, no) = (replay.steps.len(), self.devices[device].no);
        say!(
            "device {no}: {read} of {all} records and places of its journal are behind its indexes"
        );
        for (partition, ats) in kept {
            let event = api::Event::KeepIndex { partition, ats };
            self.engine_event(device, event, now, io);
        }
        self.go_on(device, now, io);
    }

    /// Replays what is due, reads what comes next, and ends the replay when there is nothing more.
    fn go_on(&mut self, device: usize, now: Instant, io: &mut impl Driver) {
        let Phase::Replaying(replay) = &mut self.devices[device].phase else {
            return;
        };
        while let Some(step) = replay.steps.get(replay.due).copied() {
            let (bytes, partition) = match step {
                Step::Damage { entries } => (None, entries.map(|(partition, ..)| partition)),
                Step::Record { partition, .. } => match replay.held.remove(&replay.due) {
                    Some(bytes) => (bytes, Some(partition)),
                    None => break,
                },
            };
            replay.due += 1;
            for (index, replica) in &mut replay.replicas {
                if partition.is_some_and(|p| p != self.replicas[*index].partition) {
                    continue;
                }
                match (step, &bytes) {
                    (Step::Record { at, sequence, .. }, Some(bytes)) => {
                        replica.replay(bytes, at, sequence);
                    }
                    (Step::Record { first, last, .. }, None) => {
                        replica.replay_damaged(Some((first, last)));
                    }
                    (Step::Damage { entries }, _) => {
                        replica.replay_damaged(entries.map(|(_, first, last)| (first, last)));
                    }
                }
            }
        }
        if replay.due == replay.steps.len() {
            return self.end_replay(device, now, io);
        }
        let ahead = replay.steps.len().min(replay.due + AHEAD);
        let from = replay.next.max(replay.due);
        replay.next = ahead.max(from);
        for record in from..ahead {
            self.read_record(device, record, now, io);
        }
    }

    fn end_replay(&mut self, device: usize, now: Instant, io: &mut impl Driver) {
        let phase = std::mem::replace(&mut self.devices[device].phase, Phase::Down);
        let Phase::Replaying(replay) = phase else {
            return;
        };
        self.devices[device].serve(replay.engine);
        self.forget_strangers(device, now, io);
        for (index, replica) in replay.replicas {
            let partition = self.replicas[index].partition;
            if self.replicas[index].over {
                // The map that says so came while the log was read.
                let event = api::Event::ForgetPartition { partition };
                self.engine_event(device, event, now, io);
                continue;
            }
            self.start_replica(index, replica);
        }
    }

    /// Reads one journal record for replay, if the step is one.
    pub(crate) fn read_record(
        &mut self,
        device: usize,
        record: usize,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let Phase::Replaying(replay) = &self.devices[device].phase else {
            return;
        };
        if let Some(Step::Record { at, len, .. }) = replay.steps.get(record).copied() {
            let op = self.ops.insert(Pending::Replay { device, record });
            self.engine_event(device, api::Event::ReadJournal { op, at, len }, now, io);
        }
    }

    /// A journal record was read for replay.
    pub(crate) fn replayed(
        &mut self,
        device: usize,
        record: usize,
        result: Result<api::Output<Buf>, EngineError>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let Phase::Replaying(replay) = &mut self.devices[device].phase else {
            return;
        };
        let bytes = match result {
            Ok(api::Output::Bytes { buf, range }) => Some(Bytes::copy_from_slice(&buf[range])),
            _ => None,
        };
        replay.held.insert(record, bytes);
        self.go_on(device, now, io);
    }
}

/// The records in their order, with each damaged place among them.
fn steps(records: &[JournalRecord], damaged: &[DamagedJournal], extent_size: u64) -> Vec<Step> {
    let extent = |offset: u64| offset / extent_size;
    let mut before: BTreeMap<usize, Vec<Step>> = BTreeMap::new();
    for damage in damaged {
        let same = |r: &JournalRecord| extent(r.at) == extent(damage.offset);
        let behind = records.iter().position(|r| same(r) && r.at > damage.offset);
        let after_last = || records.iter().rposition(same).map(|last| last + 1);
        let place = behind.or_else(after_last).unwrap_or(records.len());
        before.entry(place).or_default().push(Step::Damage {
            entries: damage.entries,
        });
    }
    let mut steps = Vec::with_capacity(records.len() + damaged.len());
    for (index, record) in records.iter().enumerate() {
        steps.extend(before.remove(&index).unwrap_or_default());
        let JournalRecord {
            partition,
            at,
            len,
            first,
            last,
            sequence,
        } = *record;
        steps.push(Step::Record {
            partition,
            at,
            len,
            first,
            last,
            sequence,
        });
    }
    steps.extend(before.into_values().flatten());
    steps
}

/// What recovery did, for the log.
fn summary(report: &RecoveryReport) -> String {
    format!(
        "recovered {}: {} shards, {} tombstones, {} journal records, {} chunks and {} roots of indexes; {} extents scanned, {} footers and {} bytes read, {} findings",
        if report.clean {
            "after a clean stop"
        } else {
            "after a crash"
        },
        report.shards,
        report.tombstones,
        report.journal_records,
        report.chunks,
        report.roots,
        report.extents_scanned,
        report.footers_read,
        report.bytes_read,
        report.findings.iter().sum::<u64>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: u64, first: u64, last: u64) -> JournalRecord {
        let (first, last) = (Seq(first), Seq(last));
        JournalRecord {
            partition: PartitionId(0),
            at,
            len: 1,
            first,
            last,
            sequence: first.0,
        }
    }

    fn damage(offset: u64) -> DamagedJournal {
        DamagedJournal {
            offset,
            len: 1,
            entries: None,
        }
    }

    fn order(steps: &[Step]) -> Vec<u64> {
        steps
            .iter()
            .map(|step| match step {
                Step::Record { first, .. } => first.0,
                Step::Damage { .. } => 0,
            })
            .collect()
    }

    #[test]
    fn damage_stands_where_it_was_written() {
        // Extents of 100: the second one was written first.
        let records = [
            record(110, 1, 1),
            record(150, 2, 2),
            record(10, 3, 3),
            record(90, 4, 4),
        ];
        let order = |damaged: &[DamagedJournal]| order(&steps(&records, damaged, 100));
        assert_eq!(
            order(&[damage(120)]),
            [1, 0, 2, 3, 4],
            "between records of its extent"
        );
        assert_eq!(
            order(&[damage(160)]),
            [1, 2, 0, 3, 4],
            "behind the last of its extent"
        );
        assert_eq!(
            order(&[damage(5)]),
            [1, 2, 0, 3, 4],
            "before the first of its extent"
        );
        assert_eq!(
            order(&[damage(95)]),
            [1, 2, 3, 4, 0],
            "at the end of the log"
        );
        assert_eq!(
            order(&[damage(250)]),
            [1, 2, 3, 4, 0],
            "in an extent that has no record"
        );
        assert_eq!(order(&[]), [1, 2, 3, 4]);
    }
}
