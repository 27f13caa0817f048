//! The history of keys whose stripes were put elsewhere meanwhile.
//!
//! A move changes nothing of an object but its version, and what is done on the condition of a version fails after it.
//! So for the checkers each version of a value that a move made is a state of its own, and the move a put of that state
//! on the condition of the one that it saw.
//!
//! Invariants:
//! - a version that somebody saw is that of a put or of a move; of the versions of one value that nobody was told of
//!   making, the first is the put's: whoever moves an object has seen it before;
//! - the others are those of moves whose outcome is unknown, each of one that saw the version before.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_tests::history::{Condition, Key, Kind, Operation, Outcome, Value};

/// One stripe of an object put elsewhere, or the attempt.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Which client did it.
    pub client: u32,
    /// Of which key.
    pub key: Key,
    /// What was there.
    pub value: Value,
    /// Its version,
    pub seen: u64,
    /// and the one that the move made; 0 for none.
    pub version: u64,
    /// What came of it: done, unmet, refused or unknown.
    pub outcome: Outcome,
    /// Before it was begun.
    pub invoke: u64,
    /// After it was answered.
    pub ret: u64,
}

/// Values from here on are those that moves made of others.
const MADE: Value = 1 << 63;

/// What each version of a key is for the checkers.
#[derive(Default)]
struct Names {
    /// The state, and the value that somebody put.
    of: BTreeMap<(Key, u64), (Value, Value)>,
    wrong: Vec<String>,
}

impl Names {
    fn name(&mut self, (key, version): (Key, u64), state: Value, value: Value) {
        let named = self.of.entry((key, version)).or_insert((state, value));
        if *named != (state, value) {
            self.wrong.push(format!(
                "key {key}: version {version} was made twice: {value:x} and {:x}",
                named.1
            ));
        }
    }

    /// What somebody saw, for the checkers.
    fn seen(&mut self, key: Key, version: u64, value: Value) -> Value {
        match self.of.get(&(key, version)) {
            Some((state, put)) if *put == value => *state,
            other => {
                self.wrong.push(format!(
                    "key {key}: at version {version} {value:x} was seen, and it is {other:x?}"
                ));
                value
            }
        }
    }
}

/// The operations as the checkers take them, and what is wrong already. `held`: the versions that conditions named, by
/// the operations' places.
pub fn untangle(
    operations: &[Operation],
    held: &BTreeMap<usize, u64>,
    moves: &[Move],
) -> (Vec<Operation>, Vec<String>) {
    if moves.is_empty() {
        return (operations.to_vec(), Vec::new());
    }
    let mut names = Names::default();
    // By key and value.
    let mut versions: BTreeMap<(Key, Value), BTreeSet<u64>> = BTreeMap::new();
    let mut saw = |key, value, version| {
        versions.entry((key, value)).or_default().insert(version);
    };
    for (at, it) in operations.iter().enumerate() {
        match (it.kind, it.outcome) {
            (Kind::Put(value), Outcome::Done) => {
                names.name((it.key, it.version), value, value);
                saw(it.key, value, it.version);
            }
            (_, Outcome::Found(value)) => saw(it.key, value, it.version),
            _ => {}
        }
        if let (Condition::Is(value), Some(version)) = (it.condition, held.get(&at)) {
            saw(it.key, value, *version);
        }
    }
    for (nth, it) in moves.iter().enumerate() {
        saw(it.key, it.value, it.seen);
        if it.outcome == Outcome::Done {
            if it.version <= it.seen {
                names
                    .wrong
                    .push(format!("key {}: {it:?}: it goes back", it.key));
            }
            names.name((it.key, it.version), MADE | nth as u64, it.value);
            saw(it.key, it.value, it.version);
        }
    }
    for ((key, value), versions) in versions {
        let put = versions.iter().find(|version| {
            let named = names.of.get(&(key, **version));
            named.is_some_and(|(state, _)| *state == value)
        });
        let mut put = put.copied();
        let mut used = BTreeSet::new();
        let mut before = None;
        for version in versions {
            if !names.of.contains_key(&(key, version)) {
                let first = put.is_none();
                let unknown = moves.iter().enumerate().filter(|(nth, it)| {
                    (it.key, it.value, it.outcome) == (key, value, Outcome::Unknown)
                        && Some(it.seen) == before
                        && !used.contains(nth)
                });
                // Of two of them it may be either: the one that was begun first may have been done at any moment at
                // which the other may.
                let unknown = unknown.min_by_key(|(_, it)| it.invoke);
                match unknown {
                    _ if first => {
                        put = Some(version);
                        names.name((key, version), value, value);
                    }
                    Some((nth, _)) => {
                        used.insert(nth);
                        names.name((key, version), MADE | nth as u64, value);
                    }
                    None => names.wrong.push(format!(
                        "key {key}: version {version} of {value:x} was made by nobody"
                    )),
                }
            }
            before = Some(version);
        }
    }
    let mut all = Vec::with_capacity(operations.len() + moves.len());
    for (at, it) in operations.iter().enumerate() {
        let mut it = *it;
        if let Outcome::Found(value) = it.outcome {
            it.outcome = Outcome::Found(names.seen(it.key, it.version, value));
        }
        if let (Condition::Is(value), Some(version)) = (it.condition, held.get(&at)) {
            it.condition = Condition::Is(names.seen(it.key, *version, value));
        }
        all.push(it);
    }
    for (nth, it) in moves.iter().enumerate() {
        all.push(Operation {
            client: it.client,
            key: it.key,
            kind: Kind::Put(MADE | nth as u64),
            condition: Condition::Is(names.seen(it.key, it.seen, it.value)),
            outcome: it.outcome,
            version: it.version,
            invoke: it.invoke,
            ret: it.ret,
        });
    }
    (all, names.wrong)
}

