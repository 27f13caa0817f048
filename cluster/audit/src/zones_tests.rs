//! Zones that fail at known rates, hundreds of years of them: what is found, how late, and what is lost. The store, and
//! how it is let run, are those of [`rates_tests`](super::rates_tests).

use crate::durability::{Assumptions, Measured, YEAR_S, found_after_s, measure, model};
use crate::markov::Stripe;
use crate::rates_tests::{PASS, Rates, Store, all_is_counted, is_near, run, years};
use crate::tally::{Kind, Tally};
use crate::zones::{Zoned, evenly};

const PASSES_A_YEAR: f64 = YEAR_S / (7.0 * 86_400.0);

/// So much happens in a pass, of each: shards that rot, devices and zones that fail.
fn rates(class: (usize, usize), zones: usize, in_a_pass: [f64; 3]) -> Rates {
    let (k, m) = class;
    let [rot, fails, zone_fails] = in_a_pass.map(|it| it * PASSES_A_YEAR);
    Rates {
        k,
        m,
        objects: 50,
        devices: zones * 4,
        rot,
        fails,
        zones,
        in_a_zone: (k + m).div_ceil(zones),
        zone_fails,
        passes: 5000,
    }
}

fn zoned(rates: Rates) -> Zoned {
    Zoned {
        m: rates.m as u32,
        shards: evenly((rates.k + rates.m) as u32, rates.zones as u32),
        fails: rates.rot + rates.fails,
        zone_fails: rates.zone_fails,
        between: PASS.as_secs_f64() / YEAR_S,
    }
}

/// How many are lost. Before the first look, and behind the last one, there is half as much time.
fn stripes(rates: Rates, losses_a_year: f64) -> f64 {
    losses_a_year * rates.objects as f64 * years(rates) * (1.0 - 0.5 / f64::from(rates.passes))
}

/// What happens takes all stripes at once at the most: so many times it happened at the least.
fn times(rates: Rates, stripes: f64) -> f64 {
    stripes / rates.objects as f64
}

fn is_off(got: f64, expected: f64) -> bool {
    (got - expected).abs() > 4.0 * expected.sqrt().max(got.sqrt())
}

/// What was injected was found, to the unit, at the rate and as late as it follows from what was set.
fn is_found(rates: Rates, store: &Store) {
    all_is_counted(store);
    let zones = rates.zone_fails * rates.zones as f64 * years(rates);
    is_near("zones", store.zones_lost as f64, zones, 0.0);
    // One shard: bad ones do not become so again before the next look.
    let in_a_pass = zoned(rates).between * (rates.rot + rates.fails + rates.zone_fails);
    let shards = (rates.objects * (rates.k + rates.m)) as f64;
    let bad = shards * f64::from(rates.passes) * -(-in_a_pass).exp_m1();
    let injected: u64 = store.injected.values().sum();
    // A zone has so many of them.
    let at_once = shards / rates.zones as f64;
    is_near("bad", injected as f64 / at_once, bad / at_once, 0.0);
    // The first failure of a pass is early rather than late, the more the more there are.
    let share = 1.0 - 1.0 / in_a_pass + 1.0 / in_a_pass.exp_m1();
    let lag_s = store.lag_ms as f64 / 1e3 / store.found as f64;
    let off = lag_s / (share * PASS.as_secs_f64()) - 1.0;
    println!(
        "{}+{} in {} zones: {} zones lost, {injected} shards bad, {bad:.0} expected, lag off by {off:.4}",
        rates.k, rates.m, rates.zones, store.zones_lost
    );
    // Of what is lost nothing is in it, and that is where several failed in a pass.
    assert!(off.abs() < 0.04, "{lag_s} is off by {off}");
}

#[test]
fn zones_lose_as_much_as_the_model_says() {
    for (class, zones, in_a_pass, seed) in [
        // Two zones at about the same time, or one and a shard elsewhere;
        ((4, 2), 3, [0.005, 0.01, 0.1], 11),
        // three of six;
        ((4, 2), 6, [0.005, 0.01, 0.15], 12),
        // one alone, of the two;
        ((2, 1), 2, [0.002, 0.005, 0.05], 13),
        // and two of three, as placement has it: of each zone one shard fewer than may be missing.
        ((3, 3), 3, [0.005, 0.01, 0.1], 14),
    ] {
        let rates = rates(class, zones, in_a_pass);
        let store = run(rates, seed);
        is_found(rates, &store);
        let got = times(rates, store.losses.len() as f64);
        let of = zoned(rates);
        let expected = times(rates, stripes(rates, of.losses_a_year()));
        let calm = Zoned {
            zone_fails: 0.0,
            ..of.clone()
        };
        // Zones' shards fail as often, but each by itself.
        let alone = Zoned {
            zone_fails: 0.0,
            fails: of.fails + of.zone_fails,
            ..of.clone()
        };
        let [calm, alone] =
            [calm, alone].map(|it| times(rates, stripes(rates, it.losses_a_year())));
        println!(
            "lost {got:.1}, expected {expected:.1}, without zones {calm:.2}, alone {alone:.1}"
        );
        assert!(expected > 100.0, "{expected} are too few to tell");
        is_near(&format!("{class:?} in {zones} zones"), got, expected, 0.0);
        // The canary: without zones it does not fit, by far.
        assert!(is_off(got, calm) && got > 50.0 * calm, "{got} {calm}");
        // Where each has a zone of its own, that is all that there is to it, in the mean.
        assert_eq!(
            is_off(got, alone),
            zones < rates.k + rates.m,
            "{got} {alone}"
        );
    }
}

