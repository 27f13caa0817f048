//! A head takes office: seal, adopt the best log, fill what it lacks, write its own first entry.
//!
//! Invariants:
//! - nobody is asked before the head's own promise is durable;
//! - nothing is decided before n − f members (this one counts) whose logs are whole at the end have
//!   sealed the reign; a replica whose last records are damaged may hide the very entry that was
//!   committed, so it counts only when all n are there;
//! - members are those of the newest composition in the log that was adopted: if that is another than the
//!   one by which was counted, it is counted, and chosen, anew;
//! - the best log is the one with the highest (term, number) at its end: whatever was committed is in
//!   it. It is taken over from where it agrees with the head's own;
//! - all of it is treated as not committed until the head's own entry is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::ChainBody;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::adopt::{Adoption, Ask, Step};
use crate::api::Action;
use crate::dedup::Dedup;
use crate::entry::{self, Mark};
use crate::head::Head;
use crate::mutants::mutant;
use crate::progress::Progress;
use crate::replica::{Link, Replica, Role};

/// How often one question is repeated until the peer counts as away.
const PATIENCE: u32 = 5;

/// What a replica said of its log when it sealed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sealed {
    pub(crate) last: Seq,
    pub(crate) last_term: Term,
    pub(crate) holes: Vec<(Seq, Seq)>,
    /// Nothing can be missing behind its end.
    pub(crate) whole_end: bool,
    /// What its log has forgotten, and of which term the last of that is.
    pub(crate) base: (Seq, Term),
    /// Its log has a hole that nobody could fill: others are better.
    pub(crate) passed_over: bool,
}

impl Sealed {
    pub(crate) fn new(
        (last, last_term): (Seq, Term),
        holes: Vec<(Seq, Seq)>,
        base: (Seq, Term),
    ) -> Self {
        Self {
            last,
            last_term,
            whole_end: holes.iter().all(|(_, to)| *to <= last),
            holes,
            base,
            passed_over: false,
        }
    }
}

/// The state of a head that is not in office yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Starting {
    pub(crate) since: Instant,
    /// The time of grace is over.
    pub(crate) waited: bool,
    pub(crate) asked_at: Instant,
    pub(crate) sealed: BTreeMap<DeviceNo, Sealed>,
    /// Its own log was cut at a hole: it no longer counts as whole.
    pub(crate) cut: bool,
    pub(crate) adoption: Option<Adoption>,
    pub(crate) ask: Option<Ask>,
    pub(crate) stuck: Option<String>,
    /// Members that said when they may promise.
    pub(crate) ask_at: BTreeMap<DeviceNo, Instant>,
}

impl Starting {
    /// Whether it gets on, and is not to be disturbed while it does.
    fn keeps_leases(&self) -> bool {
        self.adoption.is_some() && self.stuck.is_none()
    }

    pub(crate) fn rebase(&mut self, by: Duration) {
        self.since = self.since - by;
        self.asked_at = self.asked_at - by;
        for at in self.ask_at.values_mut() {
            *at = *at - by;
        }
        if let Some(ask) = &mut self.ask {
            ask.since = ask.since - by;
        }
    }

    pub(crate) fn since(now: Instant) -> Self {
        Self {
            since: now,
            ..Self::default()
        }
    }
}

impl Replica {
    /// The promise to itself is durable: now the others are asked for theirs.
    pub(crate) fn promised_to_itself(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.starting.since = now;
        self.seal_all(now, out);
        self.go_on(now, out);
    }

    fn config_of_log(&self) -> (Seq, u64) {
        (self.log.chain_seq(), self.log.chain().config)
    }

    fn seal_all(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.starting.asked_at = now;
        if self.promise.durable < self.term {
            return;
        }
        let keeps = self.starting.keeps_leases();
        for peer in self.members_but_me() {
            let sealed = self.starting.sealed.contains_key(&peer);
            if self.is_up(peer) && (keeps || !sealed) {
                self.starting.ask_at.remove(&peer);
                self.send(peer, ChainBody::Seal, Bytes::new(), out);
            }
        }
    }

    /// A member may not promise yet, or did not know: it is asked again when it may.
    pub(crate) fn seal_later_starting(&mut self, at: Instant, peer: DeviceNo) {
        if !self.starting.sealed.contains_key(&peer) {
            self.starting.ask_at.insert(peer, at);
        }
    }

    pub(crate) fn on_link_starting(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        link: Link,
        out: &mut Vec<Action>,
    ) {
        self.lose(peer);
        let member = self.log.chain().contains(peer);
        if link == Link::Up && member && self.promise.durable >= self.term {
            self.send(peer, ChainBody::Seal, Bytes::new(), out);
        }
        self.go_on(now, out);
    }

