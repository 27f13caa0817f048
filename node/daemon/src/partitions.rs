//! Partitions that come into being on this core's devices, and those that end.
//!
//! Invariants:
//! - a child is taken from its parent's index before the parent hears of anything else, and what it shares is held
//!   for it before anything that the parent gives up is freed;
//! - a replica is made without its device's log being read only where that log was read and had nothing of it;
//! - what is left of a partition is given up only when the map says that what it became serves.

use ashlar_cluster_index::Index;
use std::sync::PoisonError;
use std::time::Duration;

use ashlar_cluster_journal::{self as journal, Newborn, Replica};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_reactor::Driver;

use crate::core::{Core, Todo};
use crate::devices::Phase;
use crate::replicas::ReplicaSlot;
use crate::words::say;

/// When two closed neighbours are put together again that could not be: their runs are merged meanwhile.
const UNITE_AGAIN: Duration = Duration::from_millis(100);

impl Core {
    /// What the map wants of a partition's bounds.
    pub(crate) fn wanted(&self, partition: PartitionId) -> journal::Wanted {
        let map = &self.maps.map;
        let Some(known) = map.known_partition(partition) else {
            return journal::Wanted::default();
        };
        let child = |p: &&ashlar_cluster_map::Partition| p.parents == [partition];
        let children = map.all_partitions().filter(child);
        // Those that become this one end with it.
        let into = |id: PartitionId| map.ending.iter().find(|it| it.partition.id == id);
        let others = map.all_partitions();
        let others = others.filter(|p| into(p.id).is_none_or(|it| it.into != partition));
        let behind = others
            .map(|p| &p.start)
            .filter(|start| **start > known.start);
        journal::Wanted {
            end: behind.min().cloned(),
            children: children
                .map(|p| journal::Border {
                    child: p.id,
                    from: p.start.clone(),
                })
                .collect(),
            into: map
                .ending
                .iter()
                .find(|it| it.partition.id == partition)
                .map(|it| it.into),
        }
    }

    /// The slot of a partition's replica on a device.
    pub(crate) fn slot_of(&self, partition: PartitionId, device: usize) -> Option<usize> {
        let of = |slot: &ReplicaSlot| slot.partition == partition && slot.device == device;
        self.replicas.iter().position(of)
    }

    /// Makes the replica of a new slot, if its device serves and has nothing of its partition; else the device is
    /// opened anew if it has to be, and then it is there.
    pub(crate) fn make_replica(&mut self, replica: usize) {
        let slot = &self.replicas[replica];
        let (device, partition) = (slot.device, slot.partition);
        let held = &mut self.devices[device];
        if held.may_have(partition) {
            return held.replica_added();
        }
        let Phase::Serving(engine) = &mut held.phase else {
            return held.replica_added();
        };
        let (id, extent_size) = (engine.device(), engine.geometry().extent_size);
        let Some(life) = engine.take_life() else {
            return held.replica_added();
        };
        let config = slot.config(&self.shared.tuning, id, extent_size, life);
        let index = Index::new(config.index.clone());
        let mut made = Replica::bare(config, index);
        let known = self.maps.map.known_partition(partition);
        let mut parents = known.iter().flat_map(|p| &p.parents);
        if parents.any(|parent| self.keeps_past(*parent, device)) {
            made.has_its_past();
        }
        self.start_replica(replica, made);
    }

    /// Whether a device has had a partition's replica ever since there was one.
    fn keeps_past(&self, partition: PartitionId, device: usize) -> bool {
        let slot = self.slot_of(partition, device);
        let replica = slot.and_then(|slot| self.replicas[slot].replica.as_ref());
        replica.is_some_and(Replica::keeps_past)
    }

    /// A parent has come to the entry of a split.
    pub(crate) fn bear(&mut self, parent: usize, child: PartitionId, members: Vec<DeviceNo>) {
        let (device, me) = (self.replicas[parent].device, self.replicas[parent].me);
        if self.maps.map.is_over(child) {
            // It was merged into another one since.
            return self.child_durable(parent, child);
        }
        let replica = self.slot_of(child, device).unwrap_or_else(|| {
            // The map that says so has not come yet.
            let slot = ReplicaSlot::new(child, me, device, members, true);
            self.replicas.push(slot);
            let replica = self.replicas.len() - 1;
            self.make_replica(replica);
            self.follow_map();
            replica
        });
        let held = self.replicas[replica].replica.as_ref();
        if held.is_none_or(Replica::is_stopped) {
            // What it has is not known: the device is opened anew, or is about to be, and its parent comes to the entry
            // once more.
            return self.devices[device].reopen_wanted(false);
        }
        let Some(config) = held.and_then(Replica::expects_birth) else {
            return self.child_durable(parent, child);
        };
        let state = self.replicas[parent].replica.as_mut();
        let Some(newborn) = state.and_then(|state| state.bear(config)) else {
            return self.devices[device].reopen_wanted(false);
        };
        say!(
            "partition {}: on device {me} it is split, and partition {child} is made",
            self.replicas[parent].partition
        );
        self.deliver(replica, newborn);
    }

