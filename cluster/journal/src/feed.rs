//! How the head feeds its followers: down the chain, or directly those whose predecessor fails them.
//!
//! Invariants:
//! - no follower's answer is needed twice: what is sent and not acknowledged is bounded for each
//!   follower, what is beyond is read from the log when the follower gets there;
//! - a follower is fed by its predecessor only while that one is itself fed without delay; when it
//!   is silent for longer than it usually takes, the head feeds it directly.

use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::ChainBody;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::{self, Piece};
use crate::progress::Progress;
use crate::replica::{Link, Purpose, Replica, Role};
use crate::start::Sealed;

/// How far a follower may be behind what is committed when another is to be fed through it.
const RECHAIN_LAG: u64 = 64;

impl Replica {
    pub(crate) fn feed_all(&mut self, now: Instant, out: &mut Vec<Action>) {
        let order = self.order_but_me();
        for (nth, peer) in order.iter().copied().enumerate() {
            if !self.progress(peer).is_some_and(|progress| progress.chained) {
                self.feed(now, peer, out);
                continue;
            }
            // Whoever feeds it must have the entries to feed it with.
            let last = self.log.last();
            let before = nth.checked_sub(1).and_then(|before| order.get(before));
            if before.is_some_and(|before| self.is_fed(*before)) {
                if let Some(progress) = self.progress_mut(peer) {
                    progress.next = Seq(last.0 + 1);
                    progress.time(last, now);
                }
            } else {
                self.bypass(now, peer, out);
            }
        }
        let chain = self.log.chain();
        let others = self
            .head
            .progress
            .keys()
            .filter(|peer| !chain.contains(**peer));
        for peer in others.copied().collect::<Vec<_>>() {
            self.feed(now, peer, out);
        }
    }

    /// Whether everything in the log was sent to this follower, by whatever way.
    pub(crate) fn is_fed(&self, peer: DeviceNo) -> bool {
        let last = self.log.last();
        self.is_up(peer)
            && self
                .progress(peer)
                .is_some_and(|p| p.sealed && p.known && !p.probing && p.next > last)
    }

