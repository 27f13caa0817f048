//! The simulated driver: replicas, devices, connections and time, all from one seed.
//!
//! Fault model, which the replicas must survive:
//! - a crash of any replicas at any time, all at once included: of the writes in flight a prefix
//!   survives, the next one may be torn (and is then found as a damaged record);
//! - a pause: nothing is handled, nothing is lost, connections stay;
//! - a connection that breaks: what is under way is gone, both sides are told, it comes back later;
//! - messages that a driver drops, single ones, while the connection stays;
//! - records of *one* replica's device that cannot be read any more, found at once or at replay.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use ashlar_layout::ids::{PartitionId, Seq, Term};
use ashlar_layout::message::{ChainBody, Reply};
use ashlar_layout::time::Instant;

use crate::api::{Action, Config, Event, Limits};
use crate::replica::{Replica, Role};
use crate::sim_clients::Clients;
use crate::sim_device::{Device, Record, Rng};

pub(crate) const MICRO: u64 = 1_000;
pub(crate) const MILLI: u64 = 1_000_000;
/// Proposals with such numbers are a test's own.
pub(crate) const SCRIPTED: u64 = 1 << 40;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) replica: Option<Replica>,
    pub(crate) device: Device,
    /// Counts processes: what was meant for an earlier one is dropped.
    process: u64,
    paused: bool,
    inbox: VecDeque<Event>,
    epoch: u64,
    timer: Option<u64>,
}

#[derive(Clone, Debug)]
enum Happening {
    Tell {
        node: u8,
        process: u64,
        connection: Option<(u8, u64)>,
        event: Box<Event>,
    },
    DiskDone {
        node: u8,
        process: u64,
    },
    Timer {
        node: u8,
        process: u64,
    },
    Connect {
        a: u8,
        b: u8,
        generation: u64,
    },
    Restart {
        node: u8,
    },
    Resume {
        node: u8,
    },
    Client {
        client: usize,
        attempt: u64,
    },
    Fault,
}

/// What a seed allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) crashes: bool,
    pub(crate) torn: bool,
    pub(crate) lossy: bool,
    pub(crate) pauses: bool,
    /// Now and then a device or a connection takes long.
    pub(crate) jitter: bool,
    /// Whose device loses records.
    pub(crate) victim: Option<u8>,
    /// Whether replicas remember fewer clients than there are.
    pub(crate) forgetful: bool,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Clients,
    generations: BTreeMap<(u8, u8), (u64, bool)>,
    fifo: BTreeMap<(u8, u8), u64>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    order: u64,
    pub(crate) faults: bool,
    pub(crate) stats: BTreeMap<&'static str, u64>,
    /// Answers to questions numbered from [`SCRIPTED`].
    pub(crate) answers: BTreeMap<u64, Reply>,
    /// Terms of everything that any replica took for committed.
    committed: Vec<Term>,
}

pub(crate) fn limits() -> Limits {
    Limits {
        pending: 12,
        pending_bytes: 3000,
        memory_bytes: 1500,
        unpersisted_bytes: 3000,
        window_bytes: 900,
        window_entries: 6,
        batch_bytes: 400,
        clients: 64,
        requests: 64,
        replay_held: 4,
        repairs: 3,
        grace: Duration::from_millis(100),
        resend: Duration::from_millis(20),
        ..Limits::default()
    }
}

fn pair(a: u8, b: u8) -> (u8, u8) {
    (a.min(b), a.max(b))
}

