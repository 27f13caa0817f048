//! A replica learns: it takes a snapshot in beside what it has, and changes over when that is durable.
//!
//! Invariants:
//! - what it has, its promise, its log and its index, stays what it is until the new index is durable: a crash
//!   in between loses the lesson and nothing else;
//! - a part is acknowledged when it is in the new index, the last one when all is durable;
//! - the two indexes never write roots at the same time: the old one's last is known before the new one's first,
//!   which has a higher number.

use std::collections::VecDeque;

use ashlar_cluster_index::{Action as IndexAction, Event as IndexEvent, Index, Item};
use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{ChainBody, ErrorCode, LessonContent};
use ashlar_layout::page::EntryKind;
use ashlar_layout::replica_state::{ItemRecord, Items, ReplicaState, STATE_MAX};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::bounds::Newborn;
use crate::chain::Chain;
use crate::indexing::Why;
use crate::pending::Refusal;
use crate::replica::{Replica, Role};
use crate::teach::{AWAY_LEASES, UNWANTED};

/// A lesson that is being taken.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Learning {
    /// By which name the driver knows the new index.
    pub(crate) lane: u32,
    /// Of which reign,
    term: Term,
    /// which lesson of it,
    lesson: u64,
    /// and at which entry it began.
    pub(crate) at: Seq,
    /// When the head spoke of it last.
    heard_at: Instant,
    /// Parts that are in the index.
    parts: u64,
    bytes: Vec<u8>,
    state: Option<ReplicaStateOf>,
    items: VecDeque<ItemRecord>,
    /// A part is being taken in.
    taking: bool,
    end: bool,
    index: Index,
    /// The new index is being made durable: from here on there is no way back.
    takes_over: bool,
    /// It is no lesson of a head, but what the partition begins with on this device.
    birth: bool,
    /// The driver wants to be told as if it were: it came with what the partition begins with too late.
    owes_birth: bool,
    position: u64,
    /// What its root says of the log's end.
    doubt: bool,
}

/// A state that can be told from another.
#[derive(Clone, Debug)]
struct ReplicaStateOf(ReplicaState);

impl std::hash::Hash for ReplicaStateOf {
    /// It is a function of the entries up to the lesson's.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.term.hash(state);
    }
}

impl Learning {
    /// One of which nothing has come yet.
    fn new(lane: u32, term: Term, now: Instant, at: Seq, index: Index) -> Learning {
        Learning {
            lane,
            term,
            lesson: 0,
            at,
            heard_at: now,
            parts: 0,
            bytes: Vec::new(),
            state: None,
            items: VecDeque::new(),
            taking: false,
            end: false,
            index,
            takes_over: false,
            birth: false,
            owes_birth: false,
            position: 0,
            doubt: false,
        }
    }

    pub(crate) fn wants_turn(&self) -> bool {
        self.index.wants_turn() || (!self.items.is_empty() && self.index.has_room())
    }

    pub(crate) fn rebase(&mut self, by: std::time::Duration) {
        self.heard_at = self.heard_at - by;
    }

    pub(crate) fn is_birth(&self) -> bool {
        self.birth
    }

    /// Whether it can be given up: not what the partition begins with, for it does not come again.
    fn is_given_up(&self) -> bool {
        !self.takes_over && !self.birth
    }

    pub(crate) fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// The extents that belong to what the partition begins with, if it is that.
    pub(crate) fn birth_pins(&self) -> Option<Vec<u32>> {
        self.birth.then(|| self.index.all_pins())
    }
}

impl Replica {
    /// The head sends a part of a lesson.
    pub(crate) fn on_lesson(
        &mut self,
        now: Instant,
        from: DeviceNo,
        body: ChainBody,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        let ChainBody::Lesson {
            at,
            lesson,
            part,
            content,
            end,
            stamp,
        } = body
        else {
            return;
        };
        if from != self.term.head() {
            return;
        }
        if !self.follower.sealed {
            return self.ask_for_seal(now, out);
        }
        self.head_heard(now);
        self.follower.stamp = self.follower.stamp.max(stamp);
        if self.learned == Some((self.term, lesson)) {
            // What said so was lost.
            return self.say_learned(lesson, part.saturating_add(1), out);
        }
        let same = |it: &Learning| it.lesson == lesson && it.term == self.term;
        if !self.learning.as_deref().is_some_and(same) {
            let first = part == 0 && content == LessonContent::State;
            if !first {
                // It knows nothing of this lesson (any more).
                return self.say_learned(lesson, 0, out);
            }
            let born = self.config.heir && !self.unsound && at <= self.applied;
            if at < self.log.base() || born {
                // It has more than that: what it said of it may be lost.
                self.follower.verified = self.follower.verified.max(at);
                self.acknowledge(true, out);
                return self.say_learned(lesson, UNWANTED, out);
            }
            if !self.begin_learning(now, lesson, at, out) {
                return;
            }
        }
        let Some(learning) = &mut self.learning else {
            return;
        };
        learning.heard_at = now;
        let next = part == learning.parts && !learning.taking && !learning.end;
        if content == LessonContent::Nothing || !next {
            let parts = learning.parts;
            return self.say_learned(lesson, parts, out);
        }
        learning.taking = true;
        learning.end = end;
        let taken = match content {
            LessonContent::State => {
                learning.bytes.extend_from_slice(&payload);
                learning.bytes.len() <= STATE_MAX && learning.state.is_none()
            }
            LessonContent::Items => learning.take_items(&payload),
            LessonContent::Nothing => true,
        };
        if !taken {
            // It is no lesson that a head gives: whatever comes is not taken.
            return self.stop_learning(out);
        }
        self.ingest(now, out);
    }

