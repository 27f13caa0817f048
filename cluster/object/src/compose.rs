//! An object put together of others: its manifest names their stripes, and not a byte is moved. Or one
//! whose manifest is made again, because something else is to be remembered of it.
//!
//! Whoever composes sees to it that nobody else frees those stripes, and takes the parts' own names
//! away afterwards (see [`crate::Delete::of_taken`]).
//!
//! Invariants:
//! - the manifest is proposed once; all nodes that it names are durable then;
//! - if the object certainly did not become visible, the nodes that were written for it are freed, and
//!   never a stripe of a part; if that is not certain, nothing is;
//! - what the object displaced is freed after the commit, never before, and no stripe of its own with it;
//! - an object that is made longer takes over all stripes of what it displaces: of that, only the lists are freed,
//!   and nothing if it is not what was taken over;
//! - a few lists of stripes are in memory at most, each as long as a node.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_layout::crc::crc32_combine;
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::manifest::{Body, Etag, Manifest, Precondition, Stripe};
use ashlar_layout::message::Reply;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine, sooner};
use crate::common::{Common, unexpected};
use crate::encode::StripeBuf;
use crate::error::ObjectError;
use crate::free::Free;
use crate::making::Making;
use crate::put::PutDone;
use crate::stripe_read::StripeRead;
use crate::stripe_write::StripeWrite;
use crate::tree::{LIST_BYTES, STRIPE_BYTES, decode_node, encode_node};

const ASK_LANE: u32 = 0;
const FIRST_STRIPE_LANE: u32 = 1;
const FREE_LANE: u32 = 1 << 31;

/// A node being written.
#[derive(Debug)]
struct Job {
    lane: u32,
    /// Bytes of the object that it is about.
    bytes: u64,
    write: StripeWrite,
    noted: bool,
}

/// The state machine that puts an object together.
#[derive(Debug)]
pub struct Compose {
    common: Arc<Common>,
    bucket: String,
    key: String,
    partition: PartitionId,
    precondition: Precondition,
    making: Making,
    etag: Etag,
    attributes: Vec<u8>,
    /// Where the bytes are, if that is known already.
    body: Option<Body>,
    /// The body of what is displaced, whose stripes are this object's.
    taken: Option<Body>,
    /// Parts not looked at yet.
    parts: VecDeque<Manifest>,
    /// Nodes of the part in hand that are still to be read.
    unread: VecDeque<Stripe>,
    /// Bytes that the part in hand should still have.
    left: u64,
    reading: Option<(u32, StripeRead)>,
    /// Stripes that stand in no node yet, and their bytes as a list.
    listed: Vec<Stripe>,
    list_bytes: usize,
    node_max: usize,
    jobs: Vec<Job>,
    next_lane: u32,
    nodes: Vec<Stripe>,
    node_bytes: Vec<u64>,
    done: PutDone,
    ask: Option<Ask>,
    free: Option<Free>,
    outcome: Option<Result<PutDone, ObjectError>>,
    leftover: Leftover,
}

