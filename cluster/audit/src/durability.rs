//! How durable the store was, and how durable a model says that it is.
//!
//! The two are kept apart. What was measured is what was counted, and bounds that follow from it alone. The model takes
//! what was measured where there is something, and says of each of its numbers where it is from.

use serde::{Deserialize, Serialize};

use crate::markov::Stripe;
use crate::poisson::{CONFIDENCE, upper};
use crate::record::{DAY_MS, Loss};
use crate::tally::Tally;
use crate::zones::{Zoned, evenly};

/// Seconds of a year.
pub const YEAR_S: f64 = 365.25 * 86_400.0;

/// The days that are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The first one, since 1970,
    pub first: u64,
    /// and the last.
    pub last: u64,
}

impl Window {
    /// So many days up to now, today among them.
    pub fn of(days: u64, now_ms: u64) -> Window {
        let last = now_ms / DAY_MS;
        Window {
            first: (last + 1).saturating_sub(days),
            last,
        }
    }

    /// Whether a day is one of them.
    pub fn has(&self, day: u64) -> bool {
        (self.first..=self.last).contains(&day)
    }
}

/// What was counted, and what follows from that alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// What was counted.
    pub counted: Tally,
    /// Years that objects were seen to have been there for: each from when it was made or looked at before to when
    /// the pass began that looked at it.
    pub object_years: f64,
    /// The same of shards.
    pub shard_years: f64,
    /// Objects of which bytes were found to be gone,
    pub lost_objects: u64,
    /// and stripes.
    pub lost_stripes: u64,
    /// How sure the bound is.
    pub confidence: f64,
    /// The largest number of losses that is still to be reckoned with, per object and year; none if nothing was seen
    /// for any time.
    pub losses_at_most: Option<f64>,
    /// Bad shards per shard and year.
    pub bad_a_year: Option<f64>,
    /// Seconds from finding to having mended, in the mean.
    pub repair_s: Option<f64>,
    /// Seconds that bad shards were bad for before they were found, at the most, in the mean; of stripes that were not
    /// lost.
    pub lag_s: Option<f64>,
}

fn per(count: f64, of: f64) -> Option<f64> {
    (of > 0.0).then_some(count / of)
}

/// Makes numbers of counts, and of the losses that were found in the same time.
pub fn measure(counted: Tally, losses: &[Loss]) -> Measured {
    let mut counted = counted;
    // Nobody counts for how long those of stripes that are lost had been bad: they are not in the sum, and must not be
    // in what it is divided by. Where zones fail that is half of all.
    let lag_s = per(counted.lag_ms as f64 / 1e3, counted.bad() as f64);
    // What was found of stripes that are lost stands with them.
    for loss in losses {
        for (kind, _) in loss.bad.values() {
            *counted.found.entry(*kind).or_default() += 1;
        }
    }
    let mut objects: Vec<_> = losses
        .iter()
        .map(|loss| (&loss.item.bucket, &loss.item.key, loss.item.version))
        .collect();
    objects.sort_unstable();
    objects.dedup();
    let lost_objects = objects.len() as u64;
    let object_years = counted.object_s as f64 / YEAR_S;
    let shard_years = counted.shard_s as f64 / YEAR_S;
    let bad = counted.bad() as f64;
    Measured {
        object_years,
        shard_years,
        lost_objects,
        lost_stripes: losses.len() as u64,
        confidence: CONFIDENCE,
        losses_at_most: per(upper(lost_objects, CONFIDENCE), object_years),
        bad_a_year: per(bad, shard_years),
        repair_s: per(counted.repair_ms as f64 / 1e3, counted.repaired as f64),
        lag_s,
        counted,
    }
}

/// What a model is told that nobody has measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assumptions {
    /// How often a year a device fails with all that is on it.
    pub device_fails: f64,
    /// Seconds from finding to having mended, if nothing was mended yet.
    pub repair_s: f64,
    /// How often a year something takes many devices at once,
    pub shocks: f64,
    /// and with what probability each.
    pub struck: f64,
    /// How often a year a zone fails with all that is in it,
    #[serde(default)]
    pub zone_fails: f64,
    /// and in how many of them the shards of a stripe stand, spread evenly; 0: each in one of its own.
    #[serde(default)]
    pub zones: u32,
    /// Seconds of a pass: see [`found_after_s`].
    pub pass_s: f64,
}

impl Default for Assumptions {
    fn default() -> Assumptions {
        Assumptions {
            device_fails: 0.02,
            repair_s: 3600.0,
            shocks: 1.0,
            struck: 0.01,
            zone_fails: 0.0,
            zones: 0,
            pass_s: 7.0 * 86_400.0,
        }
    }
}

