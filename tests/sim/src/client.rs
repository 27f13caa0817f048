//! A client: the shipped state machines of operations, and connections to the nodes that they ask.
//!
//! Invariants, those of the shipped driver (`node/client`):
//! - each request is answered once: by its reply, or as lost if it may have gone out, or as not sent;
//! - nothing goes out on a connection before its hello is answered;
//! - an answer to a request that nobody waits for any more is dropped.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ashlar_cluster_object::{
    Action, Answer, CallId, Common, Compose, Delete, Event, Get, Leftover, Look, Machine, Mend,
    Probed, Put, Relocate, Rename, StripeRead, ask::Ask,
};
use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{
    FRAME_HEADER_LEN, FrameHeader, Haste, Opcode, decode_control, encode_control,
};
use ashlar_layout::ids::{DeviceNo, Epoch, NodeId, PartitionId};
use ashlar_layout::manifest::Op;
use ashlar_layout::message::{Reply, Request};
use ashlar_layout::time::Instant;
use ashlar_node_reactor::ConnId;
use bytes::{Buf, Bytes, BytesMut};

use crate::net::{self, Heard};

/// How long a connection may take to be there, hello included,
const CONNECT: u64 = 1_000_000_000;
/// how long nothing may come on one that owes something,
const SILENCE: u64 = 10_000_000_000;
/// and how long one that failed is left alone.
const PAUSE: u64 = 50_000_000;
/// How long a question behind the operations may take.
const PROBE: u64 = 1_000_000_000;

/// An operation under way.
#[allow(clippy::large_enum_variant, reason = "a client has a handful of them")]
pub enum Running {
    /// A put.
    Put(Put),
    /// An object put together of others.
    Compose(Compose),
    /// A get.
    Get(Get),
    /// A removal.
    Delete(Delete),
    /// Another key for an object, or something else that is remembered of it.
    Rename(Rename),
    /// A question.
    Ask(Ask),
    /// A look at what an object is.
    Look(Look),
    /// A look at a stripe.
    Mend(Mend),
    /// A stripe that is read.
    Stripe(StripeRead),
    /// A stripe that is put elsewhere.
    Relocate(Relocate),
}

macro_rules! each {
    ($running:expr, $machine:ident => $do:expr) => {
        match $running {
            Running::Put($machine) => $do,
            Running::Compose($machine) => $do,
            Running::Get($machine) => $do,
            Running::Delete($machine) => $do,
            Running::Rename($machine) => $do,
            Running::Ask($machine) => $do,
            Running::Look($machine) => $do,
            Running::Mend($machine) => $do,
            Running::Stripe($machine) => $do,
            Running::Relocate($machine) => $do,
        }
    };
}

impl Running {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        each!(self, machine => machine.on_event(now, event, out));
    }

    fn next_deadline(&self) -> Option<Instant> {
        each!(self, machine => machine.next_deadline())
    }

    /// Audits may wait, as in the shipped driver.
    fn haste(&self) -> Haste {
        match self {
            Running::Mend(_) | Running::Stripe(_) | Running::Relocate(_) => Haste::Background,
            _ => Haste::Foreground,
        }
    }

    /// Whether it has come to an answer.
    pub fn is_answered(&self) -> bool {
        each!(self, machine => machine.is_answered())
    }

    fn is_settled(&self) -> bool {
        each!(self, machine => machine.is_settled())
    }

    fn leftover(&self) -> Leftover {
        each!(self, machine => machine.leftover())
    }
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Who {
    Machine(u64, CallId, Haste),
    Probe(u64),
    View(u64, PartitionId),
    Map,
    Nobody,
}

enum Phase {
    Idle,
    Calling { conn: ConnId, until: u64 },
    Up { conn: ConnId },
    Down { until: u64 },
}

struct Link {
    phase: Phase,
    waiting: VecDeque<(Request, Bytes, Option<u32>, Who, DeviceNo)>,
    under_way: BTreeMap<u64, (Who, DeviceNo)>,
    next_request: u64,
    came: BytesMut,
    heard: u64,
}

/// What a client wants of the network.
pub enum Want {
    /// Call an address.
    Call(ConnId, SocketAddr),
    /// Send bytes.
    Send(ConnId, Bytes),
    /// Cut a connection off.
    Drop(ConnId),
}

