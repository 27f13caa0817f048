//! An object on its way into the store.
//!
//! The driver hands over either the whole object, if it is small enough to ride in the journal, or
//! stripes of [`Put::stripe_data`] bytes, each when [`Put::wants_data`] says so.
//!
//! Invariants:
//! - the manifest is proposed only after every stripe that it names is durable: nothing of an
//!   object is visible before all of it is;
//! - at most `put_stripes` stripes are unacknowledged, and at most `put_stripes_kept` in memory;
//! - stripes stand in the manifest in the order of the object, whatever order they finish in;
//! - if the object certainly did not become visible, what was stored for it is freed; if that is
//!   not certain, nothing is;
//! - one that cannot be made yet, because what is current is no version, is not given up: whoever drives it makes
//!   that one and has it proposed again, with the stripes that it has;
//! - what the object displaced is freed after the commit, never before.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use ashlar_cluster_map::Class;
use ashlar_layout::crc::{crc32, crc32_combine};
use ashlar_layout::ids::{PartitionId, Seq, StripeId};
use ashlar_layout::manifest::{Body, Etag, Manifest, Precondition, Stripe};
use ashlar_layout::message::Reply;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine, sooner};
use crate::cipher::DataKey;
use crate::common::{Common, unexpected};
use crate::encode::StripeBuf;
use crate::error::{Code, ObjectError};
use crate::free::Free;
use crate::making::Making;
use crate::stripe_write::{StripeWrite, Written};
use crate::tree::{encode_node, fanout};

const ASK_LANE: u32 = 0;
const FIRST_STRIPE_LANE: u32 = 1;
const FREE_LANE: u32 = 1 << 31;

/// An object that is durable and visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutDone {
    /// The object's version.
    pub version: Seq,
    /// Its bytes.
    pub size: u64,
    /// CRC-32 of all of it.
    pub crc: u32,
    /// Stripes that it takes, those of the manifest's tree included.
    pub stripes: u64,
    /// Shards that are known not to have been stored.
    pub degraded_shards: u64,
    /// Stripes of a smaller class than the map asks for.
    pub reduced_stripes: u64,
}

#[derive(Debug)]
enum What {
    /// The object's stripe of this number.
    Data(u64),
    /// The tree's node of this number, which lists these.
    Node(usize, Vec<Stripe>),
}

#[derive(Debug)]
struct Job {
    lane: u32,
    what: What,
    write: StripeWrite,
    noted: bool,
}

/// The state machine that stores one object.
#[derive(Debug)]
pub struct Put {
    common: Arc<Common>,
    bucket: String,
    key: String,
    partition: PartitionId,
    precondition: Precondition,
    making: Making,
    etag: Etag,
    attributes: Vec<u8>,
    cipher: Option<DataKey>,
    class: Class,
    stripe_data: u32,
    fanout: usize,
    jobs: Vec<Job>,
    next_lane: u32,
    /// Stripes handed over so far.
    taken: u64,
    /// Whether the last stripe was shorter than the others: no more may come.
    short: bool,
    ended: bool,
    /// Durable ones whose predecessors are not all durable yet.
    order: VecDeque<Option<Written>>,
    /// Durable, in order, in no node yet.
    listed: Vec<Stripe>,
    nodes: Vec<Option<Stripe>>,
    done: PutDone,
    /// The payload that was proposed, if it may have to be proposed again; the rest of it is in what asked.
    whole: Option<Bytes>,
    /// It was refused, and can be proposed again.
    not_kept: Option<ObjectError>,
    /// Calls of the proposal: each has its own, so that a late answer to the one before is none to it.
    ask_lane: u32,
    ask: Option<Ask>,
    free: Option<Free>,
    outcome: Option<Result<PutDone, ObjectError>>,
    leftover: Leftover,
}

