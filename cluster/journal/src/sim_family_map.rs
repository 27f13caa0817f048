//! Cluster maps, how they change, and what a node does about its partitions by the map that it knows.

use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};

use ashlar_cluster_index::IndexError;

use crate::api::{Border, Event, Wanted};
use crate::bounds::Newborn;
use crate::sim::{MILLI, device, limits, pair};
use crate::sim_device::Rng;
use crate::sim_family::{Happening, Known, World};
use crate::sim_family_device::FamilyDevice;
use crate::sim_faults::draw_cuts;

/// A place in the order of (bucket, key).
pub(crate) type Place = (String, String);

/// A partition of a map.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) id: PartitionId,
    pub(crate) from: Place,
    pub(crate) parents: Vec<PartitionId>,
    pub(crate) founders: Vec<DeviceNo>,
    pub(crate) chain: Vec<DeviceNo>,
}

/// One that is to become a part of another.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) part: Part,
    pub(crate) end: Option<Place>,
    pub(crate) into: PartitionId,
}

#[derive(Clone, Debug)]
pub(crate) struct Map {
    /// In order.
    pub(crate) parts: Vec<Part>,
    pub(crate) ending: Vec<Ending>,
    pub(crate) newest: PartitionId,
}

impl Map {
    pub(crate) const FIRST: PartitionId = PartitionId(1);

    pub(crate) fn first() -> Self {
        let chain: Vec<DeviceNo> = (0..3).map(device).collect();
        let part = Part {
            id: Self::FIRST,
            from: Place::default(),
            parents: Vec::new(),
            founders: chain.clone(),
            chain,
        };
        Self {
            parts: vec![part],
            ending: Vec::new(),
            newest: Self::FIRST,
        }
    }

    /// All that are to run.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Part> {
        let ending = self.ending.iter().map(|it| &it.part);
        self.parts.iter().chain(ending)
    }

    pub(crate) fn find(&self, id: PartitionId) -> Option<&Part> {
        self.all().find(|it| it.id == id)
    }

    /// It was there, and is no more.
    pub(crate) fn is_over(&self, id: PartitionId) -> bool {
        id <= self.newest && self.find(id).is_none()
    }

    pub(crate) fn end(&self, id: PartitionId) -> Option<Place> {
        if let Some(ending) = self.ending.iter().find(|it| it.part.id == id) {
            return ending.end.clone();
        }
        let nth = self.parts.iter().position(|it| it.id == id)?;
        self.parts.get(nth + 1).map(|it| it.from.clone())
    }

    /// Whose a place is.
    pub(crate) fn at(&self, place: &Place) -> &Part {
        let mut parts = self.parts.iter().rev();
        parts
            .find(|it| it.from <= *place)
            .expect("the first one begins at the beginning")
    }

    fn wanted(&self, id: PartitionId) -> Wanted {
        let children = self.all().filter(|it| it.parents == [id]);
        let ending = self.ending.iter().find(|it| it.part.id == id);
        Wanted {
            end: self.end(id),
            children: children
                .map(|it| Border {
                    child: it.id,
                    from: it.from.clone(),
                })
                .collect(),
            into: ending.map(|it| it.into),
        }
    }
}

pub(crate) const BUCKETS: [&str; 3] = ["aaa", "bbb", "ccc"];

/// Any key of any bucket.
pub(crate) fn place(rng: &mut Rng) -> Place {
    let bucket = BUCKETS[rng.below(3) as usize];
    let key = ["k1", "k3", "k5", "k7"][rng.below(4) as usize];
    (bucket.to_owned(), key.to_owned())
}

impl World {
    /// The map changes, or does not.
    pub(crate) fn change_map(&mut self) {
        let mut map = self.maps[self.maps.len() - 1].clone();
        let what = if self.changes { self.rng.below(10) } else { 9 };
        let changed = match what {
            0..=3 => self.split(&mut map),
            4..=6 => self.merge(&mut map),
            7 => self.replace(&mut map),
            _ => self.drop_ended(&mut map),
        };
        if changed {
            self.publish(map);
        }
        let delay = 5 * MILLI + self.rng.below(50 * MILLI);
        self.at(delay, Happening::Plane);
    }

