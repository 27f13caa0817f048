//! Whether to spin before sleeping.
//!
//! On a virtual machine a sleep and the wake after it cost some 50 µs, so that spinning a little
//! halves the latency of a busy core. But a core that spins for nothing takes the time from whoever
//! else wants it, and where threads outnumber cores that is the very peer it waits for. So it is
//! learned: spinning goes on as long as it often enough finds something and nobody took the cpu
//! away meanwhile.
//!
//! Invariants:
//! - Of every `WINDOW` spins at least `HITS_MIN` must have paid, and at most `PREEMPTED_MAX` have
//!   been cut off; else the next `rest` sleeps happen without, and `rest` doubles up to `REST_MAX`.
//! - A window that paid resets `rest`.

use std::time::Duration;

const WINDOW: u32 = 32;
const HITS_MIN: u32 = 8;
const PREEMPTED_MAX: u32 = 2;
const REST_MIN: u32 = 64;
const REST_MAX: u32 = 1 << 16;

/// A pause between two looks at the clock that long means that something else had the cpu.
pub(crate) const PREEMPTION: Duration = Duration::from_micros(30);

/// What one spin came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Something came while spinning.
    Hit,
    /// Nothing came.
    Miss,
    /// Nothing came, and the cpu was taken away.
    Preempted,
}

/// The learner.
pub(crate) struct Spinner {
    limit: Duration,
    tries: u32,
    hits: u32,
    preempted: u32,
    resting: u32,
    rest: u32,
}

impl Spinner {
    /// Spins up to `limit` at a time; zero means never.
    pub(crate) fn new(limit: Duration) -> Spinner {
        Spinner {
            limit,
            tries: 0,
            hits: 0,
            preempted: 0,
            resting: 0,
            rest: REST_MIN,
        }
    }

    /// How long to spin this time, if at all.
    pub(crate) fn turn(&mut self) -> Option<Duration> {
        if self.limit.is_zero() {
            return None;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        Some(self.limit)
    }

    /// Learns how a spin ended.
    pub(crate) fn learn(&mut self, outcome: Outcome) {
        self.tries += 1;
        self.hits += u32::from(outcome == Outcome::Hit);
        self.preempted += u32::from(outcome == Outcome::Preempted);
        if self.preempted > PREEMPTED_MAX {
            self.pause();
        } else if self.tries == WINDOW {
            if self.hits < HITS_MIN {
                self.pause();
            } else {
                self.rest = REST_MIN;
                self.start_window();
            }
        }
    }

    fn pause(&mut self) {
        self.resting = self.rest;
        self.rest = (self.rest * 2).min(REST_MAX);
        self.start_window();
    }

    fn start_window(&mut self) {
        self.tries = 0;
        self.hits = 0;
        self.preempted = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(20);

    fn rests(spinner: &mut Spinner) -> u32 {
        (0..).find(|_| spinner.turn().is_some()).unwrap()
    }

    #[test]
    fn zero_never_spins() {
        let mut spinner = Spinner::new(Duration::ZERO);
        assert!((0..10_000).all(|_| spinner.turn().is_none()));
    }

    #[test]
    fn it_goes_on_while_it_pays_and_rests_longer_and_longer_when_not() {
        let mut spinner = Spinner::new(LIMIT);
        for turn in 0..1000 {
            assert_eq!(spinner.turn(), Some(LIMIT));
            spinner.learn(if turn % 3 == 0 {
                Outcome::Hit
            } else {
                Outcome::Miss
            });
        }
        let mut spinner = Spinner::new(LIMIT);
        for expected in [64, 128, 256, 512] {
            for _ in 0..WINDOW {
                assert!(spinner.turn().is_some());
                spinner.learn(Outcome::Miss);
            }
            assert_eq!(rests(&mut spinner), expected);
        }
        for _ in 0..WINDOW {
            spinner.learn(Outcome::Hit);
        }
        for _ in 0..WINDOW {
            spinner.learn(Outcome::Miss);
        }
        assert_eq!(
            rests(&mut spinner),
            REST_MIN,
            "a window that paid resets the rest"
        );
    }

    #[test]
    fn losing_the_cpu_stops_it_at_once() {
        let mut spinner = Spinner::new(LIMIT);
        for _ in 0..3 {
            assert!(spinner.turn().is_some());
            spinner.learn(Outcome::Preempted);
        }
        assert!(spinner.turn().is_none());
    }
}
