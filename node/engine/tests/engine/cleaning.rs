//! Cleaning: what is dead makes room, what is live stays, and what is deleted does not come back.

use std::collections::BTreeSet;

use ashlar_layout::ids::ExtentNo;
use ashlar_node_engine::clean::WRITE_AMPLIFICATION_MAX;
use ashlar_node_engine::error::{EngineError, FindingKind};

use crate::disk::Rng;
use crate::model::{Fate, Model, crash_and_verify, go, present};
use crate::rig::{Answer, Crash, Flying, MIB, Rig, payload, shard};

const LEN: usize = 60_000;

/// Writes shards until the device is full; the number of the next one.
fn fill(rig: &mut Rig, model: &mut Model, mut next: u64) -> u64 {
    let full = model.full;
    while model.full == full {
        model.write(rig, next, LEN);
        go(rig, model);
        next += 1;
    }
    next
}

/// Deletes each with a chance of `percent`.
fn thin_out(rig: &mut Rig, model: &mut Model, rng: &mut Rng, percent: u64) -> u64 {
    let present: Vec<u64> = present(model);
    let mut deleted = 0;
    for number in present {
        if rng.chance(percent) {
            model.delete(rig, number);
            go(rig, model);
            deleted += 1;
        }
    }
    deleted
}

/// The extent in which a shard stands last.
fn extent_of(rig: &Rig, number: u64, len: usize) -> u32 {
    (rig.locate(number, len) / MIB) as u32
}

fn cleaned(rig: &mut Rig) -> ashlar_node_engine::clean::Cleaned {
    rig.engine().stats().cleaned
}

/// Filled to the brim, thinned out by half, and filled again: as often as it is asked.
#[test]
fn what_is_deleted_at_random_makes_room() {
    let refilled = |clean: bool| {
        let mut rig = Rig::new(3, 4096, true);
        rig.clean_from = (!clean).then_some(0);
        rig.open();
        let mut model = Model::default();
        let mut rng = Rng(5);
        let mut next = fill(&mut rig, &mut model, 1);
        let first = next - 2;
        let mut shares = Vec::new();
        for _ in 0..2 {
            let deleted = thin_out(&mut rig, &mut model, &mut rng, 50);
            let from = next;
            next = fill(&mut rig, &mut model, from);
            shares.push((next - 1 - from) * 100 / deleted);
        }
        let stats = rig.engine().stats();
        assert!(
            !clean || stats.extents_free + 1 >= stats.extents_reserved,
            "{stats:?}"
        );
        let figures = stats.cleaned;
        crash_and_verify(&mut rig, &mut model, Crash::Power);
        (first, shares, figures)
    };
    let (first, without, none) = refilled(false);
    assert!(first > 700 && none.extents == 0, "{first} {none:?}");
    assert!(without.iter().all(|share| *share < 10), "{without:?}");
    let (_, with, figures) = refilled(true);
    assert!(with.iter().all(|share| *share > 80), "{with:?}");
    let percent = figures.write_amplification_percent();
    assert!(
        percent > 110 && percent <= 100 * WRITE_AMPLIFICATION_MAX,
        "{percent} {figures:?}"
    );
}

