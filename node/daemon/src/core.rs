//! One data core: it owns its connections, devices and replicas, and nothing is shared with others.
//!
//! The reactor tells it what happened; it turns that into events for engines and replicas, and carries
//! out their actions. It decides nothing about data itself.
//!
//! Invariants:
//! - a request is answered once: its [`Pending`] is taken out of the slab when it is;
//! - an answer that says "durable" or "committed" comes from an engine's or a replica's own action;
//! - an engine is driven only by completions of its own generation of the device: what comes back for
//!   one that was fenced is dropped;
//! - what one event brings about is put on `todo` and worked off in order, never recursively.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ashlar_cluster_journal as journal;
use ashlar_cluster_map::Device;
use ashlar_layout::ids::{NodeId, PartitionId, Seq};
use ashlar_layout::message::{ChainMessage, ErrorCode, ObjectMeta, Reply, Request};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{self, Memory};
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, ConnId, Driver, Event, Handler, Pool};
use bytes::Bytes;

use crate::config::Config;
use crate::devices::DeviceSlot;
use crate::drain::Drain;
use crate::holding::Meter;
use crate::incoming::{Incoming, Progress};
use crate::indexes::IndexOp;
use crate::lookups::Reading;
use crate::outgoing::{self, Payload};
use crate::peers::Peer;
use crate::replicas::ReplicaSlot;
use crate::run::DaemonError;
use crate::shared::{Maps, Pulse, Shared};
use crate::slab::Slab;

/// How long a node waits for its chains' heads to take office before it says that it is ready.
const OFFICE_MAX: Duration = Duration::from_secs(10);
/// How long our own work waits when an engine has no room for it.
const PARKED: Duration = Duration::from_millis(1);

/// The reactor's pool, as engines see it.
pub(crate) struct PoolMemory(pub(crate) Pool);

impl Memory for PoolMemory {
    type Buf = Buf;

    fn alloc(&mut self, len: usize) -> Option<Buf> {
        self.0.alloc(len)
    }
}

/// The engine of a device of ours.
pub(crate) type Engine = ashlar_node_engine::engine::Engine<PoolMemory>;
/// The recovery of a device of ours.
pub(crate) type Opening = ashlar_node_engine::opening::Opening<PoolMemory>;

/// What an engine operation is for.
pub(crate) enum Pending {
    /// A client's shard write or delete.
    Shard {
        conn: ConnId,
        request: u64,
        meter: Meter,
    },
    /// A client's shard read.
    Read {
        conn: ConnId,
        request: u64,
        meter: Meter,
    },
    /// A replica's append.
    Persist { replica: usize, token: u64 },
    /// A replica's read of its own log.
    LogRead {
        replica: usize,
        token: u64,
        at: u64,
        len: u32,
    },
    /// An inline object for a client.
    Inline(Box<InlineRead>),
    /// What an index wanted done; which life of the replica it is of.
    Index {
        replica: usize,
        life: u64,
        lane: u32,
        op: IndexOp,
    },
    /// A read for an index that is being opened.
    Load(LoadRead),
    /// A journal record read for replay; its place in the line.
    Replay { device: usize, record: usize },
    /// The last operation of a device.
    Shutdown { device: usize },
    /// A step of the audit of a device.
    Audit(crate::own_audit::Reply, usize),
}

/// An inline object on its way to a client.
pub(crate) struct InlineRead {
    pub(crate) reading: Reading,
    pub(crate) replica: usize,
    pub(crate) found: Found,
    /// Where the index says that its entry is.
    pub(crate) at: journal::InlineRef,
}

/// What a look-up gave.
pub(crate) struct Found {
    pub(crate) meta: ObjectMeta,
    pub(crate) as_of: Seq,
    pub(crate) config: u64,
}

/// A read for an index that is being opened.
#[derive(Clone, Copy)]
pub(crate) struct LoadRead {
    pub(crate) device: usize,
    /// Of the device.
    pub(crate) generation: u32,
    /// Which of the device's replicas.
    pub(crate) nth: usize,
    /// The opening's name for it; none: it is the root.
    pub(crate) token: Option<u64>,
    pub(crate) at: u64,
    pub(crate) len: u32,
}

impl Found {
    pub(crate) fn reply(self) -> Reply {
        Reply::Found {
            meta: self.meta,
            as_of: self.as_of,
            config: self.config,
        }
    }
}

