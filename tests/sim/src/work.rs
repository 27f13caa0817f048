//! What clients do, one thing after the other, and what they make of the answers.
//!
//! Invariants:
//! - each put has a value of its own, which its attributes, its tag and every byte tell: what is read is known to be
//!   what some put wrote, or is wrong;
//! - an operation of which it is not certain that it was not done counts as one that may have been done.

use std::collections::BTreeMap;

use ashlar_cluster_map::Partition;
use ashlar_cluster_object::ask::Ask;
use ashlar_cluster_object::tree::decode_node;
use ashlar_cluster_object::{
    ByteRange, Code, Compose, Delete, Event, Get, Look, Mend, ObjectError, Put, StripeBuf,
    StripeRead,
};
use ashlar_layout::ids::{Epoch, Seq, StripeId, Term};
use ashlar_layout::manifest::{Body, Etag, Manifest, Op, Precondition, Stripe};
use ashlar_layout::message::{ObjectMeta, Reply, Request};
use ashlar_tests::history::{Condition, Key, Kind, Operation, Outcome, Value};
use bytes::{Bytes, BytesMut};

use crate::client::{Client, Running};
use crate::disk::Rng;
use crate::plan::Plan;

/// The bucket of all keys.
pub const BUCKET: &str = "sim";

/// The name of a key. Some sort in one another's way.
pub fn key_name(key: Key) -> String {
    format!("k{}/{key}", key % 3)
}

/// The bytes of a value.
pub fn content(value: Value, size: usize) -> Bytes {
    let mut rng = Rng(value);
    let mut bytes = BytesMut::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes.freeze()
}

fn etag(value: Value) -> Etag {
    let mut md5 = [0; 16];
    md5[..8].copy_from_slice(&value.to_le_bytes());
    md5[8] = 1;
    Etag { md5, parts: 0 }
}

fn value_of(etag: &Etag) -> Value {
    let mut value = [0; 8];
    value.copy_from_slice(&etag.md5[..8]);
    Value::from_le_bytes(value)
}

/// What all clients have come to know.
#[derive(Default)]
pub struct Story {
    /// What they did, and what they were told.
    pub operations: Vec<Operation>,
    /// What is wrong whatever else is true.
    pub wrong: Vec<String>,
    /// What each value is made of: other ones, one behind the other, or itself; and how many bytes of each.
    pub pieces: BTreeMap<Value, Vec<(Value, usize)>>,
    /// Stripes that objects named when all were read at last, and how many shards each has.
    pub named: BTreeMap<StripeId, usize>,
    /// Something was left behind, and rightly so: what is on the devices is not known to the shard.
    pub untidy: bool,
    /// More may be damaged than the redundancy bears: then answers may fail, and must not be wrong.
    pub beyond: bool,
    /// How often what came up.
    pub marks: BTreeMap<&'static str, u64>,
}

impl Story {
    /// Something came up.
    pub fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    /// The bytes of a value, if somebody put it.
    pub fn content(&self, value: Value) -> Option<Bytes> {
        let mut all = BytesMut::new();
        for (piece, size) in self.pieces.get(&value)? {
            all.extend_from_slice(&content(*piece, *size));
        }
        Some(all.freeze())
    }

    /// Something that is wrong unless too much is damaged.
    pub fn lost(&mut self, now: u64, what: String) {
        if self.beyond {
            self.mark("lost, and said");
        } else {
            self.wrong(now, what);
        }
    }

    /// Something is wrong.
    pub fn wrong(&mut self, now: u64, what: String) {
        self.wrong
            .push(format!("at {} ms: {what}", now / 1_000_000));
    }
}

/// A pass over the stripes of an object.
struct Audit {
    key: Key,
    version: Seq,
    /// Stripes to be looked at; whether each lists others.
    queue: Vec<(Stripe, bool)>,
    phase: AuditPhase,
}

enum AuditPhase {
    Look,
    See,
    Check,
    Mend,
    CheckAgain(Box<ashlar_cluster_object::Mended>),
    Read,
}

/// A listing of the bucket, page by page.
struct Listing {
    after: String,
    /// The partition that was asked, by this map.
    partition: Partition,
    epoch: Epoch,
    tries: u32,
}

/// An object that is put together of two.
struct Parts {
    key: Key,
    value: Value,
    condition: Condition,
    names: Vec<String>,
    bodies: Vec<Bytes>,
    manifests: Vec<Manifest>,
    /// Their stripes are the object's.
    taken: bool,
    step: PartStep,
}

#[derive(Clone, Copy)]
enum PartStep {
    Put(usize),
    Look(usize),
    Compose,
    Drop(usize),
}

/// What is being handed over.
struct Feed {
    body: Bytes,
    taken: usize,
    whole: bool,
}

