//! The head in office: proposals, committing, and what is due when.
//!
//! Invariants:
//! - a proposal's entry is encoded once, sent before it is given to the device, and answered when
//!   it is committed and applied, and what it displaced is known;
//! - committed = durable here and on enough others to make n − f, contiguously, and the entry that
//!   is counted is of this reign; what was inherited is committed by implication only;
//! - once an entry found no room on the device here, nothing is put behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ChainBody, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::bounds::Parting;
use crate::check;
use crate::dedup::Known;
use crate::entry::{self, Decoded, Mark, Piece};
use crate::gate::{Gates, Proposed};
use crate::indexing::Found;
use crate::mutants::mutant;
use crate::pending::{Facts, Judgement, Pending, Refusal};
use crate::progress::Progress;
use crate::replica::{Replica, Role};
use crate::teach::Teaching;

/// The head's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Head {
    pub(crate) serving: bool,
    /// Its device had no room for an entry: reads go on, no change is taken any more in this reign.
    pub(crate) stuck: bool,
    /// What it has put into the log of the partition's bounds, and is not applied yet.
    pub(crate) parting: Option<Parting>,
    /// This reign's first entry.
    pub(crate) term_start: Seq,
    pub(crate) pending: Pending,
    pub(crate) gates: Gates,
    /// Committed changes of which it is being asked what they displaced.
    pub(crate) owed: BTreeMap<u64, Owed>,
    /// Who asked to be taught in this reign: none of them should reign instead.
    pub(crate) asked: BTreeSet<DeviceNo>,
    /// Whom it teaches.
    pub(crate) teaching: BTreeMap<DeviceNo, Teaching>,
    /// Since when it is in office.
    pub(crate) since: Instant,
    /// The other members, spares that learn, and who is leaving.
    pub(crate) progress: BTreeMap<DeviceNo, Progress>,
    /// Who is left out, and was not told yet that this is committed.
    pub(crate) leaving: BTreeSet<DeviceNo>,
    /// Since when enough others hold what its own device has not written yet.
    pub(crate) behind_since: Option<Instant>,
    /// When the followers will be told what is committed, even if nothing else is sent.
    pub(crate) announce_at: Option<Instant>,
}

/// A committed change whose answer waits for what it displaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) seq: Seq,
    pub(crate) op: Op,
    pub(crate) waiters: Vec<u64>,
}

impl Hash for Owed {
    /// Its number names the entry, and that determines the change.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.seq.hash(state);
        self.waiters.hash(state);
    }
}

/// How a change was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) reply_to: u64,
    pub(crate) term: Term,
    pub(crate) retry: Option<Seq>,
    pub(crate) precondition: Precondition,
}

