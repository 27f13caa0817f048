//! The replicas that this core's devices hold, and what they want done.
//!
//! Invariants:
//! - a replica exists while its device serves, rebuilt from the device's log each time it is opened;
//! - what a replica persists goes to its own device's engine, and it hears of it once;
//! - a proposal whose replica goes away is answered: its outcome is unknown, and the client's retry
//!   carries the same number.

use std::collections::HashMap;

use ashlar_cluster_journal::{self as journal, Replica};
use ashlar_layout::ids::{PartitionId, Seq, Term};
use ashlar_layout::message::{ErrorCode, ReplicaStatus, Reply, WireError};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, ConnId, Io};

use crate::core::{Core, InlineRead, Pending, Todo};
use crate::outgoing::Payload;
use crate::slab::Slab;

/// Inline reads that may wait for a lost entry.
const LOST_MAX: usize = 1024;

/// One replica of a partition.
pub struct ReplicaSlot {
    pub(crate) partition: PartitionId,
    /// Its place in the chain, 0 for the head.
    pub(crate) place: u8,
    /// The slot of its device.
    pub(crate) device: usize,
    /// The peer at each place of the chain; none at our own.
    places: Vec<Option<usize>>,
    /// Who is at each place, for messages.
    names: Vec<String>,
    pub(crate) replica: Option<Replica>,
    asks: Slab<(ConnId, u64)>,
    lost: HashMap<Seq, Vec<InlineRead>>,
    full: bool,
}

impl ReplicaSlot {
    /// A replica whose device is not open yet.
    pub(crate) fn new(
        partition: PartitionId,
        place: u8,
        device: usize,
        places: Vec<Option<usize>>,
        names: Vec<String>,
    ) -> ReplicaSlot {
        ReplicaSlot {
            partition,
            place,
            device,
            places,
            names,
            replica: None,
            asks: Slab::default(),
            lost: HashMap::new(),
            full: false,
        }
    }

    /// A new replica for the device's log to be replayed into.
    pub(crate) fn fresh(&self) -> Replica {
        let replicas = self.places.len() as u8;
        Replica::new(journal::Config::new(self.partition, self.place, replicas))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.replica.as_ref().and_then(Replica::next_deadline)
    }

    /// Whether a head serves; a follower has no office to take.
    pub(crate) fn in_office(&self) -> bool {
        self.place != 0 || self.replica.as_ref().is_some_and(Replica::serving)
    }

    /// The place in the chain of a peer.
    pub(crate) fn place_of(&self, peer: usize) -> Option<u8> {
        self.places
            .iter()
            .position(|p| *p == Some(peer))
            .map(|p| p as u8)
    }

    /// The peer at a place of the chain.
    pub(crate) fn peer_at(&self, place: u8) -> Option<usize> {
        self.places.get(usize::from(place)).copied().flatten()
    }

    /// Remembers who is to have the answer to a proposal.
    pub(crate) fn ask(&mut self, conn: ConnId, request: u64) -> u64 {
        self.asks.insert((conn, request))
    }

    /// The replica, for reads; it says itself whether it may answer them.
    pub(crate) fn serve(&self) -> Result<&Replica, WireError> {
        self.replica.as_ref().ok_or_else(|| self.unavailable())
    }