impl Compose {
    /// Makes `key` in `bucket` of all bytes of `parts`, in their order, if `precondition` holds then.
    /// None of them may be inline, unless it is empty.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        precondition: Precondition,
        parts: Vec<Manifest>,
        (etag, attributes): (Etag, Vec<u8>),
    ) -> Result<Compose, ObjectError> {
        let partition = common.partition_of(bucket, key)?;
        let (mut size, mut crc) = (0u64, 0);
        for part in &parts {
            let refused = |detail| Err(ObjectError::BadRequest { detail });
            if let Err(error) = part.check() {
                return refused(error.to_string());
            }
            if part.body == Body::Inline && part.size > 0 {
                return refused(
                    "a part that stands in the journal cannot be taken over".to_owned(),
                );
            }
            crc = crc32_combine(crc, part.crc, part.size);
            size = match size.checked_add(part.size) {
                Some(size) => size,
                None => return Err(ObjectError::TooLarge { max: u64::MAX }),
            };
        }
        let node_max = common.map().stripe_data as usize;
        Ok(Compose {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            partition,
            precondition,
            making: Making::Object,
            etag,
            attributes,
            body: None,
            taken: None,
            parts: parts.into(),
            unread: VecDeque::new(),
            left: 0,
            reading: None,
            listed: Vec::new(),
            list_bytes: LIST_BYTES,
            node_max,
            jobs: Vec::new(),
            next_lane: FIRST_STRIPE_LANE,
            nodes: Vec::new(),
            node_bytes: Vec::new(),
            done: PutDone {
                version: Seq(0),
                size,
                crc,
                stripes: 0,
                degraded_shards: 0,
                reduced_stripes: 0,
            },
            ask: None,
            free: None,
            outcome: None,
            leftover: Leftover::default(),
        })
    }

    /// Makes an object's manifest again, with something else to remember: if it is still this version,
    /// whose bytes are where they are, and do not ride in the journal.
    pub fn again(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        version: Seq,
        manifest: Manifest,
        seal: (Etag, Vec<u8>),
    ) -> Result<Compose, ObjectError> {
        if manifest.body == Body::Inline && manifest.size > 0 {
            let detail = "an object that stands in the journal is to be put again".to_owned();
            return Err(ObjectError::BadRequest { detail });
        }
        // What it displaces is this very version: of the stripes that both name, none is freed.
        let only = Precondition::Version(version);
        let mut compose = Compose::new(common, bucket, key, only, Vec::new(), seal)?;
        (compose.done.size, compose.done.crc) = (manifest.size, manifest.crc);
        compose.body = Some(manifest.body);
        Ok(compose)
    }

    /// Makes an object longer by all bytes of `parts`: if it is still this version, and none of several. If it rides in
    /// the journal, `parts` begin with a copy of it.
    pub fn longer(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        (version, manifest): (Seq, Manifest),
        parts: Vec<Manifest>,
        seal: (Etag, Vec<u8>),
    ) -> Result<Compose, ObjectError> {
        let copied = |old: &Manifest, copy: &Manifest| (old.size, old.crc) == (copy.size, copy.crc);
        let inline = manifest.body == Body::Inline && manifest.size > 0;
        if inline && !parts.first().is_some_and(|copy| copied(&manifest, copy)) {
            let detail = "the first part is no copy of what rides in the journal".to_owned();
            return Err(ObjectError::BadRequest { detail });
        }
        let taken = manifest.body.clone();
        let old = Some(manifest).filter(|old| old.body != Body::Inline);
        let parts = old.into_iter().chain(parts).collect();
        let only = Precondition::Version(version);
        let mut compose = Compose::new(common, bucket, key, only, parts, seal)?;
        compose.taken = Some(taken);
        Ok(compose)
    }

    /// Makes it in another way.
    #[must_use]
    pub fn as_version(mut self, making: Making) -> Self {
        self.making = making;
        // What is written anew with another lock says itself what it has to be.
        if matches!(
            making,
            Making::Again { current: false, .. } | Making::Locked { .. }
        ) {
            // What is current is of no concern.
            self.precondition = Precondition::None;
        }
        self
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<PutDone, ObjectError>> {
        self.outcome.as_ref()
    }

    fn lane(&mut self) -> u32 {
        self.next_lane += 1;
        self.next_lane - 1
    }

    fn is_writing(&self) -> bool {
        self.jobs.iter().any(|job| !job.noted)
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        while self.outcome.is_none() && self.ask.is_none() && self.go_on(now, out) {}
        if self.outcome.is_none() {
            self.note_answer(now, out);
        }
        let leftover = &mut self.leftover;
        self.jobs.retain(|job| {
            let keep = !job.noted || !job.write.is_settled();
            if !keep {
                leftover.add(job.write.leftover());
            }
            keep
        });
    }

    /// Does one thing of what is to be done; false if something has to happen first.
    fn go_on(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        if self.is_writing() {
            return self.note_write(now, out);
        }
        if self.reading.is_some() {
            return self.note_read(now, out);
        }
        if let Some(node) = self.unread.pop_front() {
            self.read(now, node, out);
            return true;
        }
        if self.left > 0 {
            let left = self.left;
            self.fail(
                now,
                bad(format!("{left} bytes of a part are in no stripe")),
                out,
            );
            return true;
        }
        let Some(part) = self.parts.pop_front() else {
            return self.finish(now, out);
        };
        self.left = part.size;
        match part.body {
            Body::Inline => true,
            Body::Stripes(stripes) => self.list(now, stripes, out),
            Body::Tree(nodes) | Body::Parts { nodes, .. } => {
                self.unread = nodes.into();
                true
            }
        }
    }

    fn read(&mut self, now: Instant, node: Stripe, out: &mut Vec<Action>) {
        let (lane, want) = (self.lane(), 0..node.data_len);
        match StripeRead::new(self.common.clone(), lane, node, want) {
            Ok(mut read) => {
                read.on_event(now, Event::Start, out);
                self.reading = Some((lane, read));
            }
            Err(detail) => self.fail(now, bad(detail), out),
        }
    }

    fn note_read(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        let answered = self.reading.take_if(|(_, read)| read.is_answered());
        let part = match answered.and_then(|(_, read)| read.into_outcome()) {
            None => return false,
            Some(Err(error)) => {
                self.fail(now, error, out);
                return true;
            }
            Some(Ok(part)) => part,
        };
        match decode_node(&part) {
            Ok(stripes) => self.list(now, stripes, out),
            Err(detail) => {
                self.fail(now, bad(detail), out);
                true
            }
        }
    }

    /// Takes stripes into the list, as many nodes as it makes.
    fn list(&mut self, now: Instant, stripes: Vec<Stripe>, out: &mut Vec<Action>) -> bool {
        for stripe in stripes {
            if let Err(error) = stripe.check() {
                self.fail(now, bad(error.to_string()), out);
                return true;
            }
            let Some(left) = self.left.checked_sub(u64::from(stripe.data_len)) else {
                self.fail(
                    now,
                    bad("a part's stripes hold more than it has".to_owned()),
                    out,
                );
                return true;
            };
            self.left = left;
            let bytes = STRIPE_BYTES + 4 * stripe.shard_crcs.len();
            let most = self.common.tuning().compose_fanout;
            let full = self.list_bytes + bytes > self.node_max || self.listed.len() >= most;
            if full && !self.listed.is_empty() {
                self.write(now, out);
            }
            self.list_bytes += bytes;
            self.listed.push(stripe);
            self.done.stripes += 1;
            if self.outcome.is_some() {
                break;
            }
        }
        true
    }

    fn write(&mut self, now: Instant, out: &mut Vec<Action>) {
        let started = self.nodes.len() + self.jobs.iter().filter(|job| !job.noted).count();
        if started >= self.common.tuning().manifest_stripes {
            let max = self.done.size;
            return self.fail(now, ObjectError::TooLarge { max }, out);
        }
        let stripes = std::mem::take(&mut self.listed);
        self.list_bytes = LIST_BYTES;
        let bytes = stripes.iter().map(|s| u64::from(s.data_len)).sum();
        let lane = self.lane();
        let data = StripeBuf::exact(encode_node(&stripes));
        let mut write = StripeWrite::new(self.common.clone(), lane, data);
        write.on_event(now, Event::Start, out);
        self.jobs.push(Job {
            lane,
            bytes,
            write,
            noted: false,
        });
    }

    /// Takes note of the nodes that are durable, in their order.
    fn note_write(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| !job.noted) else {
            return false;
        };
        match job.write.outcome() {
            None => false,
            Some(Err(error)) => {
                let error = error.clone();
                self.fail(now, error, out);
                true
            }
            Some(Ok(written)) => {
                job.noted = true;
                self.nodes.push(written.stripe.clone());
                self.node_bytes.push(job.bytes);
                self.done.stripes += 1;
                self.done.degraded_shards += u64::from(written.failed);
                true
            }
        }
    }

    /// All parts are listed: writes the last node, or proposes.
    fn finish(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        let few = self.listed.len() <= self.common.tuning().manifest_stripes;
        if !self.listed.is_empty() && (!self.nodes.is_empty() || !few) {
            self.write(now, out);
            return true;
        }
        let body = if let Some(body) = self.body.take() {
            body
        } else if !self.nodes.is_empty() {
            Body::Parts {
                nodes: self.nodes.clone(),
                bytes: std::mem::take(&mut self.node_bytes),
            }
        } else if !self.listed.is_empty() {
            Body::Stripes(std::mem::take(&mut self.listed))
        } else {
            Body::Inline
        };
        let manifest = Manifest {
            size: self.done.size,
            crc: self.done.crc,
            etag: self.etag,
            body,
            attributes: std::mem::take(&mut self.attributes),
        };
        if let Err(error) = manifest.check() {
            let detail = error.to_string();
            self.fail(now, ObjectError::BadRequest { detail }, out);
            return true;
        }
        let request = self.common.proposal(
            self.partition,
            self.precondition,
            self.making.op(&self.bucket, &self.key, manifest),
        );
        let names = (self.bucket.as_str(), self.key.as_str());
        let common = self.common.clone();
        let mut ask = Ask::new(
            common,
            ASK_LANE,
            names,
            self.partition,
            request,
            Bytes::new(),
        )
        .with_crc(0);
        ask.on_event(now, Event::Start, out);
        self.ask = Some(ask);
        true
    }

    fn note_answer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(ask) = self.ask.as_ref() else {
            return;
        };
        let Some(told) = ask.outcome().cloned() else {
            return;
        };
        self.common.forget(&self.bucket, &self.key);
        match told {
            Ok(told) => match told.reply {
                Reply::Committed { seq, displaced } => {
                    self.done.version = seq;
                    self.outcome = Some(Ok(self.done));
                    let common = self.common.clone();
                    self.free = match &self.taken {
                        None => Free::displaced(common, FREE_LANE, displaced, ask.body()),
                        Some(taken) => displaced
                            .filter(|displaced| displaced.body == *taken)
                            .map(|displaced| Free::lists(common, FREE_LANE, displaced.body)),
                    };
                    if let Some(free) = &mut self.free {
                        free.on_event(now, Event::Start, out);
                    }
                }
                other => self.outcome = Some(Err(unexpected("Committed", &other))),
            },
            Err(untold) if untold.uncertain => self.outcome = Some(Err(untold.error)),
            Err(untold) => self.fail(now, untold.error, out),
        }
    }

    /// The object certainly does not become visible: the nodes are freed, and they alone.
    fn fail(&mut self, now: Instant, error: ObjectError, out: &mut Vec<Action>) {
        self.outcome = Some(Err(error));
        self.reading = None;
        let mut nodes = std::mem::take(&mut self.nodes);
        for job in &mut self.jobs {
            if let Some(Ok(written)) = job.write.outcome() {
                // It frees itself.
                nodes.retain(|node| node.id != written.stripe.id);
            }
            job.noted = true;
            job.write.abandon(now, out);
        }
        let mut free = Free::new(self.common.clone(), FREE_LANE, nodes, Vec::new());
        free.on_event(now, Event::Start, out);
        self.free = Some(free);
    }
}