enum Doing {
    Rest {
        until: u64,
    },
    Bucket,
    Put {
        key: Key,
        value: Value,
        condition: Condition,
    },
    Parts(Parts),
    Get {
        key: Key,
        range: Option<ByteRange>,
        came: BytesMut,
    },
    Delete {
        key: Key,
        condition: Condition,
    },
    List(Listing),
    Audit(Audit),
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Whatever chance brings.
    Any,
    /// Read everything once, by gets, by a listing, and with an audit that mends.
    Last,
    /// Nothing more.
    Nothing,
}

/// One client's work.
pub struct Work {
    place: u32,
    doing: Doing,
    op: u64,
    invoke: u64,
    /// What the client last saw of each key.
    seen: BTreeMap<Key, (Value, Seq)>,
    values: u64,
    feed: Option<Feed>,
    rng: Rng,
    /// What it is about now.
    pub task: Task,
    /// Why something failed last.
    pub why: String,
    /// What is left of the last task: keys to be read, keys to be audited, whether to list.
    last: Vec<LastStep>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LastStep {
    Get(Key),
    Audit(Key),
    List,
}

impl Work {
    /// The work of the client at this place.
    pub fn new(place: usize, seed: u64) -> Work {
        Work {
            place: place as u32,
            doing: Doing::Rest { until: 0 },
            op: 0,
            invoke: 0,
            seen: BTreeMap::new(),
            values: 0,
            feed: None,
            rng: Rng(seed),
            task: Task::Any,
            why: String::new(),
            last: Vec::new(),
        }
    }

    /// Gives it another task; what it is at is ended first.
    pub fn turn_to(&mut self, task: Task, plan: &Plan) {
        self.task = task;
        if task == Task::Last {
            let keys = 0..plan.keys;
            self.last = keys.clone().map(LastStep::Get).collect();
            self.last.push(LastStep::List);
            self.last.extend(keys.map(LastStep::Audit));
        }
    }

    /// Whether it has nothing more to do for its task.
    pub fn is_done(&self) -> bool {
        let rests = matches!(self.doing, Doing::Rest { .. });
        match self.task {
            Task::Any => false,
            Task::Last => rests && self.last.is_empty(),
            Task::Nothing => rests,
        }
    }

    /// What it is at, for a report.
    pub fn describe(&self) -> String {
        let what = match &self.doing {
            Doing::Rest { .. } => "nothing".to_owned(),
            Doing::Bucket => "making the bucket".to_owned(),
            Doing::Put { key, value, .. } => format!("putting {value:x} to key {key}"),
            Doing::Parts(parts) => format!("putting key {} together", parts.key),
            Doing::Get { key, .. } => format!("getting key {key}"),
            Doing::Delete { key, .. } => format!("removing key {key}"),
            Doing::List(listing) => format!("listing behind '{}'", listing.after),
            Doing::Audit(audit) => format!("auditing key {}", audit.key),
        };
        let (since, left) = (self.invoke / 1_000_000, self.last.len());
        format!(
            "{what} since {since} ms, {left} steps left; last failure: {}",
            self.why
        )
    }

    /// When it wants to go on by itself.
    pub fn next_at(&self) -> Option<u64> {
        match self.doing {
            Doing::Rest { until } if !self.is_done() => Some(until),
            _ => None,
        }
    }

    /// Goes on as far as it can.
    pub fn go_on(&mut self, now: u64, client: &mut Client, plan: &Plan, story: &mut Story) {
        loop {
            if let Doing::Rest { until } = self.doing {
                if until > now || self.is_done() {
                    return;
                }
                self.begin(now, client, plan, story);
                if matches!(self.doing, Doing::Rest { .. }) {
                    return;
                }
            }
            self.feed(now, client);
            let answered = client
                .running
                .get(&self.op)
                .is_none_or(Running::is_answered);
            let ready = match (&self.doing, client.running.get(&self.op)) {
                (Doing::Get { .. }, Some(Running::Get(get))) => get.is_ready(),
                _ => answered,
            };
            if !ready {
                return;
            }
            self.answered(now, client, plan, story);
        }
    }

    fn rest(&mut self, now: u64, client: &mut Client, plan: &Plan) {
        self.feed = None;
        client.wanted = None;
        client.sweep();
        let think = plan.think / 2 + self.rng.below(plan.think.max(1));
        let think = if self.task == Task::Last {
            1_000_000
        } else {
            think
        };
        self.doing = Doing::Rest { until: now + think };
    }

    fn start(
        &mut self,
        now: u64,
        client: &mut Client,
        running: Result<Running, ObjectError>,
        doing: Doing,
    ) {
        let running = running.expect("what is asked makes sense");
        self.invoke = now;
        self.doing = doing;
        self.op = client.start(now, running);
    }