    fn say_learned(&self, lesson: u64, parts: u64, out: &mut Vec<Action>) {
        let stamp = self.follower.stamp;
        let body = ChainBody::Learned {
            lesson,
            parts,
            stamp,
        };
        self.send(self.term.head(), body, Bytes::new(), out);
    }

    /// Begins to learn; false if another lesson cannot be given up any more.
    fn begin_learning(
        &mut self,
        now: Instant,
        lesson: u64,
        at: Seq,
        out: &mut Vec<Action>,
    ) -> bool {
        self.stop_learning(out);
        if self.learning.is_some() {
            return false;
        }
        let Some(lane) = self.lanes.checked_add(1) else {
            return false;
        };
        let Some(index) = Index::learning(self.config.index.clone(), lane) else {
            let detail = format!(
                "replica {} stopped: it learned {} snapshots since its start; it is begun anew",
                self.config.me, self.lanes
            );
            self.stop(Refusal::new(ErrorCode::NotServing, detail), out);
            return false;
        };
        self.lanes = lane;
        let learning = Learning::new(lane, self.term, now, at, index);
        self.learning = Some(Box::new(Learning { lesson, ..learning }));
        true
    }

    /// What its parents had on this device is there: it begins with that, unless it has learned meanwhile.
    pub(crate) fn on_born(&mut self, now: Instant, newborn: Newborn, out: &mut Vec<Action>) {
        let Newborn {
            index,
            at,
            state,
            first,
        } = newborn;
        let learns = self.learning.as_ref().is_some_and(|it| it.takes_over);
        let lane = self.lanes.checked_add(1);
        let wanted = self.is_unborn() && self.role == Role::Follower && !learns;
        let index = match lane.filter(|_| wanted) {
            Some(lane) => index.beside(lane).map(|index| (index, lane)),
            None => Err(Box::new(index)),
        };
        let (index, lane) = match index {
            Ok(made) => made,
            Err(index) => {
                let (lane, chunks) = (self.lane, index.live());
                if !chunks.is_empty() {
                    let action = IndexAction::Free { chunks };
                    out.push(Action::Index { lane, action });
                }
                // What it learns is durable soon, and not before that may its parent do without.
                return match self.learning.as_mut().filter(|_| learns) {
                    Some(learning) => learning.owes_birth = true,
                    None => out.push(Action::Born),
                };
            }
        };
        self.stop_learning(out);
        self.lanes = lane;
        // Reigns of the parent come before its own.
        self.term = self.term.max(state.term);
        self.seen = self.seen.max(self.term);
        let learning = Learning::new(lane, self.term, now, at, index);
        self.learning = Some(Box::new(Learning {
            state: Some(ReplicaStateOf(state)),
            end: true,
            birth: true,
            ..learning
        }));
        if first && self.bare && !self.damaged {
            // Nothing of it was ever here: there is nothing to be asked, nor to be doubted.
            self.log.tail_is_whole();
            self.renewed = Seq(0);
            self.promise.doubtful = false;
            self.promise.told = None;
            self.stop_asking();
        }
        self.finish(now, out);
    }

    /// Gives a lesson up, if that can be done; what was written of it is free again.
    pub(crate) fn stop_learning(&mut self, out: &mut Vec<Action>) {
        let Some(learning) = self.learning.take_if(|learning| learning.is_given_up()) else {
            return;
        };
        self.index.write_again();
        let chunks = learning.index.live();
        if !chunks.is_empty() {
            let lane = learning.lane;
            let action = IndexAction::Free { chunks };
            out.push(Action::Index { lane, action });
        }
    }

    /// Something that the new index wanted done has happened.
    pub(crate) fn work_learning(&mut self, now: Instant, event: IndexEvent, out: &mut Vec<Action>) {
        let Some(learning) = &mut self.learning else {
            return;
        };
        let mut wants = Vec::new();
        learning
            .index
            .on_event(event, &mut self.shelf.0, &mut wants);
        let rooted = self.heed_learning(wants, out);
        if rooted {
            self.take_over(now, out);
        } else {
            self.ingest(now, out);
        }
    }

