//! The head in office: proposals, feeding the followers, committing.
//!
//! Invariants:
//! - a proposal's entry is encoded once, sent before it is given to the device, and answered when
//!   it is committed and applied;
//! - committed = durable here and on enough others to make n − f, contiguously, and the entry that
//!   is counted is of this reign; what was inherited is committed by implication only;
//! - no follower's answer is needed twice: what is sent and not acknowledged is bounded for each
//!   follower, what is beyond is read from the log when the follower gets there;
//! - once an entry found no room on the device here, nothing is put behind it;
//! - a follower is fed by its predecessor only while that one is itself fed without delay; when it
//!   is silent for longer than it usually takes, the head feeds it directly.

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ChainBody, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::check;
use crate::dedup::Known;
use crate::entry::{self, Decoded, Piece};
use crate::pending::{Judgement, Pending, Refusal};
use crate::progress::Progress;
use crate::replica::{Link, Purpose, Replica, Role};

/// How far a follower may be behind what is committed when another is to be fed through it.
const RECHAIN_LAG: u64 = 64;

/// The head's own state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Head {
    pub(crate) serving: bool,
    /// Its device had no room for an entry: reads go on, no change is taken any more in this reign.
    pub(crate) stuck: bool,
    /// This reign's first entry.
    pub(crate) term_start: Seq,
    pub(crate) pending: Pending,
    /// By place in the chain; the head's own is unused.
    pub(crate) progress: Vec<Progress>,
    /// When the followers will be told what is committed, even if nothing else is sent.
    pub(crate) announce_at: Option<Instant>,
}

impl Head {
    pub(crate) fn new(replicas: usize) -> Self {
        Self {
            serving: false,
            stuck: false,
            term_start: Seq(0),
            pending: Pending::default(),
            progress: vec![Progress::new(); replicas],
            announce_at: None,
        }
    }
}

