//! Time as state machines count it, beside tokio's.

use std::time::Duration;

use ashlar_layout::time::Instant;

/// How far ahead is far enough, in nanoseconds: a year.
const FAR: u64 = 31_536_000_000_000_000;

/// Counts nanoseconds from 1 on, since it was started.
#[derive(Clone, Copy, Debug)]
pub struct Clock(tokio::time::Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Clock {
        Clock(tokio::time::Instant::now())
    }

    /// The time: never 0.
    pub fn now(&self) -> Instant {
        let nanos = self.0.elapsed().as_nanos();
        Instant(u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(1))
    }

    /// The same instant, as tokio counts it; a year from now at the most.
    pub fn at(&self, instant: Instant) -> tokio::time::Instant {
        self.0 + Duration::from_nanos(nanos(instant, self.now()))
    }
}

/// Nanoseconds since the clock was started, up to a year from now.
fn nanos(instant: Instant, now: Instant) -> u64 {
    instant.0.saturating_sub(1).min(now.0.saturating_add(FAR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_far_is_far_from_now() {
        // Also when it has run for longer than that.
        for now in [1, FAR, 3 * FAR] {
            let now = Instant(now);
            assert_eq!(nanos(now, now), now.0 - 1);
            assert_eq!(nanos(Instant(u64::MAX), now), now.0 + FAR);
        }
        assert_eq!(nanos(Instant(0), Instant(1)), 0);
    }
}