    /// Gives on what the new index wants; whether its root is durable.
    fn heed_learning(&mut self, wants: Vec<IndexAction>, out: &mut Vec<Action>) -> bool {
        let Some(learning) = &self.learning else {
            return false;
        };
        let lane = learning.lane;
        let mut rooted = false;
        for action in wants {
            match action {
                IndexAction::Rooted => rooted = learning.takes_over,
                IndexAction::Damaged(_) | IndexAction::Done { .. } => {}
                action => out.push(Action::Index { lane, action }),
            }
        }
        if let Some(error) = learning.index.stopped() {
            let detail = format!("replica {} stopped: {error}", self.config.me);
            self.stop(Refusal::new(ErrorCode::PartitionUnavailable, detail), out);
            return false;
        }
        rooted
    }

    /// Puts items into the new index, as many as it takes; and goes on when it has them all.
    fn ingest(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(learning) = &mut self.learning else {
            return;
        };
        let mut wants = Vec::new();
        let mut bad = false;
        let mut left = self.config.index.limits.step.max(1);
        // With nothing to take in, what is frozen next is the end of it: see `finish`.
        while left > 0 && !learning.items.is_empty() {
            if learning.index.wants_freeze() {
                learning.index.freeze(Bytes::new(), &mut wants);
            }
            if !learning.index.has_room() {
                break;
            }
            let Some(record) = learning.items.pop_front() else {
                break;
            };
            left -= 1;
            let ItemRecord {
                key,
                version,
                kind,
                value,
            } = record;
            let item = EntryKind::from_number(kind).map(|kind| Item {
                key,
                version,
                kind,
                value: Bytes::from(value),
            });
            let change = item.and_then(|item| item.change().ok());
            let taken = change.and_then(|change| learning.index.ingest(version, change).ok());
            bad |= taken.is_none();
        }
        self.heed_learning(wants, out);
        if bad {
            return self.stop_learning(out);
        }
        let Some(learning) = self.learning.as_mut().filter(|it| it.items.is_empty()) else {
            return;
        };
        if !std::mem::take(&mut learning.taking) {
            return self.finish(now, out);
        }
        learning.parts += u64::from(!learning.end);
        let (lesson, parts) = (learning.lesson, learning.parts);
        if learning.end {
            return self.finish(now, out);
        }
        self.say_learned(lesson, parts, out);
    }

    /// All is in the new index: once the old one writes no root any more, the new one is made durable.
    /// Not while it does not know what it promised, for that stands beside it.
    pub(crate) fn finish(&mut self, now: Instant, out: &mut Vec<Action>) {
        let ready = |it: &Learning| it.end && !it.taking && !it.takes_over && it.state.is_some();
        let follows = self.role == Role::Follower && !self.promise.doubtful;
        let ready = self.learning.as_deref().is_some_and(ready);
        if !follows || !ready || !self.index.retire_from_writing() {
            return;
        }
        let (position, promised) = (self.position, self.term.max(self.promise.durable));
        let generation = self.index.generation();
        let (doubt, renewed) = (self.doubt_behind(), self.renewed());
        let Some(learning) = &mut self.learning else {
            return;
        };
        let Some(ReplicaStateOf(state)) = &mut learning.state else {
            return;
        };
        state.position = position;
        state.promised = promised;
        state.doubt = doubt;
        learning.doubt = doubt.is_some();
        state.renewed = renewed;
        learning.position = position;
        learning.index.learned(learning.at, generation);
        let kept = Bytes::from(state.encode());
        let mut wants = Vec::new();
        learning.takes_over = learning.index.freeze(kept, &mut wants);
        if self.heed_learning(wants, out) {
            self.take_over(now, out);
        }
    }

