//! What a head knows of one follower.
//!
//! Invariants:
//! - `matched` was acknowledged in this reign over this connection: the follower holds the head's
//!   entries up to there durably;
//! - `matched < next`; while `probing`, `next` is a guess and one message at a time is sent;
//! - a chained follower is fed by its predecessor; `next` is then where that will go on.

use std::time::Duration;

use ashlar_layout::ids::Seq;
use ashlar_layout::time::Instant;

use crate::api::Limits;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// It answered the seal of this reign on this connection.
    pub(crate) sealed: bool,
    /// It acknowledged something since.
    pub(crate) known: bool,
    pub(crate) matched: Seq,
    pub(crate) next: Seq,
    pub(crate) probing: bool,
    /// The probe is under way.
    pub(crate) probed: bool,
    pub(crate) chained: bool,
    /// Bytes sent directly and not acknowledged.
    pub(crate) inflight: usize,
    /// Since when it owes an answer.
    pub(crate) waiting_since: Option<Instant>,
    /// How long it may owe it until the last message is sent again.
    pub(crate) patience: Duration,
    /// How long an entry takes there and back: smoothed, in nanoseconds; 0: not known.
    pub(crate) latency_ns: u64,
    /// An entry whose way is being timed.
    pub(crate) sample: Option<(Seq, Instant)>,
    /// When it may be fed through the chain again,
    pub(crate) rechain_at: Option<Instant>,
    /// how long the next time,
    pub(crate) rechain_wait: Duration,
    /// and from which entry on it is.
    pub(crate) chained_from: Seq,
    /// The log is being read for it.
    pub(crate) reading: Option<u64>,
    /// When the latest of what it answered in this reign was sent.
    pub(crate) stamp: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            sealed: false,
            known: false,
            matched: Seq(0),
            next: Seq(1),
            probing: true,
            probed: false,
            chained: false,
            inflight: 0,
            waiting_since: None,
            patience: Duration::ZERO,
            latency_ns: 0,
            sample: None,
            rechain_at: None,
            rechain_wait: Duration::ZERO,
            chained_from: Seq(0),
            reading: None,
            stamp: None,
        }
    }

    /// A new connection, or none: what was known of it counts no more.
    pub(crate) fn disconnected(&mut self) {
        let Self {
            latency_ns, stamp, ..
        } = *self;
        // The lease that it granted goes on whatever becomes of the connection.
        *self = Self {
            latency_ns,
            stamp,
            ..Self::new()
        };
    }

    /// It answered the seal; its log may agree with the head's up to `next - 1`.
    pub(crate) fn sealed(&mut self, next: Seq, now: Instant, limits: &Limits) {
        self.disconnected();
        self.sealed = true;
        self.next = next;
        self.patience = limits.resend;
        self.rechain_at = Some(now);
        self.rechain_wait = limits.rechain;
    }

    /// How long it may be silent if its predecessor feeds it.
    pub(crate) fn silence(&self, limits: &Limits) -> Duration {
        if self.latency_ns == 0 {
            return limits.silent_max;
        }
        let four_times = Duration::from_nanos(self.latency_ns.saturating_mul(4));
        four_times.clamp(limits.silent_min, limits.silent_max)
    }

    /// When it has been silent for too long.
    pub(crate) fn overdue(&self, limits: &Limits) -> Option<Instant> {
        let since = self.waiting_since?;
        let chained = self.chained;
        Some(
            since
                + if chained {
                    self.silence(limits)
                } else {
                    self.patience
                },
        )
    }

    /// Starts the watch for `seq`, if none is running.
    pub(crate) fn time(&mut self, seq: Seq, now: Instant) {
        self.waiting_since.get_or_insert(now);
        self.sample.get_or_insert((seq, now));
    }

    /// Everything up to `durable` came back.
    pub(crate) fn timed(&mut self, durable: Seq, now: Instant) {
        if let Some((seq, since)) = self.sample
            && seq <= durable
        {
            let took = u64::try_from(now.since(since).as_nanos())
                .unwrap_or(u64::MAX)
                .max(1);
            self.latency_ns = if self.latency_ns == 0 {
                took
            } else {
                (self.latency_ns * 7).saturating_add(took) / 8
            };
            self.sample = None;
        }
    }

    /// Goes back to what is certain, carefully.
    pub(crate) fn probe(&mut self, next: Seq) {
        self.chained = false;
        self.probing = true;
        self.probed = false;
        self.next = next.max(Seq(self.matched.0 + 1));
        self.inflight = 0;
        self.sample = None;
        self.reading = None;
    }
}
