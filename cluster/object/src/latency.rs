//! How long shard reads, shard writes, proposals and witnesses take, as quantiles that forget.
//!
//! Invariants:
//! - memory is fixed: a histogram per kind and size class, whatever is recorded;
//! - a quantile is never below the true one of what is remembered, and at most a fifth above it;
//! - old observations fade: each time a histogram is full, all its counts are halved.

use std::time::Duration;

/// Buckets per doubling.
const STEPS: usize = 4;
/// Doublings covered, from [`FLOOR_NANOS`] on: about 9 µs to 2.5 hours at the ends.
const DOUBLINGS: usize = 24;
/// The first bucket's upper end.
const FLOOR_NANOS: u64 = 1 << 13;
/// Observations remembered before counts are halved.
const FULL: u32 = 1024;
/// Fewer observations than this say nothing.
const ENOUGH: u32 = 16;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shard is read.
    Read,
    /// A shard is written.
    Write,
    /// The head is asked for a change or a look-up.
    Head,
    /// A replica is asked what it has received.
    Witness,
}

/// Upper ends of the size classes, in bytes; a last one takes the rest.
const SIZES: [u32; 3] = [16 * 1024, 128 * 1024, 1024 * 1024];

#[derive(Clone, Debug)]
struct Histogram {
    counts: [u32; STEPS * DOUBLINGS],
    total: u32,
}

impl Histogram {
    const EMPTY: Histogram = Histogram {
        counts: [0; STEPS * DOUBLINGS],
        total: 0,
    };

    fn record(&mut self, nanos: u64) {
        if self.total >= FULL {
            self.total = 0;
            for count in &mut self.counts {
                *count /= 2;
                self.total += *count;
            }
        }
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    fn quantile(&self, per_mille: u32) -> Option<u64> {
        if self.total < ENOUGH {
            return None;
        }
        let rank = (u64::from(self.total) * u64::from(per_mille))
            .div_ceil(1000)
            .max(1);
        let mut seen = 0u64;
        for (i, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(upper(i));
            }
        }
        None
    }
}

/// The bucket whose upper end is the first that is not below `nanos`.
fn bucket(nanos: u64) -> usize {
    if nanos <= FLOOR_NANOS {
        return 0;
    }
    let above = nanos - 1;
    let doubling = (above / FLOOR_NANOS).ilog2() as usize;
    let base = FLOOR_NANOS << doubling;
    let step = ((above - base) / (base / STEPS as u64)) as usize;
    (doubling * STEPS + step + 1).min(STEPS * DOUBLINGS - 1)
}

fn upper(bucket: usize) -> u64 {
    if bucket == 0 {
        return FLOOR_NANOS;
    }
    let (doubling, step) = ((bucket - 1) / STEPS, (bucket - 1) % STEPS);
    let base = FLOOR_NANOS << doubling;
    base + base / STEPS as u64 * (step as u64 + 1)
}

/// Latencies by kind and size class.
#[derive(Clone, Debug)]
pub struct Latencies {
    by: [[Histogram; SIZES.len() + 1]; 4],
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            by: [const { [Histogram::EMPTY; SIZES.len() + 1] }; 4],
        }
    }
}

impl Latencies {
    fn place(kind: Kind, bytes: u32) -> (usize, usize) {
        let size = SIZES
            .iter()
            .position(|end| bytes <= *end)
            .unwrap_or(SIZES.len());
        (kind as usize, size)
    }

    /// Notes that this took so long.
    pub fn record(&mut self, kind: Kind, bytes: u32, took: Duration) {
        let (kind, size) = Latencies::place(kind, bytes);
        self.by[kind][size].record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What 95 of 100 do not exceed; `None` until enough has been seen.
    pub fn p95(&self, kind: Kind, bytes: u32) -> Option<Duration> {
        let (kind, size) = Latencies::place(kind, bytes);
        self.by[kind][size].quantile(950).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_join_without_gap() {
        for i in 1..STEPS * DOUBLINGS {
            assert!(upper(i - 1) < upper(i));
            assert_eq!(bucket(upper(i)), i);
            assert_eq!(bucket(upper(i - 1) + 1), i);
        }
        assert_eq!(bucket(u64::MAX), STEPS * DOUBLINGS - 1);
    }

    proptest! {
        #[test]
        fn p95_is_close_from_above(mut nanos in prop::collection::vec(10_000u64..10_000_000_000, 16..1000)) {
            let mut latencies = Latencies::default();
            for n in &nanos {
                latencies.record(Kind::Read, 100, Duration::from_nanos(*n));
            }
            nanos.sort_unstable();
            let exact = nanos[(nanos.len() * 950).div_ceil(1000) - 1];
            let got = latencies.p95(Kind::Read, 100).unwrap().as_nanos() as u64;
            prop_assert!(got >= exact && got - exact <= exact / 4, "{got} for {exact}");
        }
    }

    #[test]
    fn forgets() {
        let mut latencies = Latencies::default();
        for _ in 0..5000 {
            latencies.record(Kind::Write, 1 << 20, Duration::from_secs(1));
        }
        assert_eq!(latencies.p95(Kind::Write, 4096), None);
        for _ in 0..5000 {
            latencies.record(Kind::Write, 1 << 20, Duration::from_millis(1));
        }
        assert!(latencies.p95(Kind::Write, 1 << 20).unwrap() < Duration::from_millis(2));
    }
}
