//! Stripes that are mended together: which, when, and what comes of each.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_layout::ids::StripeId;

use crate::audit::{Action, Event};
use crate::audit_tests::{Driver, Store, rot};
use crate::queue::{How, Job, Outcome};

impl Driver {
    /// Does what is to be done about a stripe of the queue.
    pub(crate) fn mend(&self, store: &mut Store, Job { finding, how }: &Job) -> Outcome {
        if let How::Move(gone) = how {
            return store.relocate(finding, gone);
        }
        let mends = *how == How::Mend;
        if mends && self.version == store.version {
            let known = store.record();
            let known = known.open.iter().find(|it| it.stripe == finding.stripe);
            let known = known.expect("it is recorded before it is mended");
            let is_known = |index| known.bad.contains_key(index);
            assert!(finding.bad.keys().all(is_known), "{known:?} {finding:?}");
        }
        let known = finding.bad.keys().copied().filter(|_| mends);
        let known: Vec<u16> = known.collect();
        let nth = finding.nth as usize;
        Outcome::Seen(match store.name(&finding.item.key, nth) == finding.stripe {
            false => None,
            true => store.look(&finding.item, nth, &known),
        })
    }
}

/// Whether it is about to mend something.
pub(crate) fn mends(driver: &Driver) -> bool {
    match driver.todo.last() {
        Some(Action::Mend(jobs)) => jobs.iter().any(|job| job.how == How::Mend),
        _ => false,
    }
}

/// What can lose one more shard is mended soon, and what is found meanwhile together with it.
#[test]
fn what_is_urgent_gathers_for_a_moment() {
    let mut store = Store::new(7, 1);
    for object in [1, 2, 3, 5] {
        for shard in 0..2 {
            assert_eq!(rot(&mut store, object, 0, shard), 1);
        }
    }
    let mut driver = Driver::new(&store);
    let mut batches = Vec::new();
    loop {
        match driver.todo.last() {
            Some(Action::Look(..)) => store.pass(Duration::from_millis(40)),
            Some(Action::Mend(jobs)) => batches.push(jobs.len()),
            _ => {}
        }
        if !driver.step(&mut store).unwrap() {
            break;
        }
    }
    // A hundred milliseconds later the third one had been found; the last one ends the page.
    assert_eq!(batches, [3, 1]);
    assert_eq!((store.all().bad(), store.all().repaired), (8, 8));
}

#[test]
fn what_is_urgent_waits_for_nothing_else() {
    let mut store = Store::new(7, 1);
    for (object, shards) in [(0, 1), (1, 1), (2, 2), (3, 1), (4, 2)] {
        for shard in 0..shards {
            assert_eq!(rot(&mut store, object, 0, shard), 1);
        }
    }
    let mut driver = Driver::new(&store);
    let mut batches = Vec::new();
    loop {
        if let Some(Action::Mend(jobs)) = driver.todo.last() {
            let margins = jobs.iter().map(|job| job.finding.margin);
            batches.push(margins.collect::<Vec<_>>());
        }
        if !driver.step(&mut store).unwrap() {
            break;
        }
    }
    assert_eq!(batches, [vec![1, 1], vec![2, 2, 2]]);
}

/// Of what was asked for some may fail, and of some nothing may be said.
#[test]
fn of_several_that_are_mended_each_has_its_own_end() {
    let mut store = Store::new(4, 1);
    for object in 0..4 {
        assert_eq!(rot(&mut store, object, 0, 1), 1);
    }
    let mut driver = Driver::new(&store);
    while !mends(&driver) {
        driver.step(&mut store);
    }
    let Some(Action::Mend(jobs)) = driver.todo.pop() else {
        panic!("it mends");
    };
    assert_eq!(jobs.len(), 4);
    let good = driver.mend(&mut store, &jobs[0]);
    let stranger = StripeId {
        writer: 99,
        attempt: 1,
    };
    let outcomes = vec![
        (
            jobs[1].finding.stripe,
            Outcome::Failed("it burns".to_owned()),
        ),
        (jobs[0].finding.stripe, good.clone()),
        (jobs[0].finding.stripe, good),
        (stranger, Outcome::Seen(None)),
        (jobs[2].finding.stripe, Outcome::Seen(None)),
    ];
    driver.event(&store, Event::Mended(outcomes));
    driver.settle(&mut store);
    let (record, tally) = (store.record(), store.all());
    // What its object was said not to have is found once more.
    assert_eq!((tally.bad(), tally.repaired, tally.moot), (5, 2, 1));
    let why: BTreeSet<&str> = record.open.iter().map(|it| it.why.as_str()).collect();
    assert_eq!(
        why,
        BTreeSet::from(["it burns", "it was not said what came of it"])
    );
}
