//! The replicas that this core's devices hold, and what they want done.
//!
//! Invariants:
//! - a replica exists while its device serves, rebuilt from the device's log each time it is opened;
//! - what a replica persists goes to its own device's engine, and it hears of it once;
//! - what was wanted by a replica that is no more is not told to the next one of its slot: each has a number;
//! - a proposal whose replica goes away is answered: its outcome is unknown, and the client's retry
//!   carries the same number.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ashlar_cluster_index::Name;
use ashlar_cluster_journal::{self as journal, Replica};
use ashlar_cluster_map::Partition;
use ashlar_layout::ids::{DeviceId, DeviceNo, PartitionId, Seq, Term};
use ashlar_layout::message::{ErrorCode, ReplicaStatus, Reply, WireError};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, ConnId, Driver};

use crate::core::{Core, Pending, Todo};
use crate::lookups::Reading;
use crate::outgoing::{self, Payload};
use crate::shared::Tuning;
use crate::slab::Slab;
use crate::words::say;

/// Inline reads that may wait for a lost entry.
const LOST_MAX: usize = 1024;
/// Reads that may wait for a head's lease, of one replica,
const WAITING_MAX: usize = 1024;
/// and for how long: far longer than a lease takes to come back if it ever does.
const LEASE_WAIT: Duration = Duration::from_millis(500);

/// One replica of a partition.
pub struct ReplicaSlot {
    pub(crate) partition: PartitionId,
    /// Its device: its name in the chain.
    pub(crate) me: DeviceNo,
    /// The slot of its device.
    pub(crate) device: usize,
    founders: Vec<DeviceNo>,
    /// It is made of other partitions.
    heir: bool,
    /// Its partition is over: nothing is left of it.
    pub(crate) over: bool,
    /// What it begins with was made, and is on its way to it or there: what that needs of the journal the device was
    /// told.
    pub(crate) delivered: bool,
    /// Who is to be in the chain, by the map.
    desired: Vec<DeviceNo>,
    /// The peer that holds each other device of the chain.
    peers: BTreeMap<DeviceNo, usize>,
    pub(crate) replica: Option<Replica>,
    /// Counts the replicas that were in this slot.
    pub(crate) life: u64,
    asks: Slab<(ConnId, u64)>,
    /// Reads that the replica was asked.
    pub(crate) readers: Slab<Reading>,
    /// Reads that wait for a payload: bucket, key and version.
    lost: HashMap<(Name, Seq), Vec<Reading>>,
    /// Reads that came while the head's lease was out, with the time at which they give up.
    waiting: VecDeque<(Instant, Reading)>,
    full: bool,
    /// It was said that it met what it cannot read.
    outdated: bool,
    /// Free extents of the device when it had no room for the index, until there are more.
    pub(crate) no_room: Option<u32>,
    /// The newest of its indexes: another one comes with each snapshot that it learns.
    pub(crate) lane: u32,
    /// When its index had its last turn.
    pub(crate) turned: Instant,
    /// Chunks of an index that could not be opened, and of which nothing is known to be of use: they are freed
    /// when the next one is durable.
    pub(crate) orphans: Vec<u64>,
    /// What the control plane was last told of its chain,
    pub(crate) reported: Option<(Term, u64)>,
    /// and when it was told of its load, and what that was then.
    pub(crate) weighed: Option<(Instant, u64)>,
    /// Requests that came for it.
    pub(crate) requests: u64,
}

impl ReplicaSlot {
    /// A replica whose device is not open yet.
    pub(crate) fn new(
        partition: PartitionId,
        me: DeviceNo,
        device: usize,
        founders: Vec<DeviceNo>,
        heir: bool,
    ) -> ReplicaSlot {
        ReplicaSlot {
            partition,
            me,
            device,
            founders,
            heir,
            over: false,
            delivered: false,
            desired: Vec::new(),
            peers: BTreeMap::new(),
            replica: None,
            life: 0,
            asks: Slab::default(),
            readers: Slab::default(),
            lost: HashMap::new(),
            waiting: VecDeque::new(),
            full: false,
            outdated: false,
            no_room: None,
            lane: 0,
            turned: Instant(0),
            orphans: Vec::new(),
            reported: None,
            weighed: None,
            requests: 0,
        }
    }