    pub(crate) fn unavailable(&self) -> WireError {
        let role = if self.place == 0 { "head" } else { "replica" };
        WireError {
            code: ErrorCode::PartitionUnavailable,
            detail: format!(
                "partition {} is unavailable: its {role}, {}, is recovering its device",
                self.partition,
                self.names[usize::from(self.place)]
            ),
        }
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        let role = if self.place == 0 { "head" } else { "follower" };
        self.replica.as_ref().map_or_else(
            || ReplicaStatus {
                partition: self.partition,
                role: role.into(),
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
    /// Tells replicas that their time has come.
    pub(crate) fn tend_replicas(&mut self, now: Instant) {
        for replica in 0..self.replicas.len() {
            let slot = &mut self.replicas[replica];
            if slot.next_deadline().is_some_and(|at| at <= now) {
                let event = journal::Event::Deadline;
                self.todo.push_back(Todo::Replica { replica, event });
            }
            let full = self.devices[slot.device].nearly_full();
            if slot.replica.is_some() && slot.full != full {
                slot.full = full;
                let event = journal::Event::Full { full };
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
    }

    /// A device is open and its log replayed: its replica takes part again.
    pub(crate) fn start_replica(&mut self, replica: usize, started: Replica, term: Term) {
        self.replicas[replica].replica = Some(started);
        self.replicas[replica].full = false;
        let event = journal::Event::Start { term };
        self.todo.push_back(Todo::Replica { replica, event });
        for place in 0..self.replicas[replica].places.len() {
            let up = self.replicas[replica].places[place].is_some_and(|p| self.peers[p].is_up());
            if up {
                let event = journal::Event::PeerUp { peer: place as u8 };
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
    }

    /// A device is gone: so is its replica, until it is open again.
    pub(crate) fn stop_replica(&mut self, replica: usize, io: &mut Io) {
        let slot = &mut self.replicas[replica];
        if slot.replica.take().is_none() {
            return;
        }
        let error = Reply::Error(slot.unavailable());
        // What it wanted done is its own: the next one will want it again.
        let of_replica = |todo: &Todo| match todo {
            Todo::LogRead { replica: of, .. } => *of == replica,
            _ => false,
        };
        self.parked.retain(|todo| !of_replica(todo));
        self.todo.retain(|todo| !of_replica(todo));
        let asks: Vec<_> = std::mem::take(&mut slot.asks).into_values().collect();
        let lost: Vec<_> = std::mem::take(&mut slot.lost)
            .into_values()
            .flatten()
            .collect();
        let reads = lost.into_iter().map(|read| (read.conn, read.request));
        for (conn, request) in asks.into_iter().chain(reads) {
            self.answer(io, conn, request, &error, Payload::None);
        }
    }

    /// Passes an event to a replica, and carries out what it wants.
    pub(crate) fn replica_event(
        &mut self,
        replica: usize,
        event: journal::Event,
        now: Instant,
        io: &mut Io,
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
                journal::Event::InlineLost { seq } => self.restored(replica, seq, Err(error), io),
                _ => {}
            }
            return;
        };
        let mut actions = Vec::new();
        state.on_event(now, event, &mut actions);
        let device = slot.device;
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
                    self.forwards |= self.replicas[replica].place == 0 && !payload.is_empty();
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
                journal::Action::Restored { seq, result } => {
                    self.restored(replica, seq, result, io)
                }
            }
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
            Ok(api::Output::Journal { at }) => journal::Event::Persisted { token, at },
            Ok(_) => journal::Event::PersistFailed { token, full: false },
            Err(e) => {
                let full = matches!(e, EngineError::DeviceFull { .. });
                eprintln!(
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

    /// An inline object's entry cannot be read here: the replica is asked to restore it.
    pub(crate) fn inline_lost(&mut self, read: InlineRead, io: &mut Io) {
        let (replica, seq) = (read.replica, read.at.seq);
        let slot = &mut self.replicas[replica];
        if slot.replica.is_none() {
            let error = Reply::Error(slot.unavailable());
            return self.answer(io, read.conn, read.request, &error, Payload::None);
        }
        let waiting: usize = slot.lost.values().map(Vec::len).sum();
        if waiting >= LOST_MAX {
            // Try the device again rather than hold more: it ends at INLINE_TRIES.
            self.todo.push_back(Todo::InlineAgain(read));
            return;
        }
        let first = !slot.lost.contains_key(&seq);
        slot.lost.entry(seq).or_default().push(read);
        if first {
            let event = journal::Event::InlineLost { seq };
            self.todo.push_back(Todo::Replica { replica, event });
        }
    }

    fn restored(&mut self, replica: usize, seq: Seq, result: Result<(), WireError>, io: &mut Io) {
        for read in self.replicas[replica].lost.remove(&seq).unwrap_or_default() {
            match &result {
                Ok(()) => self.todo.push_back(Todo::InlineAgain(read)),
                Err(error) => {
                    let error = Reply::Error(error.clone());
                    self.answer(io, read.conn, read.request, &error, Payload::None);
                }
            }
        }
    }
}
