//! A head that is not in office yet takes the best log over, and fills what it lacks.
//!
//! Invariants:
//! - nothing is taken over from behind a hole before that is filled: entries here that have a gap
//!   before them always mean that this device lost something;
//! - a hole is filled only from a replica whose log is shown to agree with the adopted one behind the
//!   hole, or to end inside of it in the right term;
//! - unreadable is not absent: a log is cut at a hole only if enough whole logs were seen to know
//!   that the best of those holds all that was committed. Otherwise the head waits, and says for what.

use std::collections::BTreeSet;

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::ChainBody;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::Piece;
use crate::replica::Replica;
use crate::start::Sealed;

/// What is asked of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    /// Does its entry agree with ours?
    Agree,
    /// What follows.
    Copy,
    /// Of which term is its entry behind its hole?
    Beyond,
    /// Is its entry behind the hole of this term?
    Trust { behind: Seq, term: Term },
    /// What is in the hole, up to here.
    Fill { to: Seq },
}

/// How taking over goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is a next step already, or a question under way.
    Again,
    /// Something must change first.
    Waits,
    /// The best replica has forgotten what would have to be taken over.
    Beyond,
    /// There is nothing left to take over.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ask {
    pub(crate) peer: DeviceNo,
    pub(crate) question: Question,
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    pub(crate) since: Instant,
    pub(crate) repeated: u32,
}

/// Whose log is taken over, and how far that is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Adoption {
    /// By which composition, of which entry, was counted.
    pub(crate) config: (Seq, u64),
    pub(crate) best: DeviceNo,
    pub(crate) last: Seq,
    /// The head's own log was whole before.
    pub(crate) own_whole: bool,
    /// Where the logs may agree;
    pub(crate) guess: Seq,
    /// and up to where they do, or were made to.
    pub(crate) copied: Option<Seq>,
    /// What the best replica cannot read.
    pub(crate) lacks: Vec<(Seq, Seq)>,
    /// Its entry behind what it cannot read, of which term that is, and of which the one before.
    pub(crate) beyond: Option<(Seq, Term, Term)>,
    /// Who has been asked for the hole that is being filled, in vain.
    pub(crate) tried: BTreeSet<DeviceNo>,
    pub(crate) hole: Seq,
    /// Who is known to agree with the adopted log, up to where.
    pub(crate) trusted: Option<(DeviceNo, Seq)>,
}

impl Adoption {
    /// The best replica cannot read this entry either.
    fn lack(&mut self, seq: Seq) {
        let joins = |range: &&mut (Seq, Seq)| range.1.0.checked_add(1) == Some(seq.0);
        match self.lacks.iter_mut().find(joins) {
            Some(range) => range.1 = seq,
            None => self.lacks.push((seq, seq)),
        }
    }
}

impl Replica {
    /// Takes the best log over.
    pub(crate) fn copy(&mut self, now: Instant, out: &mut Vec<Action>) -> Step {
        let Some(adoption) = &mut self.starting.adoption else {
            return Step::Done;
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
            let sealed = self.starting.sealed.get(&best);
            let (base, base_term) = sealed.map(|sealed| sealed.base).unwrap_or_default();
            if guess <= self.log.base() {
                // Committed, hence in the best log as well.
                if base > self.log.base() {
                    return Step::Beyond;
                }
                adoption.copied = Some(self.log.base());
                return self.copy(now, out);
            }
            if guess <= base {
                // Only here can it be seen whether they agree.
                if self.log.term(base) != Some(base_term) {
                    return Step::Beyond;
                }
                adoption.copied = Some(base);
                return self.copy(now, out);
            }
            self.ask(now, best, Question::Agree, guess, guess, out);
            return Step::Again;
        };
        let next = Seq(copied.0 + 1);
        if next <= last {
            if let Some((_, to)) = lacks(next, &adoption.lacks) {
                return self.bridge(now, next, to, out);
            }
            let behind = adoption
                .lacks
                .iter()
                .map(|(from, _)| *from)
                .filter(|from| *from > next);
            let to = behind.min().map_or(last, |from| last.min(Seq(from.0 - 1)));
            self.ask(now, best, Question::Copy, next, to, out);
            return Step::Again;
        }
        Step::Done
    }