/// Overwritten at random while it is almost full, it goes on, within its bound, and takes nothing that is kept for
/// others.
#[test]
fn overwritten_at_random_it_goes_on_within_its_bound() {
    for percent in [50, 70, 80] {
        let mut rig = Rig::new(7, 4096, true);
        let mut model = Model::default();
        let mut rng = Rng(percent);
        rig.open();
        // Fifteen fit into an extent.
        let extents = 64 - u64::from(rig.engine().stats().extents_reserved);
        let count = extents * 15 * percent / 100;
        let mut live: Vec<u64> = (1..=count).collect();
        for number in &live {
            model.write(&mut rig, *number, LEN);
            go(&mut rig, &mut model);
        }
        let reserve = rig.engine().stats().extents_reserved;
        for next in count + 1..=count * 3 {
            model.write(&mut rig, next, LEN);
            let at = rng.below(live.len() as u64) as usize;
            model.delete(&mut rig, std::mem::replace(&mut live[at], next));
            go(&mut rig, &mut model);
            assert!(rig.engine().stats().extents_free + 1 >= reserve);
        }
        assert_eq!(model.full, 0, "at {percent} % live");
        let figures = cleaned(&mut rig);
        let written = figures.write_amplification_percent();
        println!("{percent} % live: {written} % written, {figures:?}");
        assert!(figures.extents > count / 16, "{figures:?}");
        assert!(
            figures.bytes <= figures.appended * (WRITE_AMPLIFICATION_MAX - 1),
            "{figures:?}"
        );
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
}

/// One live shard, 1, among dead ones in a sealed extent, and the copying about to begin.
fn one_to_copy(model: &mut Model) -> Rig {
    let mut rig = Rig::idle(11);
    model.write(&mut rig, 1, 30_000);
    for number in 2..=4 {
        model.write(&mut rig, number, 250_000);
    }
    go(&mut rig, model);
    for number in 2..=4 {
        model.delete(&mut rig, number);
    }
    go(&mut rig, model);
    // The next extent: the first one is sealed.
    model.write(&mut rig, 5, 300_000);
    go(&mut rig, model);
    assert_eq!(extent_of(&rig, 1, 30_000), 0);
    assert_eq!(extent_of(&rig, 5, 300_000), 1);
    rig.clean_from = Some(u32::MAX);
    rig.engine().clean_from(Some(u32::MAX));
    rig
}

/// Goes on until the copy of shard 1 is being written; where that is in flight.
fn until_copying(rig: &mut Rig) -> usize {
    let head = payload(1, 30_000)[..512].to_vec();
    loop {
        rig.kick();
        let copy = rig.flying.iter().position(
            |flying| matches!(flying, Flying::Write { buf, .. } if buf.windows(512).any(|at| at == head)),
        );
        if let Some(copy) = copy {
            return copy;
        }
        assert!(rig.step(), "it is never copied");
    }
}

/// The index points to the original until the copy is durable.
#[test]
fn a_shard_is_read_while_it_is_copied() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    until_copying(&mut rig);
    let op = rig.read(shard(1), 0, u32::MAX);
    rig.step_at(rig.flying.len() - 1);
    assert!(rig.answers.remove(&op) == Some(Answer::Bytes(payload(1, 30_000))));
    go(&mut rig, &mut model);
    assert_eq!(cleaned(&mut rig).extents, 1);
}

#[test]
fn a_shard_that_is_deleted_while_it_is_copied_stays_deleted() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    until_copying(&mut rig);
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    assert_eq!(model.shards[&1].fate, Fate::Absent);
    assert_eq!(cleaned(&mut rig).records, 1, "it was on its way");
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

#[test]
fn a_shard_that_is_being_deleted_is_not_copied() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    // The read before the delete, and the cleaner's reads, in each order.
    for seed in 0..20 {
        let mut model = Model::default();
        let mut rig = one_to_copy(&mut model);
        rig.rng = Rng(seed);
        for _ in 0..seed % 4 {
            rig.kick();
            rig.step();
        }
        model.delete(&mut rig, 1);
        go(&mut rig, &mut model);
        assert_eq!(model.shards[&1].fate, Fate::Absent);
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
    go(&mut rig, &mut model);
    assert_eq!(cleaned(&mut rig).extents, 1);
}

/// A record that could not be read when its shard was deleted stays in the index, and can be read when its extent is
/// cleaned: a copy of it would be younger than the tombstone.
#[test]
fn a_shard_that_was_deleted_unread_is_not_copied() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    rig.engine().clean_from(Some(0));
    let head = rig.locate(1, 30_000) - 4096;
    rig.disk.bad.insert(head / 512);
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    assert_eq!(model.shards[&1].fate, Fate::Absent);
    assert_eq!(
        rig.engine().stats().shards_live,
        2,
        "the index still has it"
    );
    rig.disk.bad.clear();
    rig.engine().clean_from(Some(u32::MAX));
    go(&mut rig, &mut model);
    let figures = cleaned(&mut rig);
    assert_eq!((figures.records, figures.passed), (0, 1), "{figures:?}");
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

/// Written again while it is copied: acknowledged when the copy is durable, not before.
#[test]
fn a_shard_that_is_written_again_while_it_is_copied_is_written_once() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    let copy = until_copying(&mut rig);
    let op = rig.write_shard(shard(1), &payload(1, 30_000));
    let other = rig.write_shard(shard(1), &payload(9, 30_000));
    assert!(matches!(
        rig.answers.remove(&other).unwrap().error(),
        Some(EngineError::Exists { .. })
    ));
    rig.kick();
    assert!(!rig.answers.contains_key(&op));
    assert!(matches!(rig.flying[copy], Flying::Write { .. }));
    assert_eq!(rig.finish(op), Answer::Durable);
    assert_eq!(rig.engine().stats().shards_live, 2);
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

