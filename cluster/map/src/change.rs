//! What may be changed in a map, and what each change demands.
//!
//! Invariants:
//! - [`MapChange::apply`] is a function of its arguments: every control member comes to the same map;
//! - its result is valid, is of the next epoch, and keeps every group that there was, for manifests name them;
//! - a number or a name that was in use once is never given to another node or device;
//! - a chain changes by one member at a time, and founders never.

use std::collections::BTreeSet;

use ashlar_layout::ids::{DeviceId, DeviceNo, Epoch, NodeId, PartitionId};
use serde::{Deserialize, Serialize};

use crate::map::{ClusterMap, Core, Device, Domains, MapError, Node, Partition, PlacementGroup};
use crate::partition;
use crate::spare::spares;

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapChange {
    /// A node joins, with its devices.
    AddNode {
        /// The node.
        node: Node,
        /// Its devices; each names the node.
        devices: Vec<Device>,
        /// The groups that its devices make possible. A caller leaves them empty: who proposes the
        /// change computes them ([`MapChange::resolve`]), so that all members log the same ones.
        #[serde(default)]
        groups: Vec<PlacementGroup>,
    },
    /// A node is to be emptied: nothing new is put on it, and spares replace its members of chains.
    DrainNode {
        /// Which node.
        node: NodeId,
    },
    /// A node is no longer to be emptied.
    UndrainNode {
        /// Which node.
        node: NodeId,
    },
    /// A node leaves. It must be in no chain and in no group.
    RemoveNode {
        /// Which node.
        node: NodeId,
    },
    /// A node stands somewhere else.
    SetDomains {
        /// Which node.
        node: NodeId,
        /// Where it stands now.
        domains: Domains,
    },
    /// A node listens somewhere else.
    SetCores {
        /// Which node.
        node: NodeId,
        /// Its data cores, in order.
        cores: Vec<Core>,
    },
    /// A device takes another's place in a chain.
    ReplaceChainMember {
        /// Whose chain.
        partition: PartitionId,
        /// The member that leaves.
        out: DeviceNo,
        /// The one that comes.
        with: DeviceNo,
        /// Whether it may share a domain with a member that stays though others need not: only when
        /// those others are known to be away.
        #[serde(default)]
        crowd: bool,
    },
    /// What a partition holds from a place on becomes another partition's, of the next number, with the same chain.
    SplitPartition {
        /// Which partition.
        partition: PartitionId,
        /// The first bucket of the other one,
        bucket: String,
        /// and its first key in there; empty: all of that bucket.
        key: String,
    },
    /// Two neighbours with the same chain become one partition, of the next number.
    MergePartitions {
        /// The first one in the order.
        left: PartitionId,
        /// The other one.
        right: PartitionId,
    },
    /// Those that became this partition are of no use any more: it serves.
    ForgetEnding {
        /// The partition.
        into: PartitionId,
    },
    /// Nothing is waited for from these devices any more: what is on them may be put elsewhere.
    MarkOut {
        /// Which devices, one at the least; none of them is out.
        devices: Vec<DeviceNo>,
    },
    /// They serve again.
    MarkIn {
        /// Which devices, one at the least; all of them are out.
        devices: Vec<DeviceNo>,
    },
    /// Newer journal entries may be written: all nodes read them. This is never taken back.
    RaiseEntries {
        /// The newest version that may be.
        to: u16,
    },
    /// The whole map. Groups stay, control members stay, each chain changes by one member at most.
    SetMap {
        /// The new map; its epoch does not matter.
        map: Box<ClusterMap>,
    },
}

