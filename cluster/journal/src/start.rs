//! A head takes office: seal, adopt the best log, fill what it lacks, write its own first entry.
//!
//! Invariants:
//! - nothing is decided before n − f replicas (this one counts) whose logs are whole at the end have
//!   sealed the reign; a replica whose last records are damaged may hide the very entry that was
//!   committed, so it counts only when all n are there;
//! - the best log is the one with the highest (term, number) at its end: whatever was committed is in
//!   it. It is taken over from where it agrees with the head's own;
//! - a hole is filled only from a replica whose log is shown to agree with the adopted one behind the
//!   hole, or to end inside of it in the right term;
//! - unreadable is not absent: a log is cut at a hole only if enough whole logs were seen to know
//!   that the best of those holds all that was committed. Otherwise the head waits, and says for what;
//! - all of it is treated as not committed until the head's own entry is.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::message::{ChainBody, ErrorCode};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::{self, Piece};
use crate::pending::Refusal;
use crate::replica::{Link, Replica, Role};

/// How often one question is repeated until the peer counts as away.
const PATIENCE: u32 = 5;

/// What a replica said of its log when it sealed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sealed {
    last: Seq,
    last_term: Term,
    holes: Vec<(Seq, Seq)>,
    /// Nothing can be missing behind its end.
    whole_end: bool,
    /// Its log has a hole that nobody could fill: others are better.
    passed_over: bool,
}

/// What is asked of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    /// Does its entry agree with ours?
    Agree,
    /// What follows.
    Copy,
    /// Does its entry behind the hole agree with ours?
    Trust { behind: Seq },
    /// What is in the hole, up to here.
    Fill { to: Seq },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ask {
    peer: u8,
    question: Question,
    first: Seq,
    last: Seq,
    since: Instant,
    repeated: u32,
}

/// Whose log is taken over, and how far that is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Adoption {
    best: u8,
    last: Seq,
    /// The head's own log was whole before.
    own_whole: bool,
    /// Where the logs may agree;
    guess: Seq,
    /// and up to where they do, or were made to.
    copied: Option<Seq>,
    /// What the best replica cannot read.
    lacks: Vec<(Seq, Seq)>,
    /// Who has been asked for the hole that is being filled, in vain.
    tried: BTreeSet<u8>,
    hole: Seq,
    /// Who is known to agree with the adopted log, up to where.
    trusted: Option<(u8, Seq)>,
}

/// The state of a head that is not in office yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Starting {
    since: Instant,
    /// The time of grace is over.
    waited: bool,
    asked_at: Instant,
    sealed: BTreeMap<u8, Sealed>,
    /// Its own log was cut at a hole: it no longer counts as whole.
    cut: bool,
    adoption: Option<Adoption>,
    ask: Option<Ask>,
    stuck: Option<String>,
}

impl Replica {
    pub(crate) fn start(&mut self, now: Instant, term: Term, out: &mut Vec<Action>) {
        if self.role != Role::Replaying {
            return;
        }
        self.log.replay_ends();
        if self.config.me != 0 {
            self.role = Role::Follower;
            return;
        }
        if term <= self.log.last_term() {
            let detail = format!(
                "replica 0 stopped: term {term} is not above its log's last term {}",
                self.log.last_term()
            );
            return self.stop(Refusal::new(ErrorCode::Internal, detail), out);
        }
        self.role = Role::Starting;
        self.term = term;
        self.starting.since = now;
        self.seal_all(now, out);
        self.go_on(now, out);
    }

    fn seal_all(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.starting.asked_at = now;
        for peer in self.peers() {
            if self.is_up(peer) && !self.starting.sealed.contains_key(&peer) {
                self.send(peer, ChainBody::Seal, Bytes::new(), out);
            }
        }
    }

    pub(crate) fn on_link_starting(
        &mut self,
        now: Instant,
        peer: u8,
        link: Link,
        out: &mut Vec<Action>,
    ) {
        self.lose(peer);
        if link == Link::Up {
            self.send(peer, ChainBody::Seal, Bytes::new(), out);
        }
        self.go_on(now, out);
    }

    /// What a peer said counts no more.
    fn lose(&mut self, peer: u8) {
        let starting = &mut self.starting;
        starting.sealed.remove(&peer);
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
        peer: u8,
        last: Seq,
        last_term: Term,
        holes: Vec<(Seq, Seq)>,
        out: &mut Vec<Action>,
    ) {
        if !self.is_up(peer) || self.starting.sealed.contains_key(&peer) {
            return;
        }
        let whole_end = holes.iter().all(|(_, to)| *to <= last);
        let sealed = Sealed {
            last,
            last_term,
            holes,
            whole_end,
            passed_over: false,
        };
        self.starting.sealed.insert(peer, sealed);
        if let Some(adoption) = &mut self.starting.adoption {
            adoption.tried.remove(&peer);
        }
        self.go_on(now, out);
    }

