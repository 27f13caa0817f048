//! Tombstones that an extent has to hand on before it is cleaned; and copies that come to nothing.

use ashlar_node_engine::clean::Cleaned;
use ashlar_node_engine::error::EngineError;

use crate::model::{Fate, Model, crash_and_verify, go};
use crate::rig::{Answer, Crash, Flying, MIB, Rig, payload, shard};

/// Fifteen fit into an extent.
const LEN: usize = 60_000;

fn write(rig: &mut Rig, model: &mut Model, number: u64, len: usize) {
    model.write(rig, number, len);
    go(rig, model);
}

fn delete(rig: &mut Rig, model: &mut Model, number: u64) {
    model.delete(rig, number);
    go(rig, model);
    assert_eq!(model.shards[&number].fate, Fate::Absent);
}

fn begin(rig: &mut Rig) {
    rig.clean_from = Some(u32::MAX);
    rig.engine().clean_from(Some(u32::MAX));
}

fn cleaned(rig: &mut Rig) -> Cleaned {
    rig.engine().cleaned()
}

/// The first extent is cold, but for shards 1 and 2, whose tombstones are in the second, most of which is dead.
fn two_to_carry(model: &mut Model) -> Rig {
    let mut rig = Rig::idle(17);
    for number in 1..=18 {
        write(&mut rig, model, number, LEN);
    }
    for number in 1..=2 {
        delete(&mut rig, model, number);
    }
    for number in 19..=40 {
        write(&mut rig, model, number, LEN);
    }
    let place = |rig: &Rig, number| rig.locate(number, LEN) / MIB;
    assert!(place(&rig, 3) == 0 && place(&rig, 18) == 1);
    for number in 19..=40 {
        if place(&rig, number) == 1 {
            delete(&mut rig, model, number);
        }
    }
    rig
}