    fn begin(&mut self, now: u64, client: &mut Client, plan: &Plan, story: &mut Story) {
        if self.task == Task::Last {
            let Some(step) = self.last.first().copied() else {
                return;
            };
            return match step {
                LastStep::Get(key) => self.get(now, client, key, None),
                LastStep::List => self.list(now, client, (String::new(), String::new()), 0),
                LastStep::Audit(key) => self.audit(now, client, key),
            };
        }
        let key = self.rng.below(u64::from(plan.keys)) as Key;
        let seen = self.seen.get(&key).copied();
        let condition = match (self.rng.below(10), seen) {
            (0, _) => Condition::Absent,
            (1, _) => Condition::Present,
            (2 | 3, Some((value, _))) => Condition::Is(value),
            _ => Condition::None,
        };
        match self.rng.below(20) {
            0..=6 => {
                let size = if self.rng.chance(50) {
                    self.rng.below(u64::from(plan.inline) + 1)
                } else {
                    self.rng.below(u64::from(plan.largest) + 1)
                };
                let value = self.new_value();
                let body = content(value, size as usize);
                story.pieces.insert(value, vec![(value, body.len())]);
                let precondition = self.precondition(key, condition);
                self.put(
                    now,
                    client,
                    &key_name(key),
                    value,
                    (precondition, body),
                    |_| Doing::Put {
                        key,
                        value,
                        condition,
                    },
                );
            }
            7 => {
                let mut pieces = Vec::new();
                let (mut names, mut bodies) = (Vec::new(), Vec::new());
                for part in 0..2 {
                    let size = u64::from(plan.inline) + 1 + self.rng.below(u64::from(plan.largest));
                    let piece = self.new_value();
                    pieces.push((piece, size as usize));
                    bodies.push(content(piece, size as usize));
                    names.push(format!("part/{}/{piece:x}/{part}", self.place));
                }
                let value = self.new_value();
                story.pieces.insert(value, pieces);
                let parts = Parts {
                    key,
                    value,
                    condition,
                    names,
                    bodies,
                    manifests: Vec::new(),
                    taken: false,
                    step: PartStep::Put(0),
                };
                self.part(now, client, parts);
            }
            8..=12 => self.get(now, client, key, None),
            13 => {
                let (a, b) = (self.rng.below(5000), self.rng.below(5000));
                let range = ByteRange::FromTo(a.min(b), a.max(b));
                self.get(now, client, key, Some(range));
            }
            14..=16 => {
                let precondition = self.precondition(key, condition);
                let delete =
                    Delete::new(client.common.clone(), BUCKET, &key_name(key), precondition);
                self.start(
                    now,
                    client,
                    delete.map(Running::Delete),
                    Doing::Delete { key, condition },
                );
            }
            17 | 18 => self.list(now, client, (String::new(), String::new()), 0),
            _ => self.audit(now, client, key),
        }
    }

    fn new_value(&mut self) -> Value {
        self.values += 1;
        (u64::from(self.place) + 1) << 32 | self.values
    }

    fn put(
        &mut self,
        now: u64,
        client: &mut Client,
        name: &str,
        value: Value,
        (precondition, body): (Precondition, Bytes),
        doing: impl FnOnce(()) -> Doing,
    ) {
        let put = Put::new(client.common.clone(), BUCKET, name, precondition);
        self.start(now, client, put.map(Running::Put), doing(()));
        self.feed = Some(Feed {
            body,
            taken: 0,
            whole: false,
        });
        client.with(now, self.op, |running, _, _| {
            if let Running::Put(put) = running {
                put.describe(etag(value), value.to_le_bytes().to_vec());
            }
        });
    }

    /// The next step of putting an object together.
    fn part(&mut self, now: u64, client: &mut Client, parts: Parts) {
        let common = client.common.clone();
        match parts.step {
            PartStep::Put(part) => {
                let (name, body) = (parts.names[part].clone(), parts.bodies[part].clone());
                let what = (Precondition::None, body);
                self.put(now, client, &name, parts.value, what, |()| {
                    Doing::Parts(parts)
                });
            }
            PartStep::Look(part) => {
                let look = Look::new(common, BUCKET, &parts.names[part], false);
                self.start(now, client, look.map(Running::Look), Doing::Parts(parts));
            }
            PartStep::Compose => {
                let (key, value) = (parts.key, parts.value);
                let kept = (etag(value), value.to_le_bytes().to_vec());
                let precondition = self.precondition(key, parts.condition);
                let of = parts.manifests.clone();
                let compose = Compose::new(common, BUCKET, &key_name(key), precondition, of, kept);
                self.start(
                    now,
                    client,
                    compose.map(Running::Compose),
                    Doing::Parts(parts),
                );
            }
            PartStep::Drop(part) => {
                let delete = Delete::new(common, BUCKET, &parts.names[part], Precondition::None);
                let delete = match parts.taken {
                    true => delete.map(Delete::of_taken),
                    false => delete,
                };
                let delete = delete.map(Running::Delete);
                self.start(now, client, delete, Doing::Parts(parts));
            }
        }
    }