impl Replica {
    pub(crate) fn propose(&mut self, now: Instant, proposed: Proposed, out: &mut Vec<Action>) {
        let reply_to = proposed.asked.reply_to;
        let answer = match self.admit(&proposed) {
            Ok(Admission::Goes) => match self.consider(now, proposed, out) {
                Ok(()) => return,
                Err(refusal) => Reply::Error(refusal.into()),
            },
            Ok(Admission::Waits) => return,
            Ok(Admission::Done(seq)) => Reply::Committed {
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

    /// Whether the proposal may go into the log, as far as that does not depend on what is there.
    fn admit(&mut self, proposed: &Proposed) -> Result<Admission, Refusal> {
        let Asked {
            reply_to,
            term,
            retry,
            precondition,
        } = proposed.asked;
        self.check_reign(term)?;
        let Decoded {
            client,
            request,
            op,
            inline,
            ..
        } = &proposed.decoded;
        let known = self.dedup.known(*client, *request, retry);
        if let Known::Done(seq) = known {
            return Ok(Admission::Done(seq));
        }
        match self.head.pending.join(*client, *request, reply_to) {
            Some(true) => return Ok(Admission::Waits),
            Some(false) => return Err(self.busy("retries of this request")),
            None => {}
        }
        let refused = self.head.pending.refused(*client, *request).is_some();
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
        if let Some(why) = forgotten.filter(|_| !refused) {
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
        if self.leaves {
            let detail = format!("partition {}: its head hands over", self.config.partition);
            return Err(Refusal::new(ErrorCode::NotServing, detail));
        }
        check::op(op, precondition, inline)?;
        self.check_level(op)?;
        self.check_change(op)?;
        self.check_reachable()?;
        let adds = match op {
            Op::Put { .. }
            | Op::CreateBucket { .. }
            | Op::LockVersion { .. }
            // Whoever moves tries again later: no manifest takes the room that deletes need.
            | Op::Relocate { .. }
            | Op::Rename { .. } => true,
            Op::PutVersion { tag, .. } => !tag.marker,
            _ => false,
        };
        if self.full && adds {
            let detail = format!(
                "partition {}: the device of its head is full; deletes and reads go on",
                self.config.partition
            );
            return Err(Refusal::new(ErrorCode::DeviceFull, detail));
        }
        let Head { pending, gates, .. } = &self.head;
        let limits = &self.config.limits;
        let waiting = pending.len() + gates.len() + self.head.owed.len();
        let bytes = pending.bytes() + gates.bytes() + inline.len();
        if waiting >= limits.pending || bytes > limits.pending_bytes {
            return Err(self.busy("changes"));
        }
        Ok(Admission::Goes)
    }

    /// Whether enough others can be reached for a change to be committed.
    fn check_reachable(&self) -> Result<(), Refusal> {
        let members = self.members_but_me();
        let sealed = |peer: &&DeviceNo| self.progress(**peer).is_some_and(|p| p.sealed);
        let reachable = members.iter().filter(sealed).count();
        let needed = self.others_needed();
        if reachable >= needed {
            return Ok(());
        }
        let detail = format!(
            "partition {}: a change needs {needed} other replicas, {reachable} of {} can be \
             reached; away: {}",
            self.config.partition,
            members.len(),
            self.away(),
        );
        Err(Refusal::new(ErrorCode::NotServing, detail))
    }

    /// Finds out what it depends on: then it gets its place in the log, is refused, or waits.
    fn consider(
        &mut self,
        now: Instant,
        mut proposed: Proposed,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let Decoded {
            client,
            request,
            op,
            time_ms,
            ..
        } = &proposed.decoded;
        let refused = self.head.pending.refused(*client, *request).cloned();
        let judged = match refused {
            // It may rest on what is pending still, as it did the first time.
            Some(refusal) => Err(Judgement {
                refusal,
                pending: true,
            }),
            None => {
                let behind = self.head.gates.in_front(op).map(str::to_owned);
                if let Some(key) = behind {
                    // What it was told before may not be so any more when its turn comes.
                    proposed.facts = Facts::default();
                    self.head.gates.wait(&key, proposed, None);
                    return Ok(());
                }
                let precondition = proposed.asked.precondition;
                match self.find_out(op, precondition, &mut proposed.facts, out)? {
                    Found::All => {}
                    Found::Later { key, question } => {
                        if question.is_none() {
                            proposed.facts = Facts::default();
                        }
                        self.head.gates.wait(&key, proposed, question);
                        return Ok(());
                    }
                }
                let (pending, facts) = (&self.head.pending, &proposed.facts);
                pending.judge(facts, precondition, op, *time_ms)
            }
        };
        let Err(Judgement { refusal, pending }) = judged else {
            self.check_spans(&proposed.decoded.op)?;
            return self.order(now, proposed, out);
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
        let reply_to = proposed.asked.reply_to;
        self.head.pending.defer(self.log.last(), reply_to, refusal);
        Ok(())
    }

    pub(crate) fn busy(&self, what: &str) -> Refusal {
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
        proposed: Proposed,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let Proposed {
            asked,
            mut decoded,
            facts,
        } = proposed;
        let seq = Seq(self.log.last().0 + 1);
        let bytes = entry::encode(seq, self.term, &decoded)
            .map_err(|error| Refusal::new(ErrorCode::BadRequest, error.to_string()))?;
        let mark = Mark::of(&decoded.op);
        if decoded.inline.len() > self.config.limits.embed {
            // Only the device will have it.
            decoded.inline = Bytes::new();
        }
        let pending = &mut self.head.pending;
        pending.push(facts, seq, decoded, bytes.len(), asked.reply_to);
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

    /// The next entry, of the head's own accord. None if that cannot be: then it stops.
    pub(crate) fn own_piece(
        &mut self,
        decoded: &Decoded,
        prev_term: Option<Term>,
        mark: Mark,
        out: &mut Vec<Action>,
    ) -> Option<Piece> {
        let (seq, term) = (Seq(self.log.last().0 + 1), self.term);
        match entry::encode(seq, term, decoded) {
            Ok(bytes) => Some(Piece {
                seq,
                term,
                prev_term,
                mark,
                bytes,
            }),
            Err(error) => {
                let detail = format!("replica {} stopped: {error}", self.config.me);
                self.stop(Refusal::new(ErrorCode::Internal, detail), out);
                None
            }
        }
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
        let durable = self.log.durable();
        let quorum = self.log.chain().quorum();
        let behind = matched
            .get(quorum - 1)
            .is_some_and(|theirs| *theirs > durable);
        self.head.behind_since = self.head.behind_since.or(Some(now)).filter(|_| behind);
        let mut enough = durable;
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
            let taught = self.encourage(now, peer, out);
            let Some(progress) = self.progress(peer).filter(|p| p.sealed && p.known) else {
                continue;
            };
            let prev = progress.matched;
            if taught && prev < self.log.base() {
                continue;
            }
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
        let hang = limits.hang;
        let hung = self.head.behind_since.map(|since| since + hang);
        let fence = self.fence_deadline();
        let lessons = self.lessons_deadline();
        let all = soonest.into_iter().chain(fence).chain(hung);
        all.chain(lessons).min()
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
        let hang = self.config.limits.hang;
        if self
            .head
            .behind_since
            .is_some_and(|since| since + hang <= now)
        {
            return self.yield_to_others(now, "its device does not write what others have", out);
        }
        self.on_deadline_fence(now, out);
        self.make_way(now, out);
        if self.role != Role::Head {
            return;
        }
        self.on_deadline_lessons(now, out);
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

/// What becomes of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// It goes on.
    Goes,
    /// It was done before, by this entry.
    Done(Seq),
    /// It is answered when something pending is committed.
    Waits,
}