/// Where a number is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It follows from what was counted.
    Measured,
    /// Somebody said so.
    Assumed,
}

/// A number that the model works with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Given {
    /// What it is.
    pub what: &'static str,
    /// How much.
    pub value: f64,
    /// Where it is from.
    pub source: Source,
}

/// What the model says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Modelled {
    /// The class, data shards
    pub k: u32,
    /// and parity.
    pub m: u32,
    /// What it works with.
    pub given: Vec<Given>,
    /// How often a year a stripe is lost if shards fail independently,
    pub independent: f64,
    /// and with what takes many devices at once, zones among it.
    pub correlated: f64,
    /// Stripes that there are, as the last passes saw them,
    pub stripes: u64,
    /// and how many of them are lost a year, in the mean.
    pub lost_a_year: f64,
}

/// After how many seconds a bad shard is found, as the model has to take it: in the mean that is half of a pass. But a
/// pass finds all bad shards of a stripe at once, and the model each at a time of its own. A stripe is lost if m + 1
/// shards fail between two looks: with half of a pass the model would lose 2^m / (m + 1) times too few stripes that
/// have m parity shards. With this it loses as many, as long as few shards fail in a pass.
pub fn found_after_s(pass_s: f64, m: u32) -> f64 {
    match m {
        0 => pass_s / 2.0,
        m => pass_s / (f64::from(m) + 1.0).powf(1.0 / f64::from(m)),
    }
}