/// Work that an event brought about.
pub(crate) enum Todo {
    Engine {
        device: usize,
        event: api::Event<Buf>,
    },
    Done {
        op: u64,
        result: Result<api::Output<Buf>, EngineError>,
    },
    Replica {
        replica: usize,
        event: journal::Event,
    },
    /// A read is to be asked of the replica, once more perhaps.
    Ask {
        replica: usize,
        reading: Reading,
    },
    /// An inline object's entry is to be read from where the index said that it is.
    Inline(Box<InlineRead>),
    /// What an index wants done is to be begun again.
    Index {
        replica: usize,
        life: u64,
        lane: u32,
        op: IndexOp,
    },
    Load(LoadRead),
    LogRead {
        replica: usize,
        token: u64,
        at: u64,
        len: u32,
    },
    Replay {
        device: usize,
        record: usize,
    },
}

/// What a frame's head said, kept until its payload is in.
pub(crate) enum Message {
    Request(Request),
    Chain(ChainMessage),
    Reply(Reply),
}

/// One connection.
pub(crate) struct Conn {
    pub(crate) incoming: Incoming,
    /// The frame whose payload is coming in.
    pub(crate) head: Option<(ashlar_layout::frame::FrameHeader, Message)>,
    /// Requests not answered yet.
    pub(crate) under_way: usize,
    pub(crate) paused: bool,
    /// The peer that this core connected to, if it did.
    pub(crate) peer_out: Option<usize>,
    /// Who said hello, node and core: node 0 is a client.
    pub(crate) hello: Option<(NodeId, u32)>,
}

/// One data core.
pub struct Core {
    pub(crate) shared: Arc<Shared>,
    /// Its index in the node.
    pub(crate) core: u32,
    /// The map that this core works with: it takes a newer one between two rounds of its loop.
    pub(crate) maps: Arc<Maps>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) memory: PoolMemory,
    pub(crate) conns: HashMap<ConnId, Conn>,
    pub(crate) devices: Vec<DeviceSlot>,
    pub(crate) replicas: Vec<ReplicaSlot>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) ops: Slab<Pending>,
    /// Device operations under way: which device, which generation of it, which of the engine's.
    pub(crate) ios: Slab<(usize, u32, u64)>,
    pub(crate) todo: VecDeque<Todo>,
    /// A head forwards entries in this batch: they go out before it begins to write them.
    pub(crate) forwards: bool,
    /// Somebody outside said something in this round of the loop.
    pub(crate) busy: bool,
    /// What an engine had no room for: our own work, which waits for room instead of failing.
    /// When closed neighbours that could not be put together are tried again.
    pub(crate) unite_at: Option<Instant>,
    pub(crate) parked: VecDeque<Todo>,
    parked_until: Option<Instant>,
    pub(crate) started: Instant,
    /// When all its devices had been opened.
    open_since: Option<Instant>,
    pub(crate) draining_until: Option<Instant>,
    pub(crate) drain: Drain,
    pub(crate) finished: bool,
    /// How often devices had been asked to look at themselves when this core last saw to it.
    pub(crate) audits_seen: u64,
}

impl Core {
    /// The core of this number as configuration and map have it, its devices not open yet. [`Core::start`] is to
    /// be called once before the first event.
    pub fn of(
        config: &Config,
        shared: Arc<Shared>,
        core: usize,
        maps: Arc<Maps>,
        pulse: Arc<Pulse>,
        pool: Pool,
        now: Instant,
    ) -> Core {
        let ours = |d: &&Device| d.node == config.node && d.core as usize == core;
        let ours: Vec<&Device> = maps.map.devices.iter().filter(ours).collect();
        let cache = config.index_cache / ours.len().max(1);
        let devices: Vec<DeviceSlot> = ours
            .into_iter()
            .filter_map(|d| {
                let device = config.devices.iter().find(|c| c.no == d.no)?;
                Some(DeviceSlot::new(d, device, &maps.map, cache, &config.audit))
            })
            .collect();
        Core::new(shared, core as u32, maps, pulse, pool, devices, now)
    }

    /// A core with these devices, none of them open yet.
    fn new(
        shared: Arc<Shared>,
        core: u32,
        maps: Arc<Maps>,
        pulse: Arc<Pulse>,
        pool: Pool,
        devices: Vec<DeviceSlot>,
        now: Instant,
    ) -> Core {
        shared
            .audits
            .are_here(devices.iter().map(|device| device.no));
        Core {
            shared,
            core,
            maps,
            pulse,
            memory: PoolMemory(pool),
            conns: HashMap::new(),
            devices,
            replicas: Vec::new(),
            peers: Vec::new(),
            ops: Slab::default(),
            ios: Slab::default(),
            todo: VecDeque::new(),
            forwards: false,
            busy: false,
            unite_at: None,
            parked: VecDeque::new(),
            parked_until: None,
            started: now,
            open_since: None,
            draining_until: None,
            drain: Drain::Heads(Instant(0)),
            finished: false,
            audits_seen: 0,
        }
    }

