//! The model: which events may come next, and what each does.

use std::sync::Arc;

use ashlar_cluster_journal::Event;
use ashlar_layout::ids::{DeviceNo, Seq};
use stateright::{Model, Property};

use crate::act::Act;
use crate::broken::{Broken, PROPERTIES};
use crate::client::{self, Attempt, Cached};
use crate::net::Item;
use crate::plan::{Plan, Seen, node};
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
        Ok(Self {
            plan: Arc::new(plan),
            first,
        })
    }

    fn deliveries(&self, world: &World, acts: &mut Vec<Act>) {
        for to in world.running() {
            for from in 0..world.nodes.len() {
                match world.net.queue(from, to).front() {
                    None => {}
                    Some(Item::Letter(_)) if world.left.drops > 0 => {
                        acts.push(Act::Deliver { from, to });
                        acts.push(Act::Drop { from, to });
                    }
                    Some(_) => acts.push(Act::Deliver { from, to }),
                }
            }
        }
    }

    fn faults(&self, world: &World, acts: &mut Vec<Act>) {
        let plan = &self.plan;
        let may = |node: usize| plan.victims & 1 << node != 0;
        for node in (0..world.nodes.len()).filter(|node| may(*node)) {
            if world.nodes[node].replica.is_none() || world.left.crashes == 0 {
                continue;
            }
            for keep in 0..=world.nodes[node].disk.under_way.len() {
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
                let cut = |b: usize| world.net.cuts().contains(&(a, b));
                for &b in running[nth + 1..]
                    .iter()
                    .filter(|b| (may(a) || may(**b)) && !cut(**b))
                {
                    acts.push(Act::Break { a, b });
                }
            }
        }
    }

    fn wishes(&self, world: &World, acts: &mut Vec<Act>) {
        let plan = &self.plan;
        let serving: Vec<usize> = world.running().filter(|at| world.reigns(*at)).collect();
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
                    acts.extend(serving.iter().map(|&to| Act::Propose { client, to }));
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
        let plan = &self.plan;
        let Some(wish) = plan.wishes[client].get(usize::from(attempt.request)) else {
            return;
        };
        if world.nodes[attempt.to].process != attempt.process {
            return;
        }
        let event = Event::Propose {
            reply_to: attempt.reply_to(client),
            term: attempt.term,
            client: client::client_id(client),
            request: client::request_no(attempt.request),
            retry: attempt.retry,
            precondition: wish.precondition,
            op: wish.op(),
            inline: bytes::Bytes::new(),
            wall_ms: 0,
        };
        world.tell(plan, attempt.to, event);
    }

    fn ask(&self, world: &mut World, client: usize, to: usize) {
        let Some(replica) = world.replica(to) else {
            return;
        };
        let view = replica.view(world.clock(to));
        let process = world.nodes[to].process;
        let held = &mut world.clients[client];
        held.told = held.told.max(view.committed);
        let told = held.told;
        let retry = held.first_told;
        held.first_told.get_or_insert(told);
        let attempt = Attempt {
            to,
            term: view.term,
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

    fn look_up(&self, world: &mut World, reader: usize, at: usize) {
        let key = self.plan.keys()[0];
        let Some((version, as_of, config)) = world.look_up(at, key).filter(|found| found.0.0 > 0)
        else {
            return;
        };
        let members = world.replica(at).map_or(0, |replica| {
            client::bits(&replica.view(world.clock(at)).members)
        });
        world.readers[reader].cached = Some(Cached {
            version,
            as_of,
            config,
            members,
        });
    }

    /// A witness answers: enough of them, and the read is done.
    fn witness(&self, world: &mut World, reader: usize, at: usize) {
        let plan = &self.plan;
        let Some(replica) = world.replica(at) else {
            return;
        };
        let (config, highest) = replica.witness(client::slot(plan.keys()[0]));
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
        self.deliveries(world, acts);
        for node in world.running() {
            if !world.nodes[node].disk.under_way.is_empty() {
                acts.push(Act::Flush { node });
            }
            if world.deadline(node).is_some_and(|due| due <= world.now) {
                acts.push(Act::Timer { node });
            }
            let told = plan.told & 1 << node != 0;
            if told && usize::from(world.nodes[node].desired) < plan.desired.len() {
                acts.push(Act::Desire { node });
            }
        }
        for node in 0..world.nodes.len() {
            if world.nodes[node].replica.is_none() {
                acts.push(Act::Restart { node });
            }
        }
        acts.extend((0..world.net.cuts().len()).map(|nth| Act::Mend { nth }));
        self.wishes(world, acts);
        self.reads(world, acts);
        self.faults(world, acts);
        if world.left.ticks > 0 {
            acts.push(Act::Tick);
        }
    }

    fn next_state(&self, last: &World, act: Act) -> Option<World> {
        let plan = &self.plan;
        let mut world = last.clone();
        match act {
            Act::Deliver { from, to } => world.deliver(plan, from, to),
            Act::Drop { from, to } => {
                world.left.drops -= 1;
                world.net.pop(from, to)?;
            }
            Act::Flush { node } => world.flush(plan, node),
            Act::Timer { node } => world.tell(plan, node, Event::Deadline),
            Act::Tick => {
                world.left.ticks -= 1;
                world.now += u64::try_from(plan.quantum.as_nanos()).ok()?;
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
                self.look_up(&mut world, reader, node);
            }
            Act::Begin { reader } => {
                let floor = world.version(plan.keys()[0]);
                world.readers[reader].asking = Some((floor, 0));
            }
            Act::Witness { reader, node } => {
                self.witness(&mut world, reader, node);
            }
            Act::Desire { node } => {
                let members: Vec<DeviceNo> = plan
                    .desired
                    .get(usize::from(world.nodes[node].desired))?
                    .clone();
                world.nodes[node].desired += 1;
                world.tell(plan, node, Event::Desired { members });
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let holds: [fn(&Self, &World) -> bool; 12] = [
            |_, world| world.holds(Broken::Lost),
            |_, world| world.holds(Broken::TwoValues),
            |_, world| world.holds(Broken::Disagree),
            |_, world| world.holds(Broken::StaleRead),
            |_, world| world.holds(Broken::StaleCache),
            |_, world| world.holds(Broken::Twice),
            |_, world| world.holds(Broken::NotDurable),
            |_, world| world.holds(Broken::RefusedYetMade),
            |_, world| world.holds(Broken::Stopped),
            |_, world| world.holds(Broken::Timer),
            |_, world| world.holds(Broken::OldPromise),
            |_, world| world.holds(Broken::OldReign),
        ];
        let goes_on: fn(&Self, &World) -> bool = |chain, world| chain.goes_on(world);
        let all = holds.into_iter().chain([goes_on]);
        PROPERTIES
            .into_iter()
            .zip(all)
            .map(|(name, holds)| Property::always(name, holds))
            .collect()
    }

    fn within_boundary(&self, world: &World) -> bool {
        let most = self.plan.rounds + 1;
        world.running().all(|at| world.round(at) <= most)
    }
}

impl World {
    /// Whether a client may take this node for the head of the reign that it is in: it was told so then,
    /// or earlier.
    pub fn reigns(&self, at: usize) -> bool {
        let now = self.clock(at);
        self.replica(at).is_some_and(|replica| {
            let term = replica.view(now).term;
            let held = &self.nodes[at].disk.held;
            node(term.head()) == at && held.iter().flatten().any(|mark| mark.term == term)
        })
    }

    /// Whether a client that asks this node is told that it serves.
    pub fn serves(&self, at: usize) -> bool {
        let now = self.clock(at);
        self.replica(at).is_some_and(|replica| {
            let view = replica.view(now);
            view.serving && node(view.term.head()) == at
        })
    }

    /// The newest reign that a node knows of.
    pub fn round(&self, at: usize) -> u32 {
        let now = self.clock(at);
        self.replica(at)
            .map_or(0, |replica| replica.view(now).term.round())
    }

    /// The highest entry that was ever committed.
    pub fn committed(&self) -> Seq {
        Seq(self.committed.len() as u64)
    }
}