impl Put {
    /// Stores `key` in `bucket` if `precondition` holds when all its bytes are stored.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        precondition: Precondition,
    ) -> Result<Put, ObjectError> {
        let partition = common.partition_of(bucket, key)?;
        let map = common.map();
        let shards = map
            .groups
            .iter()
            .map(|g| g.class.shards())
            .max()
            .unwrap_or(1);
        let fanout = fanout(common.tuning().tree_fanout, shards, map.stripe_data);
        Ok(Put {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            partition,
            precondition,
            making: Making::Object,
            etag: Etag::NONE,
            attributes: Vec::new(),
            cipher: None,
            class: map.class,
            stripe_data: map.stripe_data.max(1),
            fanout,
            jobs: Vec::new(),
            next_lane: FIRST_STRIPE_LANE,
            taken: 0,
            short: false,
            ended: false,
            order: VecDeque::new(),
            listed: Vec::new(),
            nodes: Vec::new(),
            done: PutDone {
                version: Seq(0),
                size: 0,
                crc: 0,
                stripes: 0,
                degraded_shards: 0,
                reduced_stripes: 0,
            },
            whole: None,
            not_kept: None,
            ask_lane: ASK_LANE,
            ask: None,
            free: None,
            outcome: None,
            leftover: Leftover::default(),
        })
    }

    /// Says what else is to be remembered of the object: before its end is told, as with
    /// [`Event::Inline`] and [`Event::End`].
    pub fn describe(&mut self, etag: Etag, attributes: Vec<u8>) {
        (self.etag, self.attributes) = (etag, attributes);
    }

    /// Bytes of each stripe but the last.
    pub fn stripe_data(&self) -> u32 {
        self.stripe_data
    }

    /// Whether another stripe may be handed over now.
    pub fn wants_data(&self) -> bool {
        let unacknowledged = self.jobs.iter().filter(|j| !j.noted).count();
        self.outcome.is_none()
            && !self.ended
            && unacknowledged < self.common.tuning().put_stripes
            && self.jobs.len() < self.common.tuning().put_stripes_kept
    }

    /// Encrypts its stripes with this key, if there is one, which no other object may have; but the parts of one may
    /// share it. Such an object comes in stripes, however small it is.
    #[must_use]
    pub fn encrypted(mut self, cipher: Option<DataKey>) -> Self {
        self.cipher = cipher;
        self
    }

    /// Makes it in another way: as a new version it may be [`Put::not_kept`].
    #[must_use]
    pub fn as_version(mut self, making: Making) -> Self {
        self.making = making;
        self
    }

    /// Says how it is to be made after all: before its end is told.
    pub fn make_as(&mut self, making: Making) {
        self.making = making;
    }

    /// Why it waits, all its bytes being durable: what is current is to be made a version first. Then it is either
    /// proposed again, or aborted.
    pub fn not_kept(&self) -> Option<&ObjectError> {
        self.not_kept.as_ref()
    }

    /// What has to hold for it to be made.
    pub fn precondition(&self) -> Precondition {
        self.precondition
    }

    /// Proposes it again, under this condition, when it was [`Put::not_kept`].
    pub fn propose_again(
        &mut self,
        now: Instant,
        precondition: Precondition,
        out: &mut Vec<Action>,
    ) {
        if self.not_kept.take().is_none() {
            return;
        }
        let body = self.ask.as_ref().and_then(Ask::body).cloned();
        let (Some(body), Some(payload)) = (body, self.whole.take()) else {
            return;
        };
        self.precondition = precondition;
        self.ask_lane = self.next_lane;
        self.next_lane += 1;
        self.propose(now, body, payload, out);
        self.advance(now, out);
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<PutDone, ObjectError>> {
        self.outcome.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn stripes_in_memory(&self) -> usize {
        self.jobs.len()
    }

    fn start(&mut self, now: Instant, what: What, data: StripeBuf, out: &mut Vec<Action>) {
        let lane = self.next_lane;
        self.next_lane += 1;
        let cipher = match &what {
            What::Data(_) => self.cipher.clone(),
            What::Node(..) => None,
        };
        let mut write = StripeWrite::new(self.common.clone(), lane, data).with_cipher(cipher);
        write.on_event(now, Event::Start, out);
        self.jobs.push(Job {
            lane,
            what,
            write,
            noted: false,
        });
    }

    fn on_stripe(&mut self, now: Instant, data: StripeBuf, out: &mut Vec<Action>) {
        if self.outcome.is_some() || self.ended || self.short {
            debug_assert!(!self.short && !self.ended, "a stripe behind the last one");
            return;
        }
        if self.nodes.len() >= self.common.tuning().manifest_stripes {
            let max = u64::from(self.stripe_data)
                * self.fanout as u64
                * self.common.tuning().manifest_stripes as u64;
            self.fail(now, ObjectError::TooLarge { max }, out);
            return;
        }
        self.short = data.data_len() != self.stripe_data;
        self.done.size += u64::from(data.data_len());
        self.order.push_back(None);
        self.taken += 1;
        self.start(now, What::Data(self.taken - 1), data, out);
    }

    fn on_inline(&mut self, now: Instant, object: Bytes, out: &mut Vec<Action>) {
        if self.outcome.is_some() || self.ended {
            return;
        }
        if self.cipher.is_some() && !object.is_empty() {
            let detail = "what is to be encrypted does not ride in the journal".to_owned();
            return self.fail(now, ObjectError::BadRequest { detail }, out);
        }
        self.ended = true;
        self.done.size = object.len() as u64;
        self.done.crc = crc32(&object);
        self.propose(now, Body::Inline, object, out);
    }

    fn propose(&mut self, now: Instant, body: Body, payload: Bytes, out: &mut Vec<Action>) {
        let crc = if payload.is_empty() { 0 } else { self.done.crc };
        let again = matches!(self.making, Making::Version { .. });
        self.whole = again.then(|| payload.clone());
        let manifest = Manifest {
            size: self.done.size,
            crc: self.done.crc,
            etag: self.etag,
            body,
            attributes: match again {
                true => self.attributes.clone(),
                false => std::mem::take(&mut self.attributes),
            },
        };
        if let Err(error) = manifest.check() {
            let detail = error.to_string();
            return self.fail(now, ObjectError::BadRequest { detail }, out);
        }
        let request = self.common.proposal(
            self.partition,
            self.precondition,
            self.making.op(&self.bucket, &self.key, manifest),
        );
        let names = (self.bucket.as_str(), self.key.as_str());
        let mut ask = Ask::new(
            self.common.clone(),
            self.ask_lane,
            names,
            self.partition,
            request,
            payload,
        )
        .with_crc(crc);
        ask.on_event(now, Event::Start, out);
        self.ask = Some(ask);
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_none() {
            self.note_stripes(now, out);
        }
        self.drop_settled();
        if self.outcome.is_none() {
            self.flush_nodes(now, out);
            self.propose_if_whole(now, out);
            self.note_answer(now, out);
            // The answer may have ended more.
            self.drop_settled();
        }
    }

    fn drop_settled(&mut self) {
        let leftover = &mut self.leftover;
        self.jobs.retain(|job| {
            let keep = !job.noted || !job.write.is_settled();
            if !keep {
                leftover.add(job.write.leftover());
            }
            keep
        });
    }

    /// Takes note of stripes that are durable, or failed.
    fn note_stripes(&mut self, now: Instant, out: &mut Vec<Action>) {
        let mut failed = None;
        let first = self.taken - self.order.len() as u64;
        for job in self.jobs.iter_mut().filter(|j| !j.noted) {
            match job.write.outcome() {
                None => {}
                Some(Err(error)) => {
                    failed = Some(error.clone());
                    break;
                }
                Some(Ok(written)) => {
                    job.noted = true;
                    self.done.stripes += 1;
                    self.done.degraded_shards += u64::from(written.failed);
                    let class = Class {
                        k: written.stripe.k,
                        m: written.stripe.m,
                    };
                    self.done.reduced_stripes += u64::from(class != self.class);
                    match &job.what {
                        What::Data(number) => {
                            let at = usize::try_from(number - first).unwrap_or(usize::MAX);
                            if let Some(place) = self.order.get_mut(at) {
                                *place = Some(written.clone());
                            }
                        }
                        What::Node(number, _) => self.nodes[*number] = Some(written.stripe.clone()),
                    }
                }
            }
        }
        if let Some(error) = failed {
            self.fail(now, error, out);
            return;
        }
        while let Some(Some(_)) = self.order.front() {
            let Some(Some(written)) = self.order.pop_front() else {
                return;
            };
            let len = u64::from(written.stripe.data_len);
            self.done.crc = crc32_combine(self.done.crc, written.data_crc, len);
            self.listed.push(written.stripe);
        }
    }

    /// Whether the manifest is a tree, as far as is known.
    fn is_tree(&self) -> bool {
        !self.nodes.is_empty() || self.listed.len() > self.common.tuning().manifest_stripes
    }

    /// Writes a node of the manifest's tree for each full list, and for the rest at the end.
    fn flush_nodes(&mut self, now: Instant, out: &mut Vec<Action>) {
        let whole = self.ended && self.order.is_empty();
        while self.jobs.len() < self.common.tuning().put_stripes_kept {
            let full = self.listed.len() >= self.fanout;
            let flush = if whole {
                self.is_tree() && !self.listed.is_empty()
            } else {
                full
            };
            if !flush {
                return;
            }
            let rest = self.listed.split_off(self.fanout.min(self.listed.len()));
            let stripes = std::mem::replace(&mut self.listed, rest);
            let data = StripeBuf::exact(encode_node(&stripes));
            self.nodes.push(None);
            self.start(now, What::Node(self.nodes.len() - 1, stripes), data, out);
        }
    }

    fn propose_if_whole(&mut self, now: Instant, out: &mut Vec<Action>) {
        let listed = self.listed.is_empty() || !self.is_tree();
        let whole = self.ended && self.order.is_empty() && self.nodes.iter().all(Option::is_some);
        if self.ask.is_some() || !whole || !listed {
            return;
        }
        let body = if self.nodes.is_empty() {
            Body::Stripes(self.listed.clone())
        } else {
            let nodes: Vec<Stripe> = self.nodes.iter().flatten().cloned().collect();
            if nodes.len() > self.common.tuning().manifest_stripes {
                let max = u64::from(self.stripe_data)
                    * self.fanout as u64
                    * self.common.tuning().manifest_stripes as u64;
                self.fail(now, ObjectError::TooLarge { max }, out);
                return;
            }
            Body::Tree(nodes)
        };
        self.propose(now, body, Bytes::new(), out);
    }

    fn note_answer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(told) = self.ask.as_ref().and_then(Ask::outcome) else {
            return;
        };
        // Not kept anew: the reply does not say when the head's clock had the object made.
        self.common.forget(&self.bucket, &self.key);
        match told.clone() {
            Ok(told) => match told.reply {
                Reply::Committed { seq, displaced } => {
                    self.done.version = seq;
                    self.outcome = Some(Ok(self.done));
                    let kept = self.ask.as_ref().and_then(Ask::body);
                    let common = self.common.clone();
                    self.free = Free::displaced(common, FREE_LANE, displaced, kept);
                    if let Some(free) = &mut self.free {
                        free.on_event(now, Event::Start, out);
                    }
                }
                // Who knows what this head did: nothing is freed.
                other => self.outcome = Some(Err(unexpected("Committed", &other))),
            },
            Err(untold) if untold.uncertain => self.outcome = Some(Err(untold.error)),
            Err(untold) if untold.error.code() == Code::NotKept && self.whole.is_some() => {
                self.not_kept = Some(untold.error);
            }
            Err(untold) => self.fail(now, untold.error, out),
        }
    }

    /// The object certainly does not become visible: all that was stored for it is freed.
    fn fail(&mut self, now: Instant, error: ObjectError, out: &mut Vec<Action>) {
        self.not_kept = None;
        self.outcome = Some(Err(error));
        let mut alive: HashSet<StripeId> = HashSet::new();
        let mut stripes = std::mem::take(&mut self.listed);
        for job in &mut self.jobs {
            if let Some(Ok(written)) = job.write.outcome() {
                alive.insert(written.stripe.id);
            }
            if let What::Node(_, listed) = &mut job.what {
                stripes.append(listed);
            }
            job.noted = true;
            job.write.abandon(now, out);
        }
        stripes.extend(self.order.drain(..).flatten().map(|written| written.stripe));
        stripes.retain(|stripe| !alive.contains(&stripe.id));
        let mut nodes: Vec<Stripe> = std::mem::take(&mut self.nodes)
            .into_iter()
            .flatten()
            .collect();
        nodes.retain(|stripe| !alive.contains(&stripe.id));
        let mut free = Free::new(self.common.clone(), FREE_LANE, stripes, nodes);
        free.on_event(now, Event::Start, out);
        self.free = Some(free);
    }

    fn abort(&mut self, now: Instant, out: &mut Vec<Action>) {
        // Once the head was asked there is no way back: the question is seen through.
        if let Some(error) = self.not_kept.take() {
            self.fail(now, error, out);
        } else if self.outcome.is_none() && self.ask.is_none() {
            self.fail(now, ObjectError::Aborted, out);
        }
    }
}