    /// Fills what the best replica cannot read of what is to be taken over.
    fn bridge(&mut self, now: Instant, hole: Seq, to: Seq, out: &mut Vec<Action>) -> Step {
        let Some(adoption) = &mut self.starting.adoption else {
            return Step::Again;
        };
        let (best, last) = (adoption.best, adoption.last);
        if to >= last {
            self.starting.stuck =
                Some(format!("for replica {best} to read its last entry, {last}"));
            return Step::Waits;
        }
        let behind = Seq(to.0 + 1);
        match adoption.beyond.filter(|(seq, ..)| *seq == behind) {
            Some((_, term, before)) => {
                // This replica's own entries may be the missing ones.
                let own = self.log.last();
                let same = own >= behind && self.log.term(behind) == Some(term);
                let ends = own < behind && own >= hole;
                let ends = ends && [term, before].contains(&self.log.last_term());
                if same || ends {
                    adoption.copied = Some(own.min(to));
                    return Step::Again;
                }
                if self.fill(now, (hole, behind), (term, before), out) {
                    Step::Again
                } else {
                    Step::Waits
                }
            }
            None => {
                self.ask(now, best, Question::Beyond, behind, behind, out);
                Step::Again
            }
        }
    }

    /// Fills the hole that ends before `behind`, an entry of this term, the one before it being of
    /// that; whether there is a next step already.
    pub(crate) fn fill(
        &mut self,
        now: Instant,
        (hole, behind): (Seq, Seq),
        (term, term_before): (Term, Term),
        out: &mut Vec<Action>,
    ) -> bool {
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
                let question = Question::Trust { behind, term };
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
        let chain = self.log.chain().clone();
        let starting = &mut self.starting;
        let best = starting.adoption.as_ref().map(|adoption| adoption.best);
        let whole = |(peer, sealed): &(&DeviceNo, &Sealed)| {
            let whole = sealed.whole_end && sealed.holes.is_empty() && !sealed.passed_over;
            whole && Some(**peer) != best
        };
        let members = starting
            .sealed
            .iter()
            .filter(|(peer, _)| chain.contains(**peer));
        let whole = members.filter(whole).count();
        // This replica's own log counts if the hole came with another's.
        let own = starting
            .adoption
            .as_ref()
            .is_some_and(|adoption| adoption.own_whole)
            && best != Some(self.config.me);
        if whole + usize::from(own) < self.log.chain().quorum() {
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
        }
        starting.adoption = None;
        if hole > self.log.base() && hole <= self.log.last() && self.log.slot(hole).is_none() {
            // Its own log has the hole, and cannot tell what was behind it.
            starting.cut = true;
            self.log.truncate(hole);
            // What was known to be committed is in the log that comes instead.
            self.committed = self.committed.min(self.log.last());
        }
        true
    }

    fn ask(
        &mut self,
        now: Instant,
        peer: DeviceNo,
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
        from: DeviceNo,
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
            (Question::Beyond, Some(piece), _) => {
                let before = piece.prev_term.unwrap_or(piece.term);
                adoption.beyond = Some((first, piece.term, before));
            }
            (Question::Agree | Question::Copy | Question::Beyond, ..) => {
                adoption.lack(first);
            }
            (Question::Trust { behind, term }, Some(piece), _) if piece.term == term => {
                adoption.trusted = Some((from, Seq(behind.0 - 1)));
            }
            (Question::Fill { to }, Some(_), Some(end)) if end.seq <= to => {
                if adoption.copied == Some(Seq(first.0 - 1)) {
                    adoption.copied = Some(end.seq);
                }
                self.take(pieces, out);
            }
            (Question::Trust { .. } | Question::Fill { .. }, ..) => {
                adoption.tried.insert(from);
            }
        }
        self.go_on(now, out);
    }
}