    /// Tells a parent that it need not keep a child's part any more.
    fn child_durable(&mut self, replica: usize, child: PartitionId) {
        let event = journal::Event::ChildDurable { child };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    fn deliver(&mut self, replica: usize, newborn: Newborn) {
        let slot = &mut self.replicas[replica];
        slot.delivered = true;
        let (device, partition) = (slot.device, slot.partition);
        let ats = newborn
            .shared_chunks()
            .iter()
            .map(|chunk| chunk.at)
            .collect();
        let event = api::Event::HoldIndex { partition, ats };
        self.todo.push_back(Todo::Engine { device, event });
        // Nor may those that it was made of give up what its objects' payloads are in, before it says so itself.
        let event = api::Event::TrimJournal {
            partition,
            through: Seq(0),
            position: 0,
            pins: newborn.pins(),
        };
        self.todo.push_back(Todo::Engine { device, event });
        let event = journal::Event::Born {
            newborn: Box::new(newborn),
        };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    /// Puts two closed neighbours together, on each device where both are.
    pub(crate) fn unite(&mut self, now: Instant) {
        self.unite_at = None;
        let maps = self.maps.clone();
        for heir in maps.map.all_partitions().filter(|p| p.parents.len() == 2) {
            for device in 0..self.devices.len() {
                let (Some(left), Some(right)) = (
                    self.slot_of(heir.parents[0], device),
                    self.slot_of(heir.parents[1], device),
                ) else {
                    continue;
                };
                let Some(replica) = self.slot_of(heir.id, device) else {
                    continue;
                };
                let slot = &self.replicas[replica];
                let border = maps.map.known_partition(heir.parents[1]).map(|p| &p.start);
                let config = slot.replica.as_ref().and_then(Replica::expects_birth);
                let (Some(config), Some(border)) = (config, border) else {
                    continue;
                };
                let parents = (&self.replicas[left].replica, &self.replicas[right].replica);
                let (Some(left), Some(right)) = parents else {
                    continue;
                };
                let border = (border.0.as_str(), border.1.as_str());
                match Newborn::of_two(heir.id, config, left, right, border) {
                    Some(Ok(newborn)) => {
                        let (id, me) = (heir.id, slot.me);
                        say!("partition {id}: on device {me} it is made of two");
                        self.deliver(replica, newborn);
                    }
                    Some(Err(e)) => {
                        say!("partition {}: it cannot be made yet: {e}", heir.id);
                        for parent in &heir.parents {
                            let slot = self.slot_of(*parent, device);
                            let slot = slot.and_then(|slot| self.replicas.get_mut(slot));
                            if let Some(state) = slot.and_then(|slot| slot.replica.as_mut()) {
                                state.condense();
                            }
                        }
                        self.unite_at = Some(now + UNITE_AGAIN);
                    }
                    None => {}
                }
            }
        }
    }

    /// What a replica was born with is durable: whoever it was made of goes on.
    pub(crate) fn is_born(&mut self, replica: usize, now: Instant, io: &mut impl Driver) {
        let (device, child) = (
            self.replicas[replica].device,
            self.replicas[replica].partition,
        );
        for parent in 0..self.replicas.len() {
            let slot = &self.replicas[parent];
            if slot.device == device && slot.partition != child {
                self.child_durable(parent, child);
            }
        }
        self.forget_over(now, io);
    }

    /// Gives up what is left of partitions that are over.
    pub(crate) fn forget_over(&mut self, now: Instant, io: &mut impl Driver) {
        let maps = self.maps.clone();
        for replica in 0..self.replicas.len() {
            let slot = &self.replicas[replica];
            let (partition, device) = (slot.partition, slot.device);
            // What is being made of it needs it until that is durable.
            let bears = self.replicas.iter().any(|other| {
                let state = other.replica.as_ref();
                other.device == device && state.is_some_and(Replica::is_being_born)
            });
            if slot.over || bears || !maps.map.is_over(partition) {
                continue;
            }
            say!("partition {partition}: it is over on device {}", slot.me);
            self.stop_replica(replica, io);
            self.replicas[replica].over = true;
            let chains = self.shared.chains.lock();
            let mut chains = chains.unwrap_or_else(PoisonError::into_inner);
            chains.remove(&partition);
            drop(chains);
            if self.devices[device].is_serving() {
                let event = api::Event::ForgetPartition { partition };
                self.engine_event(device, event, now, io);
            }
        }
    }

    /// What is on a device of partitions that are over, and have no replica here, is not needed.
    pub(crate) fn forget_strangers(&mut self, device: usize, now: Instant, io: &mut impl Driver) {
        if !self.devices[device].is_serving() {
            return;
        }
        let map = &self.maps.map;
        let strangers = self.devices[device].strangers.iter();
        let over: Vec<PartitionId> = strangers.filter(|id| map.is_over(**id)).copied().collect();
        for partition in over {
            self.devices[device].strangers.remove(&partition);
            let event = api::Event::ForgetPartition { partition };
            self.engine_event(device, event, now, io);
        }
    }
}
