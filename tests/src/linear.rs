//! Whether a key's history is linearizable: whether each operation can be given one moment between its call and
//! its answer so that, one after another at these moments, they give the answers that were got.
//!
//! The search is Wing and Gong's, with memory: it takes operations that nothing undone precedes, one at a time,
//! and does not go twice into the same set of done ones with the same state.
//!
//! Invariants:
//! - an operation of unknown outcome may be taken at any time after its call, or never;
//! - what is left out of the search cannot matter: an operation that changes nothing and fits is taken at once
//!   (whatever comes after it sees the same state); an unknown one is only taken right before one that sees it
//!   (unseen, it might as well never happen);
//! - the versions that the store gives only say what is tried first. [`versions`] checks them on their own;
//! - the work is bounded, and what was not decided in it is [`Verdict::Undecided`], which is no pass.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Condition, History, Key, Kind, Operation, Outcome, Value};
use crate::search::{Front, Search, insert};

/// What a key holds.
pub type State = Option<Value>;

/// Steps of the search of one key's history.
pub const STEPS_MAX: u64 = 4_000_000;

/// What the checker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none. How far the best one goes, and what could not follow.
    Violation(String),
    /// None was found in so many steps, and not all were tried.
    Undecided(u64),
}

/// Checks every key of a history, versions included: what is wrong or undecided.
pub fn check_all(history: &History) -> Vec<String> {
    let mut wrong = check_keys(history);
    for (key, operations) in history.by_key() {
        wrong.extend(
            versions(&operations)
                .into_iter()
                .map(|story| format!("key {key}: {story}")),
        );
    }
    wrong
}

/// Panics if anything is wrong, with the first of it. `run`: how to know or repeat the run.
#[track_caller]
pub fn assert_right(wrong: &[String], run: &str) {
    let shown = &wrong[..wrong.len().min(20)];
    assert!(
        wrong.is_empty(),
        "{run}: {} things are wrong:\n{}",
        wrong.len(),
        shown.join("\n")
    );
}

/// As [`check_all`], of a history whose operations have no versions.
pub fn check_keys(history: &History) -> Vec<String> {
    let mut wrong = history.wrong.clone();
    for (key, operations) in history.by_key() {
        match check(&operations, None, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Violation(story) => wrong.push(format!("key {key}: {story}")),
            Verdict::Undecided(steps) => wrong.push(format!(
                "key {key}: undecided after {steps} steps over {} operations",
                operations.len()
            )),
        }
    }
    wrong
}

/// The state behind an operation; none if it cannot have gone so in this state.
pub(crate) fn after(operation: &Operation, state: State) -> Option<State> {
    let holds = match operation.condition {
        Condition::None => true,
        Condition::Absent => state.is_none(),
        Condition::Present => state.is_some(),
        Condition::Is(value) => state == Some(value),
    };
    let made = match operation.kind {
        Kind::Put(value) => Some(value),
        Kind::Delete => None,
        Kind::Get => state,
    };
    match operation.outcome {
        Outcome::Done | Outcome::Unknown => holds.then_some(made),
        Outcome::Existed => (holds && state.is_some()).then_some(made),
        Outcome::Unmet => (!holds).then_some(state),
        Outcome::Found(value) => (state == Some(value)).then_some(state),
        Outcome::Absent => state.is_none().then_some(state),
        Outcome::Refused => None,
    }
}

/// Whether its answer depends on the state before it.
fn observes(operation: &Operation) -> bool {
    operation.condition != Condition::None
        || matches!(
            operation.outcome,
            Outcome::Existed | Outcome::Unmet | Outcome::Found(_) | Outcome::Absent
        )
}

/// Where the search is: which operations are done, and the state behind them.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    /// Which certain operations are done,
    front: Front,
    /// and which unknown ones, in order.
    used: Vec<usize>,
    state: State,
    /// The last one was unknown and nobody has seen it yet.
    unseen: bool,
}

#[derive(Clone, Copy)]
enum Choice {
    Certain(usize),
    Unknown(usize),
}

