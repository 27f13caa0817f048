//! Each of the journal's mutants is noticed by the model that is named for it, and the same walks find
//! nothing in the replica that ships. Only with the feature `mutants`; a test of `ashlar-tools-xtask` runs it.

use std::collections::BTreeSet;

use ashlar_cluster_journal::Mutant;
use ashlar_cluster_model::{hunt, hunter};

const SEED: u64 = 7;
/// Far more than any of them takes.
const MOST: usize = 400_000;

#[test]
fn each_mutant_is_killed() {
    // Some stop by an assertion of their own; what it says is of no interest here.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let hunts = Mutant::ALL.map(|mutant| (mutant, hunt(Some(mutant), hunter(mutant), SEED, MOST)));
    std::panic::set_hook(hook);
    let mut alive = Vec::new();
    for (mutant, outcome) in hunts {
        let outcome = outcome.expect("the model begins");
        match outcome.failure {
            Some(trace) => println!(
                "{mutant:?}: {}: not so that {}, after {} steps in all",
                outcome.name, trace.property, outcome.generated
            ),
            None => alive.push(mutant),
        }
    }
    assert!(alive.is_empty(), "not noticed: {alive:?}");
    println!("mutants killed {0}/{0}", Mutant::ALL.len());
}

#[test]
fn what_ships_passes_the_same_walks() {
    let models: BTreeSet<&str> = Mutant::ALL.into_iter().map(hunter).collect();
    for model in models {
        let outcome = hunt(None, model, SEED, MOST / 4).expect("the model begins");
        if let Some(trace) = outcome.failure {
            let lines = trace.lines.join("\n");
            panic!(
                "{model}: not so that {}:\n{lines}\n{:?}",
                trace.property, trace.acts
            );
        }
        assert!(outcome.generated >= MOST / 4, "{model}: hardly any steps");
    }
}
