//! A follower: takes what the head orders, passes it on, writes it, says what is durable.
//!
//! Invariants:
//! - nothing is taken but from the reign that it sealed in this life, and joined on to what it holds:
//!   number and term of the entry before must agree;
//! - `verified` is how far the log is known to agree with the head's in this reign: nothing beyond
//!   it is acknowledged, and nothing beyond it is committed here;
//! - acknowledged = durable here, contiguously, and verified;
//! - what is committed is never removed;
//! - what is new is passed on before it is written, whether or not it could be taken here.

use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::message::{ChainBody, ErrorCode};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::Piece;
use crate::pending::Refusal;
use crate::replica::{Replica, received};

/// The head's place in the chain.
const HEAD: u8 = 0;
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
}

/// What an `Append` says.
#[derive(Clone, Copy, Debug)]
struct Joint {
    prev: Seq,
    prev_term: Term,
    count: u32,
    committed: Seq,
}

impl Replica {
    pub(crate) fn on_message_follower(
        &mut self,
        now: Instant,
        from: u8,
        term: Term,
        body: ChainBody,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        if matches!(body, ChainBody::Seal) {
            if from == HEAD {
                self.seal(term, out);
            }
            return;
        }
        if !self.follower.sealed || term != self.term {
            let newer = !self.follower.sealed || term > self.term;
            if matches!(body, ChainBody::Append { .. }) && newer {
                // Term 0 tells the head that its reign is not known here: it will say so again.
                let body = ChainBody::Mismatch {
                    last: Seq(0),
                    last_term: Term(0),
                };
                self.send_as(Term(0), HEAD, body, Bytes::new(), out);
            }
            return;
        }
        match body {
            ChainBody::Append {
                prev,
                prev_term,
                count,
                committed,
            } => {
                self.on_append(
                    Joint {
                        prev,
                        prev_term,
                        count,
                        committed,
                    },
                    payload,
                    out,
                );
            }
            ChainBody::Fetch { first, last } => self.on_fetch(from, first, last, out),
            ChainBody::Entries { first, count } => {
                let pieces = received(&payload, first, count);
                self.on_repair_entries(now, from, first, &pieces, out);
            }
            // These are for heads.
            ChainBody::Seal
            | ChainBody::Sealed { .. }
            | ChainBody::Ack { .. }
            | ChainBody::Mismatch { .. } => {}
        }
    }

    /// A head takes office (or finds this replica again).
    fn seal(&mut self, term: Term, out: &mut Vec<Action>) {
        let known = if self.follower.sealed {
            self.term
        } else {
            self.log.last_term()
        };
        if term < known.max(self.log.last_term()) {
            return;
        }
        if !self.follower.sealed || term > self.term {
            self.follower = Follower {
                sealed: true,
                ..Follower::default()
            };
            self.term = term;
        }
        self.follower.acked = None;
        let (last, last_term, mut holes) = self.log.durable_tail(HOLES_MAX);
        if self.log.tail_damaged() {
            // What may have been behind the last entry cannot be told.
            holes.push((Seq(last.0 + 1), Seq(u64::MAX)));
        }
        let body = ChainBody::Sealed {
            last,
            last_term,
            holes,
        };
        self.send(HEAD, body, Bytes::new(), out);
    }

    fn on_append(&mut self, joint: Joint, payload: Bytes, out: &mut Vec<Action>) {
        let Joint {
            prev,
            prev_term,
            count,
            committed,
        } = joint;
        let Some(first) = prev.0.checked_add(1) else {
            return;
        };
        let pieces = received(&payload, Seq(first), count);
        let rising = pieces.iter().try_fold(prev_term, |below, piece| {
            (below <= piece.term && piece.term <= self.term).then_some(piece.term)
        });
        if pieces.len() != count as usize || rising.is_none() {
            // Not what a head sends. It will be sent again.
            return;
        }
        let fresh = pieces
            .iter()
            .any(|piece| self.log.term(piece.seq) != Some(piece.term));
        let end = Seq(prev.0 + u64::from(count));
        let successor = self.config.me + 1;
        // What is committed already is on its way to a replica that is behind: to this one alone.
        if fresh && end > committed && successor < self.config.replicas && self.is_up(successor) {
            let body = ChainBody::Append {
                prev,
                prev_term,
                count,
                committed,
            };
            self.send(successor, body, payload.clone(), out);
        }
        let crowded = fresh
            && self.log.writing_bytes() + payload.len() > self.config.limits.unpersisted_bytes;
        if crowded || self.log.term(prev) != Some(prev_term) {
            let below = Seq(if crowded {
                prev.0
            } else {
                prev.0.saturating_sub(1)
            });
            let last = self.log.at_most(below, prev_term);
            let last_term = self.log.term(last).unwrap_or_default();
            return self.send(
                HEAD,
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
        self.acknowledge(written == 0, out);
    }

    /// Takes entries that join on to what is held: new ones are written, what they contradict is
    /// removed. How many were new; `None` if the replica stopped.
    pub(crate) fn take(&mut self, pieces: &[Piece], out: &mut Vec<Action>) -> Option<usize> {
        let mut written = 0;
        let mut from = 0;
        for at in 0..pieces.len() {
            let piece = &pieces[at];
            let held = self.log.term(piece.seq);
            if held == Some(piece.term) {
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
                self.truncate(piece.seq);
            }
            written += 1;
        }
        self.write(&pieces[from..], out);
        Some(written)
    }

    /// Tells the head what is durable: if that is more than it was told (at first: nothing), or in any
    /// case.
    pub(crate) fn acknowledge(&mut self, in_any_case: bool, out: &mut Vec<Action>) {
        let durable = self.log.durable().min(self.follower.verified);
        let told = self.follower.acked.unwrap_or_default() >= durable;
        // An unasked "nothing" right after sealing would have the head send all of its log again.
        if self.follower.sealed && (in_any_case || !told) {
            self.follower.acked = Some(durable);
            self.send(HEAD, ChainBody::Ack { durable }, Bytes::new(), out);
        }
    }
}
