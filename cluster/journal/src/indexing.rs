//! The index beside the log: what it is asked, what it wants done, when it is written out, and what the log
//! may forget then.
//!
//! Invariants:
//! - whoever asks is answered once, whatever becomes of the index; what is told of it is the state at the
//!   moment of the question, or a later one;
//! - what is written out with a table was so when its last entry was applied, but for promise and position,
//!   which are the device's own and may be newer;
//! - the log forgets only what a durable root covers, and the device's journal only what the log forgot. An
//!   extent that the runs of that root point into is kept.

use ashlar_cluster_index::{
    Action as IndexAction, Answer, Event as IndexEvent, Found as Entry, IndexError, Name, Output,
    Question, Snapshot,
};
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::ErrorCode;
use ashlar_layout::replica_state::ReplicaState;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::apply;
use crate::gate::Proposed;
use crate::head::{Head, Owed};
use crate::pending::{Facts, Held, Refusal, source, target};
use crate::reads::Reader;
use crate::replica::{Replica, Role};
use crate::versions;

/// Why the index was asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// Somebody reads.
    Reader(Reader),
    /// The first proposal at this gate depends on it.
    Gate { bucket: String, key: String },
    /// To tell what a change displaced.
    Displaced,
    /// For a lesson to this replica.
    Lesson(DeviceNo),
    /// This replica wants the payload.
    Recall {
        peer: DeviceNo,
        name: Name,
        version: Seq,
    },
    /// A payload came for this object, if it is still the one.
    Recalled {
        name: Name,
        version: Seq,
        payload: Bytes,
        /// What was applied when the index was asked.
        since: Seq,
    },
}

/// Whether all that a proposal depends on is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    All,
    /// It has to wait at the gate of this key: for a question, or for those in front.
    Later {
        key: String,
        question: Option<u64>,
    },
}

/// A table that is being written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Frozen {
    covered: Seq,
    position: u64,
}

impl Frozen {
    pub(crate) fn covers(&self, seq: Seq) -> bool {
        self.covered >= seq
    }
}

/// What a question about a change came to.
enum Told {
    Now(Output),
    Later(u64),
}

impl Replica {
    /// Asks the index, or says why that cannot be.
    fn tell(&mut self, question: Question, out: &mut Vec<Action>) -> Result<Told, Refusal> {
        match self.ask_index(question, out) {
            Answer::Ready(Ok(output)) => Ok(Told::Now(output)),
            Answer::Pending(question) => Ok(Told::Later(question)),
            Answer::Ready(Err(error)) => Err(self.unreadable(&error)),
            Answer::Busy => Err(self.busy("questions to the index")),
        }
    }

    pub(crate) fn ask_index(&mut self, question: Question, out: &mut Vec<Action>) -> Answer {
        self.ask_index_at(question, None, out)
    }

    /// Asks of a state that was kept; none: of the present one.
    pub(crate) fn ask_index_at(
        &mut self,
        question: Question,
        at: Option<Snapshot>,
        out: &mut Vec<Action>,
    ) -> Answer {
        let mut wants = Vec::new();
        let answer = self.index.ask(question, at, &mut self.shelf.0, &mut wants);
        self.pass_on(self.lane, wants, out);
        answer
    }

    /// Gives on what needs no attention here.
    pub(crate) fn pass_on(&self, lane: u32, wants: Vec<IndexAction>, out: &mut Vec<Action>) {
        out.extend(
            wants
                .into_iter()
                .map(|action| Action::Index { lane, action }),
        );
    }

    pub(crate) fn unreadable(&self, error: &IndexError) -> Refusal {
        let detail = format!(
            "partition {}: {error}; it is learned anew from another replica, come back later",
            self.config.partition
        );
        // If it has made way, another one can tell.
        let code = match self.in_office() {
            true => ErrorCode::Corrupt,
            false => ErrorCode::NotHead,
        };
        Refusal::new(code, detail)
    }