    fn split(&mut self, map: &mut Map) -> bool {
        let bucket = BUCKETS[self.rng.below(3) as usize];
        let key = match self.rng.below(5) {
            0 => String::new(),
            n => format!("k{}", 2 * n),
        };
        let from = (bucket.to_owned(), key);
        let of = map.at(&from).clone();
        if map.parts.len() >= 5 || of.from == from {
            return false;
        }
        map.newest.0 += 1;
        let part = Part {
            id: map.newest,
            from,
            parents: vec![of.id],
            founders: of.chain.clone(),
            chain: of.chain,
        };
        map.parts.push(part);
        map.parts.sort_by(|a, b| a.from.cmp(&b.from));
        self.count("splits");
        true
    }

    fn merge(&mut self, map: &mut Map) -> bool {
        if map.parts.len() < 2 || map.ending.len() >= 6 {
            return false;
        }
        let nth = self.rng.below(map.parts.len() as u64 - 1) as usize;
        let (left, right) = (map.parts[nth].clone(), map.parts[nth + 1].clone());
        if right.chain.iter().any(|it| !left.chain.contains(it)) {
            map.parts[nth + 1].chain = left.chain;
            return true;
        }
        let ends = [map.end(left.id), map.end(right.id)];
        map.newest.0 += 1;
        let into = map.newest;
        map.parts.remove(nth + 1);
        map.parts[nth] = Part {
            id: into,
            from: left.from.clone(),
            parents: vec![left.id, right.id],
            founders: left.chain.clone(),
            chain: left.chain.clone(),
        };
        for (part, end) in [left, right].into_iter().zip(ends) {
            map.ending.push(Ending { part, end, into });
        }
        self.count("merges");
        true
    }

    fn replace(&mut self, map: &mut Map) -> bool {
        let nth = self.rng.below(map.parts.len() as u64) as usize;
        let part = &mut map.parts[nth];
        let all = (0..self.nodes.len() as u8).map(device);
        let spares: Vec<DeviceNo> = all.filter(|it| !part.chain.contains(it)).collect();
        if spares.is_empty() {
            return false;
        }
        let spare = spares[self.rng.below(spares.len() as u64) as usize];
        part.chain[self.rng.below(3) as usize] = spare;
        self.count("replaced");
        true
    }

    /// Those whose heirs, and children, have been seen in office are not needed.
    fn drop_ended(&mut self, map: &mut Map) -> bool {
        let before = map.ending.len();
        let all: Vec<Part> = map.all().cloned().collect();
        let reigned = &self.reigned;
        map.ending.retain(|it| {
            let mut children = all.iter().filter(|child| child.parents == [it.part.id]);
            !reigned.contains(&it.into) || !children.all(|child| reigned.contains(&child.id))
        });
        map.ending.len() < before
    }

    fn publish(&mut self, map: Map) {
        self.maps.push(map);
        let version = self.maps.len() - 1;
        for node in 0..self.nodes.len() as u8 {
            let long = self.plan.slow && self.rng.one_in(3);
            let delay = self.rng.below(if long { 200 } else { 5 } * MILLI);
            self.at(delay, Happening::Map { node, version });
        }
    }

    pub(crate) fn learn_map(&mut self, node: u8, version: usize) {
        let held = &mut self.nodes[usize::from(node)];
        if held.map >= version {
            return;
        }
        held.map = version;
        if held.up {
            self.follow_map(node);
            self.tell_all_wanted(node);
        }
    }

    fn tell_all_wanted(&mut self, node: u8) {
        let held = &self.nodes[usize::from(node)];
        let all: Vec<PartitionId> = held.replicas.keys().copied().collect();
        for partition in all {
            self.tell_wanted(node, partition);
        }
    }

