//! The simulated driver: replicas, devices, connections and time, all from one seed.
//!
//! Fault model, which the replicas must survive:
//! - a crash of any replicas, heads as well, at any time, all at once included: of the writes in flight a prefix
//!   survives, the next one may be torn (and is then found as a damaged record);
//! - a pause: nothing is handled, nothing is lost, connections stay, and all comes at once later;
//! - a cut: what one replica says to another, one way or both, is lost, and nobody is told;
//! - a connection that breaks: what is under way is gone, both sides are told, it comes back later;
//! - messages that a driver drops, single ones, while the connection stays;
//! - clocks that begin anywhere and run by up to a tenth too fast or too slow;
//! - other members that are wanted in the chain, at any time, again and again;
//! - records of *one* replica's device that cannot be read any more, found at once or at replay, and damaged
//!   pages of its index. (What that device cannot open at all is replaced by an empty one, whose replica
//!   counts for nothing until it has learned.) Now and then it is another device, with nothing on it.
//!
//! The journal's records are really freed when a replica says so, and the index is written out all the time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ashlar_cluster_index::{Action as IndexAction, Cache};
use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{ChainBody, Reply, WireError};
use ashlar_layout::time::Instant;
use ashlar_layout::version::ENTRY_VERSION;
use bytes::Bytes;

use crate::api::{Action, Answer, Event, Limits};
use crate::entry;
use crate::replica::Replica;
use crate::sim_agenda::Agenda;
use crate::sim_clients::Clients;
use crate::sim_device::{Device, Record, Rng};
use crate::sim_reads::Cached;

pub(crate) const MICRO: u64 = 1_000;
pub(crate) const MILLI: u64 = 1_000_000;
/// Proposals with such numbers are a test's own.
pub(crate) const SCRIPTED: u64 = 1 << 40;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) replica: Option<Replica>,
    pub(crate) device: Device,
    /// Counts processes: what was meant for an earlier one is dropped.
    pub(crate) process: u64,
    pub(crate) paused: bool,
    pub(crate) inbox: VecDeque<Event>,
    pub(crate) timer: Option<u64>,
    pub(crate) cache: Cache,
    /// A turn is on its way.
    pub(crate) turning: bool,
    /// Its clock: where it began, and how fast it runs, in thousandths.
    clock: (u64, u64),
}

impl Node {
    pub(crate) fn clock(&self, now: u64) -> Instant {
        Instant(self.clock.0 + now * self.clock.1 / 1000)
    }

    /// When its clock shows this, or more.
    fn when(&self, at: Instant) -> u64 {
        (at.0.saturating_sub(self.clock.0) * 1000).div_ceil(self.clock.1)
    }
}

pub(crate) fn device(node: u8) -> DeviceNo {
    DeviceNo(u32::from(node) + 1)
}

pub(crate) fn node_of(device: DeviceNo) -> u8 {
    (device.0 - 1) as u8
}

