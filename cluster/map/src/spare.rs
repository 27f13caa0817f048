//! The choice of a spare: which device takes the place of a member of a chain.
//!
//! Invariants:
//! - the same map and the same set of usable nodes give the same order, on every machine;
//! - a spare is never on the node of a member that stays, and never on a node that is draining;
//! - one in a domain of its own comes before one that shares a domain with a member that stays.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId};

use crate::map::{ClusterMap, Device};
use crate::rules;

/// A device that can take a member's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Which device.
    pub device: DeviceNo,
    /// Whether its domain, at the level that the map declares, holds a member that stays.
    pub crowded: bool,
}

/// The devices that can take the place of `out` in the chain of `partition`, the best first: in a domain of
/// its own, in as few chains as can be, large, of a low number. Only devices of nodes that `usable` accepts.
pub fn spares(
    map: &ClusterMap,
    partition: PartitionId,
    out: DeviceNo,
    usable: impl Fn(NodeId) -> bool,
) -> Vec<Spare> {
    let Some(partition) = map.partition_by_id(partition) else {
        return Vec::new();
    };
    let level = rules::chain_level(map);
    let staying: Vec<&Device> = partition
        .chain
        .devices
        .iter()
        .filter(|no| **no != out)
        .filter_map(|no| map.device(*no))
        .collect();
    let nodes: BTreeSet<NodeId> = staying.iter().map(|d| d.node).collect();
    let places: BTreeSet<_> = staying
        .iter()
        .filter_map(|d| rules::place(map, d, level))
        .collect();
    let mut chains: BTreeMap<DeviceNo, usize> = BTreeMap::new();
    for no in map.partitions.iter().flat_map(|p| &p.chain.devices) {
        *chains.entry(*no).or_default() += 1;
    }
    let mut found: Vec<(bool, usize, u64, DeviceNo)> = map
        .devices
        .iter()
        .filter(|d| d.no != out && !nodes.contains(&d.node))
        .filter(|d| !map.draining.contains(&d.node) && usable(d.node))
        .filter_map(|d| {
            let crowded = places.contains(&rules::place(map, d, level)?);
            let load = chains.get(&d.no).copied().unwrap_or(0);
            Some((crowded, load, u64::MAX - d.size, d.no))
        })
        .collect();
    found.sort_unstable();
    found
        .into_iter()
        .map(|(crowded, _, _, device)| Spare { device, crowded })
        .collect()
}