#[cfg(test)]
mod tests {
    use ashlar_tests::history::History;
    use ashlar_tests::linear;

    use super::*;

    fn operation(kind: Kind, outcome: Outcome, version: u64, times: (u64, u64)) -> Operation {
        Operation {
            client: 1,
            key: 7,
            kind,
            condition: Condition::None,
            outcome,
            version,
            invoke: times.0,
            ret: times.1,
        }
    }

    fn put(version: u64, times: (u64, u64)) -> Operation {
        operation(Kind::Put(5), Outcome::Done, version, times)
    }

    fn got(version: u64, times: (u64, u64)) -> Operation {
        operation(Kind::Get, Outcome::Found(5), version, times)
    }

    fn moved(seen: u64, outcome: Outcome, version: u64, times: (u64, u64)) -> Move {
        Move {
            client: 2,
            key: 7,
            value: 5,
            seen,
            version,
            outcome,
            invoke: times.0,
            ret: times.1,
        }
    }

    /// What is wrong with it.
    fn judge(operations: &[Operation], held: &[(usize, u64)], moves: &[Move]) -> Vec<String> {
        let held = held.iter().copied().collect();
        let (operations, mut wrong) = untangle(operations, &held, moves);
        let history = History {
            operations,
            ..History::default()
        };
        wrong.extend(linear::check_all(&history));
        wrong
    }

    #[test]
    fn a_move_is_seen_by_all_who_come_after_it() {
        let done = [moved(1, Outcome::Done, 4, (3, 4))];
        let right = [
            put(1, (0, 1)),
            got(1, (1, 3)),
            got(4, (3, 9)),
            got(4, (5, 6)),
        ];
        assert_eq!(judge(&right, &[], &done), Vec::<String>::new());
        let late = [put(1, (0, 1)), got(1, (5, 6))];
        assert!(!judge(&late, &[], &done).is_empty(), "it was not seen");
        let early = [put(1, (0, 1)), got(4, (1, 2))];
        assert!(!judge(&early, &[], &done).is_empty(), "before it was begun");
        let gone = [put(1, (0, 1)), got(4, (5, 6)), got(1, (7, 8))];
        assert!(!judge(&gone, &[], &done).is_empty(), "it was undone");
    }

    #[test]
    fn what_is_done_if_a_version_is_there_is_not_done_behind_a_move() {
        let done = [moved(1, Outcome::Done, 4, (3, 4))];
        let removed = |outcome, version| {
            let removed = Operation {
                condition: Condition::Is(5),
                ..operation(Kind::Delete, outcome, 0, (6, 7))
            };
            judge(&[put(1, (0, 1)), removed], &[(1, version)], &done)
        };
        assert!(removed(Outcome::Unmet, 1).is_empty());
        assert!(removed(Outcome::Existed, 4).is_empty());
        assert!(!removed(Outcome::Existed, 1).is_empty());
        assert!(!removed(Outcome::Unmet, 4).is_empty());
    }

    #[test]
    fn of_what_nobody_was_told_the_first_is_the_put_and_the_others_are_moves() {
        let put = operation(Kind::Put(5), Outcome::Unknown, 0, (0, 1));
        let unknown = |seen, at| moved(seen, Outcome::Unknown, 0, (at, at + 1));
        let moves = [unknown(2, 3), unknown(2, 5), unknown(6, 7)];
        let right = [put, got(2, (2, 3)), got(6, (7, 8)), got(9, (9, 10))];
        assert_eq!(judge(&right, &[], &moves), Vec::<String>::new());
        let twice = [put, got(6, (6, 7)), got(2, (8, 9))];
        assert!(!judge(&twice, &[], &moves).is_empty(), "it goes back");
        let nobody = [
            put,
            got(2, (2, 3)),
            got(6, (7, 8)),
            got(7, (8, 9)),
            got(9, (9, 10)),
        ];
        let wrong = judge(&nobody, &[], &moves[..2]);
        assert!(
            wrong.iter().any(|it| it.contains("made by nobody")),
            "{wrong:?}"
        );
        let early = [put, got(2, (2, 3)), got(6, (3, 4))];
        assert!(
            !judge(&early, &[], &moves[1..]).is_empty(),
            "before it was begun"
        );
    }
}
