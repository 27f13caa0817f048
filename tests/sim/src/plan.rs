//! What a seed stands for: how large the cluster is, how tight its limits are, what may go wrong.

use crate::disk::Rng;
use crate::net::Pace;
use crate::upgrades::Upgrade;

/// One run, but for its chances.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed that it was made of.
    pub seed: u64,
    /// Nodes, each in a zone of its own.
    pub nodes: usize,
    /// The class of objects.
    pub class: &'static str,
    /// Bytes of a device,
    pub device: u64,
    /// of its extents,
    pub extent: u64,
    /// and of its blocks.
    pub block: u32,
    /// Bytes of data of a stripe.
    pub stripe: u32,
    /// Bytes of an index's cache,
    pub index_cache: usize,
    /// of its table,
    pub table_bytes: usize,
    /// and of journal that is kept for who was away.
    pub keep_bytes: u64,
    /// Clients, each with one operation under way.
    pub clients: usize,
    /// Keys.
    pub keys: u32,
    /// The largest object that rides in the journal, in bytes,
    pub inline: u32,
    /// and the largest there is.
    pub largest: u32,
    /// Simulated nanoseconds with faults.
    pub length: u64,
    /// Nanoseconds between two faults, about.
    pub fault_every: u64,
    /// Nanoseconds between two operations of a client, about.
    pub think: u64,
    /// So many times longer than in the other runs do faults last and does the control plane wait: in a long run
    /// little is done in much time, and what comes with time alone (terms, leases, clocks that go apart, the wait
    /// before a device is out, its coming back after all) is what there is to be seen.
    pub longer: u64,
    /// How fast the network is.
    pub pace: Pace,
    /// Partitions with more objects are split.
    pub split_objects: u64,
    /// Which kinds of faults come: one bit for each number that [`crate::faults`] throws.
    pub faults: u32,
    /// No device is damaged and no client dies: at the end there are just the shards that objects name, unless
    /// somebody was told that he does not know.
    pub tidy: bool,
    /// The devices are so small that they fill up: then nothing need go on, and what is answered has to be right.
    pub crowded: bool,
    /// Free extents from which devices are cleaned, if not when they are almost full.
    pub clean_from: Option<u32>,
    /// The device that is damaged is formatted anew now and then, under its old number.
    pub renews: bool,
    /// Any device may be damaged, and not only one: answers may fail then, and may not be wrong.
    pub beyond: bool,
    /// The disks call durable what is not: what a checker has to notice.
    pub lying: bool,
    /// There are keys whose objects have versions, and keys whose objects are renamed and made longer.
    pub versions: bool,
    /// What clients get wrong of that: what a checker has to notice.
    pub mistake: Option<Mistake>,
    /// Stripes are put elsewhere, as of objects whose devices are out.
    pub moves: bool,
    /// Some nodes begin as older ones.
    pub upgrade: Option<Upgrade>,
}