    /// Sends what a follower lacks, as far as its window reaches.
    pub(crate) fn feed(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let limits = self.config.limits.clone();
        let last = self.log.last();
        while self.is_up(peer) {
            let Some(progress) = self.progress(peer) else {
                return;
            };
            // One that keeps up is taught beside that.
            let behind = progress.next <= self.log.base();
            let taught = behind && self.head.teaching.contains_key(&peer);
            if !progress.sealed || progress.chained || progress.reading.is_some() || taught {
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
            let lost = self.repairs.contains_key(&next) && next <= self.index.covered();
            if next <= self.log.base() || lost {
                self.teach(now, peer, out);
                if let Some(progress) = self.progress_mut(peer) {
                    // If that cannot be done now, it is tried again when the peer has waited long enough.
                    progress.waiting_since.get_or_insert(now);
                }
                return;
            }
            let parts = self.log.recent_run(next, last, limits.batch_bytes);
            if parts.is_empty() && next <= last {
                let mut token = None;
                if !self.repairs.contains_key(&next) {
                    token = self.read_log(Purpose::Feed(peer), next, last, out);
                }
                if let Some(progress) = self.progress_mut(peer) {
                    progress.reading = token;
                    // Nothing may come of it, or of the repair: then it is tried again, or the peer is taught.
                    progress.waiting_since.get_or_insert(now);
                }
                return;
            }
            self.send_append(now, peer, &parts, out);
        }
    }

    /// Sends these entries, from the follower's `next` on.
    pub(crate) fn send_append(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        parts: &[Bytes],
        out: &mut Vec<Action>,
    ) {
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
            stamp: now.0,
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
    pub(crate) fn fed_read(&mut self, peer: DeviceNo, token: u64) -> bool {
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
        peer: DeviceNo,
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

    pub(crate) fn on_ack(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        (durable, stamp): (Seq, u64),
        out: &mut Vec<Action>,
    ) {
        if self.role != Role::Head || durable > self.log.last() {
            return;
        }
        let limits = self.config.limits.clone();
        if let Some(progress) = self
            .progress_mut(peer)
            .filter(|_| stamp > 0 && stamp <= now.0)
        {
            progress.stamp = progress.stamp.max(Some(Instant(stamp)));
        }
        let Some(progress) = self.progress(peer).filter(|progress| progress.sealed) else {
            return;
        };
        let more = durable > progress.matched;
        let from = if progress.probing {
            durable
        } else {
            progress.matched
        };
        let acked: usize = (from.max(self.log.base()).0 + 1..=durable.0)
            .filter_map(|seq| self.log.slot(Seq(seq)))
            .map(|slot| slot.len as usize)
            .sum();
        let last = self.log.last();
        if durable > Seq(0) && durable >= self.log.base() && !self.head.asked.contains(&peer) {
            // It came to what it lacked in another way: it was born meanwhile.
            self.stop_teaching(peer);
        }
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
        peer: DeviceNo,
        last: Seq,
        last_term: Term,
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
        } else if last < progress.matched {
            // It has less than it acknowledged: it was opened anew, and what it said of that was lost.
            self.seal_again(now, peer, out);
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
        peer: DeviceNo,
        sealed: Sealed,
        out: &mut Vec<Action>,
    ) {
        match self.role {
            Role::Starting => self.on_sealed_starting(now, peer, sealed, out),
            Role::Head => {
                // One that was opened anew behind a link that stayed up may have lost what it had acknowledged.
                let known =
                    |progress: &Progress| progress.sealed && sealed.last >= progress.matched;
                let again = self.progress(peer).is_some_and(known);
                if self.is_up(peer) && !again {
                    self.enlist(now, peer, (sealed.last, sealed.last_term), out);
                }
            }
            _ => {}
        }
    }

    /// A follower has sealed this reign: it is fed from where its log may agree.
    pub(crate) fn enlist(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        (last, last_term): (Seq, Term),
        out: &mut Vec<Action>,
    ) {
        let next = Seq(self.log.at_most(last, last_term).0 + 1);
        let limits = self.config.limits.clone();
        if let Some(progress) = self.progress_mut(peer) {
            progress.sealed(next, now, &limits);
        }
        if let Some(teaching) = self.head.teaching.get_mut(&peer) {
            teaching.down_since = None;
            if teaching.at <= last {
                // It has the lesson, or does not need it any more.
                self.stop_teaching(peer);
            } else {
                self.teach_on(now, peer, out);
            }
        }
        self.feed(now, peer, out);
    }

    /// A replica does not know this reign (any more), or may not promise it before its lease is over.
    pub(crate) fn seal_later(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        lease_us: u64,
        out: &mut Vec<Action>,
    ) {
        let limits = &self.config.limits;
        let wait = Duration::from_micros(lease_us).clamp(limits.stagger / 8, limits.lease);
        if self.role == Role::Starting {
            return self.seal_later_starting(now + wait, peer);
        }
        if let Some(progress) = self.progress_mut(peer) {
            progress.disconnected();
            progress.patience = wait;
            progress.waiting_since = Some(now);
            self.unchain_behind(now, peer, out);
        }
    }

    pub(crate) fn seal_again(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
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
        peer: DeviceNo,
        link: Link,
        out: &mut Vec<Action>,
    ) {
        if !self.head.progress.contains_key(&peer) {
            return;
        }
        if link == Link::Up {
            return self.seal_again(now, peer, out);
        }
        if let Some(progress) = self.progress_mut(peer) {
            progress.disconnected();
        }
        if let Some(teaching) = self.head.teaching.get_mut(&peer) {
            teaching.down_since.get_or_insert(now);
        }
        self.unchain_behind(now, peer, out);
    }

    /// Whoever is fed through this replica is fed directly.
    pub(crate) fn unchain_behind(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let order = self.order_but_me();
        let Some(at) = order.iter().position(|member| *member == peer) else {
            return;
        };
        for behind in order.into_iter().skip(at + 1) {
            if !self
                .progress(behind)
                .is_some_and(|progress| progress.chained)
            {
                return;
            }
            self.bypass(now, behind, out);
        }
    }

    /// All are fed directly.
    pub(crate) fn unchain_all(&mut self, now: Instant, out: &mut Vec<Action>) {
        let chained = self.head.progress.iter().filter(|(_, p)| p.chained);
        for peer in chained.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.bypass(now, peer, out);
        }
    }

    /// Feeds a follower directly from now on, from the last entry that it acknowledged.
    pub(crate) fn bypass(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
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
    pub(crate) fn rechain(&mut self, now: Instant, peer: DeviceNo) {
        if self.config.limits.star {
            if let Some(progress) = self.progress_mut(peer) {
                progress.rechain_at = None;
            }
            return;
        }
        let due = self
            .progress(peer)
            .is_some_and(|p| !p.chained && p.rechain_at.is_some_and(|at| at <= now));
        let order = self.order_but_me();
        let place = order.iter().position(|member| *member == peer);
        let before = place
            .and_then(|place| place.checked_sub(1))
            .map(|before| order[before]);
        let (Some(before), true) = (before, due) else {
            return;
        };
        let last = self.log.last();
        let caught_up = self.is_fed(peer)
            && self.is_fed(before)
            && self
                .progress(before)
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

    /// A follower that is fed directly stays silent: one message at a time, ever more seldom.
    pub(crate) fn resend(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
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

    pub(crate) fn progress(&self, peer: DeviceNo) -> Option<&Progress> {
        self.head.progress.get(&peer)
    }

    pub(crate) fn progress_mut(&mut self, peer: DeviceNo) -> Option<&mut Progress> {
        self.head.progress.get_mut(&peer)
    }
}