    fn parted(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut parts: Parts,
    ) {
        let machine = client.running.get(&self.op);
        parts.step = match (parts.step, machine) {
            (PartStep::Put(part), Some(Running::Put(put))) => match put.outcome() {
                Some(Ok(_)) => PartStep::Look(part),
                _ => return self.parts_end(now, client, plan, story),
            },
            (PartStep::Look(part), Some(Running::Look(look))) => match look.outcome() {
                Some(Ok(found)) => {
                    parts.manifests.push(found.meta.manifest.clone());
                    match part + 1 == parts.names.len() {
                        true => PartStep::Compose,
                        false => PartStep::Put(part + 1),
                    }
                }
                _ => return self.parts_end(now, client, plan, story),
            },
            (PartStep::Compose, Some(Running::Compose(compose))) => {
                let outcome = compose
                    .outcome()
                    .cloned()
                    .unwrap_or(Err(ObjectError::Aborted));
                let (said, version) = match &outcome {
                    Ok(done) => {
                        self.seen.insert(parts.key, (parts.value, done.version));
                        story.mark("put together of parts");
                        (Outcome::Done, done.version.0)
                    }
                    Err(error) => (Work::refused(error), 0),
                };
                self.note(story, &said);
                let (key, kind) = (parts.key, Kind::Put(parts.value));
                self.record(now, story, key, kind, parts.condition, said, version);
                if said == Outcome::Unknown {
                    // The parts stay: their stripes may be the object's.
                    return self.parts_end(now, client, plan, story);
                }
                parts.taken = said == Outcome::Done;
                PartStep::Drop(0)
            }
            (PartStep::Drop(part), Some(Running::Delete(delete))) => {
                let dropped = matches!(delete.outcome(), Some(Ok(_)));
                if !dropped || part + 1 == parts.names.len() {
                    story.untidy |= !dropped;
                    return self.rest(now, client, plan);
                }
                PartStep::Drop(part + 1)
            }
            _ => return self.parts_end(now, client, plan, story),
        };
        self.part(now, client, parts);
    }

    fn parts_end(&mut self, now: u64, client: &mut Client, plan: &Plan, story: &mut Story) {
        story.untidy = true;
        self.rest(now, client, plan);
    }

    /// The client is no more: nobody learns what became of what it was at.
    pub fn die(&mut self, now: u64, story: &mut Story) {
        match std::mem::replace(
            &mut self.doing,
            Doing::Rest {
                until: now + 1_000_000,
            },
        ) {
            Doing::Put {
                key,
                value,
                condition,
            } => {
                self.record(
                    now,
                    story,
                    key,
                    Kind::Put(value),
                    condition,
                    Outcome::Unknown,
                    0,
                );
            }
            Doing::Parts(Parts {
                step: PartStep::Compose,
                key,
                value,
                condition,
                ..
            }) => self.record(
                now,
                story,
                key,
                Kind::Put(value),
                condition,
                Outcome::Unknown,
                0,
            ),
            Doing::Delete { key, condition } => {
                self.record(
                    now,
                    story,
                    key,
                    Kind::Delete,
                    condition,
                    Outcome::Unknown,
                    0,
                );
            }
            _ => {}
        }
        self.feed = None;
        story.untidy = true;
        story.mark("client died");
    }

    fn precondition(&self, key: Key, condition: Condition) -> Precondition {
        match condition {
            Condition::None => Precondition::None,
            Condition::Absent => Precondition::Absent,
            Condition::Present => Precondition::Present,
            Condition::Is(_) => Precondition::Version(self.seen[&key].1),
        }
    }

    fn get(&mut self, now: u64, client: &mut Client, key: Key, range: Option<ByteRange>) {
        let get = Get::new(client.common.clone(), BUCKET, &key_name(key), range);
        let came = BytesMut::new();
        self.start(
            now,
            client,
            get.map(Running::Get),
            Doing::Get { key, range, came },
        );
    }

    /// Asks the partition that holds `from` for what comes behind `after`.
    fn list(&mut self, now: u64, client: &mut Client, (after, from): (String, String), tries: u32) {
        let map = client.common.map();
        let partition = map.partition(BUCKET, &from).cloned();
        let partition = partition.expect("partitions cover everything");
        let request = Request::List {
            partition: partition.id,
            bucket: BUCKET.to_owned(),
            prefix: String::new(),
            delimiter: String::new(),
            after: after.clone(),
            max: 3,
        };
        let names = (BUCKET, "");
        let ask = Ask::new(
            client.common.clone(),
            0,
            names,
            partition.id,
            request,
            Bytes::new(),
        );
        let listing = Listing {
            after,
            partition,
            epoch: map.epoch,
            tries,
        };
        self.start(now, client, Ok(Running::Ask(ask)), Doing::List(listing));
    }

