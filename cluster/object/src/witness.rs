//! Whether what was cached still holds, as f+1 replicas of the chain witness.
//!
//! A manifest was looked up at entry A of a chain composed as c. Any change of its key that is committed
//! later was received by n−f members before that, and so by one of any f+1 of them; a member that has
//! received it answers with an entry behind A, for an entry is counted before it is acknowledged. So when
//! f+1 *different* members of c say that they have received nothing behind A for the key's slot, no
//! change was committed before the first of them was asked: the manifest is what the head would have
//! given at that moment.
//!
//! Invariants:
//! - each member is asked once, and counts once;
//! - a member that does not say that it works with composition c counts for nothing: it may be restarted
//!   and not know what it received, or the chain may have changed;
//! - it ends when enough agree, when a member disproves it, or when too few are left; before that it says
//!   in time that it is late.

use std::sync::Arc;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::message::{Reply, Request};
use ashlar_layout::slot::slot_of;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::cache::Cached;
use crate::call::{Action, Answer, CallId, Calls, Event, Machine};
use crate::common::Common;
use crate::error::Fault;

/// So many hedges are waited for before the head is asked as well,
const PATIENCE: u32 = 4;
/// and so long at the least.
const PATIENCE_MIN: Duration = Duration::from_millis(20);

/// What the witnesses say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Current,
    /// It does not, or it cannot be told: the head decides.
    Unproven,
}

/// The state machine that asks witnesses.
#[derive(Debug)]
pub struct Witnesses {
    common: Arc<Common>,
    calls: Calls,
    partition: PartitionId,
    slot: u32,
    as_of: Seq,
    config: u64,
    /// In the order in which they are asked.
    members: Vec<DeviceNo>,
    asked: usize,
    need: usize,
    agreed: usize,
    open: Vec<(CallId, DeviceNo, Instant)>,
    hedge_at: Option<Instant>,
    over_at: Instant,
    late: bool,
    verdict: Option<Verdict>,
}

impl Witnesses {
    /// Asks the chain's members whether `cached` still holds, with calls of the number `lane`; `None`
    /// if nobody could say so: its members are not known, or they are not those of then.
    pub fn new(
        common: Arc<Common>,
        lane: u32,
        (bucket, key): (&str, &str),
        partition: PartitionId,
        cached: &Cached,
    ) -> Option<Witnesses> {
        // A composition on the way to the next has no witnesses.
        if cached.config.is_multiple_of(2) {
            return None;
        }
        let mut members = {
            let heads = common.heads();
            let (config, members) = heads.members(partition)?;
            (config == cached.config && !members.is_empty()).then(|| members.to_vec())?
        };
        // One more than half: a chain of an even number that grows commits on half of its old members.
        let need = members.len() / 2 + 1;
        #[cfg(test)]
        let need = need.saturating_sub(common.tuning().witnesses_short).max(1);
        let turn = common.witness_turn();
        common.health().rank(&mut members, turn);
        Some(Witnesses {
            common,
            calls: Calls::new(lane),
            partition,
            slot: slot_of(bucket, key),
            as_of: cached.as_of,
            config: cached.config,
            members,
            asked: 0,
            need,
            agreed: 0,
            open: Vec::new(),
            hedge_at: None,
            over_at: Instant(u64::MAX),
            late: false,
            verdict: None,
        })
    }

    /// What they say, once enough have said it.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// Whether the head is not to wait for them any longer. What they say yet counts all the same.
    pub fn is_late(&self) -> bool {
        self.late
    }

    fn ask_next(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(to) = self.members.get(self.asked).copied() else {
            return;
        };
        self.asked += 1;
        let call = self.calls.next();
        out.push(Action::Send {
            call,
            to,
            request: Request::Witness {
                partition: self.partition,
                slot: self.slot,
            },
            payload: Bytes::new(),
            payload_crc: Some(0),
        });
        self.open.push((call, to, now));
    }

    /// Asks as many as it takes, if there are so many.
    fn fill(&mut self, now: Instant, out: &mut Vec<Action>) {
        while self.agreed + self.open.len() < self.need && self.asked < self.members.len() {
            self.ask_next(now, out);
        }
        if self.agreed >= self.need {
            self.verdict = Some(Verdict::Current);
        } else if self.agreed + self.open.len() < self.need {
            self.verdict = Some(Verdict::Unproven);
        }
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer, out: &mut Vec<Action>) {
        let Some(at) = self.open.iter().position(|(c, ..)| *c == call) else {
            return;
        };
        let (_, from, sent) = self.open.swap_remove(at);
        match answer {
            Answer::Reply {
                reply: Reply::Witness { config, highest },
                ..
            } => {
                self.common.health().witnessed(from, now.since(sent));
                match config {
                    Some(config) if config == self.config && highest <= self.as_of => {
                        self.agreed += 1;
                    }
                    Some(config) if config >= self.config => {
                        // Another composition: the head is asked for its members as well.
                        self.common.heads().works_with(self.partition, config);
                        self.verdict = Some(Verdict::Unproven);
                        return;
                    }
                    // It does not know, or lags behind the others.
                    _ => {}
                }
            }
            Answer::NotSent { detail } | Answer::Lost { detail } => {
                let fault = Fault::Away(detail);
                self.common.health().failed(now, from, &fault);
            }
            Answer::Reply { .. } => {}
        }
        self.fill(now, out);
    }
}

impl Machine for Witnesses {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        if self.verdict.is_some() {
            return;
        }
        match event {
            Event::Start => {
                let hedge = self.common.health().hedge_witness();
                self.hedge_at = Some(now + hedge);
                self.over_at = now + (hedge * PATIENCE).max(PATIENCE_MIN);
                self.fill(now, out);
            }
            Event::Answer { call, answer } => self.on_answer(now, call, answer, out),
            Event::Deadline => {
                if now >= self.over_at {
                    self.late = true;
                }
                if self.hedge_at.is_some_and(|at| at <= now) {
                    self.hedge_at = None;
                    for (_, late, sent) in &self.open {
                        let waited = now.since(*sent);
                        self.common.health().witness_late(*late, waited);
                    }
                    // One for each that is late.
                    for _ in 0..self.open.len() {
                        self.ask_next(now, out);
                    }
                }
            }
            Event::Abort => self.verdict = Some(Verdict::Unproven),
            Event::Inline(_) | Event::Stripe(_) | Event::End => {}
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.verdict.is_some() || self.late {
            return None;
        }
        Some(
            self.hedge_at
                .map_or(self.over_at, |at| at.min(self.over_at)),
        )
    }

    fn is_answered(&self) -> bool {
        self.verdict.is_some()
    }

    fn is_settled(&self) -> bool {
        self.verdict.is_some()
    }
}