/// A read that began on the old address ends well, whatever has become of that.
#[test]
fn readers_of_the_old_address_are_not_hurt() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    let op = rig.read(shard(1), 0, u32::MAX);
    let old = rig.locate(1, 30_000);
    let mut reader = rig.flying.pop().unwrap();
    assert!(matches!(reader, Flying::Read { offset, .. } if offset < old && offset + MIB > old));
    go(&mut rig, &mut model);
    assert_eq!(cleaned(&mut rig).extents, 1);
    assert_ne!(extent_of(&rig, 1, 30_000), 0);
    // The extent is opened again, and something else stands there now.
    for number in 10..20 {
        model.write(&mut rig, number, 250_000);
        go(&mut rig, &mut model);
    }
    assert!((10..20).any(|number| extent_of(&rig, number, 250_000) == 0));
    rig.flying.push(reader);
    assert!(rig.finish(op) == Answer::Bytes(payload(1, 30_000)));
    // And one of a shard that was deleted meanwhile.
    let gone = rig.read(shard(1), 0, u32::MAX);
    reader = rig.flying.pop().unwrap();
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    rig.flying.push(reader);
    let answer = rig.finish(gone);
    assert!(
        matches!(answer, Answer::Bytes(_))
            || matches!(answer.error(), Some(EngineError::NotFound { .. }))
    );
    assert!(rig.findings.is_empty(), "{:?}", rig.findings);
}

/// A rotten record is neither copied nor let go of; its extent is passed over, others are cleaned; when it has been
/// mended its extent is cleaned as well.
#[test]
fn a_rotten_record_keeps_its_extent_until_it_is_mended() {
    for unreadable in [false, true] {
        let mut rig = Rig::idle(13);
        let mut model = Model::default();
        for number in 1..=60 {
            model.write(&mut rig, number, LEN);
            go(&mut rig, &mut model);
        }
        let rotten = 5;
        let place = extent_of(&rig, rotten, LEN);
        let at = rig.locate(rotten, LEN) + 30_000;
        for number in (1..=60).filter(|number| number % 3 != 2) {
            model.delete(&mut rig, number);
        }
        go(&mut rig, &mut model);
        if unreadable {
            rig.disk.bad.insert(at / 512);
        } else {
            rig.disk.rot(at, &[0xee; 8]);
        }
        rig.clean_from = Some(u32::MAX);
        rig.engine().clean_from(Some(u32::MAX));
        rig.settle();
        let figures = cleaned(&mut rig);
        assert!(figures.extents >= 1 && figures.passed >= 1, "{figures:?}");
        let kind = if unreadable {
            FindingKind::Unreadable
        } else {
            FindingKind::RecordPayload
        };
        let told: Vec<_> = rig
            .findings
            .drain(..)
            .map(|finding| (finding.kind, finding.shard))
            .collect();
        assert_eq!(told, [(kind, Some(shard(rotten)))]);
        assert_eq!(
            extent_of(&rig, rotten, LEN),
            place,
            "it stands where it stood"
        );
        assert!(!matches!(rig.fetch(rotten), Answer::Bytes(_)));
        let all_others = |rig: &mut Rig| {
            for number in (1..=60).filter(|number| number % 3 == 2 && *number != rotten) {
                assert!(
                    rig.fetch(number) == Answer::Bytes(payload(number, LEN)),
                    "{number}"
                );
            }
        };
        all_others(&mut rig);
        // Nor does a restart make it good, or absent.
        rig.settle();
        rig.crash(Crash::Power);
        rig.open();
        rig.settle();
        assert!(!matches!(rig.fetch(rotten), Answer::Bytes(_)));
        all_others(&mut rig);
        let before = cleaned(&mut rig);
        rig.store(rotten, LEN);
        assert!(rig.fetch(rotten) == Answer::Bytes(payload(rotten, LEN)));
        rig.settle();
        let after = cleaned(&mut rig);
        assert!(
            after.extents > before.extents,
            "it is cleaned now: {before:?} {after:?}"
        );
        assert!(after.passed <= before.passed, "{before:?} {after:?}");
        all_others(&mut rig);
        assert_eq!(rig.engine().stats().shards_live, 20);
        assert!(rig.fetch(rotten) == Answer::Bytes(payload(rotten, LEN)));
        rig.crash(Crash::Power);
        rig.open();
        assert!(rig.fetch(rotten) == Answer::Bytes(payload(rotten, LEN)));
        all_others(&mut rig);
    }
}

