//! Nodes that begin as older programs, and are upgraded one at a time.
//!
//! An older one is the shipped core that reads journal entries of older versions only, and says so, or says nothing, as
//! programs of before that could not. What else was different of them is not simulated.
//!
//! Invariants:
//! - a node is never an older one again;
//! - whatever the map allows, no replica is given what it cannot read: that is wrong, and so is it if not everything is
//!   allowed when all nodes are new.

use ashlar_layout::version::{ENTRY_VERSION, ENTRY_VERSION_LEAST};

use crate::disk::Rng;
use crate::plan::Plan;
use crate::world::{Due, World};

/// How a run begins with older nodes.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// The newest version of entries that they read.
    pub reads: u16,
    /// Whether they say so.
    pub says: bool,
    /// Which nodes they are: one bit for each.
    pub nodes: u32,
    /// The map allows from the beginning what they cannot read: what a checker has to notice.
    pub ungated: bool,
}

impl Upgrade {
    /// That of a seed, if it has one: those of the corpus have none, and go the way that they went.
    pub fn of(seed: u64, nodes: usize) -> Option<Upgrade> {
        let mut rng = Rng(seed ^ 0x01d3_90de);
        if seed < 1000 || !rng.chance(33) {
            return None;
        }
        Some(Upgrade::some(&mut rng, nodes))
    }

    /// Whichever chance brings.
    pub fn some(rng: &mut Rng, nodes: usize) -> Upgrade {
        let reads = ENTRY_VERSION_LEAST + u16::from(rng.chance(40));
        let all = (1u32 << nodes) - 1;
        let mask = match rng.chance(30) {
            true => all,
            false => rng.next() as u32 & all,
        };
        Upgrade {
            reads,
            // Who says nothing reads the least.
            says: reads > ENTRY_VERSION_LEAST || rng.chance(50),
            nodes: if mask == 0 { 1 } else { mask },
            ungated: false,
        }
    }

    /// What the first map allows.
    pub fn level(&self) -> u16 {
        match (self.ungated, self.says) {
            (true, _) => ENTRY_VERSION,
            (false, true) => self.reads,
            (false, false) => ENTRY_VERSION_LEAST,
        }
    }

    /// Whether a node begins as an older one.
    pub fn begins_older(&self, node: usize) -> bool {
        self.nodes >> node & 1 == 1
    }
}

/// What the first map of a plan allows.
pub fn level(plan: &Plan) -> u16 {
    plan.upgrade.as_ref().map_or(ENTRY_VERSION, Upgrade::level)
}

impl World {
    /// Puts the upgrades of the run on the agenda: the last one while there is time left.
    pub(crate) fn plan_upgrades(&mut self) {
        let Some(upgrade) = self.plan.upgrade.clone().filter(|it| !it.ungated) else {
            return;
        };
        let mut older: Vec<usize> = (0..self.nodes.len())
            .filter(|node| upgrade.begins_older(*node))
            .collect();
        let mut rng = Rng(self.plan.seed ^ 0x0f9a_de51);
        let step = self.plan.length * 6 / 10 / (older.len() as u64 + 1);
        let mut at = self.now;
        while !older.is_empty() {
            let node = older.remove(rng.below(older.len() as u64) as usize);
            at += step / 2 + rng.below(step.max(1));
            self.at(at, Due::Upgrade(node, rng.chance(50)));
        }
    }

    /// A node's process is ended, in order or not: the next one there is of the newest version.
    pub(crate) fn upgrade(&mut self, node: usize, in_order: bool) {
        if self.nodes[node].reads == ENTRY_VERSION {
            return;
        }
        if self.nodes.iter().any(|it| it.newer_next) {
            // One after the other.
            let later = self.now + 500_000_000;
            return self.at(later, Due::Upgrade(node, in_order));
        }
        let how = if in_order { "ends" } else { "is killed" };
        self.say(&format!("node {} {how} to be upgraded", node + 1));
        self.nodes[node].newer_next = true;
        if in_order && self.nodes[node].stop() {
            // It starts when it has ended.
            return self.rouse(node);
        }
        if self.nodes[node].core.is_some() {
            self.end_node(node, false);
            let back = self.now + 300_000_000;
            self.start_later(node, back);
        }
    }

    /// What is left of older nodes is upgraded now.
    pub(crate) fn upgrade_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].reads < ENTRY_VERSION {
                self.nodes[node].newer_next = true;
                self.end_node(node, false);
            }
        }
    }

    /// Notes that a process starts as a newer one.
    pub(crate) fn note_upgrade(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if std::mem::take(&mut it.newer_next) {
            it.reads = ENTRY_VERSION;
            self.story.mark("node upgraded");
            self.say(&format!("node {} is of the newest version", node + 1));
        }
    }

    /// Looks whether a node was given what it cannot read.
    pub(crate) fn check_read(&mut self, node: usize) {
        if self.nodes[node].met_newer() {
            let (now, reads) = (self.now, self.nodes[node].reads);
            let node = node + 1;
            let what = format!(
                "node {node} reads entries up to version {reads}, and was given a newer one"
            );
            self.story.wrong(now, what);
        }
    }
}
