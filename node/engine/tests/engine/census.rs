//! Censuses: what was asked for or written since has its mark, wherever its record goes; all else is told by name.

use std::collections::BTreeSet;

use ashlar_layout::ids::ShardId;
use ashlar_node_engine::api::Event;
use ashlar_node_engine::census::{Ask, Counted};
use ashlar_node_engine::error::EngineError;

use crate::faults::{LEN, populated};
use crate::rig::{Answer, Rig, shard};

fn ask(rig: &mut Rig, ask: Ask) -> Counted {
    let op = rig.submit(|op| Event::Census { op, ask });
    match rig.finish(op) {
        Answer::Counted(counted) => counted,
        other => panic!("{other:?}"),
    }
}

fn begin(rig: &mut Rig, salt: u64) {
    assert_eq!(ask(rig, Ask::Begin { salt }), Counted::Begun);
}

/// The places of shards without a mark; none if the marks are forgotten.
fn unmarked(rig: &mut Rig, salt: u64) -> Option<Vec<u64>> {
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let Counted::Walked {
            unmarked,
            next,
            memory: _,
        } = ask(rig, Ask::Unmarked { salt, from: at })
        else {
            return None;
        };
        all.extend(unmarked);
        from = next;
    }
    Some(all)
}

/// What they are.
fn names(rig: &mut Rig, places: &[u64]) -> BTreeSet<ShardId> {
    let named = places.iter().map(|place| {
        let Counted::Named { shard, bytes } = ask(rig, Ask::Name { place: *place }) else {
            panic!("{place} has no name");
        };
        assert_eq!(bytes as usize, LEN);
        shard
    });
    named.collect()
}

fn shards(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<ShardId> {
    numbers.into_iter().map(shard).collect()
}

#[test]
fn what_nobody_asks_for_is_told_by_name() {
    let mut rig = populated(100);
    begin(&mut rig, 5);
    assert_eq!(unmarked(&mut rig, 6), None, "those are of somebody else");
    for number in (1..=100).filter(|number| number % 10 != 0) {
        rig.fetch(number);
    }
    // Deleted, and new; and a part of one is asked for.
    let op = rig.delete(shard(10));
    assert_eq!(rig.finish(op), Answer::Durable);
    rig.store(101, LEN);
    let op = rig.read(shard(20), 30_000, 100);
    rig.finish(op);
    let places = unmarked(&mut rig, 5).unwrap();
    let ten = [30, 40, 50, 60, 70, 80, 90, 100];
    assert_eq!(names(&mut rig, &places), shards(ten));
    assert!(places.is_sorted(), "{places:?}");

    // Those are the same places in another life, which has forgotten the marks.
    rig.shutdown();
    rig.open();
    assert_eq!(unmarked(&mut rig, 5), None);
    begin(&mut rig, 7);
    for number in (1..=101).filter(|number| !ten.contains(number) && *number != 10) {
        rig.fetch(number);
    }
    assert_eq!(unmarked(&mut rig, 7), Some(places.clone()));
    // What is there no more has no name.
    let op = rig.delete(shard(30));
    rig.finish(op);
    let left: Vec<Counted> = places
        .iter()
        .map(|place| ask(&mut rig, Ask::Name { place: *place }))
        .collect();
    let gone = left.iter().filter(|it| **it == Counted::Unnamed);
    assert_eq!(gone.count(), 1, "{left:?}");
}

/// One that was accepted before the marks began, and is there after that.
#[test]
fn what_is_under_way_has_its_mark_when_it_is_there() {
    let mut rig = Rig::idle(3);
    let op = rig.write_shard(shard(1), &[7; LEN]);
    begin_at_once(&mut rig, 4);
    assert_eq!(rig.finish(op), Answer::Durable);
    assert_eq!(rig.engine().stats().shards_live, 1);
    assert_eq!(unmarked(&mut rig, 4), Some(vec![]));
}

fn begin_at_once(rig: &mut Rig, salt: u64) {
    let ask = Ask::Begin { salt };
    let op = rig.submit(|op| Event::Census { op, ask });
    let answer = rig.answers.remove(&op);
    assert_eq!(answer, Some(Answer::Counted(Counted::Begun)));
}

/// What the cleaner copies is asked for by nobody.
#[test]
fn cleaning_marks_nothing() {
    let mut rig = populated(100);
    for number in (1..=100).filter(|number| number % 3 != 0) {
        let op = rig.delete(shard(number));
        rig.finish(op);
    }
    begin(&mut rig, 9);
    let left = (1..=100).filter(|number| number % 3 == 0);
    let left: Vec<u64> = left.collect();
    for number in &left[5..] {
        rig.fetch(*number);
    }
    let before = rig.engine().stats().cleaned.records;
    rig.engine().clean_from(Some(u32::MAX));
    rig.settle();
    let after = rig.engine().stats().cleaned.records;
    assert!(after > before, "something was copied");
    let places = unmarked(&mut rig, 9).unwrap();
    assert_eq!(names(&mut rig, &places), shards(left[..5].iter().copied()));
}

#[test]
fn a_head_that_cannot_be_read_says_nothing_and_fences_nothing() {
    let mut rig = populated(10);
    begin(&mut rig, 1);
    for number in 2..=10 {
        rig.fetch(number);
    }
    let places = unmarked(&mut rig, 1).unwrap();
    let at = rig.locate(1, LEN);
    // One block before the payload.
    rig.disk.rot(at - 4096, &[0xee; 8]);
    assert_eq!(
        ask(&mut rig, Ask::Name { place: places[0] }),
        Counted::Unnamed
    );
    assert_eq!(rig.fenced, None);
    // Places that are none.
    for place in [0, u64::MAX] {
        assert_eq!(ask(&mut rig, Ask::Name { place }), Counted::Unnamed);
    }
    // Without room it is busy, and can be asked again.
    rig.mem.left = 0;
    let op = rig.submit(|op| Event::Census {
        op,
        ask: Ask::Name { place: places[0] },
    });
    let answer = rig.finish(op);
    assert!(
        matches!(answer.error(), Some(EngineError::Busy { .. })),
        "{answer:?}"
    );
}
