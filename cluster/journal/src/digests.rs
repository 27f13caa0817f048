//! What the replicas of a partition are compared by: digests of their indexes as these were at one entry.
//!
//! The log is the same for all, so all have the same map behind each of its entries. Whoever compares them names an
//! entry that is about to come: each replica keeps its index's state when it has applied that one, and makes digests of
//! it as they are asked for, a stretch at a time.
//!
//! Invariants:
//! - a digest is of the map behind exactly the entry that was asked for, within the bounds that the partition had
//!   there; a replica that is not that far, is past it and kept nothing, learns, or begins anew, says that it has none;
//! - one state is kept at a time, and for a while only, however often it is asked for: what is superseded keeps its
//!   space so long. Another entry that is asked for takes its place. It is given up when what went to a child is
//!   hidden, and when another index takes this one's place;
//! - it does not matter who reigns, nor whether anybody does: what was applied is committed.

use std::time::Duration;

use ashlar_cluster_index::{Range, Snapshot, Stretch};
use ashlar_layout::digest::DIGEST_ENTRIES_MAX;
use ashlar_layout::ids::Seq;
use ashlar_layout::message::ErrorCode;
use ashlar_layout::replica_state::Bounds;
use ashlar_layout::time::Instant;

use crate::api::{Action, Answer, Ask};
use crate::bounds::carried;
use crate::indexing::Why;
use crate::pending::Refusal;
use crate::replica::{Replica, Role};

/// A state that digests are made of, or will be.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Marked {
    /// Behind which entry.
    at: Seq,
    /// It, and the bounds there; none: the entry is still to be applied.
    kept: Option<(Snapshot, Bounds)>,
    /// Who waits for it, and since when.
    waiting: Vec<(u64, Ask, Instant)>,
    /// When it was asked for first,
    since: Instant,
    /// and last.
    asked: Instant,
}

impl Marked {
    pub(crate) fn rebase(&mut self, by: Duration) {
        self.since = self.since - by;
        self.asked = self.asked - by;
        for (_, _, since) in &mut self.waiting {
            *since = *since - by;
        }
    }
}

impl Replica {
    /// Somebody wants a digest.
    pub(crate) fn on_digest(
        &mut self,
        now: Instant,
        reply_to: u64,
        ask: Ask,
        out: &mut Vec<Action>,
    ) {
        let Ask::Digest { at, .. } = ask else {
            return self.no_digest(reply_to, out);
        };
        if let Err(refusal) = self.check_digest() {
            let result = Err(refusal.into());
            return out.push(Action::Answer { reply_to, result });
        }
        let marked = self.marked.as_ref();
        if marked.is_none_or(|marked| marked.at != at) {
            // What is past cannot be had any more, and one that others wait for is not given up for an older one.
            let awaited = |it: &Marked| at < it.at && !it.waiting.is_empty();
            if at < self.applied || marked.is_some_and(awaited) {
                return self.no_digest(reply_to, out);
            }
            self.unmark(out);
            self.marked = Some(Marked {
                at,
                kept: None,
                waiting: Vec::new(),
                since: now,
                asked: now,
            });
            self.mark(self.applied);
        }
        if let Some(marked) = &mut self.marked {
            marked.asked = now;
            if marked.kept.is_none() && self.applied < at {
                return marked.waiting.push((reply_to, ask, now));
            }
        }
        let reader = self.reader(reply_to, ask);
        self.read(reader, out);
    }

    /// Whether it can say anything of itself, and is not asked too much.
    fn check_digest(&self) -> Result<(), Refusal> {
        let partition = self.config.partition;
        let why = if self.role == Role::Replaying || self.has_nothing() {
            "has not come to what it had"
        } else if self.learning.is_some() || self.unsound {
            "is learning"
        } else if self.is_closed() {
            "is closed"
        } else {
            let asked = |why: &&Why| matches!(why, Why::Reader(reader) if reader.wants_digest());
            let asked = self.questions.values().filter(asked).count();
            let waiting = self.marked.as_ref().map_or(0, |it| it.waiting.len());
            if asked + waiting < self.config.limits.digests {
                return Ok(());
            }
            return Err(self.busy("digests"));
        };
        let detail = format!("partition {partition}: this replica {why}: it is not compared now");
        Err(Refusal::new(ErrorCode::NotServing, detail))
    }

