//! When partitions are split and merged: functions of the map and of what the heads report.
//!
//! Invariants:
//! - one change at a time: nothing is changed before all that were changed last are made, and serve;
//! - what is merged is far smaller than what is split, so that nothing is split and merged by turns;
//! - what a partition was made of is forgotten only when it has been seen to serve.

use std::collections::BTreeMap;
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, MapChange, Partition, spares};
use ashlar_layout::ids::{DeviceNo, PartitionId};
use serde::{Deserialize, Serialize};

use crate::policy::ChainReport;

/// What the head of a partition says of its load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionLoad {
    /// Objects, about, and rather too many.
    pub objects: u64,
    /// Bytes of its index.
    pub bytes: u64,
    /// Requests that came in a second, by the last second.
    pub requests_per_s: u64,
    /// A place (bucket and key) that divides it about in half; none if there is little in it.
    pub middle: Option<(String, String)>,
    /// Somebody wanted to make or remove a bucket that reaches from this partition into the next one.
    pub spans: bool,
}

/// When partitions are split and merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLimits {
    /// One with more objects is split.
    pub split_objects: u64,
    /// So is one to which more requests come in a second, if it has a sixteenth of that many objects.
    pub split_requests: u64,
    /// Two neighbours that have fewer objects together, and a quarter of the requests that split one, are merged.
    pub merge_objects: u64,
    /// Partitions for each device at most; beyond it none is split.
    pub per_device: usize,
    /// How long after a change, or after somebody was away, the next one comes at the soonest.
    pub pause: Duration,
}

impl PartitionLimits {
    /// As they are if nobody says otherwise.
    pub const DEFAULT: PartitionLimits = PartitionLimits {
        split_objects: 4_000_000,
        split_requests: 40_000,
        merge_objects: 200_000,
        per_device: 16,
        pause: Duration::from_secs(10),
    };
}

impl Default for PartitionLimits {
    fn default() -> PartitionLimits {
        PartitionLimits::DEFAULT
    }
}

/// A change, and whether somebody waits for it.
pub(crate) struct Due {
    pub(crate) change: MapChange,
    pub(crate) urgent: bool,
}

type Reports = BTreeMap<PartitionId, ChainReport>;

fn load(reports: &Reports, id: PartitionId) -> Option<&PartitionLoad> {
    reports.get(&id)?.load.as_ref()
}

/// Those of which a partition was made that serves by now.
pub(crate) fn ended(map: &ClusterMap, reports: &Reports) -> Option<MapChange> {
    let serves = |id: PartitionId| load(reports, id).is_some();
    // One that ends itself, and of which others are to become a part still, is needed for those.
    let heir = |id: PartitionId| map.ending.iter().any(|it| it.into == id);
    let gone = |into: PartitionId| {
        let parts = map.ending.iter().filter(move |it| it.into == into);
        parts.map(|it| it.partition.id)
    };
    // Nor one that others are still to be made of: whoever was taught its heir has nothing of those.
    let with = |id: PartitionId| {
        let ending = map.ending.iter().find(|it| it.partition.id == id);
        ending.map(|it| it.into)
    };
    let children = |id: PartitionId| {
        let children = map.all_partitions().filter(move |p| p.parents == [id]);
        let mut others = children.filter(|child| with(child.id) != with(id));
        others.all(|child| serves(child.id))
    };
    let mut ending = map.ending.iter().map(|it| it.into);
    let into =
        ending.find(|into| serves(*into) && !gone(*into).any(heir) && gone(*into).all(children))?;
    Some(MapChange::ForgetEnding { into })
}

