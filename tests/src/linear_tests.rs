//! The checkers, checked: histories known to be good and bad, and every small one against brute force.

use proptest::prelude::*;

use crate::content::Random;
use crate::history::*;
use crate::linear::*;

/// An operation on key 1 from `invoke` to `ret`.
fn operation(kind: Kind, outcome: Outcome, invoke: u64, ret: u64) -> Operation {
    Operation {
        client: 0,
        key: 1,
        kind,
        condition: Condition::None,
        outcome,
        version: 0,
        invoke,
        ret,
    }
}

fn put(value: Value, invoke: u64, ret: u64) -> Operation {
    operation(Kind::Put(value), Outcome::Done, invoke, ret)
}

fn unknown_put(value: Value, invoke: u64) -> Operation {
    operation(Kind::Put(value), Outcome::Unknown, invoke, invoke + 1)
}

fn delete(invoke: u64, ret: u64) -> Operation {
    operation(Kind::Delete, Outcome::Done, invoke, ret)
}

fn got(value: Value, invoke: u64, ret: u64) -> Operation {
    operation(Kind::Get, Outcome::Found(value), invoke, ret)
}

fn nothing(invoke: u64, ret: u64) -> Operation {
    operation(Kind::Get, Outcome::Absent, invoke, ret)
}

fn only_if(condition: Condition, operation: Operation) -> Operation {
    Operation {
        condition,
        ..operation
    }
}

fn unmet(operation: Operation) -> Operation {
    Operation {
        outcome: Outcome::Unmet,
        ..operation
    }
}

fn at(version: u64, operation: Operation) -> Operation {
    Operation {
        version,
        ..operation
    }
}

#[track_caller]
fn good(operations: &[Operation]) {
    assert_eq!(check(operations, None, 10_000), Verdict::Linearizable);
    assert!(brute_force(operations, None), "brute force says otherwise");
}

#[track_caller]
fn bad(operations: &[Operation]) {
    let verdict = check(operations, None, 10_000);
    assert!(matches!(verdict, Verdict::Violation(_)), "{verdict:?}");
    assert!(!brute_force(operations, None), "brute force finds an order");
}

#[test]
fn a_read_sees_the_last_write_before_it() {
    good(&[
        nothing(0, 1),
        put(1, 2, 3),
        got(1, 4, 5),
        delete(6, 7),
        nothing(8, 9),
    ]);
    bad(&[put(1, 0, 1), nothing(2, 3)]);
    bad(&[put(1, 0, 1), put(2, 2, 3), got(1, 4, 5)]);
    bad(&[put(1, 0, 1), delete(2, 3), got(1, 4, 5)]);
    bad(&[got(7, 0, 1)]);
    bad(&[got(1, 0, 1), put(1, 2, 3)]);
}

#[test]
fn concurrent_writes_have_one_order_for_all() {
    good(&[put(1, 0, 10), put(2, 0, 10), got(1, 11, 12), got(1, 13, 14)]);
    good(&[
        put(1, 0, 10),
        put(2, 0, 10),
        got(1, 2, 3),
        got(2, 4, 5),
        got(2, 11, 12),
    ]);
    bad(&[put(1, 0, 10), put(2, 0, 10), got(1, 11, 12), got(2, 13, 14)]);
    bad(&[
        put(1, 0, 10),
        put(2, 0, 10),
        got(1, 2, 3),
        got(2, 4, 5),
        got(1, 11, 12),
    ]);
}

#[test]
fn a_read_during_a_write_sees_it_or_not_but_never_goes_back() {
    good(&[put(1, 0, 1), put(2, 2, 9), got(1, 3, 4), got(2, 5, 6)]);
    bad(&[put(1, 0, 1), put(2, 2, 9), got(2, 3, 4), got(1, 5, 6)]);
    good(&[put(1, 0, 1), put(2, 2, 9), got(2, 3, 6), got(1, 4, 5)]);
}

