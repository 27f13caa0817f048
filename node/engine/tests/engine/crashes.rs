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
    overtaken: u64,
    trimmed: u64,
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
        while !rig.flying.is_empty() {
            // With what has just gone out still in flight.
            if left == 0 {
                whole = false;
                return false;
            }
            rig.step();
            left -= 1;
            model.hear(rig);
            rig.kick();
        }
        model.hear(rig);
        true
    });
    (rig, model, whole)
}

/// What is free is used, and then power fails once more.
fn go_on(rig: &mut Rig, model: &mut Model, rng: &mut Rng) {
    model.speak_all(rig);
    let partitions: Vec<u32> = model.replicas.of.keys().copied().collect();
    for number in 900..903 {
        model.write(rig, number, 300_000);
        let partition = partitions[rng.below(partitions.len() as u64) as usize];
        model.write_chunk(rig, partition, 60);
    }
    rig.settle();
    model.hear(rig);
    let flying = rig.die();
    rig.disk.loosen(&flying);
    rig.disk
        .settle_loose(|_, versions| rng.below(versions as u64) as usize);
    let opened = rig.open();
    model.verify(rig, &opened);
    model.verify_nothing_held(rig);
}

fn every_crash(history: History) -> Counts {
    let mut counts = Counts {
        states: 0,
        exhausted: 0,
        crashes_in_openings: 0,
        overtaken: 0,
        trimmed: 0,
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
            if !seen.replicas.of.is_empty() && subset % 3 == 1 {
                go_on(&mut rig, &mut seen, &mut rng);
            }
            rig.die();
            counts.states += 1;
            counts.overtaken += seen.replicas.overtaken;
            counts.trimmed += seen.replicas.trimmed;
        }
        if whole {
            break;
        }
    }
    // `cargo xtask doubt` adds these up.
    println!("doubt: {} crash images", counts.states);
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

/// A root with what it names, and the next one.
#[test]
fn chunks_a_sync_and_a_root() {
    let counts = every_crash(|rig, model, settle| {
        let mut rng = Rng(5);
        model.write_chunk(rig, 1, 1);
        model.write_chunk(rig, 1, 2);
        model.write_chunk(rig, 2, 1);
        if !settle(rig, model) {
            return;
        }
        model.sync(rig, 1);
        if !settle(rig, model) {
            return;
        }
        model.write_root(rig, 1, &mut rng, 100);
        model.write_chunk(rig, 2, 1);
        model.sync(rig, 2);
        if !settle(rig, model) {
            return;
        }
        model.sync(rig, 2);
        if !settle(rig, model) {
            return;
        }
        model.write_root(rig, 2, &mut rng, 100);
        if !settle(rig, model) {
            return;
        }
        model.append(rig, 1, 1, 100);
        model.write_root(rig, 1, &mut rng, 50);
        model.write_root(rig, 2, &mut rng, 50);
        model.write(rig, 1, 100);
        settle(rig, model);
    });
    assert!(
        counts.states > 200 && counts.exhausted > 0 && counts.overtaken > 5,
        "{} {} {}",
        counts.states,
        counts.exhausted,
        counts.overtaken
    );
}

/// Fills two extents of the journal and trims them, by a root or two.
fn trimmed(
    rig: &mut Rig,
    model: &mut Model,
    settle: &mut dyn FnMut(&mut Rig, &mut Model) -> bool,
) -> bool {
    let mut rng = Rng(7);
    for round in 0..4 {
        for partition in [1, 2] {
            for _ in 0..2 {
                model.append(rig, partition, 1, 190_000);
            }
        }
        if !settle(rig, model) {
            return false;
        }
        if round > 0 {
            for partition in [1, 2] {
                model.write_root(rig, partition, &mut rng, 100);
            }
            if !settle(rig, model) {
                return false;
            }
        }
    }
    true
}

