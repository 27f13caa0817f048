//! Seeded histories against the simulated driver. A failing seed is printed; add it to
//! `REGRESSIONS` when its cause is mended. `ASHLAR_SEEDS=n` runs more, `ASHLAR_SEED=s` just one.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::sim::{MILLI, Plan, World};
use crate::sim_device::Rng;

/// Seeds that failed once.
const REGRESSIONS: [u64; 1] = [482];

fn plan(seed: u64) -> (u8, Plan) {
    let mut rng = Rng(seed ^ 0x5eed);
    let replicas = match rng.below(10) {
        0 => 1,
        1 => 5,
        _ => 3,
    };
    let victim = rng.one_in(3).then(|| rng.below(u64::from(replicas)) as u8);
    let plan = Plan {
        crashes: !rng.one_in(5),
        torn: rng.one_in(3),
        lossy: rng.one_in(3),
        pauses: rng.one_in(2),
        jitter: !rng.one_in(4),
        victim: victim.filter(|_| replicas > 1),
        forgetful: rng.one_in(2),
    };
    (replicas, plan)
}

fn run(seed: u64) -> std::collections::BTreeMap<&'static str, u64> {
    let (replicas, plan) = plan(seed);
    let mut world = World::new(seed, replicas, plan);
    world.unleash();
    world.run_until(400 * MILLI);
    world.heal();
    // Liveness: once faults stop, everything that was asked is answered, and all catch up.
    let mut rounds = 0;
    while !world.clients.finished() {
        rounds += 1;
        let end = world.now + 100 * MILLI;
        world.run_until(end);
        let states: Vec<String> = (0..replicas).map(|node| world.status(node)).collect();
        assert!(
            rounds < 300,
            "no progress: {} {states:#?} {plan:?}",
            world.unfinished()
        );
    }
    let mut rounds = 0;
    loop {
        let end = world.now + 100 * MILLI;
        world.run_until(end);
        let head = world.nodes[0].replica.as_ref().unwrap();
        let behind = world.nodes[1..].iter().any(|node| {
            let follower = node.replica.as_ref().unwrap();
            follower.applied != head.applied || follower.log.durable() != head.log.last()
        });
        if !behind && head.applied == head.log.last() {
            break;
        }
        rounds += 1;
        let states: Vec<String> = (0..replicas).map(|node| world.status(node)).collect();
        assert!(
            rounds < 100,
            "a follower does not catch up: {states:#?} {plan:?}"
        );
    }
    let head = world.nodes[0].replica.as_ref().unwrap();
    for (place, node) in world.nodes.iter().enumerate() {
        let follower = node.replica.as_ref().unwrap();
        assert_eq!(
            follower.index, head.index,
            "replica {place} has another index"
        );
        assert_eq!(
            follower.dedup, head.dedup,
            "replica {place} knows other requests"
        );
    }
    world.judge();
    world.stats
}

#[test]
fn histories() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds: Vec<u64> = match number("ASHLAR_SEED") {
        Some(seed) => vec![seed],
        None => REGRESSIONS
            .into_iter()
            .chain(0..number("ASHLAR_SEEDS").unwrap_or(2000))
            .collect(),
    };
    let mut total = std::collections::BTreeMap::new();
    for seed in seeds.iter().copied() {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(stats) => {
                for (what, count) in stats {
                    *total.entry(what).or_insert(0) += count;
                }
            }
            Err(panic) => {
                eprintln!("seed {seed} failed; ASHLAR_SEED={seed} runs it alone");
                resume_unwind(panic);
            }
        }
    }
    println!("{} seeds: {total:?}", seeds.len());
    if seeds.len() > 100 {
        // A history in which nothing goes wrong shows nothing.
        for what in [
            "committed",
            "refused",
            "unknown",
            "crashes",
            "all crashed",
            "pauses",
            "breaks",
            "dropped",
            "rot",
            "restored",
            "forwarded",
            "bypassed",
            "log reads",
        ] {
            assert!(
                total.get(what).copied().unwrap_or(0) > 10,
                "hardly any {what}: {total:?}"
            );
        }
    }
}
