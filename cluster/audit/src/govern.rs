//! How fast a device may be read for audits and repairs, so that others do not notice: measured at the device itself.
//!
//! While others use a device, its time goes by slots, in pairs: in one of a pair what is in the background goes on,
//! in the other one it is held back. A request of others counts for the slot in which it came, whether something was
//! under way just then or not: it is the rate that is judged, and a request that does meet a read of the background
//! is as late at any rate. Which slot of a pair is which is drawn: nothing that comes at regular times counts for one
//! side only.
//!
//! The latencies in slots with background are taken without what is allowed on top, and with that both sides are to
//! be equal in this: how many lie above the line, which is where one in a hundred of both lay in the epoch before. By
//! how much they may differ by chance is seen from the pairs, so that a burst which makes many requests late at once
//! counts as what it is, one event.
//!
//! Invariants:
//! - what is allowed is never less than the floor, and never more than the most;
//! - nothing is held back for longer than two slots, and nothing while nobody else uses the device;
//! - it grows only if it was used;
//! - nothing is allocated after [`Governor::new`].

use std::time::Duration;

use ashlar_layout::time::Instant;

use crate::latency::{Bucket, Latencies};

/// What is promised to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The background may make the 99th percentile of their latencies longer by so many hundredths.
    pub percent: u32,
    /// Bytes a second that it may read at the least, whatever that does to them,
    pub floor: u64,
    /// and at the most.
    pub most: u64,
}

/// How long the background is let go on, or held back.
pub const SLOT: Duration = Duration::from_millis(250);
/// A request that comes so soon after the background may stand behind it: it counts for neither side.
const SETTLE: Duration = Duration::from_millis(50);
/// Judged is what at least so long has brought, on both sides at least so many requests: fewer than eight of all
/// above the line can look like anything.
const EPOCH: Duration = Duration::from_secs(5);
const SAMPLES: u64 = 400;
/// If it takes longer than this, it is begun anew.
const EPOCH_MAX: Duration = Duration::from_secs(60);
/// So long after a change auditors may not have heard of it.
const LAG: Duration = Duration::from_secs(3);
/// With so many requests in a second others use the device,
const WANTED: u32 = 20;
/// and for so long after that.
const QUIET: Duration = Duration::from_secs(10);
/// Pairs of slots whose requests are waited for.
const OPEN: usize = 4;
/// If the line moved by more buckets (a sixth), and not between a 400th and a 20th lies above it, it says nothing.
const MOVED: u16 = 5;

/// For what a request counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    With,
    Without,
    Neither,
}

/// A request of others that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    at: Instant,
    side: Side,
}

/// What is told of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Bytes a second that all auditors together may read.
    pub allowed: u64,
    /// The 99th percentile of others, in microseconds, with background and without, when that was last known.
    pub p99_us: Option<(u64, u64)>,
}

/// Above the line, of a pair of slots: with background, and without.
#[derive(Clone, Copy, Debug, Default)]
struct Pair(u32, u32);

/// Sums over pairs.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    with: f64,
    without: f64,
    with2: f64,
    without2: f64,
    both: f64,
}

impl Sums {
    fn add(&mut self, Pair(with, without): Pair) {
        let (with, without) = (f64::from(with), f64::from(without));
        self.with += with;
        self.without += without;
        self.with2 += with * with;
        self.without2 += without * without;
        self.both += with * without;
    }

    /// By how many standard deviations more are above the line with background, if a request without stands for so
    /// many. The deviation is that of pairs whose slots could as well be exchanged.
    fn excess(&self, weight: f64) -> f64 {
        let sum = self.with - weight * self.without;
        let squares = self.with2 - 2.0 * weight * self.both + weight * weight * self.without2;
        match squares > 0.0 {
            true => sum / squares.sqrt(),
            false => 0.0,
        }
    }
}

/// What an epoch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Harmed,
    Fine,
    /// Neither is certain enough.
    Open,
}

