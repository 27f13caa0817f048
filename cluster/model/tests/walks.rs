//! Random walks through the largest bounds of every model find nothing in the replica that ships: seconds of what
//! `cargo xtask model` does for minutes.

use ashlar_cluster_model::{Search, check, models, walked};

const SEED: u64 = 3;
const STEPS: usize = 20_000;

fn walk(forgets: bool) {
    for (name, make) in models() {
        let plan = walked(&make, forgets);
        let outcome = check(plan, 1, Search::Walks(SEED), STEPS).expect("the model begins");
        if let Some(trace) = outcome.failure {
            let lines = trace.lines.join("\n");
            panic!(
                "{name}: not so that {}:\n{lines}\n{:?}",
                trace.property, trace.acts
            );
        }
        assert!(outcome.generated >= STEPS, "{name}: hardly any steps");
    }
}

#[test]
fn what_ships_passes_random_walks() {
    walk(false);
}

#[test]
fn so_it_does_where_logs_forget() {
    walk(true);
}
