//! Suspicion: when a follower wants to be the head, and asks whether it may.
//!
//! Invariants:
//! - only a member of the newest composition that it knows wants a reign, and only when its own lease is over;
//! - before it makes a promise to itself, which would end the present reign, it asks the others how
//!   they stand: while so many are under a lease that it could not succeed, it disturbs nobody;
//! - a reign's number is above all that this replica promised, made or heard of.
//!
//! The question is a `Fetch` of entry 0, which nobody has, in term 0; the answer is `Refused`.

use std::collections::BTreeMap;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::ChainBody;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::chain::Chain;
use crate::membership::MEMBERS_MAX;
use crate::replica::{Replica, Role};

/// So many times in a row one in doubt waits twice as long before it asks again.
const DOUBT_TRIES: u32 = 5;

/// What a member said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Answer {
    promised: Term,
    /// Until when it promises nobody anything, if it is under a lease.
    leased_until: Option<Instant>,
    /// Who asks is a member, as far as it knows.
    counts_me: bool,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Election {
    /// Not before this time.
    not_before: Instant,
    /// Since when the others are being asked.
    pub(crate) asked_at: Option<Instant>,
    answers: BTreeMap<DeviceNo, Answer>,
    /// Questions in vain: seasons the jitter.
    tries: u32,
}

impl Election {
    pub(crate) fn rebase(&mut self, by: Duration) {
        self.not_before = self.not_before - by;
        self.asked_at = self.asked_at.map(|at| at - by);
        for answer in self.answers.values_mut() {
            answer.leased_until = answer.leased_until.map(|at| at - by);
        }
    }
}

impl Replica {
    /// Replay is over: it follows, until it hears nothing of a head.
    pub(crate) fn start(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.role != Role::Replaying {
            return;
        }
        self.damaged = self.promise.doubtful;
        self.promise.doubtful |= self.blank || self.bare;
        if self.blank {
            self.log.replay_damaged(None, self.promise.durable);
        }
        self.log.replay_ends(self.promise.durable);
        self.role = Role::Follower;
        self.trim(out);
        self.term = self.promise.durable.max(self.log.last_term());
        self.seen = self.term;
        let me = self.config.me;
        let mut wait = Duration::ZERO;
        if self.term != Term(0) || self.promise.doubtful {
            // With nothing at all it heard nobody: if it forgot that, it is told whom, and bound, before it counts.
            let unbound = self.bare && self.term == Term(0);
            if (self.term.head() != me || self.promise.doubtful) && !unbound {
                self.promise.lease_until = Some(self.leased(now));
            }
        } else if self.log.chain().members.first() != Some(&me) {
            wait = self.config.limits.first_reign;
        }
        self.election.not_before = now + wait;
        self.on_deadline_election(now, out);
    }

    pub(crate) fn wait_before_suspicion(&mut self, now: Instant) {
        self.election = Election {
            not_before: self.leased(now),
            ..Election::default()
        };
    }

    /// The head gave its reign up: nothing that it said binds any more.
    pub(crate) fn on_over(&mut self, now: Instant) {
        self.promise.lease_until = None;
        self.stop_asking();
        self.election.not_before = now;
    }

    /// Long enough for everybody else to have tried.
    pub(crate) fn wait_long_before_suspicion(&mut self, now: Instant) {
        self.election.not_before = now + self.config.limits.lease * 4;
    }

    /// The head was heard.
    pub(crate) fn head_heard(&mut self, now: Instant) {
        self.promise.lease_until = Some(self.leased(now));
        self.stop_asking();
    }

    pub(crate) fn stop_asking(&mut self) {
        self.election.asked_at = None;
        self.election.answers.clear();
        self.election.not_before = Instant::default();
        self.election.tries = 0;
    }

