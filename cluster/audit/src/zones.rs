//! How often a stripe is lost whose shards stand in zones, if a zone fails with all that is in it.
//!
//! [`Stripe`](crate::markov::Stripe) cannot say that: what strikes many devices there takes each shard of a stripe by a
//! draw of its own, so now and then more than m of them. Placement is there so that this does not happen: of a zone
//! that fails a stripe loses the shards that it has there, neither more nor fewer. With one shard in each zone one zone
//! alone loses nothing, and that model would have it lose stripes each time; with more than m in one it loses all of
//! them, and that model would have it lose few.
//!
//! Nor is a chain what fits. Two zones of two shards each are two events and four shards: a time to find that is right
//! for m + 1 events (see [`found_after_s`](crate::durability::found_after_s)) is wrong for two. What is bad is found at
//! once, by a look at the whole stripe, so it is reckoned from one look to the next: zones fail independently of each
//! other, and the shards of those that do not fail independently of each other too. For looks that mend what they find
//! that is exact, at any rate.
//!
//! Invariant: numbers that are not negative are added and multiplied, and nothing else: nothing cancels, however small
//! the result is.

/// A stripe whose shards stand in zones, looked at again and again. All rates are per year.
#[derive(Clone, Debug, PartialEq)]
pub struct Zoned {
    /// Shards that may be missing.
    pub m: u32,
    /// Shards in each zone that has some.
    pub shards: Vec<u32>,
    /// How often one shard fails by itself.
    pub fails: f64,
    /// How often one zone does, with all shards in it.
    pub zone_fails: f64,
    /// Years from one look, which mends what it finds, to the next.
    pub between: f64,
}

/// The probability that something happens in a time in which it does so often.
fn once(times: f64) -> f64 {
    -(-times).exp_m1()
}

/// Shards spread over zones, as evenly as it can be done; no zones: each shard has one of its own.
pub fn evenly(shards: u32, zones: u32) -> Vec<u32> {
    let zones = match zones {
        0 => shards,
        zones => zones.min(shards),
    };
    (0..zones)
        .map(|i| shards / zones + u32::from(i < shards % zones))
        .collect()
}

impl Zoned {
    /// The probability that so many shards are missing at the next look, and of that the part with a zone that failed.
    fn missing(&self) -> Vec<[f64; 2]> {
        let (shard, zone) = (
            once(self.fails * self.between),
            once(self.zone_fails * self.between),
        );
        let stands = (-self.zone_fails * self.between).exp();
        let stays = (-self.fails * self.between).exp();
        let mut all = vec![[1.0, 0.0]];
        for shards in &self.shards {
            // One at a time, while the zone stands.
            let mut alone = vec![1.0];
            for _ in 0..*shards {
                let mut more = vec![0.0; alone.len() + 1];
                for (j, p) in alone.iter().enumerate() {
                    more[j] += p * stays;
                    more[j + 1] += p * shard;
                }
                alone = more;
            }
            let mut more = vec![[0.0; 2]; all.len() + *shards as usize];
            for (i, [calm, struck]) in all.iter().enumerate() {
                for (j, p) in alone.iter().enumerate() {
                    more[i + j][0] += calm * p * stands;
                    more[i + j][1] += struck * p * stands;
                }
                more[i + *shards as usize][1] += (calm + struck) * zone;
            }
            all = more;
        }
        all
    }

    fn lost(&self, part: impl Fn(&[f64; 2]) -> f64) -> f64 {
        let lost: f64 = self
            .missing()
            .iter()
            .skip(self.m as usize + 1)
            .map(part)
            .sum();
        lost / self.between
    }

    /// How often a year it is lost.
    pub fn losses_a_year(&self) -> f64 {
        self.lost(|[calm, struck]| calm + struck)
    }