/// Works the model out for stripes of k + m shards.
pub fn model(
    class: (u32, u32),
    stripes: u64,
    measured: &Measured,
    assumed: &Assumptions,
) -> Modelled {
    let (k, m) = class;
    let or = |value: Option<f64>, otherwise: f64| match value {
        Some(value) => (value, Source::Measured),
        None => (otherwise, Source::Assumed),
    };
    // That none was found yet in little time says nothing.
    let found = measured.bad_a_year.filter(|_| measured.counted.bad() > 0);
    let (rots, rots_from) = or(found, 0.0);
    let (repair_s, repair_from) = or(measured.repair_s, assumed.repair_s);
    let missing_s = found_after_s(assumed.pass_s, m) + repair_s;
    let calm = Stripe {
        k,
        m,
        fails: assumed.device_fails + rots,
        mended: YEAR_S / missing_s.max(1.0),
        shocks: 0.0,
        struck: 0.0,
    };
    let (shocks, struck) = (assumed.shocks, assumed.struck);
    let shaken = Stripe {
        shocks,
        struck,
        ..calm
    };
    let shards = evenly(k + m, assumed.zones);
    let zones = f64::from(u32::try_from(shards.len()).unwrap_or(u32::MAX));
    // Repair makes the time in which the next failure counts longer, by itself at either end: a shard that fails at any
    // time between two looks is missing for half of that and a repair.
    let zoned = Zoned {
        m,
        shards,
        fails: calm.fails + shocks * struck,
        zone_fails: assumed.zone_fails,
        between: (assumed.pass_s + 2.0 * repair_s).max(1.0) / YEAR_S,
    };
    let given = [
        ("bad shards found, per shard and year", rots, rots_from),
        (
            "devices that fail, per device and year",
            assumed.device_fails,
            Source::Assumed,
        ),
        (
            "seconds from finding a bad shard to having mended it",
            repair_s,
            repair_from,
        ),
        (
            "seconds of a pass, which finds all that is bad of a stripe at once",
            assumed.pass_s,
            Source::Assumed,
        ),
        (
            "events a year that take many devices at once",
            shocks,
            Source::Assumed,
        ),
        (
            "and the share of devices that each takes",
            struck,
            Source::Assumed,
        ),
        (
            "zones that fail with all that is in them, per zone and year",
            assumed.zone_fails,
            Source::Assumed,
        ),
        (
            "and zones that the shards of a stripe stand in",
            zones,
            Source::Assumed,
        ),
    ];
    // What zones have no part in is in the first of the two already.
    let correlated = shaken.losses_a_year() + zoned.losses_by_zones_a_year();
    Modelled {
        k,
        m,
        given: given
            .map(|(what, value, source)| Given {
                what,
                value,
                source,
            })
            .into(),
        independent: calm.losses_a_year(),
        correlated,
        stripes,
        lost_a_year: correlated * stripes as f64,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ashlar_layout::ids::{DeviceNo, StripeId};

    use super::*;
    use crate::record::Item;
    use crate::tally::Kind;

    fn loss(key: &str, attempt: u64, bad: u16) -> Loss {
        let item = Item {
            key: key.into(),
            ..Item::default()
        };
        Loss {
            item,
            stripe: StripeId { writer: 1, attempt },
            bad: (0..bad)
                .map(|i| (i, (Kind::Missing, DeviceNo(1))))
                .collect(),
            ..Loss::default()
        }
    }

    #[test]
    fn windows_end_today() {
        let week = Window::of(7, 100 * DAY_MS + 5);
        assert_eq!((week.first, week.last), (94, 100));
        assert!(week.has(94) && week.has(100) && !week.has(93) && !week.has(101));
        assert_eq!(Window::of(365, 5).first, 0);
    }

    #[test]
    fn three_by_n_where_nothing_was_lost() {
        let tally = Tally {
            object_s: (1000.0 * YEAR_S) as u64,
            ..Tally::default()
        };
        let measured = measure(tally.clone(), &[]);
        let at_most = measured.losses_at_most.unwrap();
        assert!((0.00299..0.003).contains(&at_most), "{at_most}");
        // Two stripes of one object are one object; the shards of both are findings.
        let lost = [loss("a", 1, 3), loss("a", 2, 2), loss("b", 3, 1)];
        let late = Tally {
            found: BTreeMap::from([(Kind::Rot, 2)]),
            lag_ms: 6000,
            ..tally.clone()
        };
        assert_eq!(measure(late, &lost).lag_s, Some(3.0));
        let measured = measure(tally, &lost);
        assert_eq!((measured.lost_objects, measured.lost_stripes), (2, 3));
        assert_eq!(measured.counted.found, BTreeMap::from([(Kind::Missing, 6)]));
        assert!((measured.losses_at_most.unwrap() / 6.295_793_6e-3 - 1.0).abs() < 1e-6);
        let nothing = measure(Tally::default(), &lost);
        assert_eq!((nothing.losses_at_most, nothing.bad_a_year), (None, None));
    }

    #[test]
    fn a_stripe_is_lost_if_too_many_fail_between_two_looks() {
        let week = 7.0 * 86_400.0;
        for m in 1..=8u32 {
            let (n, fails) = (m + 4, 1e-4);
            let stripe = Stripe {
                k: 4,
                m,
                fails,
                mended: YEAR_S / found_after_s(week, m),
                shocks: 0.0,
                struck: 0.0,
            };
            let ways = (0..=m).fold(1.0, |all, i| all * f64::from(n - i) / f64::from(i + 1));
            let in_a_pass = fails * week / YEAR_S;
            let a_year = ways * in_a_pass.powi(m.cast_signed() + 1) * YEAR_S / week;
            let got = stripe.losses_a_year();
            assert!(
                (got / a_year - 1.0).abs() < 1e-3,
                "{m}: {got} is not {a_year}"
            );
        }
        assert_eq!(found_after_s(week, 1), week / 2.0);
    }

    #[test]
    fn the_model_says_what_it_was_told() {
        let assumed = Assumptions::default();
        let unknown = model((4, 2), 1000, &measure(Tally::default(), &[]), &assumed);
        assert!(unknown.given.iter().all(|it| it.source == Source::Assumed));
        assert!(unknown.correlated > unknown.independent && unknown.independent > 0.0);
        assert_eq!(unknown.lost_a_year, unknown.correlated * 1000.0);
        let tally = Tally {
            shard_s: (500.0 * YEAR_S) as u64,
            found: BTreeMap::from([(Kind::Rot, 50)]),
            repaired: 50,
            repair_ms: 50 * 10_000,
            ..Tally::default()
        };
        let measured = measure(tally, &[]);
        let known = model((4, 2), 1000, &measured, &assumed);
        let of = |source| known.given.iter().filter(|it| it.source == source).count();
        assert_eq!((of(Source::Measured), of(Source::Assumed)), (2, 6));
        assert!((known.given[0].value - 0.1).abs() < 1e-6 && known.given[2].value == 10.0);
        assert!(
            known.independent > unknown.independent,
            "what rots is lost sooner"
        );
        // A zone that has more of a stripe than it can lose takes it along; one shard of it in each makes that rare.
        let of = |zones| Assumptions {
            zone_fails: 0.01,
            zones,
            ..assumed
        };
        let lost = |zones| model((4, 2), 1000, &measured, &of(zones)).correlated;
        assert!((lost(2) - known.correlated) / 0.02 > 0.99);
        assert!(lost(3) < 0.01 && lost(6) < lost(3) && lost(6) > known.correlated);
        assert_eq!(lost(0), lost(6));
    }
}
