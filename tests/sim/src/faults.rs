//! What goes wrong, and how it is made well again.
//!
//! Invariants:
//! - *within bounds*: damage that is not told of (rot, lost writes, sectors that cannot be read, formatting) comes to
//!   one device of a run and no other, for that is what the redundancy of every class and of every chain bears.
//!   Processes, machines, links and clocks may fail wherever and whenever, all at once too: what is durable comes back
//!   with them;
//! - whatever was done is undone by [`World::heal`]: after that everything has to work.

use ashlar_layout::ids::NodeId;
use ashlar_layout::limits::{SUPERBLOCK_STRIDE_MIN, SUPERBLOCK_ZONE};

use crate::disk::Rng;
use crate::net::Host;
use crate::story::{BUCKET, PAIR, SHELVES, key_name};
use crate::world::World;

/// Copies of the superblock that stay whole.
const COPIES: u64 = 3;

/// What goes wrong.
pub struct Faults {
    rng: Rng,
    /// The node whose device is damaged, in this run.
    victim: Option<usize>,
    /// Nodes that the control plane does not hear.
    hidden: Vec<NodeId>,
}

impl Faults {
    /// Nothing yet.
    pub fn new(seed: u64) -> Faults {
        Faults {
            rng: Rng(seed),
            victim: None,
            hidden: Vec::new(),
        }
    }

    /// Whether a device was damaged.
    pub fn has_victim(&self) -> bool {
        self.victim.is_some()
    }

    /// Whether the control plane does not hear a node.
    pub fn hides(&self, node: NodeId) -> bool {
        self.hidden.contains(&node)
    }
}

impl World {
    /// Something goes wrong, or well again.
    pub(crate) fn fault(&mut self) {
        let now = self.now;
        let nodes = self.nodes.len() as u64;
        let node = self.faults.rng.below(nodes) as usize;
        let other = self.faults.rng.below(nodes) as usize;
        let longer = self.plan.longer;
        let ms = |rng: &mut Rng, below: u64| (1 + rng.below(below * longer)) * 1_000_000;
        let kind = self.faults.rng.below(20);
        if self.plan.faults & 1 << kind == 0 {
            return;
        }
        match kind {
            0..=2 => {
                let power = self.faults.rng.chance(50);
                let how = if power {
                    "loses its power"
                } else {
                    "is killed"
                };
                self.say(&format!("node {} {how}", node + 1));
                self.story
                    .mark(if power { "power cut" } else { "process killed" });
                self.end_node(node, power);
                let back = now + ms(&mut self.faults.rng, 4000);
                self.start_later(node, back);
            }
            3 => {
                let power = self.faults.rng.chance(70);
                self.say(&format!("all nodes end, power: {power}"));
                self.story.mark("all nodes at once");
                for node in 0..self.nodes.len() {
                    self.end_node(node, power);
                    let back = now + ms(&mut self.faults.rng, 3000);
                    self.start_later(node, back);
                }
            }
            4 | 5 => {
                let until = now + ms(&mut self.faults.rng, 3000);
                self.say(&format!(
                    "node {} stands still until {}",
                    node + 1,
                    until / 1_000_000
                ));
                self.story.mark("process stopped");
                self.nodes[node].stopped_until = until;
            }
            6 | 7 => {
                let both = self.faults.rng.chance(50);
                self.say(&format!(
                    "cut from node {} to {}, both ways: {both}",
                    node + 1,
                    other + 1
                ));
                self.story.mark(if both { "cut" } else { "cut one way" });
                self.net.cut(now, Host::Node(node), Host::Node(other), true);
                if both {
                    self.net.cut(now, Host::Node(other), Host::Node(node), true);
                }
            }
            8 => {
                self.say(&format!("node {} is cut off", node + 1));
                self.story.mark("node cut off");
                for to in 0..self.nodes.len() {
                    self.net.cut(now, Host::Node(node), Host::Node(to), true);
                    self.net.cut(now, Host::Node(to), Host::Node(node), true);
                }
                let id = self.nodes[node].id;
                self.faults.hidden.push(id);
                for client in 0..self.clients.len() {
                    self.net
                        .cut(now, Host::Client(client), Host::Node(node), true);
                }
            }
            9..=11 => {
                self.say("all cuts are mended");
                self.mend_cuts();
            }
            12 if !self.plan.tidy && self.faults.rng.chance(40) => {
                let client = self.faults.rng.below(self.clients.len() as u64) as usize;
                self.say(&format!("client {client} dies"));
                self.end_client(client);
            }
            12 => {
                let client = self.faults.rng.below(self.clients.len() as u64) as usize;
                self.story.mark("client cut off");
                self.net
                    .cut(now, Host::Node(node), Host::Client(client), true);
            }
            13 => {
                let until = now + ms(&mut self.faults.rng, 2500);
                self.say(&format!(
                    "the disk of node {} is stuck until {}",
                    node + 1,
                    until / 1_000_000
                ));
                self.story.mark("disk stuck");
                for drive in &mut self.nodes[node].drives {
                    drive.stuck_until = until;
                }
            }
            14 => {
                let jump = self.faults.rng.below(7_200_000);
                self.story.mark("clock jumps");
                self.story.lead_ms = self.story.lead_ms.max(jump);
                let port = &mut self.nodes[node].port;
                port.wall_ms = if jump.is_multiple_of(2) { jump } else { 0 };
            }
            15 => {
                let slow = self.faults.rng.chance(50);
                self.story.mark("network slow");
                self.net.pace.spread = if slow {
                    30_000_000
                } else {
                    self.plan.pace.spread
                };
            }
            16 => {
                let rng = &mut self.faults.rng;
                let key = match self.plan.versions && rng.chance(50) {
                    true => [SHELVES[0], SHELVES[1], PAIR[1]][rng.below(3) as usize],
                    false => rng.below(u64::from(self.plan.keys)) as u32,
                };
                let key = key_name(key);
                if let Some(change) = self.control.wish(&mut self.faults.rng, BUCKET, &key) {
                    self.say(&format!("an operator: {change}"));
                    self.story.mark("partition split, merged or moved");
                }
            }
            _ if self.plan.tidy => {}
            19 if self.plan.renews => self.renew(),
            _ => self.damage(),
        }
    }