    /// Finds out what the index has to say about a change; what is pending goes before it.
    pub(crate) fn find_out(
        &mut self,
        op: &Op,
        precondition: Precondition,
        facts: &mut Facts,
        out: &mut Vec<Action>,
    ) -> Result<Found, Refusal> {
        let (bucket, key) = target(op);
        let later = |key: &str, question| {
            let key = key.to_owned();
            Ok(Found::Later { key, question })
        };
        let deletes = matches!(op, Op::DeleteBucket { .. });
        if deletes && self.head.pending.knows_any_object(bucket) {
            return later("", None);
        }
        // Nothing is copied for what needs no question.
        let gate = |key: &str| Why::Gate {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        };
        if !self.head.pending.knows_bucket(bucket) {
            if facts.bucket.is_none() {
                match self.tell(Question::Bucket(bucket.to_owned()), out)? {
                    Told::Now(output) => take(facts, output),
                    Told::Later(question) => {
                        self.questions.insert(question, gate(""));
                        return later("", Some(question));
                    }
                }
            }
            if facts.bucket == Some(false) {
                return Ok(Found::All);
            }
            if deletes && facts.empty.is_none() {
                match self.tell(Question::Empty(bucket.to_owned()), out)? {
                    Told::Now(output) => take(facts, output),
                    Told::Later(question) => {
                        self.questions.insert(question, gate(""));
                        return later("", Some(question));
                    }
                }
            }
        }
        let known = self.head.pending.knows_object(bucket, key);
        let depends = versions::depends_on(op);
        let other = source(op);
        if known && (depends.is_some() || other.is_some()) {
            return later(key, None);
        }
        if let Some(other) = other.filter(|other| self.head.pending.knows_object(bucket, other)) {
            return later(other, None);
        }
        let object = !key.is_empty() && !known;
        if object && facts.object.is_none() {
            // Of a version it must be known what is current before it comes.
            let blind = matches!(op, Op::Put { .. } | Op::Delete { .. });
            let question = match other {
                Some(other) => versions::question_of_two(bucket, [key, other]),
                None => versions::question(bucket, key, &depends.unwrap_or_default()),
            };
            match self.tell(question, out)? {
                Told::Now(output) => take(facts, output),
                Told::Later(question) if precondition == Precondition::None && blind => {
                    self.questions.insert(question, Why::Displaced);
                    facts.asked = Some(question);
                }
                Told::Later(question) => {
                    // Of two keys neither may be changed meanwhile.
                    let key = if other.is_some() { "" } else { key };
                    self.questions.insert(question, gate(key));
                    return later(key, Some(question));
                }
            }
        }
        Ok(Found::All)
    }

    /// A change is committed, and the answer waits for what it displaced.
    pub(crate) fn owe(&mut self, question: u64, seq: Seq, op: Op, waiters: Vec<u64>) {
        let owed = Owed { seq, op, waiters };
        self.head.owed.insert(question, owed);
    }

    /// Its reign is over: whoever waits for an answer only is told that the change is made, and not what it
    /// displaced; the auditor will find that.
    pub(crate) fn pay_without(&mut self, out: &mut Vec<Action>) {
        for Owed { seq, waiters, .. } in std::mem::take(&mut self.head.owed).into_values() {
            apply::committed(seq, None, waiters, out);
        }
    }

    fn pay(&mut self, question: u64, old: Option<Held>, out: &mut Vec<Action>) {
        let Some(old) = self.head.pending.settle(question, old) else {
            return;
        };
        if let Some(Owed { seq, op, waiters }) = self.head.owed.remove(&question) {
            let displaced = versions::displaced(&op, old, Vec::new());
            apply::committed(seq, displaced, waiters, out);
        }
    }

    /// Something that an index wanted done has happened.
    pub(crate) fn on_index(
        &mut self,
        now: Instant,
        lane: u32,
        event: IndexEvent,
        out: &mut Vec<Action>,
    ) {
        if lane == self.lane {
            return self.work_index(now, event, out);
        }
        if self
            .learning
            .as_ref()
            .is_some_and(|learning| learning.lane == lane)
        {
            return self.work_learning(now, event, out);
        }
        // An index that is no more: what it still wrote is of no use.
        if let IndexEvent::Written { result: Ok(at), .. } = event {
            let chunk = ashlar_layout::root::Chunk { at, grains: 1 };
            let action = IndexAction::Free {
                chunks: vec![chunk],
            };
            out.push(Action::Index { lane, action });
        }
    }

    /// There is time.
    pub(crate) fn on_turn(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.work_index(now, IndexEvent::Turn, out);
        self.work_learning(now, IndexEvent::Turn, out);
    }

    /// The device has room again.
    pub(crate) fn index_has_room(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.work_index(now, IndexEvent::Room, out);
        self.work_learning(now, IndexEvent::Room, out);
    }

    fn work_index(&mut self, now: Instant, event: IndexEvent, out: &mut Vec<Action>) {
        let mut wants = Vec::new();
        self.index.on_event(event, &mut self.shelf.0, &mut wants);
        self.heed(now, wants, out);
    }

    /// Does what the index wants.
    fn heed(&mut self, now: Instant, wants: Vec<IndexAction>, out: &mut Vec<Action>) {
        let lane = self.lane;
        for action in wants {
            match action {
                IndexAction::Done { question, result } => {
                    self.answered(now, question, result, out);
                }
                IndexAction::Damaged(_) => {
                    self.unsound = true;
                    out.push(Action::Index { lane, action });
                    self.make_way(now, out);
                }
                IndexAction::Rooted => self.forget(out),
                action => out.push(Action::Index { lane, action }),
            }
        }
        if let Some(error) = self.index.stopped() {
            let detail = format!("replica {} stopped: {error}", self.config.me);
            self.stop(Refusal::new(ErrorCode::PartitionUnavailable, detail), out);
        }
    }