/// One client.
pub struct Client {
    /// What its operations share.
    pub common: Arc<Common>,
    /// Operations by their numbers, tails included.
    pub running: BTreeMap<u64, Running>,
    /// Those whose answer somebody waits for.
    pub wanted: Option<u64>,
    /// What it wants of the network.
    pub wants: Vec<Want>,
    /// Shards that settled operations say they could not free,
    pub unfreed: u64,
    /// and lists of stripes that they could not read to do so.
    pub unread: u64,
    /// A change was asked for again. What it displaced is told to the first attempt only, whose answer may be lost: the
    /// stripes of that are nobody's then, and stay until somebody collects what no object names.
    pub retried: bool,
    links: BTreeMap<SocketAddr, Link>,
    /// Questions behind the operations: until when, of which device, and whether they are probes.
    questions: BTreeMap<u64, (u64, DeviceNo, bool)>,
    asking_map: bool,
    next: u64,
    wires: Rc<Cell<u32>>,
}

impl Client {
    /// A client that knows a map.
    pub fn new(common: Common, wires: Rc<Cell<u32>>) -> Client {
        Client {
            common: Arc::new(common),
            running: BTreeMap::new(),
            wanted: None,
            wants: Vec::new(),
            unfreed: 0,
            unread: 0,
            retried: false,
            links: BTreeMap::new(),
            questions: BTreeMap::new(),
            asking_map: false,
            next: 0,
            wires,
        }
    }

    /// Its time: never 0.
    pub fn time(now: u64) -> Instant {
        Instant(now + 1)
    }

    /// Begins an operation, which somebody waits for.
    pub fn start(&mut self, now: u64, running: Running) -> u64 {
        let op = self.next;
        self.next += 1;
        self.running.insert(op, running);
        self.wanted = Some(op);
        self.event(now, op, Event::Start);
        op
    }

    /// Tells an operation something.
    pub fn event(&mut self, now: u64, op: u64, event: Event) {
        let mut actions = Vec::new();
        if let Some(running) = self.running.get_mut(&op) {
            running.on_event(Client::time(now), event, &mut actions);
        }
        self.carry_out(now, op, actions);
    }

    /// Lets something be done with an operation's machine.
    pub fn with<R>(
        &mut self,
        now: u64,
        op: u64,
        f: impl FnOnce(&mut Running, Instant, &mut Vec<Action>) -> R,
    ) -> Option<R> {
        let mut actions = Vec::new();
        let running = self.running.get_mut(&op)?;
        let result = f(running, Client::time(now), &mut actions);
        self.carry_out(now, op, actions);
        Some(result)
    }

    fn carry_out(&mut self, now: u64, op: u64, actions: Vec<Action>) {
        let running = self.running.get(&op);
        let haste = running.map_or(Haste::Foreground, Running::haste);
        for action in actions {
            match action {
                Action::Send {
                    call,
                    to,
                    request,
                    payload,
                    payload_crc,
                } => self.submit(
                    now,
                    to,
                    request,
                    payload,
                    payload_crc,
                    Who::Machine(op, call, haste),
                ),
                Action::Tell { to, request } => {
                    self.submit(now, to, request, Bytes::new(), Some(0), Who::Nobody);
                }
                Action::View { partition, device } => {
                    let question = self.question(now, device, false);
                    let who = Who::View(question, partition);
                    self.submit(
                        now,
                        device,
                        Request::Chain { partition },
                        Bytes::new(),
                        None,
                        who,
                    );
                }
                Action::Probe { device } => {
                    let who = Who::Probe(self.question(now, device, true));
                    self.submit(now, device, Request::Status, Bytes::new(), None, who);
                }
            }
        }
    }

    fn question(&mut self, now: u64, device: DeviceNo, probe: bool) -> u64 {
        let question = self.next;
        self.next += 1;
        self.questions
            .insert(question, (now + PROBE, device, probe));
        question
    }

    fn submit(
        &mut self,
        now: u64,
        to: DeviceNo,
        request: Request,
        payload: Bytes,
        crc: Option<u32>,
        who: Who,
    ) {
        // Who moves a stripe frees the one that he moved, whatever he is told was displaced.
        self.retried |= match &request {
            Request::Propose { retry, op, .. } => {
                retry.is_some() && !matches!(op, Op::Relocate { .. })
            }
            _ => false,
        };
        let map = self.common.map();
        let address = map.address(to).and_then(|it| it.parse().ok());
        let Some(address) = address else {
            let detail = format!("map {} does not say where device {to} is", map.epoch);
            return self.answer(now, who, to, Answer::NotSent { detail });
        };
        let link = self.links.entry(address).or_insert_with(|| Link {
            phase: Phase::Idle,
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            next_request: 1,
            came: BytesMut::new(),
            heard: now,
        });
        let calls = match &link.phase {
            Phase::Idle => true,
            Phase::Down { until } => *until <= now,
            Phase::Calling { .. } | Phase::Up { .. } => false,
        };
        if calls {
            let wire = self.wires.get();
            self.wires.set(wire + 1);
            let conn = net::name(wire, 0);
            link.phase = Phase::Calling {
                conn,
                until: now + CONNECT,
            };
            self.wants.push(Want::Call(conn, address));
        }
        match &link.phase {
            Phase::Up { conn } => {
                let conn = *conn;
                let sent = (request, payload, crc, who, to);
                send(&mut self.wants, link, conn, map.epoch, sent, now);
            }
            Phase::Down { .. } | Phase::Idle => {
                let detail = "the connection failed a moment ago".to_owned();
                self.answer(now, who, to, Answer::NotSent { detail });
            }
            Phase::Calling { .. } => link.waiting.push_back((request, payload, crc, who, to)),
        }
    }

