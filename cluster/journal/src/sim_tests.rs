//! Seeded histories against the simulated driver. A failing seed is printed; add it to
//! `REGRESSIONS` when its cause is mended. `ASHLAR_SEEDS=n` runs so many,
//! `ASHLAR_FROM=s` others, `ASHLAR_SEED=s` just one, and `ASHLAR_LOG=1` tells what happens in it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use ashlar_layout::ids::{DeviceNo, Term};
use ashlar_layout::manifest::Precondition;

use crate::replica_tests::{QUIET, Script, put};
use crate::sim::{MICRO, MILLI, Plan, World, node_of};
use crate::sim_device::Rng;

/// Seeds that failed once.
const ROUGH_REGRESSIONS: [u64; 8] = [842, 1046, 2588, 19567, 31529, 105, 14438, 1140];
const REGRESSIONS: [u64; 15] = [
    482, 30, 56, 93, 24, 1776, 2936, 4509, 6208, 6234, 6381, 6907, 26, 1476, 12485,
];

pub(crate) fn plan(seed: u64) -> (u8, Plan) {
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
        cuts: rng.one_in(2),
        spares: if rng.one_in(3) {
            1 + rng.below(2) as u8
        } else {
            0
        },
        drift: rng.one_in(2),
        forgets: rng.one_in(2),
        renews: victim.is_some() && replicas > 1 && rng.one_in(2),
        #[cfg(feature = "mutants")]
        mutant: None,
    };
    (replicas, plan)
}

/// A world in which nearly everything happens.
fn rough(seed: u64) -> Plan {
    let (_, plan) = plan(seed);
    Plan {
        crashes: true,
        cuts: true,
        pauses: true,
        jitter: true,
        forgetful: false,
        victim: plan.victim.map(|victim| victim % 3),
        ..plan
    }
}

/// How long until something is committed when nothing goes wrong any more. Entries that are repaired,
/// and connections that come back, take some of it.
const RECOVERY: u64 = 2000 * MILLI;

pub(crate) fn run(seed: u64, replicas: u8, plan: Plan) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, replicas, plan);
    world.unleash();
    world.run_until(600 * MILLI);
    world.heal();
    // Liveness: once faults stop, something is committed soon, everything that was asked is
    // answered, and all catch up.
    let healed = world.now;
    while world.committed_at <= healed && !world.clients.finished() {
        let end = world.now + 10 * MILLI;
        world.run_until(end);
        let waited = world.now - healed;
        if waited >= RECOVERY {
            if std::env::var("ASHLAR_SEED").is_ok() {
                world.dump();
            }
            panic!("nothing: {:#?} {plan:?}", world.states());
        }
    }
    let mut rounds = 0;
    while !world.clients.finished() {
        rounds += 1;
        let end = world.now + 100 * MILLI;
        world.run_until(end);
        assert!(
            rounds < 300,
            "no progress: {} {:#?} {plan:?}",
            world.unfinished(),
            world.states()
        );
    }
    let mut rounds = 0;
    while !settled(&world) {
        let end = world.now + 100 * MILLI;
        world.run_until(end);
        rounds += 1;
        if rounds == 100 && std::env::var("ASHLAR_SEED").is_ok() {
            world.dump();
        }
        assert!(
            rounds < 100,
            "members do not catch up with {:?}: {:#?} {plan:?}",
            world.desired,
            world.states()
        );
    }
    let head = world.head();
    for member in &world.desired {
        let follower = world.replica(node_of(*member));
        let (mine, heads) = (node_of(*member), world.reigning().unwrap_or(0));
        if world
            .plan
            .victim
            .is_none_or(|victim| victim != mine && victim != heads)
        {
            assert_eq!(
                world.contents(mine),
                world.contents(heads),
                "replica {member}: other index"
            );
        }
        assert_eq!(
            follower.dedup, head.dedup,
            "replica {member}: other requests"
        );
    }
    world.judge();
    world.stats
}

/// Whether somebody reigns, and all that are wanted hold and have applied everything.
pub(crate) fn settled(world: &World) -> bool {
    let Some(head) = world.reigning().map(|node| world.replica(node)) else {
        return false;
    };
    let chain = head.log.chain();
    let same = chain.members.len() == world.desired.len();
    let last = head.log.last();
    same && chain.settled()
        && world.desired.iter().all(|member| {
            let replica = world.replica(node_of(*member));
            chain.contains(*member) && replica.applied == last && replica.log.durable() == last
        })
}

fn run_all(name: &str, regressions: &[u64], plan: impl Fn(u64) -> (u8, Plan)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let from = number("ASHLAR_FROM").unwrap_or(0);
    let seeds: Vec<u64> = match number("ASHLAR_SEED") {
        Some(seed) => vec![seed],
        None => regressions
            .iter()
            .copied()
            .chain((0..number("ASHLAR_SEEDS").unwrap_or(1050)).map(|seed| from + seed))
            .collect(),
    };
    let mut total = BTreeMap::new();
    for seed in seeds.iter().copied() {
        let (replicas, plan) = plan(seed);
        match catch_unwind(AssertUnwindSafe(|| run(seed, replicas, plan))) {
            Ok(stats) => {
                for (what, count) in stats {
                    *total.entry(what).or_insert(0) += count;
                }
            }
            Err(panic) => {
                eprintln!("{name}: seed {seed} failed; ASHLAR_SEED={seed} runs it alone");
                resume_unwind(panic);
            }
        }
    }
    println!("{name}: {} seeds: {total:?}", seeds.len());
    if seeds.len() > 1000 {
        // A history in which nothing goes wrong shows nothing.
        for what in [
            "committed",
            "refused",
            "relocked",
            "renamed",
            "relocated",
            "locked",
            "crashes",
            "all crashed",
            "renewed",
            "pauses",
            "breaks",
            "dropped",
            "rot",
            "restored",
            "forwarded",
            "bypassed",
            "log reads",
            "cuts",
            "cut off",
            "changes",
            "retired",
            "trims",
            "leaves",
            "hangs",
            "learned",
            "confirmed by witnesses",
            "not confirmed by witnesses",
        ] {
            assert!(
                total.get(what).copied().unwrap_or(0) > 10,
                "hardly any {what}: {total:?}"
            );
        }
    }
}