    /// Opens the devices and calls the peers: to be done once, before the loop.
    pub fn start(&mut self, now: Instant, io: &mut impl Driver) {
        self.follow_map();
        for device in 0..self.devices.len() {
            self.open_device(device, now, io);
        }
        self.tend_peers(now, io);
        self.work(now, io);
    }

    /// Works off what has been brought about.
    pub(crate) fn work(&mut self, now: Instant, io: &mut impl Driver) {
        while let Some(todo) = self.todo.pop_front() {
            match todo {
                Todo::Engine { device, event } => self.engine_event(device, event, now, io),
                Todo::Done { op, result } => self.engine_done(op, result, now, io),
                Todo::Replica { replica, event } => self.replica_event(replica, event, now, io),
                Todo::Ask { replica, reading } => self.ask(replica, reading, io),
                Todo::Inline(read) => self.read_inline(read),
                Todo::Index {
                    replica,
                    life,
                    lane,
                    op,
                } => self.index_op(replica, life, lane, op),
                Todo::Load(read) => self.read_for_load(read, now, io),
                Todo::LogRead {
                    replica,
                    token,
                    at,
                    len,
                } => {
                    self.read_log(replica, token, at, len);
                }
                Todo::Replay { device, record } => self.read_record(device, record, now, io),
            }
        }
    }

    /// Keeps our own work that an engine has no room for until there is some.
    pub(crate) fn park(&mut self, todo: Todo, now: Instant) {
        self.parked.push_back(todo);
        self.parked_until.get_or_insert(now + PARKED);
    }

    fn unpark(&mut self, now: Instant) {
        if self.parked_until.is_some_and(|until| until <= now) {
            self.parked_until = None;
            self.todo.extend(self.parked.drain(..));
        }
    }

    fn engine_done(
        &mut self,
        op: u64,
        result: Result<api::Output<Buf>, EngineError>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        match self.ops.remove(op) {
            None => {}
            Some(Pending::Shard {
                conn,
                request,
                meter,
            }) => {
                self.measure(meter, &result, now);
                let reply = match result {
                    Ok(_) => Reply::Done,
                    Err(e) => crate::devices::refusal(&e),
                };
                self.answer(io, conn, request, &reply, Payload::None);
            }
            Some(Pending::Read {
                conn,
                request,
                meter,
            }) => {
                self.measure(meter, &result, now);
                self.shard_read(conn, request, result, io);
            }
            Some(Pending::Persist { replica, token }) => self.persisted(replica, token, result),
            Some(Pending::LogRead {
                replica,
                token,
                at,
                len,
            }) => {
                if is_busy(&result) && self.replicas[replica].replica.is_some() {
                    return self.park(
                        Todo::LogRead {
                            replica,
                            token,
                            at,
                            len,
                        },
                        now,
                    );
                }
                let bytes = match result {
                    Ok(api::Output::Bytes { buf, range }) => {
                        Some(Bytes::copy_from_slice(&buf[range]))
                    }
                    _ => None,
                };
                let event = journal::Event::LogRead { token, bytes };
                self.todo.push_back(Todo::Replica { replica, event });
            }
            Some(Pending::Inline(read)) => {
                if is_busy(&result) {
                    return self.park(Todo::Inline(read), now);
                }
                self.inline_read(read, result, io);
            }
            Some(Pending::Index {
                replica,
                life,
                lane,
                op,
            }) => self.index_done((replica, life), lane, op, result, now),
            Some(Pending::Load(read)) => {
                if is_busy(&result) {
                    return self.park(Todo::Load(read), now);
                }
                self.loaded(read, result, now, io);
            }
            Some(Pending::Replay { device, record }) => {
                if is_busy(&result) {
                    return self.park(Todo::Replay { device, record }, now);
                }
                self.replayed(device, record, result, now, io);
            }
            Some(Pending::Audit(reply, device)) => {
                self.measure(Meter::Background { device, bytes: 0 }, &result, now);
                crate::own_audit::answer(reply, result);
            }
            Some(Pending::Shutdown { device }) => {
                let draining = self.draining();
                self.devices[device].shut_down(draining, now, io);
            }
        }
    }