/// Why a change was refused. The map is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ChangeError {
    /// There is no such node.
    #[error("there is no node {0} in the map")]
    UnknownNode(NodeId),
    /// There is no such device.
    #[error("there is no device {0} in the map")]
    UnknownDevice(DeviceNo),
    /// There is no such partition.
    #[error("there is no partition {0} in the map")]
    UnknownPartition(PartitionId),
    /// The number belongs to a node, or did.
    #[error("the node number {0} is in use, or was once: numbers are never given twice")]
    NodeReused(NodeId),
    /// The number belongs to a device, or did.
    #[error("the device number {0} is in use, or was once: numbers are never given twice")]
    DeviceReused(DeviceNo),
    /// The name belongs to a device, or did.
    #[error(
        "the device named {0} is in the cluster, or was once: format it anew before it joins again"
    )]
    NameReused(DeviceId),
    /// A device that joins with a node says that it is in another.
    #[error(
        "device {device} says that it is in node {says}, not in the node {node} that it comes with"
    )]
    WrongNode {
        /// Which device.
        device: DeviceNo,
        /// The node that joins.
        node: NodeId,
        /// What the device says.
        says: NodeId,
    },
    /// The node cannot leave yet.
    #[error(
        "node {node} is still in {chains} chains and {groups} placement groups: drain it, and wait until it is in none"
    )]
    StillInUse {
        /// Which node.
        node: NodeId,
        /// Chains that one of its devices is in.
        chains: usize,
        /// Groups that one of its devices is in.
        groups: usize,
    },
    /// The node is draining, or is not.
    #[error("node {node} {}", if *.draining { "is draining already" } else { "is not draining" })]
    Draining {
        /// Which node.
        node: NodeId,
        /// Whether it is.
        draining: bool,
    },
    /// The device is out, or is not.
    #[error("device {device} is {} already", if *.out { "out" } else { "in" })]
    Out {
        /// Which device.
        device: DeviceNo,
        /// Whether it is.
        out: bool,
    },
    /// A change of devices that names none.
    #[error("the change names no device: name one at the least")]
    NoDevice,
    /// The device is not in the chain.
    #[error("device {device} is not in the chain of partition {partition}")]
    NotAMember {
        /// Whose chain.
        partition: PartitionId,
        /// Which device.
        device: DeviceNo,
    },
    /// The device is in the chain already, or its node is, or it is draining.
    #[error("device {device} cannot join the chain of partition {partition}: {why}")]
    NotASpare {
        /// Whose chain.
        partition: PartitionId,
        /// Which device.
        device: DeviceNo,
        /// What stands against it.
        why: String,
    },
    /// Another device would keep the fault domains apart.
    #[error(
        "device {device} would share a fault domain with another member of the chain of partition {partition}, \
         and device {better} would not"
    )]
    Crowded {
        /// Whose chain.
        partition: PartitionId,
        /// Which device.
        device: DeviceNo,
        /// The best device that would keep them apart.
        better: DeviceNo,
    },
    /// A partition cannot be split there.
    #[error("partition {partition} cannot be split at {place}: {why}")]
    NoBorder {
        /// Which partition.
        partition: PartitionId,
        /// The bucket and the key.
        place: String,
        /// Why not.
        why: String,
    },
    /// Two partitions cannot be merged.
    #[error("partitions {left} and {right} cannot be merged: {why}")]
    NoMerge {
        /// The first one.
        left: PartitionId,
        /// The other one.
        right: PartitionId,
        /// Why not.
        why: String,
    },
    /// Entries of that version may be written already.
    #[error(
        "journal entries up to version {is} may be written already, and that is never taken back: not {to}"
    )]
    Raised {
        /// What may be.
        is: u16,
        /// What was asked for.
        to: u16,
    },
    /// The program that is asked does not know entries of that version.
    #[error(
        "journal entries up to version {to} cannot be allowed by a program that reads them up to {reads}: start all \
         nodes with the newer version first"
    )]
    Unread {
        /// What was asked for.
        to: u16,
        /// What it reads.
        reads: u16,
    },
    /// A node that wants to join does not read what is written.
    #[error(
        "node {node} reads journal entries up to version {reads}, and in this cluster they are written up to {entries}: \
         install the version of the program that the other nodes have"
    )]
    OlderNode {
        /// Which node.
        node: NodeId,
        /// What it reads.
        reads: u16,
        /// What is written.
        entries: u16,
    },
    /// A whole map that changes what stays.
    #[error("the new map changes {0}, which cannot be changed so")]
    Fixed(String),
    /// The result would not be a valid map.
    #[error("{0}")]
    Invalid(String),
}

