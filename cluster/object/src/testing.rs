//! A world for tests: devices that keep shards in memory, a head that keeps objects, and a network
//! that delivers in any order, loses, delays and lies, all from one seed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::{
    Chain, Class, ClusterMap, Core, Device, DomainLevel, Domains, Node, Partition, PlacementGroup,
};
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{
    ClientId, ClusterId, DeviceId, DeviceNo, Epoch, NodeId, PartitionId, PgId, RequestNo, Seq,
    ShardId, Term,
};
use ashlar_layout::manifest::{Manifest, Op, Precondition};
use ashlar_layout::message::{
    ChainView, ErrorCode, FindingKind, ObjectMeta, Reply, Request, WireError,
};
use ashlar_layout::slot::slot_of;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Event, Machine};
use crate::common::{Common, Tuning};
use crate::health::Probed;
use crate::pool::BufferPool;

pub(crate) fn class(k: u8, m: u8) -> Class {
    Class { k, m }
}

/// A map of `nodes` nodes with a device each, and every group that there can be of the class and
/// of the smaller ones.
pub(crate) fn map(nodes: u32, class: Class) -> ClusterMap {
    let mut groups = Vec::new();
    for k in (1..=class.k).rev() {
        let class = Class { k, m: class.m };
        for set in 0u32..1 << nodes {
            if set.count_ones() as usize == class.shards() {
                let devices = (0..nodes)
                    .filter(|i| set >> i & 1 == 1)
                    .map(|i| DeviceNo(i + 1));
                let id = PgId(groups.len() as u32);
                groups.push(PlacementGroup {
                    id,
                    class,
                    devices: devices.collect(),
                });
            }
        }
    }
    ClusterMap {
        cluster: ClusterId([7; 16]),
        epoch: Epoch(1),
        class,
        stripe_data: 4000,
        domain: DomainLevel::Host,
        nodes: (1..=nodes)
            .map(|i| Node {
                id: NodeId(i),
                domains: Domains::default(),
                cores: vec![Core {
                    address: format!("node-{i}:7000"),
                }],
            })
            .collect(),
        devices: (1..=nodes)
            .map(|i| Device {
                no: DeviceNo(i),
                id: DeviceId([i as u8; 16]),
                node: NodeId(i),
                core: 0,
                size: 1 << 30,
            })
            .collect(),
        groups,
        partitions: vec![Partition {
            id: PartitionId(0),
            start: (String::new(), String::new()),
            chain: Chain {
                devices: vec![DeviceNo(1), DeviceNo(2), DeviceNo(3)],
            },
            founders: vec![DeviceNo(1), DeviceNo(2), DeviceNo(3)],
            parents: Vec::new(),
        }],
        control: Vec::new(),
        draining: Default::default(),
        out: Default::default(),
        ending: Vec::new(),
        partition_numbers: 0,
        entries: ashlar_layout::version::ENTRY_VERSION,
    }
}

/// What the head remembers of the requests that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Whole,
    /// Nothing, and it says so.
    Forgets,
    /// Nothing, and it does them again, which it never must.
    Broken,
}

/// What a device does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Refuses connections.
    Dead,
    /// Takes requests, and never answers.
    Mute,
    /// Breaks the connection after it has done what was asked.
    Hangs,
    /// Does not read or write.
    Broken,
    Full,
    /// Answers, much later.
    Slow,
    /// Busy every other time.
    Busy,
}

#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    at: Instant,
    call: CallId,
    answer: Answer,
    /// The answer is to be made on delivery.
    later: Option<(DeviceNo, Request, Bytes)>,
}