    /// What a peer said counts no more.
    fn lose(&mut self, peer: DeviceNo) {
        let starting = &mut self.starting;
        starting.sealed.remove(&peer);
        starting.ask_at.remove(&peer);
        if starting.ask.as_ref().is_some_and(|ask| ask.peer == peer) {
            starting.ask = None;
        }
        if let Some(adoption) = &mut starting.adoption {
            adoption.trusted = adoption.trusted.filter(|(trusted, _)| *trusted != peer);
            if adoption.best == peer {
                starting.adoption = None;
                starting.ask = None;
            }
        }
    }

    pub(crate) fn on_sealed_starting(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        sealed: Sealed,
        out: &mut Vec<Action>,
    ) {
        if !self.is_up(peer) || self.starting.sealed.contains_key(&peer) {
            return;
        }
        self.starting.sealed.insert(peer, sealed);
        if let Some(adoption) = &mut self.starting.adoption {
            adoption.tried.remove(&peer);
        }
        self.go_on(now, out);
    }

    /// The next step, whatever it is.
    pub(crate) fn go_on(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.promise.durable < self.term {
            return;
        }
        while self.role == Role::Starting && self.starting.ask.is_none() && self.stopped.is_none() {
            self.starting.stuck = None;
            let Some(adoption) = &self.starting.adoption else {
                // Its own promise counts for nothing where it is no member; what it took over so far,
                // before whoever it took that from was lost, may say so.
                if !self.log.chain().contains(self.config.me) {
                    return self.step_down(now, "it is no member of the chain any more", out);
                }
                if !self.decide() {
                    return;
                }
                continue;
            };
            let (best, config) = (adoption.best, adoption.config);
            if best != self.config.me {
                match self.copy(now, out) {
                    Step::Again => continue,
                    Step::Waits => return,
                    Step::Beyond => return self.yield_beyond(now, out),
                    Step::Done => {}
                }
            }
            match self.log.first_hole() {
                Some((hole, _)) if self.is_forgotten(hole) => return self.yield_beyond(now, out),
                Some((hole, behind)) => {
                    let terms = self.log.term(behind).zip(self.log.term_before(behind));
                    let Some(terms) = terms else { return };
                    if !self.fill(now, (hole, behind), terms, out) {
                        return;
                    }
                }
                None if config != self.config_of_log() => {
                    self.starting.adoption = None;
                    self.seal_all(now, out);
                }
                None => self.take_office(now, out),
            }
        }
    }

    /// Whether another has forgotten this entry: its log and index have all that was committed up to there.
    fn is_forgotten(&self, seq: Seq) -> bool {
        let mut sealed = self.starting.sealed.values();
        sealed.any(|sealed| sealed.base.0 >= seq)
    }

    /// What it lacks is in no log any more. Whoever has forgotten it has what it made, and can teach it.
    fn yield_beyond(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.yield_to_others(now, "it lacks entries that others have forgotten", out);
    }

    /// Chooses the best log, if enough of them are known.
    fn decide(&mut self) -> bool {
        let starting = &self.starting;
        let members = self.members_but_me();
        let damaged = self.log.tail_damaged() && !mutant!(self, CountDamagedTail);
        let own_whole = !damaged && !starting.cut;
        let sealed = || members.iter().filter_map(|peer| starting.sealed.get(peer));
        let whole = sealed().filter(|s| s.whole_end && !s.passed_over).count();
        let all = sealed().count() == members.len();
        let short = usize::from(mutant!(self, SealQuorumShort));
        let needed = self.log.chain().quorum() - short;
        // Where nobody ever promised anything, all founders had better begin together: who asks later what was promised
        // cannot tell whether it was never there, or lost what it had.
        let founds = self.bare && self.log.last() == Seq(0) && !starting.waited;
        let enough = (usize::from(own_whole) + whole >= needed && !founds) || all;
        let nobody_else = members.iter().all(|peer| {
            starting.sealed.contains_key(peer) || self.links.get(peer) == Some(&Link::Down)
        });
        // Nothing that the others could tell is missing.
        let sound = own_whole
            && self.log.first_hole().is_none()
            && sealed().all(|s| s.holes.is_empty() && !s.passed_over);
        if !enough || !(all || sound || starting.waited || nobody_else) {
            return false;
        }
        let mut best = (self.log.last_term(), self.log.last(), self.config.me);
        for (&peer, sealed) in starting.sealed.iter().filter(|(_, s)| !s.passed_over) {
            if (sealed.last_term, sealed.last) > (best.0, best.1) {
                best = (sealed.last_term, sealed.last, peer);
            }
        }
        let (_, last, best) = best;
        let lacks = starting
            .sealed
            .get(&best)
            .map_or(Vec::new(), |sealed| sealed.holes.clone());
        let guess = self.log.held_at_or_before(last);
        self.starting.adoption = Some(Adoption {
            config: self.config_of_log(),
            best,
            last,
            own_whole: own_whole && self.log.first_hole().is_none(),
            guess,
            copied: None,
            lacks,
            beyond: None,
            tried: BTreeSet::new(),
            hole: Seq(0),
            trusted: None,
        });
        true
    }

