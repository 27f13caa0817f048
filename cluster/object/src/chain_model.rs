//! A chain for tests: replicas that receive entries at different times, reigns that end in the middle of
//! everything, compositions that change, and a network that keeps requests for as long as it likes, also
//! behind connections that the client has given up. All from one seed.
//!
//! It is the protocol in short, not the shipped replica: heads are elected in one step, and a deposed
//! head knows it at once, which is what leases are for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ashlar_layout::ids::{ClientId, DeviceNo, RequestNo, Seq, Term};
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition};
use ashlar_layout::message::{ChainView, ErrorCode, ObjectMeta, Reply, Request};
use ashlar_layout::slot::slot_of;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Event, Machine};
use crate::common::{Common, Tuning};
use crate::pool::BufferPool;
use crate::testing::{class, error, map};

pub(crate) type Id = (ClientId, RequestNo);

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Start,
    Chain(u64, Vec<DeviceNo>),
    Put(String, Id),
    Delete(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    term: Term,
    what: What,
}

#[derive(Clone, Debug, Default)]
struct Replica {
    log: Vec<Entry>,
    promised: Term,
    /// Per slot; lost in a restart.
    highest: HashMap<u32, Seq>,
    /// Whether it knows what it received.
    knows: bool,
    /// Whether it does not answer.
    stopped: bool,
}

impl Replica {
    fn note(&mut self, from: usize) {
        for (i, entry) in self.log.iter().enumerate().skip(from) {
            if let What::Put(key, _) | What::Delete(key) = &entry.what {
                let held = self.highest.entry(slot_of("bucket", key)).or_default();
                *held = Seq(i as u64 + 1).max(*held);
            }
        }
    }

    /// The composition that is in its log.
    fn chain(&self) -> (u64, Vec<DeviceNo>) {
        let named = self.log.iter().rev().find_map(|e| match &e.what {
            What::Chain(config, members) => Some((*config, members.clone())),
            _ => None,
        });
        named.unwrap_or((1, vec![DeviceNo(1), DeviceNo(2), DeviceNo(3)]))
    }
}

/// Who waits for an entry: the machine, its call, and the answer if it is not "committed".
struct Waiter {
    index: usize,
    to: (usize, CallId),
    refusal: Option<Answer>,
}

enum Packet {
    Request(DeviceNo, Request),
    Answer(Answer),
}

struct InFlight {
    at: Instant,
    to: (usize, CallId),
    packet: Packet,
}

/// The chain, its network, and the machines that use it.
pub(crate) struct Model<M> {
    pub(crate) common: Arc<Common>,
    pub(crate) now: Instant,
    replicas: BTreeMap<DeviceNo, Replica>,
    head: Option<DeviceNo>,
    term: Term,
    committed: usize,
    /// Entries of the log when the reign began.
    began: usize,
    waiters: Vec<Waiter>,
    network: Vec<InFlight>,
    /// Calls that are answered already, as their client sees it.
    answered: BTreeSet<(usize, CallId)>,
    pub(crate) machines: Vec<Option<M>>,
    rng: u64,
    /// How far a head's table of requests reaches back, over entries of former reigns.
    pub(crate) remembered: usize,
    /// Whether things go wrong.
    pub(crate) calm: bool,
    pub(crate) reigns: u32,
    pub(crate) changes: u32,
}

