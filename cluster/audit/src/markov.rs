//! How often a stripe of k + m shards is lost, if shards fail and are made again at given rates.
//!
//! A state is the number of shards that are missing, the last one that the stripe is lost. From it shards fail one at a
//! time, and at once where something fails that several of them stand on; one at a time they are made again.
//!
//! Invariant: probabilities are found by the elimination of Grassmann, Taksar and Heyman, which adds, multiplies and
//! divides positive numbers only: nothing cancels, however small the result is beside the rates.

/// A chain of states in continuous time: `rates[i][j]` is the rate from state i to state j; the diagonal does not
/// count. Gives the mean time from the first state to the last one, infinite if that is never reached.
pub fn mean_time(rates: &[Vec<f64>]) -> f64 {
    let n = rates.len();
    if n < 2 {
        return 0.0;
    }
    // From the last state it begins again, at a rate of 1: of a long time it is there for the share that one unit
    // has in one unit and a mean time.
    let mut left: Vec<Vec<f64>> = rates.to_vec();
    left[n - 1] = vec![0.0; n];
    left[n - 1][0] = 1.0;
    for k in (1..n).rev() {
        let row = left[k].clone();
        let out: f64 = row[..k].iter().sum();
        if out <= 0.0 {
            // From here on there is no way back: states behind it are for ever.
            return f64::NAN;
        }
        for (i, from) in left[..k].iter_mut().enumerate() {
            let share = from[k] / out;
            from[k] = share;
            for (j, rate) in row[..k].iter().enumerate().filter(|(j, _)| *j != i) {
                from[j] += share * rate;
            }
        }
    }
    let mut weight = vec![1.0; n];
    for k in 1..n {
        weight[k] = (0..k).map(|i| weight[i] * left[i][k]).sum();
    }
    if weight[n - 1] <= 0.0 {
        return f64::INFINITY;
    }
    weight[..n - 1].iter().sum::<f64>() / weight[n - 1]
}

/// What makes the shards of a stripe fail, and what makes them again. All rates are per year.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stripe {
    /// Shards that it takes to read it,
    pub k: u32,
    /// and shards that may be missing.
    pub m: u32,
    /// How often one shard fails by itself.
    pub fails: f64,
    /// How often one that is missing is made again. Each is, at the same time as others.
    pub mended: f64,
    /// How often something happens that takes many devices at once,
    pub shocks: f64,
    /// and with what probability each of them.
    pub struck: f64,
}

/// Of n, the probability that j are struck, each with probability p.
fn binomial(n: u32, j: u32, p: f64) -> f64 {
    let choose = (0..j).fold(1.0, |all, i| all * f64::from(n - i) / f64::from(i + 1));
    choose * p.powi(j.cast_signed()) * (1.0 - p).powi((n - j).cast_signed())
}

impl Stripe {
    fn rates(&self) -> Vec<Vec<f64>> {
        let (n, states) = (self.k + self.m, self.m as usize + 2);
        let mut rates = vec![vec![0.0; states]; states];
        for missing in 0..=self.m {
            let (i, left) = (missing as usize, n - missing);
            rates[i][i + 1] += f64::from(left) * self.fails;
            if missing > 0 {
                rates[i][i - 1] += f64::from(missing) * self.mended;
            }
            if self.shocks > 0.0 {
                for struck in 1..=left {
                    let to = (i + struck as usize).min(states - 1);
                    rates[i][to] += self.shocks * binomial(left, struck, self.struck);
                }
            }
        }
        rates
    }

    /// Years until such a stripe is lost, in the mean.
    pub fn years_to_loss(&self) -> f64 {
        mean_time(&self.rates())
    }