    /// The next step, whatever it is.
    fn go_on(&mut self, now: Instant, out: &mut Vec<Action>) {
        while self.role == Role::Starting && self.starting.ask.is_none() && self.stopped.is_none() {
            self.starting.stuck = None;
            let Some(adoption) = &self.starting.adoption else {
                if !self.decide() {
                    return;
                }
                continue;
            };
            if adoption.best != self.config.me && self.copy(now, out) {
                return;
            }
            match self.log.first_hole() {
                Some((hole, behind)) => {
                    if !self.fill(now, hole, behind, out) {
                        return;
                    }
                }
                None => self.take_office(now, out),
            }
        }
    }

    /// Chooses the best log, if enough of them are known.
    fn decide(&mut self) -> bool {
        let starting = &self.starting;
        let others = usize::from(self.config.replicas) - 1;
        let own_whole = !self.log.tail_damaged() && !starting.cut;
        let whole = starting
            .sealed
            .values()
            .filter(|s| s.whole_end && !s.passed_over)
            .count();
        let all = starting.sealed.len() == others;
        let enough = usize::from(own_whole) + whole >= self.config.quorum() || all;
        let nobody_else = self.peers().all(|peer| {
            starting.sealed.contains_key(&peer)
                || self.links.get(usize::from(peer)) == Some(&Link::Down)
        });
        if !enough || !(all || starting.waited || nobody_else) {
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
            best,
            last,
            own_whole: own_whole && self.log.first_hole().is_none(),
            guess,
            copied: None,
            lacks,
            tried: BTreeSet::new(),
            hole: Seq(0),
            trusted: None,
        });
        true
    }

    /// Takes the best log over; whether there is still something to wait for.
    fn copy(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        let Some(adoption) = &mut self.starting.adoption else {
            return false;
        };
        let lacks = |seq: Seq, lacks: &[(Seq, Seq)]| {
            lacks
                .iter()
                .find(|(from, to)| (*from..=*to).contains(&seq))
                .copied()
        };
        let (best, last) = (adoption.best, adoption.last);
        let Some(copied) = adoption.copied else {
            while let Some((from, _)) = lacks(adoption.guess, &adoption.lacks) {
                adoption.guess = self.log.held_at_or_before(Seq(from.0.saturating_sub(1)));
            }
            let guess = adoption.guess;
            if guess.0 == 0 {
                adoption.copied = Some(Seq(0));
                return self.copy(now, out);
            }
            self.ask(now, best, Question::Agree, guess, guess, out);
            return true;
        };
        let mut next = Seq(copied.0 + 1);
        while let Some((_, to)) = lacks(next, &adoption.lacks).filter(|_| next <= last) {
            next = Seq(to.0.saturating_add(1));
        }
        if next <= last {
            let behind = adoption
                .lacks
                .iter()
                .map(|(from, _)| *from)
                .filter(|from| *from > next);
            let to = behind.min().map_or(last, |from| last.min(Seq(from.0 - 1)));
            self.ask(now, best, Question::Copy, next, to, out);
            return true;
        }
        if self.log.last() < last {
            self.starting.stuck =
                Some(format!("for replica {best} to read its last entry, {last}"));
            return true;
        }
        false
    }

    /// Fills the hole that ends before `behind`; whether there is a next step already.
    fn fill(&mut self, now: Instant, hole: Seq, behind: Seq, out: &mut Vec<Action>) -> bool {
        let (Some(term), Some(term_before)) = (self.log.term(behind), self.log.term_before(behind))
        else {
            return false;
        };
        let Some(adoption) = &mut self.starting.adoption else {
            return true;
        };
        if adoption.hole != hole {
            adoption.hole = hole;
            adoption.tried.clear();
        }
        if let Some((peer, to)) = adoption.trusted
            && to >= hole
            && !adoption.tried.contains(&peer)
        {
            let to = to.min(Seq(behind.0 - 1));
            self.ask(now, peer, Question::Fill { to }, hole, to, out);
            return true;
        }
        let sealed = &self.starting.sealed;
        let candidate = sealed
            .iter()
            .find(|(peer, _)| !adoption.tried.contains(peer));
        if let Some((&peer, sealed)) = candidate {
            if sealed.last >= behind {
                let question = Question::Trust { behind };
                self.ask(now, peer, question, behind, behind, out);
            } else if sealed.last >= hole
                && (sealed.last_term == term_before || sealed.last_term == term)
            {
                adoption.trusted = Some((peer, sealed.last));
            } else {
                adoption.tried.insert(peer);
            }
            return true;
        }
        self.cut_at(hole, behind)
    }

    /// Nobody has what is in the hole. If the logs without one suffice, the best of those is it.
    fn cut_at(&mut self, hole: Seq, behind: Seq) -> bool {
        let starting = &mut self.starting;
        let best = starting.adoption.as_ref().map(|adoption| adoption.best);
        let whole = |(peer, sealed): &(&u8, &Sealed)| {
            let whole = sealed.whole_end && sealed.holes.is_empty() && !sealed.passed_over;
            whole && Some(**peer) != best
        };
        let whole = starting.sealed.iter().filter(whole).count();
        // This replica's own log counts if the hole came with another's.
        let own = starting
            .adoption
            .as_ref()
            .is_some_and(|adoption| adoption.own_whole)
            && best != Some(self.config.me);
        if whole + usize::from(own) < self.config.quorum() {
            let last = Seq(behind.0 - 1);
            starting.stuck = Some(format!(
                "for a replica that holds entries {hole} to {last}, which cannot be read on replica \
                 {}",
                best.unwrap_or_default()
            ));
            return false;
        }
        if let Some(sealed) = best.and_then(|best| starting.sealed.get_mut(&best)) {
            sealed.passed_over = true;
        } else {
            starting.cut = true;
        }
        starting.adoption = None;
        self.truncate(hole);
        true
    }

    fn ask(
        &mut self,
        now: Instant,
        peer: u8,
        question: Question,
        first: Seq,
        last: Seq,
        out: &mut Vec<Action>,
    ) {
        self.starting.ask = Some(Ask {
            peer,
            question,
            first,
            last,
            since: now,
            repeated: 0,
        });
        self.send(peer, ChainBody::Fetch { first, last }, Bytes::new(), out);
    }

    /// An answer to what was asked.
    pub(crate) fn on_adopted_entries(
        &mut self,
        now: Instant,
        from: u8,
        first: Seq,
        pieces: &[Piece],
        out: &mut Vec<Action>,
    ) {
        let starting = &mut self.starting;
        let Some(Ask { question, last, .. }) = starting
            .ask
            .take_if(|ask| ask.peer == from && ask.first == first)
        else {
            return;
        };
        let Some(adoption) = &mut starting.adoption else {
            return;
        };
        let within = pieces.iter().take_while(|piece| piece.seq <= last).count();
        let pieces = &pieces[..within];
        match (question, pieces.first(), pieces.last()) {
            (Question::Agree, Some(piece), _) => {
                if self.log.term(first) == Some(piece.term) {
                    adoption.copied = Some(first);
                } else {
                    adoption.guess = self.log.at_most(Seq(first.0 - 1), piece.term);
                }
            }
            (Question::Copy, Some(_), Some(end)) => {
                adoption.copied = Some(end.seq);
                self.take(pieces, out);
            }
            (Question::Agree | Question::Copy, ..) => adoption.lacks.push((first, first)),
            (Question::Trust { behind }, Some(piece), _)
                if self.log.term(behind) == Some(piece.term) =>
            {
                adoption.trusted = Some((from, Seq(behind.0 - 1)));
            }
            (Question::Fill { to }, Some(_), Some(end)) if end.seq <= to => {
                self.take(pieces, out);
            }
            (Question::Trust { .. } | Question::Fill { .. }, ..) => {
                adoption.tried.insert(from);
            }
        }
        self.go_on(now, out);
    }

    /// All that may be committed is in the log: the head's own first entry commits it.
    fn take_office(&mut self, now: Instant, out: &mut Vec<Action>) {
        let prev_term = self.log.last_term();
        let seq = Seq(self.log.last().0 + 1);
        let bytes = match entry::encode(seq, self.term, &entry::term_start(prev_term), &[]) {
            Ok(bytes) => bytes,
            Err(error) => {
                let detail = format!("replica 0 stopped: {error}");
                return self.stop(Refusal::new(ErrorCode::Internal, detail), out);
            }
        };
        self.role = Role::Head;
        self.head.term_start = seq;
        let piece = Piece {
            seq,
            term: self.term,
            prev_term: Some(prev_term),
            bytes,
        };
        let mut persist = Vec::new();
        self.write(&[piece], &mut persist);
        let sealed = std::mem::take(&mut self.starting).sealed;
        for peer in self.up() {
            match sealed.get(&peer) {
                Some(sealed) => self.enlist(now, peer, sealed.last, sealed.last_term, out),
                None => self.seal_again(now, peer, out),
            }
        }
        out.append(&mut persist);
        self.advance_commit(now);
    }

    pub(crate) fn starting_deadline(&self) -> Option<Instant> {
        let limits = &self.config.limits;
        let starting = &self.starting;
        let ask = starting.ask.as_ref().map(|ask| ask.since + limits.resend);
        let unsealed = self
            .peers()
            .any(|peer| self.is_up(peer) && !starting.sealed.contains_key(&peer));
        let again =
            (unsealed || starting.stuck.is_some()).then(|| starting.asked_at + limits.resend);
        let grace = starting.since + limits.grace;
        let grace = (!starting.waited && starting.adoption.is_none()).then_some(grace);
        ask.into_iter().chain(again).chain(grace).min()
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
        if self.starting.asked_at + resend <= now {
            if self.starting.stuck.is_some() {
                // Things may have changed: a replica may have repaired what it could not read.
                self.starting.sealed.clear();
                self.starting.adoption = None;
            }
            self.seal_all(now, out);
        }
        self.go_on(now, out);
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
                self.config.replicas,
                self.config.quorum(),
                if self.log.tail_damaged() || starting.cut {
                    " besides its own, which is damaged at its end, or all"
                } else {
                    ""
                },
            ),
        }
    }
}
