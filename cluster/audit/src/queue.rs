//! What was found and is not mended: in which order it is, and when.
//!
//! Invariants:
//! - least margin first, and of the same margin what has waited the longest;
//! - a finding is counted when it enters the queue, and its shards leave it only when they were read back, or when
//!   their object is gone;
//! - the queue is bounded: what is not in it is not counted, and a later pass finds it again.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{DeviceNo, StripeId};
use serde::{Deserialize, Serialize};

use crate::audit::Looked;
use crate::record::Item;
use crate::tally::Kind;

/// With no more margin than this, a repair does not wait for its turn, nor is it waited for a device that is away.
pub const URGENT: i32 = 1;
/// With no more margin than this, a move does not. With more there are as many of them as a device had stripes: while
/// others want the devices too, those go at the pace of audits, which has a floor; otherwise one batch after the other.
pub const URGENT_MOVE: i32 = 0;
/// Most findings that wait.
pub const OPEN_MAX: usize = 256;
/// Most of them of which nothing is known but that devices were away: those leave room for the others.
pub const AWAY_MAX: usize = 64;
/// Most bytes of a text that says why something could not be mended.
const WHY_MAX: usize = 200;
/// After how long what could not be mended is tried again at first,
const RETRY_MS: u64 = 15_000;
/// and at the last.
const RETRY_LAST_MS: u64 = 60 * 60 * 1000;

/// A stripe with shards that are bad, or away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The object.
    pub item: Item,
    /// Which of its stripes,
    pub stripe: StripeId,
    /// and the how many-th that is of those that an audit of it looks at.
    pub nth: u64,
    /// Bad shards: what was wrong with each when it was found, and on which device.
    pub bad: BTreeMap<u16, (Kind, DeviceNo)>,
    /// Devices that did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<DeviceNo>,
    /// How many more shards it could lose, when it was last looked at.
    pub margin: i32,
    /// When it was found, by the clock of who found it.
    pub found_ms: u64,
    /// Since when it has had that margin, as far as that is counted.
    pub since_ms: u64,
    /// When it is to be mended.
    pub due_ms: u64,
    /// How often that was tried.
    #[serde(default)]
    pub tries: u32,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Finding {
    /// It could not be mended: later.
    pub fn later(&mut self, now_ms: u64, why: &str) {
        let wait = RETRY_MS
            .saturating_mul(1 << self.tries.min(16))
            .min(RETRY_LAST_MS);
        self.tries = self.tries.saturating_add(1);
        self.due_ms = now_ms.saturating_add(wait);
        let mut end = why.len().min(WHY_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        why[..end].clone_into(&mut self.why);
    }
}

/// What is to be done about a stripe of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which, and of what it is known that it is wrong.
    pub finding: Finding,
    /// What to do.
    pub how: How,
}

/// What is to be done about a stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Look at it: [`Outcome::Seen`].
    Look,
    /// Look at it, and mend those of its shards that the finding has, no others, for they are not recorded:
    /// [`Outcome::Seen`].
    Mend,
    /// Look at it, and put it elsewhere if that is all that is wrong with it: shards of it are on these, which do
    /// not answer. [`Outcome::Moved`]; if it is not so, it was looked at.
    Move(BTreeSet<DeviceNo>),
}

/// What came of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was looked at or mended; none: its object does not have it any more.
    Seen(Option<Looked>),
    /// It was put elsewhere: so it was before.
    Moved(Looked),
    /// It could not be done.
    Failed(String),
}

/// Which are next of those that are due, so many at the most.
pub fn next(open: &[Finding], now_ms: u64, most: usize) -> Vec<usize> {
    let due = (0..open.len()).filter(|at| open[*at].due_ms <= now_ms);
    let mut due: Vec<usize> = due.collect();
    due.sort_unstable_by_key(|at| {
        let it = &open[*at];
        (it.margin, it.found_ms, it.stripe)
    });
    due.truncate(most);
    due
}

/// When the first one is due.
pub fn due(open: &[Finding]) -> Option<u64> {
    open.iter().map(|it| it.due_ms).min()
}

/// Whether there is room for one more: with bad shards, or with some that are only away.
pub fn has_room(open: &[Finding], is_bad: bool) -> bool {
    let away = open.iter().filter(|it| it.bad.is_empty()).count();
    open.len() < OPEN_MAX && (is_bad || away < AWAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(attempt: u64, margin: i32, found_ms: u64, due_ms: u64) -> Finding {
        Finding {
            item: Item::default(),
            stripe: StripeId { writer: 1, attempt },
            nth: 0,
            bad: BTreeMap::from([(0, (Kind::Rot, DeviceNo(1)))]),
            away: Vec::new(),
            margin,
            found_ms,
            since_ms: found_ms,
            due_ms,
            tries: 0,
            why: String::new(),
        }
    }

    #[test]
    fn least_margin_first() {
        let open = [
            finding(1, 2, 5, 0),
            finding(2, 0, 9, 0),
            finding(3, 0, 7, 0),
            finding(4, -1, 1, 100),
        ];
        assert_eq!(
            next(&open, 50, 9),
            [2, 1, 0],
            "the worst one is not due yet"
        );
        assert_eq!(next(&open, 100, 2), [3, 2]);
        assert!(next(&open[..0], 100, 9).is_empty());
        assert_eq!((due(&open), due(&[])), (Some(0), None));
    }

    #[test]
    fn later_and_later() {
        let mut it = finding(1, 1, 0, 0);
        let mut last = 0;
        for tries in 1..40 {
            it.later(1000, &"ä".repeat(300));
            assert!(it.due_ms >= last && it.due_ms <= 1000 + RETRY_LAST_MS);
            assert_eq!((it.tries, it.why.len()), (tries, 200));
            last = it.due_ms;
        }
        assert_eq!(last, 1000 + RETRY_LAST_MS);
    }

    #[test]
    fn there_is_room_for_what_is_bad() {
        let mut open: Vec<Finding> = Vec::new();
        while has_room(&open, false) {
            let mut it = finding(open.len() as u64, 1, 0, 0);
            it.bad.clear();
            open.push(it);
        }
        assert_eq!(open.len(), AWAY_MAX);
        while has_room(&open, true) {
            open.push(finding(1000 + open.len() as u64, 1, 0, 0));
        }
        assert_eq!(open.len(), OPEN_MAX);
    }
}
