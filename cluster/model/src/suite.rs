//! The models: each a few faults at a time, so that all of their orders can be gone through.

use stateright::{Checker, HasDiscoveries, Model};

use crate::act::Act;
use crate::chain::Chain;
use crate::client::Wish;
use crate::plan::{Past, Plan, Seen, device};
use crate::walk::Walker;

/// How large the bounds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// For a test of the models themselves: seconds.
    Small,
    /// For every change: minutes.
    Usual,
    /// For a night.
    Large,
}

impl Scale {
    fn of(self, small: u8, usual: u8, large: u8) -> u8 {
        match self {
            Scale::Small => small,
            Scale::Usual => usual,
            Scale::Large => large,
        }
    }
}

/// A model's name, and how it is made.
pub type Maker = (&'static str, fn(Scale) -> Plan);

/// All models.
pub fn models() -> Vec<Maker> {
    vec![
        ("normal", normal),
        ("lease", lease),
        ("failover", failover),
        ("tails", tails),
        ("promise", promise),
        ("damage", damage),
        ("witness", witness),
        ("rot", rot),
        ("once", once),
        ("learn", learn),
        ("swap", swap),
        ("change", change),
        ("race", race),
    ]
}

/// Writes, slow devices, a crash that loses the tail, a restart.
fn normal(scale: Scale) -> Plan {
    Plan {
        crashes: scale.of(1, 1, 2),
        drops: scale.of(0, 1, 1),
        slow_disks: true,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::LostTail],
        ..Plan::new("normal")
    }
}

/// Time goes on and some do not notice: nobody reads what is not so any more.
fn lease(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        silence: 2,
        ticks: scale.of(1, 2, 3),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Election, Seen::Fenced, Seen::TwoHeads],
        ..Plan::new("lease")
    }
}

/// The head ends, and is started again: two candidates, and an entry that may have been committed.
fn failover(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        silence: 2,
        crashes: 1,
        victims: 0b001,
        crash_loses: true,
        ticks: scale.of(1, 1, 2),
        rounds: scale.of(1, 2, 3).into(),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Election],
        ..Plan::new("failover")
    }
}

/// Two reigns ended at once, with an entry each at the same place.
fn tails(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        past: Past::TwoTails,
        batches: false,
        ticks: scale.of(2, 3, 4),
        rounds: scale.of(3, 3, 4).into(),
        expected: &[Seen::Election, Seen::Truncation],
        ..Plan::new("tails")
    }
}

/// A follower ends after it has promised itself to a new head.
fn promise(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        past: Past::Promised,
        silence: 0,
        crashes: 1,
        victims: 0b100,
        ticks: scale.of(1, 1, 2),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Election],
        ..Plan::new("promise")
    }
}

/// The head ends, and its device loses what it had acknowledged.
fn damage(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        past: Past::Half,
        silence: 2,
        crashes: 1,
        rots: 1,
        victims: 0b001,
        crash_loses: true,
        ticks: scale.of(1, 1, 2),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Rot],
        ..Plan::new("damage")
    }
}

/// Reads by witnesses, while the object is changed and a witness restarts.
fn witness(scale: Scale) -> Plan {
    Plan {
        crashes: scale.of(0, 1, 1),
        ticks: scale.of(0, 0, 1),
        before: 1,
        readers: 1,
        reads: scale.of(1, 2, 2),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::CachedRead, Seen::CachedMiss],
        ..Plan::new("witness")
    }
}

/// Reads by witnesses, one of which restarts with a damaged device.
fn rot(scale: Scale) -> Plan {
    Plan {
        crashes: 1,
        rots: 1,
        victims: 0b010,
        ticks: scale.of(0, 1, 2),
        before: 1,
        readers: 1,
        reads: 1,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[
            Seen::CachedRead,
            Seen::CachedMiss,
            Seen::Ignorant,
            Seen::Rot,
        ],
        ..Plan::new("rot")
    }
}

/// Requests that are sent more than once, some of them late, do their work once.
fn once(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        past: Past::Half,
        silence: 2,
        give_ups: 1,
        late: true,
        ticks: scale.of(1, 1, 2),
        attempts: 2,
        wishes: vec![vec![Wish::create("k")]],
        expected: &[Seen::Commit, Seen::Retry, Seen::Election, Seen::Stray],
        ..Plan::new("once")
    }
}

fn members(numbers: [usize; 3]) -> Vec<ashlar_layout::ids::DeviceNo> {
    numbers.map(device).to_vec()
}

/// A spare learns and becomes a member, while a change is made.
fn learn(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        nodes: 4,
        ticks: scale.of(0, 1, 2),
        desired: vec![members([0, 1, 3])],
        told: 0b0001,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit],
        ..Plan::new("learn")
    }
}

/// Reads by witnesses, while the chain's composition changes and a write is made.
fn swap(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        nodes: 4,
        past: Past::Begun,
        before: 1,
        ticks: scale.of(0, 0, 1),
        readers: 1,
        reads: 1,
        desired: vec![members([0, 1, 3])],
        attempts: 1,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[
            Seen::Commit,
            Seen::Change,
            Seen::CachedRead,
            Seen::CachedMiss,
        ],
        ..Plan::new("swap")
    }
}

/// The chain's composition changes while those of the old one choose another head.
fn change(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        silence: 2,
        nodes: 4,
        past: Past::Torn,
        ticks: scale.of(1, 1, 2),
        told: 0,
        desired: vec![members([0, 1, 3]), members([1, 2, 3])],
        expected: &[Seen::Election, Seen::ChangeRace],
        ..Plan::new("change")
    }
}

/// Two heads change the chain's composition, each by another wish.
fn race(scale: Scale) -> Plan {
    Plan {
        prompt_acks: scale != Scale::Large,
        nodes: 4,
        past: Past::Racing,
        ticks: scale.of(1, 1, 2),
        told: 0,
        desired: vec![members([0, 1, 3]), members([1, 2, 3])],
        expected: &[Seen::Election, Seen::ChangeRace, Seen::ChangeUndone],
        ..Plan::new("race")
    }
}

/// What random walks go through: a model's largest bounds, and every order of events.
pub fn walked(make: &fn(Scale) -> Plan) -> Plan {
    Plan {
        pauses: None,
        ..make(Scale::Large)
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

/// The model that must notice a mutant.
#[cfg(feature = "mutants")]
pub fn hunter(mutant: ashlar_cluster_journal::Mutant) -> &'static str {
    use ashlar_cluster_journal::Mutant as M;
    match mutant {
        M::SealQuorumShort | M::LeaseTooLong => "lease",
        M::AckBeforeDurable => "normal",
        M::CommitAcrossEpochs | M::RejoinWithoutResync => "tails",
        M::WitnessAfterReply => "witness",
        M::DedupNotCarried => "once",
        M::CountDamagedTail => "damage",
        M::PromiseForgotten => "promise",
        M::ConfigSkipsUnion => "change",
        M::WitnessSpeaksEarly => "rot",
    }
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