impl From<MapError> for ChangeError {
    fn from(error: MapError) -> ChangeError {
        ChangeError::Invalid(error.to_string())
    }
}

/// What left the map, so that it never comes back as something else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Numbers of nodes.
    pub nodes: BTreeSet<NodeId>,
    /// Numbers of devices.
    pub devices: BTreeSet<DeviceNo>,
    /// Names of devices.
    pub names: BTreeSet<DeviceId>,
}

impl History {
    /// Remembers what is in `before` and not in `after`.
    pub fn note(&mut self, before: &ClusterMap, after: &ClusterMap) {
        for node in before.nodes.iter().filter(|n| after.node(n.id).is_none()) {
            self.nodes.insert(node.id);
        }
        for device in &before.devices {
            if after.device(device.no).is_none() {
                self.devices.insert(device.no);
                self.names.insert(device.id);
            }
        }
    }
}

impl MapChange {
    /// The change with all that is to be computed once and not by every member: the groups of new devices.
    pub fn resolve(self, map: &ClusterMap) -> MapChange {
        let MapChange::AddNode { node, devices, .. } = self else {
            return self;
        };
        let mut with = map.clone();
        with.nodes.push(node.clone());
        with.devices.extend(devices.iter().cloned());
        // Where no group can be placed the node still joins: its devices can hold journals.
        let groups = crate::solve::extend(&with, map.epoch.0).unwrap_or_default();
        MapChange::AddNode {
            node,
            devices,
            groups,
        }
    }

