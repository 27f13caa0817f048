//! Which journal entries may be written: part of the leader's state machine. No I/O, no clock.
//!
//! A replica that is given an entry of a newer program cannot read it, and stops. So a head writes none above what the
//! map allows, and the map allows what all nodes read: this alone says so.
//!
//! Invariants:
//! - more is allowed only while each node of the map, draining or not, is there and says itself that it reads it: one
//!   that is away may come back as what it was. Not waited for is one whose devices are all out and in no chain: nobody
//!   gives it entries, and what was lost with it is made again only once these are allowed;
//! - who does not say it reads the least that each program does, and what he said before does not count any more;
//! - no more is allowed than the leader's own program knows.

use std::collections::BTreeMap;

use ashlar_cluster_map::{ClusterMap, MapChange};
use ashlar_layout::ids::NodeId;
use ashlar_layout::version::ENTRY_VERSION;

/// What nodes said of it since the leader took office.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readers {
    said: BTreeMap<NodeId, u16>,
}

impl Readers {
    /// A node was heard, and said this.
    pub(crate) fn hear(&mut self, node: NodeId, reads: Option<u16>) {
        match reads {
            Some(reads) => self.said.insert(node, reads),
            None => self.said.remove(&node),
        };
    }

    /// Forgets what is no longer in the map.
    pub(crate) fn forget(&mut self, map: &ClusterMap) {
        self.said.retain(|node, _| map.node(*node).is_some());
    }

    /// What a node reads, if it says so.
    pub(crate) fn said(&self, node: NodeId) -> Option<u16> {
        self.said.get(&node).copied()
    }

    /// The change to make now, if any.
    pub(crate) fn decide(
        &self,
        map: &ClusterMap,
        is_there: impl Fn(NodeId) -> bool,
    ) -> Option<MapChange> {
        let reads = |node: NodeId| self.said(node).filter(|_| is_there(node));
        let needed = map.nodes.iter().filter(|node| !is_given_up(map, node.id));
        let all = needed.map(|node| reads(node.id));
        let all: Option<Vec<u16>> = all.collect();
        let to = all?.into_iter().min()?.min(ENTRY_VERSION);
        (to > map.entries).then_some(MapChange::RaiseEntries { to })
    }

    /// Why no newer ones are allowed that this program knows, if that is so.
    pub(crate) fn held(
        &self,
        map: &ClusterMap,
        is_there: impl Fn(NodeId) -> bool,
    ) -> Option<String> {
        if map.entries >= ENTRY_VERSION {
            return None;
        }
        let why = map.nodes.iter().find_map(|node| {
            let node = node.id;
            match self.said(node) {
                None if is_given_up(map, node) => None,
                _ if !is_there(node) => Some(format!("node {node} is not there")),
                None => Some(format!("node {node} does not say which it reads")),
                Some(reads) if reads < ENTRY_VERSION => {
                    Some(format!("node {node} reads them up to version {reads}"))
                }
                Some(_) => None,
            }
        })?;
        Some(format!(
            "up to version {} and not {ENTRY_VERSION}: {why}: start each node with the newest version of the program",
            map.entries
        ))
    }
}

/// Whether nothing is waited for from a node any more: all of its devices are out, and no chain has one of them.
fn is_given_up(map: &ClusterMap, node: NodeId) -> bool {
    let mut devices = map.devices.iter().filter(|it| it.node == node).peekable();
    let chains = || map.all_partitions().flat_map(|it| &it.chain.devices);
    devices.peek().is_some()
        && devices.all(|it| map.out.contains(&it.no) && chains().all(|no| *no != it.no))
}