/// One search.
struct Operations {
    /// Certain operations by their calls.
    certain: Vec<Operation>,
    /// Unknown ones by theirs.
    unknown: Vec<Operation>,
}

impl Operations {
    fn new(operations: &[Operation]) -> Operations {
        let mut certain = Vec::new();
        let mut unknown = Vec::new();
        for operation in operations {
            match operation.outcome {
                Outcome::Refused => {}
                // A read that was not answered says nothing.
                Outcome::Unknown if operation.kind == Kind::Get => {}
                Outcome::Unknown => unknown.push(*operation),
                _ => certain.push(*operation),
            }
        }
        certain.sort_by_key(|o| (o.invoke, o.ret));
        unknown.sort_by_key(|o| o.invoke);
        Operations { certain, unknown }
    }

    /// Certain operations that nothing undone precedes, and the first answer among the undone.
    fn open(&self, place: &Place) -> (Vec<usize>, u64) {
        let spans = self.certain.iter().map(|it| (it.invoke, it.ret));
        place.front.open(spans)
    }
}

impl Search for Operations {
    type Place = Place;
    type Choice = Choice;

    fn whole(&self) -> usize {
        self.certain.len()
    }

    fn front<'a>(&self, place: &'a Place) -> &'a Front {
        &place.front
    }

    fn choices(&self, place: &Place) -> Vec<Choice> {
        let (open, first_end) = self.open(place);
        let quiet = open.iter().find(|index| {
            let operation = &self.certain[**index];
            !operation.may_change() && after(operation, place.state) == Some(place.state)
        });
        if let Some(index) = quiet {
            return vec![Choice::Certain(*index)];
        }
        let mut choices = Vec::new();
        for (index, operation) in self.unknown.iter().enumerate() {
            if operation.invoke > first_end {
                break;
            }
            let useful = (!place.unseen || observes(operation))
                && place.used.binary_search(&index).is_err()
                && after(operation, place.state).is_some_and(|state| state != place.state);
            if useful {
                choices.push(Choice::Unknown(index));
            }
        }
        let mut writes: Vec<usize> = open
            .into_iter()
            .filter(|index| {
                let operation = &self.certain[*index];
                operation.may_change()
                    && (!place.unseen || observes(operation))
                    && after(operation, place.state).is_some()
            })
            .collect();
        // Deletes may have no version; they go by their answer, among themselves.
        writes.sort_by_key(|index| {
            let operation = &self.certain[*index];
            std::cmp::Reverse((operation.version, operation.ret))
        });
        choices.extend(writes.into_iter().map(Choice::Certain));
        choices
    }

    fn take(&self, place: &Place, choice: Choice) -> Place {
        let mut place = place.clone();
        match choice {
            Choice::Unknown(index) => {
                place.state = after(&self.unknown[index], place.state).unwrap_or(place.state);
                place.unseen = true;
                insert(&mut place.used, index);
            }
            Choice::Certain(index) => {
                place.state = after(&self.certain[index], place.state).unwrap_or(place.state);
                place.unseen = false;
                place.front.take(index);
            }
        }
        place
    }

    fn story(&self, best: &Place) -> String {
        let (open, _) = self.open(best);
        let done = best.front.done();
        let mut story = format!(
            "not linearizable: {done} of {} operations can be put in order, then it holds {:?}, and none of \
             these can follow:",
            self.certain.len(),
            best.state
        );
        for index in open {
            story.push_str(&format!("\n    {:?}", self.certain[index]));
        }
        let earlier = best.front.next.saturating_sub(6)..best.front.next;
        story.push_str("\n  done before:");
        for operation in &self.certain[earlier] {
            story.push_str(&format!("\n    {operation:?}"));
        }
        if !self.unknown.is_empty() {
            story.push_str("\n  unknown:");
        }
        for (index, operation) in self.unknown.iter().enumerate().take(12) {
            let used = if best.used.binary_search(&index).is_ok() {
                " (done)"
            } else {
                ""
            };
            story.push_str(&format!("\n    {operation:?}{used}"));
        }
        story
    }
}

