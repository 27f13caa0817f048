//! Who is away, and what is done about it: a state machine of the leader. No I/O, no clock.
//!
//! Invariants:
//! - a chain changes only while it rests: its last change is done, told so by one of its own members;
//! - a chain changes only while more than half of its members are heard from: with fewer it could not agree on the
//!   change, and what is left of it must not be spread thinner;
//! - one change at a time, one member at a time;
//! - a leader new in office knows nothing about silence before: it counts from then;
//! - the same calls give the same decision.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, MapChange, Partition, spares};
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, Term};
use ashlar_layout::time::Instant;
use ashlar_layout::version::ENTRY_VERSION_LEAST;
use serde::{Deserialize, Serialize};

use crate::entries::Readers;
use crate::out::{Beat, Devices, OutLimits, Silent};
use crate::partitions::{self, PartitionLimits, PartitionLoad};

/// Between two decisions of a leader that watches no more time goes by than so many times what makes a node away.
const PAUSES: u32 = 4;

/// When a node counts as away, and when a spare takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A node silent for longer is taken for away: it is no spare and no member to count on.
    pub away_after: Duration,
    /// A member of a chain whose node is silent for longer is replaced.
    pub replace_after: Duration,
    /// When devices are marked out, and in again.
    pub out: OutLimits,
    /// When partitions are split and merged.
    pub partitions: PartitionLimits,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            away_after: Duration::from_secs(2),
            replace_after: Duration::from_secs(60),
            out: OutLimits::DEFAULT,
            partitions: PartitionLimits::default(),
        }
    }
}

/// A chain's composition, as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainReport {
    /// Whose chain.
    pub partition: PartitionId,
    /// The newest reign that the member knows.
    pub term: Term,
    /// The composition's number: odd when the chain rests, even while it changes.
    pub config: u64,
    /// Its members.
    pub members: Vec<DeviceNo>,
    /// What it has to bear, if the member is its head in office.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<PartitionLoad>,
}

impl ChainReport {
    /// Whether the chain is made of just these, and no change of it is under way.
    pub fn rests_on(&self, wanted: &[DeviceNo]) -> bool {
        self.config % 2 == 1
            && self.members.len() == wanted.len()
            && wanted.iter().all(|no| self.members.contains(no))
    }
}

/// How a partition's chain is doing, and what is done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing is to be done.
    Well,
    /// A member is away, not yet for so long that it is replaced.
    Waiting {
        /// Which member.
        member: DeviceNo,
    },
    /// A member is to be replaced.
    Replace {
        /// The member that leaves.
        out: DeviceNo,
        /// The spare.
        with: DeviceNo,
        /// Whether the spare shares a fault domain with a member that stays: none that is there does not.
        crowd: bool,
    },
    /// A member should be replaced, and none of the devices that could take its place is there.
    NoSpare {
        /// Which member.
        member: DeviceNo,
    },
    /// A member should be replaced, and nobody in the chain has said how it stands.
    Unreported {
        /// Which member.
        member: DeviceNo,
    },
    /// A member should be replaced, and the chain is still busy with its last change.
    Changing {
        /// Which member.
        member: DeviceNo,
    },
    /// So many members are away that the others cannot agree on anything: nothing is done.
    MajorityAway {
        /// How many are away.
        away: usize,
        /// Of how many.
        members: usize,
    },
}

/// What the leader has heard since it took office.
#[derive(Clone, Debug)]
pub struct Watchman {
    patience: Patience,
    since: Instant,
    heard: BTreeMap<NodeId, Instant>,
    /// Since when this leader has known of each node.
    known: BTreeMap<NodeId, Instant>,
    chains: BTreeMap<PartitionId, ChainReport>,
    devices: Devices,
    readers: Readers,
    /// When partitions were changed last, or could not be.
    rests: Instant,
}

impl Watchman {
    /// In office from now on.
    pub fn new(patience: Patience, now: Instant) -> Watchman {
        Watchman {
            patience,
            since: now,
            heard: BTreeMap::new(),
            known: BTreeMap::new(),
            chains: BTreeMap::new(),
            devices: Devices::new(patience.out, now),
            readers: Readers::default(),
            rests: now,
        }
    }

