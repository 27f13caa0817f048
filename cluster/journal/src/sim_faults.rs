//! What goes wrong in the simulated world, and what must hold all the same after every step.

use ashlar_cluster_index::{Cache, Index};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::version::ENTRY_VERSION;

use crate::api::{Config, Event};
use crate::replica::Replica;
use crate::sim::{Happening, MILLI, World, device, index_limits, limits, pair};
use crate::sim_device::{Device, EXTENT, Rng};

/// For how long, `most` at most, and which ways, what a node says or hears is lost: of one other node, or of all.
pub(crate) fn draw_cuts(rng: &mut Rng, nodes: u64, node: u8, most: u64) -> (u64, Vec<(u8, u8)>) {
    let how = rng.below(3);
    let delay = rng.below(most);
    let only = rng.one_in(2).then(|| rng.below(nodes) as u8);
    let others = (0..nodes as u8).filter(|other| *other != node);
    let others = others.filter(|other| only.is_none_or(|only| only == *other));
    let ways = others.flat_map(|other| [(0, node, other), (1, other, node)]);
    let ways = ways.filter(|(way, ..)| how == 2 || how == *way);
    (delay, ways.map(|(_, from, to)| (from, to)).collect())
}

impl World {
    pub(crate) fn start(&mut self, node: u8) {
        let replicas = self.nodes.len() as u8;
        let mut config = Config::new(PartitionId(7), device(node), self.founders.clone());
        config.limits = limits();
        if self.plan.forgets {
            config.limits.keep_bytes = 400;
        }
        config.index.extent_size = EXTENT;
        config.index.limits = index_limits();
        config.seed = self.rng.next();
        #[cfg(feature = "mutants")]
        {
            config.mutant = self.plan.mutant;
        }
        if self.plan.forgetful {
            config.limits.clients = 2;
        }
        let now = self.now;
        let held = &mut self.nodes[usize::from(node)];
        held.process += 1;
        held.paused = false;
        held.inbox.clear();
        held.timer = None;
        held.turning = false;
        held.cache = Cache::new(1 << 16);
        held.device.busy_until = now;
        held.device.trimmed = None;
        config.index.life = held.process;
        let opened = held.device.index.open(&config.index);
        let lost = opened.is_none();
        if lost {
            held.device.index.clear();
        }
        let mut replica = match opened {
            Some((index, kept)) if index.generation() > 0 => {
                Replica::new(config, index, &kept).expect("what was kept is whole")
            }
            Some((index, _)) => Replica::bare(config, index),
            None => {
                let index = Index::new(config.index.clone());
                Replica::blank(config, index)
            }
        };
        for record in &held.device.records {
            if record.rotten {
                replica.replay_damaged(record.hint);
            } else if !replica.is_past(record.last, record.position) {
                replica.replay(&record.bytes, record.at, record.position);
            }
        }
        if lost {
            self.stats
                .entry("blank")
                .and_modify(|n| *n += 1)
                .or_insert(1);
        }
        held.replica = Some(replica);
        for peer in (0..replicas).filter(|peer| *peer != node) {
            let generation = self.generations.entry(pair(node, peer)).or_default().0;
            let delay = MILLI + self.rng.below(5 * MILLI);
            self.at(
                delay,
                Happening::Connect {
                    a: node,
                    b: peer,
                    generation,
                },
            );
        }
        self.tell(node, Event::Start {});
        let members = self.desired.clone();
        self.tell(node, Event::Desired { members });
    }

    pub(crate) fn crash(&mut self, node: u8) {
        let torn = self.plan.victim.is_none_or(|victim| victim == node) && self.plan.torn;
        let survive = self.rng.next();
        let tear = torn && self.rng.one_in(2);
        let hint = self.rng.one_in(2);
        let held = &mut self.nodes[usize::from(node)];
        if held.replica.take().is_none() {
            return;
        }
        held.process += 1;
        held.paused = false;
        held.inbox.clear();
        let inflight = std::mem::take(&mut held.device.inflight);
        held.device.index.crash(&mut self.rng);
        let survive = survive % (inflight.len() as u64 + 1);
        for (nth, (_, mut record)) in inflight.into_iter().enumerate() {
            if nth as u64 == survive && tear {
                record.rotten = true;
                record.hint = record.hint.filter(|_| hint);
                held.device.records.push(record);
            } else if (nth as u64) < survive {
                held.device.records.push(record);
            }
        }
        for peer in (0..self.nodes.len() as u8).filter(|peer| *peer != node) {
            self.disconnect(node, peer);
        }
        self.clients.crashed(node);
        self.count("crashes");
    }