    /// Tells a replica what the map wants of it.
    pub(crate) fn tell_wanted(&mut self, node: u8, partition: PartitionId) {
        let map = self.map_of(node);
        let Some(part) = map.find(partition) else {
            return;
        };
        let (members, wanted) = (part.chain.clone(), map.wanted(partition));
        self.tell(node, partition, Event::Desired { members });
        self.tell(node, partition, Event::Bounds { wanted });
    }

    /// A process begins.
    pub(crate) fn start(&mut self, node: u8) {
        let now = self.now;
        let map = self.map_of(node).clone();
        let held = &mut self.nodes[usize::from(node)];
        if held.up {
            return;
        }
        held.up = true;
        held.process += 1;
        held.cache = ashlar_cluster_index::Cache::new(1 << 16);
        held.device.busy_until = now;
        let rooted: Vec<PartitionId> = held.device.roots.keys().copied().collect();
        let (over, rooted): (Vec<_>, Vec<_>) = rooted.into_iter().partition(|it| map.is_over(*it));
        let mut kept = Vec::new();
        for partition in rooted.iter().copied() {
            let founders = map.find(partition).map(|it| it.founders.clone());
            let live = self.open(node, partition, founders.unwrap_or_default());
            kept.push((partition, live));
        }
        let held = &mut self.nodes[usize::from(node)];
        held.device.keep(&kept);
        for partition in over {
            held.device.forget(partition);
        }
        for partition in rooted {
            self.begin(node, partition);
        }
        self.follow_map(node);
        for peer in (0..self.nodes.len() as u8).filter(|peer| *peer != node) {
            let (a, b) = (node, peer);
            let generation = self.generations.entry(pair(a, b)).or_default().0;
            let delay = MILLI + self.rng.below(5 * MILLI);
            self.at(delay, Happening::Connect { a, b, generation });
        }
    }

    /// Makes and forgets replicas as the map wants.
    fn follow_map(&mut self, node: u8) {
        let map = self.map_of(node).clone();
        let held = &self.nodes[usize::from(node)];
        let here: Vec<PartitionId> = held.replicas.keys().copied().collect();
        let recorded = held.device.records.iter().map(|(of, _)| *of);
        let all: std::collections::BTreeSet<PartitionId> =
            here.into_iter().chain(recorded).collect();
        for partition in all.into_iter().filter(|it| map.is_over(*it)) {
            self.forget(node, partition);
        }
        for part in map.all() {
            if part.chain.contains(&device(node)) || part.founders.contains(&device(node)) {
                self.ensure(node, part.id, part.founders.clone());
            }
        }
        for part in &map.parts {
            self.join(node, part.id);
        }
        for ending in &map.ending {
            self.join(node, ending.into);
        }
    }

    fn forget(&mut self, node: u8, partition: PartitionId) {
        let held = &mut self.nodes[usize::from(node)];
        held.device.forget(partition);
        if held.replicas.remove(&partition).is_some() {
            self.clients.gone(node, partition);
            self.count("forgotten");
        }
        self.tell_all(node, |_| Event::ChildDurable { child: partition });
    }

    /// Makes a replica if there is none.
    fn ensure(&mut self, node: u8, partition: PartitionId, founders: Vec<DeviceNo>) {
        if self.running(node, partition).is_none() {
            let live = self.open(node, partition, founders);
            assert!(live.is_empty(), "what had a root was opened at the start");
            self.begin(node, partition);
        }
    }

    /// Somebody takes this one for a member: it answers, if the map knows the partition.
    pub(crate) fn call(&mut self, node: u8, partition: PartitionId) {
        let founders = self
            .map_of(node)
            .find(partition)
            .map(|it| it.founders.clone());
        let held = &self.nodes[usize::from(node)];
        if let Some(founders) = founders.filter(|_| held.up && !held.paused) {
            self.ensure(node, partition, founders);
        }
    }

