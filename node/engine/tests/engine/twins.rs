//! Shards that stand twice, and what the cleaner makes of them.

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::ExtentNo;

use crate::model::{Fate, Model, crash_and_verify, go};
use crate::rig::{Answer, Crash, MIB, Rig, payload, shard};

const LEN: usize = 30_000;

/// Shard 1 stands twice in the first extent, whole, and all else in there is dead; where its records are.
fn twins(model: &mut Model) -> (Rig, [u64; 2]) {
    let mut rig = Rig::new(31, 4096, true);
    rig.clean_from = Some(0);
    rig.open();
    model.write(&mut rig, 1, LEN);
    go(&mut rig, model);
    let first = rig.locate(1, LEN);
    // It cannot be read when it is written again.
    rig.disk.bad.insert(first / 512);
    model.write_again(&mut rig, 1);
    go(&mut rig, model);
    rig.disk.bad.clear();
    for number in 2..=4 {
        model.write(&mut rig, number, 250_000);
    }
    go(&mut rig, model);
    for number in 2..=4 {
        model.delete(&mut rig, number);
    }
    model.write(&mut rig, 5, 300_000);
    go(&mut rig, model);
    let both = places(&rig);
    assert!(both.len() == 2 && both.iter().all(|at| *at < MIB));
    rig.findings.clear();
    (rig, [both[0], both[1]])
}

/// Where shard 1 stands.
fn places(rig: &Rig) -> Vec<u64> {
    let bytes = payload(1, LEN);
    let mut at = vec![0; LEN];
    let stands = |offset: &u64| {
        rig.disk.peek(*offset, &mut at);
        at == bytes
    };
    (0..4 * MIB).step_by(4096).filter(stands).collect()
}

fn clean(rig: &mut Rig) -> ashlar_node_engine::clean::Cleaned {
    rig.clean_from = Some(u32::MAX);
    rig.engine().clean_from(Some(u32::MAX));
    rig.settle();
    rig.engine().stats().cleaned
}