    /// Answers a request, once.
    pub(crate) fn answer(
        &mut self,
        io: &mut impl Driver,
        conn: ConnId,
        request: u64,
        reply: &Reply,
        payload: Payload,
    ) {
        // The connection may have closed meanwhile: then nobody waits for the answer.
        let Some(state) = self.conns.get_mut(&conn) else {
            return;
        };
        state.under_way = state.under_way.saturating_sub(1);
        outgoing::reply(io, conn, self.maps.map.epoch, request, reply, payload);
        self.ease(conn, io);
    }

    fn received(&mut self, conn: ConnId, mut data: &[u8], now: Instant, io: &mut impl Driver) {
        while !data.is_empty() {
            let Some(state) = self.conns.get_mut(&conn) else {
                return;
            };
            match state.incoming.feed(&mut data) {
                Ok(Progress::More) => break,
                Ok(progress) => self.progress(conn, progress, now, io),
                // Where the next frame would begin is unknown.
                Err(e) => return self.bad_frame(conn, &e.to_string(), now, io),
            }
        }
        if let Some(state) = self.conns.get_mut(&conn)
            && let Some((buf, from, to)) = state.incoming.take_direct()
        {
            io.recv_into(conn, buf, from, to);
        }
    }

    /// Says what is wrong with what came, and ends the connection.
    pub(crate) fn bad_frame(
        &mut self,
        conn: ConnId,
        what: &str,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let reply = outgoing::error(ErrorCode::BadFrame, what);
        outgoing::reply(io, conn, self.maps.map.epoch, 0, &reply, Payload::None);
        io.close(conn);
        self.forget_conn(conn, now);
    }

    fn progress(&mut self, conn: ConnId, progress: Progress, now: Instant, io: &mut impl Driver) {
        match progress {
            Progress::More => {}
            Progress::Head(header, control) => self.head(conn, header, &control, now, io),
            Progress::Payload(bytes) => {
                if let Some((header, message)) = self.take_head(conn) {
                    self.message(conn, &header, message, bytes, now, io);
                }
            }
            Progress::Filled(buf) => {
                if let Some((header, message)) = self.take_head(conn) {
                    self.shard_write(conn, &header, message, buf, now, io);
                }
            }
            Progress::Discarded => {}
        }
    }

    fn take_head(&mut self, conn: ConnId) -> Option<(ashlar_layout::frame::FrameHeader, Message)> {
        self.conns.get_mut(&conn)?.head.take()
    }

    pub(crate) fn forget_conn(&mut self, conn: ConnId, now: Instant) {
        if let Some(state) = self.conns.remove(&conn)
            && let Some(peer) = state.peer_out
        {
            self.peer_lost(peer, conn, now);
        }
    }

    /// Extents that were cleaned on the devices that serve, since each was opened.
    pub fn extents_cleaned(&self) -> u64 {
        let each = self.devices.iter().map(|device| device.cleaned().extents);
        each.sum()
    }

    /// How it went, after the loop.
    ///
    /// # Errors
    /// If a device was in such a state that the node had better not go on.
    pub fn outcome(&self) -> Result<(), DaemonError> {
        match self.fatal().and_then(|d| Some((d, d.fatal.clone()?))) {
            None => Ok(()),
            Some((device, message)) => Err(DaemonError::Device {
                no: device.no,
                path: device.path().to_owned(),
                message,
            }),
        }
    }

    /// Whether it serves: its devices are open, and the heads among its replicas have taken office. A head
    /// without a follower cannot; the node is ready all the same after a while, since it serves shards,
    /// and a service manager that waited for other nodes would end by restarting this one.
    fn ready(&mut self, now: Instant) -> bool {
        let open = self.devices.iter().all(DeviceSlot::is_settled)
            && self.devices.iter().any(DeviceSlot::is_serving);
        if !open {
            return false;
        }
        let since = *self.open_since.get_or_insert(now);
        // One that the map does not name in its chain is waited for by nobody.
        let settled = |slot: &ReplicaSlot| slot.settled() || !slot.is_desired();
        self.replicas.iter().all(settled) || now.since(since) >= OFFICE_MAX
    }

    /// Whether its devices still serve its indexes.
    pub(crate) fn gives_turns(&self) -> bool {
        matches!(self.drain, Drain::Heads(_))
    }

