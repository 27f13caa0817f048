//! Which replicas this core holds and whom they talk to, by the cluster map.
//!
//! Invariants:
//! - a replica's slot, once made, stays until the process ends: a replica that was left out of its chain
//!   keeps its promises, for it may be taken in again;
//! - a slot that is made while its device serves has its log read from the device first: there may be
//!   promises and entries of an earlier membership in it;
//! - a peer, once known, keeps its place in the list; it is called only while a chain needs it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ashlar_cluster_journal as journal;
use ashlar_cluster_map::{ClusterMap, Partition};
use ashlar_layout::ids::DeviceNo;
use ashlar_layout::time::Instant;
use ashlar_node_control::{ChainReport, PartitionLoad};
use ashlar_node_reactor::Driver;

use crate::core::{Core, Todo};
use crate::peers::Peer;
use crate::replicas::ReplicaSlot;
use crate::words::say;

/// How often the control plane is told of a partition's load.
const WEIGH_EVERY: Duration = Duration::from_secs(1);

/// Everyone that a partition's replicas may have to do with: who founded it, and who is to be in it.
fn members(partition: &Partition) -> Vec<DeviceNo> {
    let mut members = partition.chain.devices.clone();
    for founder in &partition.founders {
        if !members.contains(founder) {
            members.push(*founder);
        }
    }
    members
}

impl ReplicaSlot {
    /// What the control plane is to know of the partition's load, if it is time: the head in office tells.
    fn weigh(&mut self, now: Instant) -> Option<PartitionLoad> {
        let state = self.replica.as_mut().filter(|it| it.serving(now));
        let Some(state) = state else {
            self.weighed = None;
            return None;
        };
        let (at, requests) = match self.weighed {
            None => (now, self.requests),
            Some((at, _)) if now.since(at) < WEIGH_EVERY => return None,
            Some(before) => before,
        };
        let millis = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        let came = self.requests.saturating_sub(requests);
        self.weighed = Some((now, self.requests));
        let stats = state.index_stats();
        Some(PartitionLoad {
            objects: stats.objects,
            bytes: stats.run_bytes + stats.table_bytes as u64,
            requests_per_s: (came * 1000).checked_div(millis).unwrap_or(0),
            middle: state.middle(),
            spans: state.take_spans(),
        })
    }
}

impl Core {
    /// Takes a newer map, if there is one.
    pub(crate) fn tend_map(&mut self, now: Instant, io: &mut impl Driver) {
        if self.shared.epoch.load(Ordering::Acquire) > self.maps.map.epoch.0 {
            self.maps = self.shared.newest();
            say!("cluster map of epoch {}", self.maps.map.epoch);
            self.follow_map();
            self.forget_over(now, io);
            for device in 0..self.devices.len() {
                self.forget_strangers(device, now, io);
            }
            self.unite(now);
        } else if self.unite_at.is_some_and(|at| at <= now) {
            self.unite(now);
        }
    }

    /// Tells the control plane's caller how a chain is, if that has changed.
    pub(crate) fn report_chain(&mut self, replica: usize, now: Instant) {
        let slot = &mut self.replicas[replica];
        let load = slot.weigh(now);
        let Some(state) = slot.replica.as_ref() else {
            return;
        };
        // Asked after every event: the members are copied only if there is something to tell.
        if load.is_none() && slot.reported == Some(state.reign()) {
            return;
        }
        let view = state.view(now);
        let recomposed = slot
            .reported
            .is_none_or(|(_, config)| config != view.config);
        slot.reported = Some((view.term, view.config));
        let partition = slot.partition;
        let report = ChainReport {
            partition,
            term: view.term,
            config: view.config,
            members: view.members,
            load,
        };
        let chains = self.shared.chains.lock();
        let mut chains = chains.unwrap_or_else(PoisonError::into_inner);
        let load = chains.get(&partition).and_then(|known| known.load.clone());
        let load = report.load.clone().or(load.filter(|_| view.serving));
        chains.insert(partition, ChainReport { load, ..report });
        drop(chains);
        if recomposed {
            // The log may name members that the map does not name any more, or not yet.
            self.follow_map();
        }
    }