    /// When the head is suspected if nothing is heard of it, or the others are asked again.
    pub(crate) fn election_deadline(&self) -> Option<Instant> {
        let limits = &self.config.limits;
        let member = self.log.chain().contains(self.config.me);
        if self.role != Role::Follower
            || self.leaves
            || self
                .learning
                .as_ref()
                .is_some_and(|learning| learning.takes_over())
            || self.promise.writing.is_some()
            || (self.has_nothing() && !self.promise.doubtful)
            || !(member || self.promise.doubtful)
        {
            return None;
        }
        if let Some(asked_at) = self.election.asked_at {
            let answers = self.election.answers.values();
            let leased = answers.filter_map(|answer| answer.leased_until);
            let free_at = leased.filter(|_| !self.promise.doubtful).min();
            let free_at = free_at.map(|at| at + Duration::from_micros(1));
            return free_at.into_iter().chain([asked_at + limits.stagger]).min();
        }
        let base = self.promise.lease_until.unwrap_or_default();
        if self.promise.doubtful {
            // Nobody is disturbed by that.
            return Some(base.max(self.election.not_before));
        }
        let rank = self.log.chain().rank(self.term.head(), self.config.me);
        let behind = u32::try_from(rank.saturating_sub(1)).unwrap_or(u32::MAX);
        let later = limits.stagger.saturating_mul(behind) + self.jitter(behind);
        Some(base.max(self.election.not_before) + later)
    }

