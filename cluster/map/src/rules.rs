//! The rules that a map keeps: which domain a device is in, how many shards of a group one domain
//! may hold, and the whole check of a map.
//!
//! Invariants:
//! - the solver and the check use the same functions, so what is solved is valid;
//! - a check never panics, whatever the map says: it comes from a file or a socket.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_layout::limits;
use ashlar_layout::manifest::shard_len;
use ashlar_layout::version::ENTRY_VERSION_LEAST;

use crate::map::{Chain, Class, ClusterMap, Device, DomainLevel, Ending, MapError, PlacementGroup};

/// Replicas of a chain, at most.
const CHAIN_MAX: usize = 9;
/// Control members, at most.
pub const CONTROL_MAX: usize = 7;

/// Where a device stands, down to the level that the map declares. Labels count with all that
/// is above them: rack `1` of zone `a` is not rack `1` of zone `b`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place<'a> {
    region: &'a str,
    zone: &'a str,
    rack: &'a str,
    node: Option<NodeId>,
    device: Option<DeviceNo>,
}

impl DomainLevel {
    /// The level's name in the plural, for texts.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            DomainLevel::Region => "regions",
            DomainLevel::Zone => "zones",
            DomainLevel::Rack => "racks",
            DomainLevel::Host => "hosts",
            DomainLevel::Device => "devices",
        }
    }
}

/// The place of `device` at `level`; none if its node is unknown.
pub(crate) fn place<'a>(
    map: &'a ClusterMap,
    device: &Device,
    level: DomainLevel,
) -> Option<Place<'a>> {
    let node = map.node(device.node)?;
    let mut place = Place {
        region: &node.domains.region,
        zone: "",
        rack: "",
        node: None,
        device: None,
    };
    if level >= DomainLevel::Zone {
        place.zone = &node.domains.zone;
    }
    if level >= DomainLevel::Rack {
        place.rack = &node.domains.rack;
    }
    if level >= DomainLevel::Host {
        place.node = Some(node.id);
    }
    if level >= DomainLevel::Device {
        place.device = Some(device.no);
    }
    Some(place)
}

/// How many shards of a group of `class` one domain may hold, so that its loss leaves a margin
/// of one. With m = 1 nothing can leave a margin: there one shard is the most, and the loss of a
/// domain costs the whole margin but no data.
pub(crate) fn shards_per_domain_max(class: Class) -> usize {
    usize::from(class.m).saturating_sub(1).max(1)
}

/// The level that keeps the replicas of a chain apart: the map's, but never finer than the host,
/// for a chain inside of one host dies with it.
pub(crate) fn chain_level(map: &ClusterMap) -> DomainLevel {
    map.domain.min(DomainLevel::Host)
}

/// Checks all that the head of `map.rs` demands.
pub(crate) fn validate(map: &ClusterMap) -> Result<(), MapError> {
    check(map).map_err(MapError::Invalid)
}

fn check(map: &ClusterMap) -> Result<(), String> {
    check_class(map)?;
    check_nodes(map)?;
    check_devices(map)?;
    let places: BTreeMap<DeviceNo, Place<'_>> = map
        .devices
        .iter()
        .filter_map(|d| Some((d.no, place(map, d, map.domain)?)))
        .collect();
    check_groups(map, &places)?;
    check_partitions(map)?;
    check_control(map)?;
    check_draining(map)?;
    check_out(map)?;
    check_entries(map)
}

fn check_class(map: &ClusterMap) -> Result<(), String> {
    let class = map.class;
    if class.k == 0 || class.m == 0 || class.shards() > limits::SHARDS_MAX {
        return Err(format!("class {class} is out of bounds"));
    }
    if map.stripe_data == 0 {
        return Err("a stripe holds no data: stripe_data is 0".into());
    }
    Ok(())
}

fn check_nodes(map: &ClusterMap) -> Result<(), String> {
    let mut ids = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for node in &map.nodes {
        if node.id.0 == 0 {
            return Err("a node has the number 0: numbers start at 1".into());
        }
        if !ids.insert(node.id) {
            return Err(format!("two nodes have the number {}", node.id));
        }
        if node.cores.is_empty() {
            return Err(format!("node {} has no core", node.id));
        }
        for core in &node.cores {
            if core.address.is_empty() {
                return Err(format!("a core of node {} has no address", node.id));
            }
            if !addresses.insert(core.address.as_str()) {
                return Err(format!("two cores have the address {}", core.address));
            }
        }
    }
    Ok(())
}

