//! How fast devices are read for audits and repairs.
//!
//! Each device has a bucket of tokens, one a byte, that fills at a rate: so that what is on it is read in the time that
//! was asked for, but not slower than a floor, and never faster than the device allows ([`crate::Governor`]): this
//! one's share of it, so that all auditors together take no more. Of one that says nothing the floor is taken to
//! be allowed.
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
/// Bytes a second that are read in any case: one that leads next to nothing has to see at least that.
const LEAST: u64 = 4096;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Bytes a second that are wanted,
    rate: u64,
    /// and those that are allowed.
    allowed: u64,
    /// Whether that is less than the most because of others.
    wanted: bool,
    /// Bytes that may be read now; less than none if some are owed.
    tokens: f64,
    at: Instant,
}

/// The buckets of all devices that a node reads.
#[derive(Debug)]
pub struct Pace {
    pacing: Pacing,
    buckets: BTreeMap<DeviceNo, Bucket>,
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

    /// A device allows so many bytes a second, of which this share is ours; none: it does not say.
    pub fn allow(&mut self, now: Instant, device: DeviceNo, bytes: Option<u64>, share: f64) {
        let Pacing { floor, most, .. } = self.pacing;
        let bucket = self.fill(now, device);
        bucket.wanted = bytes.is_none_or(|bytes| bytes < most);
        let allowed = bytes.unwrap_or(floor) as f64 * share.clamp(0.0, 1.0);
        bucket.allowed = (allowed as u64).max(LEAST);
    }

    /// Whether others want one of these devices for themselves, as far as is known.
    pub fn is_wanted(&self, charges: &[Charge]) -> bool {
        let wanted = |device| self.buckets.get(device).is_none_or(|bucket| bucket.wanted);
        charges.iter().any(|charge| wanted(&charge.device))
    }

    /// Bytes a second that a device is read with now.
    pub fn rate(&self, device: DeviceNo) -> u64 {
        let floor = self.pacing.floor;
        let bucket = self.buckets.get(&device);
        bucket.map_or(floor, |bucket| self.limit(bucket))
    }

    fn limit(&self, bucket: &Bucket) -> u64 {
        bucket.rate.max(self.pacing.floor).min(bucket.allowed)
    }

    /// Brings a device's bucket up to now.
    fn fill(&mut self, now: Instant, device: DeviceNo) -> &mut Bucket {
        let floor = self.pacing.floor;
        let known = self.buckets.get(&device).copied();
        let mut bucket = known.unwrap_or(Bucket {
            rate: floor,
            allowed: floor,
            wanted: true,
            tokens: floor as f64,
            at: now,
        });
        let rate = self.limit(&bucket) as f64;
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
        let largest = self.largest as f64;
        for charge in charges {
            let rate = self.rate(charge.device) as f64;
            let most = (rate * HOLDS.as_secs_f64()).max(largest);
            let bucket = self.fill(now, charge.device);
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
        let (floor, most) = (10_000, 10_000_000);
        Pace::new(Pacing { pass, floor, most })
    }

    #[test]
    fn as_fast_as_asked_for() {
        let mut pace = pace(DAY);
        pace.allow(at(0), A, Some(u64::MAX), 1.0);
        pace.holds(at(0), A, 86_400 * 80_000);
        assert_eq!(pace.rate(A), 100_000);
        pace.holds(at(0), A, 5);
        assert_eq!(pace.rate(A), 10_000, "not slower than the floor");
        pace.holds(at(0), A, u64::MAX);
        assert_eq!(pace.rate(A), 10_000_000, "not faster than the most");
    }

    #[test]
    fn as_fast_as_the_device_allows() {
        let mut pace = pace(DAY);
        pace.holds(at(0), A, u64::MAX);
        assert_eq!(pace.rate(A), 10_000, "nothing was said yet");
        assert!(pace.is_wanted(&[of(A, 1)]));
        pace.allow(at(0), A, Some(10_000_000), 0.25);
        assert_eq!(pace.rate(A), 2_500_000, "a quarter is ours");
        assert!(!pace.is_wanted(&[of(A, 1)]));
        assert!(pace.is_wanted(&[of(A, 1), of(B, 1)]), "nobody knows of B");
        pace.allow(at(0), A, Some(40_000), 0.5);
        assert_eq!(pace.rate(A), 20_000);
        assert!(pace.is_wanted(&[of(A, 1)]));
        pace.allow(at(0), A, Some(40_000), 0.0);
        assert_eq!(pace.rate(A), LEAST);
        pace.allow(at(0), A, None, 1.0);
        assert_eq!(pace.rate(A), 10_000, "it says nothing any more");
    }

    /// Urgent repairs go on whatever is allowed, and are charged.
    #[test]
    fn what_is_allowed_bounds_what_is_owed() {
        let mut pace = pace(DAY);
        pace.holds(at(0), A, u64::MAX);
        pace.allow(at(0), A, Some(20_000), 1.0);
        for _ in 0..100 {
            pace.owe(at(0), &[of(A, 5000)]);
        }
        let when = pace.take(at(0), &[of(A, 1000)]).unwrap_err();
        assert!(at(1040) <= when && when <= at(1060), "{when:?}");
    }

    #[test]
    fn all_devices_or_none() {
        let mut pace = pace(DAY);
        pace.take(at(0), &[of(A, 10_000), of(B, 5000)]).unwrap();
        let when = pace.take(at(0), &[of(A, 1), of(B, 5000)]).unwrap_err();
        assert!(when > at(0));
        // Nothing was taken from the other one.
        pace.take(at(0), &[of(B, 5000)]).unwrap();
        pace.take(when, &[of(A, 1)]).unwrap();
    }

    #[test]
    fn what_may_not_wait_is_owed() {
        let mut pace = pace(DAY);
        pace.owe(at(0), &[of(A, 15_000)]);
        let when = pace.take(at(0), &[of(A, 10_000)]).unwrap_err();
        assert!(when >= at(1500), "{when:?}");
        assert!(pace.take(at(1499), &[of(A, 10_000)]).is_err());
        pace.take(when, &[of(A, 10_000)]).unwrap();
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let mut pace = pace(DAY);
        for _ in 0..1000 {
            pace.owe(at(0), &[of(A, 50_000)]);
        }
        // What the bucket holds is owed, and what is taken comes on top.
        let when = pace.take(at(0), &[of(A, 10_000)]).unwrap_err();
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
        fn never_more(charges in proptest::collection::vec((1u64..50_000, 0u64..2000), 1..80)) {
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
                let given = now.since(at(0)).as_secs_f64() * 10_000.0 + 50_000.0;
                prop_assert!(taken as f64 <= given + 1.0, "{} {}", taken, given);
            }
        }
    }
}
