//! How fast devices are read for audits and repairs.
//!
//! Each device has a bucket of tokens, one a byte, that fills at a rate: so that what is on it is read in the time that
//! was asked for, but not slower than a floor, and, while others want the node for themselves, not faster than that.
//!
//! Invariants:
//! - over any time, no more is taken from a device than its rate gives and the bucket holds, but for what may not wait;
//!   that is owed, up to what the bucket holds, and waited for afterwards;
//! - a bucket is never smaller than the largest charge, so whoever waits gets its turn.

use std::collections::BTreeMap;
use std::time::Duration;

use ashlar_layout::ids::DeviceNo;
use ashlar_layout::time::Instant;

/// Bytes that are read from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Which.
    pub device: DeviceNo,
    /// How many.
    pub bytes: u64,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacing {
    /// In how long everything is to be read once.
    pub pass: Duration,
    /// Bytes a second that a device is read with at the least,
    pub floor: u64,
    /// and at the most.
    pub most: u64,
}

/// A bucket holds what its rate gives in so long.
const HOLDS: Duration = Duration::from_secs(1);
/// It is aimed at being through with a fifth of the time left: what comes in the way must not make it late.
const AIM: f64 = 0.8;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Bytes a second, unless others are in the way.
    rate: u64,
    /// Bytes that may be read now; less than none if some are owed.
    tokens: f64,
    at: Instant,
}

/// The buckets of all devices that a node reads.
#[derive(Debug)]
pub struct Pace {
    pacing: Pacing,
    buckets: BTreeMap<DeviceNo, Bucket>,
    yields: bool,
    /// The largest charge so far.
    largest: u64,
}

impl Pace {
    /// Nothing was read yet.
    pub fn new(pacing: Pacing) -> Pace {
        let pacing = Pacing {
            floor: pacing.floor.max(1),
            most: pacing.most.max(pacing.floor).max(1),
            ..pacing
        };
        Pace {
            pacing,
            buckets: BTreeMap::new(),
            yields: false,
            largest: 0,
        }
    }

    /// So many bytes of a device are to be read in the time of a pass.
    pub fn holds(&mut self, now: Instant, device: DeviceNo, bytes: u64) {
        let seconds = (self.pacing.pass.as_secs_f64() * AIM).max(1.0);
        // Rounded up; what is too large for a number of this kind is cut to `most` in any case.
        let rate = (bytes as f64 / seconds).ceil() as u64;
        let rate = rate.clamp(self.pacing.floor, self.pacing.most);
        self.fill(now, device).rate = rate;
    }

    /// Whether others want the node for themselves now.
    pub fn yields(&mut self, now: Instant, yields: bool) {
        if yields != self.yields {
            for device in self.buckets.keys().copied().collect::<Vec<_>>() {
                self.fill(now, device);
            }
            self.yields = yields;
        }
    }

    /// Whether others do, as was said last.
    pub fn is_yielding(&self) -> bool {
        self.yields
    }

    /// Bytes a second that a device is read with now.
    pub fn rate(&self, device: DeviceNo) -> u64 {
        let rate = self.buckets.get(&device).map_or(0, |bucket| bucket.rate);
        self.limit(rate)
    }

    fn limit(&self, rate: u64) -> u64 {
        match self.yields {
            true => self.pacing.floor,
            false => rate.max(self.pacing.floor),
        }
    }

    /// Brings a device's bucket up to now.
    fn fill(&mut self, now: Instant, device: DeviceNo) -> &mut Bucket {
        let floor = self.pacing.floor;
        let known = self.buckets.get(&device).copied();
        let mut bucket = known.unwrap_or(Bucket {
            rate: floor,
            tokens: floor as f64,
            at: now,
        });
        let rate = self.limit(bucket.rate) as f64;
        let size = (rate * HOLDS.as_secs_f64()).max(self.largest as f64);
        bucket.tokens = (bucket.tokens + rate * now.since(bucket.at).as_secs_f64()).min(size);
        bucket.at = bucket.at.max(now);
        self.buckets.insert(device, bucket);
        self.buckets.entry(device).or_insert(bucket)
    }

    /// Takes what is to be read, from all of the devices or from none: then it says when to ask again.
    pub fn take(&mut self, now: Instant, charges: &[Charge]) -> Result<(), Instant> {
        let largest = charges.iter().map(|charge| charge.bytes).max();
        self.largest = self.largest.max(largest.unwrap_or(0));
        let mut wait = Duration::ZERO;
        for charge in charges {
            let short = charge.bytes as f64 - self.fill(now, charge.device).tokens;
            if short > 0.0 {
                let seconds = short / self.rate(charge.device) as f64;
                // Rounded up, so that it is not asked for in vain.
                let more = Duration::from_secs_f64(seconds.min(1e9)) + Duration::from_micros(1);
                wait = wait.max(more);
            }
        }
        if wait > Duration::ZERO {
            return Err(now + wait);
        }
        self.owe(now, charges);
        Ok(())
    }

