//! What clients do, one thing after the other, and what they make of the answers.
//!
//! Invariants:
//! - each put has a value of its own, which its attributes, its tag and every byte tell: what is read is known to be
//!   what some put wrote, or is wrong;
//! - an operation of which it is not certain that it was not done counts as one that may have been done.

use std::collections::BTreeMap;

use ashlar_cluster_object::ask::Ask;
use ashlar_cluster_object::{ByteRange, Code, Delete, Event, ObjectError, StripeBuf};
use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::Request;
use ashlar_tests::history::{Condition, Key, Kind, Operation, Outcome, Value};
use ashlar_tests::shelf::{Id, Slot};
use bytes::{Bytes, BytesMut};

use crate::client::{Client, Running};
use crate::desk::Flow;
use crate::disk::Rng;
use crate::plan::Plan;
use crate::story::{BUCKET, PAIR, SHELVES, Story, content, key_name};
use crate::work_audit::Audit;
use crate::work_moves::{MoveStep, Moving};
use crate::work_parts::{PartStep, Parts};
use crate::work_reads::Listing;

/// What is being handed over.
pub(crate) struct Feed {
    pub(crate) body: Bytes,
    pub(crate) taken: usize,
    pub(crate) whole: bool,
    /// It does not ride in the journal, however small it is.
    pub(crate) striped: bool,
}

pub(crate) enum Doing {
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
    Move(Moving),
    Flow(Flow),
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
    pub(crate) place: u32,
    pub(crate) doing: Doing,
    pub(crate) op: u64,
    pub(crate) invoke: u64,
    /// What the client last saw of each key.
    pub(crate) seen: BTreeMap<Key, (Value, Seq)>,
    /// The version that the condition of what it is at names.
    pub(crate) held: Seq,
    /// Versions that it knows of, by key,
    pub(crate) known: BTreeMap<Key, Vec<Slot>>,
    /// and the entry that last wrote what it last saw to be current.
    pub(crate) entries: BTreeMap<Key, Id>,
    pub(crate) values: u64,
    pub(crate) feed: Option<Feed>,
    pub(crate) rng: Rng,
    /// What it is about now.
    pub task: Task,
    /// Why something failed last.
    pub why: String,
    /// What is left of the last task: keys to be read, keys to be audited, whether to list.
    pub(crate) last: Vec<LastStep>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastStep {
    Get(Key),
    Audit(Key, Option<Seq>),
    List,
    /// All versions of a key are to be listed, and read.
    Versions(Key),
    /// All versions are to be listed in small pages.
    Walk,
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
            held: Seq(0),
            known: BTreeMap::new(),
            entries: BTreeMap::new(),
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
            self.last.extend(keys.map(|key| LastStep::Audit(key, None)));
            if plan.versions {
                let keys = SHELVES.into_iter().chain(PAIR);
                self.last.extend(keys.map(LastStep::Versions));
                self.last.push(LastStep::Walk);
            }
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

    /// A step of the last task is done, if it is at that.
    pub(crate) fn step_done(&mut self, step: LastStep) {
        if self.task == Task::Last {
            self.last.retain(|it| *it != step);
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
            Doing::Move(moving) => format!("moving a stripe of key {}", moving.key),
            Doing::Flow(flow) => flow.name.clone(),
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
            if let Doing::Flow(_) = self.doing {
                if !self.flow(now, client, plan, story) {
                    return;
                }
                continue;
            }
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

    pub(crate) fn rest(&mut self, now: u64, client: &mut Client, plan: &Plan) {
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

    pub(crate) fn start(
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
                LastStep::Audit(key, slot) => self.audit(now, client, key, slot),
                LastStep::Versions(_) | LastStep::Walk => {
                    self.last_flow(now, client, plan, story, step)
                }
            };
        }
        if plan.versions && self.rng.chance(60) {
            return self.some_flow(now, client, plan, story);
        }
        let key = self.rng.below(u64::from(plan.keys)) as Key;
        if plan.moves && self.rng.chance(8) {
            return self.move_one(now, client, key);
        }
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
            _ => self.audit(now, client, key, None),
        }
    }

    pub(crate) fn new_value(&mut self) -> Value {
        self.values += 1;
        (u64::from(self.place) + 1) << 32 | self.values
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
                    (Kind::Put(value), condition),
                    (Outcome::Unknown, 0),
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
                (Kind::Put(value), condition),
                (Outcome::Unknown, 0),
            ),
            Doing::Delete { key, condition } => {
                self.record(
                    now,
                    story,
                    key,
                    (Kind::Delete, condition),
                    (Outcome::Unknown, 0),
                );
            }
            Doing::Move(Moving {
                key,
                step: MoveStep::Move(meta),
            }) => self.record_move(now, story, (key, &meta), (Outcome::Unknown, 0)),
            Doing::Flow(flow) => {
                let news = flow.die(now);
                self.hear(now, story, news);
            }
            _ => {}
        }
        self.feed = None;
        story.untidy = true;
        story.mark("client died");
    }

    pub(crate) fn precondition(&mut self, key: Key, condition: Condition) -> Precondition {
        match condition {
            Condition::None => Precondition::None,
            Condition::Absent => Precondition::Absent,
            Condition::Present => Precondition::Present,
            Condition::Is(_) => {
                self.held = self.seen[&key].1;
                Precondition::Version(self.held)
            }
        }
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
        let Some(Feed {
            body,
            taken,
            whole,
            striped,
        }) = &mut self.feed
        else {
            return;
        };
        let inline = client.common.tuning().inline_max as usize;
        if !*whole && !*striped && body.len() <= inline {
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

    pub(crate) fn record(
        &self,
        now: u64,
        story: &mut Story,
        key: Key,
        (kind, condition): (Kind, Condition),
        (outcome, version): (Outcome, u64),
    ) {
        if matches!(condition, Condition::Is(_)) {
            story.held.insert(story.operations.len(), self.held.0);
        }
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

    pub(crate) fn refused(error: &ObjectError) -> Outcome {
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
                self.record(
                    now,
                    story,
                    key,
                    (Kind::Put(value), condition),
                    (said, version),
                );
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
                            (Kind::Get, Condition::None),
                            (Outcome::Absent, 0),
                        );
                        return self.rest(now, client, plan);
                    }
                    Err(error) => Work::refused(error),
                };
                self.note(story, &said);
                self.record(now, story, key, (Kind::Delete, condition), (said, 0));
                self.rest(now, client, plan);
            }
            Doing::Get { key, range, came } => {
                self.got(now, client, plan, story, (key, range, came))
            }
            Doing::List(listing) => self.listed(now, client, plan, story, listing),
            Doing::Audit(audit) => self.audited(now, client, plan, story, audit),
            Doing::Move(moving) => self.moved(now, client, plan, story, moving),
            Doing::Flow(_) => {}
        }
    }

    pub(crate) fn note(&self, story: &mut Story, said: &Outcome) {
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
}