    /// A replica's child is to be made.
    pub(crate) fn bear(
        &mut self,
        node: u8,
        parent: PartitionId,
        child: PartitionId,
        members: Vec<DeviceNo>,
    ) {
        self.count("bears");
        let durable = Event::ChildDurable { child };
        if self.map_of(node).is_over(child) {
            return self.tell_later(0, node, parent, durable);
        }
        self.ensure(node, child, members);
        let expects = self
            .running(node, child)
            .map(|it| it.replica.expects_birth());
        let Some(config) = expects.flatten() else {
            return self.tell_later(0, node, parent, durable);
        };
        let held = &mut self.nodes[usize::from(node)].replicas;
        let newborn = held.get_mut(&parent).map(|it| it.replica.bear(config));
        match newborn.flatten() {
            Some(newborn) => self.give_birth(node, child, newborn),
            None => self.tell_later(0, node, parent, durable),
        }
    }

    /// Two that are closed become one, if it is time.
    pub(crate) fn join(&mut self, node: u8, into: PartitionId) {
        let map = self.map_of(node);
        let Some(part) = map.find(into) else {
            return;
        };
        let [left, right] = part.parents[..] else {
            return;
        };
        let Some(border) = map.find(right).map(|it| it.from.clone()) else {
            return;
        };
        let both = (self.running(node, left), self.running(node, right));
        let ((Some(one), Some(other)), Some(heir)) = (both, self.running(node, into)) else {
            return;
        };
        let Some(config) = heir.replica.expects_birth().filter(|_| !heir.expected) else {
            return;
        };
        let border = (&border.0[..], &border.1[..]);
        let newborn = Newborn::of_two(into, config, &one.replica, &other.replica, border);
        match newborn {
            Some(Ok(newborn)) => {
                self.count("joins");
                self.give_birth(node, into, newborn);
            }
            Some(Err(IndexError::Crossed { .. })) => {
                self.count("crossed");
                for parent in [left, right] {
                    let held = self.nodes[usize::from(node)].replicas.get_mut(&parent);
                    held.expect("it runs").replica.condense();
                    self.tell_later(0, node, parent, Event::Turn);
                }
                self.at(MILLI, Happening::Join { node, into });
            }
            Some(Err(error)) => panic!("two neighbours: {error}"),
            None => {}
        }
    }

    /// What a partition begins with is durable.
    pub(crate) fn born(&mut self, node: u8, partition: PartitionId) {
        let it = self.running(node, partition).expect("it says so");
        assert!(!it.replica.is_unborn(), "{partition} on {node} has nothing");
        let held = &mut self.nodes[usize::from(node)];
        let root = held.device.roots.contains_key(&partition);
        assert!(root, "{partition} on {node}: born, and not durable");
        if let Some(it) = held.replicas.get_mut(&partition) {
            it.expected = false;
        }
        self.count("born");
        let all: Vec<PartitionId> = held_partitions(self, node);
        for other in all {
            let event = Event::ChildDurable { child: partition };
            self.tell_later(0, node, other, event);
        }
    }

    pub(crate) fn disconnect(&mut self, a: u8, b: u8) {
        let held = self.generations.entry(pair(a, b)).or_default();
        let was = held.1;
        *held = (held.0 + 1, false);
        let generation = held.0;
        for (node, peer) in [(a, b), (b, a)] {
            if was {
                let peer = device(peer);
                self.tell_all(node, |_| Event::PeerDown { peer });
            }
        }
        let delay = MILLI + self.rng.below(30 * MILLI);
        self.at(delay, Happening::Connect { a, b, generation });
    }

    fn crash(&mut self, node: u8) {
        if !self.stop(node) {
            return;
        }
        for peer in (0..self.nodes.len() as u8).filter(|peer| *peer != node) {
            self.disconnect(node, peer);
        }
        self.count("crashes");
        let delay = self.rng.below(150 * MILLI);
        self.at(delay, Happening::Restart { node });
    }

