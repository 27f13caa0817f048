//! What has to hold at the end of a run, and the shortest way to a run in which it does not.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ashlar_tests::history::{History, Key};
use ashlar_tests::shelf::Said;
use ashlar_tests::{linear, shelf_locks, shelf_names, shelf_order};

use crate::moves;
use crate::plan::Plan;
use crate::work_flows::latest_ms;
use crate::world::World;

/// What came of a run.
#[derive(Default)]
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
    /// What was said, newest last; of a failing run also what clients were told of the keys concerned.
    pub lines: Vec<String>,
}

/// Runs a seed, and judges it.
pub fn run(seed: u64) -> Report {
    run_plan(&Plan::new(seed), false, None)
}

/// Runs a plan, and judges it; a panic is judged as well. `aloud`: everything is said as it happens, also what the
/// replicas of a partition say to one another.
pub fn run_plan(plan: &Plan, aloud: bool, overheard: Option<u32>) -> Report {
    let mut world = World::new(plan.clone());
    world.lines.borrow_mut().aloud = aloud;
    world.overheard = overheard;
    world.say(&format!("{plan:?}"));
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    let mut wrong = world.story.wrong.clone();
    if let Some(panic) = panicked {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        let said = said.unwrap_or_default();
        world.say(&format!("panic: {said}"));
        wrong.push(format!("at {} ms: a panic: {said}", world.now / 1_000_000));
    }
    if wrong.is_empty() {
        let story = &world.story;
        let (operations, tangled) = moves::untangle(&story.operations, &story.held, &story.moves);
        wrong.extend(tangled);
        let history = History {
            operations,
            ..History::default()
        };
        wrong.extend(linear::check_all(&history));
        wrong.extend(judge_deeds(&mut world));
    }
    let mut lines: Vec<String> = world.lines.borrow().kept.iter().cloned().collect();
    if !wrong.is_empty() {
        let mut told = world.story.operations.clone();
        told.sort_by_key(|it| (it.key, it.invoke));
        told.retain(|it| names(&wrong, it.key));
        lines.extend(told.iter().map(|it| format!("key {}: {it:?}", it.key)));
        let mut moved = world.story.moves.clone();
        moved.sort_by_key(|it| (it.key, it.invoke));
        moved.retain(|it| names(&wrong, it.key));
        lines.extend(moved.iter().map(|it| format!("key {}: {it:?}", it.key)));
        let mut told = world.story.deeds.clone();
        told.sort_by_key(|it| (it.key, it.invoke));
        told.retain(|it| names(&wrong, it.key));
        lines.extend(told.iter().map(|it| format!("{it:?}")));
    }
    let hash = world.lines.borrow().hash ^ world.events;
    Report {
        seed: plan.seed,
        wrong,
        time: world.now,
        events: world.events,
        operations: (world.story.operations.len()
            + world.story.deeds.len()
            + world.story.moves.len()) as u64,
        marks: world.story.marks.clone(),
        hash,
        lines,
    }
}

/// What is wrong with keys that have versions.
fn judge_deeds(world: &mut World) -> Vec<String> {
    let end = latest_ms(world.now, world.story.lead_ms);
    for deed in &mut world.story.deeds {
        if deed.said == Said::Unknown {
            deed.clock.1 = end;
        }
    }
    let deeds = &world.story.deeds;
    let mut wrong = shelf_order::check_all(deeds);
    wrong.extend(shelf_locks::check(deeds));
    wrong.extend(shelf_names::check(deeds));
    wrong
}

fn names(wrong: &[String], key: Key) -> bool {
    let name = format!("key {key}:");
    wrong.iter().any(|it| it.contains(&name))
}

/// Makes a failing plan smaller for as long as it fails, in at most so many runs.
pub fn shrink(plan: &Plan, mut runs: u32) -> Plan {
    let mut smallest = plan.clone();
    'again: loop {
        for smaller in smallest.smaller() {
            if runs == 0 {
                return smallest;
            }
            runs -= 1;
            if !run_plan(&smaller, false, None).wrong.is_empty() {
                smallest = smaller;
                continue 'again;
            }
        }
        return smallest;
    }
}