#[test]
fn an_unknown_write_takes_effect_once_at_any_time_or_never() {
    good(&[
        put(1, 0, 1),
        unknown_put(2, 2),
        got(1, 10, 11),
        got(1, 12, 13),
    ]);
    good(&[
        put(1, 0, 1),
        unknown_put(2, 2),
        got(1, 10, 11),
        got(2, 12, 13),
    ]);
    good(&[
        put(1, 0, 1),
        unknown_put(2, 2),
        put(3, 4, 5),
        got(3, 6, 7),
        got(2, 8, 9),
    ]);
    bad(&[
        put(1, 0, 1),
        unknown_put(2, 2),
        got(2, 10, 11),
        got(1, 12, 13),
    ]);
    bad(&[
        put(1, 0, 1),
        unknown_put(2, 2),
        got(2, 4, 5),
        put(3, 6, 7),
        got(3, 8, 9),
        got(2, 10, 11),
    ]);
    bad(&[got(2, 0, 1), unknown_put(2, 2)]);
    // One that only another unknown one makes possible.
    let gone = operation(Kind::Delete, Outcome::Unknown, 2, 3);
    let again = only_if(Condition::Absent, unknown_put(2, 2));
    good(&[put(1, 0, 1), gone, again, got(2, 10, 11)]);
    bad(&[put(1, 0, 1), again, got(2, 10, 11)]);
}

#[test]
fn a_condition_is_met_or_not_by_what_is_there() {
    let absent = |o| only_if(Condition::Absent, o);
    good(&[
        absent(put(1, 0, 1)),
        unmet(absent(put(2, 2, 3))),
        got(1, 4, 5),
    ]);
    bad(&[absent(put(1, 0, 1)), absent(put(2, 2, 3))]);
    // Done, and its repetition said that it could not be done: the second attempt met the first.
    bad(&[unmet(absent(put(1, 0, 1)))]);
    bad(&[unmet(absent(put(1, 0, 1))), got(1, 2, 3)]);
    // Two may not both win.
    bad(&[absent(put(1, 0, 9)), absent(put(2, 0, 9))]);
    good(&[absent(put(1, 0, 9)), unmet(absent(put(2, 0, 9)))]);
    let is_one = |o| only_if(Condition::Is(1), o);
    good(&[
        put(1, 0, 1),
        is_one(put(2, 2, 9)),
        unmet(is_one(put(3, 2, 9))),
        got(2, 10, 11),
    ]);
    bad(&[put(1, 0, 1), is_one(put(2, 2, 9)), is_one(put(3, 2, 9))]);
    bad(&[put(1, 0, 1), unmet(is_one(put(3, 2, 9)))]);
    let existed = operation(Kind::Delete, Outcome::Existed, 2, 3);
    good(&[put(1, 0, 1), existed]);
    bad(&[existed]);
}

#[test]
fn what_was_refused_did_not_happen() {
    let refused = operation(Kind::Put(1), Outcome::Refused, 0, 1);
    good(&[refused, nothing(2, 3)]);
    bad(&[refused, got(1, 2, 3)]);
}

#[test]
fn what_is_not_decided_is_not_passed() {
    // Writes that all overlap, and a last read of what nobody put: every set of them must be tried.
    let mut operations: Vec<Operation> = (1..=16).map(|value| put(value, 0, 100)).collect();
    operations.push(got(99, 200, 201));
    assert_eq!(check(&operations, None, 1000), Verdict::Undecided(1000));
    assert!(matches!(
        check(&operations[10..], None, 100_000),
        Verdict::Violation(_)
    ));
}

#[test]
fn a_long_history_with_many_unknown_writes_is_decided() {
    let mut random = Random::new(7);
    let mut operations = Vec::new();
    let mut now = 0;
    for value in 1..5_000 {
        operations.push(at(value, put(value, now, now + 10)));
        if random.below(200) == 0 {
            operations.push(unknown_put(1_000_000 + value, now));
        }
        operations.push(got(value, now + 11, now + 12));
        now += 20;
    }
    assert_eq!(check(&operations, None, STEPS_MAX), Verdict::Linearizable);
    // A stale read in the middle of it is found.
    operations[6_001] = Operation {
        outcome: Outcome::Found(3),
        kind: Kind::Get,
        ..operations[6_001]
    };
    assert!(matches!(
        check(&operations, None, STEPS_MAX),
        Verdict::Violation(_)
    ));
}