/// Neither is a reason to let go of the other.
#[test]
fn two_records_in_one_extent_do_not_cover_each_other() {
    for seed in 0..8 {
        let mut model = Model::default();
        let (mut rig, _) = twins(&mut model);
        rig.rng.0 += seed;
        let figures = clean(&mut rig);
        assert!(rig.fetch(1) == Answer::Bytes(payload(1, LEN)));
        assert_eq!((figures.extents, figures.records), (1, 1), "{figures:?}");
        assert_eq!(rig.engine().stats().shards_live, 2);
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
}

/// Of two one is damaged: the other one is copied, and stands for both. If both are, the extent stays.
#[test]
fn a_damaged_record_goes_with_its_whole_twin() {
    for rotten in [&[0][..], &[1], &[0, 1]] {
        for seed in 0..4 {
            let mut model = Model::default();
            let (mut rig, both) = twins(&mut model);
            rig.rng.0 += seed;
            for at in rotten {
                rig.disk.rot(both[*at] + 9000, &[0xee; 8]);
            }
            let figures = clean(&mut rig);
            if rotten.len() == 2 {
                assert_eq!((figures.extents, figures.passed), (0, 1), "{figures:?}");
                assert!(matches!(rig.fetch(1), Answer::Failed(_)));
                continue;
            }
            assert_eq!((figures.extents, figures.records), (1, 1), "{figures:?}");
            assert!(rig.findings.is_empty(), "{:?}", rig.findings);
            crash_and_verify(&mut rig, &mut model, Crash::Power);
        }
    }
}

/// Deleted while there are two, and its extent cleaned.
#[test]
fn two_records_in_one_extent_are_deleted_together() {
    let mut model = Model::default();
    let (mut rig, _) = twins(&mut model);
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    clean(&mut rig);
    for _ in 0..3 {
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
    assert_eq!(model.shards[&1].fate, Fate::Absent);
}

/// A write for which what is there cannot be looked at, for want of a buffer, is refused, not done a second time.
#[test]
fn without_a_buffer_to_look_a_shard_is_not_written_twice() {
    let mut model = Model::default();
    let (mut rig, _) = twins(&mut model);
    let op = rig.write_shard(shard(1), &payload(1, LEN));
    // The first of the two does not match, and there is no buffer to read the second.
    let mut garbled = rig.flying.iter_mut();
    let Some(crate::rig::Flying::Read { offset, .. }) = garbled.next() else {
        panic!("it is looked at");
    };
    rig.disk.bad.insert(*offset / 512);
    rig.mem.left = 0;
    let answer = rig.finish(op);
    assert!(
        matches!(
            answer.error(),
            Some(ashlar_node_engine::error::EngineError::Busy { .. })
        ),
        "{answer:?}"
    );
    rig.mem.left = usize::MAX;
    rig.disk.bad.clear();
    rig.store(1, LEN);
    assert_eq!(places(&rig).len(), 2);
}

/// Shard 1 stands in the first extent and in the second, whose footer is not there yet.
fn twice(model: &mut Model) -> (Rig, Geometry) {
    let mut rig = Rig::new(37, 4096, true);
    rig.clean_from = Some(0);
    rig.open();
    model.write(&mut rig, 1, LEN);
    for number in 2..=4 {
        model.write(&mut rig, number, 250_000);
    }
    go(&mut rig, model);
    for number in 2..=4 {
        model.delete(&mut rig, number);
    }
    go(&mut rig, model);
    model.write(&mut rig, 5, 300_000);
    go(&mut rig, model);
    // It is copied; the header that ends the extent's life never arrives.
    rig.engine().clean_from(Some(u32::MAX));
    let geometry = rig.engine().geometry();
    rig.settle_but(geometry.extent_start(ExtentNo(0)));
    rig.die();
    rig.disk.settle_loose(|_, _| 0);
    assert_eq!(places(&rig).len(), 2);
    (rig, geometry)
}

/// Writes and deletes until every extent that is free was used again.
fn turn_over(rig: &mut Rig, model: &mut Model, from: u64) {
    for round in 0..6 {
        let numbers: Vec<u64> = (0..60).map(|number| from + round * 60 + number).collect();
        for number in &numbers {
            model.write(rig, *number, 60_000);
            go(rig, model);
        }
        for number in &numbers {
            model.delete(rig, *number);
            go(rig, model);
        }
    }
    assert_eq!(model.full, 0);
}

/// An extent that cannot be read for a while holds the one record of a shard, and another extent the other: the
/// tombstone is there as long as the one that was not seen.
#[test]
fn a_shard_of_which_one_record_was_not_seen_stays_deleted() {
    for deleted_before in [false, true] {
        let mut model = Model::default();
        let (mut rig, geometry) = twice(&mut model);
        if deleted_before {
            let opened = rig.open();
            model.verify(&mut rig, &opened);
            model.delete(&mut rig, 1);
            go(&mut rig, &mut model);
            rig.crash(Crash::Power);
        }
        let first = geometry.extent_start(ExtentNo(0));
        rig.disk.bad.extend(first / 512..MIB / 512);
        for clean in [Some(0), None] {
            rig.clean_from = clean;
            rig.open();
            if model.shards[&1].fate == Fate::Present {
                assert!(rig.fetch(1) == Answer::Bytes(payload(1, LEN)));
                model.delete(&mut rig, 1);
                go(&mut rig, &mut model);
            }
            // All else in the second extent.
            model.delete(&mut rig, 5);
            go(&mut rig, &mut model);
            assert_eq!(model.shards[&1].fate, Fate::Absent);
            let from = 1000 * (2 + u64::from(clean.is_some()));
            turn_over(&mut rig, &mut model, from);
            rig.crash(Crash::Power);
        }
        let left = places(&rig);
        let seen = left.iter().any(|at| *at > MIB);
        assert!(left[0] < MIB && (deleted_before || !seen), "{left:?}");
        rig.disk.bad.clear();
        let opened = rig.open();
        model.verify(&mut rig, &opened);
    }
}

/// A record that seems to be live, because its tombstone stands where nothing can be read now, is not copied: the copy
/// would outlive that tombstone.
#[test]
fn what_only_seems_to_be_live_is_not_copied() {
    let mut model = Model::default();
    let mut rig = Rig::new(41, 4096, true);
    rig.clean_from = Some(0);
    rig.open();
    for (number, len) in [(1, LEN), (2, LEN), (3, 250_000), (4, 250_000), (5, 250_000)] {
        model.write(&mut rig, number, len);
        go(&mut rig, &mut model);
    }
    model.write(&mut rig, 6, 300_000);
    go(&mut rig, &mut model);
    // Its tombstone is in the second extent, those of the large ones in the third.
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    model.write(&mut rig, 7, 500_000);
    model.write(&mut rig, 8, 300_000);
    go(&mut rig, &mut model);
    for number in 3..=5 {
        model.delete(&mut rig, number);
    }
    go(&mut rig, &mut model);
    rig.crash(Crash::Power);
    rig.disk.bad.extend(MIB / 512..2 * MIB / 512);
    rig.clean_from = Some(u32::MAX);
    rig.open();
    assert!(
        rig.fetch(1) == Answer::Bytes(payload(1, LEN)),
        "as far as can be told"
    );
    rig.settle();
    rig.crash(Crash::Power);
    rig.disk.bad.clear();
    rig.clean_from = Some(0);
    let opened = rig.open();
    model.verify(&mut rig, &opened);
    // Now that all can be read, it is cleaned.
    let figures = clean(&mut rig);
    assert!(figures.extents > 0, "{figures:?}");
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}
