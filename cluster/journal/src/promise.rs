//! Promises: which reigns a replica takes part in, across restarts.
//!
//! Invariants:
//! - `term` is the newest reign that this replica promised itself to. It never falls. Nothing of an
//!   older reign is taken, acknowledged or given from the moment that the promise is made; nothing of
//!   the promised one before the promise is durable;
//! - one promise at a time is on its way to the device; what was promised meanwhile follows;
//! - a replica that heard its head promises nobody else for a whole lease after that, and after a
//!   restart, since it may have heard its head just before. The head that it is promised to may have
//!   a new promise at once: it knows that its older reign is over;
//! - a replica whose device may have lost a promise promises nothing, and wants no reign, until every
//!   other member has told what it promised: whoever got the lost promise had made it to itself first. Who is
//!   a member it is told as well: all members of a composition together know of the next one;
//! - a bare one need not wait for all members if it is none: then a quorum of them tells what was promised. But what
//!   it lost may have been all that told an older composition of that one, so its log counts for as little.

use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{ChainBody, ErrorCode};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::chain::Chain;
use crate::entry;
use crate::follower::{Follower, HOLES_MAX};
use crate::head::Head;
use crate::mutants::mutant;
use crate::pending::Refusal;
use crate::replica::{Replica, Role, Write};

/// See the module. The promised reign itself is [`Replica::term`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Promise {
    /// What the device holds.
    pub(crate) durable: Term,
    /// What is on its way there.
    pub(crate) writing: Option<Term>,
    /// The device may have lost a promise.
    pub(crate) doubtful: bool,
    /// The newest composition of which it was told in that doubt: its own log may be older.
    pub(crate) told: Option<Chain>,
    /// Until when nobody else is promised anything.
    pub(crate) lease_until: Option<Instant>,
}