    fn audit(&mut self, now: u64, client: &mut Client, key: Key) {
        let look = Look::new(client.common.clone(), BUCKET, &key_name(key), false);
        let audit = Audit {
            key,
            version: Seq(0),
            queue: Vec::new(),
            phase: AuditPhase::Look,
        };
        self.start(now, client, look.map(Running::Look), Doing::Audit(audit));
    }

    /// Makes the bucket.
    pub fn make_bucket(&mut self, now: u64, client: &mut Client) {
        let partition = client.common.partition_of(BUCKET, "");
        let partition = partition.expect("partitions cover everything");
        let request = Request::Propose {
            partition,
            term: Term(0),
            client: client.common.client(),
            request: client.common.next_request(),
            retry: None,
            precondition: Precondition::None,
            op: Op::CreateBucket {
                bucket: BUCKET.to_owned(),
            },
        };
        let names = (BUCKET, "");
        let ask = Ask::new(
            client.common.clone(),
            0,
            names,
            partition,
            request,
            Bytes::new(),
        );
        self.start(now, client, Ok(Running::Ask(ask)), Doing::Bucket);
    }

    /// Hands over more of what is put.
    fn feed(&mut self, now: u64, client: &mut Client) {
        let Some(Feed { body, taken, whole }) = &mut self.feed else {
            return;
        };
        let inline = client.common.tuning().inline_max as usize;
        if !*whole && body.len() <= inline {
            *whole = true;
            let body = body.clone();
            return client.event(now, self.op, Event::Inline(body));
        }
        while !*whole {
            let Some(Running::Put(put)) = client.running.get(&self.op) else {
                return;
            };
            if !put.wants_data() {
                return;
            }
            let stripe = put.stripe_data() as usize;
            let event = if *taken == body.len() {
                *whole = true;
                Event::End
            } else {
                let end = body.len().min(*taken + stripe);
                let stripe = body.slice(*taken..end);
                *taken = end;
                Event::Stripe(StripeBuf::exact(stripe))
            };
            client.event(now, self.op, event);
        }
    }

    fn record(
        &self,
        now: u64,
        story: &mut Story,
        key: Key,
        kind: Kind,
        condition: Condition,
        outcome: Outcome,
        version: u64,
    ) {
        story.operations.push(Operation {
            client: self.place,
            key,
            kind,
            condition,
            outcome,
            version,
            invoke: self.invoke,
            ret: now,
        });
    }

    fn refused(error: &ObjectError) -> Outcome {
        match error.code() {
            Code::PreconditionFailed => Outcome::Unmet,
            _ if error.is_uncertain() => Outcome::Unknown,
            _ => Outcome::Refused,
        }
    }

    fn answered(&mut self, now: u64, client: &mut Client, plan: &Plan, story: &mut Story) {
        match std::mem::replace(&mut self.doing, Doing::Rest { until: now }) {
            Doing::Rest { .. } => {}
            Doing::Bucket => {
                let made = match client.running.get(&self.op) {
                    Some(Running::Ask(ask)) => ask.outcome().cloned(),
                    _ => None,
                };
                match made {
                    Some(Ok(_)) => story.mark("bucket made"),
                    other => story.wrong(now, format!("the bucket cannot be made: {other:?}")),
                }
                self.rest(now, client, plan);
            }
            Doing::Parts(parts) => {
                self.feed = None;
                self.parted(now, client, plan, story, parts);
            }
            Doing::Put {
                key,
                value,
                condition,
            } => {
                let outcome = match client.running.get(&self.op) {
                    Some(Running::Put(put)) => put.outcome().cloned(),
                    _ => None,
                };
                let outcome = outcome.unwrap_or(Err(ObjectError::Aborted));
                let (said, version) = match &outcome {
                    Ok(done) => {
                        self.seen.insert(key, (value, done.version));
                        story.mark(if done.stripes > 0 {
                            "put in stripes"
                        } else {
                            "put inline"
                        });
                        if done.degraded_shards > 0 {
                            story.mark("put with a shard less");
                        }
                        if done.reduced_stripes > 0 {
                            story.mark("put in a smaller class");
                        }
                        (Outcome::Done, done.version.0)
                    }
                    Err(error) => (Work::refused(error), 0),
                };
                self.note(story, &said);
                self.record(now, story, key, Kind::Put(value), condition, said, version);
                self.rest(now, client, plan);
            }
            Doing::Delete { key, condition } => {
                let outcome = match client.running.get(&self.op) {
                    Some(Running::Delete(delete)) => delete.outcome().cloned(),
                    _ => None,
                };
                let outcome = outcome.unwrap_or(Err(ObjectError::Aborted));
                let said = match &outcome {
                    Ok(deleted) if deleted.existed => Outcome::Existed,
                    Ok(_) => Outcome::Done,
                    // There was nothing: as good as removed, and it says so.
                    Err(error) if error.code() == Code::NotFound => {
                        self.record(
                            now,
                            story,
                            key,
                            Kind::Get,
                            Condition::None,
                            Outcome::Absent,
                            0,
                        );
                        return self.rest(now, client, plan);
                    }
                    Err(error) => Work::refused(error),
                };
                self.note(story, &said);
                self.record(now, story, key, Kind::Delete, condition, said, 0);
                self.rest(now, client, plan);
            }
            Doing::Get { key, range, came } => {
                self.got(now, client, plan, story, (key, range, came))
            }
            Doing::List(listing) => self.listed(now, client, plan, story, listing),
            Doing::Audit(audit) => self.audited(now, client, plan, story, audit),
        }
    }