/// The change to make now, if any.
pub(crate) fn decide(limits: &PartitionLimits, map: &ClusterMap, reports: &Reports) -> Option<Due> {
    if !map.ending.is_empty() {
        return None;
    }
    let loads: Option<Vec<(&Partition, &PartitionLoad)>> = map
        .partitions
        .iter()
        .map(|p| Some((p, load(reports, p.id)?)))
        .collect();
    // One that was made just now has not told yet.
    let loads = loads?;
    let pairs = || {
        loads
            .windows(2)
            .filter_map(|pair| <&[_; 2]>::try_from(pair).ok())
    };
    for [(left, load), (right, _)] in pairs() {
        if load.spans && right.start.0 == end_bucket(right) {
            let change = together(map, reports, left, right)?;
            let urgent = true;
            return Some(Due { change, urgent });
        }
    }
    let urgent = false;
    let most = limits.per_device.saturating_mul(map.devices.len());
    if map.partitions.len() < most {
        let hot = |load: &PartitionLoad| {
            load.requests_per_s > limits.split_requests && load.objects > limits.split_requests / 16
        };
        let split = loads.iter().find_map(|(partition, load)| {
            let wants = load.objects > limits.split_objects || hot(load);
            let (bucket, key) = load.middle.clone().filter(|_| wants)?;
            let change = MapChange::SplitPartition {
                partition: partition.id,
                bucket,
                key,
            };
            Some(Due { change, urgent })
        });
        if split.is_some() {
            return split;
        }
    }
    for [(left, one), (right, other)] in pairs() {
        let few = one.objects + other.objects < limits.merge_objects;
        let calm = (one.requests_per_s + other.requests_per_s) * 4 < limits.split_requests;
        // Those that were founded apart stay so.
        let ours = !right.parents.is_empty();
        if few && calm && ours && may_merge(reports, left, right) {
            let (left, right) = (left.id, right.id);
            let change = MapChange::MergePartitions { left, right };
            return Some(Due { change, urgent });
        }
    }
    None
}

/// The bucket that a partition begins inside of; else none's name.
fn end_bucket(partition: &Partition) -> &str {
    let (bucket, key) = &partition.start;
    if key.is_empty() { "" } else { bucket }
}

/// Whether a chain is what the map wants, and no change of it is under way.
fn rests(reports: &Reports, partition: &Partition) -> bool {
    let report = reports.get(&partition.id);
    report.is_some_and(|report| report.rests_on(&partition.chain.devices))
}

/// Whether two partitions are on the same devices by now, so that what closes one is soon followed by what closes the
/// other: until both are closed and one again, neither is served.
pub fn may_merge(
    reports: &BTreeMap<PartitionId, ChainReport>,
    left: &Partition,
    right: &Partition,
) -> bool {
    left.chain.is_where(&right.chain) && rests(reports, left) && rests(reports, right)
}

/// The next step to make two neighbours one: the second one is moved to where the first one is, member by member.
fn together(
    map: &ClusterMap,
    reports: &Reports,
    left: &Partition,
    right: &Partition,
) -> Option<MapChange> {
    if may_merge(reports, left, right) {
        let (left, right) = (left.id, right.id);
        return Some(MapChange::MergePartitions { left, right });
    }
    rests(reports, left).then_some(())?;
    move_step(map, reports, right, &left.chain.devices)
}

/// The next step on the way of a chain to these devices; none while its last change is under way, or if none of them
/// can take a place now.
pub fn move_step(
    map: &ClusterMap,
    reports: &BTreeMap<PartitionId, ChainReport>,
    partition: &Partition,
    to: &[DeviceNo],
) -> Option<MapChange> {
    rests(reports, partition).then_some(())?;
    let chain = &partition.chain.devices;
    let out = chain.iter().filter(|no| !to.contains(no));
    let mut steps = out.flat_map(|out| {
        let spares = spares(map, partition.id, *out, |_| true);
        let fits = spares
            .into_iter()
            .filter(|spare| to.contains(&spare.device));
        fits.map(|spare| (*out, spare)).collect::<Vec<_>>()
    });
    let (out, spare) = steps.next()?;
    Some(MapChange::ReplaceChainMember {
        partition: partition.id,
        out,
        with: spare.device,
        crowd: spare.crowded,
    })
}

#[cfg(test)]
mod tests {
    use ashlar_cluster_map::History;
    use ashlar_layout::ids::Term;

    use super::*;
    use crate::testing;

    const LIMITS: PartitionLimits = PartitionLimits {
        split_objects: 1000,
        split_requests: 1600,
        merge_objects: 100,
        per_device: 1,
        pause: Duration::ZERO,
    };