/// A tombstone written again would kill a record that came after the first. That is known before anything is copied,
/// and remembered until that record is gone.
#[test]
fn a_shard_that_is_there_again_keeps_its_tombstones_extent() {
    let mut model = Model::default();
    let mut rig = two_to_carry(&mut model);
    write(&mut rig, &mut model, 1, LEN);
    begin(&mut rig);
    for number in 50..60 {
        write(&mut rig, &mut model, number, LEN);
        let figures = cleaned(&mut rig);
        assert_eq!((figures.begun, figures.passed), (1, 1), "{figures:?}");
        assert_eq!((figures.bytes, figures.tombstones), (0, 0), "{figures:?}");
    }
    delete(&mut rig, &mut model, 1);
    let figures = cleaned(&mut rig);
    assert_eq!((figures.extents, figures.tombstones), (1, 2), "{figures:?}");
    for _ in 0..3 {
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
}

/// It comes when the copying has begun: it is seen before the first tombstone is written.
#[test]
fn a_shard_that_comes_back_meanwhile_is_not_killed() {
    for seed in 0..20 {
        let mut model = Model::default();
        let mut rig = two_to_carry(&mut model);
        rig.rng.0 += seed;
        begin(&mut rig);
        for _ in 0..seed % 7 {
            rig.kick();
            rig.step();
        }
        model.write(&mut rig, 2, LEN);
        go(&mut rig, &mut model);
        if model.shards[&2].fate == Fate::Present {
            assert!(rig.fetch(2) == Answer::Bytes(payload(2, LEN)), "{seed}");
        }
        for _ in 0..3 {
            crash_and_verify(&mut rig, &mut model, Crash::Power);
        }
    }
}

/// While its tombstone is written again a shard is neither written nor called deleted: that can be had later.
#[test]
fn a_write_comes_again_when_the_tombstone_is_written() {
    let mut model = Model::default();
    let mut rig = two_to_carry(&mut model);
    begin(&mut rig);
    let carries = |flying: &Flying| match flying {
        Flying::Write { offset, len, .. } => *len == 2 * 4096 && !offset.is_multiple_of(MIB),
        _ => false,
    };
    loop {
        rig.kick();
        if rig.flying.iter().any(carries) {
            break;
        }
        assert!(rig.step(), "nothing is carried");
    }
    let op = rig.write_shard(shard(2), &payload(2, LEN));
    let answer = rig.answers.remove(&op);
    let error = answer.as_ref().and_then(Answer::error);
    assert!(
        matches!(error, Some(EngineError::Busy { .. })),
        "{answer:?}"
    );
    let gone = rig.delete(shard(2));
    assert_eq!(rig.finish(gone), Answer::Durable);
    assert_eq!(cleaned(&mut rig).tombstones, 2);
    write(&mut rig, &mut model, 2, LEN);
    assert_eq!(model.shards[&2].fate, Fate::Present);
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

/// Tombstones that keep something dead are no room to be won: an extent full of them is not tried at all, and after a
/// restart that is known, too.
#[test]
fn an_extent_of_needed_tombstones_is_left_alone() {
    let mut model = Model::default();
    let mut rig = Rig::idle(19);
    for number in 1..=2600 {
        model.write(&mut rig, number, 0);
    }
    go(&mut rig, &mut model);
    for number in (1..=2600).filter(|number| number % 9 == 0) {
        model.delete(&mut rig, number);
    }
    go(&mut rig, &mut model);
    for number in 3001..=3030 {
        write(&mut rig, &mut model, number, LEN);
    }
    begin(&mut rig);
    go(&mut rig, &mut model);
    assert_eq!(cleaned(&mut rig).begun, 0, "{:?}", cleaned(&mut rig));
    crash_and_verify(&mut rig, &mut model, Crash::Power);
    go(&mut rig, &mut model);
    assert_eq!(cleaned(&mut rig).begun, 0, "{:?}", cleaned(&mut rig));
}

/// Shards 1 and 2 in a sealed extent of which most is dead; 2 is rotten. Both have been read: a copy of 1 waits, and
/// somebody for it, when the extent is passed over.
#[test]
fn who_waits_for_a_copy_that_is_not_made_is_answered() {
    for seed in 0..8 {
        let mut model = Model::default();
        let mut rig = Rig::idle(23);
        for (number, len) in [(1, 30_000), (2, 30_000), (3, 300_000), (4, 300_000)] {
            write(&mut rig, &mut model, number, len);
        }
        write(&mut rig, &mut model, 5, 500_000);
        for number in 3..=4 {
            delete(&mut rig, &mut model, number);
        }
        let rotten = rig.locate(2, 30_000);
        rig.disk.rot(rotten + 9000, &[0xee; 8]);
        let stood = rig.locate(1, 30_000);
        begin(&mut rig);
        // Trailer, footer, and then both records, without a kick in between.
        for _ in 0..2 {
            rig.kick();
            assert!(rig.step());
        }
        rig.kick();
        assert_eq!(rig.flying.len(), 2);
        rig.step_at(0);
        let (op, end) = match seed % 2 {
            0 => {
                let op = rig.write_shard(shard(1), &payload(1, 30_000));
                (op, Fate::Present)
            }
            _ => {
                model.shards.get_mut(&1).unwrap().fate = Fate::Absent;
                (rig.delete(shard(1)), Fate::Absent)
            }
        };
        rig.step_at(0);
        assert_eq!(rig.finish(op), Answer::Durable);
        let figures = cleaned(&mut rig);
        assert_eq!((figures.passed, figures.bytes), (1, 0), "{figures:?}");
        assert_eq!(rig.locate(1, 30_000), stood);
        assert_eq!(model.shards[&1].fate, end);
        let answer = rig.fetch(1);
        match end {
            Fate::Present => assert!(answer == Answer::Bytes(payload(1, 30_000))),
            _ => assert!(matches!(answer.error(), Some(EngineError::NotFound { .. }))),
        }
    }
}

/// A table for which there is never a buffer does not keep the cleaner from all else for ever.
#[test]
fn a_table_that_is_too_long_is_given_up() {
    let mut model = Model::default();
    let mut rig = Rig::idle(29);
    for number in 1..=600 {
        model.write(&mut rig, number, 0);
    }
    go(&mut rig, &mut model);
    for number in 1..=230 {
        model.delete(&mut rig, number);
    }
    go(&mut rig, &mut model);
    begin(&mut rig);
    rig.mem.left = 4096;
    for _ in 0..21_000 {
        rig.settle();
    }
    let figures = cleaned(&mut rig);
    assert_eq!((figures.begun, figures.passed), (1, 1), "{figures:?}");
    rig.mem.left = usize::MAX;
    crash_and_verify(&mut rig, &mut model, Crash::Power);
    go(&mut rig, &mut model);
    assert!(cleaned(&mut rig).extents > 0);
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}