/// The rate of one device.
#[derive(Debug)]
pub struct Governor {
    bound: Bound,
    seed: u64,
    /// Bytes a second while others use the device.
    rate: u64,
    /// The second that is counted, and requests in it.
    second: (u64, u32),
    /// When nobody uses it any more.
    quiet_at: Instant,
    /// Requests of the background under way, and when there was none any more.
    under_way: u32,
    ended_at: Instant,
    /// The pair with which the epoch begins.
    first: u64,
    /// The newest pair, and the last ones by their number.
    newest: u64,
    pairs: [Pair; OPEN],
    sums: Sums,
    with: Latencies,
    without: Latencies,
    /// Bytes that were read in the epoch.
    used: u64,
    line: Option<Bucket>,
    /// The line was not believed last time.
    moved: bool,
    p99_us: Option<(u64, u64)>,
}

fn nanos(of: Duration) -> u64 {
    of.as_nanos() as u64
}

fn slot_of(now: Instant) -> u64 {
    now.0 / nanos(SLOT)
}

fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Governor {
    /// Nothing was measured yet; what is drawn follows from the seed. Begins with the floor.
    pub fn new(bound: Bound, seed: u64) -> Governor {
        let floor = bound.floor.max(1);
        let most = bound.most.max(floor);
        Governor {
            bound: Bound {
                floor,
                most,
                ..bound
            },
            seed,
            rate: floor,
            second: (0, 0),
            quiet_at: Instant(0),
            under_way: 0,
            ended_at: Instant(0),
            first: 0,
            newest: 0,
            pairs: [Pair::default(); OPEN],
            sums: Sums::default(),
            with: Latencies::default(),
            without: Latencies::default(),
            used: 0,
            line: None,
            moved: false,
            p99_us: None,
        }
    }

    fn is_wanted(&self, now: Instant) -> bool {
        now < self.quiet_at
    }

    fn is_off(&self, slot: u64) -> bool {
        let step = 0x9e37_79b9_7f4a_7c15u64;
        let drawn = mixed(self.seed.wrapping_add((slot / 2).wrapping_mul(step))) & 1;
        slot & 1 == drawn
    }

    /// Until when a request of the background is to wait that comes now; none: it need not.
    pub fn holds(&self, now: Instant) -> Option<Instant> {
        let mut slot = slot_of(now);
        if !self.is_wanted(now) || !self.is_off(slot) {
            return None;
        }
        while self.is_off(slot) {
            slot += 1;
        }
        Some(Instant(slot.saturating_mul(nanos(SLOT))))
    }

    /// What is to be told of the device.
    pub fn told(&self, now: Instant) -> Told {
        let allowed = match self.is_wanted(now) {
            true => self.rate,
            false => self.bound.most,
        };
        let p99_us = self.p99_us;
        Told { allowed, p99_us }
    }

    /// The device was opened: nothing is under way.
    pub fn opened(&mut self) {
        self.under_way = 0;
    }

    /// A request of the background goes to the device.
    pub fn begins(&mut self) {
        self.under_way += 1;
    }

    /// One has ended that has moved so many bytes.
    pub fn ended(&mut self, now: Instant, bytes: u64) {
        self.under_way = self.under_way.saturating_sub(1);
        self.ended_at = now;
        if slot_of(now) / 2 >= self.first {
            self.used = self.used.saturating_add(bytes);
        }
    }

    /// A request of others came. What is given back is to be told when it was answered.
    pub fn arrives(&mut self, now: Instant) -> Arrival {
        let was_wanted = self.is_wanted(now);
        let second = now.0 / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        self.second.1 = self.second.1.saturating_add(1);
        if self.second.1 >= WANTED {
            self.quiet_at = now + QUIET;
        }
        if !was_wanted {
            // What was measured is of another time; slots begin with the next pair.
            self.line = None;
            self.restart(slot_of(now) / 2 + 1);
        }
        let slot = slot_of(now);
        let begun = Instant(slot * nanos(SLOT));
        let side = if !was_wanted || slot / 2 < self.first {
            Side::Neither
        } else if !self.is_off(slot) {
            Side::With
        } else if self.under_way == 0 && now >= begun.max(self.ended_at) + SETTLE {
            Side::Without
        } else {
            Side::Neither
        };
        Arrival { at: now, side }
    }

    /// One of others was answered.
    pub fn answered(&mut self, now: Instant, arrival: Arrival) {
        let pair = slot_of(now) / 2;
        if pair > self.newest {
            self.turn(now, pair);
        }
        let came = slot_of(arrival.at) / 2;
        if came < self.first || arrival.side == Side::Neither {
            return;
        }
        let latency = now.since(arrival.at);
        // What is later than that counts for the oldest one that is open.
        let came = came.max((self.newest + 1).saturating_sub(OPEN as u64));
        let place = &mut self.pairs[(came % OPEN as u64) as usize];
        match arrival.side {
            Side::With => {
                let latency = latency * 100 / self.bound.percent.saturating_add(100);
                let bucket = Bucket::of(latency);
                self.with.record(bucket);
                place.0 += u32::from(self.line.is_some_and(|line| bucket >= line));
            }
            _ => {
                let bucket = Bucket::of(latency);
                self.without.record(bucket);
                place.1 += u32::from(self.line.is_some_and(|line| bucket >= line));
            }
        }
    }

    /// A new pair of slots begins.
    fn turn(&mut self, now: Instant, pair: u64) {
        if slot_of(now) / 2 >= self.first {
            self.judge(pair);
        }
        for newer in (self.newest + 1..=pair).take(OPEN) {
            let place = &mut self.pairs[(newer % OPEN as u64) as usize];
            self.sums.add(std::mem::take(place));
        }
        self.newest = pair;
    }

    fn restart(&mut self, first: u64) {
        self.first = first;
        self.pairs = [Pair::default(); OPEN];
        self.sums = Sums::default();
        self.with.clear();
        self.without.clear();
        self.used = 0;
    }

    /// Ends the epoch before this pair, if it has brought enough.
    fn judge(&mut self, pair: u64) {
        let took = SLOT * 2 * u32::try_from(pair - self.first).unwrap_or(u32::MAX);
        let (with, without) = (self.with.len(), self.without.len());
        let enough = with.min(without) >= SAMPLES && took >= EPOCH;
        if !enough && took < EPOCH_MAX {
            return;
        }
        let used = (self.used as f64 / took.as_secs_f64()) as u64;
        let verdict = match enough {
            // What was done in the background never ends in time: more of it than the device can do.
            false if self.used > 0 && with >= SAMPLES && without < with / 8 => Verdict::Harmed,
            false => Verdict::Open,
            true => self.verdict(),
        };
        let before = self.rate;
        self.rate = match verdict {
            // Nothing was done that could harm.
            _ if self.used == 0 => self.rate,
            // What did the harm may have been less than was allowed.
            Verdict::Harmed => self.rate.min(used) / 2,
            Verdict::Fine if used >= self.rate / 2 => self.rate.saturating_add(self.rate / 4 + 1),
            _ => self.rate,
        };
        self.rate = self.rate.clamp(self.bound.floor, self.bound.most);
        let lag = match self.rate == before {
            true => 0,
            false => nanos(LAG).div_ceil(2 * nanos(SLOT)),
        };
        self.restart(pair + lag);
    }

    fn verdict(&mut self) -> Verdict {
        for pair in &mut self.pairs {
            self.sums.add(std::mem::take(pair));
        }
        let Some(fresh) = self.with.p99(Some(&self.without)) else {
            return Verdict::Open;
        };
        let scaled = |bucket: Bucket| bucket.micros() * u64::from(self.bound.percent + 100) / 100;
        let told = self.with.p99(None).zip(self.without.p99(None));
        self.p99_us = told.map(|(with, without)| (scaled(with), without.micros()));
        let Some(line) = self.line.replace(fresh) else {
            return Verdict::Open;
        };
        let (with, without) = (self.with.len() as f64, self.without.len() as f64);
        let above = (self.sums.with + self.sums.without) / (with + without);
        let is_far = !(1.0 / 400.0..=1.0 / 20.0).contains(&above);
        // Once only: of what never stays the same something has to be said, too.
        self.moved = fresh.distance(line) > MOVED && is_far && !self.moved;
        if self.moved {
            return Verdict::Open;
        }
        let excess = self.sums.excess(with / without);
        // One burst gives 1 at the most, and two give 1.42: that is no harm yet. At the bound itself it grows every
        // second time, and is halved every fifteenth.
        match excess {
            1.5.. => Verdict::Harmed,
            ..=0.0 => Verdict::Fine,
            _ => Verdict::Open,
        }
    }
}
