//! From the log into the index: in order, up to what is committed. And reading the log back.
//!
//! Invariants:
//! - entries are applied once each, in order, and never beyond `committed` once replay is over;
//! - one read of the log is under way for applying, at most one for each follower that is fed, and
//!   a bounded number for the questions of each peer;
//! - what a read gives is used only if it is the entry that the log says: number, term, checksum.
//!   If it is not, the entry is fetched from a peer; it is never passed over.

use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::manifest::{Body, Op};
use ashlar_layout::message::{ChainBody, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Action, InlineRef};
use crate::dedup::Dedup;
use crate::entry::{self, Decoded, Piece};
use crate::index::{Index, Object};
use crate::mutants::mutant;
use crate::pending::Refusal;
use crate::replica::{Purpose, Read, Replica, Role};

impl Replica {
    /// Removes entry `from` and everything behind it.
    pub(crate) fn truncate(&mut self, from: Seq) {
        self.log.truncate(from);
        if self.log.last() < self.applied {
            self.reset_index();
        }
    }

    /// During replay: puts into the index what is unlikely to be superseded any more, before
    /// `more` bytes push it out of memory.
    pub(crate) fn apply_held(&mut self, more: usize) {
        let held = self.config.limits.replay_held;
        loop {
            let next = Seq(self.applied.0 + 1);
            let many = self.log.last().0.saturating_sub(self.applied.0) > held;
            if !many && !self.log.crowded(more) {
                return;
            }
            let Some(decoded) = self.log.recent(next).and_then(|b| entry::decode(b).ok()) else {
                return;
            };
            self.apply_one(next, decoded);
        }
    }

    /// Forgets what was applied: it will be read from the log again.
    pub(crate) fn reset_index(&mut self) {
        self.applied = Seq(0);
        self.index = Index::default();
        self.dedup = Dedup::new(self.config.limits.clients, self.config.limits.requests);
    }

    /// Applies what is committed, and tells those who wait for it.
    pub(crate) fn apply(&mut self, now: Instant, out: &mut Vec<Action>) {
        while self.applied < self.committed && self.stopped.is_none() {
            let next = Seq(self.applied.0 + 1);
            if let Some(proposal) = self.head.pending.pop(next) {
                let displaced = self.apply_one(next, proposal.decoded);
                for (nth, reply_to) in proposal.waiters.into_iter().enumerate() {
                    let displaced = displaced.clone().filter(|_| nth == 0);
                    let reply = Reply::Committed {
                        seq: next,
                        displaced,
                    };
                    out.push(Action::Reply { reply_to, reply });
                }
                continue;
            }
            match self.log.recent(next).map(entry::decode) {
                Some(Ok(decoded)) => {
                    self.apply_one(next, decoded);
                }
                Some(Err(error)) => return self.not_understood(&error.to_string(), out),
                None => return self.read_to_apply(next, out),
            }
        }
        while let Some((reply_to, refusal)) = self.head.pending.pop_deferred(self.applied) {
            // A refusal tells of the state, as a read does.
            let refusal = self.check_lease(now).err().unwrap_or(refusal);
            out.push(Action::Reply {
                reply_to,
                reply: Reply::Error(refusal.into()),
            });
        }
        if self.role == Role::Head
            && !self.head.serving
            && self.committed >= self.head.term_start
            && self.applied == self.committed
        {
            self.head.serving = true;
        }
    }

    fn apply_one(
        &mut self,
        seq: Seq,
        decoded: Decoded,
    ) -> Option<ashlar_layout::manifest::Manifest> {
        let Decoded {
            client,
            request,
            time_ms,
            op,
        } = decoded;
        if mutant!(self, WitnessAfterReply) {
            self.witness.raise(&entry::Piece {
                seq,
                term: self.term,
                prev_term: None,
                mark: entry::Mark::of(&op),
                bytes: Bytes::new(),
            });
        }
        if !matches!(op, Op::TermStart | Op::Chain { .. }) {
            self.dedup.done(client, request, seq);
        }
        self.applied = seq;
        self.index.apply(seq, time_ms, op)
    }

    /// The entry is whole, but this program cannot read it: going on would make another state of
    /// the same log.
    fn not_understood(&mut self, error: &str, out: &mut Vec<Action>) {
        let detail = format!("replica {} stopped: {error}", self.config.me);
        self.stop(Refusal::new(ErrorCode::Internal, detail), out);
    }

    fn read_to_apply(&mut self, next: Seq, out: &mut Vec<Action>) {
        if self.applying.is_some() || self.repairs.contains_key(&next) {
            return;
        }
        // None if it is a hole, though committed: a follower's, which the head will fill.
        self.applying = self.read_log(Purpose::Apply, next, self.committed, out);
    }

