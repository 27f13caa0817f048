//! A crash at each step of flushes, merges and publishing: the old state or the new one, and no space lost.

use ashlar_cluster_index::{Change, Event, Output, Question};

use crate::rig::{ME, Rig, objects, put, small};
use crate::work::Model;

fn names(model: &Model) -> Question {
    let names = model.log.iter().filter_map(|change| match change {
        Change::Put { bucket, key, .. } | Change::Delete { bucket, key } => {
            Some((bucket.clone(), key.clone()))
        }
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    objects(names)
}

fn fill(rig: &mut Rig, model: &mut Model, rounds: u64) {
    for round in 0..rounds {
        for key in 0..20 {
            let seq = model.last() + 1;
            let key = format!("key-{:02}", (key * 7 + round) % 40);
            let change = if (seq + round).is_multiple_of(5) {
                Change::Delete {
                    bucket: "bucket".to_owned(),
                    key,
                }
            } else {
                put("bucket", &key, seq)
            };
            model.apply(change.clone());
            rig.apply(seq, change);
        }
        rig.freeze();
    }
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_state() {
    let mut orphans = 0;
    let mut states = std::collections::BTreeSet::new();
    for seed in 1..=3 {
        for stop in 0.. {
            let mut rig = Rig::new(seed, small(), 64 << 10);
            let mut model = Model::default();
            fill(&mut rig, &mut model, 1);
            rig.settle();
            fill(&mut rig, &mut model, 1);
            rig.settle();
            fill(&mut rig, &mut model, 1);
            let mut steps = 0;
            while steps < stop && rig.step() {
                steps += 1;
            }
            let over = steps < stop;
            let before = rig.device.used();
            let durable = rig.index.covered();
            rig.crash().unwrap();
            orphans += before - rig.device.used();
            assert!(rig.index.covered() >= durable);
            states.insert((rig.index.covered(), rig.index.stats().runs));
            // The state that was durable is there, whole.
            let at = rig.index.covered().0;
            let question = names(&model);
            let answer = rig.answer(question.clone(), None).unwrap();
            assert_eq!(
                answer,
                model.says(&question, at),
                "seed {seed}, step {stop}"
            );
            // And a crash while the journal is applied again, and the rest of the work is done, changes nothing.
            for (seq, change) in model.tail(at) {
                rig.apply(seq, change);
            }
            rig.freeze();
            for _ in 0..stop % 7 {
                rig.step();
            }
            rig.crash().unwrap();
            let at = rig.index.covered().0;
            let answer = rig.answer(question.clone(), None).unwrap();
            assert_eq!(
                answer,
                model.says(&question, at),
                "seed {seed}, step {stop}, again"
            );
            rig.settle();
            rig.device.check_use(ME, &rig.index.live());
            if over {
                break;
            }
        }
    }
    assert!(orphans > 0, "sometimes chunks are left that no root names");
    assert!(
        states.len() >= 3,
        "before and after the flush, and after the merge: {states:?}"
    );
}

#[test]
fn without_room_nothing_is_lost_and_it_goes_on_once_there_is_some() {
    let mut rig = Rig::new(9, small(), 64 << 10);
    let mut model = Model::default();
    fill(&mut rig, &mut model, 2);
    rig.settle();
    rig.device.slots_max = rig.device.used() as u64;
    fill(&mut rig, &mut model, 2);
    rig.settle();
    let covered = rig.index.covered();
    assert!(covered.0 < model.last());
    let question = names(&model);
    let answer = rig.answer(question.clone(), None).unwrap();
    assert_eq!(answer, model.says(&question, model.last()));
    rig.device.slots_max = u64::MAX;
    rig.event(Event::Room);
    rig.settle();
    assert_eq!(rig.index.covered().0, model.last());
    rig.device.check_use(ME, &rig.index.live());
}

#[test]
fn a_failed_write_ends_all_writing() {
    for failure in 0..3 {
        let mut rig = Rig::new(11, small(), 64 << 10);
        let mut model = Model::default();
        fill(&mut rig, &mut model, 1);
        let mut seen = false;
        while let Some(event) = next_event(&mut rig) {
            let event = match (event, failure) {
                (Event::Written { token, .. }, 0) => {
                    seen = true;
                    let result = Err(ashlar_cluster_index::WriteFailure::Failed);
                    Event::Written { token, result }
                }
                (Event::Synced { token, .. }, 1) => {
                    seen = true;
                    Event::Synced { token, ok: false }
                }
                (Event::RootWritten { token, .. }, 2) => {
                    seen = true;
                    Event::RootWritten { token, ok: false }
                }
                (event, _) => event,
            };
            rig.event(event);
        }
        assert!(seen && rig.index.stopped().is_some());
        assert_eq!(rig.index.covered().0, 0, "nothing is claimed");
        let question = names(&model);
        let answer = rig.answer(question.clone(), None).unwrap();
        assert_eq!(
            answer,
            model.says(&question, model.last()),
            "it still answers"
        );
        assert!(rig.device.idle(), "and writes nothing more");
    }
}

fn next_event(rig: &mut Rig) -> Option<Event> {
    if rig.index.wants_turn() && rig.device.idle() {
        return Some(Event::Turn);
    }
    rig.device.complete().map(|(_, event)| event)
}

#[test]
fn another_replica_learns_a_snapshot() {
    let mut rig = Rig::new(21, small(), 64 << 10);
    let mut model = Model::default();
    let bucket = Change::PutBucket {
        bucket: "bucket".to_owned(),
        created_ms: 5,
    };
    model.apply(bucket.clone());
    rig.apply(1, bucket);
    fill(&mut rig, &mut model, 4);
    let snapshot = rig.index.snapshot().unwrap();
    let at = snapshot.seq();
    let mut learner = Rig::new(22, small(), 64 << 10);
    let mut after = Vec::new();
    let mut batches = 0;
    loop {
        // The teacher goes on meanwhile.
        fill(&mut rig, &mut model, 1);
        let max_bytes = 500;
        let question = Question::Items { after, max_bytes };
        let Ok(Output::Items { items, more }) = rig.answer(question, Some(snapshot)) else {
            panic!("no items");
        };
        batches += 1;
        for item in &items {
            let change = item.change().unwrap();
            while learner.index.ingest(item.version, change.clone()).is_err() {
                assert!(learner.step());
            }
            if learner.index.wants_freeze() {
                learner.freeze();
            }
        }
        if batches == 3 {
            // A learner that crashes begins anew.
            learner.freeze();
            learner.settle();
            learner.crash().unwrap();
            assert_eq!(learner.device.used(), 0);
            after = Vec::new();
            continue;
        }
        if !more {
            break;
        }
        after = items.last().unwrap().key.clone();
    }
    learner.index.ingested(at);
    learner.freeze();
    learner.settle();
    learner.crash().unwrap();
    assert_eq!(learner.index.covered(), at);
    for question in [names(&model), Question::Bucket("bucket".to_owned())] {
        let answer = learner.answer(question.clone(), None).unwrap();
        assert_eq!(answer, model.says(&question, at.0));
    }
    assert!(batches > 5);
}