    /// A node has been heard. What it says about chains counts where it is itself a member. `serving`: those of its
    /// devices that serve; none if it does not say that, as older ones do not: then all of them count as serving.
    /// Which entries of the journal it reads is to be said anew each time ([`Watchman::reads`]).
    pub fn hear(
        &mut self,
        now: Instant,
        map: &ClusterMap,
        node: NodeId,
        chains: Vec<ChainReport>,
        serving: Option<&[DeviceNo]>,
    ) {
        if map.node(node).is_none() {
            return;
        }
        self.know(now, map);
        let silent = self.silent(now, node);
        let beat = Beat {
            node,
            silent,
            serving,
        };
        self.devices.hear(now, map, &beat);
        self.readers.hear(node, None);
        self.heard.insert(node, now);
        for report in chains {
            let ours = |no: &DeviceNo| map.device(*no).is_some_and(|d| d.node == node);
            if !report.members.iter().any(ours) || map.known_partition(report.partition).is_none() {
                continue;
            }
            let newer = self
                .chains
                .get(&report.partition)
                .is_none_or(|known| (known.config, known.term) <= (report.config, report.term));
            if newer {
                // Only a head tells of the load.
                let before = self.chains.get(&report.partition);
                let load = report.load.clone();
                let load = load.or_else(|| before.and_then(|before| before.load.clone()));
                self.chains
                    .insert(report.partition, ChainReport { load, ..report });
            }
        }
    }

    /// The node that was heard just now reads journal entries up to this version, if it says so.
    pub fn reads(&mut self, node: NodeId, entries: Option<u16>) {
        if self.heard.contains_key(&node) {
            self.readers.hear(node, entries);
        }
    }

    /// Up to which version a node says that it reads them.
    pub fn said_to_read(&self, node: NodeId) -> Option<u16> {
        self.readers.said(node)
    }

    /// What a node reads that does not read entries of this version, and that may be there: a leader new in office
    /// takes those that it has not heard yet for nodes that say nothing. None if all read them, or are away.
    pub fn reads_less(&self, now: Instant, map: &ClusterMap, entries: u16) -> Option<u16> {
        let nodes = map.nodes.iter().map(|node| node.id);
        let mut there = nodes.filter(|node| self.silent(now, *node).is_none());
        there.find_map(|node| {
            let reads = self.said_to_read(node).unwrap_or(ENTRY_VERSION_LEAST);
            (reads < entries).then_some(reads)
        })
    }

    /// Why newer ones than the map says may not be written, if this program knows newer ones.
    pub fn entries_held(&self, now: Instant, map: &ClusterMap) -> Option<String> {
        self.readers.held(map, |node| self.is_there(now, node))
    }

    /// When a node was heard last, or since when one is waited for that was not.
    fn last(&self, node: NodeId) -> Instant {
        let last = self.heard.get(&node).or(self.known.get(&node));
        last.copied().unwrap_or(self.since)
    }

    /// Notes the nodes of the map: one that joins is not taken to have been silent before.
    fn know(&mut self, now: Instant, map: &ClusterMap) {
        if self.known.is_empty() {
            // Those of the map that it took office with have been waited for since then.
            let all = map.nodes.iter().map(|node| (node.id, self.since));
            self.known = all.collect();
        }
        for node in &map.nodes {
            self.known.entry(node.id).or_insert(now);
        }
    }

    /// How long a node has been silent; since this leader took office if it was never heard.
    pub fn silence(&self, now: Instant, node: NodeId) -> Duration {
        now.since(self.last(node))
    }

    /// Since when a node has been silent that is taken for away.
    fn silent(&self, now: Instant, node: NodeId) -> Option<Instant> {
        let since = self.last(node);
        (now.since(since) >= self.patience.away_after).then_some(since)
    }

    fn all_silent(&self, now: Instant, map: &ClusterMap) -> Silent {
        let all = map.nodes.iter();
        all.filter_map(|node| Some((node.id, self.silent(now, node.id)?)))
            .collect()
    }

    /// The devices that are away, whether they are out or not.
    pub fn away(&self, now: Instant, map: &ClusterMap) -> BTreeSet<DeviceNo> {
        let away = self.devices.away(map, &self.all_silent(now, map));
        away.into_keys().collect()
    }

    /// Why none of those that are away is marked out, as the last decision had it; none: they may be, or all are.
    pub fn held(&self) -> Option<&str> {
        self.devices.held()
    }

    /// Whether a node was heard in this office, and not long ago.
    pub fn is_there(&self, now: Instant, node: NodeId) -> bool {
        self.heard.contains_key(&node) && self.silence(now, node) < self.patience.away_after
    }