impl World {
    pub(crate) fn new(seed: u64, replicas: u8, plan: Plan) -> Self {
        let nodes = (0..replicas)
            .map(|_| Node {
                replica: None,
                device: Device {
                    end: 4096,
                    ..Device::default()
                },
                process: 0,
                paused: false,
                inbox: VecDeque::new(),
                epoch: 0,
                timer: None,
            })
            .collect();
        let mut rng = Rng(seed);
        let clients = Clients::new(&mut rng);
        let mut world = Self {
            now: 0,
            rng,
            plan,
            nodes,
            clients,
            generations: BTreeMap::new(),
            fifo: BTreeMap::new(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            faults: true,
            stats: BTreeMap::new(),
            answers: BTreeMap::new(),
            committed: Vec::new(),
        };
        for node in 0..replicas {
            world.start(node);
        }
        world
    }

    /// Lets clients and faults loose.
    pub(crate) fn unleash(&mut self) {
        for client in 0..self.clients.len() {
            let delay = self.rng.below(20 * MILLI);
            self.at(delay, Happening::Client { client, attempt: 0 });
        }
        self.at(5 * MILLI, Happening::Fault);
    }

    /// Stops a replica where it stands, until `resume`.
    pub(crate) fn pause(&mut self, node: u8) {
        self.nodes[usize::from(node)].paused = true;
    }

    pub(crate) fn head(&self) -> &Replica {
        self.nodes[0].replica.as_ref().expect("the head runs")
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    fn at(&mut self, delay: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order)));
        self.happenings.insert(self.order, what);
    }

    pub(crate) fn client_later(&mut self, delay: u64, client: usize, attempt: u64) {
        self.at(delay, Happening::Client { client, attempt });
    }

    /// Something reaches the head from outside.
    pub(crate) fn tell_head(&mut self, delay: u64, event: Event) {
        let process = self.nodes[0].process;
        self.at(
            delay,
            Happening::Tell {
                node: 0,
                process,
                connection: None,
                event: event.into(),
            },
        );
    }

    /// Runs until this time, or until there is nothing to do.
    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some(Reverse((time, order))) = self.queue.peek().copied() {
            if time > end {
                break;
            }
            self.queue.pop();
            self.now = time;
            if let Some(what) = self.happenings.remove(&order) {
                self.happen(what);
            }
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tell {
                node,
                process,
                connection,
                event,
            } => {
                if self.nodes[usize::from(node)].process != process {
                    return;
                }
                if let Some((from, generation)) = connection
                    && self.generations.get(&pair(from, node)) != Some(&(generation, true))
                {
                    return;
                }
                self.tell(node, *event);
            }
            Happening::DiskDone { node, process } => {
                let held = &mut self.nodes[usize::from(node)];
                if held.process != process {
                    return;
                }
                if let Some((token, record)) = held.device.inflight.pop_front() {
                    let at = record.at;
                    held.device.records.push(record);
                    self.tell(node, Event::Persisted { token, at });
                }
            }
            Happening::Timer { node, process } => {
                let held = &mut self.nodes[usize::from(node)];
                if held.process == process {
                    held.timer = None;
                    let due = held.replica.as_ref().and_then(Replica::next_deadline);
                    if due.is_some_and(|due| due.0 <= self.now) {
                        self.tell(node, Event::Deadline);
                        let after = self.nodes[usize::from(node)]
                            .replica
                            .as_ref()
                            .and_then(Replica::next_deadline);
                        let paused = self.nodes[usize::from(node)].paused;
                        assert!(
                            paused || after.is_none_or(|after| after.0 > self.now),
                            "replica {node} wants a deadline in the past, for ever: {:#?}",
                            self.nodes[usize::from(node)].replica.as_ref().map(|r| (
                                r.role,
                                &r.head.progress,
                                &r.starting,
                                &r.repairs,
                                r.head.announce_at
                            ))
                        );
                    } else {
                        self.arm(node);
                    }
                }
            }
            Happening::Connect { a, b, generation } => {
                let alive = |node: u8| self.nodes[usize::from(node)].replica.is_some();
                let both = alive(a) && alive(b);
                let held = self.generations.entry(pair(a, b)).or_default();
                if held.0 == generation && !held.1 && both {
                    held.1 = true;
                    self.tell(a, Event::PeerUp { peer: b });
                    self.tell(b, Event::PeerUp { peer: a });
                }
            }
            Happening::Restart { node } => {
                if self.nodes[usize::from(node)].replica.is_none() {
                    self.start(node);
                }
            }
            Happening::Resume { node } => self.resume(node),
            Happening::Client { client, attempt } => self.client_goes_on(client, attempt),
            Happening::Fault => self.fault(),
        }
    }

    /// Gives an event to a replica and carries out what it wants.
    pub(crate) fn tell(&mut self, node: u8, event: Event) {
        let held = &mut self.nodes[usize::from(node)];
        if held.paused {
            if event != Event::Deadline {
                held.inbox.push_back(event);
            }
            return;
        }
        let Some(replica) = &mut held.replica else {
            return;
        };
        let mut out = Vec::new();
        replica.on_event(Instant(self.now), event, &mut out);
        self.check(node);
        for action in out {
            self.carry_out(node, action);
        }
        self.arm(node);
    }

    fn arm(&mut self, node: u8) {
        let now = self.now;
        let held = &mut self.nodes[usize::from(node)];
        let Some(due) = held.replica.as_ref().and_then(Replica::next_deadline) else {
            return;
        };
        let due = due.0.max(now);
        if held.timer.is_none_or(|timer| timer > due) {
            held.timer = Some(due);
            let process = held.process;
            self.at(due - now, Happening::Timer { node, process });
        }
    }

    fn carry_out(&mut self, node: u8, action: Action) {
        let process = self.nodes[usize::from(node)].process;
        match action {
            Action::Persist {
                token,
                first,
                last,
                entries,
            } => {
                let mut took = 20 * MICRO + self.rng.below(200 * MICRO);
                if self.plan.jitter && self.rng.one_in(100) {
                    took += self.rng.below(20 * MILLI);
                }
                let gap = if self.rng.one_in(3) {
                    0
                } else {
                    512 + self.rng.below(4096)
                };
                let device = &mut self.nodes[usize::from(node)].device;
                let at = device.end + gap;
                device.end = at + entries.len() as u64;
                let hint = Some((first, last));
                let record = Record {
                    at,
                    bytes: entries,
                    hint,
                    rotten: false,
                };
                device.inflight.push_back((token, record));
                device.busy_until = device.busy_until.max(self.now) + took;
                let delay = device.busy_until - self.now;
                self.at(delay, Happening::DiskDone { node, process });
            }
            Action::Send {
                to,
                message,
                payload,
            } => {
                assert_ne!(to, node, "a message to itself");
                let Some(&(generation, true)) = self.generations.get(&pair(node, to)) else {
                    return;
                };
                if self.plan.lossy && self.faults && self.rng.one_in(20) {
                    return self.count("dropped");
                }
                if let ChainBody::Append { count, .. } = message.body
                    && count > 0
                {
                    self.count(match (node, to) {
                        (0, 1) => "to the first",
                        (0, _) => "bypassed",
                        _ => "forwarded",
                    });
                }
                let mut due = self.now + 10 * MICRO + self.rng.below(100 * MICRO);
                if self.plan.jitter && self.rng.one_in(200) {
                    due += self.rng.below(10 * MILLI);
                }
                let fifo = self.fifo.entry((node, to)).or_default();
                due = due.max(*fifo);
                *fifo = due;
                let process = self.nodes[usize::from(to)].process;
                let event = Event::Message { message, payload };
                let connection = Some((node, generation));
                let delay = due - self.now;
                self.at(
                    delay,
                    Happening::Tell {
                        node: to,
                        process,
                        connection,
                        event: event.into(),
                    },
                );
            }
            Action::Reply { reply_to, reply } if reply_to >= SCRIPTED => {
                let before = self.answers.insert(reply_to, reply);
                assert_eq!(before, None, "answered twice");
            }
            Action::Reply { reply_to, reply } => self.replied(reply_to, reply),
            Action::ReadLog { token, at, len } => {
                let bytes = self.nodes[usize::from(node)].device.read(at, len);
                self.count("log reads");
                let delay = 20 * MICRO + self.rng.below(100 * MICRO);
                let event = Event::LogRead { token, bytes };
                self.at(
                    delay,
                    Happening::Tell {
                        node,
                        process,
                        connection: None,
                        event: event.into(),
                    },
                );
            }
            Action::Restored { seq, result } => self.restored(node, seq, result),
        }
    }

    pub(crate) fn start(&mut self, node: u8) {
        let replicas = self.nodes.len() as u8;
        let mut config = Config::new(PartitionId(7), node, replicas);
        config.limits = limits();
        if self.plan.forgetful {
            config.limits.clients = 2;
        }
        let held = &mut self.nodes[usize::from(node)];
        held.process += 1;
        held.epoch += 1;
        held.paused = false;
        held.inbox.clear();
        held.timer = None;
        held.device.busy_until = self.now;
        let mut replica = Replica::new(config);
        for record in &held.device.records {
            if record.rotten {
                replica.replay_damaged(record.hint);
            } else {
                replica.replay(&record.bytes, record.at);
            }
        }
        let term = Term(held.epoch);
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
        self.tell(node, Event::Start { term });
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
        self.clients.head_crashed(node);
        self.count("crashes");
    }

    fn disconnect(&mut self, a: u8, b: u8) {
        let held = self.generations.entry(pair(a, b)).or_default();
        let was = held.1;
        *held = (held.0 + 1, false);
        let generation = held.0;
        for (node, peer) in [(a, b), (b, a)] {
            if was {
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
        self.count("rot");
    }

    fn fault(&mut self) {
        if !self.faults {
            return;
        }
        let nodes = self.nodes.len() as u64;
        let node = self.rng.below(nodes) as u8;
        match self.rng.below(12) {
            0..=2 if self.plan.crashes => {
                self.crash(node);
                let delay = self.rng.below(60 * MILLI);
                self.at(delay, Happening::Restart { node });
            }
            3 if self.plan.crashes => {
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
                let delay = self.rng.below(80 * MILLI);
                self.at(delay, Happening::Resume { node });
            }
            7 | 8 => {
                let other = self.rng.below(nodes) as u8;
                if other != node {
                    self.count("breaks");
                    self.disconnect(node, other);
                }
            }
            9 | 10 => {
                if let Some(victim) = self.plan.victim {
                    self.rot(victim);
                }
            }
            _ => {}
        }
        let delay = self.rng.below(40 * MILLI);
        self.at(delay, Happening::Fault);
    }

    /// No more faults: everything runs and stays connected.
    pub(crate) fn heal(&mut self) {
        self.faults = false;
        for node in 0..self.nodes.len() as u8 {
            let stopped = self.nodes[usize::from(node)]
                .replica
                .as_ref()
                .is_some_and(|r| r.stopped.is_some());
            assert!(!stopped, "replica {node} stopped: {:?}", self.status(node));
            if self.nodes[usize::from(node)].replica.is_none() {
                self.start(node);
            }
            self.resume(node);
        }
    }

    pub(crate) fn status(&self, node: u8) -> String {
        let replica = self.nodes[usize::from(node)].replica.as_ref();
        replica.map_or("down".to_owned(), |replica| {
            format!("{:?}", replica.status())
        })
    }

    /// What must hold after every step.
    fn check(&mut self, node: u8) {
        let held = &self.nodes[usize::from(node)];
        let Some(replica) = &held.replica else {
            return;
        };
        assert!(
            replica.stopped.is_none(),
            "replica {node} stopped: {:?}",
            replica.status()
        );
        assert!(
            replica.committed <= replica.log.last(),
            "committed beyond the end"
        );
        if replica.role == Role::Head {
            let (committed, start) = (replica.committed, replica.head.term_start);
            assert!(
                committed.0 == 0 || committed >= start,
                "entry {committed} counted before the reign's first, {start}"
            );
        }
        if replica.serving() {
            assert_eq!(
                replica.applied, replica.committed,
                "a serving head has applied everything"
            );
            assert!(
                replica.committed <= replica.log.durable(),
                "committed, not durable here"
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
                Some(term) => self.committed.push(term),
                None => break,
            }
        }
        // The newest is enough: logs that agree there agree below.
        let newest = replica.committed.0.min(self.committed.len() as u64);
        if newest > 0
            && let Some(term) = replica.log.term(Seq(newest))
        {
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
