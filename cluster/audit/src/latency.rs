//! Counts of latencies, by how long they are: what takes 3 % more is told apart.
//!
//! Invariants:
//! - its size is fixed: recording allocates nothing;
//! - whatever is recorded is counted: what is too long for it counts as the longest.

use std::time::Duration;

/// Buckets of an octave.
const PARTS: u64 = 32;
/// Latencies are taken up to 2^26 µs: a minute.
const OCTAVES: u64 = 21;
const BUCKETS: usize = (PARTS * (OCTAVES + 1)) as usize;

/// A bucket: the higher, the longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(u16);

impl Bucket {
    /// Of a latency.
    pub fn of(latency: Duration) -> Bucket {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if micros < PARTS {
            return Bucket(micros as u16);
        }
        let octave = u64::from(micros.ilog2() - PARTS.ilog2());
        let part = (micros >> octave) - PARTS;
        let bucket = PARTS * (octave + 1) + part;
        Bucket(bucket.min(BUCKETS as u64 - 1) as u16)
    }

    /// The longest latency that is in it, in microseconds.
    pub fn micros(self) -> u64 {
        let bucket = u64::from(self.0);
        if bucket < PARTS {
            return bucket;
        }
        let octave = bucket / PARTS - 1;
        ((PARTS + bucket % PARTS + 1) << octave) - 1
    }

    /// How many buckets lie between the two.
    pub fn distance(self, other: Bucket) -> u16 {
        self.0.abs_diff(other.0)
    }
}

/// How many latencies there were, of each length.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Box<[u32; BUCKETS]>,
    all: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            counts: Box::new([0; BUCKETS]),
            all: 0,
        }
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, bucket: Bucket) {
        let count = &mut self.counts[usize::from(bucket.0)];
        *count = count.saturating_add(1);
        self.all += 1;
    }

    /// How many were counted.
    pub fn len(&self) -> u64 {
        self.all
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.all == 0
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.all = 0;
    }

    /// The highest bucket such that one in a hundred of all of both is in it or above; none if there is none.
    pub fn p99(&self, other: Option<&Latencies>) -> Option<Bucket> {
        let all = self.all + other.map_or(0, Latencies::len);
        let of = |bucket: usize| {
            let more = other.map_or(0, |other| other.counts[bucket]);
            u64::from(self.counts[bucket]) + u64::from(more)
        };
        let mut above = 0;
        for bucket in (0..BUCKETS).rev() {
            above += of(bucket);
            if above > 0 && above * 100 >= all {
                return Some(Bucket(bucket as u16));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_in_order() {
        let mut last = Bucket::of(Duration::ZERO);
        assert_eq!(last.micros(), 0);
        for micros in 1..100_000u64 {
            let bucket = Bucket::of(Duration::from_micros(micros));
            assert!(bucket == last || bucket.distance(last) == 1 && bucket > last);
            assert!(bucket.micros() >= micros && bucket.micros() * 32 <= micros * 33);
            last = bucket;
        }
        let longest = Bucket::of(Duration::from_secs(u64::MAX));
        assert!(longest > Bucket::of(Duration::from_secs(60)));
        assert_eq!(usize::from(longest.0), BUCKETS - 1);
    }

    #[test]
    fn one_in_a_hundred() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.p99(None), None);
        for n in 0..1000 {
            let micros = if n % 50 == 0 { 900 } else { 100 };
            latencies.record(Bucket::of(Duration::from_micros(micros)));
        }
        let long = Bucket::of(Duration::from_micros(900));
        assert_eq!(latencies.p99(None), Some(long));
        // With as many again that are short it is just one in a hundred.
        let mut short = Latencies::default();
        for _ in 0..1001 {
            short.record(Bucket::of(Duration::from_micros(100)));
        }
        let all = latencies.p99(Some(&short)).unwrap();
        assert_eq!(all, Bucket::of(Duration::from_micros(100)));
        latencies.clear();
        assert!(latencies.is_empty());
    }
}
