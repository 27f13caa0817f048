//! The map as data, as JSON, and what must hold of it.
//!
//! Invariants, checked by [`ClusterMap::validate`] before a map is used:
//! - numbers of nodes and devices are unique; every device names a node and a core of it;
//! - a placement group has k + m different devices and keeps its fault-domain rule;
//! - partitions cover the whole (bucket, key) order without overlap, in order; those that are ending cover nothing;
//! - a chain is an odd number of devices on different nodes; so are the founders of a partition, which
//!   never change;
//! - control members are an odd number, or none, with different numbers and addresses;
//! - what is draining or out is in the map;
//! - entries of the journal that each program reads may be written.
//!
//! Of `entries`: it rises with [`crate::MapChange::RaiseEntries`] alone, and never falls; so of two maps the newer one
//! allows no less. Whoever goes by an older one writes no more than all read, and whoever reads less than the newest
//! one says does not serve ([`ClusterMap::check_reader`]).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, Epoch, NodeId, PartitionId, PgId};
use ashlar_layout::version::{ENTRY_VERSION, ENTRY_VERSION_LEAST};
use serde::{Deserialize, Serialize};

/// A durability class: k data shards, m parity shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Data shards.
    pub k: u8,
    /// Parity shards: any m may be lost.
    pub m: u8,
}

impl Class {
    /// k + m.
    pub fn shards(self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}

impl FromStr for Class {
    type Err = MapError;

    fn from_str(text: &str) -> Result<Self, MapError> {
        let parse = || {
            let (k, m) = text.split_once('+')?;
            let class = Class {
                k: k.parse().ok()?,
                m: m.parse().ok()?,
            };
            let fits =
                class.k >= 1 && class.m >= 1 && class.shards() <= ashlar_layout::limits::SHARDS_MAX;
            fits.then_some(class)
        };
        parse().ok_or_else(|| MapError::BadClass(text.to_owned()))
    }
}

impl Serialize for Class {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Class {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The levels of fault domains, widest first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DomainLevel {
    /// A region.
    Region,
    /// A zone of a region.
    Zone,
    /// A rack of a zone.
    Rack,
    /// A host: one node.
    #[default]
    Host,
    /// A single device.
    Device,
}

/// Where a node stands. The host is the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Domains {
    /// Its region.
    #[serde(default)]
    pub region: String,
    /// Its zone.
    #[serde(default)]
    pub zone: String,
    /// Its rack.
    #[serde(default)]
    pub rack: String,
}

/// One data core of a node: a thread with its own port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Where it listens, `host:port`.
    pub address: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number, from 1.
    pub id: NodeId,
    /// Its fault domains.
    #[serde(default)]
    pub domains: Domains,
    /// Its data cores, in order.
    pub cores: Vec<Core>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its number, from 1.
    pub no: DeviceNo,
    /// The name in its superblock.
    pub id: DeviceId,
    /// The node that it is in.
    pub node: NodeId,
    /// Index of the core that owns it.
    pub core: u32,
    /// Bytes.
    pub size: u64,
}

/// k + m devices that hold the shards of a stripe: shard `i` on `devices[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroup {
    /// Its number.
    pub id: PgId,
    /// Its class. A group of a smaller class than the cluster's is for when devices are away.
    pub class: Class,
    /// Its devices.
    pub devices: Vec<DeviceNo>,
}

/// The replicas of a partition's journal, as they are to be. Which of them is the head, and how far a
/// change of members has come, the chain itself decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The devices that hold them, in the order of the ring.
    pub devices: Vec<DeviceNo>,
}

impl Chain {
    /// Whether the other one is on the same devices, in whatever order.
    pub fn is_where(&self, other: &Chain) -> bool {
        self.devices.len() == other.devices.len()
            && self.devices.iter().all(|no| other.devices.contains(no))
    }
}