    fn note(&self, story: &mut Story, said: &Outcome) {
        match said {
            Outcome::Unknown => {
                story.untidy = true;
                story.mark("outcome unknown");
            }
            Outcome::Unmet => story.mark("condition not met"),
            Outcome::Refused => story.mark("refused"),
            _ => story.mark("change acknowledged"),
        }
    }

    fn got(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        (key, range, mut came): (Key, Option<ByteRange>, BytesMut),
    ) {
        let taken = client.with(now, self.op, |running, at, out| match running {
            Running::Get(get) => get.take(at, out),
            _ => None,
        });
        let said = match taken.flatten() {
            Some(Ok(bytes)) => {
                came.extend_from_slice(&bytes);
                self.doing = Doing::Get { key, range, came };
                return;
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        let Some(Running::Get(get)) = client.running.get(&self.op) else {
            return self.rest(now, client, plan);
        };
        if get.rebuilt() > 0 {
            story.mark("shards rebuilt while reading");
        }
        if get.from_cache() {
            story.mark("read as witnesses allow");
        }
        let last = self.task == Task::Last;
        match said {
            Ok(()) => {
                let Some(meta) = get.meta().cloned() else {
                    story.wrong(
                        now,
                        format!("key {key}: it was read and nothing is known of it"),
                    );
                    return self.rest(now, client, plan);
                };
                let value = self.check(now, story, key, &meta, &get.range(), &came);
                self.seen.insert(key, (value, meta.version));
                self.record(
                    now,
                    story,
                    key,
                    Kind::Get,
                    Condition::None,
                    Outcome::Found(value),
                    meta.version.0,
                );
                story.mark("read");
                self.last
                    .retain(|step| !last || *step != LastStep::Get(key));
            }
            Err(error) if error.code() == Code::NotFound => {
                self.seen.remove(&key);
                self.record(
                    now,
                    story,
                    key,
                    Kind::Get,
                    Condition::None,
                    Outcome::Absent,
                    0,
                );
                story.mark("read that there is nothing");
                self.last
                    .retain(|step| !last || *step != LastStep::Get(key));
            }
            Err(error) if matches!(error.code(), Code::Corrupt) => {
                story.lost(now, format!("key {key}: it cannot be read: {error}"));
                self.last
                    .retain(|step| !last || *step != LastStep::Get(key));
            }
            Err(error) if error.code() == Code::RangeNotSatisfiable => {
                story.mark("range not satisfiable");
            }
            Err(error) => {
                self.why = error.to_string();
                story.mark("read failed");
            }
        }
        self.rest(now, client, plan);
    }

    /// Whether the bytes are those of the value that the object says it is.
    fn check(
        &self,
        now: u64,
        story: &mut Story,
        key: Key,
        meta: &ObjectMeta,
        range: &std::ops::Range<u64>,
        came: &[u8],
    ) -> Value {
        let value = value_of(&meta.manifest.etag);
        let all = story.content(value);
        let attributes = meta.manifest.attributes == value.to_le_bytes();
        let (Some(all), true) = (all, attributes) else {
            story.wrong(
                now,
                format!("key {key}: it is a value that nobody put: {value:x}"),
            );
            return value;
        };
        let size = all.len();
        let whole = all.get(range.start as usize..range.end as usize);
        if whole != Some(came) || meta.manifest.size != size as u64 {
            story.wrong(now, format!(
                "key {key}: {} bytes came of {range:?} of value {value:x} of {size} bytes, and they are others",
                came.len()
            ));
        }
        value
    }

    fn listed(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        listing: Listing,
    ) {
        let outcome = match client.running.get(&self.op) {
            Some(Running::Ask(ask)) => ask.outcome().cloned(),
            _ => None,
        };
        let last = self.task == Task::Last;
        match outcome {
            Some(Ok(told)) => {
                let Reply::Page(page) = told.reply else {
                    story.wrong(now, format!("a list was answered with {:?}", told.reply));
                    return self.rest(now, client, plan);
                };
                let map = client.common.map();
                let start = listing.partition.start.clone();
                if map.epoch != listing.epoch {
                    // It may have been answered by a newer map than the one that says what it covers.
                    story.mark("list by a map that changed");
                    let from = if start.0 == BUCKET {
                        start.1
                    } else {
                        String::new()
                    };
                    let from = from.max(listing.after.clone());
                    return self.list(now, client, (listing.after, from), listing.tries + 1);
                }
                let end = map.end_of(&start).cloned();
                // Between them the page says of every key what it is, or that it is not there.
                let inside = |name: &str| {
                    let place = (BUCKET.to_owned(), name.to_owned());
                    let behind = place >= start && name > listing.after.as_str();
                    let before = match &page.next {
                        Some(next) => name <= next.as_str(),
                        None => end.as_ref().is_none_or(|end| place < *end),
                    };
                    behind && before
                };
                for key in 0..plan.keys {
                    let name = key_name(key);
                    if !inside(&name) {
                        continue;
                    }
                    let entry = page.objects.iter().find(|entry| entry.key == name);
                    let outcome = entry.map_or(Outcome::Absent, |entry| {
                        Outcome::Found(value_of(&entry.etag))
                    });
                    let version = entry.map_or(0, |entry| entry.version.0);
                    self.record(
                        now,
                        story,
                        key,
                        Kind::Get,
                        Condition::None,
                        outcome,
                        version,
                    );
                    if let Some(entry) = entry
                        && story
                            .content(value_of(&entry.etag))
                            .map(|it| it.len() as u64)
                            != Some(entry.size)
                    {
                        story.wrong(
                            now,
                            format!("key {key}: it is listed as what nobody put: {entry:?}"),
                        );
                    }
                }
                story.mark("page listed");
                match (page.next, end) {
                    (Some(next), _) => return self.list(now, client, (next.clone(), next), 0),
                    (None, Some((bucket, key))) if bucket == BUCKET => {
                        story.mark("list across partitions");
                        return self.list(now, client, (listing.after, key), 0);
                    }
                    _ => {}
                }
                self.last.retain(|step| !last || *step != LastStep::List);
            }
            Some(Err(untold)) if listing.tries < 8 => {
                self.why = untold.error.to_string();
                let tries = listing.tries + 1;
                story.mark("list again");
                let start = listing.partition.start;
                let from = if start.0 == BUCKET {
                    start.1
                } else {
                    String::new()
                };
                let from = from.max(listing.after.clone());
                return self.list(now, client, (listing.after, from), tries);
            }
            _ => story.mark("list failed"),
        }
        self.rest(now, client, plan);
    }

    fn audited(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut audit: Audit,
    ) {
        let key = audit.key;
        let machine = client.running.get(&self.op);
        match (&audit.phase, machine) {
            (AuditPhase::Look, Some(Running::Look(look))) => match look.outcome().cloned() {
                Some(Ok(found)) => {
                    audit.version = found.meta.version;
                    audit.queue = match found.meta.manifest.body {
                        Body::Inline => Vec::new(),
                        Body::Stripes(stripes) => {
                            stripes.into_iter().map(|it| (it, false)).collect()
                        }
                        Body::Tree(nodes) | Body::Parts { nodes, .. } => {
                            nodes.into_iter().map(|it| (it, true)).collect()
                        }
                    };
                    return self.audit_next(now, client, plan, story, audit);
                }
                Some(Err(error)) if error.code() == Code::NotFound => {
                    self.audit_ends(key);
                }
                _ => {}
            },
            (AuditPhase::See, Some(Running::Mend(mend))) => match mend.outcome().cloned() {
                Some(Ok(found)) if found.bad.is_empty() => {
                    let margin = found.margin();
                    let away = !found.away.is_empty();
                    return self.audit_seen(now, client, plan, story, audit, (margin, away));
                }
                Some(Ok(_)) => {
                    // Only what stands still is bad rather than freed.
                    audit.phase = AuditPhase::Check;
                    return self.audit_look(now, client, audit);
                }
                _ => {}
            },
            (AuditPhase::Check, Some(Running::Look(look))) => match look.outcome().cloned() {
                Some(Ok(found)) if found.meta.version == audit.version => {
                    audit.phase = AuditPhase::Mend;
                    return self.audit_mend(now, client, plan, story, audit, true);
                }
                Some(Ok(_)) => self.audit_ends(key),
                Some(Err(error)) if error.code() == Code::NotFound => self.audit_ends(key),
                _ => {}
            },
            (AuditPhase::Mend, Some(Running::Mend(mend))) => {
                if let Some(Ok(found)) = mend.outcome().cloned() {
                    for _ in 0..found.mended {
                        story.mark("shard mended");
                    }
                    audit.phase = AuditPhase::CheckAgain(Box::new(found));
                    return self.audit_look(now, client, audit);
                }
            }
            (AuditPhase::CheckAgain(found), Some(Running::Look(look))) => {
                match look.outcome().cloned() {
                    Some(Ok(now_is)) if now_is.meta.version == audit.version => {
                        if found.is_lost() {
                            story.lost(now, format!("key {key}: a stripe is lost: {found:?}"));
                        }
                        let (margin, away) = (
                            found.margin(),
                            !found.away.is_empty() || !found.failed.is_empty(),
                        );
                        return self.audit_seen(now, client, plan, story, audit, (margin, away));
                    }
                    Some(Ok(_)) => self.audit_ends(key),
                    Some(Err(error)) if error.code() == Code::NotFound => self.audit_ends(key),
                    _ => {}
                }
            }
            (AuditPhase::Read, Some(Running::Stripe(read))) => match read.outcome().cloned() {
                Some(Ok(part)) => match decode_node(&part) {
                    Ok(stripes) => {
                        audit
                            .queue
                            .extend(stripes.into_iter().map(|it| (it, false)));
                        return self.audit_next(now, client, plan, story, audit);
                    }
                    Err(detail) => story.wrong(
                        now,
                        format!("key {key}: a list of stripes is wrong: {detail}"),
                    ),
                },
                _ => story.mark("list of stripes not read"),
            },
            _ => {}
        }
        story.mark("audit ended early");
        self.rest(now, client, plan);
    }

    fn audit_ends(&mut self, key: Key) {
        if self.task == Task::Last {
            self.last.retain(|step| *step != LastStep::Audit(key));
        }
    }

    fn audit_look(&mut self, now: u64, client: &mut Client, audit: Audit) {
        let look = Look::new(client.common.clone(), BUCKET, &key_name(audit.key), false);
        self.start(now, client, look.map(Running::Look), Doing::Audit(audit));
    }

    fn audit_mend(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        audit: Audit,
        mends: bool,
    ) {
        let Some((stripe, _)) = audit.queue.first() else {
            return self.rest(now, client, plan);
        };
        match Mend::new(client.common.clone(), stripe.clone(), mends) {
            Ok(mend) => self.start(now, client, Ok(Running::Mend(mend)), Doing::Audit(audit)),
            Err(detail) => {
                story.wrong(
                    now,
                    format!("key {}: a stripe makes no sense: {detail}", audit.key),
                );
                self.rest(now, client, plan);
            }
        }
    }

    fn audit_next(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut audit: Audit,
    ) {
        if audit.queue.is_empty() {
            story.mark("object audited");
            self.audit_ends(audit.key);
            return self.rest(now, client, plan);
        }
        audit.phase = AuditPhase::See;
        self.audit_mend(now, client, plan, story, audit, false);
    }

    /// A stripe has been seen, and mended if need be; some device was perhaps away.
    fn audit_seen(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut audit: Audit,
        (margin, away): (i64, bool),
    ) {
        let (stripe, lists) = audit.queue.remove(0);
        if self.task == Task::Last {
            story.named.insert(stripe.id, stripe.shard_crcs.len());
        }
        if margin < i64::from(stripe.m) {
            if !away {
                story.lost(
                    now,
                    format!(
                        "key {}: stripe {} has margin {margin} though all is mended",
                        audit.key, stripe.id
                    ),
                );
            } else if self.task == Task::Last {
                // Again, when its devices are back.
                story.mark("audit waits for a device");
                self.rest(now, client, plan);
                self.doing = Doing::Rest {
                    until: now + 200_000_000,
                };
                return;
            }
        }
        if !lists {
            return self.audit_next(now, client, plan, story, audit);
        }
        let want = 0..stripe.data_len;
        match StripeRead::new(client.common.clone(), 0, stripe, want) {
            Ok(read) => {
                audit.phase = AuditPhase::Read;
                self.start(now, client, Ok(Running::Stripe(read)), Doing::Audit(audit));
            }
            Err(detail) => {
                story.wrong(
                    now,
                    format!(
                        "key {}: a list of stripes makes no sense: {detail}",
                        audit.key
                    ),
                );
                self.rest(now, client, plan);
            }
        }
    }
}