    /// How often a year it is lost and a zone had a part in it.
    pub fn losses_by_zones_a_year(&self) -> f64 {
        self.lost(|[_, struck]| *struck)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::durability::found_after_s;
    use crate::markov::Stripe;

    fn near(got: f64, want: f64, relative: f64) {
        assert!((got / want - 1.0).abs() < relative, "{got} is not {want}");
    }

    fn zoned(m: u32, shards: &[u32], fails: f64, zone_fails: f64) -> Zoned {
        Zoned {
            m,
            shards: shards.to_vec(),
            fails,
            zone_fails,
            between: 1.0,
        }
    }

    /// Goes through all that can happen to zones and shards.
    fn one_by_one(of: &Zoned) -> [f64; 2] {
        let (zones, n) = (of.shards.len(), of.shards.iter().sum::<u32>());
        let mut lost = [0.0; 2];
        for struck in 0u32..1 << zones {
            for failed in 0u32..1 << n {
                let (mut first, mut gone, mut p) = (0, failed, 1.0);
                for (zone, shards) in of.shards.iter().enumerate() {
                    let down = struck >> zone & 1 == 1;
                    let all = ((1 << shards) - 1) << first;
                    gone |= if down { all } else { 0 };
                    first += shards;
                    p *= if down {
                        once(of.zone_fails)
                    } else {
                        (-of.zone_fails).exp()
                    };
                }
                for shard in 0..n {
                    let bad = failed >> shard & 1 == 1;
                    p *= if bad {
                        once(of.fails)
                    } else {
                        (-of.fails).exp()
                    };
                }
                if gone.count_ones() > of.m {
                    lost[usize::from(struck > 0)] += p;
                }
            }
        }
        lost
    }

    #[test]
    fn spread() {
        assert_eq!(evenly(6, 4), [2, 2, 1, 1]);
        assert_eq!(evenly(6, 3), [2, 2, 2]);
        assert_eq!(evenly(3, 9), [1, 1, 1]);
        assert_eq!(evenly(3, 0), [1, 1, 1]);
        assert!(evenly(0, 0).is_empty());
    }

    #[test]
    fn without_zones_it_is_what_the_chain_says() {
        for (k, m) in [(4u32, 2u32), (8, 4), (17, 3), (40, 24)] {
            let of = Zoned {
                between: 0.25,
                ..zoned(m, &evenly(k + m, 3), 1e-4, 0.0)
            };
            let chain = Stripe {
                k,
                m,
                fails: of.fails,
                mended: 1.0 / found_after_s(of.between, m),
                shocks: 0.0,
                struck: 0.0,
            };
            near(of.losses_a_year(), chain.losses_a_year(), 0.01);
            assert_eq!(of.losses_by_zones_a_year(), 0.0);
        }
    }

    #[test]
    fn what_is_in_a_zone_is_struck_and_nothing_else() {
        // More than m in one: each that fails loses it. One in each: it takes m + 1 of them.
        near(zoned(1, &[2, 1], 0.0, 1e-6).losses_a_year(), 1e-6, 1e-5);
        let apart = zoned(2, &[1; 6], 0.0, 1e-3).losses_a_year();
        near(apart, 20.0 * 1e-9, 0.01);
        // Two of two, of three: two at about the same time.
        near(zoned(2, &[2; 3], 0.0, 1e-4).losses_a_year(), 3e-8, 0.001);
    }

    proptest! {
        #[test]
        fn as_all_that_can_happen(
            m in 0u32..4, shards in prop::collection::vec(1u32..4, 1..4),
            fails in -4.0f64..1.0, zones in -4.0f64..1.0,
        ) {
            let of = zoned(m, &shards, 10f64.powf(fails), 10f64.powf(zones));
            let [calm, struck] = one_by_one(&of);
            let (all, by_zones) = (of.losses_a_year(), of.losses_by_zones_a_year());
            prop_assert!((all - calm - struck).abs() <= 1e-9 * all, "{all} {calm} {struck}");
            prop_assert!((by_zones - struck).abs() <= 1e-9 * by_zones, "{by_zones} {struck}");
        }
    }
}