#[derive(Clone, Debug)]
pub(crate) enum Happening {
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
    /// A process that was about to end does.
    End {
        node: u8,
    },
    Resume {
        node: u8,
    },
    Client {
        client: usize,
        attempt: u64,
    },
    /// An index's wish is fulfilled.
    Index {
        node: u8,
        process: u64,
        lane: u32,
        action: Box<IndexAction>,
    },
    /// There is time for the indexes.
    Turn {
        node: u8,
        process: u64,
    },
    /// A cached read asks its next witness.
    Witness {
        read: usize,
    },
    /// What this one says to that one arrives again.
    Mend {
        from: u8,
        to: u8,
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
    /// Connections that lose everything, unnoticed.
    pub(crate) cuts: bool,
    /// Replicas that are no members at first; members come and go if there are any.
    pub(crate) spares: u8,
    pub(crate) drift: bool,
    /// Logs forget all that they may, so that whoever was away learns a snapshot.
    pub(crate) forgets: bool,
    /// The victim's device is formatted anew now and then, under its old number.
    pub(crate) renews: bool,
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<crate::mutants::Mutant>,
}

pub(crate) struct World {
    /// Whose roots are held back (review).
    pub(crate) hold_roots: Option<u8>,
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) founders: Vec<DeviceNo>,
    pub(crate) desired: Vec<DeviceNo>,
    pub(crate) clients: Clients,
    pub(crate) cached: Vec<Cached>,
    pub(crate) generations: BTreeMap<(u8, u8), (u64, bool)>,
    pub(crate) cut: BTreeSet<(u8, u8)>,
    fifo: BTreeMap<(u8, u8), u64>,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) faults: bool,
    pub(crate) stats: BTreeMap<&'static str, u64>,
    /// Answers to questions numbered from [`SCRIPTED`].
    pub(crate) answers: BTreeMap<u64, Reply>,
    /// Answers to readers.
    pub(crate) told: BTreeMap<u64, Result<Answer, WireError>>,
    /// Terms of everything that any replica took for committed.
    pub(crate) committed: Vec<Term>,
    /// When the newest of it was.
    pub(crate) committed_at: u64,
    /// Everything that was ever written.
    written: BTreeMap<(Term, Seq), Bytes>,
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
        embed: 60,
        tail_bytes: 6000,
        pressed_bytes: 1000,
        keep_bytes: 20_000,
        keep_bytes_max: 100_000,
        recalls: 3,
        asks: 3,
        repairs: 3,
        grace: Duration::from_millis(100),
        resend: Duration::from_millis(20),
        ..Limits::default()
    }
}

pub(crate) fn index_limits() -> ashlar_cluster_index::Limits {
    ashlar_cluster_index::Limits {
        table_bytes: 900,
        waste_bytes: 1500,
        fanout: 3,
        questions: 6,
        reads: 2,
        snapshots: 3,
        step: 8,
        ..ashlar_cluster_index::Limits::default()
    }
}

pub(crate) fn pair(a: u8, b: u8) -> (u8, u8) {
    (a.min(b), a.max(b))
}

