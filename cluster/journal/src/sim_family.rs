//! Simulated nodes with replicas of many partitions, which are split and merged: the part of their driver that makes
//! partitions of others, and the world around them, all from one seed.
//!
//! Fault model: crashes of whole nodes, one or all; pauses; cuts; connections that break; messages that are dropped;
//! devices that hang; one device that is formatted anew. See `sim_family_device` for what a crash leaves. Maps come to
//! each node, and to each client, at different times, and in no relation to what the partitions' logs say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ashlar_cluster_index::{Action as IndexAction, Cache};
use ashlar_layout::ids::{PartitionId, Seq, Term};
use ashlar_layout::message::WireError;
use ashlar_layout::replica_state::ReplicaState;
use ashlar_layout::time::Instant;
use ashlar_layout::version::ENTRY_VERSION;
use bytes::Bytes;

use crate::api::{Action, Answer, Event};
use crate::bounds::Newborn;
use crate::entry;
use crate::replica::Replica;
use crate::sim::{MICRO, MILLI, SCRIPTED, device, node_of, pair};
use crate::sim_agenda::Agenda;
use crate::sim_device::{Record, Rng};
use crate::sim_family_clients::Clients;
use crate::sim_family_device::{FamilyDevice, Writing};
use crate::sim_family_judge::judge_split;
use crate::sim_family_map::Map;

/// What a seed allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) crashes: bool,
    pub(crate) torn: bool,
    pub(crate) lossy: bool,
    pub(crate) pauses: bool,
    pub(crate) jitter: bool,
    pub(crate) forgetful: bool,
    pub(crate) cuts: bool,
    pub(crate) spares: u8,
    pub(crate) drift: bool,
    pub(crate) forgets: bool,
    /// Maps, and births, take long.
    pub(crate) slow: bool,
    /// Whose device is formatted anew now and then, under its old number.
    pub(crate) renewed: Option<u8>,
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) replica: Replica,
    /// Tells it from those before it.
    pub(crate) life: u64,
    pub(crate) timer: Option<u64>,
    pub(crate) turning: bool,
    /// It will be given what it is made of.
    pub(crate) expected: bool,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) replicas: BTreeMap<PartitionId, Running>,
    pub(crate) device: FamilyDevice,
    pub(crate) process: u64,
    pub(crate) lives: u64,
    pub(crate) paused: bool,
    pub(crate) inbox: VecDeque<(PartitionId, u64, Event)>,
    pub(crate) cache: Cache,
    /// The map that it knows.
    pub(crate) map: usize,
    clock: (u64, u64),
}

impl Node {
    pub(crate) fn clock(&self, now: u64) -> Instant {
        Instant(self.clock.0 + now * self.clock.1 / 1000)
    }