/// How a change was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) reply_to: u64,
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
        let answer = match self.admit(asked, &decoded, inline) {
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
        asked: Asked,
        decoded: &Decoded,
        inline: &[u8],
    ) -> Result<Option<Admission>, Refusal> {
        let Asked {
            reply_to,
            retry,
            precondition,
        } = asked;
        self.check_serving()?;
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
        let reachable = 1 + self
            .head
            .progress
            .iter()
            .filter(|progress| progress.sealed)
            .count();
        if reachable < self.config.quorum() {
            let detail = format!(
                "partition {}: a change needs {} of {} replicas, {reachable} can be reached; away: {}",
                self.config.partition,
                self.config.quorum(),
                self.config.replicas,
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
        self.head
            .pending
            .push(&self.index, seq, decoded, bytes.len(), reply_to);
        self.append(
            now,
            Piece {
                seq,
                term: self.term,
                prev_term: None,
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

    pub(crate) fn feed_all(&mut self, now: Instant, out: &mut Vec<Action>) {
        for peer in 1..self.config.replicas {
            if !self.progress(peer).is_some_and(|progress| progress.chained) {
                self.feed(now, peer, out);
                continue;
            }
            // Whoever feeds it must have the entries to feed it with.
            let last = self.log.last();
            if self.is_fed(peer - 1) {
                if let Some(progress) = self.progress_mut(peer) {
                    progress.next = Seq(last.0 + 1);
                    progress.time(last, now);
                }
            } else {
                self.bypass(now, peer, out);
            }
        }
    }

    /// Whether everything in the log was sent to this follower, by whatever way.
    fn is_fed(&self, peer: u8) -> bool {
        let last = self.log.last();
        self.is_up(peer)
            && self
                .progress(peer)
                .is_some_and(|p| p.sealed && p.known && !p.probing && p.next > last)
    }

    /// Sends what a follower lacks, as far as its window reaches.
    fn feed(&mut self, now: Instant, peer: u8, out: &mut Vec<Action>) {
        let limits = self.config.limits.clone();
        let last = self.log.last();
        while self.is_up(peer) {
            let Some(progress) = self.progress(peer) else {
                return;
            };
            if !progress.sealed || progress.chained || progress.reading.is_some() {
                return;
            }
            let next = progress.next;
            if progress.probing {
                if progress.probed {
                    return;
                }
            } else {
                let entries = next.0 - progress.matched.0 - 1;
                let over =
                    entries >= limits.window_entries || progress.inflight >= limits.window_bytes;
                if next > last || over {
                    return;
                }
            }
            let parts = self.log.recent_run(next, last, limits.batch_bytes);
            if parts.is_empty() && next <= last {
                if !self.repairs.contains_key(&next) {
                    let token = self.read_log(Purpose::Feed(peer), next, last, out);
                    if let Some(progress) = self.progress_mut(peer) {
                        progress.reading = token;
                    }
                }
                return;
            }
            self.send_append(now, peer, &parts, out);
        }
    }

    /// Sends these entries, from the follower's `next` on.
    fn send_append(&mut self, now: Instant, peer: u8, parts: &[Bytes], out: &mut Vec<Action>) {
        let Some(progress) = self.progress(peer) else {
            return;
        };
        let prev = Seq(progress.next.0 - 1);
        let Some(prev_term) = self.log.term(prev) else {
            return;
        };
        let count = parts.len() as u32;
        let body = ChainBody::Append {
            prev,
            prev_term,
            count,
            committed: self.committed,
        };
        let payload = entry::join(parts);
        let bytes = payload.len();
        self.send(peer, body, payload, out);
        if let Some(progress) = self.progress_mut(peer) {
            progress.next.0 += u64::from(count);
            progress.inflight += bytes;
            progress.probed = progress.probing;
            let last = Seq(progress.next.0 - 1);
            if count > 0 {
                progress.time(last, now);
            } else {
                progress.waiting_since.get_or_insert(now);
            }
        }
    }

    /// A read of the log for a follower came back; whether it is still wanted.
    pub(crate) fn fed_read(&mut self, peer: u8, token: u64) -> bool {
        match self.progress_mut(peer) {
            Some(progress) if progress.reading == Some(token) => {
                progress.reading = None;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn send_read(
        &mut self,
        now: Instant,
        peer: u8,
        pieces: &[Piece],
        out: &mut Vec<Action>,
    ) {
        let next = self.progress(peer).map(|progress| progress.next);
        if !pieces.is_empty() && pieces.first().map(|piece| piece.seq) == next {
            let parts: Vec<Bytes> = pieces.iter().map(|piece| piece.bytes.clone()).collect();
            self.send_append(now, peer, &parts, out);
            self.feed(now, peer, out);
        }
    }

    pub(crate) fn on_ack(&mut self, now: Instant, peer: u8, durable: Seq, out: &mut Vec<Action>) {
        if self.role != Role::Head || durable > self.log.last() {
            return;
        }
        let limits = self.config.limits.clone();
        let Some(progress) = self.progress(peer).filter(|progress| progress.sealed) else {
            return;
        };
        let more = durable > progress.matched;
        let from = if progress.probing {
            durable
        } else {
            progress.matched
        };
        let acked: usize = (from.0 + 1..=durable.0)
            .filter_map(|seq| self.log.slot(Seq(seq)))
            .map(|slot| slot.len as usize)
            .sum();
        let last = self.log.last();
        if let Some(progress) = self.progress_mut(peer) {
            progress.known = true;
            progress.matched = progress.matched.max(durable);
            progress.timed(durable, now);
            progress.inflight = progress.inflight.saturating_sub(acked);
            if progress.probing {
                progress.probing = false;
                progress.probed = false;
                progress.next = Seq(progress.matched.0 + 1);
                progress.inflight = 0;
            }
            progress.next = progress.next.max(Seq(progress.matched.0 + 1));
            if progress.matched.0 + 1 == progress.next.0 {
                progress.waiting_since = None;
                progress.inflight = 0;
            } else if more {
                progress.waiting_since = Some(now);
            }
            if more {
                progress.patience = limits.resend;
                if progress.chained && progress.matched > progress.chained_from {
                    progress.rechain_wait = limits.rechain;
                }
            }
            if progress.matched == last {
                progress.waiting_since = None;
            }
        }
        self.advance_commit(now);
        self.feed(now, peer, out);
        self.rechain(now, peer);
    }

    pub(crate) fn on_mismatch(
        &mut self,
        now: Instant,
        peer: u8,
        last: Seq,
        last_term: ashlar_layout::ids::Term,
        out: &mut Vec<Action>,
    ) {
        if self.role != Role::Head {
            return;
        }
        let next = Seq(self.log.at_most(last, last_term).0 + 1);
        let Some(progress) = self.progress_mut(peer).filter(|progress| progress.sealed) else {
            return;
        };
        if progress.chained {
            // Its predecessor skipped something.
            self.bypass(now, peer, out);
        } else if progress.probing && next < progress.next {
            progress.probe(next);
            progress.waiting_since = None;
            self.feed(now, peer, out);
        }
        // Else what it misses is on its way, or will be sent again when it stays silent.
    }

    pub(crate) fn on_sealed(
        &mut self,
        now: Instant,
        peer: u8,
        last: Seq,
        last_term: ashlar_layout::ids::Term,
        holes: Vec<(Seq, Seq)>,
        out: &mut Vec<Action>,
    ) {
        match self.role {
            Role::Starting => self.on_sealed_starting(now, peer, last, last_term, holes, out),
            Role::Head => {
                let again = self.progress(peer).is_some_and(|progress| progress.sealed);
                if self.is_up(peer) && !again {
                    self.enlist(now, peer, last, last_term, out);
                }
            }
            _ => {}
        }
    }

    /// A follower has sealed this reign: it is fed from where its log may agree.
    pub(crate) fn enlist(
        &mut self,
        now: Instant,
        peer: u8,
        last: Seq,
        last_term: ashlar_layout::ids::Term,
        out: &mut Vec<Action>,
    ) {
        let next = Seq(self.log.at_most(last, last_term).0 + 1);
        let limits = self.config.limits.clone();
        if let Some(progress) = self.progress_mut(peer) {
            progress.sealed(next, now, &limits);
        }
        self.feed(now, peer, out);
    }

    /// A message of an older reign: the sender has not sealed this one (any more).
    pub(crate) fn on_older_term(&mut self, now: Instant, peer: u8, out: &mut Vec<Action>) {
        let sealed = self.progress(peer).is_some_and(|progress| progress.sealed);
        if self.role == Role::Head && self.is_up(peer) && sealed {
            self.seal_again(now, peer, out);
        }
    }

    pub(crate) fn seal_again(&mut self, now: Instant, peer: u8, out: &mut Vec<Action>) {
        let resend = self.config.limits.resend;
        if let Some(progress) = self.progress_mut(peer) {
            progress.disconnected();
            progress.patience = resend;
            progress.waiting_since = Some(now);
        }
        self.send(peer, ChainBody::Seal, Bytes::new(), out);
        self.unchain_behind(now, peer, out);
    }

    pub(crate) fn on_link_head(
        &mut self,
        now: Instant,
        peer: u8,
        link: Link,
        out: &mut Vec<Action>,
    ) {
        if link == Link::Up {
            return self.seal_again(now, peer, out);
        }
        if let Some(progress) = self.progress_mut(peer) {
            progress.disconnected();
        }
        self.unchain_behind(now, peer, out);
    }

    /// Whoever is fed through this replica is fed directly.
    fn unchain_behind(&mut self, now: Instant, peer: u8, out: &mut Vec<Action>) {
        for behind in peer.saturating_add(1)..self.config.replicas {
            if !self
                .progress(behind)
                .is_some_and(|progress| progress.chained)
            {
                return;
            }
            self.bypass(now, behind, out);
        }
    }

    /// Feeds a follower directly from now on, from the last entry that it acknowledged.
    fn bypass(&mut self, now: Instant, peer: u8, out: &mut Vec<Action>) {
        let longest = self.config.limits.rechain * 32;
        if let Some(progress) = self.progress_mut(peer) {
            progress.chained = false;
            progress.next = Seq(progress.matched.0 + 1);
            progress.inflight = 0;
            progress.sample = None;
            progress.waiting_since = None;
            progress.rechain_at = Some(now + progress.rechain_wait);
            progress.rechain_wait = (progress.rechain_wait * 2).min(longest);
        }
        self.feed(now, peer, out);
    }

    /// Feeds a follower through its predecessor again, if it is time and both have caught up.
    fn rechain(&mut self, now: Instant, peer: u8) {
        let due = self
            .progress(peer)
            .is_some_and(|p| !p.chained && p.rechain_at.is_some_and(|at| at <= now));
        if peer < 2 || !due {
            return;
        }
        let last = self.log.last();
        let caught_up = self.is_fed(peer)
            && self.is_fed(peer - 1)
            && self
                .progress(peer - 1)
                .is_some_and(|p| p.matched.0 + RECHAIN_LAG >= self.committed.0);
        let wait = self.config.limits.rechain;
        if let Some(progress) = self.progress_mut(peer) {
            if caught_up {
                progress.chained = true;
                progress.chained_from = last;
                progress.waiting_since = progress.waiting_since.map(|_| now);
                progress.rechain_at = None;
            } else if progress.known {
                progress.rechain_at = Some(now + wait);
            }
        }
    }

    /// Counts who holds what; what enough hold is committed.
    pub(crate) fn advance_commit(&mut self, now: Instant) {
        let others = self.config.quorum() - 1;
        let mut matched: Vec<Seq> = self
            .peers()
            .filter_map(|peer| self.progress(peer))
            .map(|progress| progress.matched)
            .collect();
        matched.sort_unstable_by(|a, b| b.cmp(a));
        let mut enough = self.log.durable();
        if others > 0 {
            enough = enough.min(matched.get(others - 1).copied().unwrap_or_default());
        }
        if enough > self.committed && self.log.term(enough) == Some(self.term) {
            self.committed = enough;
            self.head
                .announce_at
                .get_or_insert(now + self.config.limits.announce);
        }
    }

    /// Tells the followers what is committed: soon after it is, and then now and again, since one
    /// that missed it would not know.
    fn announce(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.head.announce_at = Some(now + self.config.limits.heartbeat);
        for peer in self.peers() {
            let Some(progress) = self.progress(peer).filter(|p| p.sealed && p.known) else {
                continue;
            };
            let prev = progress.matched;
            if let Some(prev_term) = self.log.term(prev) {
                let committed = self.committed;
                let body = ChainBody::Append {
                    prev,
                    prev_term,
                    count: 0,
                    committed,
                };
                self.send(peer, body, Bytes::new(), out);
            }
        }
    }

    pub(crate) fn head_deadline(&self) -> Option<Instant> {
        let limits = &self.config.limits;
        let mut soonest = self.head.announce_at;
        for peer in self.up() {
            if let Some(progress) = self.progress(peer) {
                let rechain = progress.rechain_at.filter(|_| peer > 1 && progress.known);
                soonest = soonest
                    .into_iter()
                    .chain(progress.overdue(limits))
                    .chain(rechain)
                    .min();
            }
        }
        soonest
    }

    pub(crate) fn on_deadline_head(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.head.announce_at.is_some_and(|at| at <= now) {
            self.announce(now, out);
        }
        let limits = self.config.limits.clone();
        for peer in self.up() {
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

    /// A follower that is fed directly stays silent: one message at a time, ever more seldom.
    fn resend(&mut self, now: Instant, peer: u8, out: &mut Vec<Action>) {
        let longest = self.config.limits.resend * 8;
        let last = self.log.last();
        if let Some(progress) = self.progress_mut(peer) {
            // What it acknowledged is certain; a guess that was never answered is repeated.
            let next = if progress.known {
                Seq(progress.matched.0 + 1)
            } else {
                progress.next
            };
            let next = next.min(Seq(last.0 + 1));
            progress.probe(next);
            progress.patience = (progress.patience * 2).min(longest);
            progress.waiting_since = Some(now);
        }
        self.feed(now, peer, out);
    }

    pub(crate) fn progress(&self, peer: u8) -> Option<&Progress> {
        self.head.progress.get(usize::from(peer))
    }

    pub(crate) fn progress_mut(&mut self, peer: u8) -> Option<&mut Progress> {
        self.head.progress.get_mut(usize::from(peer))
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