    /// All that may be committed is in the log: the head's own first entry commits it.
    fn take_office(&mut self, now: Instant, out: &mut Vec<Action>) {
        let prev_term = self.log.last_term();
        let (decoded, before) = (entry::term_start(prev_term), Some(prev_term));
        let Some(piece) = self.own_piece(&decoded, before, Mark::Nothing, out) else {
            return;
        };
        let seq = piece.seq;
        self.role = Role::Head;
        self.head = Head {
            term_start: seq,
            since: now,
            announce_at: Some(now + self.config.limits.heartbeat),
            ..Head::default()
        };
        if mutant!(self, DedupNotCarried) {
            let limits = &self.config.limits;
            self.dedup = Dedup::new(limits.clients, limits.requests);
        }
        let mut persist = Vec::new();
        self.write(&[piece], &mut persist);
        let sealed = std::mem::take(&mut self.starting).sealed;
        for peer in self.members_but_me() {
            self.head.progress.insert(peer, Progress::new());
        }
        for peer in self.members_but_me() {
            match sealed.get(&peer).filter(|_| self.is_up(peer)) {
                Some(sealed) => self.enlist(now, peer, (sealed.last, sealed.last_term), out),
                None if self.is_up(peer) => self.seal_again(now, peer, out),
                None => {}
            }
        }
        self.enroll(now, out);
        out.append(&mut persist);
        self.advance_commit(now);
    }

    pub(crate) fn starting_deadline(&self) -> Option<Instant> {
        let limits = &self.config.limits;
        let starting = &self.starting;
        if self.promise.durable < self.term {
            return None;
        }
        let ask = starting.ask.as_ref().map(|ask| ask.since + limits.resend);
        let unsealed = self
            .members_but_me()
            .iter()
            .any(|peer| self.is_up(*peer) && !starting.sealed.contains_key(peer));
        let wait = self.seal_wait();
        let keeps = starting.keeps_leases();
        let again =
            (unsealed || starting.stuck.is_some() || keeps).then(|| starting.asked_at + wait);
        let again = again
            .into_iter()
            .chain(starting.ask_at.values().copied())
            .min();
        let grace = starting.since + limits.grace;
        let grace = (!starting.waited && starting.adoption.is_none()).then_some(grace);
        ask.into_iter().chain(again).chain(grace).min()
    }

    /// How long until the members are asked again. While it gets on, often enough that they do not
    /// look for another head.
    fn seal_wait(&self) -> Duration {
        let limits = &self.config.limits;
        if self.starting.keeps_leases() {
            limits.resend.min(limits.lease / 4)
        } else {
            limits.resend
        }
    }

    pub(crate) fn on_deadline_starting(&mut self, now: Instant, out: &mut Vec<Action>) {
        let resend = self.config.limits.resend;
        self.starting.waited |= now >= self.starting.since + self.config.limits.grace;
        if let Some(ask) = &mut self.starting.ask
            && ask.since + resend <= now
        {
            ask.since = now;
            ask.repeated += 1;
            let Ask {
                peer,
                first,
                last,
                repeated,
                ..
            } = *ask;
            if repeated > PATIENCE {
                self.lose(peer);
            } else {
                self.send(peer, ChainBody::Fetch { first, last }, Bytes::new(), out);
            }
        }
        let due = |at: &Instant| *at <= now;
        if self.starting.ask_at.values().any(due) {
            let due: Vec<DeviceNo> = self
                .starting
                .ask_at
                .iter()
                .filter(|(_, at)| due(at))
                .map(|(peer, _)| *peer)
                .collect();
            for peer in due {
                self.starting.ask_at.remove(&peer);
                if self.is_up(peer) {
                    self.send(peer, ChainBody::Seal, Bytes::new(), out);
                }
            }
        }
        if self.starting.asked_at + self.seal_wait() <= now {
            if self.starting.stuck.is_some() {
                // Things may have changed: a replica may have repaired what it could not read.
                self.starting.sealed.clear();
                self.starting.adoption = None;
            }
            self.seal_all(now, out);
        }
        self.go_on(now, out);
        // It may have got on, and then leases are to be kept.
        if self.role == Role::Starting && self.starting.asked_at + self.seal_wait() <= now {
            self.seal_all(now, out);
        }
    }

    /// What a head that is not in office is waiting for.
    pub(crate) fn starting_state(&self) -> String {
        let starting = &self.starting;
        let term = self.term;
        if let Some(stuck) = &starting.stuck {
            return format!("waiting, before it takes office in term {term}, {stuck}");
        }
        let away = self.away();
        match &starting.adoption {
            Some(Adoption { best, last, .. }) => format!(
                "fetching the log of replica {best} up to entry {last}, to take office in term {term}"
            ),
            None => format!(
                "sealing term {term}: it knows the logs of {} of {} replicas and needs {}{}; away: \
                 {away}",
                starting.sealed.len() + 1,
                self.log.chain().members.len(),
                self.log.chain().quorum(),
                if self.log.tail_damaged() || starting.cut {
                    " besides its own, which is damaged at its end, or all"
                } else {
                    ""
                },
            ),
        }
    }
}