    fn mend_cuts(&mut self) {
        let now = self.now;
        self.faults.hidden.clear();
        let cuts: Vec<(Host, Host)> = self.net.cuts.iter().copied().collect();
        for (from, to) in cuts {
            self.net.cut(now, from, to, false);
        }
    }

    /// The device of the run that is damaged is damaged a little more.
    fn damage(&mut self) {
        let nodes = self.nodes.len() as u64;
        let victim = match self.faults.victim {
            Some(victim) if !self.plan.beyond => victim,
            _ => {
                let victim = self.faults.rng.below(nodes) as usize;
                self.faults.victim = Some(victim);
                victim
            }
        };
        let drive = &mut self.nodes[victim].drives[0];
        let rng = &mut self.faults.rng;
        // Of the superblock's copies one may rot, and two may not: a device without them is not damaged, it is gone.
        let counts = |at: &u64| {
            *at >= COPIES * SUPERBLOCK_STRIDE_MIN || at % SUPERBLOCK_STRIDE_MIN >= SUPERBLOCK_ZONE
        };
        // Writes that are lost without a word cannot be told from writes that never were, if they are lost everywhere.
        let kinds = if self.plan.beyond { 5 } else { 6 };
        let what = match rng.below(kinds) {
            0 => {
                drive.fails = if drive.fails > 0 { 0 } else { 20 };
                "writes fail"
            }
            1 => {
                let gone = &mut self.nodes[victim].port.places[0].gone;
                *gone = !*gone;
                "device gone, or back"
            }
            2 => {
                for _ in 0..4 {
                    if let Some(at) = drive.disk.some_page(rng).filter(counts) {
                        drive.disk.bad.insert(at / 512);
                    }
                }
                "sectors cannot be read"
            }
            5 => {
                drive.drops = if drive.drops > 0 { 0 } else { 30 };
                "writes are lost"
            }
            _ => {
                for _ in 0..4 {
                    if let Some(at) = drive.disk.some_page(rng).filter(counts) {
                        let mut byte = [0];
                        let at = at + rng.below(4096);
                        drive.disk.peek(at, &mut byte);
                        drive.disk.rot(at, &[byte[0] ^ 1 << rng.below(8)]);
                    }
                }
                "bits rot"
            }
        };
        self.story.mark(what);
        self.say(&format!("device of node {}: {what}", victim + 1));
    }

    /// The device of the run that is damaged is another one from now on, with nothing on it.
    fn renew(&mut self) {
        let nodes = self.nodes.len() as u64;
        let rng = &mut self.faults.rng;
        let victim = self
            .faults
            .victim
            .get_or_insert_with(|| rng.below(nodes) as usize);
        let victim = *victim;
        if self.nodes[victim].core.is_none() {
            return;
        }
        self.story.mark("device formatted anew");
        self.say(&format!(
            "the device of node {} is formatted anew",
            victim + 1
        ));
        self.end_node(victim, true);
        self.nodes[victim].renew();
        let off = self.faults.rng.below(4000 * self.plan.longer);
        let back = self.now + (1 + off) * 1_000_000;
        self.start_later(victim, back);
    }

    /// Nothing goes wrong any more, and all that is off is started.
    pub(crate) fn heal(&mut self) {
        self.say("all is made well");
        self.mend_cuts();
        self.net.pace = self.plan.pace;
        self.upgrade_all();
        for node in 0..self.nodes.len() {
            self.nodes[node].stopped_until = 0;
            for drive in &mut self.nodes[node].drives {
                drive.stuck_until = 0;
                drive.fails = 0;
                drive.drops = 0;
                drive.disk.bad.clear();
            }
            self.nodes[node].port.places[0].gone = false;
            if self.nodes[node].core.is_none() {
                self.start_node(node);
            }
        }
    }
}