/// Checks one key's operations, from a state that it was in before all of them.
pub fn check(operations: &[Operation], initial: State, steps_max: u64) -> Verdict {
    let start = Place {
        front: Front::default(),
        used: Vec::new(),
        state: initial,
        unseen: false,
    };
    Operations::new(operations).run(start, steps_max)
}

/// What is wrong with the versions of one key: one put, one version (a put that was done twice has two); versions
/// only grow; what is read is no older than what was known before.
pub fn versions(operations: &[Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut of_value: HashMap<Value, &Operation> = HashMap::new();
    let mut of_version: HashMap<u64, Value> = HashMap::new();
    let mut told: Vec<(&Operation, bool)> = Vec::new();
    for operation in operations {
        let (value, is_put) = match (operation.kind, operation.outcome) {
            (Kind::Put(value), Outcome::Done) => (value, true),
            (Kind::Get, Outcome::Found(value)) => (value, false),
            _ => continue,
        };
        let first = *of_value.entry(value).or_insert(operation);
        if first.version != operation.version {
            wrong.push(format!(
                "value {value} has two versions:\n    {first:?}\n    {operation:?}"
            ));
        }
        let other = *of_version.entry(operation.version).or_insert(value);
        if other != value {
            wrong.push(format!(
                "values {other} and {value} have one version:\n    {operation:?}"
            ));
        }
        told.push((operation, is_put));
    }
    let mut by_end: Vec<&Operation> = told.iter().map(|(operation, _)| *operation).collect();
    by_end.sort_by_key(|o| o.ret);
    told.sort_by_key(|(operation, _)| operation.invoke);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<&Operation> = None;
    for (operation, is_put) in told {
        while let Some(earlier) = ended.next_if(|o| o.ret < operation.invoke) {
            if newest.is_none_or(|n| n.version < earlier.version) {
                newest = Some(earlier);
            }
        }
        let Some(known) = newest else { continue };
        if operation.version < known.version || (is_put && operation.version == known.version) {
            wrong.push(format!(
                "the version goes back:\n    {known:?}\n    {operation:?}"
            ));
        }
    }
    wrong
}

/// What is wrong with the pages of listings: each shows every key whose put was acknowledged before it was asked
/// for and that nothing may have removed, none that was certainly removed or never put, and no version older
/// than one that was known before.
pub fn listings(history: &History) -> Vec<String> {
    let keys: BTreeMap<Key, Track> = history
        .by_key()
        .into_iter()
        .map(|(key, operations)| (key, Track::of(&operations)))
        .collect();
    let mut wrong = Vec::new();
    for page in &history.listings {
        let times = format!(
            "the page of {:.3} to {:.3} ms",
            page.invoke as f64 / 1e6,
            page.ret as f64 / 1e6
        );
        for (key, version) in &page.shown {
            let Some(track) = keys.get(key) else {
                wrong.push(format!("{times} shows key {key}, which nobody put"));
                continue;
            };
            if *key < page.from || page.to.is_some_and(|to| *key >= to) {
                wrong.push(format!("{times} shows key {key}, which is not of it"));
            }
            if let Some(why) = track.certainly_absent(page.invoke, page.ret) {
                wrong.push(format!("{times} shows key {key}, {why}"));
            }
            let known = track.version_before(page.invoke);
            if *version < known {
                wrong.push(format!(
                    "{times} shows key {key} at version {version}; {known} was known before"
                ));
            }
        }
        let covered = match page.to {
            // A page that covers nothing ends where it begins.
            Some(to) => keys.range(page.from..to.max(page.from)),
            None => keys.range(page.from..),
        };
        for (key, track) in covered {
            if !page.shown.contains_key(key)
                && let Some(put) = track.certainly_present(page.invoke, page.ret)
            {
                wrong.push(format!("{times} lacks key {key}, put so: {put:?}"));
            }
        }
    }
    wrong
}

/// One key's changes, laid out for questions about a span of time.
struct Track {
    /// Acknowledged puts by their answers; with each the latest call up to it.
    puts: Vec<Operation>,
    latest_call: Vec<Operation>,
    /// Deletes that may have been done, by their calls; with each the latest end up to it.
    deletes: Vec<(u64, u64)>,
    /// The same of puts that may have been done.
    maybe_puts: Vec<(u64, u64)>,
    /// Deletes that were acknowledged, by their answers: the latest call up to each.
    deleted: Vec<(u64, u64)>,
    /// Versions told, by their answers: the highest up to each.
    versions: Vec<(u64, u64)>,
}

/// `(at, what)` by `at`, each with the highest `what` so far.
fn running_max(mut pairs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    pairs.sort_unstable();
    let mut highest = 0;
    for pair in &mut pairs {
        highest = highest.max(pair.1);
        pair.1 = highest;
    }
    pairs
}

/// The highest `what` of those with `at` before `before`.
fn highest_before(pairs: &[(u64, u64)], before: u64) -> Option<u64> {
    let count = pairs.partition_point(|(at, _)| *at < before);
    count
        .checked_sub(1)
        .and_then(|last| pairs.get(last))
        .map(|(_, what)| *what)
}

impl Track {
    fn of(operations: &[Operation]) -> Track {
        let is_put = |o: &&Operation| matches!(o.kind, Kind::Put(_)) && o.may_change();
        let is_delete = |o: &&Operation| o.kind == Kind::Delete && o.may_change();
        let known = |o: &&Operation| o.outcome != Outcome::Unknown;
        let mut puts: Vec<Operation> = operations
            .iter()
            .filter(is_put)
            .filter(known)
            .copied()
            .collect();
        puts.sort_by_key(|o| o.ret);
        let mut latest_call: Vec<Operation> = puts.clone();
        for index in 1..latest_call.len() {
            if latest_call[index - 1].invoke > latest_call[index].invoke {
                latest_call[index] = latest_call[index - 1];
            }
        }
        let span = |o: &Operation| (o.invoke, o.end());
        let told = |o: &Operation| (o.ret, o.version);
        let answered = |o: &Operation| (o.ret, o.invoke);
        let deletes = operations.iter().filter(is_delete);
        Track {
            puts,
            latest_call,
            deletes: running_max(deletes.clone().map(span).collect()),
            maybe_puts: running_max(operations.iter().filter(is_put).map(span).collect()),
            deleted: running_max(deletes.filter(known).map(answered).collect()),
            versions: running_max(
                operations
                    .iter()
                    .filter(|o| o.version != 0 && o.kind != Kind::Delete)
                    .map(told)
                    .collect(),
            ),
        }
    }

    /// A put that was acknowledged before `invoke` and that no delete can have undone by `ret`.
    fn certainly_present(&self, invoke: u64, ret: u64) -> Option<Operation> {
        let count = self.puts.partition_point(|put| put.ret < invoke);
        let put = count
            .checked_sub(1)
            .and_then(|last| self.latest_call.get(last))?;
        // A delete that ended before the put was called is undone by it.
        let undone = highest_before(&self.deletes, ret.saturating_add(1))
            .is_some_and(|end| end >= put.invoke);
        (!undone).then_some(*put)
    }

    /// Why it cannot have been there at any moment from `invoke` to `ret`.
    fn certainly_absent(&self, invoke: u64, ret: u64) -> Option<String> {
        let Some(last_put) = highest_before(&self.maybe_puts, ret.saturating_add(1)) else {
            return Some("which nobody had put yet".to_owned());
        };
        let deleted = highest_before(&self.deleted, invoke)?;
        (last_put < deleted).then(|| {
            format!(
                "which was deleted by a call of {:.3} ms and not put again",
                deleted as f64 / 1e6
            )
        })
    }

    /// The highest version told before this moment.
    fn version_before(&self, moment: u64) -> u64 {
        highest_before(&self.versions, moment).unwrap_or(0)
    }
}