/// Tombstones that still keep something dead go with the live records; those that do not vanish.
#[test]
fn tombstones_are_carried_as_long_as_they_are_needed() {
    let mut rig = Rig::idle(17);
    let mut model = Model::default();
    // Cold: all live but one, which is killed from the next extent.
    for number in 1..=16 {
        model.write(&mut rig, number, LEN);
        go(&mut rig, &mut model);
    }
    let cold = extent_of(&rig, 2, LEN);
    for number in 17..=18 {
        model.write(&mut rig, number, LEN);
        go(&mut rig, &mut model);
    }
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    for number in 19..=40 {
        model.write(&mut rig, number, LEN);
        go(&mut rig, &mut model);
    }
    let killer = extent_of(&rig, 18, LEN);
    assert_ne!(killer, cold);
    // Most of that extent dies, and it is cleaned.
    let doomed: Vec<u64> = (19..=30)
        .filter(|number| extent_of(&rig, *number, LEN) == killer)
        .collect();
    assert!(doomed.len() > 8);
    for number in doomed {
        model.delete(&mut rig, number);
    }
    go(&mut rig, &mut model);
    rig.engine().clean_from(Some(u32::MAX));
    go(&mut rig, &mut model);
    let figures = cleaned(&mut rig);
    assert_eq!((figures.extents, figures.tombstones), (1, 1), "{figures:?}");
    assert_ne!(extent_of(&rig, 18, LEN), killer);
    crash_and_verify(&mut rig, &mut model, Crash::Power);
    // Its extent is used again: nothing of the first tombstone is left.
    rig.engine().clean_from(Some(0));
    for number in 50..=80 {
        model.write(&mut rig, number, LEN);
        go(&mut rig, &mut model);
    }
    assert!((50..=80).any(|number| extent_of(&rig, number, LEN) == killer));
    crash_and_verify(&mut rig, &mut model, Crash::Power);
    // The cold extent dies and is written over: the tombstone is of no more use, and its extent comes to be free.
    for number in present(&model) {
        model.delete(&mut rig, number);
        go(&mut rig, &mut model);
    }
    let mut rng = Rng(1);
    for round in 0..6 {
        for number in 0..100 {
            model.write(&mut rig, 1000 + round * 100 + number, LEN);
            go(&mut rig, &mut model);
        }
        thin_out(&mut rig, &mut model, &mut rng, 100);
    }
    crash_and_verify(&mut rig, &mut model, Crash::Power);
    assert!(
        rig.engine().stats().extents_data <= 4,
        "{:?}",
        rig.engine().stats()
    );
}

/// What a crash has left standing twice is one shard, and stands once when it was cleaned again.
#[test]
fn what_stands_twice_after_a_crash_is_one_shard() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    let header = rig.engine().geometry().extent_start(ExtentNo(0));
    // The copy is durable, and the header that ends the extent's life never arrives.
    rig.settle_but(header);
    assert_eq!(cleaned(&mut rig).records, 1);
    rig.die();
    rig.disk.settle_loose(|_, _| 0);
    let opened = rig.open();
    assert_eq!(opened.report.shards, 2);
    model.verify(&mut rig, &opened);
    go(&mut rig, &mut model);
    let figures = cleaned(&mut rig);
    assert_eq!(
        (figures.extents, figures.records),
        (1, 0),
        "it was copied already: {figures:?}"
    );
    crash_and_verify(&mut rig, &mut model, Crash::Power);
    // Once more, and deleted while there are two.
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    rig.settle_but(header);
    rig.die();
    rig.disk.settle_loose(|_, _| 0);
    rig.clean_from = Some(0);
    let opened = rig.open();
    model.verify(&mut rig, &opened);
    model.delete(&mut rig, 1);
    go(&mut rig, &mut model);
    for _ in 0..3 {
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
    assert_eq!(model.shards[&1].fate, Fate::Absent);
}