    /// The new index is durable, and takes the old one's place.
    fn take_over(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(learning) = self.learning.take() else {
            return;
        };
        let Learning {
            lane,
            term,
            lesson,
            at,
            state,
            parts,
            index,
            position,
            birth,
            owes_birth,
            doubt,
            ..
        } = *learning;
        let Some(ReplicaStateOf(state)) = state else {
            return;
        };
        if self.role != Role::Follower {
            // It goes back to the lesson's entry, as no head can.
            self.step_down(now, "its index is replaced", out);
        }
        self.unmark(out);
        let (old_lane, old) = (self.lane, std::mem::replace(&mut self.index, index));
        self.lane = lane;
        for (_, why) in std::mem::take(&mut self.questions) {
            match why {
                Why::Reader(reader) => {
                    let detail = "its index was replaced meanwhile: ask again";
                    let result = Err(Refusal::new(ErrorCode::NotServing, detail).into());
                    let reply_to = reader.reply_to;
                    out.push(Action::Answer { reply_to, result });
                }
                Why::Recall {
                    peer,
                    name,
                    version,
                } => self.recalled(peer, name, version, None, out),
                _ => {}
            }
        }
        let chunks = old.live();
        if !chunks.is_empty() {
            let action = IndexAction::Free { chunks };
            out.push(Action::Index {
                lane: old_lane,
                action,
            });
        }
        self.join_log(at, &state);
        self.dedup = self.dedup.load(state.forgotten, state.clients);
        self.bounds = state.bounds;
        self.splitting = None;
        self.said_closed = false;
        self.applied = at;
        self.committed = self.committed.max(at);
        self.witness.learned(at);
        self.repairs.retain(|seq, _| *seq > at);
        self.frozen.clear();
        self.rooted = position;
        self.doubt_kept = doubt;
        self.unwritten = 0;
        self.unsound = false;
        self.applying = None;
        self.trim(out);
        if birth {
            self.is_born(now, at, out);
            return self.apply(now, out);
        }
        if owes_birth {
            out.push(Action::Born);
        }
        self.learned = Some((term, lesson));
        if self.role == Role::Follower && self.term == term {
            self.follower.verified = self.follower.verified.max(at);
            self.say_learned(lesson, parts + 1, out);
            self.follower.forget_acked();
            self.acknowledge(true, out);
        }
        self.apply(now, out);
    }

    /// What it begins with is durable: it takes part.
    fn is_born(&mut self, now: Instant, at: Seq, out: &mut Vec<Action>) {
        out.push(Action::Born);
        if self.follower.sealed {
            self.follower.verified = self.follower.verified.max(at);
            self.follower.forget_acked();
            return self.acknowledge(true, out);
        }
        // The first of the founders takes the first reign, as a rule.
        let first = self.log.chain().members.first() == Some(&self.config.me);
        if self.promise.lease_until.is_some() {
            return;
        }
        if first {
            self.on_over(now);
        } else {
            self.wait_before_suspicion(now);
        }
    }

    /// What may be lost behind the end of its log, once that goes on behind the lesson.
    fn doubt_behind(&self) -> Option<Term> {
        let at = self.learning.as_ref()?.at;
        let blind = self.log.last() > at && self.log.term(at).is_none();
        let lost = blind.then(|| self.log.last_term());
        self.log.doubt_of_tail().max(lost)
    }

    /// The log goes on behind the lesson.
    fn join_log(&mut self, at: Seq, state: &ReplicaState) {
        if self.log.last() > at && self.log.term(at) != Some(state.term) {
            // What is behind an entry that it cannot read may have been acknowledged, and belong elsewhere.
            let lost = self.log.term(at).is_none();
            let doubt = self.log.last_term();
            self.log.truncate(Seq(at.0 + 1));
            if lost {
                self.log.replay_damaged(None, doubt);
            }
        }
        let chain = Chain {
            config: state.config,
            members: state.members.clone(),
        };
        self.log.forget_to(at, state.term, (state.chain_seq, chain));
    }

    /// When it asks to be taught, if it needs that.
    pub(crate) fn teach_deadline(&self) -> Option<Instant> {
        let stale = self.stale_at().filter(|_| self.follows());
        let teach = self.needs_teaching().then_some(self.teach_at);
        teach.into_iter().chain(stale).min()
    }

    fn follows(&self) -> bool {
        self.role == Role::Follower && self.follower.sealed
    }

    fn needs_teaching(&self) -> bool {
        self.follows() && self.unsound && self.learning.is_none()
    }

    /// When the lesson that it takes is one that nobody gives any more, if nothing is heard of it.
    fn stale_at(&self) -> Option<Instant> {
        let learning = self.learning.as_ref().filter(|it| it.is_given_up())?;
        Some(learning.heard_at + self.config.limits.lease * AWAY_LEASES)
    }

    pub(crate) fn on_deadline_teach(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.follows() && self.stale_at().is_some_and(|at| at <= now) {
            self.stop_learning(out);
        }
        if self.needs_teaching() && self.teach_at <= now {
            self.teach_at = now + self.config.limits.resend;
            self.send(self.term.head(), ChainBody::Teach, Bytes::new(), out);
        }
    }
}

impl Learning {
    /// Items come; the state before them is whole then.
    fn take_items(&mut self, payload: &[u8]) -> bool {
        if self.state.is_none() {
            let Ok(state) = ReplicaState::decode(&self.bytes) else {
                return false;
            };
            self.bytes = Vec::new();
            self.state = Some(ReplicaStateOf(state));
        }
        match Items::decode(payload) {
            Ok(items) => {
                self.items = items.items.into();
                true
            }
            Err(_) => false,
        }
    }
}
