//! The nodes of the family simulation: how they stop, and how they come to be what their devices have.

use ashlar_cluster_index::{Action as IndexAction, Config as IndexConfig};
use ashlar_layout::ids::{DeviceNo, PartitionId};
use ashlar_layout::root::Chunk;

use crate::api::{Config, Event};
use crate::replica::Replica;
use crate::sim::{device, index_limits, limits, pair};
use crate::sim_device::EXTENT;
use crate::sim_family::{Happening, Running, World};
use crate::sim_family_map::Map;

impl World {
    pub(crate) fn resume(&mut self, node: u8) {
        let held = &mut self.nodes[usize::from(node)];
        if !std::mem::take(&mut held.paused) {
            return;
        }
        for (partition, life, event) in std::mem::take(&mut held.inbox) {
            if self.life(node, partition) == Some(life) {
                self.tell(node, partition, event);
            }
        }
        self.tell_all(node, |_| Event::Deadline);
    }

    pub(crate) fn stop(&mut self, node: u8) -> bool {
        let tear = self.plan.torn;
        let held = &mut self.nodes[usize::from(node)];
        let was = std::mem::take(&mut held.up);
        if was {
            held.process += 1;
            held.paused = false;
            held.inbox.clear();
            held.replicas.clear();
            held.device.crash(&mut self.rng, tear);
        }
        was
    }

    pub(crate) fn config(
        &mut self,
        node: u8,
        partition: PartitionId,
        founders: Vec<DeviceNo>,
    ) -> Config {
        let mut config = Config::new(partition, device(node), founders);
        config.limits = limits();
        if self.plan.forgets {
            config.limits.keep_bytes = 400;
        }
        if self.plan.forgetful {
            config.limits.clients = 2;
        }
        config.heir = partition != Map::FIRST;
        config.seed = self.rng.next();
        let held = &mut self.nodes[usize::from(node)];
        held.lives += 1;
        config.index = IndexConfig {
            extent_size: EXTENT,
            limits: index_limits(),
            life: held.lives,
            ..config.index
        };
        config
    }

    /// Makes a replica of what the device has of it, and what it holds of the index.
    pub(crate) fn open(
        &mut self,
        node: u8,
        partition: PartitionId,
        founders: Vec<DeviceNo>,
    ) -> Vec<Chunk> {
        let config = self.config(node, partition, founders);
        let held = &mut self.nodes[usize::from(node)];
        let life = config.index.life;
        let (index, kept, live) = held.device.open(&config.index);
        let mut replica = match index.generation() {
            0 => Replica::bare(config, index),
            _ => Replica::new(config, index, &kept).expect("what was kept is whole"),
        };
        let parents = self.map_of(node).find(partition);
        let parents = parents.map(|it| it.parents.clone()).unwrap_or_default();
        let past = |parent: &PartitionId| {
            self.running(node, *parent)
                .is_some_and(|it| it.replica.keeps_past())
        };
        if parents.iter().any(past) {
            replica.has_its_past();
        }
        let held = &mut self.nodes[usize::from(node)];
        for (of, record) in &held.device.records {
            if record.rotten && (*of == partition || record.hint.is_none()) {
                replica.replay_damaged(record.hint);
            } else if *of == partition && !replica.is_past(record.last, record.position) {
                replica.replay(&record.bytes, record.at, record.position);
            }
        }
        let running = Running {
            replica,
            life,
            timer: None,
            turning: false,
            expected: false,
        };
        held.replicas.insert(partition, running);
        live
    }

    /// Tells a replica that was made what it has to know.
    pub(crate) fn begin(&mut self, node: u8, partition: PartitionId) {
        self.tell(node, partition, Event::Start {});
        for peer in 0..self.nodes.len() as u8 {
            let up = self
                .generations
                .get(&pair(node, peer))
                .is_some_and(|it| it.1);
            if peer != node && up {
                let peer = device(peer);
                self.tell(node, partition, Event::PeerUp { peer });
            }
        }
        self.tell_wanted(node, partition);
    }

    /// What is being read for a replica's index.
    pub(crate) fn reads_under_way(&self, node: u8, partition: PartitionId) -> Vec<Event> {
        let device = &self.nodes[usize::from(node)].device;
        let under_way = self.agenda.all().filter_map(|what| match what {
            Happening::Index {
                node: of,
                partition: p,
                life,
                lane,
                action,
            } if (*of, *p, Some(*life)) == (node, partition, self.life(node, partition)) => {
                let IndexAction::Read { token, at, len } = **action else {
                    return None;
                };
                let bytes = device.read_chunk(at, len);
                let event = ashlar_cluster_index::Event::Read { token, bytes };
                Some(Event::Index { lane: *lane, event })
            }
            _ => None,
        });
        under_way.collect()
    }
}
