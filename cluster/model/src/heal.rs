//! No more faults: what a state must lead to.
//!
//! From one state in so many, of which a hash decides: replicas that do not run are started until no
//! more than f are away, or, by another bit of the hash, one that runs is ended so that f are; all
//! connections break and are made again; then everything that is due happens, in a fixed order.
//! Within a bounded time a change must be committed. In the meantime everything else must hold too.

use ashlar_cluster_journal::Event;
use ashlar_layout::ids::{ClientId, RequestNo, Seq};
use ashlar_layout::manifest::{Op, Precondition};

use crate::broken::Broken;
use crate::chain::Chain;
use crate::client::{self, PROBE};
use crate::disk::Mark;
use crate::local::Cause;
use crate::plan::Plan;
use crate::world::{HEAL, World};

/// Longest wait for a commit after all faults, in nanoseconds.
const PATIENCE: u64 = 20_000_000_000;
/// Steps without time going on: more is a storm.
const STORM: u32 = 20_000;

impl World {
    /// Commits a change, whatever it takes.
    pub fn make(
        &mut self,
        plan: &Plan,
        id: ClientId,
        no: RequestNo,
        op: &Op,
    ) -> Result<Seq, String> {
        let mut asked = false;
        let deadline = self.now + PATIENCE;
        loop {
            if let Some(mark) = self
                .committed
                .iter()
                .find(|m| (m.client, m.request) == (id, no))
            {
                return Ok(mark.seq);
            }
            if self.broken != 0 {
                return Ok(Seq(0));
            }
            if self.now > deadline {
                return Err(self.story("nothing is committed"));
            }
            let serves = |at: &usize| self.face(*at).serving;
            let found = self.running().find(serves);
            // Again and again: those that are refused did nothing, the others wait for the same entry.
            if let Some(at) = found {
                let retry = asked.then_some(Seq(0));
                asked = true;
                let event = Event::Propose {
                    reply_to: HEAL,
                    term: self.face(at).term,
                    client: id,
                    request: no,
                    retry,
                    precondition: Precondition::None,
                    op: op.clone(),
                    inline: bytes::Bytes::new(),
                    wall_ms: 0,
                };
                self.tell(plan, at, &Cause::Other(Box::new(event)));
            }
            let before = self.now;
            self.run(plan, |world| {
                let made = |mark: &Mark| (mark.client, mark.request) == (id, no);
                world.now > before || world.committed.iter().any(made)
            })?;
        }
    }

    /// Everything that is due happens, in a fixed order, until it is enough.
    pub fn run(&mut self, plan: &Plan, enough: impl Fn(&World) -> bool) -> Result<(), String> {
        self.run_among(plan, u8::MAX, enough)
    }

    /// As `run`, while only some (a bit each) do anything and hear of each other.
    pub fn run_among(
        &mut self,
        plan: &Plan,
        among: u8,
        enough: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        let mut steps = 0;
        while !enough(self) && self.broken == 0 {
            steps += 1;
            if steps > STORM {
                return Err(self.story("a storm"));
            }
            if !self.step(plan, among, &enough) {
                steps = 0;
                let awake = self.running().filter(|at| among & 1 << at != 0);
                let deadlines = awake.filter_map(|at| self.face(at).due);
                let next = deadlines.min().unwrap_or(u64::MAX);
                self.wait(plan, next.saturating_sub(self.now).clamp(1, 10_000_000));
            }
        }
        Ok(())
    }

    /// One round of what is due now, or less if that is enough; whether there was anything.
    fn step(&mut self, plan: &Plan, among: u8, enough: &impl Fn(&World) -> bool) -> bool {
        let awake = |at: usize| among & 1 << at != 0;
        let mut any = false;
        for to in 0..self.nodes.len() {
            if !self.runs(to) || !awake(to) {
                continue;
            }
            for from in 0..self.nodes.len() {
                if awake(from) && self.net.waits(from, to) {
                    any = true;
                    self.deliver(plan, from, to, false);
                    if enough(self) {
                        return true;
                    }
                }
            }
            if !self.disk(to).under_way.is_empty() {
                any = true;
                self.tell(plan, to, &Cause::Flush);
            }
            if self.nodes[to].local.chunks.waits() {
                any = true;
                self.tell(plan, to, &Cause::Index);
            }
            if self.is_due(to) {
                any = true;
                self.tell(plan, to, &Cause::Deadline);
            }
            if enough(self) {
                return true;
            }
        }
        any
    }

    fn story(&self, what: &str) -> String {
        use std::fmt::Write;
        let mut story = format!("{what} at {} ms", self.now / 1_000_000);
        for at in 0..self.nodes.len() {
            let status = self.nodes[at].local.story();
            let _ = write!(story, "\n  {}: {status}", crate::plan::device(at));
        }
        story
    }

    /// The members of the chain: of the newest composition that is committed on any node.
    fn members(&self) -> &[usize] {
        let faces = self.running().map(|at| self.face(at));
        let newest = faces.max_by_key(|face| (face.committed, face.config));
        newest.map_or(&[], |face| &face.members)
    }

    /// What it leads to without any more faults; why not, if nothing can be committed.
    pub fn healed(&self, plan: &Plan) -> Result<World, String> {
        let mut world = self.clone();
        world.healing = true;
        let choice = self.fingerprint();
        for at in 0..world.nodes.len() {
            if !world.runs(at) {
                world.start(plan, at);
            }
        }
        // f of the members are away: all connections of theirs are gone, too.
        let members = world.members().to_vec();
        let away = members.len().saturating_sub(1) / 2;
        if choice & 1 << 40 != 0 && !world.is_rotten() {
            for nth in 0..away {
                let at = members[((choice >> 41) as usize + nth) % members.len()];
                let keep = world.disk(at).under_way.len();
                world.crash(plan, at, keep, true, false);
            }
        }
        let running: Vec<usize> = world.running().collect();
        for (nth, &a) in running.iter().enumerate() {
            for &b in &running[nth + 1..] {
                world.net.broken(a, b);
            }
        }
        world.make(plan, PROBE, RequestNo(1), &client::put("probe"))?;
        Ok(world)
    }
}

impl Chain {
    /// Whether something can still be committed, if this state is one of those that are tried.
    pub fn goes_on(&self, world: &World) -> bool {
        let one_in = self.plan.heal_one_in;
        if !world.holds(Broken::Stuck) {
            return false;
        }
        let chosen = (world.fingerprint() >> 20).is_multiple_of(one_in);
        if one_in == 0 || world.broken != 0 || !chosen {
            return true;
        }
        match world.healed(&self.plan) {
            Ok(healed) => healed.broken == 0,
            Err(_) => false,
        }
    }
}