/// A contiguous range of the (bucket, key) order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PartitionFile")]
pub struct Partition {
    /// Its number.
    pub id: PartitionId,
    /// First bucket and key in it; two empty strings in the first partition.
    pub start: (String, String),
    /// Its chain.
    pub chain: Chain,
    /// The members of its chain when it was made: the first composition in its journal, fixed for ever.
    /// They may have left the cluster since. (Of one that was made of others: what its own log says counts.)
    pub founders: Vec<DeviceNo>,
    /// The partitions that it was or is to be made of: one that it is split off from, or two that become it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<PartitionId>,
}

/// A partition that becomes a part of another one: it is served nowhere, but its replicas go on until that one serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The partition, as it was.
    pub partition: Partition,
    /// What it becomes a part of.
    pub into: PartitionId,
}

/// A partition as a file may have it: one that was written before chains could change has no
/// founders, and its chain is as it was founded.
#[derive(Deserialize)]
struct PartitionFile {
    id: PartitionId,
    start: (String, String),
    chain: Chain,
    #[serde(default)]
    founders: Vec<DeviceNo>,
    #[serde(default)]
    parents: Vec<PartitionId>,
}

impl From<PartitionFile> for Partition {
    fn from(file: PartitionFile) -> Partition {
        let founders = if file.founders.is_empty() {
            file.chain.devices.clone()
        } else {
            file.founders
        };
        Partition {
            id: file.id,
            start: file.start,
            chain: file.chain,
            founders,
            parents: file.parents,
        }
    }
}

/// A member of the control plane, which agrees on the map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ControlMember {
    /// Its number, from 1; not a node's.
    pub id: u32,
    /// Where it listens, `host:port`.
    pub address: String,
}

/// Everything that has to be agreed on. Changes only with its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Whose map this is.
    pub cluster: ClusterId,
    /// Its version.
    pub epoch: Epoch,
    /// The class of new objects while enough devices are healthy.
    pub class: Class,
    /// Bytes of data in a full stripe.
    pub stripe_data: u32,
    /// Losing any one domain of this level leaves a margin of at least one.
    pub domain: DomainLevel,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Placement groups, the cluster's class first, then ever smaller k.
    pub groups: Vec<PlacementGroup>,
    /// Partitions, in order of their start.
    pub partitions: Vec<Partition>,
    /// Partitions that were merged, until what they became serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ending: Vec<Ending>,
    /// Numbers of partitions below this one were given out, and are never given out again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub partition_numbers: u32,
    /// The members of the control plane; none where the map is a file that nobody changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<ControlMember>,
    /// Nodes that are to be emptied: nothing new is put on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<NodeId>,
    /// Devices that nothing is waited for from any more: what is on them may be put elsewhere. They are of the cluster
    /// all the same, and come in again when they serve.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub out: BTreeSet<DeviceNo>,
    /// The newest version of journal entries that may be written: all nodes read it. A map of before there was this
    /// says that it is the least that any of its nodes reads.
    #[serde(default = "least", skip_serializing_if = "is_least")]
    pub entries: u16,
}

fn least() -> u16 {
    ENTRY_VERSION_LEAST
}

fn is_least(entries: &u16) -> bool {
    *entries == ENTRY_VERSION_LEAST
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What is wrong with a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Not a class.
    #[error(
        "'{0}' is not a durability class: it takes K+M with K >= 1, M >= 1 and K+M <= 64, such as 4+2"
    )]
    BadClass(String),
    /// Not JSON, or not a map.
    #[error("the cluster map cannot be read: {0}")]
    Parse(String),
    /// A rule is broken.
    #[error("the cluster map is not valid: {0}")]
    Invalid(String),
    /// Others write what this program cannot read.
    #[error(
        "in this cluster journal entries up to version {entries} are written, and this program reads them up to \
         {reads}: start the node with the version of the program that the other nodes have"
    )]
    Newer {
        /// What the map says.
        entries: u16,
        /// What is read.
        reads: u16,
    },
}

