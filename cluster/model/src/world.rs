//! A model's state: the replicas, their devices, the connections, the clients, and what is known of
//! the past.
//!
//! Invariants:
//! - a step changes copies: replicas and devices are shared between the states that did not touch
//!   them, and their hashes are worked out once;
//! - every clock runs at the same pace, and each is ahead of the one before it by much more than any
//!   wait: a time of one replica that another takes for its own shows.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ashlar_cluster_journal::{Action, Event, Replica};
use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::message::{ChainBody, ErrorCode, Reply};
use ashlar_layout::time::Instant;

use crate::broken::Broken;
use crate::client::{self, Client, End, Reader};
use crate::disk::{self, Disk, Mark};
use crate::hash;
use crate::net::{Item, Letter, Net};
use crate::plan::{Plan, Seen, device};

/// How far each clock is ahead of the one before it.
const APART: u64 = 1_000_000_000_000_000;

/// One replica's process and device.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its process, if it runs.
    pub replica: Option<Arc<Replica>>,
    /// Its device.
    pub disk: Arc<Disk>,
    /// Counts its processes.
    pub process: u8,
    /// With whom it believes to be connected: a bit each.
    pub connected: u8,
    /// How much of what the cluster map wants it was told.
    pub desired: u8,
    /// It was left out, and knows it.
    pub retired: bool,
    hash: u64,
}

impl Node {
    /// A device without a process.
    pub fn blank() -> Self {
        let mut node = Self {
            replica: None,
            disk: Arc::default(),
            process: 0,
            connected: 0,
            desired: 0,
            retired: false,
            hash: 0,
        };
        node.rehash();
        node
    }

    fn rehash(&mut self) {
        self.hash = hash::of(&(
            &self.replica,
            &self.disk,
            self.process,
            self.connected,
            self.desired,
            self.retired,
        ));
    }
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
    pub give_ups: u8,
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
    /// What any replica ever took for committed.
    pub committed: Arc<Vec<Mark>>,
    /// What did not hold: bits by [`Broken`].
    pub broken: u32,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.now.hash(state);
        self.nodes.iter().for_each(|node| node.hash.hash(state));
        self.net.hash(state);
        self.clients.hash(state);
        self.readers.hash(state);
        self.left.hash(state);
        for mark in self.committed.iter() {
            (mark.term, mark.bytes).hash(state);
        }
        self.broken.hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        hash::of(self) == hash::of(other)
    }
}

impl World {
    /// Everything is blank, and nothing runs.
    pub fn new(plan: &Plan) -> Self {
        Self {
            now: 1_000_000_000,
            nodes: vec![Node::blank(); plan.nodes],
            net: Net::new(plan.nodes),
            clients: vec![Client::default(); plan.wishes.len()],
            readers: vec![Reader::default(); plan.readers],
            left: Left {
                ticks: plan.ticks,
                crashes: plan.crashes,
                rots: plan.rots,
                breaks: plan.breaks,
                drops: plan.drops,
                give_ups: plan.give_ups,
            },
            committed: Arc::default(),
            broken: 0,
        }
    }

    /// What a node's clock shows.
    pub fn clock(&self, node: usize) -> Instant {
        Instant(self.now + APART * node as u64)
    }

    /// The process of a node.
    pub fn replica(&self, node: usize) -> Option<&Replica> {
        self.nodes.get(node)?.replica.as_deref()
    }

