//! How models are gone through, and what that gives.

use stateright::{Checker, HasDiscoveries, Model};

use crate::act::Act;
use crate::chain::Chain;
use crate::models::Scale;
#[cfg(feature = "mutants")]
use crate::models::models;
use crate::plan::{Plan, Seen};
use crate::walk::Walker;

/// What random walks go through: a model's largest bounds, and every order of events; once more with indexes
/// that are written out and logs that forget.
pub fn walked(make: &fn(Scale) -> Plan, forgets: bool) -> Plan {
    let plan = make(Scale::Large);
    Plan {
        pauses: None,
        forgets: plan.forgets || forgets,
        slow_index: plan.forgets || forgets,
        ..plan
    }
}

/// Random walks through a model's bounds, and every order of events, by a mutant or by what ships: for at
/// most so many steps.
#[cfg(feature = "mutants")]
pub fn hunt(
    mutant: Option<ashlar_cluster_journal::Mutant>,
    model: &str,
    seed: u64,
    most: usize,
) -> Result<Outcome, String> {
    let makers = models();
    let maker = makers.iter().find(|(name, _)| *name == model);
    let (_, make) = maker.ok_or_else(|| format!("there is no model {model:?}"))?;
    let plan = Plan {
        mutant,
        pauses: None,
        // What it does wrong is looked for, not what comes of it in the end.
        heal_one_in: 0,
        ..make(Scale::Small)
    };
    // One thread: so the same walks are made every time.
    check(plan, 1, Search::Walks(seed), most)
}

/// A way to a state that must not be.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What does not hold in it.
    pub property: &'static str,
    /// What happened.
    pub acts: Vec<Act>,
    /// How each step left things, a line each.
    pub lines: Vec<String>,
}

/// What a model's check gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The model.
    pub name: &'static str,
    /// How it begins.
    pub begins: String,
    /// States that differ.
    pub unique: usize,
    /// States in all, those that were come upon again included.
    pub generated: usize,
    /// Steps of the longest way.
    pub depth: usize,
    /// Whether all states within the bounds were visited.
    pub whole: bool,
    /// What happened.
    pub seen: Vec<Seen>,
    /// What should have happened and did not.
    pub missing: Vec<Seen>,
    /// What does not hold.
    pub failure: Option<Trace>,
}

/// How a model is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Everything within the bounds.
    Whole,
    /// Everything within the bounds, breadth first: the way to what does not hold is the shortest.
    Shortest,
    /// Random walks, from this seed.
    Walks(u64),
}

/// Goes through a model, for at most about `most` states.
pub fn check(plan: Plan, threads: usize, search: Search, most: usize) -> Result<Outcome, String> {
    let (name, least) = (plan.name, plan.least);
    let chain = Chain::new(plan)?;
    let plan = chain.plan.clone();
    let builder = chain
        .checker()
        .threads(threads)
        .target_state_count(most)
        .finish_when(HasDiscoveries::AnyFailures);
    let mut outcome = match search {
        // Depth first: it takes less memory.
        Search::Whole => outcome(name, most, builder.spawn_dfs().join()),
        Search::Shortest => outcome(name, most, builder.spawn_bfs().join()),
        Search::Walks(seed) => outcome(name, most, builder.spawn_simulation(seed, Walker).join()),
    };
    outcome.missing = plan.missing();
    outcome.seen = plan.happened();
    if !matches!(search, Search::Walks(_)) && outcome.failure.is_none() && outcome.unique < least {
        return Err(format!(
            "model {name}: {} unique states, at least {least} are expected: it does not model any more what it did",
            outcome.unique
        ));
    }
    Ok(outcome)
}

fn outcome(name: &'static str, most: usize, checker: impl Checker<Chain>) -> Outcome {
    let chain = checker.model();
    let discoveries = checker.discoveries();
    let shortest = discoveries
        .into_iter()
        .min_by_key(|(_, path)| path.clone().into_actions().len());
    let failure = shortest.map(|(_, path)| {
        let mut lines = Vec::new();
        let mut acts = Vec::new();
        let last = path.last_state().clone();
        for (state, act) in path.into_vec() {
            lines.push(state.line());
            acts.extend(act);
        }
        let mut property = last.first_broken();
        if last.broken == 0 {
            lines.push(match last.healed(&chain.plan) {
                Ok(healed) => {
                    property = healed.first_broken();
                    format!("without any more faults: {}", healed.line())
                }
                Err(story) => format!("without any more faults: {story}"),
            });
        }
        Trace {
            property,
            acts,
            lines,
        }
    });
    Outcome {
        name,
        begins: chain.first.line(),
        unique: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        whole: checker.state_count() < most,
        seen: Vec::new(),
        missing: Vec::new(),
        failure,
    }
}
