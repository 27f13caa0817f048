//! The model: which events may come next, and what each does.

use std::sync::Arc;

use stateright::{Model, Property};

use crate::act::Act;
use crate::broken::Broken;
use crate::client::Attempt;
use crate::local::Cause;
use crate::net::Item;
use crate::plan::{Plan, Seen};
use crate::world::World;

/// A chain, within the bounds of a plan.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The bounds.
    pub plan: Arc<Plan>,
    /// Where it begins.
    pub first: World,
}

impl Chain {
    /// From a chain that runs quietly, its bucket made.
    pub fn new(plan: Plan) -> Result<Self, String> {
        let first = World::begun(&plan)?;
        plan.forget();
        Ok(Self {
            plan: Arc::new(plan),
            first,
        })
    }

    /// What a replica, or its device, is to do next.
    fn work(&self, world: &World, acts: &mut Vec<Act>) {
        for to in world.running() {
            for from in 0..world.nodes.len() {
                let first = world.net.queue(from, to).next();
                if first.is_some() {
                    acts.push(Act::Deliver { from, to });
                }
                if let Some(Item::Letter(_)) = first {
                    if world.left.drops > 0 {
                        acts.push(Act::Drop { from, to });
                    }
                    if world.left.repeats > 0 {
                        acts.push(Act::Repeat { from, to });
                    }
                }
            }
            if !world.disk(to).under_way.is_empty() {
                acts.push(Act::Flush { node: to });
            }
            if world.nodes[to].local.chunks.waits() {
                acts.push(Act::Index { node: to });
            }
            if world.is_due(to) {
                acts.push(Act::Timer { node: to });
            }
        }
    }

    fn faults(&self, world: &World, acts: &mut Vec<Act>) {
        let plan = &self.plan;
        let may = |node: usize| plan.victims & 1 << node != 0;
        let victims = world.running().filter(|node| may(*node));
        for node in victims.filter(|_| world.left.crashes > 0) {
            for keep in 0..=world.disk(node).under_way.len() {
                for lost in [false, true] {
                    if lost && !plan.crash_loses {
                        continue;
                    }
                    acts.push(Act::Crash {
                        node,
                        keep,
                        lost,
                        rot: false,
                    });
                    let rotten = plan.victims.trailing_zeros() as usize == node;
                    if world.left.rots > 0 && rotten {
                        acts.push(Act::Crash {
                            node,
                            keep,
                            lost,
                            rot: true,
                        });
                    }
                }
            }
        }
        if world.left.breaks > 0 {
            let running: Vec<usize> = world.running().collect();
            for (nth, &a) in running.iter().enumerate() {
                for &b in running[nth + 1..]
                    .iter()
                    .filter(|b| (may(a) || may(**b)) && !world.net.is_cut(a, **b))
                {
                    acts.push(Act::Break { a, b });
                }
            }
        }
    }

    fn wishes(&self, world: &World, acts: &mut Vec<Act>) {
        let plan = &self.plan;
        let reigning = || world.running().filter(|at| world.face(*at).reigned);
        for (client, held) in world.clients.iter().enumerate() {
            for nth in 0..held.stray.len() {
                acts.push(Act::Stray { client, nth });
            }
            match held.attempt {
                Some((_, arrived)) => {
                    if !arrived {
                        acts.push(Act::Arrive { client });
                    }
                    if world.left.give_ups > 0 {
                        acts.push(Act::GiveUp { client });
                    }
                }
                None if held.next() < plan.wishes[client].len()
                    && held.attempts < plan.attempts =>
                {
                    acts.extend(reigning().map(|to| Act::Propose { client, to }));
                }
                None => {}
            }
        }
    }

    fn reads(&self, world: &World, acts: &mut Vec<Act>) {
        for (reader, held) in world.readers.iter().enumerate() {
            if held.reads >= self.plan.reads {
                continue;
            }
            match (held.cached, held.asking) {
                (None, _) => {
                    for node in world.running() {
                        acts.push(Act::LookUp { reader, node });
                    }
                }
                (Some(_), None) => acts.push(Act::Begin { reader }),
                (Some(cached), Some((_, agreed))) => {
                    for node in world.running() {
                        if cached.members & !agreed & 1 << node != 0 {
                            acts.push(Act::Witness { reader, node });
                        }
                    }
                }
            }
        }
    }