    fn ask_map(&mut self, now: u64, from: DeviceNo) {
        if !std::mem::replace(&mut self.asking_map, true) {
            self.submit(now, from, Request::GetMap, Bytes::new(), None, Who::Map);
        }
    }

    fn answer(&mut self, now: u64, who: Who, from: DeviceNo, answer: Answer) {
        if answer
            .newer_map()
            .is_some_and(|map| !self.common.learn_json(map))
        {
            self.ask_map(now, from);
        }
        match who {
            Who::Nobody => {}
            Who::Machine(op, call, _) => self.event(now, op, Event::Answer { call, answer }),
            Who::Map => {
                self.asking_map = false;
                if let Answer::Reply {
                    reply: Reply::Map,
                    payload,
                    ..
                } = answer
                {
                    self.common.learn_json(&payload);
                }
            }
            Who::Probe(question) => {
                if self.questions.remove(&question).is_some() {
                    let probed = Probed::of(from, answer);
                    let at = Client::time(now);
                    self.common.health().probed(at, from, probed);
                }
            }
            Who::View(question, partition) => {
                if self.questions.remove(&question).is_some()
                    && let Answer::Reply {
                        reply: Reply::Chain(view),
                        ..
                    } = answer
                {
                    let at = Client::time(now);
                    self.common.heads().heard(at, partition, from, &view);
                }
            }
        }
    }

    /// Something came from the network.
    pub fn hear(&mut self, now: u64, conn: ConnId, heard: Heard) {
        let ours = |link: &Link| match link.phase {
            Phase::Calling { conn: it, .. } | Phase::Up { conn: it } => it == conn,
            _ => false,
        };
        let found = self.links.iter_mut().find(|(_, link)| ours(link));
        let Some((address, link)) = found else {
            return;
        };
        let address = *address;
        match heard {
            Heard::Accepted | Heard::Arrived(_) => {}
            Heard::Connected => {
                let hello = Request::Hello {
                    cluster: self.common.map().cluster,
                    node: NodeId(0),
                    core: 0,
                };
                let control = encode_control(&hello);
                let header = FrameHeader::new(Opcode::Request, 0, Epoch(0), &control, 0, 0);
                let header = header.expect("a hello is short").encode();
                let frame = Bytes::from([&header[..], &control].concat());
                self.wants.push(Want::Send(conn, frame));
            }
            Heard::Closed(_) => self.lost(now, address, "it was closed"),
            Heard::Bytes(bytes) => {
                link.heard = now;
                link.came.extend_from_slice(&bytes);
                self.frames(now, address, conn);
            }
        }
    }

    /// Takes apart what came.
    fn frames(&mut self, now: u64, address: SocketAddr, conn: ConnId) {
        loop {
            let Some(link) = self.links.get_mut(&address) else {
                return;
            };
            let current = match link.phase {
                Phase::Calling { conn: it, .. } | Phase::Up { conn: it } => it,
                _ => return,
            };
            let Some(head) = link.came.first_chunk::<FRAME_HEADER_LEN>() else {
                return;
            };
            let header = FrameHeader::decode(head).expect("a node sends whole frames");
            if current != conn || link.came.len() < header.frame_len() {
                return;
            }
            let mut frame = link.came.split_to(header.frame_len()).freeze();
            frame.advance(FRAME_HEADER_LEN);
            let control = frame.split_to(header.control_len as usize);
            header
                .verify_control(&control)
                .expect("a node sends what it means");
            header
                .verify_payload(&frame)
                .expect("a node sends what it means");
            let reply = decode_control::<Reply>(&control).expect("a node speaks the protocol");
            if let Phase::Calling { .. } = link.phase {
                assert_eq!(header.request, 0, "nothing but hello was asked");
                if !matches!(reply, Reply::Hello { .. }) {
                    return self.lost(now, address, &format!("it answers hello with {reply:?}"));
                }
                link.phase = Phase::Up { conn };
                let epoch = self.common.map().epoch;
                for sent in std::mem::take(&mut link.waiting) {
                    send(&mut self.wants, link, conn, epoch, sent, now);
                }
                continue;
            }
            if let Some((who, from)) = link.under_way.remove(&header.request) {
                let answer = Answer::Reply {
                    reply,
                    payload_crc: header.payload_crc,
                    payload: frame,
                };
                self.answer(now, who, from, answer);
                if header.epoch > self.common.map().epoch {
                    self.ask_map(now, from);
                }
            }
        }
    }