    /// Whether the node is ending: new requests are refused.
    pub(crate) fn draining(&self) -> bool {
        self.draining_until.is_some()
    }
}

impl<D: Driver> Handler<D> for Core {
    fn on_event(&mut self, now: Instant, event: Event<'_>, io: &mut D) {
        match event {
            Event::Accepted { conn, .. } if self.drain == Drain::Replies => io.abort(conn),
            Event::Accepted { conn, .. } => {
                self.conns.insert(conn, Conn::new(None));
            }
            Event::Connected { conn } => self.peer_connected(conn, now, io),
            Event::Closed { conn, .. } => self.forget_conn(conn, now),
            Event::Received { conn, data } => {
                self.busy = true;
                self.received(conn, data, now, io);
            }
            Event::Filled { conn, buf } => {
                self.busy = true;
                self.progress(conn, Progress::Filled(buf), now, io);
            }
            Event::Drained { conn } => self.ease(conn, io),
            Event::Device { token, result, buf } => self.device_done(token, result, buf, now, io),
            Event::Deadline | Event::Woken => {}
        }
        self.work(now, io);
    }

    fn on_batch(&mut self, now: Instant, io: &mut D) {
        if self.shared.stopping.load(Ordering::Relaxed) && !self.finished {
            self.drain(now, io);
        }
        self.tend_map(now, io);
        self.tend_devices(now, io);
        self.tend_peers(now, io);
        self.tend_replicas(now, io);
        self.unpark(now);
        self.take_audits(now);
        self.release(now);
        self.work(now, io);
        if std::mem::take(&mut self.forwards) {
            io.send_first();
        }
        // What a kick brings about (refusals, mostly), and what follows from that, must not wait for the
        // next event: there need not be one.
        while self.kick_engines(now, io) {
            self.work(now, io);
        }
        if self.take_turns(now) {
            self.work(now, io);
            while self.kick_engines(now, io) {
                self.work(now, io);
            }
        }
        self.tell_serving();
        let ready = self.ready(now);
        self.pulse.ready.store(ready, Ordering::Relaxed);
        self.pulse.beats.fetch_add(1, Ordering::Relaxed);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let replicas = self.replicas.iter().filter_map(ReplicaSlot::next_deadline);
        let step = match self.drain {
            Drain::Heads(until) => self.draining().then_some(until),
            Drain::Answers(until) => Some(until),
            Drain::Devices | Drain::Replies => None,
        };
        if self.gives_turns() && self.replicas.iter().any(ReplicaSlot::wants_turn) {
            // The next round comes at once, and if nobody wants anything in it there is time.
            return Some(Instant(0));
        }
        let own = [self.draining_until, step, self.parked_until, self.unite_at]
            .into_iter()
            .flatten();
        let ours = replicas.chain(own).min();
        if self.draining() {
            // Neither devices nor peers are tended any more: their times would come for ever.
            return ours;
        }
        let devices = self.devices.iter().filter_map(DeviceSlot::next_deadline);
        let held = self.devices.iter().filter_map(|d| d.holding.release_at());
        let peers = self.peers.iter().filter_map(Peer::next_deadline);
        devices.chain(held).chain(peers).chain(ours).min()
    }

    fn finished(&self) -> bool {
        self.finished || self.fatal().is_some()
    }
}

impl Conn {
    pub(crate) fn new(peer_out: Option<usize>) -> Conn {
        Conn {
            incoming: Incoming::default(),
            head: None,
            under_way: 0,
            paused: false,
            peer_out,
            hello: None,
        }
    }
}

/// Whether an engine had no room for something just now.
pub(crate) fn is_busy(result: &Result<api::Output<Buf>, EngineError>) -> bool {
    matches!(result, Err(EngineError::Busy { .. }))
}

/// The replica of a partition on this core that clients are served from: the head, else a member by its own
/// log, else one that is to be a member.
pub(crate) fn replica_of(replicas: &[ReplicaSlot], partition: PartitionId) -> Option<usize> {
    let of = |slot: &&ReplicaSlot| slot.partition == partition && !slot.over;
    if replicas.iter().filter(of).count() == 1 {
        return replicas.iter().position(|slot| of(&slot));
    }
    let rank = |slot: &ReplicaSlot| (slot.in_office(), slot.is_member(), slot.is_desired());
    let best = replicas
        .iter()
        .enumerate()
        .filter(|(_, slot)| of(slot))
        .max_by_key(|(index, slot)| (rank(slot), std::cmp::Reverse(*index)));
    best.map(|(index, _)| index)
}