    /// That of a partition of the map.
    pub(crate) fn of(partition: &Partition, me: DeviceNo, device: usize) -> ReplicaSlot {
        let heir = !partition.parents.is_empty();
        ReplicaSlot::new(partition.id, me, device, partition.founders.clone(), heir)
    }

    /// Whom it talks to, and who is to be in its chain.
    /// Gives whom it talked to before.
    pub(crate) fn follow(
        &mut self,
        peers: BTreeMap<DeviceNo, usize>,
        desired: Vec<DeviceNo>,
    ) -> BTreeMap<DeviceNo, usize> {
        self.desired = desired;
        std::mem::replace(&mut self.peers, peers)
    }

    /// Whom it talks to.
    pub(crate) fn peers(&self) -> &BTreeMap<DeviceNo, usize> {
        &self.peers
    }

    /// Talks to this device, too.
    pub(crate) fn add_peer(&mut self, device: DeviceNo, peer: usize) {
        self.peers.insert(device, peer);
    }

    /// Whether it is in the chain, by its own log.
    pub(crate) fn is_member(&self) -> bool {
        let replica = self.replica.as_ref();
        replica.is_some_and(|replica| replica.view(Instant(0)).members.contains(&self.me))
    }

    /// Whether it is to be in the chain, by the map.
    pub(crate) fn is_desired(&self) -> bool {
        self.desired.contains(&self.me)
    }

    /// The members of its chain, by its own log, and those that it talks to already.
    pub(crate) fn members(&self, now: Instant) -> Vec<DeviceNo> {
        let mut members: Vec<DeviceNo> = self.peers.keys().copied().collect();
        let view = self.replica.as_ref().map(|replica| replica.view(now));
        members.extend(view.map(|view| view.members).unwrap_or_default());
        members
    }

    /// What a new replica is told; `life` is a number that the device gave out for it.
    pub(crate) fn config(
        &self,
        tuning: &Tuning,
        device: DeviceId,
        extent_size: u64,
        life: u64,
    ) -> journal::Config {
        let mut config = journal::Config::new(self.partition, self.me, self.founders.clone());
        // Replicas of one chain must not all wait for the same time.
        config.seed = u64::from(self.me.0) << 32 | u64::from(self.partition.0);
        config.heir = self.heir;
        config.reads = tuning.reads;
        config.limits.star = tuning.star;
        config.limits.keep_bytes = tuning.keep_bytes;
        config.index.device = device;
        config.index.life = life;
        config.index.extent_size = extent_size;
        config.index.limits.table_bytes = tuning.table_bytes;
        config
    }

    /// Whether its index could go on if it had a turn.
    pub(crate) fn wants_turn(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::wants_turn)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let replica = self.replica.as_ref().and_then(Replica::next_deadline);
        let waiting = self.waiting.front().map(|(until, _)| *until);
        replica.into_iter().chain(waiting).min()
    }

    /// Whether it takes its part: it is the head in office, or follows one; or it is not in the chain.
    pub(crate) fn settled(&self) -> bool {
        self.over || self.replica.as_ref().is_some_and(Replica::settled)
    }

    /// The devices of the chain that a peer holds.
    pub(crate) fn devices_of(&self, peer: usize) -> Vec<DeviceNo> {
        let of_peer = self.peers.iter().filter(|(_, p)| **p == peer);
        of_peer.map(|(device, _)| *device).collect()
    }

    /// The peer that holds a device of the chain.
    pub(crate) fn peer_of(&self, device: DeviceNo) -> Option<usize> {
        self.peers.get(&device).copied()
    }

    /// Remembers who is to have the answer to a proposal.
    pub(crate) fn ask(&mut self, conn: ConnId, request: u64) -> u64 {
        self.asks.insert((conn, request))
    }

    /// The replica, for reads; it says itself whether it may answer them.
    pub(crate) fn serve(&self) -> Result<&Replica, WireError> {
        self.replica.as_ref().ok_or_else(|| self.unavailable())
    }

    /// Whether it is in office, though it may not serve just now for want of a lease.
    pub(crate) fn in_office(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::in_office)
    }

    pub(crate) fn unavailable(&self) -> WireError {
        WireError {
            code: ErrorCode::NotHead,
            detail: format!(
                "the replica of partition {} on device {} does not serve: its device is being recovered",
                self.partition, self.me,
            ),
        }
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        self.replica.as_ref().map_or_else(
            || ReplicaStatus {
                partition: self.partition,
                role: "replica".into(),
                state: "recovering".into(),
                term: Term(0),
                last: Seq(0),
                committed: Seq(0),
                objects: 0,
            },
            Replica::status,
        )
    }
}

