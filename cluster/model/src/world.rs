//! A model's state: the replicas, their devices, the connections, the clients, and what is known of
//! the past.
//!
//! Invariants:
//! - a step changes copies: replicas and devices are shared between the states that did not touch them;
//! - every clock runs at the same pace, and each is ahead of the one before it by much more than any
//!   wait: a time of one replica that another takes for its own shows;
//! - what a replica did is judged as it was done: each effect before the next one.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::message::{ErrorCode, Reply};

use crate::broken::Broken;
use crate::client::{self, Cached, Client, End, Reader};
use crate::disk::{Disk, Mark};
use crate::hash;
use crate::local::{Cause, Effect, Face, Local, Step};
use crate::net::{Item, Net};
use crate::plan::{Plan, Seen};

/// One replica's process and device, and how it looks now.
#[derive(Clone, Debug)]
pub struct Node {
    /// It.
    pub local: Arc<Local>,
    /// How it looks.
    pub face: Arc<Face>,
}

/// What is left of each bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    /// See [`Plan`].
    pub ticks: u8,
    /// See [`Plan`].
    pub crashes: u8,
    /// See [`Plan`].
    pub rots: u8,
    /// See [`Plan`].
    pub breaks: u8,
    /// See [`Plan`].
    pub drops: u8,
    /// See [`Plan`].
    pub repeats: u8,
    /// See [`Plan`].
    pub give_ups: u8,
    /// See [`Plan`].
    pub pauses: u8,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct World {
    /// Since the beginning, in nanoseconds.
    pub now: u64,
    /// The replicas.
    pub nodes: Vec<Node>,
    /// Their connections.
    pub net: Net,
    /// The clients.
    pub clients: Vec<Client>,
    /// Those that read by witnesses.
    pub readers: Vec<Reader>,
    /// What is left of each bound.
    pub left: Left,
    /// The replica that is at work, where pauses are counted.
    pub at_work: Option<u8>,
    /// What any replica ever took for committed.
    pub committed: Arc<Vec<Mark>>,
    /// What did not hold: bits by [`Broken`].
    pub broken: u32,
    /// It is only tried what comes of a state without any more faults.
    pub healing: bool,
}

impl World {
    /// Of everything that what may still happen depends on.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = hash::Fold::default();
        let state = &mut hasher;
        self.now.hash(state);
        self.nodes
            .iter()
            .for_each(|node| node.local.hash.hash(state));
        self.net.hash(state);
        self.clients.hash(state);
        self.readers.hash(state);
        self.left.hash(state);
        self.at_work.hash(state);
        for mark in self.committed.iter() {
            (mark.term, mark.bytes).hash(state);
        }
        self.broken.hash(state);
        hasher.finish()
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint());
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

impl World {
    /// Everything is blank, and nothing runs.
    pub fn new(plan: &Plan) -> Self {
        let blank = Node {
            local: Arc::new(Local::blank()),
            face: Arc::default(),
        };
        Self {
            now: 1_000_000_000,
            nodes: vec![blank; plan.nodes],
            net: Net::new(plan.nodes),
            clients: vec![Client::default(); plan.wishes.len()],
            readers: vec![Reader::default(); plan.readers],
            left: Left {
                ticks: plan.ticks,
                crashes: plan.crashes,
                rots: plan.rots,
                breaks: plan.breaks,
                drops: plan.drops,
                repeats: plan.repeats,
                give_ups: plan.give_ups,
                pauses: plan.pauses.unwrap_or(0),
            },
            at_work: None,
            committed: Arc::default(),
            broken: 0,
            healing: false,
        }
    }

    /// How a node looks.
    pub fn face(&self, at: usize) -> &Face {
        &self.nodes[at].face
    }

    /// A node's device.
    pub fn disk(&self, at: usize) -> &Disk {
        &self.nodes[at].local.disk
    }

    /// Whether a node's process runs.
    pub fn runs(&self, at: usize) -> bool {
        self.face(at).runs
    }