    fn load(objects: u64, requests_per_s: u64) -> PartitionLoad {
        PartitionLoad {
            objects,
            bytes: objects * 100,
            requests_per_s,
            middle: Some(("bucket".to_owned(), format!("{objects}"))),
            spans: false,
        }
    }

    fn reports(map: &ClusterMap, loads: &[PartitionLoad]) -> Reports {
        let each = map.partitions.iter().zip(loads);
        let report = each.map(|(partition, load)| ChainReport {
            partition: partition.id,
            term: Term(1),
            config: 1,
            members: partition.chain.devices.clone(),
            load: Some(load.clone()),
        });
        report.map(|report| (report.partition, report)).collect()
    }

    fn due(map: &ClusterMap, loads: &[PartitionLoad]) -> Option<MapChange> {
        decide(&LIMITS, map, &reports(map, loads)).map(|due| due.change)
    }

    fn apply(map: &ClusterMap, change: &MapChange) -> ClusterMap {
        change.apply(map, &History::default()).unwrap()
    }

    #[test]
    fn what_is_large_or_hot_is_split_and_what_is_small_and_calm_is_merged() {
        let map = testing::map(6, 3);
        assert_eq!(due(&map, &[load(1000, 1600)]), None);
        let large = due(&map, &[load(1001, 0)]).unwrap();
        assert!(matches!(large, MapChange::SplitPartition { .. }));
        let hot = due(&map, &[load(101, 1601)]);
        assert!(matches!(hot, Some(MapChange::SplitPartition { .. })));
        assert_eq!(
            due(&map, &[load(100, 1601)]),
            None,
            "there is nothing to be split"
        );
        let mut whole = load(1001, 0);
        whole.middle = None;
        assert_eq!(due(&map, &[whole]), None, "no place divides it");
        let two = apply(&map, &large);
        assert_eq!(
            due(&two, &[load(500, 0)]),
            None,
            "the child has not told yet"
        );
        assert_eq!(due(&two, &[load(50, 0), load(50, 0)]), None);
        assert_eq!(
            due(&two, &[load(50, 300), load(49, 101)]),
            None,
            "they are hot"
        );
        let merge = due(&two, &[load(50, 0), load(49, 0)]).unwrap();
        assert!(matches!(merge, MapChange::MergePartitions { .. }));
        let one = apply(&two, &merge);
        assert_eq!(due(&one, &[load(2000, 0)]), None, "two are ending still");
        assert_eq!(ended(&one, &Reports::new()), None);
        let forget = ended(&one, &reports(&one, &[load(99, 0)])).unwrap();
        assert!(apply(&one, &forget).ending.is_empty());
    }

    #[test]
    fn a_bucket_that_somebody_wants_removed_is_brought_together() {
        let map = testing::map(6, 3);
        let split = MapChange::SplitPartition {
            partition: PartitionId(0),
            bucket: "bucket".to_owned(),
            key: "k".to_owned(),
        };
        let map = apply(&map, &split);
        let chain = map.partitions[0].chain.devices.clone();
        let used: Vec<_> = chain
            .iter()
            .filter_map(|no| map.device(*no))
            .map(|d| d.node)
            .collect();
        let spare = map
            .devices
            .iter()
            .find(|d| !used.contains(&d.node))
            .unwrap();
        let moved = MapChange::ReplaceChainMember {
            partition: PartitionId(1),
            out: chain[2],
            with: spare.no,
            crowd: true,
        };
        let apart = apply(&map, &moved);
        let spans = || {
            let mut loads = [load(900, 0), load(900, 0)];
            loads[0].spans = true;
            loads
        };
        let back = due(&apart, &spans()).unwrap();
        assert!(
            matches!(back, MapChange::ReplaceChainMember { .. }),
            "{back:?}"
        );
        let together = apply(&apart, &back);
        let [first, second] = &together.partitions[..] else {
            panic!("two partitions")
        };
        assert!(first.chain.is_where(&second.chain));
        let merge = due(&together, &spans()).unwrap();
        assert!(matches!(merge, MapChange::MergePartitions { .. }));
        // Not while the chain is still on its way.
        let mut reports = reports(&apart, &spans());
        reports.get_mut(&PartitionId(1)).unwrap().config = 2;
        assert!(decide(&LIMITS, &apart, &reports).is_none());
    }
}
