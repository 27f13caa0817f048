//! Extents that are used again, and the tombstones that must outlive what they kill.

use crate::model::{Fate, Model};
use crate::rig::{Answer, Crash, MIB, Rig};

const LEN: usize = 60_000;

/// Stores one shard; in which extent it came to stand.
fn store(rig: &mut Rig, model: &mut Model, number: u64) -> u64 {
    model.write(rig, number, LEN);
    rig.settle();
    model.hear(rig);
    assert_eq!(model.shards[&number].fate, Fate::Present);
    rig.locate(number, LEN) / MIB
}

fn delete_all(rig: &mut Rig, model: &mut Model, numbers: &[u64]) {
    for number in numbers {
        model.delete(rig, *number);
    }
    rig.settle();
    model.hear(rig);
    assert!(
        numbers
            .iter()
            .all(|number| model.shards[number].fate == Fate::Absent)
    );
}

/// Tombstones in a low extent for records in higher ones; closed in order and opened; then the
/// extent of the tombstones dies. It must not be used again before those of the records are.
#[test]
fn a_tombstone_survives_a_clean_restart_for_as_long_as_its_record() {
    for clean in [true, false] {
        let mut rig = Rig::new(8, 4096, true);
        let mut model = Model::default();
        rig.open();
        let mut next = 0;
        let mut places = std::collections::BTreeMap::<u64, Vec<u64>>::new();
        let mut fill = |rig: &mut Rig, model: &mut Model, until: &dyn Fn(u64) -> bool| {
            let mut here = Vec::new();
            for _ in 0..400 {
                next += 1;
                let extent = store(rig, model, next);
                here.push((next, extent));
                if until(extent) {
                    return here;
                }
            }
            panic!("that extent is never used");
        };
        for (number, extent) in fill(&mut rig, &mut model, &|extent| extent == 6) {
            places.entry(extent).or_default().push(number);
        }
        delete_all(&mut rig, &mut model, &places[&0]);
        let zero: Vec<u64> = fill(&mut rig, &mut model, &|extent| extent == 0)
            .into_iter()
            .filter_map(|(number, extent)| (extent == 0).then_some(number))
            .collect();
        let dead: Vec<u64> = (1..=5).flat_map(|extent| places[&extent].clone()).collect();
        delete_all(&mut rig, &mut model, &dead);
        if clean {
            assert_eq!(rig.shutdown(), Answer::ShutDown);
        } else {
            rig.crash(Crash::Power);
        }
        let opened = rig.open();
        assert_eq!(opened.report.clean, clean);
        // The extent of those tombstones gets full, and then all else in it dies, too.
        let mut zero = zero;
        for (number, extent) in fill(&mut rig, &mut model, &|extent| extent != 0) {
            if extent == 0 {
                zero.push(number);
            }
        }
        delete_all(&mut rig, &mut model, &zero);
        // More than an extent, less than all that is free below the highest of the dead ones.
        for _ in 0..2 {
            let at = rig.locate(next_number(&model), LEN) / MIB;
            fill(&mut rig, &mut model, &|extent| extent != at);
        }
        rig.crash(Crash::Power);
        let opened = rig.open();
        model.verify(&mut rig, &opened);
    }
}

fn next_number(model: &Model) -> u64 {
    *model.shards.keys().next_back().unwrap()
}

/// While the new header of an extent is in flight, what was in it may still be found after a crash: the
/// extent that holds the tombstones for that is not yet free for anybody.
#[test]
fn a_header_in_flight_frees_nothing() {
    let mut rig = Rig::new(10, 4096, true);
    let mut model = Model::default();
    rig.open();
    let mut next = 1;
    while store(&mut rig, &mut model, next) == 0 {
        next += 1;
    }
    // Everything in extent 0 dies by tombstones in extent 1, and so does all else in extent 1.
    let all: Vec<u64> = (1..=next).collect();
    delete_all(&mut rig, &mut model, &all);
    let header = rig
        .engine()
        .geometry()
        .extent_start(ashlar_layout::ids::ExtentNo(0));
    while rig.flying.is_empty() {
        next += 1;
        model.write(&mut rig, next, LEN);
        rig.settle_but(header);
        model.hear(&mut rig);
        if rig.flying.is_empty() {
            delete_all(&mut rig, &mut model, &[next]);
        }
    }
    // Extent 1 is sealed, and extent 0 about to be used again. The journal takes another one.
    let op = rig.append(1, 1..2, vec![7; 1000]);
    rig.settle_but(header);
    assert!(matches!(rig.answers.remove(&op), Some(Answer::Journal(_))));
    let lost = rig.die();
    assert_eq!(
        lost.len(),
        1,
        "the write with the header never reached the disk"
    );
    rig.disk.settle_loose(|_, _| 0);
    let opened = rig.open();
    assert_eq!((opened.report.shards, opened.journal.len()), (0, 1));
    for number in all {
        assert!(
            rig.fetch(number).error().is_some(),
            "shard {number} came back"
        );
    }
}

/// Turned over many times, the device neither fills up nor forgets.
#[test]
fn space_comes_back() {
    let mut rig = Rig::new(9, 4096, true);
    let mut model = Model::default();
    rig.open();
    for round in 0..400u64 {
        for i in 0..10 {
            model.write(&mut rig, round * 10 + i, 60_000);
        }
        rig.settle();
        model.hear(&mut rig);
        if round >= 10 {
            let old: Vec<u64> = (0..10).map(|i| (round - 10) * 10 + i).collect();
            delete_all(&mut rig, &mut model, &old);
        }
    }
    assert_eq!(model.full, 0, "250 MB went through 64 MB");
    rig.crash(Crash::Power);
    let opened = rig.open();
    model.verify(&mut rig, &opened);
    assert_eq!(opened.report.shards, 100);
    assert!(rig.engine().stats().extents_free > 40);
}