impl<M: Machine> Model<M> {
    pub(crate) fn new(seed: u64, tuning: Tuning) -> Model<M> {
        let mut map = map(4, class(1, 1));
        map.partitions[0].chain.devices.push(DeviceNo(4));
        let client = ClientId(seed | 1);
        let common = Common::new(Arc::new(map), client, BufferPool::new(0), tuning);
        let replica = Replica {
            knows: true,
            ..Replica::default()
        };
        let mut model = Model {
            common: Arc::new(common),
            now: Instant(1_000_000_000),
            replicas: (1..=4).map(|i| (DeviceNo(i), replica.clone())).collect(),
            head: None,
            term: Term(0),
            committed: 0,
            began: 0,
            waiters: Vec::new(),
            network: Vec::new(),
            answered: BTreeSet::new(),
            machines: Vec::new(),
            rng: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            remembered: 20,
            calm: true,
            reigns: 0,
            changes: 0,
        };
        model.elect();
        model.recover();
        model.calm = false;
        model
    }

    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below.max(1)
    }

    fn any(&mut self) -> DeviceNo {
        DeviceNo(1 + self.below(4) as u32)
    }

    fn replica(&mut self, device: DeviceNo) -> &mut Replica {
        self.replicas.get_mut(&device).unwrap()
    }

    fn head_log(&self) -> &[Entry] {
        self.head.map_or(&[], |head| &self.replicas[&head].log)
    }

    fn serves(&self) -> bool {
        self.head.is_some() && self.committed > self.began
    }

    /// The head's log, up to the last entry that is committed.
    fn truth(&self) -> &[Entry] {
        let log = self.head_log();
        &log[..self.committed.min(log.len())]
    }

    /// The version of a key in a log.
    fn version(log: &[Entry], key: &str) -> Option<Seq> {
        let touches = |e: &Entry| match &e.what {
            What::Put(k, _) | What::Delete(k) => k == key,
            _ => false,
        };
        let at = log.iter().rposition(touches)?;
        matches!(log[at].what, What::Put(..)).then_some(Seq(at as u64 + 1))
    }

    /// The committed version of a key now.
    pub(crate) fn current(&self, key: &str) -> Option<Seq> {
        Self::version(self.truth(), key)
    }

    /// Whether a committed entry put this key.
    pub(crate) fn was_put(&self, key: &str, version: Seq) -> bool {
        let at = usize::try_from(version.0).unwrap().checked_sub(1);
        let entry = at.and_then(|at| self.truth().get(at));
        entry.is_some_and(|e| matches!(&e.what, What::Put(k, _) if k == key))
    }

    /// The committed entries that did a request.
    pub(crate) fn done(&self, id: Id) -> Vec<Seq> {
        let did = |e: &Entry| matches!(&e.what, What::Put(_, by) if *by == id);
        let log = self.truth().iter().enumerate();
        log.filter(|(_, e)| did(e))
            .map(|(i, _)| Seq(i as u64 + 1))
            .collect()
    }

    fn elect(&mut self) {
        let voter = self.any();
        let mut candidates = self.replicas[&voter].chain().1;
        let by = self.below(candidates.len() as u64) as usize;
        candidates.rotate_left(by);
        let candidate = candidates[0];
        let (_, members) = self.replicas[&candidate].chain();
        if !members.contains(&candidate) || self.replicas[&candidate].stopped {
            return;
        }
        let quorum = |members: &[DeviceNo]| members.len() - (members.len() - 1) / 2;
        // The candidate, and the first others that answer, in any order.
        let mut sealed = vec![candidate];
        let mut others: Vec<DeviceNo> = members
            .iter()
            .copied()
            .filter(|d| *d != candidate)
            .collect();
        while sealed.len() < quorum(&members) && !others.is_empty() {
            let pick = self.below(others.len() as u64) as usize;
            let other = others.swap_remove(pick);
            if !self.replicas[&other].stopped {
                sealed.push(other);
            }
        }
        let best = sealed
            .iter()
            .max_by_key(|d| {
                let log = &self.replicas[d].log;
                (log.last().map_or(Term(0), |e| e.term), log.len())
            })
            .copied()
            .unwrap();
        let (_, adopted) = self.replicas[&best].chain();
        let counted = sealed.iter().filter(|d| adopted.contains(d)).count();
        if sealed.len() < quorum(&members)
            || counted < quorum(&adopted)
            || !adopted.contains(&candidate)
        {
            return;
        }
        let term = Term::new(self.term.round() + 1, candidate);
        for device in sealed {
            self.replica(device).promised = term;
        }
        let mut log = self.replicas[&best].log.clone();
        self.began = log.len();
        log.push(Entry {
            term,
            what: What::Start,
        });
        let head = self.replica(candidate);
        head.log = log;
        head.note(0);
        (self.head, self.term) = (Some(candidate), term);
        self.reigns += 1;
        for waiter in std::mem::take(&mut self.waiters) {
            let gone = error(ErrorCode::PartitionUnavailable, "deposed".to_owned());
            self.reply(waiter.to, gone);
        }
    }

    /// A member receives some of the head's log.
    fn replicate(&mut self, device: DeviceNo) {
        let Some(head) = self.head.filter(|h| *h != device) else {
            return;
        };
        if self.replicas[&device].stopped || self.replicas[&head].stopped {
            return;
        }
        // Who is no member hears nothing any more.
        if !self.replicas[&head].chain().1.contains(&device) {
            return;
        }
        let log = self.replicas[&head].log.clone();
        let held = &self.replicas[&device].log;
        let common = held.iter().zip(&log).take_while(|(a, b)| a == b).count();
        let more = 1 + self.below(4) as usize;
        let to = if self.calm {
            log.len()
        } else {
            log.len().min(common + more)
        };
        let (term, committed) = (self.term, self.committed);
        let replica = self.replica(device);
        replica.promised = term;
        replica.log.truncate(common);
        replica.log.extend_from_slice(&log[common..to]);
        replica.note(common);
        if !replica.knows && replica.log.len() >= committed {
            replica.highest.clear();
            replica.note(0);
            replica.knows = true;
        }
    }

    fn commit(&mut self) {
        let Some(head) = self.head else { return };
        if self.replicas[&head].stopped {
            return;
        }
        let log = self.head_log();
        let (_, members) = self.replicas[&head].chain();
        let quorum = members.len() - (members.len() - 1) / 2;
        let holds = |d: &DeviceNo, i: usize| self.replicas[d].log.get(i) == log.get(i);
        let committed = (self.committed.max(self.began)..log.len())
            .take_while(|i| members.iter().filter(|d| holds(d, *i)).count() >= quorum)
            .last();
        let Some(last) = committed else { return };
        self.committed = last + 1;
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.index >= self.committed {
                self.waiters.push(waiter);
                continue;
            }
            let answer = waiter.refusal.unwrap_or_else(|| {
                plain(Reply::Committed {
                    seq: Seq(waiter.index as u64 + 1),
                    displaced: None,
                })
            });
            self.reply(waiter.to, answer);
        }
    }

    /// The head changes the composition, one member at a time.
    fn recompose(&mut self) {
        let Some(head) = self.head.filter(|_| self.serves()) else {
            return;
        };
        let (config, members) = self.replicas[&head].chain();
        let last = self.replicas[&head]
            .log
            .iter()
            .rposition(|e| matches!(e.what, What::Chain(..)));
        if last.is_some_and(|at| at >= self.committed) {
            return;
        }
        let members = if config % 2 == 1 {
            (1..=4).map(DeviceNo).collect()
        } else {
            let out = self.any();
            if out == head {
                return;
            }
            members.into_iter().filter(|d| *d != out).collect()
        };
        let term = self.term;
        self.replica(head).log.push(Entry {
            term,
            what: What::Chain(config + 1, members),
        });
        self.changes += 1;
    }

    fn restart(&mut self, device: DeviceNo) {
        if self.head == Some(device) {
            self.depose();
        }
        let replica = self.replica(device);
        replica.highest.clear();
        replica.knows = false;
    }

    fn depose(&mut self) {
        self.head = None;
        // Nobody hears of these any more.
        self.waiters.clear();
    }

    /// Something happens in the chain.
    fn shake(&mut self) {
        let device = self.any();
        match self.below(100) {
            0..45 => self.replicate(device),
            45..75 => self.commit(),
            75..80 if self.head.is_none() => self.elect(),
            80 if self.below(3) == 0 => self.elect(),
            82 => self.recompose(),
            85 if self.below(2) == 0 => self.restart(device),
            86 if self.below(2) == 0 && self.replicas.values().all(|r| !r.stopped) => {
                self.replica(device).stopped = true;
                if self.head == Some(device) {
                    self.depose();
                }
            }
            87..95 => self.replicas.values_mut().for_each(|r| r.stopped = false),
            _ => {}
        }
    }

    /// All is well again: everything that lies in a socket arrives, and what can be committed is.
    pub(crate) fn recover(&mut self) {
        self.calm = true;
        for replica in self.replicas.values_mut() {
            replica.stopped = false;
        }
        while let Some(at) =
            (0..self.network.len()).find(|i| matches!(self.network[*i].packet, Packet::Request(..)))
        {
            let sent = self.network.swap_remove(at);
            if let Packet::Request(to, request) = sent.packet {
                self.arrive(sent.to, to, request);
            }
        }
        let before = self.reigns;
        while self.head.is_none() && self.reigns == before {
            self.elect();
        }
        for device in 1..=4 {
            self.replicate(DeviceNo(device));
        }
        self.commit();
    }

    fn reply(&mut self, to: (usize, CallId), answer: Answer) {
        let at = self.now + Duration::from_micros(20 + self.below(400));
        let packet = Packet::Answer(answer);
        self.network.push(InFlight { at, to, packet });
    }

    fn send(&mut self, to: (usize, CallId), device: DeviceNo, request: Request) {
        let fate = self.below(100);
        let delay = match fate {
            0..4 if !self.calm => Duration::from_millis(self.below(400)),
            _ => Duration::from_micros(20 + self.below(400)),
        };
        if !self.calm && fate.is_multiple_of(20) {
            // The connection breaks; what was sent may still be read from it, at any time.
            let lost = Answer::Lost {
                detail: "broken".to_owned(),
            };
            self.reply(to, lost);
        } else if !self.calm && fate % 20 == 1 {
            let detail = "refused".to_owned();
            return self.reply(to, Answer::NotSent { detail });
        }
        let at = self.now + delay;
        let packet = Packet::Request(device, request);
        self.network.push(InFlight { at, to, packet });
    }

    fn arrive(&mut self, from: (usize, CallId), at: DeviceNo, request: Request) {
        if self.replicas[&at].stopped {
            return;
        }
        let serves = self.head == Some(at) && self.serves();
        let not_head = || error(ErrorCode::NotHead, "it is not I".to_owned());
        let answer = match request {
            Request::Chain { .. } => plain(Reply::Chain(self.view(at))),
            Request::Witness { slot, .. } => {
                let replica = &self.replicas[&at];
                let (config, _) = replica.chain();
                plain(Reply::Witness {
                    config: Some(config).filter(|c| c % 2 == 1 && replica.knows),
                    highest: replica.highest.get(&slot).copied().unwrap_or_default(),
                })
            }
            _ if !serves => not_head(),
            Request::Lookup { key, .. } => match self.current(&key) {
                Some(version) => plain(Reply::Found {
                    meta: ObjectMeta {
                        version,
                        modified_ms: 0,
                        manifest: manifest(),
                        tag: None,
                    },
                    as_of: Seq(self.committed as u64),
                    config: self.settled(),
                }),
                None => error(ErrorCode::NotFound, key),
            },
            Request::Propose { term, .. } if term != self.term => not_head(),
            Request::Propose {
                client,
                request,
                retry,
                precondition,
                op: Op::Put { key, .. },
                ..
            } => match self.propose(from, (client, request), retry, precondition, key) {
                Some(answer) => answer,
                None => return,
            },
            other => panic!("nobody asks {other:?} here"),
        };
        self.reply(from, answer);
    }

    /// The head's composition, if it is committed.
    fn settled(&self) -> u64 {
        let head = self.head.unwrap();
        let all = self.replicas[&head].chain().0;
        let committed = Replica {
            log: self.truth().to_vec(),
            ..Replica::default()
        };
        if committed.chain().0 == all { all } else { 0 }
    }

    fn propose(
        &mut self,
        from: (usize, CallId),
        id: Id,
        retry: Option<Seq>,
        precondition: Precondition,
        key: String,
    ) -> Option<Answer> {
        let forgotten = self
            .began
            .min(self.committed.saturating_sub(self.remembered));
        let log = self.head_log();
        let did = log
            .iter()
            .rposition(|e| matches!(&e.what, What::Put(_, by) if *by == id));
        match did {
            Some(index) if index >= self.committed => {
                self.waiters.push(Waiter {
                    index,
                    to: from,
                    refusal: None,
                });
                return None;
            }
            Some(index) if index >= forgotten => {
                let seq = Seq(index as u64 + 1);
                let displaced = None;
                return Some(plain(Reply::Committed { seq, displaced }));
            }
            _ => {}
        }
        if retry.is_some_and(|told| told.0 < forgotten as u64) {
            return Some(error(ErrorCode::OutcomeUnknown, "forgotten".to_owned()));
        }
        let version = Self::version(log, &key);
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => version.is_none(),
            Precondition::Present => version.is_some(),
            Precondition::Version(wanted) => version == Some(wanted),
        };
        let (index, term) = (log.len(), self.term);
        if !holds {
            // What it rests on must be committed first. That it was refused is not remembered.
            let refusal = error(ErrorCode::PreconditionFailed, "no".to_owned());
            if index == self.committed {
                return Some(refusal);
            }
            self.waiters.push(Waiter {
                index: index - 1,
                to: from,
                refusal: Some(refusal),
            });
            return None;
        }
        let head = self.head.unwrap();
        let replica = self.replica(head);
        replica.log.push(Entry {
            term,
            what: What::Put(key, id),
        });
        replica.note(index);
        self.waiters.push(Waiter {
            index,
            to: from,
            refusal: None,
        });
        None
    }

    /// Starts a machine; gives its number.
    pub(crate) fn start(&mut self, machine: M) -> usize {
        self.machines.push(Some(machine));
        let number = self.machines.len() - 1;
        self.event(number, Event::Start);
        number
    }

    fn event(&mut self, number: usize, event: Event) {
        let mut out = Vec::new();
        let Some(machine) = &mut self.machines[number] else {
            return;
        };
        machine.on_event(self.now, event, &mut out);
        for action in out {
            match action {
                Action::Send {
                    call, to, request, ..
                } => self.send((number, call), to, request),
                Action::View { partition, device } if !self.replicas[&device].stopped => {
                    let view = self.view(device);
                    let mut heads = self.common.heads();
                    heads.heard(self.now, partition, device, &view);
                }
                _ => {}
            }
        }
    }

    /// The chain, as this replica sees it. Only the head names members: of a composition that is
    /// committed, or none.
    fn view(&self, device: DeviceNo) -> ChainView {
        let replica = &self.replicas[&device];
        let serving = self.head == Some(device) && self.serves();
        let (config, members) = replica.chain();
        ChainView {
            term: replica.promised,
            serving,
            committed: Seq(if serving { self.committed as u64 } else { 0 }),
            config: if serving { self.settled() } else { config },
            members,
        }
    }

    /// Moves on by one event.
    pub(crate) fn step(&mut self) {
        if !self.calm {
            self.shake();
        } else {
            for device in 1..=4 {
                self.replicate(DeviceNo(device));
            }
            self.commit();
        }
        let tick = self.now + Duration::from_micros(50 + self.below(200));
        let deadline = |m: &Option<M>| m.as_ref().and_then(M::next_deadline);
        let due: Vec<usize> = (0..self.machines.len())
            .filter(|i| deadline(&self.machines[*i]).is_some_and(|d| d <= tick))
            .collect();
        self.now = tick;
        for number in due {
            self.event(number, Event::Deadline);
            let next = deadline(&self.machines[number]);
            assert!(next.is_none_or(|d| d > self.now), "a deadline stands still");
        }
        while let Some(at) = (0..self.network.len()).find(|i| self.network[*i].at <= self.now) {
            let InFlight { to, packet, .. } = self.network.swap_remove(at);
            match packet {
                Packet::Request(device, request) => self.arrive(to, device, request),
                // A driver answers each call once.
                Packet::Answer(answer) if self.answered.insert(to) => {
                    let (number, call) = to;
                    self.event(number, Event::Answer { call, answer });
                }
                Packet::Answer(_) => {}
            }
        }
    }

    /// Another client deletes this key, if there is a head.
    pub(crate) fn erase(&mut self, key: &str) {
        let term = self.term;
        if let Some(head) = self.head.filter(|_| self.serves()) {
            let replica = self.replica(head);
            let what = What::Delete(key.to_owned());
            replica.log.push(Entry { term, what });
            let last = replica.log.len() - 1;
            replica.note(last);
        }
    }

    /// Another client writes this key, if there is a head.
    pub(crate) fn write(&mut self, key: &str) {
        if self.serves() && !self.replicas[&self.head.unwrap()].stopped {
            let number = RequestNo(self.below(u64::MAX));
            let nobody = CallId { lane: 9, call: 9 };
            let none = Precondition::None;
            let id = (ClientId(0), number);
            let to = (usize::MAX, nobody);
            self.answered.insert(to);
            let _ = self.propose(to, id, None, none, key.to_owned());
        }
    }
}

pub(crate) fn manifest() -> Manifest {
    Manifest::plain(0, 0, Body::Inline)
}

fn plain(reply: Reply) -> Answer {
    Answer::Reply {
        reply,
        payload: Bytes::new(),
        payload_crc: 0,
    }
}