    /// Reads entries from the device; `None` if the first is not there.
    pub(crate) fn read_log(
        &mut self,
        purpose: Purpose,
        first: Seq,
        last: Seq,
        out: &mut Vec<Action>,
    ) -> Option<u64> {
        let run = self.log.run(first, last, self.config.limits.batch_bytes)?;
        let token = self.token();
        self.reads.insert(
            token,
            Read {
                purpose,
                first: run.first,
                last: run.last,
            },
        );
        out.push(Action::ReadLog {
            token,
            at: run.at,
            len: run.len,
        });
        Some(token)
    }

    pub(crate) fn on_log_read(
        &mut self,
        now: Instant,
        token: u64,
        bytes: Option<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let Some(read) = self.reads.remove(&token) else {
            return;
        };
        let pieces = self.verified_pieces(&read, bytes);
        let lost = pieces.is_empty() && self.log.slot(read.first).is_some();
        match read.purpose {
            Purpose::Apply => {
                self.applying = None;
                for piece in pieces {
                    // Truncated or reset while it was read.
                    if piece.seq.0 != self.applied.0 + 1 || piece.seq > self.committed {
                        continue;
                    }
                    match entry::decode(&piece.bytes) {
                        Ok(decoded) => {
                            self.apply_read(piece.seq, decoded, out);
                        }
                        Err(error) => return self.not_understood(&error.to_string(), out),
                    }
                }
            }
            Purpose::Feed(peer) => {
                let waited = self.fed_read(peer, token);
                if waited {
                    self.send_read(now, peer, &pieces, out);
                }
            }
            Purpose::Serve(peer) => {
                if self.serves.get(&(peer, read.first)) == Some(&token) {
                    self.serves.remove(&(peer, read.first));
                    self.send_entries(peer, read.first, &pieces, out);
                }
            }
        }
        if lost {
            self.repair(now, read.first, false, out);
        }
    }

    /// As `apply`, for an entry that was read back: at a head nobody waits for those.
    pub(crate) fn apply_read(&mut self, seq: Seq, decoded: Decoded, out: &mut Vec<Action>) {
        match self.head.pending.pop(seq) {
            Some(proposal) => {
                let displaced = self.apply_one(seq, decoded);
                for (nth, reply_to) in proposal.waiters.into_iter().enumerate() {
                    let displaced = displaced.clone().filter(|_| nth == 0);
                    out.push(Action::Reply {
                        reply_to,
                        reply: Reply::Committed { seq, displaced },
                    });
                }
            }
            None => {
                self.apply_one(seq, decoded);
            }
        }
    }

    /// What was read, as far as it is what the log says.
    fn verified_pieces(&self, read: &Read, bytes: Option<Bytes>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let _damaged_behind = entry::split(&bytes.unwrap_or_default(), &mut pieces);
        let good = pieces
            .iter()
            .zip(read.first.0..=read.last.0)
            .take_while(|(piece, seq)| {
                piece.seq.0 == *seq && self.log.term(piece.seq) == Some(piece.term)
            })
            .count();
        pieces.truncate(good);
        pieces
    }

    /// Answers a `Fetch` with what is held from `first` on: as much as one message takes.
    pub(crate) fn on_fetch(
        &mut self,
        peer: DeviceNo,
        first: Seq,
        last: Seq,
        out: &mut Vec<Action>,
    ) {
        let last = last.min(self.log.last());
        let parts = self
            .log
            .recent_run(first, last, self.config.limits.batch_bytes);
        // A peer may repair several entries at once, and wants an answer for each; to the same
        // question only the latest counts.
        self.serves.remove(&(peer, first));
        if parts.is_empty() && !self.repairs.contains_key(&first) {
            let questions = (peer, Seq(0))..=(peer, Seq(u64::MAX));
            if self.serves.range(questions).count() > self.config.limits.repairs {
                // Silence, since "none" would be untrue: it will ask again.
                return;
            }
            if let Some(token) = self.read_log(Purpose::Serve(peer), first, last, out) {
                self.serves.insert((peer, first), token);
                return;
            }
        }
        let count = parts.len() as u32;
        self.send(
            peer,
            ChainBody::Entries { first, count },
            entry::join(&parts),
            out,
        );
    }

    fn send_entries(&self, peer: DeviceNo, first: Seq, pieces: &[Piece], out: &mut Vec<Action>) {
        let parts: Vec<Bytes> = pieces.iter().map(|piece| piece.bytes.clone()).collect();
        let count = parts.len() as u32;
        self.send(
            peer,
            ChainBody::Entries { first, count },
            entry::join(&parts),
            out,
        );
    }

    /// Where an object's inline payload is.
    pub(crate) fn inline_ref(&self, object: &Object) -> Option<InlineRef> {
        if object.manifest.body != Body::Inline {
            return None;
        }
        let slot = self.log.slot(object.version)?;
        Some(InlineRef {
            seq: object.version,
            term: slot.term,
            at: slot.at,
            len: slot.len,
        })
    }
}