/// The world. `step` moves it by one event.
pub(crate) struct World {
    pub(crate) common: Arc<Common>,
    pub(crate) now: Instant,
    pub(crate) moods: HashMap<DeviceNo, Mood>,
    pub(crate) shards: BTreeMap<(DeviceNo, ShardId), Bytes>,
    pub(crate) rotten: BTreeSet<(DeviceNo, ShardId)>,
    pub(crate) objects: BTreeMap<(String, String), (ObjectMeta, Bytes)>,
    pub(crate) reports: Vec<(DeviceNo, ShardId, FindingKind)>,
    pub(crate) reads: Vec<(DeviceNo, ShardId, u32)>,
    pub(crate) writes: Vec<(DeviceNo, ShardId)>,
    /// The next so many proposals: committed, but the answer is lost.
    pub(crate) lose_commits: u32,
    pub(crate) head_busy: bool,
    /// What the head remembers of requests that it did.
    pub(crate) memory: Memory,
    /// What each proposal said of being a retry.
    pub(crate) retries: Vec<Option<Seq>>,
    pub(crate) lane: u32,
    /// Requests are handled when their answers are delivered, not when they are sent.
    pub(crate) lazy: bool,
    /// The reign that lasts; nobody serves if it is of device 0.
    pub(crate) term: Term,
    /// The chain's composition.
    pub(crate) config: u64,
    /// Witnesses that do not know what they received.
    pub(crate) forgetful: BTreeSet<DeviceNo>,
    /// The highest entry of each slot.
    pub(crate) slots: HashMap<u32, Seq>,
    /// Requests by what they ask: look-ups, witnesses, chain views.
    pub(crate) lookups: u32,
    pub(crate) witnesses: Vec<DeviceNo>,
    pub(crate) polls: u32,
    committed: HashMap<(ClientId, RequestNo), Seq>,
    seq: u64,
    deliveries: Vec<Delivery>,
    rng: u64,
    turn: u64,
    out: Vec<Action>,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: u32, class: Class, tuning: Tuning) -> World {
        let pool = BufferPool::new(1 << 20);
        let client = ClientId(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let common = Common::new(Arc::new(map(nodes, class)), client, pool, tuning);
        World {
            common: Arc::new(common),
            now: Instant(1_000_000_000),
            moods: HashMap::new(),
            shards: BTreeMap::new(),
            rotten: BTreeSet::new(),
            objects: BTreeMap::new(),
            reports: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            lose_commits: 0,
            head_busy: false,
            memory: Memory::Whole,
            retries: Vec::new(),
            lane: 0,
            lazy: false,
            term: Term::new(1, DeviceNo(1)),
            config: 1,
            forgetful: BTreeSet::new(),
            slots: HashMap::new(),
            lookups: 0,
            witnesses: Vec::new(),
            polls: 0,
            committed: HashMap::new(),
            seq: 0,
            deliveries: Vec::new(),
            rng: seed.wrapping_add(0x1234_5678_9abc_def1) | 1,
            turn: 0,
            out: Vec::new(),
        }
    }

    /// A number below `below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Bytes {
        (0..len)
            .map(|_| self.below(256) as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    fn mood(&self, device: DeviceNo) -> Mood {
        self.moods.get(&device).copied().unwrap_or(Mood::Well)
    }

    /// Starts a machine.
    pub(crate) fn start(&mut self, machine: &mut impl Machine) {
        self.event(machine, Event::Start);
    }

    pub(crate) fn event(&mut self, machine: &mut impl Machine, event: Event) {
        let mut out = std::mem::take(&mut self.out);
        machine.on_event(self.now, event, &mut out);
        self.carry_out(&mut out);
        self.out = out;
    }

    pub(crate) fn carry_out(&mut self, out: &mut Vec<Action>) {
        for action in out.drain(..) {
            match action {
                Action::Send {
                    call,
                    to,
                    request,
                    payload,
                    payload_crc,
                } => {
                    if let Some(crc) = payload_crc {
                        assert_eq!(crc, crc32(&payload), "a wrong CRC would go out");
                    }
                    self.send(call, to, request, payload);
                }
                Action::Tell { request, .. } => {
                    let Request::ReportShard {
                        device,
                        shard,
                        fault,
                    } = request
                    else {
                        panic!()
                    };
                    self.reports.push((device, shard, fault));
                }
                Action::View { partition, device } => {
                    let view = self.answer(device, Request::Chain { partition }, Bytes::new());
                    if let Some(Answer::Reply {
                        reply: Reply::Chain(view),
                        ..
                    }) = view
                    {
                        self.common
                            .heads()
                            .heard(self.now, partition, device, &view);
                    }
                }
                Action::Probe { device } => {
                    let found = match self.mood(device) {
                        Mood::Dead | Mood::Mute | Mood::Broken | Mood::Hangs => {
                            Probed::Away("it does not serve".to_owned())
                        }
                        Mood::Full => Probed::Full,
                        _ => Probed::Serving,
                    };
                    self.common.health().probed(self.now, device, found);
                }
            }
        }
    }

    fn send(&mut self, call: CallId, to: DeviceNo, request: Request, payload: Bytes) {
        self.turn += 1;
        let mood = self.mood(to);
        let delay = match mood {
            Mood::Slow => Duration::from_millis(300 + self.below(3000)),
            _ => Duration::from_micros(50 + self.below(2000)),
        };
        let detail = || format!("device {to} is {mood:?}");
        if self.lazy && mood == Mood::Well {
            self.deliveries.push(Delivery {
                at: self.now + delay,
                call,
                answer: Answer::Lost { detail: detail() },
                later: Some((to, request, payload)),
            });
            return;
        }
        let answer = match mood {
            Mood::Dead => Answer::NotSent { detail: detail() },
            Mood::Mute => return,
            Mood::Busy if self.turn.is_multiple_of(2) => error(ErrorCode::Busy, detail()),
            Mood::Broken => error(ErrorCode::DeviceError, detail()),
            Mood::Full if matches!(request, Request::ShardWrite { .. }) => {
                error(ErrorCode::DeviceFull, detail())
            }
            Mood::Hangs => {
                self.answer(to, request, payload);
                Answer::Lost { detail: detail() }
            }
            _ => match self.answer(to, request, payload) {
                Some(answer) => answer,
                None => Answer::Lost {
                    detail: "the answer is lost".to_owned(),
                },
            },
        };
        self.deliveries.push(Delivery {
            at: self.now + delay,
            call,
            answer,
            later: None,
        });
    }

    /// An entry for some key of this one's slot.
    pub(crate) fn collide(&mut self, key: &str) {
        self.seq += 1;
        self.slots.insert(slot_of("bucket", key), Seq(self.seq));
    }

    fn answer(&mut self, to: DeviceNo, request: Request, payload: Bytes) -> Option<Answer> {
        let not_head = match &request {
            Request::Propose { term, .. } => to != self.term.head() || *term != self.term,
            Request::Lookup { .. } => to != self.term.head(),
            _ => false,
        };
        if not_head {
            return Some(error(ErrorCode::NotHead, format!("not in {}", self.term)));
        }
        Some(match request {
            Request::Chain { .. } => {
                self.polls += 1;
                reply(Reply::Chain(ChainView {
                    term: self.term,
                    serving: self.term.head() == to,
                    committed: Seq(self.seq),
                    config: self.config,
                    members: self.common.map().partitions[0].chain.devices.clone(),
                }))
            }
            Request::Witness { slot, .. } => {
                self.witnesses.push(to);
                let known = !self.forgetful.contains(&to);
                reply(Reply::Witness {
                    config: known.then_some(self.config),
                    highest: self.slots.get(&slot).copied().unwrap_or_default(),
                })
            }
            Request::ShardWrite { device, shard } => {
                self.writes.push((device, shard));
                let before = self.shards.insert((device, shard), payload.clone());
                // As the engine has it: what is not whole is written again.
                let rotten = self.rotten.remove(&(device, shard));
                assert!(rotten || before.is_none(), "a shard id is used once");
                reply(Reply::Done)
            }
            Request::ShardDelete { device, shard } => {
                self.shards.remove(&(device, shard));
                reply(Reply::Done)
            }
            Request::ShardRead {
                device,
                shard,
                offset,
                len,
            } => {
                self.reads.push((device, shard, len));
                let Some(bytes) = self.shards.get(&(device, shard)) else {
                    return Some(error(ErrorCode::NotFound, "no such shard".to_owned()));
                };
                if self.rotten.contains(&(device, shard)) {
                    return Some(error(ErrorCode::Corrupt, "piece 0".to_owned()));
                }
                let len = if len == u32::MAX {
                    bytes.len() as u32
                } else {
                    len
                };
                if offset as usize + len as usize > bytes.len() {
                    return Some(error(ErrorCode::BadRequest, "outside of it".to_owned()));
                }
                let part = bytes.slice(offset as usize..(offset + len) as usize);
                let meta = Reply::Shard {
                    shard_len: bytes.len() as u32,
                    shard_crc: crc32(bytes),
                };
                let payload_crc = crc32(&part);
                Answer::Reply {
                    reply: meta,
                    payload: part,
                    payload_crc,
                }
            }
            Request::Propose {
                client,
                request,
                retry,
                precondition,
                op,
                ..
            } => {
                self.retries.push(retry);
                if self.memory == Memory::Forgets && retry.is_some() {
                    return Some(error(ErrorCode::OutcomeUnknown, "forgotten".to_owned()));
                }
                if self.head_busy {
                    return Some(error(ErrorCode::Busy, "too many".to_owned()));
                }
                return self.propose((client, request), precondition, op, payload);
            }
            Request::Lookup {
                bucket,
                key,
                payload,
                ..
            } => match (self.lookups += 1, self.objects.get(&(bucket, key))).1 {
                Some((meta, inline)) => {
                    let inline = if payload {
                        inline.clone()
                    } else {
                        Bytes::new()
                    };
                    let payload_crc = crc32(&inline);
                    let reply = Reply::Found {
                        meta: meta.clone(),
                        as_of: Seq(self.seq),
                        config: self.config,
                    };
                    Answer::Reply {
                        reply,
                        payload: inline,
                        payload_crc,
                    }
                }
                None => error(ErrorCode::NotFound, "no such object".to_owned()),
            },
            other => panic!("nobody asks {other:?} here"),
        })
    }

    fn propose(
        &mut self,
        id: (ClientId, RequestNo),
        precondition: Precondition,
        op: Op,
        payload: Bytes,
    ) -> Option<Answer> {
        if self.memory == Memory::Whole
            && let Some(seq) = self.committed.get(&id)
        {
            return Some(reply(Reply::Committed {
                seq: *seq,
                displaced: None,
            }));
        }
        let name = match &op {
            Op::Put { bucket, key, .. }
            | Op::Delete { bucket, key }
            | Op::Rename { bucket, key, .. }
            | Op::Relocate { bucket, key, .. } => (bucket.clone(), key.clone()),
            _ => panic!("nobody proposes {op:?} here"),
        };
        let version_at = |name| self.objects.get(name).map(|(meta, _)| meta.version);
        let known = version_at(&name);
        let mut moved = None;
        if let Op::Rename {
            bucket,
            source,
            seen,
            ..
        } = &op
        {
            let from = (bucket.clone(), source.clone());
            if version_at(&from) != Some(*seen) {
                let detail = "it is another object".to_owned();
                return Some(error(ErrorCode::PreconditionFailed, detail));
            }
            moved = Some(from);
        }
        if let Op::Relocate { seen, manifest, .. } = &op {
            let Some((meta, _)) = self.objects.get(&name).filter(|it| it.0.version == *seen) else {
                let detail = "it is another object".to_owned();
                return Some(error(ErrorCode::PreconditionFailed, detail));
            };
            let (mut same, old) = (manifest.clone(), &meta.manifest);
            if same.body == old.body {
                same.etag = old.etag;
                same.attributes.clone_from(&old.attributes);
            }
            same.body = old.body.clone();
            assert_eq!(
                same, *old,
                "only its stripes are elsewhere, or what is remembered of it differs"
            );
        }
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => known.is_none(),
            Precondition::Present => known.is_some(),
            Precondition::Version(version) => known == Some(version),
        };
        if !holds {
            return Some(error(
                ErrorCode::PreconditionFailed,
                "it does not hold".to_owned(),
            ));
        }
        self.seq += 1;
        let version = Seq(self.seq);
        self.slots.insert(slot_of(&name.0, &name.1), version);
        self.committed.insert(id, version);
        if let Some(from) = moved {
            self.slots.insert(slot_of(&from.0, &from.1), version);
            self.objects.remove(&from);
        }
        let displaced: Option<Manifest> = match op {
            Op::Put { manifest, .. }
            | Op::Rename { manifest, .. }
            | Op::Relocate { manifest, .. } => {
                self.check_durable(&manifest);
                let meta = ObjectMeta {
                    version,
                    modified_ms: 0,
                    manifest,
                    tag: None,
                };
                self.objects
                    .insert(name, (meta, payload))
                    .map(|(meta, _)| meta.manifest)
            }
            _ => self.objects.remove(&name).map(|(meta, _)| meta.manifest),
        };
        if self.lose_commits > 0 {
            self.lose_commits -= 1;
            return None;
        }
        Some(reply(Reply::Committed {
            seq: version,
            displaced,
        }))
    }

    /// Whatever is proposed is durable by then: k + m − min(1, m − 1) shards of each stripe, of one
    /// attempt.
    fn check_durable(&self, manifest: &Manifest) {
        for stripe in manifest.body.stripes() {
            let group = self.common.map().group(stripe.pg).unwrap().clone();
            let durable = (0..group.devices.len())
                .filter(|i| {
                    let shard = ShardId {
                        stripe: stripe.id,
                        index: *i as u16,
                    };
                    let held = self.shards.get(&(group.devices[*i], shard));
                    held.is_some_and(|b| crc32(b) == stripe.shard_crcs[*i])
                })
                .count();
            assert!(
                durable + usize::from(stripe.m > 1) >= group.devices.len(),
                "proposed before the quorum"
            );
        }
    }

    /// The next event for a machine, of all that may come next; false if nothing will happen.
    pub(crate) fn step(&mut self, machine: &mut impl Machine) -> bool {
        let deadline = machine.next_deadline();
        let due = self.deliveries.iter().map(|d| d.at).min();
        let Some(next) = crate::call::sooner(deadline, due) else {
            return false;
        };
        self.now = self.now.max(next);
        if deadline.is_some_and(|d| d <= self.now) {
            self.event(machine, Event::Deadline);
            assert!(
                machine.next_deadline().is_none_or(|d| d > self.now),
                "a deadline that stands still"
            );
            return true;
        }
        let ready: Vec<usize> = (0..self.deliveries.len())
            .filter(|i| self.deliveries[*i].at <= self.now)
            .collect();
        let pick = ready[self.below(ready.len() as u64) as usize];
        let delivery = self.deliveries.swap_remove(pick);
        let (call, mut answer) = (delivery.call, delivery.answer);
        if let Some((to, request, payload)) = delivery.later
            && let Some(made) = self.answer(to, request, payload)
        {
            answer = made;
        }
        self.event(machine, Event::Answer { call, answer });
        true
    }

    /// Sets aside what is on its way, for another machine to run meanwhile.
    pub(crate) fn take_deliveries(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }

    pub(crate) fn give_deliveries(&mut self, kept: Vec<Delivery>) {
        self.deliveries = kept;
    }

    fn of(&mut self, device: DeviceNo) -> impl Iterator<Item = &mut Delivery> {
        let of_it = move |d: &&mut Delivery| d.later.as_ref().is_some_and(|(to, ..)| *to == device);
        self.deliveries.iter_mut().filter(of_it)
    }

    /// What a device was asked for, lazily, is not answered before `until`.
    pub(crate) fn hold(&mut self, device: DeviceNo, until: Instant) {
        self.of(device).for_each(|d| d.at = d.at.max(until));
    }

    /// What a device was asked for, lazily, is lost with its connection.
    pub(crate) fn lose(&mut self, device: DeviceNo) {
        self.of(device).for_each(|d| d.later = None);
    }

    /// Runs until the caller can be answered.
    pub(crate) fn answer_to(&mut self, machine: &mut impl Machine) {
        while !machine.is_answered() {
            assert!(self.step(machine), "it stands still");
        }
    }

    /// Runs until nothing is left to do.
    pub(crate) fn settle(&mut self, machine: &mut impl Machine) {
        while !machine.is_settled() {
            assert!(self.step(machine), "it stands still");
        }
    }
}

fn reply(reply: Reply) -> Answer {
    Answer::Reply {
        reply,
        payload: Bytes::new(),
        payload_crc: 0,
    }
}

pub(crate) fn error(code: ErrorCode, detail: String) -> Answer {
    reply(Reply::Error(WireError { code, detail }))
}