fn check_devices(map: &ClusterMap) -> Result<(), String> {
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    for device in &map.devices {
        let no = device.no;
        if no.0 == 0 {
            return Err("a device has the number 0: numbers start at 1".into());
        }
        if !numbers.insert(no) {
            return Err(format!("two devices have the number {no}"));
        }
        if !names.insert(device.id) {
            return Err(format!("two devices have the name {}", device.id));
        }
        let Some(node) = map.node(device.node) else {
            return Err(format!(
                "device {no} is in node {}, which there is not",
                device.node
            ));
        };
        if node.cores.get(device.core as usize).is_none() {
            return Err(format!(
                "device {no} belongs to core {} of node {}, which has {}",
                device.core,
                node.id,
                node.cores.len()
            ));
        }
    }
    Ok(())
}

fn check_groups(map: &ClusterMap, places: &BTreeMap<DeviceNo, Place<'_>>) -> Result<(), String> {
    let Some(first) = map.groups.first() else {
        return Err("there is no placement group".into());
    };
    if first.class != map.class {
        return Err(format!(
            "the first group is of class {}, not {}",
            first.class, map.class
        ));
    }
    let mut ids = BTreeSet::new();
    let mut k_before = map.class.k;
    for group in &map.groups {
        if !ids.insert(group.id) {
            return Err(format!("two placement groups have the number {}", group.id));
        }
        if group.class.m != map.class.m || group.class.k > k_before {
            return Err(format!(
                "group {} of class {} is out of order: groups have {} parity shards, and ever smaller k",
                group.id, group.class, map.class.m
            ));
        }
        k_before = group.class.k;
        check_group(map, group, places)?;
    }
    Ok(())
}

fn check_group(
    map: &ClusterMap,
    group: &PlacementGroup,
    places: &BTreeMap<DeviceNo, Place<'_>>,
) -> Result<(), String> {
    let id = group.id;
    let class = group.class;
    if class.k == 0 || group.devices.len() != class.shards() {
        return Err(format!(
            "group {id} of class {class} has {} devices",
            group.devices.len()
        ));
    }
    if shard_len(map.stripe_data, class.k) > limits::SHARD_SIZE_MAX {
        return Err(format!(
            "a stripe of {} bytes makes shards of more than {} in group {id} of class {class}",
            map.stripe_data,
            limits::SHARD_SIZE_MAX
        ));
    }
    let mut seen = BTreeSet::new();
    let mut held: BTreeMap<&Place<'_>, usize> = BTreeMap::new();
    let most = shards_per_domain_max(class);
    for no in &group.devices {
        let Some(place) = places.get(no) else {
            return Err(format!("group {id} names device {no}, which there is not"));
        };
        if !seen.insert(*no) {
            return Err(format!("group {id} names device {no} twice"));
        }
        let count = held.entry(place).or_default();
        *count += 1;
        if *count > most {
            return Err(format!(
                "group {id} of class {class} puts {count} shards into one of the {}, where {most} is the most",
                map.domain.plural()
            ));
        }
    }
    Ok(())
}

fn check_partitions(map: &ClusterMap) -> Result<(), String> {
    let Some(first) = map.partitions.first() else {
        return Err("there is no partition".into());
    };
    if !first.start.0.is_empty() || !first.start.1.is_empty() {
        return Err("the first partition does not start at the very beginning".into());
    }
    let mut ids = BTreeSet::new();
    for partition in &map.partitions {
        if !ids.insert(partition.id) {
            return Err(format!("two partitions have the number {}", partition.id));
        }
        let (bucket, key) = &partition.start;
        if !key.is_empty() && partition.parents.is_empty() {
            return Err(format!(
                "partition {} starts inside of a bucket, at key {key:?} of {bucket:?}: only one that was split off \
                 from another one can, and the first ones start at a bucket's name with an empty key",
                partition.id
            ));
        }
        check_chain(map, &partition.chain)
            .map_err(|what| format!("the chain of partition {} {what}", partition.id))?;
        check_founders(&partition.founders)
            .map_err(|what| format!("the founders of partition {} {what}", partition.id))?;
    }
    for Ending { partition, into } in &map.ending {
        if !ids.insert(partition.id) {
            return Err(format!("two partitions have the number {}", partition.id));
        }
        if map.known_partition(*into).is_none() {
            return Err(format!(
                "partition {} becomes a part of partition {into}, which there is not",
                partition.id
            ));
        }
        check_chain(map, &partition.chain)
            .map_err(|what| format!("the chain of partition {} {what}", partition.id))?;
        check_founders(&partition.founders)
            .map_err(|what| format!("the founders of partition {} {what}", partition.id))?;
    }
    for pair in map.partitions.windows(2) {
        if let [before, after] = pair
            && before.start >= after.start
        {
            return Err(format!(
                "partition {} does not start after partition {}",
                after.id, before.id
            ));
        }
    }
    Ok(())
}