/// An extent that was cleaned is free after a crash, without a search, and what was appended to goes on.
#[test]
fn a_cleaned_extent_is_free_after_a_crash() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    go(&mut rig, &mut model);
    let free = rig.engine().stats().extents_free;
    for clean in [false, true] {
        if clean {
            assert_eq!(rig.shutdown(), Answer::ShutDown);
        } else {
            rig.crash(Crash::Power);
        }
        let opened = rig.open();
        model.verify(&mut rig, &opened);
        assert!(opened.report.extents_scanned <= 5, "{:?}", opened.report);
        let stats = rig.engine().stats();
        assert!(stats.extents_free >= free - 1, "{stats:?}");
        assert_eq!(stats.extents_data, 1, "the one that is appended to");
    }
}

/// The cleaner's figures, and the order of who opens an extent: a full device cleans, deletes, and takes no shard.
#[test]
fn shards_do_not_take_what_was_opened_for_others() {
    let mut rig = Rig::idle(23);
    let mut model = Model::default();
    let next = fill(&mut rig, &mut model, 1);
    let reserve = rig.engine().stats().extents_reserved;
    // A tombstone opens an extent of what is kept; shards would fit there, and are refused.
    let mut opened = BTreeSet::new();
    for number in 1..=40 {
        model.delete(&mut rig, number * 19);
        go(&mut rig, &mut model);
        let full = model.full;
        model.write(&mut rig, next + number, LEN);
        go(&mut rig, &mut model);
        let free = rig.engine().stats().extents_free;
        if free < reserve {
            assert_eq!(model.full, full + 1, "{free} of {reserve}");
        }
        opened.insert(free);
    }
    assert!(opened.len() <= 3, "{opened:?}");
    assert!(
        opened.first().is_some_and(|free| free + 1 >= reserve),
        "{opened:?}"
    );
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

/// While others wait no more is copied than they append, and little at once.
#[test]
fn cleaning_is_paced_by_what_others_append() {
    let mut rig = Rig::idle(29);
    let mut model = Model::default();
    for number in 1..=300 {
        model.write(&mut rig, number, LEN);
        go(&mut rig, &mut model);
    }
    let mut rng = Rng(2);
    thin_out(&mut rig, &mut model, &mut rng, 50);
    rig.engine().clean_from(Some(u32::MAX));
    let before = cleaned(&mut rig);
    // A read that never ends: somebody waits all the time.
    let live = present(&model)[0];
    model.read(&mut rig, live, 0, u32::MAX);
    let held = rig.flying.len() - 1;
    let held = rig.flying.remove(held);
    go(&mut rig, &mut model);
    let allowed = cleaned(&mut rig);
    // What was appended before allows the length of two of the largest records.
    assert!(allowed.bytes - before.bytes < 10 * MIB, "{allowed:?}");
    let read_bytes = |rig: &Rig| -> u64 {
        rig.flying
            .iter()
            .map(|flying| match flying {
                Flying::Read { len, .. } => *len as u64,
                _ => 0,
            })
            .sum()
    };
    for number in 1000..1100 {
        model.write(&mut rig, number, LEN);
        rig.kick();
        assert!(read_bytes(&rig) <= MIB / 4 + 65_536, "{}", read_bytes(&rig));
        go(&mut rig, &mut model);
    }
    rig.flying.push(held);
    go(&mut rig, &mut model);
    let after = cleaned(&mut rig);
    assert!(after.extents > 5, "{after:?}");
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

/// Without buffers it waits, and with them goes on.
#[test]
fn without_buffers_the_cleaner_waits() {
    let mut model = Model::default();
    let mut rig = one_to_copy(&mut model);
    rig.mem.left = 0;
    rig.settle();
    assert_eq!(cleaned(&mut rig).extents, 0);
    for left in [4096, 8192, 20_000, 40_000, usize::MAX] {
        rig.mem.left = left;
        rig.settle();
    }
    assert_eq!(cleaned(&mut rig).extents, 1);
    crash_and_verify(&mut rig, &mut model, Crash::Power);
}

/// A failed write of the cleaner's fences the device as any other; nothing is lost of it.
#[test]
fn a_failed_write_of_the_cleaners_loses_nothing() {
    for fail in 0..4 {
        let mut model = Model::default();
        let mut rig = one_to_copy(&mut model);
        rig.disk.forgetful = true;
        rig.fail_in = Some(fail);
        go(&mut rig, &mut model);
        if rig.fenced.is_none() {
            assert!(fail > 2, "{fail}");
            break;
        }
        rig.die();
        rig.fail_in = None;
        let opened = rig.open();
        model.verify(&mut rig, &opened);
        go(&mut rig, &mut model);
        crash_and_verify(&mut rig, &mut model, Crash::Power);
    }
}