impl Machine for Put {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => {}
            Event::Inline(object) => self.on_inline(now, object, out),
            Event::Stripe(data) => self.on_stripe(now, data, out),
            Event::End if self.taken == 0 => self.on_inline(now, Bytes::new(), out),
            Event::End => self.ended = true,
            Event::Abort => self.abort(now, out),
            Event::Answer { call, answer } => {
                let lane = call.lane;
                let event = Event::Answer { call, answer };
                if lane >= FREE_LANE {
                    if let Some(free) = &mut self.free {
                        free.on_event(now, event, out);
                    }
                } else if lane == self.ask_lane {
                    if let Some(ask) = &mut self.ask {
                        ask.on_event(now, event, out);
                    }
                } else if let Some(job) = self.jobs.iter_mut().find(|j| j.lane == lane) {
                    job.write.on_event(now, event, out);
                }
            }
            Event::Deadline => {
                if let Some(ask) = &mut self.ask {
                    ask.on_event(now, Event::Deadline, out);
                }
                if let Some(free) = &mut self.free {
                    free.on_event(now, Event::Deadline, out);
                }
                for job in &mut self.jobs {
                    job.write.on_event(now, Event::Deadline, out);
                }
            }
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self
            .jobs
            .iter()
            .filter_map(|j| j.write.next_deadline())
            .min();
        let ask = self.ask.as_ref().and_then(Ask::next_deadline);
        let free = self.free.as_ref().and_then(Free::next_deadline);
        sooner(jobs, sooner(ask, free))
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some() || self.not_kept.is_some()
    }

    fn leftover(&self) -> Leftover {
        let mut all = self.leftover;
        for job in &self.jobs {
            all.add(job.write.leftover());
        }
        if let Some(free) = &self.free {
            all.add(free.leftover());
        }
        all
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some()
            && self.jobs.is_empty()
            && self.free.as_ref().is_none_or(Free::is_settled)
    }
}