/// What `durability` would say: of all stripes, in all the time.
fn told(rates: Rates, measured: &Measured, assumed: &Assumptions) -> f64 {
    let class = (rates.k as u32, rates.m as u32);
    let told = model(class, rates.objects as u64, measured, assumed);
    told.lost_a_year * years(rates)
}

#[test]
fn a_zone_alone_loses_nothing_of_what_is_placed_by_the_rule() {
    for (class, zones, in_a_pass, seed) in [
        // One shard in each of six of nine zones, and two in each of three.
        ((4, 2), 9, 3e-4, 21),
        ((3, 3), 3, 5e-4, 22),
    ] {
        let rates = Rates {
            objects: 20,
            passes: 20_000,
            ..rates(class, zones, [0.0, 0.0, in_a_pass])
        };
        let store = run(rates, seed);
        all_is_counted(&store);
        let expected = rates.zone_fails * zones as f64 * years(rates);
        is_near("zones", store.zones_lost as f64, expected, 0.0);
        // No two of them fell between two looks: each took all that it had.
        let each = (rates.objects * (rates.k + rates.m)) as f64 / zones as f64;
        let injected = store.injected[&Kind::Missing] as f64;
        is_near("bad", injected / each, store.zones_lost as f64, 0.0);
        assert_eq!(store.injected.len(), 1, "nothing else happened");
        assert_eq!(store.losses.len(), 0);
        assert!(stripes(rates, zoned(rates).losses_a_year()) < 1.0);
        // The canary: that each shard is struck by a draw of its own is not how shards are placed.
        let drawn = Stripe {
            k: rates.k as u32,
            m: rates.m as u32,
            fails: 0.0,
            mended: YEAR_S / found_after_s(PASS.as_secs_f64(), rates.m as u32),
            shocks: rates.zone_fails * zones as f64,
            struck: 1.0 / zones as f64,
        };
        let drawn = stripes(rates, drawn.losses_a_year());
        println!(
            "{class:?} in {zones} zones: {} zones lost, {injected} shards, no stripe; by draws {drawn:.0}",
            store.zones_lost
        );
        assert!(drawn > 20.0, "{drawn}");
    }
}

/// The ledger counts shards, and does not know which of them went at once: that has to be told.
#[test]
fn zones_are_not_measured() {
    let rates = rates((3, 3), 3, [0.001, 0.002, 0.06]);
    let store = run(rates, 31);
    is_found(rates, &store);
    let lost = store.losses.len() as f64;
    let none = measure(Tally::default(), &[]);
    let measured = measure(store.counted(), &store.losses);
    // Their sum is what it has.
    let bad = measured.bad_a_year.unwrap() / (rates.rot + rates.fails + rates.zone_fails);
    assert!((bad - 1.0).abs() < 0.1, "{bad}");
    let assumed = Assumptions {
        device_fails: 0.0,
        repair_s: 0.0,
        shocks: 0.0,
        struck: 0.0,
        zone_fails: 0.0,
        zones: rates.zones as u32,
        pass_s: PASS.as_secs_f64(),
    };
    let of_zones = Assumptions {
        zone_fails: rates.zone_fails,
        ..assumed
    };
    let all = Assumptions {
        device_fails: rates.rot + rates.fails,
        ..of_zones
    };
    let [by_ledger, by_both, by_rates] = [
        told(rates, &measured, &assumed),
        told(rates, &measured, &of_zones),
        told(rates, &none, &all),
    ];
    println!(
        "lost {lost}; told the rates {by_rates:.0}, of the ledger {by_ledger:.0}, and zones {by_both:.0}"
    );
    is_near("lost", times(rates, lost), times(rates, by_rates), 0.0);
    assert!(lost > 10.0 * by_ledger, "{lost} {by_ledger}");
    // What the ledger has of zones counts twice then, once as shards that fail alone: it errs to the safe side.
    assert!(by_both > lost && by_both < 3.0 * lost, "{by_both} {lost}");
}
