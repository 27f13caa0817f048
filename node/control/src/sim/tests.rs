//! Runs.

use std::collections::BTreeMap;

use super::world::{Canary, simulate};

/// What each set of fresh seeds has to have come to.
const REACHED: [&str; 6] = [
    "changes made",
    "changes of which nobody knows",
    "changes refused",
    "changes without a quorum",
    "foundings amid faults",
    "nodes that joined",
];

/// What goes wrong in them.
const FAULTS: [&str; 13] = [
    "clocks that jump",
    "connections broken",
    "cuts one way",
    "disks lost",
    "kills",
    "members cut off",
    "power cuts",
    "power cuts in the midst of a write",
    "power cuts of all",
    "power cuts while starting",
    "silences of nodes",
    "slow disks",
    "slow networks",
];

fn runs(seeds: impl IntoIterator<Item = u64>) -> BTreeMap<&'static str, u64> {
    let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        match simulate(seed, Canary::None) {
            Ok(tally) => {
                *sums.entry("runs").or_default() += 1;
                tally
                    .into_iter()
                    .for_each(|(thing, number)| *sums.entry(thing).or_default() += number);
            }
            Err(wrong) => panic!("ASHLAR_CONTROL_SEEDS={seed}..{}: {wrong}", seed + 1),
        }
    }
    sums
}

/// `ASHLAR_CONTROL_SEEDS=FROM..TO` runs others, and `ASHLAR_CONTROL_TRACE=1` tells what happens in them.
#[test]
fn what_members_say_fits_what_they_agree_on() {
    let given = std::env::var("ASHLAR_CONTROL_SEEDS").ok();
    let range = given.as_deref().and_then(|it| it.split_once(".."));
    let range = range.and_then(|(from, to)| Some(from.parse().ok()?..to.parse::<u64>().ok()?));
    let sums = runs(range.unwrap_or(0..40));
    println!("{sums:?}");
    let operations = sums.get("operations").copied().unwrap_or(0);
    println!("doubt: {operations} operations on control members");
    println!(
        "doubt: {} histories checked",
        sums.get("runs").copied().unwrap_or(0)
    );
    let faults = sums.iter().filter(|(thing, _)| FAULTS.contains(thing));
    faults.for_each(|(kind, count)| println!("doubt: {count} faults of control members: {kind}"));
    if given.is_none() {
        for thing in REACHED.iter().chain(&FAULTS) {
            assert!(sums.contains_key(thing), "no seed has come to {thing}");
        }
    }
}

fn noticed(canary: Canary) -> String {
    let mut seeds = 0..60;
    let noticed = seeds.find_map(|seed| simulate(seed, canary).err());
    noticed.unwrap_or_else(|| panic!("{canary:?} is not noticed"))
}

#[test]
fn disks_that_forget_flushes_are_noticed() {
    noticed(Canary::Lies);
}

#[test]
fn members_that_forget_and_vote_all_the_same_are_noticed() {
    noticed(Canary::Amnesia);
}