fn bad(detail: String) -> ObjectError {
    ObjectError::BadRequest { detail }
}

impl Machine for Compose {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start | Event::Inline(_) | Event::Stripe(_) | Event::End => {}
            Event::Abort => {
                // Once the head was asked there is no way back: the question is seen through.
                if self.outcome.is_none() && self.ask.is_none() {
                    self.fail(now, ObjectError::Aborted, out);
                }
            }
            Event::Answer { call, answer } => {
                let lane = call.lane;
                let event = Event::Answer { call, answer };
                if lane >= FREE_LANE {
                    if let Some(free) = &mut self.free {
                        free.on_event(now, event, out);
                    }
                } else if lane == ASK_LANE {
                    if let Some(ask) = &mut self.ask {
                        ask.on_event(now, event, out);
                    }
                } else if let Some((_, read)) = self.reading.as_mut().filter(|(l, _)| *l == lane) {
                    read.on_event(now, event, out);
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
                if let Some((_, read)) = &mut self.reading {
                    read.on_event(now, Event::Deadline, out);
                }
                for job in &mut self.jobs {
                    job.write.on_event(now, Event::Deadline, out);
                }
            }
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.jobs.iter().filter_map(|j| j.write.next_deadline());
        let read = self.reading.as_ref().and_then(|(_, r)| r.next_deadline());
        let ask = self.ask.as_ref().and_then(Ask::next_deadline);
        let free = self.free.as_ref().and_then(Free::next_deadline);
        sooner(sooner(jobs.min(), read), sooner(ask, free))
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
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