    /// Its process ends, and another begins some time later.
    pub(crate) fn end(&mut self, node: u8) {
        self.crash(node);
        let delay = self.rng.below(200 * MILLI);
        self.at(delay, Happening::Restart { node });
    }

    fn disconnect(&mut self, a: u8, b: u8) {
        let held = self.generations.entry(pair(a, b)).or_default();
        let was = held.1;
        *held = (held.0 + 1, false);
        let generation = held.0;
        for (node, peer) in [(a, b), (b, a)] {
            if was {
                let peer = device(peer);
                self.tell(node, Event::PeerDown { peer });
            }
        }
        let delay = MILLI + self.rng.below(30 * MILLI);
        self.at(delay, Happening::Connect { a, b, generation });
    }

    pub(crate) fn resume(&mut self, node: u8) {
        let held = &mut self.nodes[usize::from(node)];
        if !held.paused {
            return;
        }
        held.paused = false;
        for event in std::mem::take(&mut held.inbox) {
            self.tell(node, event);
        }
        self.tell(node, Event::Deadline);
    }

    /// Records of the victim's device become unreadable.
    pub(crate) fn rot(&mut self, victim: u8) {
        let some = 1 + self.rng.below(3);
        for _ in 0..some {
            let nth = self.rng.next();
            let hint = self.rng.one_in(2);
            let records = &mut self.nodes[usize::from(victim)].device.records;
            if records.is_empty() {
                return;
            }
            // The newest ones hurt most.
            let back = if nth & 1 == 0 {
                nth >> 1
            } else {
                (nth >> 1) % 5
            };
            let at = records.len() - 1 - (back % records.len() as u64) as usize;
            records[at].rotten = true;
            if !hint {
                records[at].hint = None;
            }
        }
        if self.rng.one_in(3) {
            let device = &mut self.nodes[usize::from(victim)].device;
            device.index.rot(&mut self.rng);
        }
        self.count("rot");
    }

    /// The victim's device is another one from now on, with nothing on it.
    fn renew(&mut self, victim: u8) {
        if self.nodes[usize::from(victim)].replica.is_none() {
            return;
        }
        self.end(victim);
        self.nodes[usize::from(victim)].device = Device::default();
        self.count("renewed");
    }

    /// Other members are wanted from now on.
    pub(crate) fn want(&mut self, members: Vec<DeviceNo>) {
        self.desired = members;
        for node in 0..self.nodes.len() as u8 {
            let members = self.desired.clone();
            let delay = self.rng.below(5 * MILLI);
            self.tell_later(delay, node, Event::Desired { members });
        }
    }

    pub(crate) fn fault(&mut self) {
        if !self.faults {
            return;
        }
        let nodes = self.nodes.len() as u64;
        let mut node = self.rng.below(nodes) as u8;
        // Heads are the interesting ones.
        if let Some(head) = self.reigning().filter(|_| self.rng.one_in(3)) {
            node = head;
        }
        match self.rng.below(18) {
            0..=2 if self.plan.crashes && self.rng.one_in(3) => {
                // It may hand over before it ends, or may not get that far.
                self.count("leaves");
                self.tell_later(0, node, Event::Leave);
                let delay = self.rng.below(20 * MILLI);
                self.at(delay, Happening::End { node });
            }
            0..=2 if self.plan.crashes => self.end(node),
            16 => {
                let device = &mut self.nodes[usize::from(node)].device;
                let until = self.now + self.rng.below(800 * MILLI);
                device.busy_until = device.busy_until.max(until);
                self.count("hangs");
            }
            3 if self.plan.crashes && self.rng.one_in(3) => {
                self.count("all crashed");
                for node in 0..nodes as u8 {
                    self.crash(node);
                    let delay = self.rng.below(60 * MILLI);
                    self.at(delay, Happening::Restart { node });
                }
            }
            4..=6 if self.plan.pauses => {
                self.nodes[usize::from(node)].paused = true;
                self.count("pauses");
                let delay = self.rng.below(300 * MILLI);
                self.at(delay, Happening::Resume { node });
            }
            7 | 8 => {
                let other = self.rng.below(nodes) as u8;
                if other != node {
                    self.count("breaks");
                    self.disconnect(node, other);
                }
            }
            9 | 10 | 17 => {
                if let Some(victim) = self.plan.victim {
                    match self.plan.renews && self.rng.one_in(4) {
                        true => self.renew(victim),
                        false => self.rot(victim),
                    }
                }
            }
            11..=13 if self.plan.cuts => {
                self.count("cuts");
                let (delay, ways) = draw_cuts(&mut self.rng, nodes, node, 300 * MILLI);
                for (from, to) in ways {
                    self.cut.insert((from, to));
                    self.at(delay, Happening::Mend { from, to });
                }
            }
            14 | 15 if self.plan.spares > 0 => {
                self.count("changes");
                let mut all: Vec<DeviceNo> = (0..nodes as u8).map(device).collect();
                while all.len() > self.founders.len() {
                    let out = self.rng.below(all.len() as u64) as usize;
                    all.remove(out);
                }
                self.want(all);
            }
            _ => {}
        }
        let delay = self.rng.below(60 * MILLI);
        self.at(delay, Happening::Fault);
    }