    /// Nodes that run.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|at| self.runs(*at))
    }

    /// It does not hold.
    pub fn fail(&mut self, what: Broken) {
        self.broken |= 1 << what as u32;
    }

    /// It happened, unless that is no more part of the model.
    pub fn saw(&self, plan: &Plan, what: Seen) {
        if !self.healing {
            plan.saw(what);
        }
    }

    /// Whether it holds.
    pub fn holds(&self, what: Broken) -> bool {
        self.broken & 1 << what as u32 == 0
    }

    /// Whether a node has a deadline that has come.
    pub fn is_due(&self, at: usize) -> bool {
        self.face(at).due.is_some_and(|due| due <= self.now)
    }

    /// Changes a node behind its replica's back.
    pub fn put(&mut self, plan: &Plan, at: usize, change: impl FnOnce(&mut Local)) {
        let mut local = Local::clone(&self.nodes[at].local);
        change(&mut local);
        local.rehash();
        self.nodes[at].local = Arc::new(local);
        self.look(plan, at);
    }

    fn look(&mut self, plan: &Plan, at: usize) {
        let node = &mut self.nodes[at];
        node.face = plan.face(at, &node.local, self.now);
    }

    /// Time goes on.
    pub fn wait(&mut self, plan: &Plan, by: u64) {
        self.now += by;
        for at in 0..self.nodes.len() {
            self.look(plan, at);
        }
    }

    /// Starts a process on what its device holds.
    pub fn start(&mut self, plan: &Plan, at: usize) {
        let mut running: Vec<usize> = self.running().collect();
        running.push(at);
        self.net.began(at, &running);
        self.tell(plan, at, &Cause::Start);
        let desired = self.nodes[at].local.desired;
        if desired > 0 {
            self.tell(plan, at, &Cause::Desired(desired));
        }
    }

    /// A process ends.
    pub fn crash(&mut self, plan: &Plan, at: usize, keep: usize, lost: bool, rot: bool) {
        self.net.ended(at, lost);
        // Its clients' connections end with it.
        for client in &mut self.clients {
            client.stray.retain(|attempt| attempt.to != at);
            if client.attempt.is_some_and(|(attempt, _)| attempt.to == at) {
                client.attempt = None;
            }
        }
        let step = plan.step(
            at,
            &self.nodes[at].local,
            self.now,
            &Cause::Crash { keep, rot },
        );
        self.becomes(at, &step);
        for effect in &step.effects {
            if let Effect::Shows(what) = effect {
                self.saw(plan, *what);
            }
        }
    }

    fn becomes(&mut self, at: usize, step: &Step) {
        let (local, face) = (step.after.clone(), step.face.clone());
        self.nodes[at] = Node { local, face };
    }

    /// The next item from one replica reaches another; it may do so once more.
    pub fn deliver(&mut self, plan: &Plan, from: usize, to: usize, again: bool) {
        let item = if again {
            self.net.queue(from, to).next().cloned()
        } else {
            self.net.pop(from, to)
        };
        let cause = match item {
            None => return,
            Some(Item::Up) => Cause::Up(from),
            Some(Item::Down) => Cause::Down(from),
            Some(Item::Letter(letter)) => Cause::Letter(letter),
        };
        self.tell(plan, to, &cause);
    }

    /// Lets something happen at a replica, carries out what it wants, and looks whether all is well.
    pub fn tell(&mut self, plan: &Plan, at: usize, cause: &Cause) {
        let step = plan.step(at, &self.nodes[at].local, self.now, cause);
        self.becomes(at, &step);
        let mut prompt = Vec::new();
        for effect in &step.effects {
            match effect {
                Effect::Shows(what) => self.saw(plan, *what),
                Effect::Fails(what) => self.fail(*what),
                Effect::Writes(marks) => {
                    let others = (0..self.nodes.len()).filter(|other| *other != at);
                    let two = marks.iter().any(|mark| {
                        let mut others = others.clone();
                        others.any(|other| self.disk(other).contradicts(mark))
                    });
                    if two {
                        self.fail(Broken::TwoValues);
                    }
                }
                Effect::Handled {
                    before,
                    committed,
                    term,
                    held,
                    base,
                } => self.observe(at, (*before, *committed), *term, (held, *base)),
                Effect::Says { to, letter, ack } => {
                    if *ack {
                        prompt.push(*to);
                    }
                    self.net.send(at, *to, letter.clone());
                }
                Effect::Answers {
                    reply_to,
                    reply,
                    durable,
                } => self.answered(plan, at, (*reply_to, reply), durable.as_ref()),
            }
        }
        self.judge(plan);
        for to in prompt.into_iter().filter(|_| plan.prompt_acks) {
            if self.runs(to) && self.net.queue(at, to).count() == 1 {
                self.deliver(plan, at, to, false);
            }
        }
    }

    /// A reader looks up the first key at a node, and remembers what it is told, if there is anything.
    pub fn remember(&mut self, reader: usize, at: usize) {
        let face = self.face(at);
        let found = face.look_ups.first().copied().flatten();
        if let Some((version, as_of, config)) = found.filter(|found| found.0.0 > 0) {
            let members = face.member_bits();
            self.readers[reader].cached = Some(Cached {
                version,
                as_of,
                config,
                members,
            });
        }
    }

    fn answered(
        &mut self,
        plan: &Plan,
        at: usize,
        (reply_to, reply): (u64, &Reply),
        durable: Option<&Mark>,
    ) {
        if reply_to >= HEAL {
            return;
        }
        let (client, request) = ((reply_to >> 16) as usize, (reply_to >> 8) as u8);
        let (id, no) = (client::client_id(client), client::request_no(request));
        if let Reply::Committed { seq, .. } = reply {
            // Whoever waits for it: it is told.
            self.check_committed(plan, at, *seq, (id, no), durable);
        }
        let healing = self.healing;
        let saw = |what| {
            if !healing {
                plan.saw(what);
            }
        };
        let Some(held) = self.clients.get_mut(client) else {
            return;
        };
        let Some((attempt, _)) = held.attempt.filter(|(a, _)| a.reply_to(client) == reply_to)
        else {
            if let Reply::Error(error) = reply
                && error.code == ErrorCode::NotHead
            {
                saw(Seen::Stray);
            }
            return;
        };
        match reply {
            Reply::Committed { seq, .. } => {
                saw(Seen::Commit);
                if attempt.retry.is_some() {
                    saw(Seen::Retry);
                }
                held.told = held.told.max(*seq);
                held.ended(End::Done(*seq));
            }
            Reply::Error(error) => match error.code {
                ErrorCode::PreconditionFailed => {
                    saw(Seen::Refusal);
                    held.ended(End::Refused);
                    self.check_refused(plan, client, request);
                }
                ErrorCode::OutcomeUnknown => held.ended(End::Unknown),
                _ => held.attempt = None,
            },
            _ => held.attempt = None,
        }
    }

    /// The highest entry that was ever committed.
    pub fn committed(&self) -> Seq {
        Seq(self.committed.len() as u64)
    }
}

/// Answers with such numbers are the healer's.
pub const HEAL: u64 = 1 << 40;