    fn propose(&self, world: &mut World, client: usize, attempt: Attempt) {
        if world.nodes[attempt.to].local.process == attempt.process {
            let cause = Cause::Propose(client, attempt);
            world.tell(&self.plan, attempt.to, &cause);
        }
    }

    fn ask(&self, world: &mut World, client: usize, to: usize) {
        let face = world.nodes[to].face.clone();
        let process = world.nodes[to].local.process;
        let held = &mut world.clients[client];
        held.told = held.told.max(face.committed);
        let told = held.told;
        let retry = held.first_told;
        held.first_told.get_or_insert(told);
        let attempt = Attempt {
            to,
            term: face.term,
            process,
            request: held.next() as u8,
            number: held.attempts,
            retry,
        };
        held.attempts += 1;
        held.attempt = Some((attempt, !self.plan.late));
        if !self.plan.late {
            self.propose(world, client, attempt);
        }
    }

    /// A witness answers: enough of them, and the read is done.
    fn witness(&self, world: &mut World, reader: usize, at: usize) {
        let plan = &self.plan;
        let (config, highest) = world.face(at).witness;
        let held = &mut world.readers[reader];
        let (Some(cached), Some((floor, agreed))) = (held.cached, held.asking) else {
            return;
        };
        if config != Some(cached.config) || highest > cached.as_of {
            plan.saw(if config.is_none() {
                Seen::Ignorant
            } else {
                Seen::CachedMiss
            });
            // It looks up at the head.
            held.cached = None;
            held.asking = None;
            held.reads += 1;
            return;
        }
        let agreed = agreed | 1 << at;
        let f = cached.members.count_ones().saturating_sub(1) / 2;
        if agreed.count_ones() <= f {
            held.asking = Some((floor, agreed));
            return;
        }
        plan.saw(Seen::CachedRead);
        held.asking = None;
        held.reads += 1;
        if cached.version < floor {
            world.fail(Broken::StaleCache);
        }
    }
}

impl Model for Chain {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![self.first.clone()]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.broken != 0 {
            return;
        }
        let plan = &self.plan;
        self.work(world, acts);
        for node in 0..world.nodes.len() {
            if !world.runs(node) {
                acts.push(Act::Restart { node });
                continue;
            }
            let told = plan.told & 1 << node != 0;
            if told && usize::from(world.nodes[node].local.desired) < plan.desired.len() {
                acts.push(Act::Desire { node });
            }
        }
        acts.extend((0..world.net.cuts()).map(|nth| Act::Mend { nth }));
        self.wishes(world, acts);
        self.reads(world, acts);
        self.faults(world, acts);
        if world.left.ticks > 0 {
            acts.push(Act::Tick);
        }
        acts.retain(|act| world.may_happen(act));
    }

    fn next_state(&self, last: &World, act: Act) -> Option<World> {
        let plan = &self.plan;
        let mut world = last.clone();
        world.turn(plan, &act);
        match act {
            Act::Deliver { from, to } => world.deliver(plan, from, to, false),
            Act::Repeat { from, to } => {
                world.left.repeats -= 1;
                world.saw(plan, Seen::Repeat);
                world.deliver(plan, from, to, true);
            }
            Act::Drop { from, to } => {
                world.left.drops -= 1;
                world.net.pop(from, to)?;
            }
            Act::Flush { node } => world.tell(plan, node, &Cause::Flush),
            Act::Index { node } => world.tell(plan, node, &Cause::Index),
            Act::Timer { node } => world.tell(plan, node, &Cause::Deadline),
            Act::Tick => {
                world.left.ticks -= 1;
                world.wait(plan, u64::try_from(plan.quantum.as_nanos()).ok()?);
                world.judge(plan);
            }
            Act::Crash {
                node,
                keep,
                lost,
                rot,
            } => {
                world.left.crashes -= 1;
                world.left.rots -= u8::from(rot);
                world.crash(plan, node, keep, lost, rot);
            }
            Act::Restart { node } => world.start(plan, node),
            Act::Break { a, b } => {
                world.left.breaks -= 1;
                world.net.broken(a, b);
            }
            Act::Mend { nth } => {
                let running: Vec<usize> = world.running().collect();
                world.net.mend(nth, &running);
            }
            Act::Propose { client, to } => self.ask(&mut world, client, to),
            Act::Arrive { client } => {
                let (attempt, arrived) = world.clients[client].attempt.as_mut()?;
                *arrived = true;
                let attempt = *attempt;
                self.propose(&mut world, client, attempt);
            }
            Act::GiveUp { client } => {
                world.left.give_ups -= 1;
                let held = &mut world.clients[client];
                let (attempt, arrived) = held.attempt.take()?;
                if !arrived {
                    held.stray.push(attempt);
                }
            }
            Act::Stray { client, nth } => {
                let attempt = world.clients[client].stray.remove(nth);
                self.propose(&mut world, client, attempt);
            }
            Act::LookUp { reader, node } => {
                world.remember(reader, node);
            }
            Act::Begin { reader } => {
                let floor = world.version(plan.keys()[0]);
                world.readers[reader].asking = Some((floor, 0));
            }
            Act::Witness { reader, node } => {
                self.witness(&mut world, reader, node);
            }
            Act::Desire { node } => {
                let version = world.nodes[node].local.desired + 1;
                world.tell(plan, node, &Cause::Desired(version));
            }
        }
        world.rest();
        Some(world)
    }

    /// Two only, since the checker looks each of them up for each state: which one does not hold, of all that
    /// must, stands in the state.
    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("all that must hold", |_, world: &World| world.broken == 0),
            Property::always("something can be committed", |chain: &Self, world| {
                chain.goes_on(world)
            }),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        let most = self.plan.rounds + 1;
        world
            .running()
            .all(|at| world.face(at).term.round() <= most)
    }
}