    /// Takes it although it may not be there: for what may not wait. What is owed is bounded: repairs after a device
    /// was lost are found by reading on, and must not keep that back by more than they take themselves.
    pub fn owe(&mut self, now: Instant, charges: &[Charge]) {
        let (pacing, largest) = (self.pacing, self.largest as f64);
        for charge in charges {
            let bucket = self.fill(now, charge.device);
            let rate = bucket.rate.max(pacing.floor) as f64;
            let most = (rate * HOLDS.as_secs_f64()).max(largest);
            bucket.tokens = (bucket.tokens - charge.bytes as f64).max(-most);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const A: DeviceNo = DeviceNo(1);
    const B: DeviceNo = DeviceNo(2);

    fn of(device: DeviceNo, bytes: u64) -> Charge {
        Charge { device, bytes }
    }

    fn at(ms: u64) -> Instant {
        Instant(1 + ms * 1_000_000)
    }

    fn pace(pass: Duration) -> Pace {
        let (floor, most) = (1000, 1_000_000);
        Pace::new(Pacing { pass, floor, most })
    }

    #[test]
    fn as_fast_as_asked_for() {
        let mut pace = pace(DAY);
        pace.holds(at(0), A, 86_400 * 8000);
        assert_eq!(pace.rate(A), 10_000);
        pace.holds(at(0), A, 5);
        assert_eq!(pace.rate(A), 1000, "not slower than the floor");
        pace.holds(at(0), A, u64::MAX);
        assert_eq!(pace.rate(A), 1_000_000, "not faster than the most");
        pace.yields(at(0), true);
        assert_eq!(pace.rate(A), 1000);
        pace.yields(at(0), false);
        assert_eq!(pace.rate(A), 1_000_000);
    }

    #[test]
    fn all_devices_or_none() {
        let mut pace = pace(DAY);
        pace.take(at(0), &[of(A, 1000), of(B, 500)]).unwrap();
        let when = pace.take(at(0), &[of(A, 1), of(B, 500)]).unwrap_err();
        assert!(when > at(0));
        // Nothing was taken from the other one.
        pace.take(at(0), &[of(B, 500)]).unwrap();
        pace.take(when, &[of(A, 1)]).unwrap();
    }

    #[test]
    fn what_may_not_wait_is_owed() {
        let mut pace = pace(DAY);
        pace.owe(at(0), &[of(A, 1500)]);
        let when = pace.take(at(0), &[of(A, 1000)]).unwrap_err();
        assert!(when >= at(1500), "{when:?}");
        assert!(pace.take(at(1499), &[of(A, 1000)]).is_err());
        pace.take(when, &[of(A, 1000)]).unwrap();
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let mut pace = pace(DAY);
        for _ in 0..1000 {
            pace.owe(at(0), &[of(A, 5000)]);
        }
        // What the bucket holds is owed, and what is taken comes on top.
        let when = pace.take(at(0), &[of(A, 1000)]).unwrap_err();
        assert!(at(2000) <= when && when <= at(2001), "{when:?}");
    }

    #[test]
    fn what_is_larger_than_the_bucket_has_its_turn() {
        let mut pace = pace(DAY);
        let large = [of(A, 4 << 20)];
        let mut now = at(0);
        for _ in 0..3 {
            now = match pace.take(now, &large) {
                Ok(()) => now,
                Err(when) => when,
            };
            if pace.take(now, &large).is_ok() {
                return;
            }
        }
        panic!("it never had its turn");
    }

    proptest! {
        /// Whatever is asked for and when: never more than the rate and one bucket, and whoever waits for as long as he
        /// was told gets it.
        #[test]
        fn never_more(charges in proptest::collection::vec((1u64..5000, 0u64..2000), 1..80)) {
            let mut pace = pace(DAY);
            let (mut now, mut taken) = (at(0), 0);
            for (bytes, later) in charges {
                now = now + Duration::from_millis(later);
                if let Err(when) = pace.take(now, &[of(A, bytes)]) {
                    prop_assert!(when > now);
                    now = when;
                    prop_assert_eq!(pace.take(now, &[of(A, bytes)]), Ok(()));
                }
                taken += bytes;
                let given = now.since(at(0)).as_secs_f64() * 1000.0 + 5000.0;
                prop_assert!(taken as f64 <= given + 1.0, "{} {}", taken, given);
            }
        }
    }
}