    pub(crate) fn fault(&mut self) {
        if !self.faults {
            return;
        }
        let nodes = self.nodes.len() as u64;
        let node = self.rng.below(nodes) as u8;
        match self.rng.below(15) {
            0..=2 if self.plan.crashes => self.crash(node),
            3 if self.plan.crashes && self.rng.one_in(2) => {
                self.count("all crashed");
                for node in 0..nodes as u8 {
                    self.crash(node);
                }
            }
            4..=6 if self.plan.pauses => {
                self.nodes[usize::from(node)].paused = true;
                self.count("pauses");
                let delay = self.rng.below(200 * MILLI);
                self.at(delay, Happening::Resume { node });
            }
            7 | 8 => {
                let other = self.rng.below(nodes) as u8;
                if other != node {
                    self.count("breaks");
                    self.disconnect(node, other);
                }
            }
            9 if self.plan.jitter => {
                let device = &mut self.nodes[usize::from(node)].device;
                device.busy_until = device.busy_until.max(self.now) + self.rng.below(300 * MILLI);
                self.count("hangs");
            }
            14 if self.plan.renewed.is_some() => self.renew(),
            10..=13 if self.plan.cuts => {
                self.count("cuts");
                let (delay, ways) = draw_cuts(&mut self.rng, nodes, node, 200 * MILLI);
                for (from, to) in ways {
                    self.cut.insert((from, to));
                    self.at(delay, Happening::Mend { from, to });
                }
            }
            _ => {}
        }
        let delay = self.rng.below(60 * MILLI);
        self.at(delay, Happening::Fault);
    }

    /// A device is another one from now on, with nothing on it.
    fn renew(&mut self) {
        let Some(node) = self.plan.renewed else {
            return;
        };
        if self.nodes[usize::from(node)].up {
            self.crash(node);
            self.nodes[usize::from(node)].device = FamilyDevice::new();
            self.count("renewed");
        }
    }

    /// No more faults, and the map changes no more but for what has ended.
    pub(crate) fn heal(&mut self) {
        self.faults = false;
        self.changes = false;
        self.cut.clear();
        for node in 0..self.nodes.len() as u8 {
            self.start(node);
            self.resume(node);
        }
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self, node: u8, partition: PartitionId) {
        let Some(it) = self.running(node, partition) else {
            return;
        };
        let replica = &it.replica;
        let stopped = replica.stopped.as_ref();
        assert!(
            stopped.is_none(),
            "{partition} on {node} stopped: {stopped:?}"
        );
        let (base, covered) = (replica.log.base(), replica.index.covered());
        assert!(
            base <= covered && covered <= replica.applied,
            "{partition} on {node}: forgotten too early: {base} {covered} {}",
            replica.applied
        );
        if replica.in_office() {
            assert!(!replica.is_unborn(), "an unborn head");
            assert!(replica.applied <= replica.committed, "applied too early");
            let durable = replica.log.durable();
            assert!(replica.committed <= durable, "committed, not durable here");
        }
        assert!(
            replica.log.writing_bytes() <= 3 * limits().unpersisted_bytes,
            "too many bytes on their way"
        );
        let (office, committed) = (replica.in_office(), replica.committed);
        let known = self.committed.get(&partition);
        let newest = known.and_then(|known| known.last_key_value());
        let next = newest.map_or(replica.log.base().0 + 1, |(seq, _)| seq.0 + 1);
        let mut new = Vec::new();
        for seq in next..=committed.0 {
            match replica.log.term(Seq(seq)) {
                Some(term) => new.push((Seq(seq), term)),
                None => break,
            }
        }
        let below = committed.min(newest.map_or(Seq(0), |(seq, _)| *seq));
        if let Some(known) = known.and_then(|known| known.get(&below))
            && let Some(term) = replica.log.term(below)
        {
            assert_eq!(
                known.term, term,
                "{partition}, entry {below}: committed twice"
            );
        }
        let at = self.now;
        let known = self.committed.entry(partition).or_default();
        known.extend(new.into_iter().map(|(seq, term)| (seq, Known { term, at })));
        if office && self.reigned.insert(partition) {
            self.count("reigned");
        }
    }
}

pub(crate) fn held_partitions(world: &World, node: u8) -> Vec<PartitionId> {
    let held = &world.nodes[usize::from(node)];
    held.replicas.keys().copied().collect()
}