    fn when(&self, at: Instant) -> u64 {
        (at.0.saturating_sub(self.clock.0) * 1000).div_ceil(self.clock.1)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// To a replica, of one life if it is given.
    Tell {
        node: u8,
        partition: PartitionId,
        life: Option<u64>,
        connection: Option<(u8, u64)>,
        event: Box<Event>,
    },
    DiskDone {
        node: u8,
        process: u64,
    },
    Timer {
        node: u8,
        partition: PartitionId,
        life: u64,
    },
    Turn {
        node: u8,
        partition: PartitionId,
        life: u64,
    },
    Index {
        node: u8,
        partition: PartitionId,
        life: u64,
        lane: u32,
        action: Box<IndexAction>,
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
    Mend {
        from: u8,
        to: u8,
    },
    Client {
        client: usize,
        attempt: u64,
    },
    /// A node comes to know a map.
    Map {
        node: u8,
        version: usize,
    },
    /// Two that are closed are tried again.
    Join {
        node: u8,
        into: PartitionId,
    },
    /// The map changes.
    Plane,
    Fault,
}

/// An entry that is committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) term: Term,
    /// Since when anybody knew.
    pub(crate) at: u64,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) maps: Vec<Map>,
    /// Partitions that were seen in office.
    pub(crate) reigned: BTreeSet<PartitionId>,
    pub(crate) clients: Clients,
    pub(crate) generations: BTreeMap<(u8, u8), (u64, bool)>,
    pub(crate) cut: BTreeSet<(u8, u8)>,
    fifo: BTreeMap<(u8, u8), u64>,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) faults: bool,
    /// The map still changes.
    pub(crate) changes: bool,
    pub(crate) stats: BTreeMap<&'static str, u64>,
    /// Answers to whoever asks beside the clients.
    pub(crate) told: BTreeMap<u64, Result<Answer, WireError>>,
    pub(crate) committed: BTreeMap<PartitionId, BTreeMap<Seq, Known>>,
    pub(crate) written: BTreeMap<(PartitionId, Term, Seq), Bytes>,
    /// What each partition was made at.
    births: BTreeMap<PartitionId, (Seq, ReplicaState)>,
    pub(crate) log: bool,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut rng = Rng(seed);
        let nodes = (0..3 + plan.spares).map(|_| Node {
            up: false,
            replicas: BTreeMap::new(),
            device: FamilyDevice::new(),
            process: 0,
            lives: 0,
            paused: false,
            inbox: VecDeque::new(),
            cache: Cache::new(1 << 16),
            map: 0,
            clock: match plan.drift {
                true => (1 + rng.below(1 << 40), 900 + rng.below(200)),
                false => (0, 1000),
            },
        });
        let nodes: Vec<Node> = nodes.collect();
        let clients = Clients::new(&mut rng);
        let mut world = Self {
            now: 0,
            rng,
            plan,
            maps: vec![Map::first()],
            reigned: BTreeSet::new(),
            clients,
            generations: BTreeMap::new(),
            cut: BTreeSet::new(),
            fifo: BTreeMap::new(),
            agenda: Agenda::default(),
            faults: true,
            changes: true,
            stats: BTreeMap::new(),
            told: BTreeMap::new(),
            committed: BTreeMap::new(),
            written: BTreeMap::new(),
            births: BTreeMap::new(),
            log: std::env::var("ASHLAR_LOG").is_ok(),
            nodes,
        };
        for node in 0..world.nodes.len() as u8 {
            world.start(node);
        }
        for client in 0..world.clients.len() {
            let delay = world.rng.below(20 * MILLI);
            world.at(delay, Happening::Client { client, attempt: 0 });
        }
        world.at(5 * MILLI, Happening::Fault);
        world.at(20 * MILLI, Happening::Plane);
        world
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    pub(crate) fn at(&mut self, delay: u64, what: Happening) {
        self.agenda.put(self.now + delay, what);
    }

    pub(crate) fn clock(&self, node: u8) -> Instant {
        self.nodes[usize::from(node)].clock(self.now)
    }

    pub(crate) fn map_of(&self, node: u8) -> &Map {
        &self.maps[self.nodes[usize::from(node)].map]
    }

    pub(crate) fn running(&self, node: u8, partition: PartitionId) -> Option<&Running> {
        self.nodes[usize::from(node)].replicas.get(&partition)
    }

    pub(crate) fn life(&self, node: u8, partition: PartitionId) -> Option<u64> {
        self.running(node, partition).map(|it| it.life)
    }

    /// Something reaches the replica that is there now.
    pub(crate) fn tell_later(
        &mut self,
        delay: u64,
        node: u8,
        partition: PartitionId,
        event: Event,
    ) {
        let life = self.life(node, partition);
        if life.is_some() {
            let (connection, event) = (None, event.into());
            self.at(
                delay,
                Happening::Tell {
                    node,
                    partition,
                    life,
                    connection,
                    event,
                },
            );
        }
    }

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
                partition,
                life,
                connection,
                event,
            } => {
                if life.is_some() && self.life(node, partition) != life {
                    return;
                }
                if let Some((from, generation)) = connection
                    && self.generations.get(&pair(from, node)) != Some(&(generation, true))
                {
                    return;
                }
                if connection.is_some() {
                    self.call(node, partition);
                }
                self.tell(node, partition, *event);
            }
            Happening::DiskDone { node, process } => {
                let held = &mut self.nodes[usize::from(node)];
                if held.process != process {
                    return;
                }
                let writing = held.device.inflight.pop_front().expect("it is under way");
                let (partition, record) = (writing.partition, writing.record);
                let event = Event::Persisted {
                    token: writing.token,
                    at: record.at,
                    position: record.position,
                };
                held.device.records.push((partition, record));
                if self.life(node, partition) == Some(writing.life) {
                    self.tell(node, partition, event);
                }
            }
            Happening::Timer {
                node,
                partition,
                life,
            } => self.timer(node, partition, life),
            Happening::Turn {
                node,
                partition,
                life,
            } => {
                if let Some(it) = self.running_mut(node, partition, life) {
                    it.turning = false;
                    self.tell(node, partition, Event::Turn);
                }
            }
            Happening::Index {
                node,
                partition,
                life,
                lane,
                action,
            } => {
                if self.life(node, partition) == Some(life) {
                    let device = &mut self.nodes[usize::from(node)].device;
                    let event = device.done(partition, lane, &action);
                    self.tell(node, partition, Event::Index { lane, event });
                }
            }
            Happening::Connect { a, b, generation } => {
                let up = |node: u8| self.nodes[usize::from(node)].up;
                let both = up(a) && up(b);
                let held = self.generations.entry(pair(a, b)).or_default();
                if held.0 == generation && !held.1 && both {
                    held.1 = true;
                    self.tell_all(a, |_| Event::PeerUp { peer: device(b) });
                    self.tell_all(b, |_| Event::PeerUp { peer: device(a) });
                }
            }
            Happening::Restart { node } => self.start(node),
            Happening::Resume { node } => self.resume(node),
            Happening::Mend { from, to } => {
                self.cut.remove(&(from, to));
            }
            Happening::Client { client, attempt } => self.client_goes_on(client, attempt),
            Happening::Map { node, version } => self.learn_map(node, version),
            Happening::Join { node, into } => self.join(node, into),
            Happening::Plane => self.change_map(),
            Happening::Fault => self.fault(),
        }
    }

    fn running_mut(&mut self, node: u8, partition: PartitionId, life: u64) -> Option<&mut Running> {
        let held = self.nodes[usize::from(node)].replicas.get_mut(&partition);
        held.filter(|it| it.life == life)
    }

    fn timer(&mut self, node: u8, partition: PartitionId, life: u64) {
        let now = self.clock(node);
        let Some(it) = self.running_mut(node, partition, life) else {
            return;
        };
        it.timer = None;
        if it.replica.next_deadline().is_none_or(|due| due > now) {
            return self.arm(node, partition);
        }
        self.tell(node, partition, Event::Deadline);
        let paused = self.nodes[usize::from(node)].paused;
        let after = self.running(node, partition);
        let after = after.and_then(|it| it.replica.next_deadline());
        assert!(
            paused || after.is_none_or(|after| after > now),
            "replica {partition} on {node} wants a deadline in the past, for ever"
        );
    }

    /// Something that all replicas of a node are told.
    pub(crate) fn tell_all(&mut self, node: u8, event: impl Fn(PartitionId) -> Event) {
        let held = &self.nodes[usize::from(node)];
        let all: Vec<PartitionId> = held.replicas.keys().copied().collect();
        for partition in all {
            self.tell(node, partition, event(partition));
        }
    }

    /// Gives an event to a replica and carries out what it wants.
    pub(crate) fn tell(&mut self, node: u8, partition: PartitionId, event: Event) {
        let now = self.clock(node);
        let log = self.log;
        let held = &mut self.nodes[usize::from(node)];
        let Some(it) = held.replicas.get_mut(&partition) else {
            return;
        };
        let life = it.life;
        if held.paused {
            if event != Event::Deadline {
                held.inbox.push_back((partition, life, event));
            }
            return;
        }
        if self.sends_on(node, partition, &event) {
            return;
        }
        let held = &mut self.nodes[usize::from(node)];
        let Some(it) = held.replicas.get_mut(&partition) else {
            return;
        };
        let what = match log {
            true => format!("{event:?}"),
            false => String::new(),
        };
        let mut out = Vec::new();
        let (lane, splitting) = (it.replica.lane, it.replica.splitting.clone());
        it.replica.on_event(now, event, &mut held.cache, &mut out);
        let learned = it.replica.lane != lane;
        if !learned {
            judge_split(splitting.as_ref(), &it.replica);
        }
        if log {
            let at = format!("{} {} {partition}", self.now / MICRO, node + 1);
            eprintln!("{at} {what:.260}");
            for action in &out {
                let action = format!("{action:?}");
                eprintln!(
                    "{at}    -> {}",
                    action.chars().take(260).collect::<String>()
                );
            }
        }
        if learned {
            self.count("learned");
        }
        self.check(node, partition);
        for action in out {
            self.carry_out(node, partition, life, action);
        }
        self.arm(node, partition);
        let paused = self.nodes[usize::from(node)].paused;
        let Some(it) = self.running_mut(node, partition, life) else {
            return;
        };
        if it.replica.wants_turn() && !it.turning && !paused {
            it.turning = true;
            let delay = MICRO + self.rng.below(50 * MICRO);
            self.at(
                delay,
                Happening::Turn {
                    node,
                    partition,
                    life,
                },
            );
        }
    }

    fn arm(&mut self, node: u8, partition: PartitionId) {
        let now = self.now;
        let held = &mut self.nodes[usize::from(node)];
        let Some(it) = held.replicas.get(&partition) else {
            return;
        };
        let Some(due) = it.replica.next_deadline() else {
            return;
        };
        let due = held.when(due).max(now);
        let Some(it) = held.replicas.get_mut(&partition) else {
            return;
        };
        if it.timer.is_none_or(|timer| timer > due) {
            it.timer = Some(due);
            let life = it.life;
            self.at(
                due - now,
                Happening::Timer {
                    node,
                    partition,
                    life,
                },
            );
        }
    }

    /// One value for each place in each reign, whoever writes it.
    fn check_written(&mut self, partition: PartitionId, entries: &Bytes) {
        let mut pieces = Vec::new();
        entry::split(entries, ENTRY_VERSION, &mut pieces).expect("what is written is whole");
        for piece in pieces.iter().filter(|piece| piece.seq.0 > 0) {
            let name = (partition, piece.term, piece.seq);
            let before = self.written.insert(name, piece.bytes.clone());
            let same = before.is_none_or(|before| before == piece.bytes);
            assert!(same, "two entries {name:?}");
        }
    }

    /// Gives a child, or an heir, what it is made of.
    pub(crate) fn give_birth(&mut self, node: u8, partition: PartitionId, newborn: Newborn) {
        let birth = (newborn.at, newborn.state.clone());
        let first = self
            .births
            .entry(partition)
            .or_insert_with(|| birth.clone());
        assert_eq!(*first, birth, "{partition} is made in two ways");
        let chunks = newborn.shared_chunks();
        let device = &mut self.nodes[usize::from(node)].device;
        device.hold(partition, &chunks);
        device.pin(partition, newborn.pins());
        if let Some(it) = self.nodes[usize::from(node)].replicas.get_mut(&partition) {
            it.expected = true;
        }
        self.count("births");
        let most = if self.plan.slow && self.rng.one_in(3) {
            30 * MILLI
        } else {
            100 * MICRO
        };
        let delay = self.rng.below(most);
        let newborn = Box::new(newborn);
        self.tell_later(delay, node, partition, Event::Born { newborn });
    }

    fn carry_out(&mut self, node: u8, partition: PartitionId, life: u64, action: Action) {
        let process = self.nodes[usize::from(node)].process;
        match action {
            Action::Persist {
                token,
                first,
                last,
                entries,
            } => {
                self.check_written(partition, &entries);
                let mut took = 10 * MICRO + self.rng.below(100 * MICRO);
                if self.plan.jitter && self.rng.one_in(100) {
                    took += self.rng.below(20 * MILLI);
                }
                let gap = match self.rng.one_in(3) {
                    true => 0,
                    false => 512 + self.rng.below(4096),
                };
                let device = &mut self.nodes[usize::from(node)].device;
                let at = device.place(gap, entries.len() as u64);
                device.positions += 1;
                let record = Record {
                    at,
                    bytes: entries,
                    hint: Some((first, last)),
                    last,
                    position: device.positions,
                    rotten: false,
                };
                device.inflight.push_back(Writing {
                    partition,
                    life,
                    token,
                    record,
                });
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
                let mut due = self.now + 10 * MICRO + self.rng.below(100 * MICRO);
                if self.plan.jitter && self.rng.one_in(400) {
                    let long = if self.rng.one_in(4) { 200 } else { 10 };
                    due += self.rng.below(long * MILLI);
                }
                let fifo = self.fifo.entry((node, to)).or_default();
                due = due.max(*fifo);
                *fifo = due;
                let delay = due - self.now;
                let event = Event::Message { message, payload }.into();
                self.at(
                    delay,
                    Happening::Tell {
                        node: to,
                        partition,
                        life: None,
                        connection: Some((node, generation)),
                        event,
                    },
                );
            }
            Action::Reply { reply_to, reply } => self.replied(partition, reply_to, reply),
            Action::Answer { reply_to, result } if reply_to >= SCRIPTED => {
                let before = self.told.insert(reply_to, result);
                assert_eq!(before, None, "answered twice");
            }
            Action::Answer { reply_to, result } => self.answered(node, partition, reply_to, result),
            Action::ReadLog { token, at, len } => {
                let bytes = self.nodes[usize::from(node)].device.read(at, len);
                assert!(
                    bytes.is_some(),
                    "{partition} on {node}: the record at {at} is gone"
                );
                let delay = 20 * MICRO + self.rng.below(100 * MICRO);
                self.tell_later(delay, node, partition, Event::LogRead { token, bytes });
            }
            Action::Bear { child, members } => self.bear(node, partition, child, members),
            Action::Closed { into, .. } => {
                self.count("closed");
                self.join(node, into);
            }
            Action::Born => self.born(node, partition),
            Action::Retired => self.count("retired"),
            Action::Restored { result, .. } => panic!("nothing was lost: {result:?}"),
            Action::Index { lane, action } => {
                let device = &mut self.nodes[usize::from(node)].device;
                if !device.wants(partition, lane, &action) {
                    return;
                }
                let mut delay = 20 * MICRO + self.rng.below(300 * MICRO);
                if self.plan.jitter && self.rng.one_in(100) {
                    delay += self.rng.below(20 * MILLI);
                }
                self.at(
                    delay,
                    Happening::Index {
                        node,
                        partition,
                        life,
                        lane,
                        action: action.into(),
                    },
                );
            }
            Action::Trim {
                through,
                position,
                pins,
            } => {
                let held = &mut self.nodes[usize::from(node)];
                // What it begins with is on its way, and pinned: it has not heard of that when it says that it needs
                // nothing.
                let expected = held.replicas.get(&partition).is_some_and(|it| it.expected);
                if expected && through == Seq(0) && pins.is_empty() {
                    return;
                }
                held.device.trim(partition, (through, position, pins));
            }
        }
    }
}
