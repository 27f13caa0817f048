//! The head in office: proposals, committing, and what is due when.
//!
//! Invariants:
//! - a proposal's entry is encoded once, sent before it is given to the device, and answered when
//!   it is committed and applied;
//! - committed = durable here and on enough others to make n − f, contiguously, and the entry that
//!   is counted is of this reign; what was inherited is committed by implication only;
//! - once an entry found no room on the device here, nothing is put behind it.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ChainBody, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::check;
use crate::dedup::Known;
use crate::entry::{self, Decoded, Mark, Piece};
use crate::mutants::mutant;
use crate::pending::{Judgement, Pending, Refusal};
use crate::progress::Progress;
use crate::replica::{Replica, Role};

/// The head's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Head {
    pub(crate) serving: bool,
    /// Its device had no room for an entry: reads go on, no change is taken any more in this reign.
    pub(crate) stuck: bool,
    /// This reign's first entry.
    pub(crate) term_start: Seq,
    pub(crate) pending: Pending,
    /// Since when it is in office.
    pub(crate) since: Instant,
    /// The other members, spares that learn, and who is leaving.
    pub(crate) progress: BTreeMap<DeviceNo, Progress>,
    /// Who is left out, and was not told yet that this is committed.
    pub(crate) leaving: BTreeSet<DeviceNo>,
    /// When the followers will be told what is committed, even if nothing else is sent.
    pub(crate) announce_at: Option<Instant>,
}

/// How a change was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) reply_to: u64,
    pub(crate) term: Term,
    pub(crate) retry: Option<Seq>,
    pub(crate) precondition: Precondition,
}

impl Replica {
    pub(crate) fn propose(
        &mut self,
        now: Instant,
        asked: Asked,
        decoded: Decoded,
        inline: &[u8],
        out: &mut Vec<Action>,
    ) {
        let reply_to = asked.reply_to;
        let answer = match self.admit(now, asked, &decoded, inline) {
            Ok(None) => match self.order(now, reply_to, decoded, inline, out) {
                Ok(()) => return,
                Err(refusal) => Reply::Error(refusal.into()),
            },
            Ok(Some(Admission::Waits)) => return,
            Ok(Some(Admission::Done(seq))) => Reply::Committed {
                seq,
                displaced: None,
            },
            Err(refusal) => Reply::Error(refusal.into()),
        };
        out.push(Action::Reply {
            reply_to,
            reply: answer,
        });
    }

    /// Whether the proposal may go into the log: `None` if so.
    fn admit(
        &mut self,
        now: Instant,
        asked: Asked,
        decoded: &Decoded,
        inline: &[u8],
    ) -> Result<Option<Admission>, Refusal> {
        let Asked {
            reply_to,
            term,
            retry,
            precondition,
        } = asked;
        self.check_reign(term)?;
        let Decoded {
            client,
            request,
            op,
            ..
        } = decoded;
        let known = self.dedup.known(*client, *request, retry);
        if let Known::Done(seq) = known {
            return Ok(Some(Admission::Done(seq)));
        }
        match self.head.pending.join(*client, *request, reply_to) {
            Some(true) => return Ok(Some(Admission::Waits)),
            Some(false) => return Err(self.busy("retries of this request")),
            None => {}
        }
        let refused = self.head.pending.refused(*client, *request).cloned();
        let forgotten = match known {
            Known::TooOld { floor } => Some(format!(
                "it was overtaken by later ones (up to {floor} nothing is remembered)"
            )),
            Known::Forgotten { up_to } => Some(format!(
                "what that client did up to entry {up_to} is forgotten, for many others came since"
            )),
            Known::New | Known::Done(_) => None,
        };
        // What was refused here was not done, whatever else is forgotten.
        if let Some(why) = forgotten.filter(|_| refused.is_none()) {
            let detail = format!(
                "whether request {request} of client {client:x?} was done is not known any more: {why}"
            );
            return Err(Refusal::new(ErrorCode::OutcomeUnknown, detail));
        }
        if self.head.stuck {
            let detail = format!(
                "partition {}: the device of its head had no room for the journal; reads go on, changes \
                 do when it has room again",
                self.config.partition
            );
            return Err(Refusal::new(ErrorCode::DeviceFull, detail));
        }
        check::op(op, precondition, inline)?;
        let limits = &self.config.limits;
        let members = self.members_but_me();
        let sealed = |peer: &&DeviceNo| self.progress(**peer).is_some_and(|p| p.sealed);
        let reachable = members.iter().filter(sealed).count();
        let needed = self.others_needed();
        if reachable < needed {
            let detail = format!(
                "partition {}: a change needs {needed} other replicas, {reachable} of {} can be \
                 reached; away: {}",
                self.config.partition,
                members.len(),
                self.away(),
            );
            return Err(Refusal::new(ErrorCode::NotServing, detail));
        }
        if self.full && matches!(op, Op::Put { .. } | Op::CreateBucket { .. }) {
            let detail = format!(
                "partition {}: the device of its head is full; deletes and reads go on",
                self.config.partition
            );
            return Err(Refusal::new(ErrorCode::DeviceFull, detail));
        }
        let over = self.head.pending.bytes() + inline.len() > limits.pending_bytes;
        if self.head.pending.len() >= limits.pending || over {
            return Err(self.busy("changes"));
        }
        let judged = match refused {
            // It may rest on what is pending still, as it did the first time.
            Some(refusal) => Err(Judgement {
                refusal,
                pending: true,
            }),
            None => self.head.pending.judge(&self.index, precondition, op),
        };
        let Err(Judgement { refusal, pending }) = judged else {
            return Ok(None);
        };
        // A refusal tells of the state, as a read does.
        self.check_lease(now)?;
        let most = self.config.limits.refusals;
        if self.head.pending.refused(*client, *request).is_none() {
            self.head.pending.refuse(*client, *request, &refusal, most);
        }
        if !pending {
            return Err(refusal);
        }
        self.head.pending.defer(self.log.last(), reply_to, refusal);
        Ok(Some(Admission::Waits))
    }