#[test]
fn versions_grow_and_name_one_value() {
    let fine = [
        at(5, put(1, 0, 1)),
        at(5, got(1, 2, 3)),
        at(9, put(2, 4, 5)),
    ];
    assert!(versions(&fine).is_empty());
    assert_eq!(
        versions(&[at(5, put(1, 0, 1)), at(6, got(1, 2, 3))]).len(),
        1,
        "done twice"
    );
    assert_eq!(
        versions(&[at(5, put(1, 0, 9)), at(5, put(2, 0, 9))]).len(),
        1
    );
    assert_eq!(
        versions(&[at(5, put(1, 0, 1)), at(4, put(2, 2, 3))]).len(),
        1
    );
    assert_eq!(
        versions(&[
            at(4, put(1, 0, 1)),
            at(5, put(2, 0, 1)),
            at(4, got(1, 2, 3))
        ])
        .len(),
        1,
        "a stale read"
    );
}

fn page(invoke: u64, ret: u64, shown: &[(Key, u64)]) -> Listing {
    Listing {
        invoke,
        ret,
        from: 0,
        to: Some(10),
        shown: shown.iter().copied().collect(),
    }
}

use crate::history::Listing;

#[track_caller]
fn listed(operations: &[Operation], page: Listing, faults: usize) {
    let history = History {
        operations: operations.to_vec(),
        listings: vec![page],
        wrong: Vec::new(),
    };
    let wrong = listings(&history);
    assert_eq!(wrong.len(), faults, "{wrong:?}");
}

#[test]
fn a_page_shows_what_must_be_there_and_nothing_else() {
    let there = [at(5, put(1, 0, 1))];
    listed(&there, page(2, 3, &[(1, 5)]), 0);
    listed(&there, page(2, 3, &[]), 1);
    listed(&there, page(2, 3, &[(1, 4)]), 1);
    listed(&there, page(2, 3, &[(1, 5), (2, 7)]), 1);
    // Under way: either will do.
    listed(&[at(5, put(1, 0, 9))], page(2, 3, &[]), 0);
    listed(&[at(5, put(1, 0, 9))], page(2, 3, &[(1, 5)]), 0);
    listed(&[at(5, put(1, 4, 9))], page(2, 3, &[(1, 5)]), 1);
    listed(&[unknown_put(1, 0)], page(2, 3, &[(1, 5)]), 0);
    listed(&[unknown_put(1, 0)], page(2, 3, &[]), 0);
    // Deleted.
    let gone = [at(5, put(1, 0, 1)), delete(2, 3)];
    listed(&gone, page(4, 5, &[]), 0);
    listed(&gone, page(4, 5, &[(1, 5)]), 1);
    listed(&gone, page(3, 5, &[(1, 5)]), 0);
    listed(
        &[
            at(5, put(1, 0, 1)),
            operation(Kind::Delete, Outcome::Unknown, 2, 3),
        ],
        page(4, 5, &[]),
        0,
    );
    listed(
        &[at(5, put(1, 0, 1)), unmet(delete(2, 3))],
        page(4, 5, &[]),
        1,
    );
    // A put that was called while a delete was under way may be the later one.
    listed(&[at(5, put(1, 0, 3)), delete(2, 6)], page(7, 8, &[]), 0);
    listed(
        &[delete(0, 4), at(9, put(1, 2, 6))],
        page(7, 8, &[(1, 9)]),
        0,
    );
    listed(&[delete(0, 1), at(9, put(1, 2, 6))], page(7, 8, &[]), 1);
}

#[test]
fn a_page_speaks_of_its_span_only() {
    let far = Operation {
        key: 12,
        ..at(5, put(1, 0, 1))
    };
    listed(&[far], page(2, 3, &[]), 0);
    listed(&[far], page(2, 3, &[(12, 5)]), 1);
    listed(
        &[far],
        Listing {
            to: None,
            ..page(2, 3, &[])
        },
        1,
    );
}

