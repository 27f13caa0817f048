//! Seeds that are always run, those that once failed among them; and runs that must fail.
//!
//! `cargo xtask sim` runs fresh ones. A seed that fails there is kept in [`ONCE_FAILED`] when what it found is mended,
//! as long as the run that it stands for goes the same way: a comment says what it was.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ashlar_layout::version::ENTRY_VERSION_LEAST;
use ashlar_tests_sim::disk::Rng;
use ashlar_tests_sim::judge;
use ashlar_tests_sim::plan::{Mistake, Plan};
use ashlar_tests_sim::story;
use ashlar_tests_sim::upgrades::Upgrade;

/// Seeds that once failed.
const ONCE_FAILED: &[u64] = &[
    // A learner whose device was opened again behind a link that stayed up was sent its lesson for ever.
    43, 691, // A client with an old map did not find a head that had joined the chain since.
    65, 406,
    // A replica in doubt had no link to a member of the chain that it was told of.
    100_055,
];

/// What has to come up in the corpus: a fault that is never thrown shows nothing.
const MARKS: &[&str] = &[
    "all nodes at once",
    "appended",
    "appended to what was inline",
    "audit held back",
    "bits rot",
    "client cut off",
    "client died",
    "changed before its stripe was elsewhere",
    "clock jumps",
    "completed",
    "completed under a condition",
    "condition not met",
    "condition of a version not met",
    "copied",
    "current version removed",
    "cut",
    "cut one way",
    "device formatted anew",
    "device gone, or back",
    "disk stuck",
    "extent cleaned",
    "last version removed",
    "list across partitions",
    "listed stripe put elsewhere",
    "lock changed",
    "lock of an older version changed",
    "made a version",
    "made a version beside a locked null one",
    "map changed",
    "marked as deleted",
    "network slow",
    "newer entries allowed",
    "node cut off",
    "node ended by itself",
    "node upgraded",
    "null version read",
    "object audited",
    "older version removed",
    "oldest version ended",
    "outcome unknown",
    "partition split, merged or moved",
    "power cut",
    "process killed",
    "process stopped",
    "put behind what was made a version",
    "put in a smaller class",
    "put in stripes",
    "put inline",
    "put together of parts",
    "put with a lock",
    "put with a shard less",
    "read as witnesses allow",
    "read that there is nothing",
    "refused by a lock",
    "refused until all nodes are upgraded",
    "renamed",
    "sectors cannot be read",
    "shard mended",
    "shards rebuilt while reading",
    "stock taken",
    "stock taken, untidy",
    "stripe not put elsewhere",
    "stripe put elsewhere",
    "tags changed in place",
    "tags of a version changed",
    "tags of an older version changed",
    "two are the null version",
    "version put together of parts",
    "version read",
    "version to be removed is not there",
    "versions listed across partitions",
    "versions listed page by page",
    "what is current is no version yet",
    "writes are lost",
    "writes fail",
];

/// Fresh seeds that begin with older nodes: those below 1000 do not.
const UPGRADES: usize = 8;
/// Fresh ones in which stripes are put elsewhere, with damaged devices and without.
const MOVES: usize = 3;