    /// Its index is damaged, or lacks what its log cannot give: if another member can reign, it had better, and
    /// teach this one. Also before it is in office: it may never be, for want of an entry.
    pub(crate) fn make_way(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.role != Role::Head || self.stopped.is_some() || !self.unsound {
            return;
        }
        let lag = self.config.limits.learned_lag;
        let mut members = self.members_but_me().into_iter();
        let can = members.any(|member| {
            // One that wants to be taught itself is no better.
            self.is_up(member)
                && !self.head.asked.contains(&member)
                && self.progress(member).is_some_and(|progress| {
                    progress.sealed
                        && progress.known
                        && progress.matched.0 + lag >= self.committed.0
                })
        });
        if can {
            self.yield_to_others(now, "its index lacks something", out);
        }
    }

    fn answered(
        &mut self,
        now: Instant,
        question: u64,
        result: Result<Output, IndexError>,
        out: &mut Vec<Action>,
    ) {
        match self.questions.remove(&question) {
            None => {}
            Some(Why::Reader(reader)) => self.read_answered(reader, result, out),
            Some(Why::Gate { bucket, key }) => {
                let facts = result.map_err(|error| self.unreadable(&error));
                self.gate_answered(now, question, (&bucket, &key), facts, out);
            }
            Some(Why::Displaced) => {
                let mut facts = Facts::default();
                if let Ok(output) = result {
                    take(&mut facts, output);
                }
                let old = facts.object.flatten();
                self.pay(question, old, out);
            }
            Some(Why::Lesson(peer)) => self.lesson_items(now, peer, result, out),
            Some(Why::Recall {
                peer,
                name,
                version,
            }) => self.recall_answered(peer, name, version, result, out),
            Some(Why::Recalled {
                name,
                version,
                payload,
                since,
            }) if self.index.covered() <= since => {
                self.put_back(name, version, payload, result, out);
            }
            // What is written out meanwhile may be another version: whoever waits asks again.
            Some(Why::Recalled { .. }) => {}
        }
    }

    /// What the first one at a gate waited for is known: it goes on, and then all behind it.
    fn gate_answered(
        &mut self,
        now: Instant,
        question: u64,
        (bucket, key): (&str, &str),
        told: Result<Output, Refusal>,
        out: &mut Vec<Action>,
    ) {
        if !self.head.gates.awaits(bucket, key, question) {
            return;
        }
        let mut waiting = self.head.gates.open(bucket, key);
        if let Some(mut first) = waiting.pop_front() {
            match told {
                Ok(output) => {
                    take(&mut first.facts, output);
                    self.propose(now, first, out);
                }
                Err(refusal) => out.push(Action::Reply {
                    reply_to: first.asked.reply_to,
                    reply: ashlar_layout::message::Reply::Error(refusal.into()),
                }),
            }
        }
        for proposed in waiting {
            self.propose(now, proposed, out);
        }
    }

    /// Lets those go on who waited for nothing but others in front of them.
    pub(crate) fn open_gates(&mut self, now: Instant, out: &mut Vec<Action>) {
        loop {
            let Some((bucket, key)) = self.free_gate() else {
                return;
            };
            let waiting: Vec<Proposed> = self.head.gates.open(&bucket, &key).into();
            for proposed in waiting {
                self.propose(now, proposed, out);
            }
        }
    }

    fn free_gate(&self) -> Option<(String, String)> {
        let Head { gates, pending, .. } = &self.head;
        let mut free = gates.free_buckets();
        let free = free.find(|(bucket, op)| {
            !matches!(op, Op::DeleteBucket { .. }) || !pending.knows_any_object(bucket)
        });
        let free = free.map(|(bucket, _)| (bucket.to_owned(), String::new()));
        free.or_else(|| {
            let mut objects = gates.free_objects();
            let settled = objects.find(|(bucket, key)| !pending.knows_object(bucket, key));
            settled.map(|(bucket, key)| (bucket.to_owned(), key.to_owned()))
        })
    }