    fn busy(&self, what: &str) -> Refusal {
        let detail = format!(
            "partition {}: too many {what} are waiting to be committed; come back later",
            self.config.partition
        );
        Refusal::new(ErrorCode::Busy, detail)
    }

    /// Gives the proposal its place, sends it and writes it.
    fn order(
        &mut self,
        now: Instant,
        reply_to: u64,
        decoded: Decoded,
        inline: &[u8],
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let seq = Seq(self.log.last().0 + 1);
        let bytes = entry::encode(seq, self.term, &decoded, inline)
            .map_err(|error| Refusal::new(ErrorCode::BadRequest, error.to_string()))?;
        let mark = Mark::of(&decoded.op);
        self.head
            .pending
            .push(&self.index, seq, decoded, bytes.len(), reply_to);
        self.append(
            now,
            Piece {
                seq,
                term: self.term,
                prev_term: None,
                mark,
                bytes,
            },
            out,
        );
        Ok(())
    }

    /// A new entry: forward first, then the device.
    pub(crate) fn append(&mut self, now: Instant, piece: Piece, out: &mut Vec<Action>) {
        let mut persist = Vec::new();
        self.write(std::slice::from_ref(&piece), &mut persist);
        self.feed_all(now, out);
        out.append(&mut persist);
    }

    /// Counts who holds what; what enough hold is committed.
    pub(crate) fn advance_commit(&mut self, now: Instant) {
        let others = self.others_needed();
        let mut matched: Vec<Seq> = self
            .members_but_me()
            .into_iter()
            .filter_map(|peer| self.progress(peer))
            .map(|progress| progress.matched)
            .collect();
        matched.sort_unstable_by(|a, b| b.cmp(a));
        let mut enough = self.log.durable();
        if others > 0 {
            enough = enough.min(matched.get(others - 1).copied().unwrap_or_default());
        }
        let own = self.log.term(enough) == Some(self.term) || mutant!(self, CommitAcrossEpochs);
        if enough > self.committed && own {
            self.committed = enough;
            let soon = now + self.config.limits.announce;
            let announce_at = self.head.announce_at.get_or_insert(soon);
            *announce_at = soon.min(*announce_at);
        }
    }

    /// Tells the followers what is committed: soon after it is, and then now and again, since one
    /// that missed it would not know.
    pub(crate) fn announce(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.head.announce_at = Some(now + self.config.limits.heartbeat);
        let chain_seq = self.log.chain_seq();
        for peer in self.watched() {
            let Some(progress) = self.progress(peer).filter(|p| p.sealed && p.known) else {
                continue;
            };
            let prev = progress.matched;
            if prev >= chain_seq && self.committed >= chain_seq && !self.log.chain().contains(peer)
            {
                // This message tells it.
                self.head.leaving.remove(&peer);
            }
            if let Some(prev_term) = self.log.term(prev) {
                let committed = self.committed;
                let body = ChainBody::Append {
                    prev,
                    prev_term,
                    count: 0,
                    committed,
                    stamp: now.0,
                };
                self.send(peer, body, Bytes::new(), out);
            }
        }
    }

    pub(crate) fn head_deadline(&self) -> Option<Instant> {
        let limits = &self.config.limits;
        let mut soonest = self.head.announce_at;
        let first = self.order_but_me().first().copied();
        for peer in self.watched_up() {
            if let Some(progress) = self.progress(peer) {
                let follows = Some(peer) != first && self.log.chain().contains(peer);
                let rechain = progress.rechain_at.filter(|_| follows && progress.known);
                soonest = soonest
                    .into_iter()
                    .chain(progress.overdue(limits))
                    .chain(rechain)
                    .min();
            }
        }
        soonest.into_iter().chain(self.fence_deadline()).min()
    }

    /// Everybody that it feeds.
    fn watched(&self) -> Vec<DeviceNo> {
        self.head.progress.keys().copied().collect()
    }

    fn watched_up(&self) -> Vec<DeviceNo> {
        let mut watched = self.watched();
        watched.retain(|peer| self.is_up(*peer));
        watched
    }

    pub(crate) fn on_deadline_head(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.head.announce_at.is_some_and(|at| at <= now) {
            self.announce(now, out);
        }
        self.on_deadline_fence(now, out);
        if self.role != Role::Head {
            return;
        }
        let limits = self.config.limits.clone();
        for peer in self.watched_up() {
            let Some(progress) = self.progress(peer) else {
                continue;
            };
            if progress.overdue(&limits).is_some_and(|at| at <= now) {
                if progress.chained {
                    self.bypass(now, peer, out);
                } else if progress.sealed {
                    self.resend(now, peer, out);
                } else {
                    self.seal_again(now, peer, out);
                }
            }
            self.rechain(now, peer);
        }
    }
}

/// What becomes of a proposal that does not go into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// It was done before, by this entry.
    Done(Seq),
    /// It is answered when something pending is committed.
    Waits,
}
