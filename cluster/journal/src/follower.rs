//! A follower: takes what the head orders, passes it on, writes it, says what is durable.
//!
//! Invariants:
//! - nothing is taken but from the reign that it promised itself to, durably, and whose head was told
//!   so in this life, and joined on to what it holds:
//!   number and term of the entry before must agree;
//! - `verified` is how far the log is known to agree with the head's in this reign: nothing beyond
//!   it is acknowledged, and nothing beyond it is committed here;
//! - acknowledged = durable here, contiguously, and verified;
//! - what is committed is never removed;
//! - what is new is passed on before it is written, whether or not it could be taken here.

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{ChainBody, ErrorCode};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::Piece;
use crate::level::received;
use crate::mutants::mutant;
use crate::pending::Refusal;
use crate::replica::Replica;

/// Ranges of holes that one message names.
pub(crate) const HOLES_MAX: usize = 4096;

/// A follower's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Follower {
    /// It sealed the reign `term`, in this life.
    pub(crate) sealed: bool,
    pub(crate) verified: Seq,
    /// The last acknowledgement sent.
    acked: Option<Seq>,
    /// The latest stamp received from the head, by the head's clock.
    pub(crate) stamp: u64,
}

impl Follower {
    /// The head knows nothing of this replica (any more).
    pub(crate) fn forget_acked(&mut self) {
        self.acked = None;
    }
}

/// What an `Append` says.
#[derive(Clone, Copy, Debug)]
struct Joint {
    prev: Seq,
    prev_term: Term,
    count: u32,
    committed: Seq,
    stamp: u64,
}

impl Replica {
    /// What the head orders, from it or from whoever is before this replica in the chain.
    pub(crate) fn on_append_follower(
        &mut self,
        now: Instant,
        from: DeviceNo,
        body: ChainBody,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        let ChainBody::Append {
            prev,
            prev_term,
            count,
            committed,
            stamp,
        } = body
        else {
            return;
        };
        if !self.follower.sealed {
            return self.ask_for_seal(now, out);
        }
        self.head_heard(now);
        self.follower.stamp = self.follower.stamp.max(stamp);
        let joint = Joint {
            prev,
            prev_term,
            count,
            committed,
            stamp,
        };
        self.on_append(joint, payload, out);
        // What the head counted of this replica before its restart was committed before it was promised
        // anew, so the head says so by now; passed on by another, this may be from before that.
        let told = from == self.term.head() && self.log.term(self.committed) == Some(self.term);
        if told && committed == self.committed && self.log.durable() >= committed {
            self.log.tail_is_whole();
            if self.renewed == Seq(u64::MAX) {
                // What was given away before the device was formatted was committed then.
                self.renewed = committed;
            }
        }
    }

    /// The head takes for granted what this replica did before it was begun anew, on a link that stayed up: unless the
    /// promise is on its way to the device, it has to be asked for again. A learner may be sent nothing but its
    /// lesson, so that has to bring it about as well.
    pub(crate) fn ask_for_seal(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.promise.durable >= self.term {
            self.refuse(now, self.term.head(), out);
        }
    }