impl World {
    pub(crate) fn new(seed: u64, replicas: u8, plan: Plan) -> Self {
        let mut rng = Rng(seed);
        let founders: Vec<DeviceNo> = (0..replicas).map(device).collect();
        let replicas = replicas + plan.spares;
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
                timer: None,
                cache: Cache::new(1 << 16),
                turning: false,
                clock: match plan.drift {
                    true => (1 + rng.below(1 << 40), 900 + rng.below(200)),
                    false => (0, 1000),
                },
            })
            .collect();
        let clients = Clients::new(&mut rng);
        let mut world = Self {
            hold_roots: None,
            now: 0,
            rng,
            plan,
            nodes,
            clients,
            cached: Vec::new(),
            cut: BTreeSet::new(),
            founders: founders.clone(),
            desired: founders,
            generations: BTreeMap::new(),
            fifo: BTreeMap::new(),
            agenda: Agenda::default(),
            faults: true,
            stats: BTreeMap::new(),
            answers: BTreeMap::new(),
            told: BTreeMap::new(),
            committed: Vec::new(),
            committed_at: 0,
            written: BTreeMap::new(),
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

    /// Who reigns: of several that think so, the latest.
    pub(crate) fn reigning(&self) -> Option<u8> {
        let office = |node: &u8| {
            let replica = self.nodes[usize::from(*node)].replica.as_ref()?;
            replica.in_office().then_some(replica.term)
        };
        let all = 0..self.nodes.len() as u8;
        all.filter(|node| office(node).is_some()).max_by_key(office)
    }

    pub(crate) fn head(&self) -> &Replica {
        let node = self.reigning().expect("somebody reigns");
        self.replica(node)
    }

    pub(crate) fn replica(&self, node: u8) -> &Replica {
        let replica = self.nodes[usize::from(node)].replica.as_ref();
        replica.expect("it runs")
    }

    pub(crate) fn clock(&self, node: u8) -> Instant {
        self.nodes[usize::from(node)].clock(self.now)
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    pub(crate) fn at(&mut self, delay: u64, what: Happening) {
        self.agenda.put(self.now + delay, what);
    }

    pub(crate) fn under_way(&self) -> impl Iterator<Item = &Happening> {
        self.agenda.all()
    }

    pub(crate) fn client_later(&mut self, delay: u64, client: usize, attempt: u64) {
        self.at(delay, Happening::Client { client, attempt });
    }

    /// Something reaches a replica from outside.
    pub(crate) fn tell_later(&mut self, delay: u64, node: u8, event: Event) {
        let process = self.nodes[usize::from(node)].process;
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

    /// Runs until this time, or until there is nothing to do.
    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some((time, what)) = self.agenda.next(end) {
            self.now = time;
            self.happen(what);
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
                    let Record { at, position, .. } = record;
                    held.device.records.push(record);
                    let event = Event::Persisted {
                        token,
                        at,
                        position,
                    };
                    self.tell(node, event);
                }
            }
            Happening::Timer { node, process } => {
                let held = &mut self.nodes[usize::from(node)];
                if held.process == process {
                    held.timer = None;
                    let due = held.replica.as_ref().and_then(Replica::next_deadline);
                    if due.is_some_and(|due| due <= held.clock(self.now)) {
                        self.tell(node, Event::Deadline);
                        let after = self.nodes[usize::from(node)]
                            .replica
                            .as_ref()
                            .and_then(Replica::next_deadline);
                        let paused = self.nodes[usize::from(node)].paused;
                        assert!(
                            paused || after.is_none_or(|after| after > self.clock(node)),
                            "replica {node} wants a deadline in the past, for ever: {:#?}",
                            self.nodes[usize::from(node)].replica.as_ref().map(|r| (
                                r.role,
                                &r.head.progress,
                                &r.starting,
                                &r.election,
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
                    self.tell(a, Event::PeerUp { peer: device(b) });
                    self.tell(b, Event::PeerUp { peer: device(a) });
                }
            }
            Happening::Restart { node } => {
                if self.nodes[usize::from(node)].replica.is_none() {
                    self.start(node);
                }
            }
            Happening::End { node } if self.faults => self.end(node),
            Happening::End { node } => {
                self.crash(node);
                self.start(node);
            }
            Happening::Resume { node } => self.resume(node),
            Happening::Client { client, attempt } => self.client_goes_on(client, attempt),
            Happening::Witness { read } => self.ask_witness(read),
            Happening::Index {
                node,
                process,
                lane,
                action,
            } => self.index_done(node, process, lane, *action),
            Happening::Turn { node, process } => {
                let held = &mut self.nodes[usize::from(node)];
                if held.process == process {
                    held.turning = false;
                    self.tell(node, Event::Turn);
                }
            }
            Happening::Mend { from, to } => {
                self.cut.remove(&(from, to));
            }
            Happening::Fault => self.fault(),
        }
    }

    /// Gives an event to a replica and carries out what it wants.
    pub(crate) fn tell(&mut self, node: u8, event: Event) {
        let now = self.clock(node);
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
        let cache = &mut held.cache;
        let mut out = Vec::new();
        let log = std::env::var("ASHLAR_LOG").is_ok();
        let what = if log {
            format!("{event:?}")
        } else {
            String::new()
        };
        let lane = replica.lane;
        replica.on_event(now, event, cache, &mut out);
        let learned = replica.lane != lane;
        if log {
            let at = (self.now / MICRO, node + 1);
            eprintln!("{at:?} {what:.260}");
            for action in &out {
                eprintln!(
                    "{at:?}    -> {}",
                    format!("{action:?}").chars().take(260).collect::<String>()
                );
            }
        }
        if learned {
            self.count("learned");
        }
        self.check(node);
        for action in out {
            self.carry_out(node, action);
        }
        self.arm(node);
        let held = &mut self.nodes[usize::from(node)];
        let wants = held.replica.as_ref().is_some_and(Replica::wants_turn);
        if wants && !held.turning && !held.paused {
            held.turning = true;
            let process = held.process;
            let delay = MICRO + self.rng.below(50 * MICRO);
            self.at(delay, Happening::Turn { node, process });
        }
    }

    pub(crate) fn arm(&mut self, node: u8) {
        let now = self.now;
        let held = &mut self.nodes[usize::from(node)];
        let Some(due) = held.replica.as_ref().and_then(Replica::next_deadline) else {
            return;
        };
        let due = held.when(due).max(now);
        if held.timer.is_none_or(|timer| timer > due) {
            held.timer = Some(due);
            let process = held.process;
            self.at(due - now, Happening::Timer { node, process });
        }
    }

    /// One value for each place in each reign, whoever writes it.
    fn check_written(&mut self, entries: &Bytes) {
        let mut pieces = Vec::new();
        entry::split(entries, ENTRY_VERSION, &mut pieces).expect("what is written is whole");
        for piece in pieces.iter().filter(|piece| piece.seq.0 > 0) {
            let name = (piece.term, piece.seq);
            let before = self.written.insert(name, piece.bytes.clone());
            assert!(
                before.is_none_or(|before| before == piece.bytes),
                "two entries {} of reign {}",
                piece.seq,
                piece.term
            );
        }
    }

    /// An entry that is committed.
    pub(crate) fn bytes_of(&self, seq: u64) -> &Bytes {
        let term = self.committed[seq as usize - 1];
        &self.written[&(term, Seq(seq))]
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
                self.check_written(&entries);
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
                let at = device.place(gap, entries.len() as u64);
                device.positions += 1;
                let hint = Some((first, last));
                let record = Record {
                    at,
                    bytes: entries,
                    hint,
                    last,
                    position: device.positions,
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
                let to = node_of(to);
                assert_ne!(to, node, "a message to itself");
                let Some(&(generation, true)) = self.generations.get(&pair(node, to)) else {
                    return;
                };
                if self.cut.contains(&(node, to)) {
                    return self.count("cut off");
                }
                if self.plan.lossy && self.faults && self.rng.one_in(20) {
                    return self.count("dropped");
                }
                if let ChainBody::Append { count, .. } = message.body
                    && count > 0
                {
                    let replica = self.replica(node);
                    let first = replica
                        .log
                        .chain()
                        .successor(message.term.head(), device(node));
                    let head = message.term.head() == device(node);
                    self.count(match (head, first == Some(device(to))) {
                        (true, true) => "to the first",
                        (true, false) => "bypassed",
                        _ => "forwarded",
                    });
                }
                let mut due = self.now + 10 * MICRO + self.rng.below(100 * MICRO);
                if self.plan.jitter && self.rng.one_in(200) {
                    let long = if self.rng.one_in(4) { 200 } else { 10 };
                    due += self.rng.below(long * MILLI);
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
            Action::Retired => self.count("retired"),
            other @ (Action::Bear { .. } | Action::Closed { .. } | Action::Born) => {
                panic!("no other partition is wanted here: {other:?}")
            }
            Action::Restored {
                name,
                version,
                result,
            } => self.restored(node, name, version, result),
            Action::Answer { reply_to, result } => {
                let before = self.told.insert(reply_to, result);
                assert_eq!(before, None, "answered twice");
            }
            Action::Index { lane, action } => self.index_wants(node, lane, action),
            Action::Trim {
                through,
                position,
                pins,
            } => {
                self.count("trims");
                let device = &mut self.nodes[usize::from(node)].device;
                device.trim(through, position, pins);
            }
        }
    }
}