    /// No more faults: everything runs and stays connected.
    pub(crate) fn heal(&mut self) {
        self.faults = false;
        self.cut.clear();
        for node in 0..self.nodes.len() as u8 {
            if self.nodes[usize::from(node)].replica.is_none() {
                self.start(node);
            }
            self.resume(node);
            // Behind anything older that is still under way.
            let members = self.desired.clone();
            self.tell_later(10 * MILLI, node, Event::Desired { members });
        }
    }

    pub(crate) fn status(&self, node: u8) -> String {
        let replica = self.nodes[usize::from(node)].replica.as_ref();
        replica.map_or("down".to_owned(), |replica| {
            format!("{:?} {:?}", replica.status(), replica.log.chain())
        })
    }

    pub(crate) fn states(&self) -> Vec<String> {
        let all = 0..self.nodes.len() as u8;
        all.map(|node| self.status(node)).collect()
    }

    /// What the devices hold, for whoever looks into a failed seed.
    pub(crate) fn dump(&self) {
        for (node, held) in self.nodes.iter().enumerate() {
            let mut text = format!("replica {}:", node + 1);
            for record in &held.device.records {
                let mut pieces = Vec::new();
                let _ = crate::entry::split(&record.bytes, ENTRY_VERSION, &mut pieces);
                let rotten = if record.rotten { "!" } else { "" };
                for piece in pieces {
                    let (round, head) = (piece.term.round(), piece.term.head());
                    let start = piece.prev_term.map_or(String::new(), |prev| {
                        format!("<{}.{}", prev.round(), prev.head())
                    });
                    text += &format!(" {rotten}{}@{round}.{head}{start}", piece.seq);
                }
                text += " |";
            }
            eprintln!("{text}");
            if let Some(replica) = &held.replica {
                let Replica {
                    head,
                    follower,
                    promise,
                    election,
                    links,
                    desired,
                    ..
                } = replica;
                eprintln!("  {head:?} {follower:?} {promise:?} {election:?} {links:?} {desired:?}");
            }
        }
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self, node: u8) {
        let now = self.clock(node);
        let held = &self.nodes[usize::from(node)];
        let Some(replica) = &held.replica else {
            return;
        };
        assert!(
            replica.stopped.is_none(),
            "replica {node} stopped: {:?}",
            replica.status()
        );
        let (base, covered) = (replica.log.base(), replica.index.covered());
        assert!(
            base <= covered && covered <= replica.applied,
            "forgotten too early"
        );
        if replica.in_office() {
            assert!(replica.applied <= replica.committed, "applied too early");
            assert!(
                replica.applied <= replica.log.durable(),
                "applied, not durable"
            );
        }
        if replica.in_office() {
            assert!(
                replica.committed <= replica.log.durable(),
                "committed, not durable here"
            );
            let start = replica.head.term_start;
            assert!(replica.committed >= start, "in office before its own entry");
        }
        if replica.serving(now) {
            assert!(
                replica.applied == replica.committed
                    || !replica.index.has_room()
                    || replica.log.recent(Seq(replica.applied.0 + 1)).is_none(),
                "a serving head applies what it can"
            );
        }
        let memory = replica.log.writing_bytes();
        assert!(
            memory <= 3 * limits().unpersisted_bytes,
            "{memory} bytes on their way"
        );
        assert!(
            replica.head.pending.len() <= limits().pending,
            "too many pending"
        );
        let known = self.committed.len() as u64;
        for seq in known + 1..=replica.committed.0 {
            let term = replica.log.term(Seq(seq));
            match term {
                Some(term) => {
                    self.committed.push(term);
                    self.committed_at = self.now;
                }
                None => break,
            }
        }
        // The newest is enough: logs that agree there agree below.
        let newest = replica.committed.0.min(self.committed.len() as u64);
        if newest > 0
            && let Some(term) = replica.log.term(Seq(newest))
        {
            if term != self.committed[newest as usize - 1] && std::env::var("ASHLAR_SEED").is_ok() {
                eprintln!("{:?} {:#?}", self.plan, self.states());
                self.dump();
            }
            assert_eq!(
                term,
                self.committed[newest as usize - 1],
                "replica {node}: entry {newest} is committed twice"
            );
        }
    }

    /// The highest entry that anybody took for committed.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.len() as u64
    }
}
