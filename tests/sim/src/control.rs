//! The control plane of a simulated cluster: the shipped decisions (what a command does to the map, who is taken for
//! away, when partitions are split and merged) in one member that never fails. That several members agree is not
//! simulated here: it is openraft's, and tested with real processes.

use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::MapChange;
use ashlar_layout::time::Instant;
use ashlar_node_control::state::Command;
use ashlar_node_control::{OutLimits, PartitionLimits, Patience, State, Watchman, move_step};
use ashlar_node_daemon::Maps;

use crate::disk::Rng;
use crate::node::{Node, maps};
use crate::plan::Plan;

/// The member.
pub struct Control {
    state: State,
    watchman: Watchman,
    /// The newest map.
    pub map: Arc<Maps>,
    /// Changes that were made, by kind.
    pub changes: u64,
}

impl Control {
    /// In office, with this map.
    pub fn new(map: Arc<Maps>, plan: &Plan) -> Control {
        let secs = |secs: u64| Duration::from_secs(secs * plan.longer);
        let patience = Patience {
            away_after: secs(2),
            replace_after: secs(6),
            out: OutLimits {
                after: secs(4),
                back_after: secs(2),
                most: None,
            },
            partitions: PartitionLimits {
                split_objects: plan.split_objects,
                split_requests: 1_000_000,
                merge_objects: plan.split_objects / 2,
                per_device: 1,
                pause: secs(2),
            },
        };
        let found = Command::Found {
            map: Box::new(map.map.clone()),
        };
        let mut state = State::default();
        state.apply(&found).expect("a plan's map can be founded");
        Control {
            state,
            watchman: Watchman::new(patience, Instant(1)),
            map,
            changes: 0,
        }
    }

    /// A node says that it is there, how its chains are, and which of its devices serve.
    pub fn hear(&mut self, now: u64, node: &Node) {
        if let Some(shared) = &node.shared {
            let reports = shared.reports();
            let at = Instant(now + 1);
            let serving = shared.serving().into_iter().map(|(no, _)| no);
            let serving: Vec<_> = serving.collect();
            let map = &self.map.map;
            self.watchman
                .hear(at, map, node.id, reports, Some(&serving));
            self.watchman.reads(node.id, node.says_it_reads());
        }
    }

    /// Makes the change that is due.
    pub fn decide(&mut self, now: u64) -> Option<String> {
        let map = self.map.map.clone();
        self.watchman.forget(&map);
        let change = self.watchman.decide(Instant(now + 1), &map)?;
        self.change(change)
    }

    fn change(&mut self, change: MapChange) -> Option<String> {
        let said = format!("{change:?}");
        let command = Command::Change {
            expected: self.map.map.epoch,
            change: change.resolve(&self.map.map),
        };
        match self.state.apply(&command) {
            Ok(_) => {
                self.changes += 1;
                self.map = maps(self.state.map.clone()?);
                Some(said)
            }
            Err(_) => None,
        }
    }

    /// What an operator may want: a split at a key, a merge of two neighbours, a member moved.
    pub fn wish(&mut self, rng: &mut Rng, bucket: &str, key: &str) -> Option<String> {
        let map = self.map.map.clone();
        let partitions = &map.partitions;
        match rng.below(3) {
            0 if partitions.len() < 4 => {
                let partition = map.partition(bucket, key)?.id;
                self.change(MapChange::SplitPartition {
                    partition,
                    bucket: bucket.to_owned(),
                    key: key.to_owned(),
                })
            }
            1 if partitions.len() > 1 => {
                let at = rng.below(partitions.len() as u64 - 1) as usize;
                let (left, right) = (partitions[at].id, partitions[at + 1].id);
                self.change(MapChange::MergePartitions { left, right })
            }
            _ => {
                let at = rng.below(partitions.len() as u64) as usize;
                let mut to: Vec<_> = map.devices.iter().map(|device| device.no).collect();
                while to.len() > partitions[at].chain.devices.len() {
                    to.remove(rng.below(to.len() as u64) as usize);
                }
                let reports = self.watchman.reports();
                let reports = reports.into_iter().map(|it| (it.partition, it)).collect();
                let step = move_step(&map, &reports, &partitions[at], &to)?;
                self.change(step)
            }
        }
    }
}