/// Pauses. Where they are counted, a replica that has begun to work goes on until it has nothing to do. If
/// anything happens in which it has no part, before it is done, then it was paused.
impl World {
    fn has_work(&self, at: usize) -> bool {
        let waits = self.net.waits_for(at)
            || !self.disk(at).under_way.is_empty()
            || self.nodes[at].local.chunks.waits();
        self.runs(at) && (waits || self.is_due(at))
    }

    /// The node that an event happens at.
    fn place(&self, act: &Act) -> Option<usize> {
        match *act {
            Act::Deliver { to, .. }
            | Act::Repeat { to, .. }
            | Act::Drop { to, .. }
            | Act::Propose { to, .. } => Some(to),
            Act::Flush { node }
            | Act::Index { node }
            | Act::Timer { node }
            | Act::Crash { node, .. }
            | Act::Restart { node }
            | Act::LookUp { node, .. }
            | Act::Witness { node, .. }
            | Act::Desire { node } => Some(node),
            Act::Arrive { client } => self.clients[client].attempt.map(|(to, _)| to.to),
            Act::Stray { client, nth } => self.clients[client].stray.get(nth).map(|to| to.to),
            Act::Tick
            | Act::Break { .. }
            | Act::Mend { .. }
            | Act::GiveUp { .. }
            | Act::Begin { .. } => None,
        }
    }

    /// Whether the replica at work has a part in it.
    fn joins_in(&self, worker: usize, act: &Act) -> bool {
        match *act {
            Act::Break { a, b } => a == worker || b == worker,
            Act::Begin { .. } => true,
            _ => self.place(act) == Some(worker),
        }
    }

    fn may_happen(&self, act: &Act) -> bool {
        let joins_in = |worker: u8| self.joins_in(usize::from(worker), act);
        self.left.pauses > 0 || self.at_work.is_none_or(joins_in)
    }

    /// Whose turn it is when this happens.
    fn turn(&mut self, plan: &Plan, act: &Act) {
        if plan.pauses.is_none() {
            return;
        }
        if let Some(worker) = self.at_work {
            if self.joins_in(usize::from(worker), act) {
                return;
            }
            self.left.pauses -= 1;
            self.at_work = None;
        }
        if !matches!(
            act,
            Act::Restart { .. } | Act::LookUp { .. } | Act::Witness { .. }
        ) {
            self.at_work = self.place(act).map(|at| at as u8);
        }
    }

    /// Who has nothing to do is not at work.
    fn rest(&mut self) {
        let at_work = self.at_work;
        self.at_work = at_work.filter(|worker| self.has_work(usize::from(*worker)));
    }
}