/// At least one, while there is any.
fn micros(left: Duration) -> u64 {
    u64::try_from(left.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}

impl Replica {
    /// Replay found a promise.
    pub(crate) fn replay_promise(&mut self, term: Term) {
        if mutant!(self, PromiseForgotten) {
            return;
        }
        self.promise.durable = self.promise.durable.max(term);
        // Whatever was lost before this was no newer.
        if std::mem::take(&mut self.promise.doubtful) {
            self.log.lost_up_to(term);
        }
    }

    /// Promises itself to a reign, or takes it.
    pub(crate) fn promise(&mut self, now: Instant, term: Term, out: &mut Vec<Action>) {
        debug_assert!(term > self.term, "a promise is broken");
        self.term = term;
        self.seen = self.seen.max(term);
        self.follower = Follower::default();
        self.stop_learning(out);
        self.stop_asking();
        self.promise.lease_until = (term.head() != self.config.me).then_some(self.leased(now));
        self.write_promise(out);
    }

    fn write_promise(&mut self, out: &mut Vec<Action>) {
        let term = self.term;
        if self.promise.writing.is_some() || self.promise.durable >= term {
            return;
        }
        let bytes = match entry::promise(term) {
            Ok(bytes) => bytes,
            Err(error) => {
                let detail = format!("replica {} stopped: {error}", self.config.me);
                return self.stop(Refusal::new(ErrorCode::Internal, detail), out);
            }
        };
        self.promise.writing = Some(term);
        let token = self.token();
        self.writes.insert(
            token,
            Write {
                first: Seq(0),
                entries: Vec::new(),
                copy: false,
            },
        );
        out.push(Action::Persist {
            token,
            first: Seq(0),
            last: Seq(0),
            entries: bytes,
        });
    }

    /// The promise that was on its way is durable.
    pub(crate) fn promised(&mut self, now: Instant, out: &mut Vec<Action>) {
        let written = self.promise.writing.take().unwrap_or_default();
        self.promise.durable = self.promise.durable.max(written);
        if self.promise.durable < self.term {
            return self.write_promise(out);
        }
        match self.role {
            Role::Follower if self.term.head() != self.config.me => {
                self.promise.lease_until = Some(self.leased(now));
                self.say_sealed(out);
            }
            Role::Starting => self.promised_to_itself(now, out),
            _ => {}
        }
    }

    /// Until when what is heard now binds.
    pub(crate) fn leased(&self, now: Instant) -> Instant {
        now + self.config.limits.lease
    }

    /// Somebody wants to be the head, or is and finds this replica again.
    pub(crate) fn on_seal(
        &mut self,
        now: Instant,
        from: DeviceNo,
        term: Term,
        out: &mut Vec<Action>,
    ) {
        if term.head() != from {
            return;
        }
        if self.promise.doubtful {
            return self.refuse(now, from, out);
        }
        if term == self.term {
            if self.role == Role::Follower && self.promise.durable >= term {
                self.promise.lease_until = Some(self.leased(now));
                self.say_sealed(out);
            } else {
                // Known by an entry of that reign, if the promise itself was lost.
                self.write_promise(out);
            }
            return;
        }
        let bound = term.head() != self.term.head() && self.lease_left_us(now) > 0;
        if term < self.term || bound {
            return self.refuse(now, from, out);
        }
        self.step_down(now, "another replica takes the head's place", out);
        if self.stopped.is_none() {
            self.promise(now, term, out);
        }
    }

    /// The promise is durable: what this replica holds.
    fn say_sealed(&mut self, out: &mut Vec<Action>) {
        self.follower.sealed = true;
        self.follower.forget_acked();
        let (last, last_term, mut holes) = self.log.durable_tail(HOLES_MAX);
        if self.log.tail_damaged() && !mutant!(self, CountDamagedTail) {
            // What may have been behind the last entry cannot be told.
            holes.push((Seq(last.0 + 1), Seq(u64::MAX)));
        }
        let body = ChainBody::Sealed {
            last,
            last_term,
            holes,
            base: self.log.base(),
            base_term: self.log.base_term(),
        };
        self.send(self.term.head(), body, Bytes::new(), out);
    }

    /// What is left of its lease, in microseconds.
    pub(crate) fn lease_left_us(&self, now: Instant) -> u64 {
        match self.role {
            Role::Head if self.serving(now) => micros(self.config.limits.lease),
            Role::Head | Role::Starting => 0,
            _ => self
                .promise
                .lease_until
                .map_or(0, |until| micros(until.since(now))),
        }
    }

    /// Says how it stands: which reign it is promised to, and for how long it promises nobody else.
    pub(crate) fn refuse(&self, now: Instant, to: DeviceNo, out: &mut Vec<Action>) {
        if to == self.config.me {
            // What it had ordered itself comes round, from a reign that it gave up.
            return;
        }
        // Who asks while this one tries to become the head itself had better wait: promises would be given,
        // but two that try at once are in each other's way.
        let trying = match self.role {
            _ if self.promise.writing.is_some() => self.config.limits.lease,
            Role::Starting => self.leased(self.starting.since).since(now),
            _ => Duration::ZERO,
        };
        // One that is yet to be made of others goes by what the map said when it was begun.
        let guesses = self.has_nothing();
        let body = ChainBody::Refused {
            promised: self.term,
            lease_us: self.lease_left_us(now).max(micros(trying)),
            config: if guesses { 0 } else { self.log.chain().config },
            members: self.log.chain().members.clone(),
        };
        self.send(to, body, Bytes::new(), out);
    }

    pub(crate) fn on_refused(
        &mut self,
        now: Instant,
        from: DeviceNo,
        (promised, lease_us): (Term, u64),
        chain: Chain,
        out: &mut Vec<Action>,
    ) {
        self.seen = self.seen.max(promised);
        let counts_me = chain.contains(self.config.me) || chain.config == 0;
        self.told_of(chain, out);
        self.on_answer(now, from, (promised, lease_us), counts_me, out);
        if !matches!(self.role, Role::Head | Role::Starting) {
            return;
        }
        if promised <= self.term {
            // It does not know this reign (any more), or may not promise it yet.
            self.seal_later(now, from, lease_us, out);
        } else if self.log.chain().contains(from) || self.wants(from) {
            self.step_down(now, "another replica took the head's place", out);
        } else if self.role == Role::Head {
            self.head.leaving.remove(&from);
            self.enroll(now, out);
        }
    }

    /// Others are in a better place to reign: it gives up, and lets them try first.
    pub(crate) fn yield_to_others(&mut self, now: Instant, why: &str, out: &mut Vec<Action>) {
        self.step_down(now, why, out);
        self.wait_long_before_suspicion(now);
    }

    /// A head whose process is about to end hands over, once nothing waits for it.
    pub(crate) fn leave(&mut self, now: Instant, out: &mut Vec<Action>) {
        let alone = self.members_but_me().is_empty();
        if !self.leaves || alone || self.stopped.is_some() {
            return;
        }
        let Head {
            pending,
            gates,
            owed,
            ..
        } = &self.head;
        match self.role {
            Role::Starting => self.step_down(now, "its process is about to end", out),
            Role::Head if pending.len() + gates.len() + owed.len() == 0 => {
                self.hand_over(now, "its process is about to end", out);
            }
            _ => {}
        }
    }

    /// Ends its reign so that another can begin at once.
    pub(crate) fn hand_over(&mut self, now: Instant, why: &str, out: &mut Vec<Action>) {
        self.announce(now, out);
        let watched: Vec<DeviceNo> = self.head.progress.keys().copied().collect();
        self.yield_to_others(now, why, out);
        if self.stopped.is_some() {
            return;
        }
        // Only now: it serves no more.
        for peer in watched {
            self.send(peer, ChainBody::Over, Bytes::new(), out);
        }
    }

    /// Its reign is over, or its wish for one.
    pub(crate) fn step_down(&mut self, now: Instant, why: &str, out: &mut Vec<Action>) {
        if !matches!(self.role, Role::Head | Role::Starting) {
            return;
        }
        if self.head.stuck {
            let detail = format!(
                "replica {} stopped: its device had no room for the journal, and {why}",
                self.config.me
            );
            return self.stop(Refusal::new(ErrorCode::PartitionUnavailable, detail), out);
        }
        self.stop_all_teaching();
        self.abandon_pending(why, out);
        self.role = Role::Follower;
        self.head = crate::head::Head::default();
        self.starting = crate::start::Starting::default();
        self.follower = Follower::default();
        self.wait_before_suspicion(now);
    }
}
