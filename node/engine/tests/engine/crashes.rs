//! Every legal state after a power cut, for short histories.
//!
//! The history is run up to each of its completions; there power fails, and every subset of the sectors
//! that are loose survives (where there are few; a sample where there are many). Then the device is
//! opened, the opening itself is cut at each of its completions that follow the last read, and what is
//! there is held against the model.

use crate::disk::Rng;
use crate::model::Model;
use crate::rig::Rig;

/// Loose sectors up to which every subset is tried.
const EXHAUSTIVE: usize = 8;
/// Subsets that are tried where there are more.
const SAMPLES: u64 = 40;

/// Asks for things; between them calls what completes I/Os, which says whether to go on.
type History = fn(&mut Rig, &mut Model, &mut dyn FnMut(&mut Rig, &mut Model) -> bool);

struct Counts {
    states: u64,
    exhausted: u64,
    crashes_in_openings: u64,
}

/// Runs `history` until `cut` completions were seen; true if that was all of it.
fn run_to(cut: u64, seed: u64, history: History) -> (Rig, Model, bool) {
    let mut rig = Rig::new(seed, 512, true);
    let mut model = Model::default();
    rig.open();
    let mut left = cut;
    let mut whole = true;
    history(&mut rig, &mut model, &mut |rig, model| {
        rig.kick();
        loop {
            if left == 0 {
                whole = false;
                return false;
            }
            if !rig.step() {
                break;
            }
            left -= 1;
            model.hear(rig);
            rig.kick();
        }
        model.hear(rig);
        true
    });
    (rig, model, whole)
}

fn every_crash(history: History) -> Counts {
    let mut counts = Counts {
        states: 0,
        exhausted: 0,
        crashes_in_openings: 0,
    };
    for cut in 0.. {
        let (mut rig, model, whole) = run_to(cut, 42, history);
        let flying = rig.die();
        rig.disk.loosen(&flying);
        let loose = rig.disk.loose();
        let all = loose <= EXHAUSTIVE;
        let subsets = if all { 1 << loose } else { SAMPLES };
        counts.exhausted += u64::from(all && loose > 0);
        let mut rng = Rng(cut);
        let crashed = rig.disk.clone();
        for subset in 0..subsets {
            let bits = if all { subset } else { rng.next() };
            rig.disk = crashed.clone();
            rig.disk.settle_loose(|i, versions| {
                if bits >> (i % 64) & 1 == 1 {
                    versions - 1
                } else {
                    0
                }
            });
            // On some of them, power fails again while the device is opened.
            if subset % 7 == 3 {
                let at = rng.below(200);
                if rig.try_open(Some(at)).is_none() {
                    counts.crashes_in_openings += 1;
                }
                let flying = rig.die();
                rig.disk.loosen(&flying);
                rig.disk
                    .settle_loose(|_, versions| rng.below(versions as u64) as usize);
            }
            let mut seen = model.copy();
            let opened = rig.open();
            seen.verify(&mut rig, &opened);
            // What this recovery showed is what every later one shows.
            rig.settle();
            let flying = rig.die();
            rig.disk.loosen(&flying);
            rig.disk.settle_loose(|_, _| 0);
            let opened = rig.open();
            seen.verify(&mut rig, &opened);
            rig.die();
            counts.states += 1;
        }
        if whole {
            break;
        }
    }
    counts
}

#[test]
fn two_writes_a_delete_and_an_append() {
    let counts = every_crash(|rig, model, settle| {
        model.write(rig, 1, 200);
        if !settle(rig, model) {
            return;
        }
        model.write(rig, 2, 300);
        model.append(rig, 1, 2, 100);
        if !settle(rig, model) {
            return;
        }
        model.delete(rig, 1);
        model.append(rig, 1, 1, 600);
        settle(rig, model);
    });
    assert!(
        counts.states > 15 && counts.exhausted > 2,
        "{} {}",
        counts.states,
        counts.exhausted
    );
}

/// Appends of one partition that wait for each other, among those of another.
#[test]
fn appends_to_the_same_partitions() {
    let counts = every_crash(|rig, model, settle| {
        for round in 0..2 {
            for len in [100, 300, 900] {
                model.append(rig, 1, 2, len);
                rig.kick();
                model.append(rig, 2, 1, len / 2);
                rig.kick();
            }
            if round == 0 && !settle(rig, model) {
                return;
            }
        }
        settle(rig, model);
    });
    assert!(
        counts.states > 100 && counts.exhausted > 2,
        "{} {}",
        counts.states,
        counts.exhausted
    );
}

#[test]
fn batches_of_several_writes() {
    let counts = every_crash(|rig, model, settle| {
        model.write(rig, 1, 70_000);
        model.write(rig, 2, 100);
        if !settle(rig, model) {
            return;
        }
        model.write(rig, 3, 70_000);
        model.delete(rig, 1);
        model.write(rig, 4, 10);
        settle(rig, model);
    });
    assert!(counts.states > 200 && counts.crashes_in_openings > 10);
}
