//! The search of Wing and Gong, with memory: what is the same whatever is put in order.
//!
//! Invariants:
//! - nothing is taken before something that was answered before it was asked for;
//! - the same place is not gone through twice, and the work is bounded.

use std::collections::HashSet;
use std::hash::Hash;

use crate::history::NEVER;
use crate::linear::Verdict;

/// Which of what is put in order, by calls, is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Front {
    /// The first that is not,
    pub(crate) next: usize,
    /// and those behind it that are, in order.
    ahead: Vec<usize>,
}

impl Front {
    /// How many are.
    pub(crate) fn done(&self) -> usize {
        self.next + self.ahead.len()
    }

    /// One more is.
    pub(crate) fn take(&mut self, index: usize) {
        insert(&mut self.ahead, index);
        while self.ahead.first() == Some(&self.next) {
            self.ahead.remove(0);
            self.next += 1;
        }
    }

    /// Those that nothing undone precedes, and the first answer among the undone. `spans`: the call and the answer of
    /// each, by calls.
    pub(crate) fn open(&self, spans: impl Iterator<Item = (u64, u64)>) -> (Vec<usize>, u64) {
        let (mut first_end, mut open) = (NEVER, Vec::new());
        for (index, (invoke, end)) in spans.enumerate().skip(self.next) {
            if invoke > first_end {
                break;
            }
            if self.ahead.binary_search(&index).is_err() {
                first_end = first_end.min(end);
                open.push((index, invoke));
            }
        }
        open.retain(|(_, invoke)| *invoke <= first_end);
        (
            open.into_iter().map(|(index, _)| index).collect(),
            first_end,
        )
    }
}

/// Puts an index among others, in order.
pub(crate) fn insert(sorted: &mut Vec<usize>, index: usize) {
    if let Err(at) = sorted.binary_search(&index) {
        sorted.insert(at, index);
    }
}

/// What is put in order.
pub(crate) trait Search {
    /// Where a search is: what is done, and the state behind it.
    type Place: Clone + Eq + Hash;
    /// What can be taken next.
    type Choice;

    /// How many have to be put in order.
    fn whole(&self) -> usize;
    /// Which of them are.
    fn front<'a>(&self, place: &'a Self::Place) -> &'a Front;
    /// What can be taken next, the likeliest last.
    fn choices(&self, place: &Self::Place) -> Vec<Self::Choice>;
    /// The place behind that.
    fn take(&self, place: &Self::Place, choice: Self::Choice) -> Self::Place;
    /// How far the best order goes, and what could not follow.
    fn story(&self, best: &Self::Place) -> String;

    /// Searches from there, in so many steps at the most.
    fn run(&self, start: Self::Place, steps_max: u64) -> Verdict {
        let (mut steps, mut best) = (0, start.clone());
        let mut been = HashSet::new();
        let mut stack = vec![start];
        while let Some(place) = stack.pop() {
            if self.front(&place).next == self.whole() {
                return Verdict::Linearizable;
            }
            if steps == steps_max {
                return Verdict::Undecided(steps);
            }
            steps += 1;
            if self.front(&place).done() > self.front(&best).done() {
                best = place.clone();
            }
            for choice in self.choices(&place) {
                let next = self.take(&place, choice);
                if !been.contains(&next) {
                    been.insert(next.clone());
                    stack.push(next);
                }
            }
        }
        Verdict::Violation(self.story(&best))
    }
}
