//! What clients did to a store and what it told them: the record that the checkers read.
//!
//! Invariants:
//! - all times of a history are of one [`Clock`], which never goes back;
//! - an operation's `invoke` was taken before it was sent and its `ret` after it was answered, so the moment at
//!   which it took effect, if it did, is between them; without an answer it may be any later moment, or none;
//! - a value is put by one operation and no other: whoever reads it knows which.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// The clock of a history.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since it was started.
    pub fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(NEVER)
    }
}

/// The time of what has not come.
pub const NEVER: u64 = u64::MAX;

/// A key's number.
pub type Key = u32;
/// What a put put there; no two puts of a history have the same.
pub type Value = u64;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read it.
    Get,
    /// Make it this.
    Put(Value),
    /// Remove it.
    Delete,
}

/// What must hold for it to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// There is no object.
    Absent,
    /// There is one.
    Present,
    /// It is this one: the caller named the version that it had read it at.
    Is(Value),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A put or delete was acknowledged.
    Done,
    /// A delete was acknowledged that says that there was an object.
    Existed,
    /// The condition did not hold; nothing was done.
    Unmet,
    /// A read found this.
    Found(Value),
    /// A read found no object.
    Absent,
    /// Certainly not done, for a reason that says nothing of the key.
    Refused,
    /// Nobody knows; it may be done yet.
    Unknown,
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Which task did it; it had no other under way.
    pub client: u32,
    /// To which key.
    pub key: Key,
    /// What was asked for.
    pub kind: Kind,
    /// If what held.
    pub condition: Condition,
    /// What came of it.
    pub outcome: Outcome,
    /// The version that a put made or a read found; 0 for none.
    pub version: u64,
    /// Before it was sent.
    pub invoke: u64,
    /// After it was answered; of an unknown one, after it was given up.
    pub ret: u64,
}

impl Operation {
    /// Whether it may have changed the key, now or later.
    pub fn may_change(&self) -> bool {
        self.kind != Kind::Get
            && matches!(
                self.outcome,
                Outcome::Done | Outcome::Existed | Outcome::Unknown
            )
    }

    /// The last moment at which it may have taken effect.
    pub fn end(&self) -> u64 {
        if self.outcome == Outcome::Unknown {
            NEVER
        } else {
            self.ret
        }
    }

    /// Whether it was answered with what it was meant to bring: what a chart counts.
    pub fn served(&self) -> bool {
        !matches!(self.outcome, Outcome::Refused | Outcome::Unknown)
    }
}

/// From when to when something was under way.
pub(crate) fn write_span(f: &mut fmt::Formatter<'_>, invoke: u64, end: u64) -> fmt::Result {
    let ms = |ns: u64| ns as f64 / 1e6;
    write!(f, "{:.3} to ", ms(invoke))?;
    match end {
        NEVER => write!(f, "? ms"),
        end => write!(f, "{:.3} ms", ms(end)),
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_span(f, self.invoke, self.end())?;
        write!(f, ", client {}: {:?}", self.client, self.kind)?;
        if self.condition != Condition::None {
            write!(f, " if {:?}", self.condition)?;
        }
        write!(f, " -> {:?}", self.outcome)?;
        if self.version != 0 {
            write!(f, " at version {}", self.version)?;
        }
        Ok(())
    }
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Before it was sent.
    pub invoke: u64,
    /// After it was answered.
    pub ret: u64,
    /// The first key that the page speaks of,
    pub from: Key,
    /// and the first one behind it that it does not; none if it goes to the end.
    pub to: Option<Key>,
    /// The keys that it shows, with their versions.
    pub shown: BTreeMap<Key, u64>,
}

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Operations on keys.
    pub operations: Vec<Operation>,
    /// Pages of listings that were answered.
    pub listings: Vec<Listing>,
    /// What was seen that needs no further check to be wrong: torn bytes, an answer that makes no sense.
    pub wrong: Vec<String>,
}

impl History {
    /// Takes in what another task recorded on the same clock.
    pub fn merge(&mut self, other: History) {
        self.operations.extend(other.operations);
        self.listings.extend(other.listings);
        self.wrong.extend(other.wrong);
    }

    /// The operations by key, each key's by the time that they were sent.
    pub fn by_key(&self) -> BTreeMap<Key, Vec<Operation>> {
        let mut keys: BTreeMap<Key, Vec<Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(operation.key).or_default().push(*operation);
        }
        for operations in keys.values_mut() {
            operations.sort_by_key(|o| (o.invoke, o.ret));
        }
        keys
    }

    /// How many operations had this outcome.
    pub fn count(&self, is: impl Fn(&Operation) -> bool) -> usize {
        self.operations.iter().filter(|o| is(o)).count()
    }

    /// When each operation that `counts` was served, in order.
    pub fn served(&self, counts: impl Fn(&Operation) -> bool) -> Vec<u64> {
        let wanted = |o: &&Operation| o.served() && counts(o);
        let mut times: Vec<u64> = self
            .operations
            .iter()
            .filter(wanted)
            .map(|o| o.ret)
            .collect();
        times.sort_unstable();
        times
    }
}

/// The longest time without any of `served` (in order) that touches `from..=to`: where it begins and ends.
pub fn gap(served: &[u64], from: u64, to: u64) -> (u64, u64) {
    let first = served.partition_point(|t| *t <= from).saturating_sub(1);
    let mut longest = (from, from);
    let mut last = served.get(first).copied().unwrap_or(from).min(from);
    for time in served.get(first..).unwrap_or_default() {
        if *time > last && *time - last > longest.1 - longest.0 {
            longest = (last, *time);
        }
        last = last.max(*time);
        if *time >= to {
            return longest;
        }
    }
    // Nothing was served until the end.
    if to > last && to - last > longest.1 - longest.0 {
        longest = (last, to);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_longest_one_that_touches_the_time() {
        let served = [1, 2, 10, 11, 12, 40, 41, 90];
        assert_eq!(gap(&served, 3, 9), (2, 10), "the one that it is in");
        assert_eq!(gap(&served, 10, 41), (12, 40));
        assert_eq!(gap(&served, 11, 12), (11, 12), "short, and still one");
        assert_eq!(gap(&served, 12, 13), (12, 40), "it goes on behind it");
        assert_eq!(gap(&served, 41, 200), (90, 200), "it has no end");
        assert_eq!(gap(&[], 5, 9), (5, 9));
    }
}