/// Extents of the journal that become others' while power fails.
#[test]
fn trimmed_extents_are_used_again() {
    let counts = every_crash(|rig, model, settle| {
        if !trimmed(rig, model, settle) {
            return;
        }
        let journals = rig.engine().stats().extents_journal;
        assert!(journals <= 3, "{journals} extents hold what is trimmed");
        model.write(rig, 1, 190_000);
        model.write_chunk(rig, 3, 30);
        model.append(rig, 1, 1, 190_000);
        if !settle(rig, model) {
            return;
        }
        model.write(rig, 2, 700_000);
        model.append(rig, 2, 2, 190_000);
        model.write_chunk(rig, 3, 220);
        settle(rig, model);
    });
    assert!(
        counts.states > 900 && counts.trimmed > 1000,
        "{} {}",
        counts.states,
        counts.trimmed
    );
}

/// Extents of the index that nobody holds any more, and become others' while power fails.
#[test]
fn extents_of_the_index_are_used_again() {
    let counts = every_crash(|rig, model, settle| {
        let mut rng = Rng(9);
        for round in 0..4 {
            for partition in [1, 2] {
                model.write_chunk(rig, partition, 110);
            }
            if !settle(rig, model) {
                return;
            }
            for partition in [1, 2] {
                model.sync(rig, partition);
            }
            if !settle(rig, model) {
                return;
            }
            for partition in [1, 2] {
                model.write_root(rig, partition, &mut rng, 0);
            }
            if round == 3 {
                model.write(rig, 1, 100_000);
            }
            if !settle(rig, model) {
                return;
            }
        }
        let indexes = rig.engine().stats().extents_index;
        assert!(
            indexes <= 3,
            "{indexes} extents hold two chunks and two roots"
        );
        model.write(rig, 2, 900_000);
        model.append(rig, 1, 1, 190_000);
        settle(rig, model);
    });
    assert!(
        counts.states > 800 && counts.overtaken > 10,
        "{} {}",
        counts.states,
        counts.overtaken
    );
}

/// From here on the device cleans whatever is worth it.
fn clean(rig: &mut Rig) {
    rig.clean_from = Some(u32::MAX);
    rig.engine().clean_from(Some(u32::MAX));
}

/// One record is copied out of an extent of dead ones, deleted behind the copy, and the extent used again.
#[test]
fn an_extent_is_cleaned() {
    let counts = every_crash(|rig, model, settle| {
        model.write(rig, 1, 1000);
        model.write(rig, 2, 500_000);
        model.write(rig, 3, 400_000);
        rig.settle();
        for number in [2, 3] {
            model.delete(rig, number);
        }
        model.write(rig, 4, 200_000);
        rig.settle();
        model.hear(rig);
        clean(rig);
        if !settle(rig, model) {
            return;
        }
        let cleaned = rig.engine().stats().cleaned;
        assert_eq!((cleaned.extents, cleaned.records), (1, 1));
        model.write(rig, 5, 2000);
        model.delete(rig, 1);
        if !settle(rig, model) {
            return;
        }
        model.write(rig, 6, 900_000);
        settle(rig, model);
    });
    assert!(
        counts.states > 150 && counts.exhausted > 3,
        "{} {}",
        counts.states,
        counts.exhausted
    );
}

/// An extent whose tombstones are still needed, and then that of which they are; deleted and written meanwhile.
#[test]
fn tombstones_are_carried() {
    let counts = every_crash(|rig, model, settle| {
        for number in 1..=3 {
            model.write(rig, number, 300_000);
        }
        rig.settle();
        model.write(rig, 4, 1000);
        model.write(rig, 5, 600_000);
        rig.settle();
        for number in [1, 5] {
            model.delete(rig, number);
        }
        rig.settle();
        model.write(rig, 6, 500_000);
        rig.settle();
        model.hear(rig);
        clean(rig);
        rig.kick();
        if rig.step() {
            rig.kick();
            rig.step();
        }
        model.write(rig, 7, 100);
        model.delete(rig, 2);
        if !settle(rig, model) {
            return;
        }
        let cleaned = rig.engine().stats().cleaned;
        assert!(
            cleaned.extents >= 2 && cleaned.tombstones >= 1,
            "{cleaned:?}"
        );
        model.delete(rig, 4);
        model.write(rig, 8, 700_000);
        settle(rig, model);
    });
    assert!(
        counts.states > 300 && counts.exhausted > 1,
        "{} {}",
        counts.states,
        counts.exhausted
    );
}