    fn lost(&mut self, now: u64, address: SocketAddr, why: &str) {
        let Some(link) = self.links.get_mut(&address) else {
            return;
        };
        if let Phase::Calling { conn, .. } | Phase::Up { conn } = link.phase {
            self.wants.push(Want::Drop(conn));
        }
        link.phase = Phase::Down { until: now + PAUSE };
        link.came.clear();
        let (waiting, under_way) = (
            std::mem::take(&mut link.waiting),
            std::mem::take(&mut link.under_way),
        );
        for (_, (who, from)) in under_way {
            let detail = why.to_owned();
            self.answer(now, who, from, Answer::Lost { detail });
        }
        for (_, _, _, who, from) in waiting {
            let detail = why.to_owned();
            self.answer(now, who, from, Answer::NotSent { detail });
        }
    }

    /// Whatever is due by now.
    pub fn tick(&mut self, now: u64) {
        let at = Client::time(now);
        let due = |running: &Running| running.next_deadline().is_some_and(|it| it <= at);
        let due: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, it)| due(it))
            .map(|(op, _)| *op)
            .collect();
        for op in due {
            self.event(now, op, Event::Deadline);
        }
        let late: Vec<SocketAddr> = self
            .links
            .iter()
            .filter(|(_, link)| link.due().is_some_and(|it| it <= now))
            .map(|(address, _)| *address)
            .collect();
        for address in late {
            self.lost(now, address, "nothing came for too long");
        }
        let questions = self.questions.iter();
        let over = questions.filter(|(_, (until, ..))| *until <= now);
        let over: Vec<u64> = over.map(|(question, _)| *question).collect();
        for question in over {
            // A view that is not answered changes nothing.
            if let Some((_, device, true)) = self.questions.remove(&question) {
                let away = Probed::Away("no answer in time".to_owned());
                self.common.health().probed(at, device, away);
            }
        }
        self.sweep();
    }

    /// Lets go of what has nothing left to do.
    pub fn sweep(&mut self) {
        let wanted = self.wanted;
        let (unfreed, unread) = (&mut self.unfreed, &mut self.unread);
        self.running.retain(|op, running| {
            let keeps = Some(*op) == wanted || !running.is_settled();
            if !keeps {
                // What came too late is missing, and made again by who audits; what is not freed stays.
                let left = running.leftover();
                *unfreed += left.unfreed;
                *unread += left.unread_nodes;
            }
            keeps
        });
    }

    /// When it wants to be asked again.
    pub fn next_at(&self) -> Option<u64> {
        let machines = self.running.values().filter_map(Running::next_deadline);
        let machines = machines.map(|at| at.0.saturating_sub(1));
        let links = self.links.values().filter_map(Link::due);
        let questions = self.questions.values().map(|(until, ..)| *until);
        machines.chain(links).chain(questions).min()
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

impl Link {
    fn due(&self) -> Option<u64> {
        match self.phase {
            Phase::Calling { until, .. } => Some(until),
            Phase::Up { .. } if !self.under_way.is_empty() => Some(self.heard + SILENCE),
            _ => None,
        }
    }
}

fn send(
    wants: &mut Vec<Want>,
    link: &mut Link,
    conn: ConnId,
    epoch: Epoch,
    (request, payload, crc, who, to): (Request, Bytes, Option<u32>, Who, DeviceNo),
    now: u64,
) {
    let control = encode_control(&request);
    let number = link.next_request;
    link.next_request += 1;
    let haste = match who {
        Who::Machine(_, _, haste) => haste,
        _ => Haste::Foreground,
    };
    let crc = crc.unwrap_or_else(|| crc32(&payload));
    let header = FrameHeader::new(Opcode::Request, number, epoch, &control, payload.len(), crc);
    let header = header
        .expect("an operation asks for no more than a frame")
        .hasting(haste)
        .encode();
    if link.under_way.is_empty() {
        link.heard = now;
    }
    link.under_way.insert(number, (who, to));
    let frame = [&header[..], &control, &payload].concat();
    wants.push(Want::Send(conn, Bytes::from(frame)));
}