/// Replicas of a chain are on different nodes. Wider domains are kept apart by the solver and the choice of
/// spares as far as there are any: a third replica in a zone that holds one already is still better than none.
fn check_chain(map: &ClusterMap, chain: &Chain) -> Result<(), String> {
    check_odd(chain.devices.len())?;
    let mut seen = BTreeSet::new();
    for no in &chain.devices {
        let Some(device) = map.device(*no) else {
            return Err(format!("names device {no}, which there is not"));
        };
        if !seen.insert(device.node) {
            return Err(format!("has two replicas in node {}", device.node));
        }
    }
    Ok(())
}

fn check_founders(founders: &[DeviceNo]) -> Result<(), String> {
    check_odd(founders.len())?;
    let mut seen = BTreeSet::new();
    for no in founders {
        if no.0 == 0 {
            return Err("name device 0: numbers start at 1".into());
        }
        if !seen.insert(*no) {
            return Err(format!("name device {no} twice"));
        }
    }
    Ok(())
}

fn check_odd(replicas: usize) -> Result<(), String> {
    if replicas.is_multiple_of(2) {
        return Err(format!("has {replicas} replicas: it takes an odd number"));
    }
    if replicas > CHAIN_MAX {
        return Err(format!(
            "has {replicas} replicas: {} are the most",
            CHAIN_MAX
        ));
    }
    Ok(())
}

fn check_control(map: &ClusterMap) -> Result<(), String> {
    let members = &map.control;
    if members.is_empty() {
        return Ok(());
    }
    if members.len().is_multiple_of(2) || members.len() > CONTROL_MAX {
        return Err(format!(
            "there are {} control members: it takes an odd number, {CONTROL_MAX} at the most",
            members.len()
        ));
    }
    let mut ids = BTreeSet::new();
    let mut addresses: BTreeSet<&str> = map
        .nodes
        .iter()
        .flat_map(|n| &n.cores)
        .map(|c| c.address.as_str())
        .collect();
    for member in members {
        if member.id == 0 {
            return Err("a control member has the number 0: numbers start at 1".into());
        }
        if !ids.insert(member.id) {
            return Err(format!("two control members have the number {}", member.id));
        }
        if member.address.is_empty() {
            return Err(format!("control member {} has no address", member.id));
        }
        if !addresses.insert(&member.address) {
            return Err(format!(
                "control member {} has the address {}, which is taken",
                member.id, member.address
            ));
        }
    }
    Ok(())
}

fn check_draining(map: &ClusterMap) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for node in &map.draining {
        if map.node(*node).is_none() {
            return Err(format!(
                "node {node} is draining, and there is no such node"
            ));
        }
        if !seen.insert(*node) {
            return Err(format!("node {node} is draining twice"));
        }
    }
    Ok(())
}

fn check_out(map: &ClusterMap) -> Result<(), String> {
    let known: BTreeSet<DeviceNo> = map.devices.iter().map(|device| device.no).collect();
    match map.out.difference(&known).next() {
        Some(no) => Err(format!("device {no} is out, and there is no such device")),
        None => Ok(()),
    }
}

fn check_entries(map: &ClusterMap) -> Result<(), String> {
    if map.entries < ENTRY_VERSION_LEAST {
        return Err(format!(
            "journal entries up to version {} may be written: nobody reads less than {ENTRY_VERSION_LEAST}",
            map.entries
        ));
    }
    Ok(())
}