    /// It has none.
    pub(crate) fn no_digest(&self, reply_to: u64, out: &mut Vec<Action>) {
        let result = Ok(Answer::Digest {
            applied: self.applied,
            digest: None,
        });
        out.push(Action::Answer { reply_to, result });
    }

    /// Entry `seq` is the last one that is in the index: keeps this state, if it is the one that is wanted.
    pub(crate) fn mark(&mut self, seq: Seq) {
        let Some(marked) = self.marked.as_mut() else {
            return;
        };
        if marked.at != seq || marked.kept.is_some() {
            return;
        }
        let Some(snapshot) = self.index.snapshot() else {
            return;
        };
        if snapshot.seq() == seq {
            marked.kept = Some((snapshot, self.bounds.clone()));
        } else {
            self.index.release(snapshot);
        }
    }

    /// What is to be asked of the index, and of which state.
    pub(crate) fn stretch(&self, at: Seq, after: &[u8], max: u32) -> Option<(Snapshot, Stretch)> {
        let marked = self.marked.as_ref().filter(|marked| marked.at == at)?;
        let (snapshot, bounds) = marked.kept.as_ref()?;
        let range = Range {
            from: bounds.from.clone(),
            to: bounds.to.clone(),
        };
        let stretch = Stretch {
            carry: carried(range.from.as_ref()),
            range,
            after: after.to_vec(),
            max: max.min(DIGEST_ENTRIES_MAX),
        };
        Some((*snapshot, stretch))
    }

    /// Answers those who wait for an entry that is applied now.
    pub(crate) fn tell_marked(&mut self, now: Instant, out: &mut Vec<Action>) {
        let applied = self.applied;
        let Some(marked) = self.marked.as_mut().filter(|it| it.at <= applied) else {
            return;
        };
        if marked.waiting.is_empty() {
            return;
        }
        marked.asked = now;
        for (reply_to, ask, _) in std::mem::take(&mut marked.waiting) {
            let reader = self.reader(reply_to, ask);
            self.read(reader, out);
        }
    }

    /// Gives the state up, whoever waits for it.
    pub(crate) fn unmark(&mut self, out: &mut Vec<Action>) {
        let Some(marked) = self.marked.take() else {
            return;
        };
        if let Some((snapshot, _)) = marked.kept {
            self.index.release(snapshot);
        }
        for (reply_to, ..) in marked.waiting {
            self.no_digest(reply_to, out);
        }
    }

    pub(crate) fn marked_deadline(&self) -> Option<Instant> {
        let limits = &self.config.limits;
        let marked = self.marked.as_ref()?;
        let waiting = marked.waiting.iter().map(|(_, _, since)| *since);
        let waiting = waiting.map(|since| since + limits.digest_wait);
        let over = [
            marked.asked + limits.digest_keep,
            marked.since + limits.digest_most,
        ];
        waiting.chain(over).min()
    }

    pub(crate) fn on_deadline_marked(&mut self, now: Instant, out: &mut Vec<Action>) {
        let limits = &self.config.limits;
        let (wait, keep) = (limits.digest_wait, limits.digest_keep);
        let Some(marked) = &mut self.marked else {
            return;
        };
        if marked.asked + keep <= now || marked.since + limits.digest_most <= now {
            return self.unmark(out);
        }
        let late = |(_, _, since): &(u64, Ask, Instant)| *since + wait <= now;
        let late = marked.waiting.extract_if(.., |it| late(it));
        for (reply_to, ..) in late.collect::<Vec<_>>() {
            self.no_digest(reply_to, out);
        }
    }
}
