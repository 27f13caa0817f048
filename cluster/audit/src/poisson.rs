//! How often something may happen that was seen to happen so often.
//!
//! Invariant: nothing is subtracted that could cancel: sums of terms of one sign only, in logarithms where they are
//! large.

/// The confidence of all bounds that are told.
pub const CONFIDENCE: f64 = 0.95;

/// The probability that a Poisson variable of this mean is at most `n`.
pub fn at_most(n: u64, mean: f64) -> f64 {
    if mean <= 0.0 {
        return 1.0;
    }
    // From the largest term on down, each relative to that one: none overflows, and what underflows does not count.
    let (ln_mean, mut ln_factorial) = (mean.ln(), 0.0);
    let top = n.min(mean.floor() as u64);
    for i in 2..=top {
        ln_factorial += (i as f64).ln();
    }
    let ln_top = top as f64 * ln_mean - mean - ln_factorial;
    let (mut sum, mut term) = (1.0, 1.0);
    for i in (1..=top).rev() {
        term *= i as f64 / mean;
        sum += term;
        if term < sum * f64::EPSILON {
            break;
        }
    }
    term = 1.0;
    for i in top + 1..=n {
        term *= mean / i as f64;
        sum += term;
        if term < sum * f64::EPSILON {
            break;
        }
    }
    (ln_top + sum.ln()).exp().min(1.0)
}

/// The largest mean with which `n` events or fewer are still seen with a probability of one minus `confidence`: the
/// exact upper bound on the mean if `n` were seen. With none it is 3, nearly: the rule of three.
pub fn upper(n: u64, confidence: f64) -> f64 {
    let rest = 1.0 - confidence;
    if n == 0 {
        return -rest.ln();
    }
    let (mut low, mut high) = (n as f64, n as f64 + 1.0);
    while at_most(n, high) > rest {
        high *= 2.0;
    }
    // As close as numbers are.
    for _ in 0..200 {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        match at_most(n, middle) > rest {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(got: f64, want: f64, relative: f64) {
        assert!((got / want - 1.0).abs() < relative, "{got} is not {want}");
    }

    /// Values of half the 0.95 quantile of chi squared with 2(n + 1) degrees of freedom, as tables have them.
    #[test]
    fn the_bounds_of_tables() {
        for (n, want) in [
            (0, 2.995_732_273_553_991),
            (1, 4.743_864_518_390_6),
            (2, 6.295_793_622_7),
            (3, 7.753_656_528),
            (5, 10.513_034_91),
            (10, 16.962_219_235_722),
            (20, 29.062_018_840_434),
            (50, 63.287_074_095_747),
        ] {
            near(upper(n, CONFIDENCE), want, 1e-7);
        }
    }

    #[test]
    fn the_rule_of_three() {
        assert!(upper(0, CONFIDENCE) < 3.0 && upper(0, CONFIDENCE) > 2.99);
    }

    #[test]
    fn many_events_are_nearly_normal() {
        let n = 1_000_000u64;
        let by_normal = n as f64 + 1.644_853_6 * (n as f64).sqrt();
        near(upper(n, CONFIDENCE), by_normal, 1e-5);
    }

    #[test]
    fn sums_that_are_known() {
        near(at_most(0, 2.0), (-2.0f64).exp(), 1e-14);
        near(at_most(2, 1.0), 2.5 * (-1.0f64).exp(), 1e-14);
        assert_eq!(at_most(3, 0.0), 1.0);
        near(at_most(1_000_000, 10.0), 1.0, 1e-12);
        assert_eq!(at_most(0, 1e6), 0.0);
    }

    proptest! {
        /// The bound is where the probability is what it is said to be; more events bound less.
        #[test]
        fn bounds_bound(n in 0u64..2000, confidence in 0.5f64..0.999) {
            let bound = upper(n, confidence);
            let rest = at_most(n, bound);
            prop_assert!((rest / (1.0 - confidence) - 1.0).abs() < 1e-6, "{rest}");
            prop_assert!(upper(n + 1, confidence) > bound);
            prop_assert!(at_most(n, bound * 1.01) < rest);
        }
    }
}