/// What clients of a canary get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A new version comes without its lock.
    LockForgotten,
    /// What is current is removed, where a marker should say that there is nothing.
    MarkerForgotten,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let mut rng = Rng(seed ^ 0x5eed_0fa1);
        let pick = |rng: &mut Rng, of: &[u64]| of[rng.below(of.len() as u64) as usize];
        let (nodes, class) = match rng.below(4) {
            0 => (4, "1+2"),
            1 => (5, "2+2"),
            2 => (6, "4+2"),
            _ => (6, "2+2"),
        };
        let plan = Plan {
            seed,
            nodes,
            class,
            device: if seed % 7 == 3 { 64 << 20 } else { 256 << 20 },
            extent: 1 << 20,
            block: if rng.chance(30) { 512 } else { 4096 },
            stripe: pick(&mut rng, &[4096, 8192, 16384]) as u32,
            index_cache: pick(&mut rng, &[64 << 10, 1 << 20]) as usize,
            table_bytes: pick(&mut rng, &[4 << 10, 16 << 10, 1 << 20]) as usize,
            keep_bytes: pick(&mut rng, &[16 << 10, 256 << 10, 4 << 20]),
            clients: 2 + rng.below(4) as usize,
            keys: 2 + rng.below(7) as u32,
            inline: pick(&mut rng, &[64, 600, 4096]) as u32,
            largest: pick(&mut rng, &[4096, 20_000, 100_000]) as u32,
            length: 1_000_000_000 * pick(&mut rng, &[15, 30, 60]),
            fault_every: 1_000_000 * pick(&mut rng, &[400, 1500, 5000]),
            think: 1_000_000 * pick(&mut rng, &[20, 80, 400]),
            longer: 1,
            pace: Pace {
                least: 20_000,
                spread: pick(&mut rng, &[60_000, 400_000, 5_000_000]),
                split: pick(&mut rng, &[0, 2, 20]),
            },
            split_objects: pick(&mut rng, &[2, 1000]),
            faults: u32::MAX,
            tidy: seed.is_multiple_of(3),
            crowded: seed % 7 == 3,
            // Few ever fill up.
            clean_from: (seed % 4 < 3).then_some(u32::MAX),
            renews: seed % 4 == 1 && seed % 5 != 4,
            beyond: seed % 5 == 4,
            lying: false,
            // Those that once failed without them go the way that they went.
            versions: Rng(seed ^ 0x7e25_1068).chance(50),
            mistake: None,
            moves: seed >= 1000 && Rng(seed ^ 0x3e10_ca7e).chance(60),
            upgrade: Upgrade::of(seed, nodes),
        };
        // Those of the corpus are short.
        if seed < 1000 || seed % 11 >= 4 {
            return plan;
        }
        let long = Plan {
            length: 1_000_000_000 * pick(&mut rng, &[600, 1200]),
            fault_every: 1_000_000_000 * pick(&mut rng, &[10, 30]),
            think: 1_000_000_000 * pick(&mut rng, &[2, 10]),
            longer: 15,
            ..plan
        };
        if !seed.is_multiple_of(11) {
            return long;
        }
        // A quiet hour.
        Plan {
            length: 3_600_000_000_000,
            fault_every: 60_000_000_000,
            think: 20_000_000_000,
            ..long
        }
    }
}

impl Plan {
    /// Smaller plans, each in one way.
    pub fn smaller(&self) -> Vec<Plan> {
        let mut plans = Vec::new();
        let mut with = |change: &dyn Fn(&mut Plan)| {
            let mut plan = self.clone();
            change(&mut plan);
            plans.push(plan);
        };
        if self.length > 1_000_000_000 {
            with(&|plan| plan.length /= 2);
            with(&|plan| plan.length -= plan.length / 4);
        }
        if self.clients > 1 {
            with(&|plan| plan.clients -= 1);
        }
        if self.keys > 1 {
            with(&|plan| plan.keys -= 1);
        }
        for kind in 0..20 {
            if self.faults & 1 << kind != 0 {
                with(&|plan| plan.faults &= !(1 << kind));
            }
        }
        with(&|plan| plan.think *= 2);
        let older = self.upgrade.as_ref().map_or(0, |it| it.nodes);
        for bit in (0..32).map(|node| 1 << node).filter(|bit| older & bit != 0) {
            with(&|plan| plan.set_older(older & !bit));
        }
        plans
    }

    /// Which nodes begin as older ones: one bit for each.
    fn set_older(&mut self, nodes: u32) {
        self.upgrade = self.upgrade.take().filter(|_| nodes != 0);
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.nodes = nodes;
        }
    }

    /// Sets one of the numbers that [`Plan::smaller`] changes.
    ///
    /// # Errors
    /// If there is no such number, or it is none.
    pub fn set(&mut self, setting: &str) -> Result<(), String> {
        let (name, value) = setting.split_once('=').ok_or("it takes NAME=NUMBER")?;
        let value: u64 = value.parse().map_err(|e| format!("'{value}': {e}"))?;
        match name {
            "length" => self.length = value,
            "clients" => self.clients = value.clamp(1, 64) as usize,
            "keys" => self.keys = value.clamp(1, 1000) as u32,
            "think" => self.think = value.max(1),
            "fault_every" => self.fault_every = value.max(2),
            "faults" => self.faults = value as u32,
            "older" => self.set_older(value as u32),
            _ => {
                return Err(format!(
                    "'{name}' is none of length, clients, keys, think, fault_every, faults, older"
                ));
            }
        }
        Ok(())
    }

    /// What [`Plan::set`] takes to come from the plan of the seed to this one.
    pub fn settings(&self) -> String {
        let (length, clients, keys) = (self.length, self.clients, self.keys);
        let (think, faults) = (self.think, self.faults);
        let older = self.upgrade.as_ref().map_or(0, |it| it.nodes);
        format!(
            "--set length={length} --set clients={clients} --set keys={keys} --set think={think} --set faults={faults} \
             --set older={older}"
        )
    }
}