#[test]
fn histories() {
    run_all("histories", &REGRESSIONS, plan);
}

#[test]
fn rough_histories() {
    run_all("rough histories", &ROUGH_REGRESSIONS, |seed| {
        (3, rough(seed))
    });
}

/// An entry of an old reign is on two of three when a new head counts, and is nevertheless not committed:
/// the third holds the start of a reign in between, and is preferred if the new head's own does not
/// get through.
fn what_two_hold_of_an_old_reign(plan: Plan) {
    let mut script = Script::with(plan);
    let step = |script: &mut Script, until: &dyn Fn(&Script) -> bool| {
        let since = script.world.now;
        while !until(script) {
            let end = script.world.now + MICRO;
            script.world.run_until(end);
            assert!(end - since < 1000 * MILLI, "{:#?}", script.world.states());
        }
    };
    // Only the first replica gets it; larger than what is sent ahead of an answer.
    let large = [7; 1000];
    script.world.cut.extend([(0, 1), (0, 2)]);
    script.ask(put("k", &large), Precondition::None, &large);
    script.run(5);
    let seq = script.world.replica(0).log.last();
    script.world.crash(0);
    // The third takes office, with the second's promise, and its own entry reaches nobody.
    script.world.pause(1);
    script.run(130);
    step(&mut script, &|s| {
        s.world.replica(2).election.asked_at.is_some()
    });
    script.world.resume(1);
    let third = Term::new(2, DeviceNo(3));
    step(&mut script, &|s| s.world.replica(1).term == third);
    step(&mut script, &|s| s.world.replica(1).follower.sealed);
    script.world.cut.insert((2, 1));
    step(&mut script, &|s| s.world.replica(2).log.durable() == seq);
    script.world.crash(2);
    script.world.cut.clear();
    // The first takes office again: the second gets the old entry, and nothing more.
    script.world.start(0);
    step(&mut script, &|s| s.world.replica(1).log.last() == seq);
    script.world.cut.insert((0, 1));
    script.run(5);
    assert_eq!(script.world.replica(0).term.round(), 3);
    assert_eq!(script.world.replica(1).log.durable(), seq);
    script.world.crash(0);
    script.world.cut.clear();
    // The third again, with the newer reign's log.
    script.world.start(2);
    script.run(500);
    assert_eq!(script.world.head().log.term(seq).unwrap().round(), 2);
}

#[test]
fn what_two_hold_of_an_old_reign_is_not_committed() {
    what_two_hold_of_an_old_reign(QUIET);
}

/// Each replica that does one thing wrong is found out, by some history.
#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use crate::mutants::Mutant;

    /// Worlds in which this mutant has its chance.
    fn plan_for(mutant: Mutant, seed: u64) -> Plan {
        let plan = Plan {
            mutant: Some(mutant),
            ..rough(seed)
        };
        match mutant {
            Mutant::ConfigSkipsUnion => Plan { spares: 2, ..plan },
            Mutant::CountDamagedTail | Mutant::WitnessSpeaksEarly => Plan {
                victim: Some((seed % 3) as u8),
                torn: true,
                ..plan
            },
            _ => plan,
        }
    }

    /// How many histories it takes, and what they find.
    fn found(mutant: Mutant) -> Option<(u64, String)> {
        // The rare ones first where they were found before.
        let known = match mutant {
            Mutant::CountDamagedTail => 1957,
            Mutant::PromiseForgotten => 3100,
            Mutant::WitnessSpeaksEarly => 2506,
            _ => 0,
        };
        for (nth, seed) in std::iter::once(known).chain(0..6000).enumerate() {
            let plan = plan_for(mutant, seed);
            let result = catch_unwind(AssertUnwindSafe(|| match mutant {
                Mutant::CommitAcrossEpochs if seed == 0 => what_two_hold_of_an_old_reign(Plan {
                    mutant: plan.mutant,
                    ..QUIET
                }),
                _ => drop(run(seed, 3, plan)),
            }));
            if let Err(panic) = result {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
                return Some((nth as u64 + 1, text.unwrap_or_default()));
            }
        }
        None
    }

    #[test]
    fn each_is_found_out() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let results: Vec<_> = Mutant::ALL.into_iter().map(|m| (m, found(m))).collect();
        std::panic::set_hook(hook);
        for (mutant, result) in &results {
            let (seeds, what) = result.clone().unwrap_or_default();
            let what: String = what.lines().take(3).collect::<Vec<_>>().join(" / ");
            println!("{mutant:?}: {seeds} histories: {what:.200}");
        }
        let alive: Vec<_> = results.iter().filter(|(_, r)| r.is_none()).collect();
        assert!(alive.is_empty(), "not found out: {alive:?}");
        println!("mutants killed {0}/{0}", results.len());
    }
}