    /// Forgets what is no longer in the map.
    pub fn forget(&mut self, map: &ClusterMap) {
        self.heard.retain(|node, _| map.node(*node).is_some());
        self.known.retain(|node, _| map.node(*node).is_some());
        self.chains
            .retain(|id, _| map.known_partition(*id).is_some());
        self.devices.forget(map);
        self.readers.forget(map);
    }

    /// How every chain is made up that was heard of since this leader took office.
    pub fn reports(&self) -> Vec<ChainReport> {
        self.chains.values().cloned().collect()
    }

    /// How every chain is doing, in the order of the partitions.
    pub fn verdicts(&self, now: Instant, map: &ClusterMap) -> Vec<(PartitionId, Verdict)> {
        let verdict = |p: &Partition| (p.id, self.verdict(now, map, p));
        map.partitions.iter().map(verdict).collect()
    }

    /// The change to make now, if any.
    pub fn decide(&mut self, now: Instant, map: &ClusterMap) -> Option<MapChange> {
        self.know(now, map);
        let (silent, pause) = (self.all_silent(now, map), self.patience.away_after * PAUSES);
        let out = self.devices.look(now, map, &silent, pause);
        if let Some(change) = partitions::ended(map, &self.chains) {
            return Some(change);
        }
        let raised = self.readers.decide(map, |node| self.is_there(now, node));
        if raised.is_some() {
            return raised;
        }
        let mut well = true;
        for partition in &map.partitions {
            match self.verdict(now, map, partition) {
                Verdict::Replace { out, with, crowd } => {
                    return Some(MapChange::ReplaceChainMember {
                        partition: partition.id,
                        out,
                        with,
                        crowd,
                    });
                }
                verdict => well &= verdict == Verdict::Well,
            }
        }
        if out.is_some() {
            return out;
        }
        // While somebody is away there is enough to do.
        if !well {
            self.rests = now;
            return None;
        }
        let pause = self.patience.partitions.pause;
        let change = partitions::decide(&self.patience.partitions, map, &self.chains)?;
        let waits = !change.urgent && now.since(self.rests) < pause;
        if waits {
            return None;
        }
        self.rests = now;
        Some(change.change)
    }

    fn verdict(&self, now: Instant, map: &ClusterMap, partition: &Partition) -> Verdict {
        let wanted = &partition.chain.devices;
        let node = |no: DeviceNo| map.device(no).map(|d| d.node);
        let there = |no: DeviceNo| node(no).is_some_and(|n| self.is_there(now, n));
        let silent = |no: DeviceNo| {
            node(no).is_none_or(|n| self.silence(now, n) >= self.patience.replace_after)
        };
        let draining = |no: DeviceNo| node(no).is_some_and(|n| map.draining.contains(&n));
        let silent = wanted.iter().copied().find(|no| silent(*no));
        let Some(out) = silent.or_else(|| wanted.iter().copied().find(|no| draining(*no))) else {
            // A leader new in office has heard from nobody: that alone is no news.
            let quiet = |no: DeviceNo| {
                node(no).is_none_or(|n| self.silence(now, n) >= self.patience.away_after)
            };
            return match wanted.iter().copied().find(|no| quiet(*no)) {
                Some(member) => Verdict::Waiting { member },
                None => Verdict::Well,
            };
        };
        let Some(report) = self.chains.get(&partition.id) else {
            return Verdict::Unreported { member: out };
        };
        let (members, of) = (&report.members, report.members.len());
        let away = members.iter().filter(|no| !there(**no)).count();
        if 2 * away >= of {
            return Verdict::MajorityAway { away, members: of };
        }
        let resting = report.config % 2 == 1;
        let arrived = members.iter().collect::<BTreeSet<_>>() == wanted.iter().collect();
        // A spare that went away before the chain took it in can be given up for another.
        let never_came = !members.contains(&out);
        if !resting || !(arrived || never_came) {
            return Verdict::Changing { member: out };
        }
        let usable = |n: NodeId| self.is_there(now, n);
        let spares = spares(map, partition.id, out, usable);
        // Whoever is in the chain already, but no longer wanted, is on its way out.
        let spare = spares.iter().find(|s| !members.contains(&s.device));
        match spare {
            Some(spare) => Verdict::Replace {
                out,
                with: spare.device,
                crowd: spare.crowded,
            },
            None => Verdict::NoSpare { member: out },
        }
    }
}