    /// Whether who reads entries up to this version may propose it for this map. Not a part of [`MapChange::apply`],
    /// which must not depend on who applies it, nor on what a program of before has forgotten of the map: what was
    /// agreed on counts for older members too, and ends them.
    ///
    /// # Errors
    /// If it allows more than that, for nobody who proposes it could go on; or no more than the map; or if a whole map
    /// says something else than this one.
    pub fn check_proposer(&self, reads: u16, map: &ClusterMap) -> Result<(), ChangeError> {
        match self {
            MapChange::RaiseEntries { to } if *to > reads => {
                Err(ChangeError::Unread { to: *to, reads })
            }
            MapChange::RaiseEntries { to } if *to <= map.entries => Err(ChangeError::Raised {
                is: map.entries,
                to: *to,
            }),
            MapChange::SetMap { map: new } if new.entries != map.entries => {
                let what = "the newest version of journal entries that may be written";
                Err(ChangeError::Fixed(what.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// The map after this change. `history` says what may not come back.
    pub fn apply(&self, map: &ClusterMap, history: &History) -> Result<ClusterMap, ChangeError> {
        let mut next = map.clone();
        next.epoch = Epoch(map.epoch.0.saturating_add(1));
        match self {
            MapChange::AddNode {
                node,
                devices,
                groups,
            } => add_node(&mut next, history, node, devices, groups)?,
            MapChange::DrainNode { node } => {
                known(map, *node)?;
                if map.draining.contains(node) {
                    return Err(draining(*node, true));
                }
                next.draining.push(*node);
                next.draining.sort_unstable();
            }
            MapChange::UndrainNode { node } => {
                known(map, *node)?;
                if !map.draining.contains(node) {
                    return Err(draining(*node, false));
                }
                next.draining.retain(|n| n != node);
            }
            MapChange::RemoveNode { node } => remove_node(&mut next, *node)?,
            MapChange::SetDomains { node, domains } => {
                node_mut(&mut next, *node)?.domains = domains.clone();
            }
            MapChange::SetCores { node, cores } => {
                node_mut(&mut next, *node)?.cores = cores.clone();
            }
            MapChange::ReplaceChainMember {
                partition,
                out,
                with,
                crowd,
            } => replace(&mut next, *partition, *out, *with, *crowd)?,
            MapChange::SplitPartition {
                partition,
                bucket,
                key,
            } => partition::split(&mut next, *partition, bucket, key)?,
            MapChange::MergePartitions { left, right } => {
                partition::merge(&mut next, *left, *right)?;
            }
            MapChange::ForgetEnding { into } => {
                next.ending.retain(|it| it.into != *into);
                if next.ending.len() == map.ending.len() {
                    return Err(ChangeError::UnknownPartition(*into));
                }
            }
            MapChange::MarkOut { devices } => mark(&mut next, devices, true)?,
            MapChange::MarkIn { devices } => mark(&mut next, devices, false)?,
            // Never refused: a member that was set back to a program of before has lost what the map said of it, and
            // has to come to the same epoch, and then to the same map, as the others.
            MapChange::RaiseEntries { to } => next.entries = next.entries.max(*to),
            MapChange::SetMap { map: new } => {
                keeps(map, new, history)?;
                let epoch = next.epoch;
                next = ClusterMap::clone(new);
                next.epoch = epoch;
                next.entries = map.entries;
            }
        }
        next.validate()?;
        Ok(next)
    }
}

fn draining(node: NodeId, draining: bool) -> ChangeError {
    ChangeError::Draining { node, draining }
}

fn known(map: &ClusterMap, node: NodeId) -> Result<&Node, ChangeError> {
    map.node(node).ok_or(ChangeError::UnknownNode(node))
}

fn node_mut(map: &mut ClusterMap, node: NodeId) -> Result<&mut Node, ChangeError> {
    let found = map.nodes.iter_mut().find(|n| n.id == node);
    found.ok_or(ChangeError::UnknownNode(node))
}

/// Refuses a node whose number is or was in use.
fn fresh_node(map: &ClusterMap, history: &History, node: NodeId) -> Result<(), ChangeError> {
    if map.node(node).is_some() || history.nodes.contains(&node) {
        return Err(ChangeError::NodeReused(node));
    }
    Ok(())
}

/// Refuses a device whose number or name is or was in use.
fn fresh_device(map: &ClusterMap, history: &History, device: &Device) -> Result<(), ChangeError> {
    if map.device(device.no).is_some() || history.devices.contains(&device.no) {
        return Err(ChangeError::DeviceReused(device.no));
    }
    let named = map.devices.iter().any(|d| d.id == device.id);
    if named || history.names.contains(&device.id) {
        return Err(ChangeError::NameReused(device.id));
    }
    Ok(())
}

fn add_node(
    next: &mut ClusterMap,
    history: &History,
    node: &Node,
    devices: &[Device],
    groups: &[PlacementGroup],
) -> Result<(), ChangeError> {
    fresh_node(next, history, node.id)?;
    next.nodes.push(node.clone());
    for device in devices {
        if device.node != node.id {
            return Err(ChangeError::WrongNode {
                device: device.no,
                node: node.id,
                says: device.node,
            });
        }
        fresh_device(next, history, device)?;
        next.devices.push(device.clone());
    }
    next.groups.extend(groups.iter().cloned());
    // Stable: the groups of a class stay in the order of their numbers.
    next.groups.sort_by_key(|g| std::cmp::Reverse(g.class.k));
    Ok(())
}

fn remove_node(next: &mut ClusterMap, node: NodeId) -> Result<(), ChangeError> {
    known(next, node)?;
    let devices: BTreeSet<DeviceNo> = next
        .devices
        .iter()
        .filter(|d| d.node == node)
        .map(|d| d.no)
        .collect();
    let uses = |list: &[DeviceNo]| list.iter().any(|no| devices.contains(no));
    let chains = next.all_partitions();
    let chains = chains.filter(|p| uses(&p.chain.devices)).count();
    let groups = next.groups.iter().filter(|g| uses(&g.devices)).count();
    if chains + groups > 0 {
        return Err(ChangeError::StillInUse {
            node,
            chains,
            groups,
        });
    }
    next.nodes.retain(|n| n.id != node);
    next.devices.retain(|d| d.node != node);
    next.draining.retain(|n| *n != node);
    next.out.retain(|no| !devices.contains(no));
    Ok(())
}

/// Takes devices out, or in again.
fn mark(next: &mut ClusterMap, devices: &[DeviceNo], out: bool) -> Result<(), ChangeError> {
    if devices.is_empty() {
        return Err(ChangeError::NoDevice);
    }
    for device in devices.iter().copied() {
        if next.device(device).is_none() {
            return Err(ChangeError::UnknownDevice(device));
        }
        let changed = match out {
            true => next.out.insert(device),
            false => next.out.remove(&device),
        };
        if !changed {
            return Err(ChangeError::Out { device, out });
        }
    }
    Ok(())
}

fn replace(
    next: &mut ClusterMap,
    partition: PartitionId,
    out: DeviceNo,
    with: DeviceNo,
    crowd: bool,
) -> Result<(), ChangeError> {
    let found = next.partition_by_id(partition);
    let members = &found
        .ok_or(ChangeError::UnknownPartition(partition))?
        .chain
        .devices;
    let Some(place) = members.iter().position(|no| *no == out) else {
        return Err(ChangeError::NotAMember {
            partition,
            device: out,
        });
    };
    let node = next
        .device(with)
        .ok_or(ChangeError::UnknownDevice(with))?
        .node;
    let spares = spares(next, partition, out, |_| true);
    let Some(chosen) = spares.iter().find(|s| s.device == with) else {
        let why = if members.contains(&with) {
            "it is a member already".to_owned()
        } else if next.draining.contains(&node) {
            format!("its node {node} is draining")
        } else {
            format!("its node {node} holds another member")
        };
        return Err(ChangeError::NotASpare {
            partition,
            device: with,
            why,
        });
    };
    if chosen.crowded
        && !crowd
        && let Some(better) = spares.iter().find(|s| !s.crowded)
    {
        return Err(ChangeError::Crowded {
            partition,
            device: with,
            better: better.device,
        });
    }
    for partition in next.partitions.iter_mut().filter(|p| p.id == partition) {
        if let Some(member) = partition.chain.devices.get_mut(place) {
            *member = with;
        }
    }
    Ok(())
}

/// Checks that a whole new map keeps what must stay.
fn keeps(map: &ClusterMap, new: &ClusterMap, history: &History) -> Result<(), ChangeError> {
    let fixed = |what: &str| Err(ChangeError::Fixed(what.to_owned()));
    if new.cluster != map.cluster {
        return fixed("the cluster that it belongs to");
    }
    if new.control != map.control {
        return fixed("the control members");
    }
    if new.class != map.class || new.stripe_data != map.stripe_data {
        return fixed("the durability class or the size of a stripe");
    }
    for group in &map.groups {
        if new.group(group.id) != Some(group) {
            return Err(ChangeError::Fixed(format!("placement group {}", group.id)));
        }
    }
    for node in &new.nodes {
        if map.node(node.id).is_none() {
            fresh_node(map, history, node.id)?;
        }
    }
    for device in &new.devices {
        match map.device(device.no) {
            None => fresh_device(map, history, device)?,
            Some(old) if old == device => {}
            Some(_) => return Err(ChangeError::Fixed(format!("device {}", device.no))),
        }
    }
    let places = |map: &ClusterMap| -> Vec<_> {
        let one = |p: &Partition| (p.id, p.start.clone(), p.parents.clone());
        map.partitions.iter().map(one).collect()
    };
    if places(new) != places(map)
        || new.ending != map.ending
        || new.partition_numbers != map.partition_numbers
    {
        return fixed("the partitions");
    }
    for partition in &new.partitions {
        let Some(old) = map.partition_by_id(partition.id) else {
            continue;
        };
        if partition.founders != old.founders {
            return Err(ChangeError::Fixed(format!(
                "the founders of partition {}",
                partition.id
            )));
        }
        let before: BTreeSet<&DeviceNo> = old.chain.devices.iter().collect();
        let after: BTreeSet<&DeviceNo> = partition.chain.devices.iter().collect();
        if before.difference(&after).count() > 1 || after.difference(&before).count() > 1 {
            return Err(ChangeError::Fixed(format!(
                "more than one member of the chain of partition {}",
                partition.id
            )));
        }
    }
    Ok(())
}