impl Core {
    /// Whether one of its replicas was given an entry that only a newer program can read.
    pub fn met_newer(&self) -> bool {
        let mut replicas = self.replicas.iter();
        replicas.any(|slot| slot.replica.as_ref().is_some_and(Replica::met_newer))
    }

    /// Tells replicas that their time has come.
    pub(crate) fn tend_replicas(&mut self, now: Instant, io: &mut impl Driver) {
        for replica in 0..self.replicas.len() {
            self.tend_waiting(replica, now, io);
            self.report_chain(replica, now);
            let slot = &mut self.replicas[replica];
            let outdated = slot.replica.as_ref().is_some_and(Replica::met_newer);
            if outdated && !std::mem::replace(&mut slot.outdated, true) {
                say!("partition {}: {}", slot.partition, slot.status().state);
            }
            let deadline = slot.replica.as_ref().and_then(Replica::next_deadline);
            if deadline.is_some_and(|at| at <= now) {
                let event = journal::Event::Deadline;
                self.todo.push_back(Todo::Replica { replica, event });
            }
            if slot.replica.is_none() {
                continue;
            }
            let device = &self.devices[slot.device];
            let full = device.nearly_full();
            // There is more room than when the index had none: it is told, by the end of a full time.
            let more = slot
                .no_room
                .is_some_and(|free| device.extents_free() > free);
            if more {
                slot.no_room = None;
            }
            let told = match (slot.full, full, more) {
                (true, true, true) => &[false, true][..],
                (true, false, _) => &[false],
                (false, true, false) => &[true],
                (false, true, true) => &[true, false, true],
                (false, false, true) => &[true, false],
                (true, true, false) | (false, false, false) => &[],
            };
            slot.full = full;
            for full in told {
                let event = journal::Event::Full { full: *full };
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
    }

    /// A device is open and its log replayed: its replica takes part again.
    pub(crate) fn start_replica(&mut self, replica: usize, started: Replica) {
        let slot = &mut self.replicas[replica];
        slot.replica = Some(started);
        slot.life += 1;
        slot.delivered = false;
        slot.lane = 0;
        slot.full = false;
        slot.outdated = false;
        slot.no_room = None;
        let members = slot.desired.clone();
        let wanted = self.wanted(self.replicas[replica].partition);
        let slot = &self.replicas[replica];
        let up = slot.peers.iter().filter(|(_, p)| self.peers[**p].is_up());
        let up = up.map(|(device, _)| journal::Event::PeerUp { peer: *device });
        let events = [
            journal::Event::Level {
                entries: self.maps.map.entries,
            },
            journal::Event::Start {},
            journal::Event::Desired { members },
            journal::Event::Bounds { wanted },
        ];
        let events: Vec<_> = events.into_iter().chain(up).collect();
        let todo = events
            .into_iter()
            .map(|event| Todo::Replica { replica, event });
        self.todo.extend(todo);
    }

    /// Keeps a read that the head cannot answer just now, for its lease is out: a moment later it can,
    /// or it is no head any more. Gives the request back if too many wait.
    pub(crate) fn wait(&mut self, replica: usize, read: Reading, now: Instant) -> Option<Reading> {
        let slot = &mut self.replicas[replica];
        if slot.waiting.len() >= WAITING_MAX {
            return Some(read);
        }
        slot.waiting.push_back((now + LEASE_WAIT, read));
        None
    }

    /// Goes on with the reads that waited, if they can be answered now, one way or the other.
    fn tend_waiting(&mut self, replica: usize, now: Instant, io: &mut impl Driver) {
        let slot = &mut self.replicas[replica];
        let overdue = slot.waiting.front().is_some_and(|(until, _)| *until <= now);
        let decided = slot
            .replica
            .as_ref()
            .is_none_or(|r| r.serving(now) || !r.in_office());
        if !overdue && (!decided || slot.waiting.is_empty()) {
            return;
        }
        for (until, read) in std::mem::take(&mut slot.waiting) {
            if !decided && until > now {
                self.replicas[replica].waiting.push_back((until, read));
                continue;
            }
            self.read_metadata(read, replica, now, false, io);
        }
    }

    /// A device is gone: so is its replica, until it is open again.
    pub(crate) fn stop_replica(&mut self, replica: usize, io: &mut impl Driver) {
        let slot = &mut self.replicas[replica];
        if slot.replica.take().is_none() {
            return;
        }
        let error = Reply::Error(slot.unavailable());
        let partition = slot.partition;
        // What it wanted done is its own: the next one will want it again.
        let of_replica = |todo: &Todo| match todo {
            Todo::LogRead { replica: of, .. } | Todo::Index { replica: of, .. } => *of == replica,
            _ => false,
        };
        self.parked.retain(|todo| !of_replica(todo));
        self.todo.retain(|todo| !of_replica(todo));
        let asks: Vec<_> = std::mem::take(&mut slot.asks).into_values().collect();
        let lost = std::mem::take(&mut slot.lost).into_values().flatten();
        let waiting = std::mem::take(&mut slot.waiting).into_iter();
        let readers = std::mem::take(&mut slot.readers).into_values();
        let reads = lost.chain(waiting.map(|(_, read)| read)).chain(readers);
        for read in reads.collect::<Vec<Reading>>() {
            self.answer(io, read.conn, read.number, &error, Payload::None);
        }
        // What was proposed may be with the followers already, and be committed by the next head.
        let detail = format!(
            "partition {partition}: the head's device is gone; whether the change was made is not known: \
             send the request again"
        );
        let unknown = outgoing::error(ErrorCode::PartitionUnavailable, detail);
        for (conn, request) in asks {
            self.answer(io, conn, request, &unknown, Payload::None);
        }
    }

    /// Passes an event to a replica, and carries out what it wants.
    pub(crate) fn replica_event(
        &mut self,
        replica: usize,
        event: journal::Event,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let slot = &mut self.replicas[replica];
        let Some(state) = slot.replica.as_mut() else {
            let error = slot.unavailable();
            match event {
                journal::Event::Propose { reply_to, .. } => {
                    if let Some((conn, request)) = slot.asks.remove(reply_to) {
                        self.answer(io, conn, request, &Reply::Error(error), Payload::None);
                    }
                }
                journal::Event::Ask { reply_to, .. } => {
                    self.asked(replica, reply_to, Err(error), io);
                }
                journal::Event::InlineLost { name, version } => {
                    self.restored(replica, (name, version), Err(error), io);
                }
                _ => {}
            }
            return;
        };
        let mut actions = Vec::new();
        let device = slot.device;
        let pages = &mut self.devices[device].pages;
        state.on_event(now, event, pages, &mut actions);
        for action in actions {
            match action {
                journal::Action::Persist {
                    token,
                    first,
                    last,
                    entries,
                } => {
                    let op = self.ops.insert(Pending::Persist { replica, token });
                    let partition = self.replicas[replica].partition;
                    let event = api::Event::AppendJournal {
                        op,
                        partition,
                        first,
                        last,
                        entries,
                    };
                    self.todo.push_back(Todo::Engine { device, event });
                }
                journal::Action::Send {
                    to,
                    message,
                    payload,
                } => {
                    // A change waits for the first follower to have it durable, and for the head's own
                    // write seldom. A follower's write is waited for: it goes before what it forwards.
                    self.forwards |= self.replicas[replica].in_office() && !payload.is_empty();
                    self.send_chain(replica, to, &message, payload, now, io);
                }
                journal::Action::Reply { reply_to, reply } => {
                    if let Some((conn, request)) = self.replicas[replica].asks.remove(reply_to) {
                        self.answer(io, conn, request, &reply, Payload::None);
                    }
                }
                journal::Action::ReadLog { token, at, len } => {
                    self.read_log(replica, token, at, len);
                }
                journal::Action::Answer { reply_to, result } => {
                    self.asked(replica, reply_to, result, io);
                }
                journal::Action::Index { lane, action } => {
                    self.index_wants(replica, lane, action);
                }
                journal::Action::Trim {
                    through,
                    position,
                    pins,
                } => {
                    let slot = &self.replicas[replica];
                    let partition = slot.partition;
                    // It has not heard yet of what it begins with, which is pinned: it says that it needs nothing.
                    if slot.delivered && through == Seq(0) && pins.is_empty() {
                        continue;
                    }
                    let event = api::Event::TrimJournal {
                        partition,
                        through,
                        position,
                        pins,
                    };
                    self.todo.push_back(Todo::Engine { device, event });
                }
                journal::Action::Restored {
                    name,
                    version,
                    result,
                } => {
                    self.restored(replica, (name, version), result, io);
                }
                journal::Action::Bear { child, members } => {
                    self.bear(replica, child, members);
                }
                journal::Action::Closed { .. } => self.unite(now),
                journal::Action::Born => self.is_born(replica, now, io),
                journal::Action::Retired => {
                    let slot = &self.replicas[replica];
                    say!(
                        "partition {}: device {} is not in its chain any more",
                        slot.partition,
                        slot.me
                    );
                }
            }
        }
        if !self.replicas[replica].waiting.is_empty() {
            self.tend_waiting(replica, now, io);
        }
    }

    pub(crate) fn read_log(&mut self, replica: usize, token: u64, at: u64, len: u32) {
        let device = self.replicas[replica].device;
        let op = self.ops.insert(Pending::LogRead {
            replica,
            token,
            at,
            len,
        });
        let event = api::Event::ReadJournal { op, at, len };
        self.todo.push_back(Todo::Engine { device, event });
    }

    /// An append of a replica's has ended.
    pub(crate) fn persisted(
        &mut self,
        replica: usize,
        token: u64,
        result: Result<api::Output<Buf>, EngineError>,
    ) {
        let event = match result {
            Ok(api::Output::Journal { at, sequence }) => journal::Event::Persisted {
                token,
                at,
                position: sequence,
            },
            Ok(_) => journal::Event::PersistFailed { token, full: false },
            Err(e) => {
                let full = matches!(e, EngineError::DeviceFull { .. });
                say!(
                    "partition {}: append: {e}",
                    self.replicas[replica].partition
                );
                if self.replicas[replica].replica.is_none() {
                    // The device was fenced already, and the replica with it.
                    return;
                }
                // Whatever the reason, the replica and its log on the device may disagree now: it
                // is made again from the device.
                let device = self.replicas[replica].device;
                self.devices[device].reopen_wanted(full);
                journal::Event::PersistFailed { token, full }
            }
        };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    /// An inline object's payload cannot be read here: the replica is asked to restore it.
    pub(crate) fn restore(
        &mut self,
        replica: usize,
        read: Reading,
        version: Seq,
        io: &mut impl Driver,
    ) {
        let slot = &mut self.replicas[replica];
        if slot.replica.is_none() {
            let error = Reply::Error(slot.unavailable());
            return self.answer(io, read.conn, read.number, &error, Payload::None);
        }
        let waiting: usize = slot.lost.values().map(Vec::len).sum();
        if waiting >= LOST_MAX {
            // Try the device again rather than hold more: that ends.
            self.todo.push_back(Todo::Ask {
                replica,
                reading: read,
            });
            return;
        }
        let name = read.name();
        let waiting = slot.lost.entry((name.clone(), version)).or_default();
        waiting.push(read);
        if waiting.len() == 1 {
            let event = journal::Event::InlineLost { name, version };
            self.todo.push_back(Todo::Replica { replica, event });
        }
    }

    fn restored(
        &mut self,
        replica: usize,
        name: (Name, Seq),
        result: Result<(), WireError>,
        io: &mut impl Driver,
    ) {
        let reads = self.replicas[replica].lost.remove(&name);
        for reading in reads.unwrap_or_default() {
            match &result {
                Ok(()) => self.todo.push_back(Todo::Ask { replica, reading }),
                Err(error) => {
                    let error = Reply::Error(error.clone());
                    self.answer(io, reading.conn, reading.number, &error, Payload::None);
                }
            }
        }
    }
}