    /// How often a year it is lost.
    pub fn losses_a_year(&self) -> f64 {
        1.0 / self.years_to_loss()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(got: f64, want: f64, relative: f64) {
        assert!((got / want - 1.0).abs() < relative, "{got} is not {want}");
    }

    fn stripe(k: u32, m: u32, fails: f64, mended: f64) -> Stripe {
        Stripe {
            k,
            m,
            fails,
            mended,
            shocks: 0.0,
            struck: 0.0,
        }
    }

    /// The mean time of a birth-death chain, by the recursion that is exact for it and adds positive numbers only.
    fn by_recursion(s: &Stripe) -> f64 {
        let (mut one_up, mut all) = (0.0, 0.0);
        for i in 0..=s.m {
            let fails = f64::from(s.k + s.m - i) * s.fails;
            one_up = 1.0 / fails + f64::from(i) * s.mended / fails * one_up;
            all += one_up;
        }
        all
    }

    #[test]
    fn two_copies() {
        // (3 a + b) / 2 a², as textbooks have it.
        for (a, b) in [(0.04, 8766.0), (1.0, 1.0), (1e-9, 1e9)] {
            near(
                stripe(1, 1, a, b).years_to_loss(),
                (3.0 * a + b) / (2.0 * a * a),
                1e-12,
            );
        }
    }

    #[test]
    fn no_parity_and_no_repair() {
        near(stripe(5, 0, 0.1, 7.0).years_to_loss(), 1.0 / 0.5, 1e-12);
        let harmonic = 1.0 / 6.0 + 1.0 / 5.0 + 1.0 / 4.0;
        near(stripe(4, 2, 1.0, 0.0).years_to_loss(), harmonic, 1e-12);
        assert_eq!(stripe(4, 2, 0.0, 1.0).years_to_loss(), f64::INFINITY);
    }

    #[test]
    fn wide_stripes_do_not_cancel() {
        for (k, m) in [(6, 3), (8, 4), (17, 3), (9, 6), (16, 8), (40, 24)] {
            for (fails, mended) in [(0.04, 8766.0), (1e-6, 1e7), (4.0, 0.1)] {
                let s = stripe(k, m, fails, mended);
                near(s.years_to_loss(), by_recursion(&s), 1e-10);
            }
        }
        // What cancels gives no number of this size, or one below nothing.
        let s = stripe(17, 3, 1e-6, 1e7);
        let leading = 1e-6f64.powi(4) * 20.0 * 19.0 * 18.0 * 17.0 / (6.0 * 1e7f64.powi(3));
        near(s.losses_a_year(), leading, 1e-9);
    }

    /// What studies of correlated failures found: independent failures of 4 % a year and repair within an hour lose
    /// 6+3 about 1e-14 a year; one loss of 1 % of the nodes a year puts 8+4 at 7.5e-8 and 9+6 at 6e-11.
    #[test]
    fn correlated_failures_are_what_counts() {
        let independent = stripe(6, 3, 0.04, 8766.0).losses_a_year();
        assert!((1e-15..2e-14).contains(&independent), "{independent}");
        let struck = |k, m| Stripe {
            shocks: 1.0,
            struck: 0.01,
            ..stripe(k, m, 0.04, 8766.0)
        };
        near(struck(8, 4).losses_a_year(), 7.5e-8, 0.03);
        near(struck(9, 6).losses_a_year(), 6e-11, 0.06);
    }

    #[test]
    fn shocks_alone() {
        let s = Stripe {
            shocks: 3.0,
            struck: 1.0,
            ..stripe(4, 2, 0.0, 1.0)
        };
        near(s.years_to_loss(), 1.0 / 3.0, 1e-12);
        near((0..=20).map(|j| binomial(20, j, 0.3)).sum(), 1.0, 1e-12);
    }

    proptest! {
        #[test]
        fn as_the_recursion_says(
            k in 1u32..20, m in 0u32..9, fails in -9.0f64..2.0, mended in -2.0f64..9.0,
        ) {
            let s = stripe(k, m, 10f64.powf(fails), 10f64.powf(mended));
            let (got, want) = (s.years_to_loss(), by_recursion(&s));
            prop_assert!((got / want - 1.0).abs() < 1e-9, "{got} {want}");
        }

        /// More parity and faster repair lose less, shocks more.
        #[test]
        fn in_the_right_direction(k in 1u32..18, m in 1u32..4, fails in 0.01f64..1.0, mended in 1.0f64..1e4) {
            let s = Stripe { shocks: 0.1, struck: 0.05, ..stripe(k, m, fails, mended) };
            let at = s.losses_a_year();
            let more = Stripe { m: m + 1, ..s };
            let faster = Stripe { mended: mended * 2.0, ..s };
            let calm = Stripe { shocks: 0.0, ..s };
            prop_assert!(more.losses_a_year() < at);
            prop_assert!(faster.losses_a_year() < at);
            prop_assert!(calm.losses_a_year() < at);
        }
    }
}