    /// Up to half a stagger, for all but the first in line at their first tries.
    fn jitter(&self, behind: u32) -> Duration {
        if behind == 0 && self.election.tries < 3 {
            return Duration::ZERO;
        }
        let mut mixed = self.config.seed ^ self.term.0.rotate_left(17);
        mixed = (mixed ^ u64::from(self.election.tries)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let part = u32::try_from((mixed >> 32) % 1024).unwrap_or(0);
        self.config.limits.stagger * part / 2048
    }

    pub(crate) fn on_deadline_election(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.election_deadline().is_none_or(|at| at > now) {
            return;
        }
        if self.election.asked_at.is_some() {
            self.asked_in_vain(now);
            if self.election_deadline().is_none_or(|at| at > now) {
                return;
            }
        }
        self.election.asked_at = Some(now);
        self.election.answers.clear();
        for peer in self.others_to_ask() {
            self.ask_how_it_stands(peer, out);
        }
        self.weigh(now, out);
    }

    fn ask_how_it_stands(&self, peer: DeviceNo, out: &mut Vec<Action>) {
        let (first, last) = (Seq(0), Seq(0));
        let body = ChainBody::Fetch { first, last };
        self.send_as(Term(0), peer, body, Bytes::new(), out);
    }

    /// Somebody can be reached whom it would have asked.
    pub(crate) fn ask_too(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        if !self.promise.doubtful || !self.others_to_ask().contains(&peer) {
            return;
        }
        if self.election.asked_at.is_some() {
            return self.ask_how_it_stands(peer, out);
        }
        self.election.not_before = now;
        self.on_deadline_election(now, out);
    }

    /// Somebody asks how this replica stands.
    pub(crate) fn on_question(&mut self, now: Instant, from: DeviceNo, out: &mut Vec<Action>) {
        self.refuse(now, from, out);
        let chain_seq = self.log.chain_seq();
        let settled = self.log.chain().settled() && chain_seq <= self.committed;
        if self.in_office() && settled && !self.log.chain().contains(from) {
            // It does not know that it was left out.
            self.head.leaving.insert(from);
            self.enroll(now, out);
        }
    }

    /// Members; and if it does not know what it promised, those of the newest composition that it was told of,
    /// and those that are to be members as well.
    fn others_to_ask(&self) -> Vec<DeviceNo> {
        if !self.promise.doubtful {
            return self.members_but_me();
        }
        let me = self.config.me;
        let chain = self.promise.told.as_ref().unwrap_or(self.log.chain());
        let mut others = Vec::new();
        for peer in chain.members.iter().chain(&self.desired) {
            if *peer != me && !others.contains(peer) {
                others.push(*peer);
            }
        }
        others
    }

    /// While it is in doubt: another composition, by which it has to ask.
    pub(crate) fn told_of(&mut self, chain: Chain, out: &mut Vec<Action>) {
        // What one that has nothing goes by is a guess.
        let own = self.log.chain().config * u64::from(!self.has_nothing());
        let told = self.promise.told.as_ref().map_or(own, |told| told.config);
        let newer = self.promise.doubtful && chain.config > told;
        // A union has one more. Nobody works with what has none, and what is kept has a bound.
        if newer && (1..=MEMBERS_MAX + 1).contains(&chain.members.len()) {
            self.promise.told = Some(chain);
            if self.election.asked_at.is_some() {
                for peer in self.others_to_ask() {
                    if !self.election.answers.contains_key(&peer) {
                        self.ask_how_it_stands(peer, out);
                    }
                }
            }
        }
    }

    /// Not enough answers, or not the ones that are needed.
    fn asked_in_vain(&mut self, now: Instant) {
        let election = &mut self.election;
        election.asked_at = None;
        election.tries = election.tries.saturating_add(1);
        let leased = election
            .answers
            .values()
            .filter_map(|answer| answer.leased_until);
        let soonest = leased.filter(|at| *at > now).min();
        election.not_before = soonest.unwrap_or(now) + Duration::from_micros(1);
        if self.promise.doubtful {
            // Somebody may be away for long. Nor is what was told for ever: it may have come to nothing.
            let times = 1 << election.tries.min(DOUBT_TRIES);
            election.not_before = now + self.config.limits.stagger / 2 * times;
            self.promise.told = None;
        }
    }

    pub(crate) fn on_answer(
        &mut self,
        now: Instant,
        from: DeviceNo,
        (promised, lease_us): (Term, u64),
        counts_me: bool,
        out: &mut Vec<Action>,
    ) {
        if self.role != Role::Follower || self.election.asked_at.is_none() {
            return;
        }
        let lease = self
            .config
            .limits
            .lease
            .min(Duration::from_micros(lease_us));
        let answer = Answer {
            promised,
            leased_until: (lease_us > 0).then_some(now + lease),
            counts_me,
        };
        self.election.answers.insert(from, answer);
        self.weigh(now, out);
    }

    /// Decides by the answers that there are.
    fn weigh(&mut self, now: Instant, out: &mut Vec<Action>) {
        let answers = &self.election.answers;
        let others = self.others_to_ask();
        // What the map wants is no part of a replica's own state: one that has none has to be told.
        let knows = !(self.blank || self.bare) || !self.desired.is_empty();
        let knows = knows || !self.promise.doubtful;
        let all = knows && others.iter().all(|other| answers.contains_key(other));
        if self.promise.doubtful {
            let stranger = self.is_stranger();
            if all || stranger {
                self.doubt_ends(now, stranger, out);
            }
            return;
        }
        if self.has_nothing() {
            return self.stop_asking();
        }
        let members = self.members_but_me();
        let free = members.iter().filter(|member| {
            let answer = answers.get(member);
            answer.is_some_and(|answer| answer.leased_until.is_none())
        });
        if 1 + free.count() >= self.log.chain().quorum() {
            self.campaign(now, out);
        } else if all {
            self.asked_in_vain(now);
        }
    }

    /// Whether a bare one is no member: so many say so as make a quorum of the newest composition. Had it become a
    /// member by a newer one that counts, one of them would know of that.
    fn is_stranger(&self) -> bool {
        let own = Some(self.log.chain()).filter(|_| !self.has_nothing());
        let Some(chain) = self.promise.told.as_ref().or(own) else {
            return false;
        };
        let says = |member: &&DeviceNo| {
            let answer = self.election.answers.get(member);
            answer.is_some_and(|answer| !answer.counts_me)
        };
        let say = chain.members.iter().filter(says).count();
        let sound = self.bare && !self.damaged && !chain.contains(self.config.me);
        sound && !chain.members.is_empty() && say >= chain.quorum()
    }

    /// The others have told what there is to know.
    fn doubt_ends(&mut self, now: Instant, stranger: bool, out: &mut Vec<Action>) {
        let answers = self.election.answers.values();
        let told = answers.map(|answer| answer.promised).max();
        let told = told.unwrap_or_default();
        // Nobody ever promised anything: nothing was ever committed. Whom to ask one knows by what it has, or founds.
        let founds = self.bare && !self.damaged && !stranger && told == Term(0);
        let founds = founds && !self.has_nothing();
        let first = self.log.chain().members.first() == Some(&self.config.me);
        let wait = match founds && self.term == Term(0) && !first {
            true => self.config.limits.first_reign,
            false => Duration::from_micros(1),
        };
        self.promise.doubtful = false;
        self.promise.told = None;
        self.election = Election {
            not_before: now + wait,
            ..Election::default()
        };
        if told > self.term {
            self.promise(now, told, out);
        }
        if self.bare && !founds {
            self.renewed = Seq(u64::MAX);
            self.log.replay_damaged(None, self.promise.durable);
        }
        if !founds {
            self.log.lost_up_to(self.term);
        }
        self.finish(now, out);
    }

    fn campaign(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.election = Election {
            tries: self.election.tries,
            ..Election::default()
        };
        let Some(round) = self.term.max(self.seen).round().checked_add(1) else {
            return;
        };
        self.role = Role::Starting;
        self.starting = crate::start::Starting::since(now);
        self.promise(now, Term::new(round, self.config.me), out);
    }
}