    /// Begins to write the index out, when there is enough to write.
    pub(crate) fn write_out(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.stopped.is_some() || self.role == Role::Replaying {
            return;
        }
        let much = self.unwritten >= self.config.limits.tail_bytes;
        // A full device gets room when what was deleted or overwritten is merged away.
        self.pressed |= self.full && self.unwritten >= self.config.limits.pressed_bytes;
        let pressed = self.pressed && self.frozen.is_empty();
        // Without any it could not tell, at its next start, a device that was always there from one that was not.
        let rootless = self.index.generation() == 0 && self.bare && !self.config.heir;
        // Nor is it to doubt once more what it got back.
        let whole = self.doubt_kept && self.log.doubt_of_tail().is_none();
        let anyway = (rootless || whole) && self.frozen.is_empty() && !self.index.is_writing_out();
        let wants = self.index.wants_freeze() || (much && self.frozen.is_empty()) || pressed;
        let wants = wants || anyway;
        // A log that was cut at a hole is shorter for a while than what had been applied of it.
        let known = self.log.term(self.applied).is_some();
        // What covers the entry of a split has to wait for the child, and is wanted then.
        let Some(split) = self.writes_out_for_split() else {
            return;
        };
        let wants = wants || split;
        let doubts = self.promise.doubtful;
        if !wants || !known || doubts || self.learning.as_ref().is_some_and(|it| it.takes_over()) {
            return;
        }
        let kept = self.kept_at(self.applied);
        let doubt = kept.doubt.is_some();
        let kept = Bytes::from(kept.encode());
        let mut wants = Vec::new();
        let frozen = match anyway {
            true => self.index.freeze_anyway(kept, &mut wants),
            false => self.index.freeze(kept, &mut wants),
        };
        if frozen {
            self.doubt_kept = doubt;
            self.unwritten = 0;
            let covered = self.index.covered();
            let last = self.frozen.back().map_or(covered, |last| last.covered);
            // What was put back is written out by itself: the root that covers the entries is an older one.
            if last < self.applied {
                self.frozen.push_back(Frozen {
                    covered: self.applied,
                    position: self.position,
                });
            }
            if std::mem::take(&mut self.pressed) {
                self.index.press();
            }
        }
        self.heed(now, wants, out);
    }

    /// What is kept beside the index when it is written out at `at`, the last entry that was applied.
    pub(crate) fn kept_at(&self, at: Seq) -> ReplicaState {
        let (chain_seq, chain) = self.log.chain_of(at);
        let (forgotten, clients) = self.dedup.save();
        debug_assert!(self.log.term(at).is_some(), "of which term is entry {at}?");
        ReplicaState {
            position: self.position,
            promised: self.term.max(self.promise.durable),
            term: self.log.term(at).unwrap_or_default(),
            doubt: self.log.doubt_of_tail(),
            chain_seq,
            config: chain.config,
            members: chain.members,
            forgotten,
            clients,
            bounds: self.bounds.clone(),
            renewed: self.renewed(),
        }
    }

    /// A root is durable: the log forgets what it covers, and is not needed by others soon.
    pub(crate) fn forget(&mut self, out: &mut Vec<Action>) {
        let covered = self.index.covered();
        while let Some(frozen) = self.frozen.front().filter(|it| it.covered <= covered) {
            self.rooted = self.rooted.max(frozen.position);
            self.frozen.pop_front();
        }
        let lessons = self.head.teaching.values().map(|teaching| teaching.at);
        // What comes behind the entry of a lesson that it takes itself, it needs then.
        let own = self.learning.as_ref().map(|learning| learning.at);
        let covered = own.map_or(covered, |at| at.min(covered));
        let limits = &self.config.limits;
        let (most, keep) = match lessons.min() {
            Some(at) if self.log.bytes() < limits.keep_bytes_max => (covered.min(at), 0),
            _ => (covered, limits.keep_bytes),
        };
        let to = self.log.dispensable(most, keep);
        if let Some(term) = self.log.term(to).filter(|_| to > self.log.base()) {
            let chain = self.log.chain_of(to);
            self.log.forget_to(to, term, chain);
            self.repairs.retain(|seq, _| *seq > to);
        }
        self.trim(out);
    }

    /// Says what of the journal is not needed any more.
    pub(crate) fn trim(&self, out: &mut Vec<Action>) {
        let mut pins = self.index.pins();
        if let Some(birth) = self.learning.as_ref().and_then(|it| it.birth_pins()) {
            pins.extend(birth);
            pins.sort_unstable();
            pins.dedup();
        }
        out.push(Action::Trim {
            through: self.log.base(),
            position: self.rooted,
            pins,
        });
    }
}

/// Adds what the index said.
fn take(facts: &mut Facts, output: Output) {
    match output {
        Output::Bucket(bucket) => facts.bucket = Some(bucket.is_some()),
        Output::Empty(empty) => facts.empty = Some(empty),
        Output::Objects(objects) => {
            let held = |found: Entry| Held {
                version: found.meta.version,
                manifest: found.meta.manifest,
                tag: found.meta.tag,
            };
            let mut objects = objects.into_iter().map(|found| found.map(held));
            facts.object = Some(objects.next().flatten());
            facts.versions = objects.collect();
        }
        _ => {}
    }
}