    /// Nodes that run.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].replica.is_some())
    }

    /// It does not hold.
    pub fn fail(&mut self, what: Broken) {
        self.broken |= 1 << what as u32;
    }

    /// Whether it holds.
    pub fn holds(&self, what: Broken) -> bool {
        self.broken & 1 << what as u32 == 0
    }

    /// When a node wants to be told the time.
    pub fn deadline(&self, node: usize) -> Option<u64> {
        let deadline = self.replica(node)?.next_deadline()?;
        Some(deadline.0.saturating_sub(APART * node as u64))
    }

    /// Starts a process on what its device holds.
    pub fn start(&mut self, plan: &Plan, node: usize) {
        let held = &mut self.nodes[node];
        held.process += 1;
        held.connected = 0;
        held.retired = false;
        let mut replica = Replica::new(plan.config(node));
        for record in &held.disk.records {
            if record.rotten {
                let marks = disk::marks(&record.entries);
                let hint = marks.first().zip(marks.last());
                replica.replay_damaged(hint.map(|(first, last)| (first.seq, last.seq)));
            } else {
                replica.replay(&record.entries, record.at);
            }
        }
        held.replica = Some(Arc::new(replica));
        let desired = held.desired;
        let running: Vec<usize> = self.running().collect();
        self.net.began(node, &running);
        self.tell(plan, node, Event::Start {});
        if let Some(members) = desired
            .checked_sub(1)
            .and_then(|nth| plan.desired.get(usize::from(nth)))
        {
            let members = members.clone();
            self.tell(plan, node, Event::Desired { members });
        }
    }

    /// A process ends.
    pub fn crash(&mut self, plan: &Plan, node: usize, keep: usize, lost: bool, rot: bool) {
        let held = &mut self.nodes[node];
        held.replica = None;
        held.connected = 0;
        if keep < held.disk.under_way.len() {
            plan.saw(Seen::LostTail);
        }
        let disk = Arc::make_mut(&mut held.disk);
        disk.crash(keep);
        if rot && disk.rot() {
            plan.saw(Seen::Rot);
        }
        held.rehash();
        self.net.ended(node, lost);
        // Its clients' connections end with it.
        for client in &mut self.clients {
            client.stray.retain(|attempt| attempt.to != node);
            if client
                .attempt
                .is_some_and(|(attempt, _)| attempt.to == node)
            {
                client.attempt = None;
            }
        }
    }

    /// The next item from one replica reaches another.
    pub fn deliver(&mut self, plan: &Plan, from: usize, to: usize) {
        let Some(item) = self.net.pop(from, to) else {
            return;
        };
        let peer = device(from);
        let event = match item {
            Item::Up => {
                self.nodes[to].connected |= 1 << from;
                Event::PeerUp { peer }
            }
            Item::Down => {
                self.nodes[to].connected &= !(1 << from);
                Event::PeerDown { peer }
            }
            Item::Letter(letter) => Event::Message {
                message: letter.message.clone(),
                payload: letter.payload.clone(),
            },
        };
        self.tell(plan, to, event);
    }

    /// The oldest write under way becomes durable.
    pub fn flush(&mut self, plan: &Plan, node: usize) {
        let disk = Arc::make_mut(&mut self.nodes[node].disk);
        if let Some((token, at)) = disk.complete() {
            self.tell(plan, node, Event::Persisted { token, at });
        }
    }

    /// Gives an event to a replica, carries out what it wants, and looks whether all is well.
    pub fn tell(&mut self, plan: &Plan, node: usize, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        let mut out = Vec::new();
        let mut prompt = Vec::new();
        while let Some(event) = events.pop_front() {
            let now = self.clock(node);
            let Some(replica) = &mut self.nodes[node].replica else {
                break;
            };
            let timer = event == Event::Deadline;
            let before = replica.view(now).committed;
            let replica = Arc::make_mut(replica);
            let told = || replica.on_event(now, event, &mut out);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(told)).is_err() {
                self.fail(Broken::Stopped);
                return;
            }
            if timer && self.deadline(node).is_some_and(|due| due <= self.now) {
                self.fail(Broken::Timer);
            }
            // What it holds now comes first: what it says and answers is judged by that.
            for action in &out {
                if let Action::Persist {
                    token,
                    first,
                    entries,
                    ..
                } = action
                {
                    self.persist(plan, node, *token, *first, entries.clone());
                }
            }
            self.observe(node, before);
            for action in out.drain(..) {
                if let Action::Send { to, message, .. } = &action
                    && matches!(message.body, ChainBody::Ack { .. })
                {
                    prompt.push(crate::plan::node(*to));
                }
                self.carry_out(plan, node, action, &mut events);
            }
            if !plan.slow_disks && !self.nodes[node].disk.under_way.is_empty() {
                let disk = Arc::make_mut(&mut self.nodes[node].disk);
                while let Some((token, at)) = disk.complete() {
                    events.push_back(Event::Persisted { token, at });
                }
            }
        }
        self.judge(plan);
        self.nodes[node].rehash();
        for to in prompt.into_iter().filter(|_| plan.prompt_acks) {
            if self.replica(to).is_some() && self.net.queue(node, to).len() == 1 {
                self.deliver(plan, node, to);
            }
        }
    }

    fn carry_out(
        &mut self,
        plan: &Plan,
        node: usize,
        action: Action,
        events: &mut std::collections::VecDeque<Event>,
    ) {
        match action {
            Action::Send {
                to,
                message,
                payload,
            } => {
                self.check_said(node, &message);
                let to = crate::plan::node(to);
                let connected = self.nodes[node].connected;
                if to < self.nodes.len() && connected & 1 << to != 0 {
                    self.net.send(node, to, Letter::new(message, payload));
                }
            }
            Action::Reply { reply_to, reply } => self.replied(plan, node, reply_to, reply),
            Action::ReadLog { token, at, len } => {
                let bytes = self.nodes[node].disk.read(at, len);
                events.push_back(Event::LogRead { token, bytes });
            }
            Action::Retired => {
                self.nodes[node].retired = true;
                plan.saw(Seen::Retired);
            }
            // The one is done already, the other answers a question that no model asks.
            Action::Persist { .. } | Action::Restored { .. } => {}
        }
    }

    fn persist(&mut self, plan: &Plan, node: usize, token: u64, first: Seq, entries: bytes::Bytes) {
        for mark in disk::marks(&entries).iter().filter(|mark| mark.seq.0 > 0) {
            let others = self
                .nodes
                .iter()
                .flat_map(|node| [&node.disk.durable, &node.disk.held]);
            let two = others
                .filter_map(|log| disk::at(log, mark.seq))
                .any(|other| other.term == mark.term && other.bytes != mark.bytes);
            if two {
                self.fail(Broken::TwoValues);
            }
        }
        let disk = Arc::make_mut(&mut self.nodes[node].disk);
        if disk.write(token, first, entries) {
            plan.saw(Seen::Truncation);
        }
    }

    /// What a replica says of its device must be so.
    fn check_said(&mut self, node: usize, message: &ashlar_layout::message::ChainMessage) {
        let disk = &self.nodes[node].disk;
        let through = |seq: Seq| {
            disk.durable.len() as u64 >= seq.0
                && disk.durable[..seq.0 as usize].iter().all(Option::is_some)
        };
        let so = match &message.body {
            ChainBody::Ack { durable, .. } => through(*durable),
            ChainBody::Sealed {
                last, last_term, ..
            } => {
                let there = disk::at(&disk.durable, *last).map_or(Term(0), |mark| mark.term);
                disk.promised >= message.term && there == *last_term
            }
            _ => true,
        };
        let acknowledges = matches!(
            message.body,
            ChainBody::Ack { .. } | ChainBody::Sealed { .. }
        );
        let kept = !acknowledges || message.term >= disk.promised;
        if !so {
            self.fail(Broken::NotDurable);
        }
        if !kept {
            self.fail(Broken::OldPromise);
        }
    }

    fn replied(&mut self, plan: &Plan, node: usize, reply_to: u64, reply: Reply) {
        if reply_to >= HEAL {
            return;
        }
        let (client, request) = ((reply_to >> 16) as usize, (reply_to >> 8) as u8);
        let (id, no) = (client::client_id(client), client::request_no(request));
        if let Reply::Committed { seq, .. } = &reply {
            // Whoever waits for it: it is told.
            self.check_committed(plan, node, *seq, (id, no));
        }
        let Some(held) = self.clients.get_mut(client) else {
            return;
        };
        let Some((attempt, _)) = held.attempt.filter(|(a, _)| a.reply_to(client) == reply_to)
        else {
            if let Reply::Error(error) = &reply
                && error.code == ErrorCode::NotHead
            {
                plan.saw(Seen::Stray);
            }
            return;
        };
        match reply {
            Reply::Committed { seq, .. } => {
                plan.saw(Seen::Commit);
                if attempt.retry.is_some() {
                    plan.saw(Seen::Retry);
                }
                held.told = held.told.max(seq);
                held.ended(End::Done(seq));
            }
            Reply::Error(error) => match error.code {
                ErrorCode::PreconditionFailed => {
                    plan.saw(Seen::Refusal);
                    held.ended(End::Refused);
                    self.check_refused(plan, client, request);
                }
                ErrorCode::OutcomeUnknown => held.ended(End::Unknown),
                _ => held.attempt = None,
            },
            _ => held.attempt = None,
        }
    }
}

/// Answers with such numbers are the healer's.
pub const HEAL: u64 = 1 << 40;