    /// Makes the slots and peers that the map asks for, and tells replicas who is to be in their chain.
    pub(crate) fn follow_map(&mut self) {
        let maps = self.maps.clone();
        let map = &maps.map;
        for peer in &mut self.peers {
            peer.wanted = false;
        }
        let mut made = Vec::new();
        for partition in map.all_partitions() {
            let members = members(partition);
            for device in 0..self.devices.len() {
                let no = self.devices[device].no;
                let held = self.slot_of(partition.id, device);
                if held.is_none() && !members.contains(&no) {
                    continue;
                }
                let replica = held.unwrap_or_else(|| {
                    self.replicas.push(ReplicaSlot::of(partition, no, device));
                    made.push(self.replicas.len() - 1);
                    self.replicas.len() - 1
                });
                let known = self.replicas[replica].members(Instant(0));
                let others = members.iter().copied().chain(known).filter(|m| *m != no);
                let mut peers = BTreeMap::new();
                for other in others {
                    if let Some(peer) = self.peer_for(map, other) {
                        peers.insert(other, peer);
                    }
                }
                let desired = partition.chain.devices.clone();
                let before = self.replicas[replica].follow(peers, desired.clone());
                if self.replicas[replica].replica.is_some() {
                    self.tell_links(replica, &before);
                    let event = journal::Event::Desired { members: desired };
                    self.todo.push_back(Todo::Replica { replica, event });
                    let wanted = self.wanted(partition.id);
                    let event = journal::Event::Bounds { wanted };
                    self.todo.push_back(Todo::Replica { replica, event });
                    let entries = map.entries;
                    let event = journal::Event::Level { entries };
                    self.todo.push_back(Todo::Replica { replica, event });
                }
            }
        }
        for replica in made {
            self.make_replica(replica);
        }
    }

    /// Tells a replica of the links that are others now than before.
    fn tell_links(&mut self, replica: usize, before: &BTreeMap<DeviceNo, usize>) {
        let now = self.replicas[replica].peers();
        let gone = before
            .iter()
            .filter(|(device, peer)| now.get(*device) != Some(*peer));
        let down = gone.map(|(device, _)| journal::Event::PeerDown { peer: *device });
        let new = now
            .iter()
            .filter(|(device, peer)| before.get(*device) != Some(*peer));
        let up = new.filter(|(_, peer)| self.peers[**peer].is_up());
        let up = up.map(|(device, _)| journal::Event::PeerUp { peer: *device });
        let events: Vec<_> = down.chain(up).collect();
        let todo = events
            .into_iter()
            .map(|event| Todo::Replica { replica, event });
        self.todo.extend(todo);
    }

    /// Makes sure that a replica can answer this device, which spoke to it.
    pub(crate) fn know(&mut self, replica: usize, device: DeviceNo) {
        if self.replicas[replica].peer_of(device).is_some() {
            return;
        }
        let maps = self.maps.clone();
        if let Some(peer) = self.peer_for(&maps.map, device) {
            self.replicas[replica].add_peer(device, peer);
            if self.peers[peer].is_up() {
                let event = journal::Event::PeerUp { peer: device };
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
    }

    /// The peer that owns a device; made if it is not known yet. None for a device that the map does
    /// not know, or whose address makes no sense.
    fn peer_for(&mut self, map: &ClusterMap, device: DeviceNo) -> Option<usize> {
        let node = map.device(device)?.node;
        let text = map.address(device)?;
        let Some(address) = resolve(text) else {
            say!("device {device} of node {node}: '{text}' is not an address: it takes host:port");
            return None;
        };
        let same = |peer: &Peer| peer.node == node && peer.address == address;
        let peer = self.peers.iter().position(same).unwrap_or_else(|| {
            self.peers.push(Peer::new(node, address));
            self.peers.len() - 1
        });
        self.peers[peer].wanted = true;
        Some(peer)
    }
}

/// The address that a map or configuration names.
pub(crate) fn resolve(address: &str) -> Option<SocketAddr> {
    address.to_socket_addrs().ok()?.next()
}
