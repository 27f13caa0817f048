//! What has to hold at the end of a run.

use std::collections::BTreeMap;

use ashlar_tests::history::{History, Key, Operation};
use ashlar_tests::linear;

use crate::plan::Plan;
use crate::world::World;

/// What came of a run.
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What is wrong: nothing, one hopes.
    pub wrong: Vec<String>,
    /// Nanoseconds that were simulated,
    pub time: u64,
    /// and events.
    pub events: u64,
    /// Operations whose answers were checked.
    pub operations: u64,
    /// How often what came up.
    pub marks: BTreeMap<&'static str, u64>,
    /// A hash of the run: the same seed gives the same one.
    pub hash: u64,
    /// What was said, newest last.
    pub lines: Vec<String>,
}

/// Runs a seed, and judges it.
pub fn run(seed: u64) -> Report {
    run_plan(Plan::new(seed), false, None)
}

/// Runs a plan, and judges it. `aloud`: everything is said as it happens, also what the replicas of a partition say to
/// one another.
pub fn run_plan(plan: Plan, aloud: bool, overheard: Option<u32>) -> Report {
    let seed = plan.seed;
    let mut world = World::new(plan);
    world.lines.borrow_mut().aloud = aloud;
    world.overheard = overheard;
    world.say(&format!("{:?}", world.plan));
    world.run();
    let mut wrong = world.story.wrong.clone();
    if wrong.is_empty() {
        let history = History {
            operations: world.story.operations.clone(),
            ..History::default()
        };
        wrong.extend(linear::check_all(&history));
    }
    let mut all = world.story.operations.clone();
    all.sort_by_key(|it| (it.key, it.invoke));
    let mut lines: Vec<String> = world.lines.borrow().kept.iter().cloned().collect();
    if !wrong.is_empty() {
        lines.extend(all.iter().filter(|it| names(&wrong, it.key)).map(told));
    }
    let hash = world.lines.borrow().hash ^ world.events;
    Report {
        seed,
        wrong,
        time: world.now,
        events: world.events,
        operations: world.story.operations.len() as u64,
        marks: world.story.marks.clone(),
        hash,
        lines,
    }
}

fn names(wrong: &[String], key: Key) -> bool {
    let name = format!("key {key}:");
    wrong.iter().any(|it| it.contains(&name))
}

fn told(operation: &Operation) -> String {
    format!("{operation:?}")
}