impl ClusterMap {
    /// The first map of a cluster, with nothing in it yet.
    pub fn bare(
        cluster: ClusterId,
        class: Class,
        stripe_data: u32,
        domain: DomainLevel,
    ) -> ClusterMap {
        ClusterMap {
            cluster,
            epoch: Epoch(1),
            class,
            stripe_data,
            domain,
            nodes: Vec::new(),
            devices: Vec::new(),
            groups: Vec::new(),
            partitions: Vec::new(),
            ending: Vec::new(),
            partition_numbers: 0,
            control: Vec::new(),
            draining: Vec::new(),
            out: BTreeSet::new(),
            entries: ENTRY_VERSION,
        }
    }

    /// Reads a map and checks it.
    pub fn from_json(json: &[u8]) -> Result<ClusterMap, MapError> {
        let map: ClusterMap =
            serde_json::from_slice(json).map_err(|e| MapError::Parse(e.to_string()))?;
        map.validate()?;
        Ok(map)
    }

    /// The map as JSON, for a file or a frame.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Checks what the module's head demands.
    pub fn validate(&self) -> Result<(), MapError> {
        crate::solve::validate(self)
    }

    /// Checks that who reads entries up to this version may take part.
    ///
    /// # Errors
    /// If newer ones may be written: it could not read its own log.
    pub fn check_reader(&self, reads: u16) -> Result<(), MapError> {
        match self.entries > reads {
            true => Err(MapError::Newer {
                entries: self.entries,
                reads,
            }),
            false => Ok(()),
        }
    }

    /// A node by its number.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == id)
    }

    /// A device by its number.
    pub fn device(&self, no: DeviceNo) -> Option<&Device> {
        self.devices.iter().find(|d| d.no == no)
    }

    /// A partition by its number.
    pub fn partition_by_id(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.id == id)
    }

    /// A partition by its number, also if it is ending.
    pub fn known_partition(&self, id: PartitionId) -> Option<&Partition> {
        self.all_partitions().find(|p| p.id == id)
    }

    /// The partitions, and those that are ending.
    pub fn all_partitions(&self) -> impl Iterator<Item = &Partition> {
        let ending = self.ending.iter().map(|it| &it.partition);
        self.partitions.iter().chain(ending)
    }

    /// The number of the next partition.
    pub fn next_partition(&self) -> PartitionId {
        let highest = self.all_partitions().map(|p| p.id.0).max();
        let behind = highest.map_or(0, |highest| highest.saturating_add(1));
        PartitionId(behind.max(self.partition_numbers))
    }

    /// Whether a partition was merged into another one long ago: nothing that is left of it is of use to anybody. What
    /// this map does not know of because it is too old does not count.
    pub fn is_over(&self, id: PartitionId) -> bool {
        id.0 < self.partition_numbers && self.known_partition(id).is_none()
    }

    /// Where the partition ends that begins at this place: where the next one begins, whether it is ending or not.
    pub fn end_of(&self, start: &(String, String)) -> Option<&(String, String)> {
        let behind = self.all_partitions().map(|p| &p.start);
        behind.filter(|other| *other > start).min()
    }

    /// The address of the core that owns a device.
    pub fn address(&self, no: DeviceNo) -> Option<&str> {
        let device = self.device(no)?;
        let core = self.node(device.node)?.cores.get(device.core as usize)?;
        Some(&core.address)
    }

    /// A placement group by its number.
    pub fn group(&self, id: PgId) -> Option<&PlacementGroup> {
        let by_index = self.groups.get(id.0 as usize).filter(|g| g.id == id);
        by_index.or_else(|| self.groups.iter().find(|g| g.id == id))
    }

    /// The partition that (bucket, key) falls in.
    pub fn partition(&self, bucket: &str, key: &str) -> Option<&Partition> {
        let after = self
            .partitions
            .partition_point(|p| (p.start.0.as_str(), p.start.1.as_str()) <= (bucket, key));
        self.partitions.get(after.checked_sub(1)?)
    }
}