/// Tries every order of every choice of unknown operations.
fn brute_force(operations: &[Operation], state: State) -> bool {
    let relevant: Vec<Operation> = operations
        .iter()
        .filter(|o| o.outcome != Outcome::Refused)
        .copied()
        .collect();
    let must = |o: &Operation| o.outcome != Outcome::Unknown;
    if !relevant.iter().any(must) {
        return true;
    }
    (0..relevant.len()).any(|index| {
        let operation = relevant[index];
        let preceded = relevant
            .iter()
            .any(|other| must(other) && other.ret < operation.invoke);
        let mut rest = relevant.clone();
        rest.remove(index);
        !preceded && after(&operation, state).is_some_and(|state| brute_force(&rest, state))
    })
}

/// A small history: sometimes what a store would do, with a few answers changed; sometimes anything.
fn small(seed: u64, count: u64) -> Vec<Operation> {
    let mut random = Random::new(seed);
    let mut operations: Vec<Operation> = (1..=count)
        .map(|number| {
            let invoke = random.below(12);
            let kind = *random.pick(&[
                Kind::Get,
                Kind::Get,
                Kind::Put(number),
                Kind::Put(number),
                Kind::Delete,
            ]);
            let some = 1 + random.below(count);
            let condition = match kind {
                Kind::Get => Condition::None,
                _ => *random.pick(&[
                    Condition::None,
                    Condition::None,
                    Condition::Absent,
                    Condition::Present,
                    Condition::Is(some),
                ]),
            };
            let ret = invoke + random.below(6);
            only_if(condition, operation(kind, Outcome::Refused, invoke, ret))
        })
        .collect();
    // Each takes effect at a moment of its span.
    let mut moments: Vec<(u64, usize)> = operations
        .iter()
        .enumerate()
        .map(|(index, o)| (o.invoke + random.below(o.ret - o.invoke + 1), index))
        .collect();
    moments.sort_unstable();
    let mut state = None;
    for (_, index) in moments {
        let operation = &mut operations[index];
        let lost = operation.kind != Kind::Get && random.below(4) == 0;
        let done = Operation {
            outcome: Outcome::Done,
            ..*operation
        };
        let late_or_never = lost && random.below(2) == 0;
        let next = after(&done, state).filter(|_| !late_or_never);
        operation.outcome = match (operation.kind, next) {
            _ if lost => Outcome::Unknown,
            (Kind::Get, _) => state.map_or(Outcome::Absent, Outcome::Found),
            (Kind::Delete, Some(_)) if state.is_some() => Outcome::Existed,
            (_, Some(_)) => Outcome::Done,
            (_, None) => Outcome::Unmet,
        };
        state = next.unwrap_or(state);
        if random.below(8) == 0 {
            operation.outcome = match operation.kind {
                Kind::Get => *random.pick(&[Outcome::Absent, Outcome::Found(1), Outcome::Found(2)]),
                Kind::Put(_) => *random.pick(&[Outcome::Done, Outcome::Unmet, Outcome::Refused]),
                Kind::Delete => *random.pick(&[Outcome::Done, Outcome::Existed, Outcome::Unmet]),
            };
        }
    }
    operations
}

#[test]
fn small_histories_are_of_both_kinds() {
    let good = (0..2000)
        .filter(|seed| brute_force(&small(*seed, 6), None))
        .count();
    assert!(
        (400..1600).contains(&good),
        "{good} of 2000 are linearizable"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_checker_agrees_with_brute_force(seed: u64, count in 1u64..8, start in 0u64..3) {
        let operations = small(seed, count);
        let initial = (start > 0).then_some(start);
        let expected = brute_force(&operations, initial);
        let verdict = check(&operations, initial, 1_000_000);
        prop_assert_eq!(verdict == Verdict::Linearizable, expected, "{:?}\n{:#?}", verdict, operations);
        prop_assert!(!matches!(verdict, Verdict::Undecided(_)));
    }
}