    fn on_append(&mut self, joint: Joint, payload: Bytes, out: &mut Vec<Action>) {
        let Joint {
            prev,
            prev_term,
            count,
            committed,
            stamp,
        } = joint;
        let Some(first) = prev.0.checked_add(1) else {
            return;
        };
        let pieces = match received(&payload, Seq(first), count, self.config.reads) {
            Ok(pieces) => pieces,
            Err(error) => return self.sent_newer(&error, out),
        };
        let rising = pieces.iter().try_fold(prev_term, |below, piece| {
            (below <= piece.term && piece.term <= self.term).then_some(piece.term)
        });
        if pieces.len() != count as usize || rising.is_none() {
            // Not what a head sends. It will be sent again.
            return;
        }
        let base = self.log.base();
        let fresh = pieces
            .iter()
            .any(|piece| piece.seq > base && self.log.term(piece.seq) != Some(piece.term));
        let end = Seq(prev.0 + u64::from(count));
        let successor = self.log.chain().successor(self.term.head(), self.config.me);
        // What is committed already is on its way to a replica that is behind: to this one alone.
        if let Some(successor) = successor.filter(|s| fresh && end > committed && self.is_up(*s)) {
            let body = ChainBody::Append {
                prev,
                prev_term,
                count,
                committed,
                stamp,
            };
            self.send(successor, body, payload.clone(), out);
        }
        let crowded = fresh
            && self.log.writing_bytes() + payload.len() > self.config.limits.unpersisted_bytes;
        // What is forgotten was committed, and every later head has it.
        let joins = prev < base || self.log.term(prev) == Some(prev_term);
        let joins = joins || mutant!(self, RejoinWithoutResync);
        if crowded || !joins {
            let below = Seq(if crowded {
                prev.0
            } else {
                prev.0.saturating_sub(1)
            });
            let last = self.log.at_most(below.max(base), prev_term);
            let last_term = self.log.term(last).unwrap_or_default();
            return self.send(
                self.term.head(),
                ChainBody::Mismatch { last, last_term },
                Bytes::new(),
                out,
            );
        }
        let Some(written) = self.take(&pieces, out) else {
            return;
        };
        self.follower.verified = self.follower.verified.max(end);
        self.committed = self.committed.max(committed.min(self.follower.verified));
        let first = self.follower.acked.is_none();
        self.acknowledge(written == 0 || first, out);
    }

    /// Takes entries that join on to what is held: new ones are written, what they contradict is
    /// removed. How many were new; `None` if the replica stopped.
    pub(crate) fn take(&mut self, pieces: &[Piece], out: &mut Vec<Action>) -> Option<usize> {
        let mut written = 0;
        let mut from = 0;
        for at in 0..pieces.len() {
            let piece = &pieces[at];
            let held = self.log.term(piece.seq);
            if held == Some(piece.term) || piece.seq <= self.log.base() {
                self.write(&pieces[from..at], out);
                from = at + 1;
                continue;
            }
            // Behind a hole, what is of a lower term than what belongs into it is of another log.
            let next = self
                .log
                .term(Seq(piece.seq.0 + 1))
                .unwrap_or(self.log.last_term());
            let behind = next.min(self.log.last_term());
            let contradicts = held.is_some() || behind < piece.term;
            if contradicts && piece.seq <= self.log.last() {
                if piece.seq <= self.committed {
                    let detail = format!(
                        "replica {} stopped: entry {} is committed, of term {}, and the head has \
                         another, of term {}",
                        self.config.me,
                        piece.seq,
                        held.unwrap_or_default(),
                        piece.term
                    );
                    self.stop(Refusal::new(ErrorCode::Internal, detail), out);
                    return None;
                }
                self.write(&pieces[from..at], out);
                from = at;
                self.log.truncate(piece.seq);
            }
            written += 1;
        }
        self.write(&pieces[from..], out);
        Some(written)
    }

    /// Tells the head what is durable: if that is more than it was told (at first: nothing), or in any
    /// case.
    pub(crate) fn acknowledge(&mut self, in_any_case: bool, out: &mut Vec<Action>) {
        let durable = if mutant!(self, AckBeforeDurable) {
            self.log.last()
        } else {
            self.log.durable()
        };
        let durable = durable.min(self.follower.verified);
        let told = self.follower.acked.unwrap_or_default() >= durable;
        // An unasked "nothing" right after sealing would have the head send all of its log again.
        if self.follower.sealed && (in_any_case || !told) {
            self.follower.acked = Some(durable);
            let stamp = self.follower.stamp;
            let body = ChainBody::Ack { durable, stamp };
            self.send(self.term.head(), body, Bytes::new(), out);
        }
    }
}