/// Runs plans, as many at a time as there are processors; what came up, and what is wrong.
fn run_all(plans: Vec<Plan>) -> (BTreeMap<&'static str, u64>, Vec<String>) {
    let (next, sum) = (
        AtomicUsize::new(0),
        Mutex::new((BTreeMap::new(), Vec::new())),
    );
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = judge::run_plan(plan, false, None);
                    let mut sum = sum.lock().unwrap();
                    for (mark, count) in report.marks {
                        *sum.0.entry(mark).or_default() += count;
                    }
                    let seed = plan.seed;
                    let told = |wrong: &String| {
                        format!("seed {seed}: {wrong}\n(cargo xtask sim -- --seed {seed} --trace)")
                    };
                    sum.1.extend(report.wrong.iter().map(told));
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn the_corpus_holds_and_everything_comes_up_in_it() {
    // Those that once failed go the way that they went, without what there is to do since.
    let once = ONCE_FAILED.iter().map(|seed| Plan {
        moves: false,
        upgrade: None,
        ..Plan::new(*seed)
    });
    let fresh = || (1000..).map(Plan::new).filter(|plan| plan.longer == 1);
    let upgrades = fresh().filter(|plan| plan.upgrade.is_some() && plan.versions);
    let moves = || fresh().filter(|plan| plan.moves && plan.upgrade.is_none());
    let plans: Vec<Plan> = (1..30)
        .map(Plan::new)
        .chain(once)
        .chain(upgrades.take(UPGRADES))
        .chain(moves().filter(|plan| plan.tidy).take(MOVES))
        .chain(moves().filter(|plan| !plan.tidy).take(MOVES))
        .collect();
    println!("doubt: {} simulated clusters", plans.len());
    println!("doubt: {} histories checked", plans.len());
    let (marks, wrong) = run_all(plans);
    for (mark, count) in &marks {
        println!("{count:>9} {mark}");
    }
    story::faults(&marks).for_each(|line| println!("{line}"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let seen: BTreeSet<&str> = marks.keys().copied().collect();
    let missing: Vec<_> = MARKS.iter().filter(|mark| !seen.contains(*mark)).collect();
    assert!(missing.is_empty(), "never came up: {missing:?}");
    let known = story::FAULTS.iter().all(|fault| MARKS.contains(fault));
    assert!(known, "a fault that does not have to come up");
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in [3, 8] {
        let (one, other) = (judge::run(seed), judge::run(seed));
        assert_eq!(one.hash, other.hash, "seed {seed}");
        assert_eq!(one.marks, other.marks, "seed {seed}");
    }
}

/// A canary: disks that call durable what is not, as if the store left its flushes out. What was acknowledged is lost
/// when the power goes, and that has to be noticed.
#[test]
fn disks_that_lie_are_noticed() {
    let lying = |seed| {
        let mut plan = Plan::new(seed);
        (plan.lying, plan.beyond, plan.crowded) = (true, false, false);
        plan
    };
    // Each alone: one that is noticed is enough.
    let noticed =
        (1..40).find(|seed| !judge::run_plan(&lying(*seed), false, None).wrong.is_empty());
    assert!(noticed.is_some(), "nobody noticed that disks lie");
}

/// Canaries: clients that get something of versions wrong, as if the store did. What was to be locked is not, and what
/// was to be hidden is gone.
#[test]
fn what_is_wrong_with_versions_is_noticed() {
    for mistake in [Mistake::LockForgotten, Mistake::MarkerForgotten] {
        let mistaken = |seed| {
            let mut plan = Plan::new(seed);
            (plan.versions, plan.mistake) = (true, Some(mistake));
            plan
        };
        let wrong = |seed| judge::run_plan(&mistaken(seed), false, None).wrong;
        let noticed = (1..20).find(|seed| !wrong(*seed).is_empty());
        assert!(noticed.is_some(), "nobody noticed: {mistake:?}");
    }
}

/// A canary: the map allows entries that some nodes cannot read, as if nobody had asked them.
#[test]
fn entries_that_older_nodes_cannot_read_are_noticed() {
    let ungated = |seed| {
        let mut plan = Plan::new(seed);
        let mut upgrade = Upgrade::some(&mut Rng(seed), plan.nodes);
        (upgrade.reads, upgrade.ungated) = (ENTRY_VERSION_LEAST, true);
        upgrade.nodes &= !1;
        (plan.versions, plan.upgrade) = (true, Some(upgrade));
        plan
    };
    let given = |seed: &u64| {
        let wrong = judge::run_plan(&ungated(*seed), false, None).wrong;
        wrong.iter().any(|it| it.contains("was given a newer one"))
    };
    assert!((1..20).find(given).is_some(), "nobody noticed");
}
