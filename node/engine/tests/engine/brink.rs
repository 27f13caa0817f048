//! A device on which almost nothing is free: deletes go on, and what they leave makes room again.

use ashlar_node_engine::error::EngineError;

use crate::disk::Rng;
use crate::model::{Fate, Model, crash_and_verify, go, present};
use crate::rig::{Answer, Crash, Rig};

fn opened(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, 4096, true);
    rig.open();
    rig
}

/// Writes shards of so many bytes until the device takes no more.
fn fill(rig: &mut Rig, model: &mut Model, len: usize) {
    let mut next = 1;
    let full = model.full;
    while model.full == full {
        for number in next..next + 50 {
            model.write(rig, number, len);
        }
        next += 50;
        go(rig, model);
    }
}

/// Deletes all of these at once: every one is looked at before the first tombstone goes out.
fn burst(rig: &mut Rig, model: &mut Model, numbers: &[u64]) {
    for some in numbers.chunks(4000) {
        for number in some {
            model.delete(rig, *number);
        }
        while rig.step() {}
        rig.kick();
    }
}

fn some_crash(rng: &mut Rng) -> Crash {
    match rng.chance(70) {
        true => Crash::Power,
        false => Crash::Kill,
    }
}

fn free(rig: &mut Rig) -> u32 {
    rig.engine().room().free
}

/// Has what is left of these deleted, by those who ask again; in how many rounds.
fn insist(rig: &mut Rig, model: &mut Model, doomed: &[u64]) -> u32 {
    for round in 0.. {
        go(rig, model);
        let left: Vec<u64> = doomed
            .iter()
            .copied()
            .filter(|number| model.shards[number].fate == Fate::Present)
            .collect();
        if left.is_empty() {
            return round;
        }
        assert!(
            round < 500,
            "{} are never deleted: {:?}",
            left.len(),
            rig.engine().stats()
        );
        burst(rig, model, &left);
    }
    0
}

/// Writes are taken again, to the number of extents that are worth it.
fn takes_writes(rig: &mut Rig, model: &mut Model) {
    go(rig, model);
    let full = model.full;
    for number in 1_000_000..1_000_020 {
        model.write(rig, number, 40_000);
        go(rig, model);
    }
    assert_eq!(model.full, full, "{:?}", rig.engine().stats());
    crash_and_verify(rig, model, Crash::Power);
}

/// One of so many, chosen by chance.
fn some(rng: &mut Rng, numbers: &[u64], percent: u64) -> Vec<u64> {
    let mut chosen = numbers.to_vec();
    chosen.retain(|_| rng.chance(percent));
    chosen
}

/// Tombstones as long as the records that they kill take whatever is free; and then there is room again.
#[test]
fn a_burst_of_deletes_on_a_full_device_ends_in_room() {
    for (len, percent, seed) in [(0, 50, 1), (0, 100, 2), (1, 40, 3), (9000, 60, 4)] {
        let mut rig = opened(seed);
        let mut model = Model::default();
        let mut rng = Rng(seed);
        fill(&mut rig, &mut model, len);
        let doomed = some(&mut rng, &present(&model), percent);
        burst(&mut rig, &mut model, &doomed);
        insist(&mut rig, &mut model, &doomed);
        takes_writes(&mut rig, &mut model);
    }
}

/// The same, and power goes while an extent is copied to one of the last.
#[test]
fn a_restart_at_the_brink_changes_nothing() {
    let mut at_the_brink = 0;
    for seed in 0..3 {
        let mut rig = opened(seed);
        let mut model = Model::default();
        let mut rng = Rng(seed);
        fill(&mut rig, &mut model, 0);
        let mut doomed = Vec::new();
        for _ in 0..4 {
            let more = some(&mut rng, &present(&model), 18);
            burst(&mut rig, &mut model, &more);
            doomed.extend(more);
            while free(&mut rig) > 1 && rig.step() {
                rig.kick();
            }
            for _ in 0..rng.below(60) {
                rig.step();
                rig.kick();
            }
            at_the_brink += u32::from(free(&mut rig) <= 1);
            model.hear(&mut rig);
            crash_and_verify(&mut rig, &mut model, some_crash(&mut rng));
        }
        insist(&mut rig, &mut model, &doomed);
        takes_writes(&mut rig, &mut model);
    }
    assert!(at_the_brink >= 4, "{at_the_brink}");
}

/// Chunks of an index take what is free down to their share. What is deleted then makes room for them.
#[test]
fn an_index_that_grows_on_a_full_device_is_given_room() {
    for percent in [10, 30, 60] {
        let mut rig = opened(9);
        let mut model = Model::default();
        let mut rng = Rng(percent);
        fill(&mut rig, &mut model, 1);
        let mut chunks = 0;
        let chunk = |rig: &mut Rig| {
            let op = rig.write_index(1, vec![7; 500 * 1024]);
            match rig.finish(op) {
                Answer::Index(_) => true,
                Answer::Failed(EngineError::DeviceFull { .. }) => false,
                other => panic!("{other:?}"),
            }
        };
        while chunk(&mut rig) {
            chunks += 1;
        }
        assert!(chunks > 0 && free(&mut rig) <= 2, "{chunks}");
        let doomed = some(&mut rng, &present(&model), percent);
        burst(&mut rig, &mut model, &doomed);
        insist(&mut rig, &mut model, &doomed);
        assert!(chunk(&mut rig), "{:?}", rig.engine().stats());
        crash_and_verify(&mut rig, &mut model, Crash::Power);
        if percent > 20 {
            takes_writes(&mut rig, &mut model);
        }
    }
}

/// A history at the brink: filled with shards of some lengths, chunks and roots, then bursts of deletes, writes, and
/// crashes anywhere. In the end all that was to be deleted is, and what that leaves can be written to.
fn history(seed: u64) -> Reached {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9));
    let mut rig = opened(seed);
    let mut model = Model::default();
    let mut reached = Reached::default();
    let lens: &[usize] = [
        &[0][..],
        &[0, 1, 9000],
        &[9000, 60_000],
        &[20_000, 200_000],
        &[1, 400_000],
    ][rng.below(5) as usize];
    let mut next = 1;
    let full = model.full;
    while model.full == full {
        for number in next..next + 20 {
            model.write(
                &mut rig,
                number,
                lens[rng.below(lens.len() as u64) as usize],
            );
        }
        next += 20;
        go(&mut rig, &mut model);
    }
    for _ in 0..rng.below(12) {
        let grains = 1 + rng.below(150) as usize;
        let op = rig.write_index(1, vec![7; grains * 4096]);
        rig.finish(op);
    }
    let total = present(&model).len() as u64;
    let percent = [5, 15, 30][rng.below(3) as usize];
    let mut doomed = Vec::new();
    for _ in 0..2 + rng.below(5) {
        let more = some(&mut rng, &present(&model), percent);
        burst(&mut rig, &mut model, &more);
        doomed.extend(more);
        let until = rng.below(3) as u32;
        for _ in 0..rng.below(4000) {
            if free(&mut rig) <= until || !rig.step() {
                break;
            }
            rig.kick();
        }
        for _ in 0..rng.below(100) {
            rig.step();
            if rng.chance(70) {
                rig.kick();
            }
        }
        reached.least = reached.least.min(free(&mut rig));
        if rng.chance(40) {
            let at = next;
            next += 5;
            for number in at..next {
                model.write(&mut rig, number, lens[0]);
            }
        }
        if rng.chance(20) {
            go(&mut rig, &mut model);
        }
        model.hear(&mut rig);
        if rng.chance(60) {
            reached.note(&mut rig);
            crash_and_verify(&mut rig, &mut model, some_crash(&mut rng));
        }
    }
    reached.rounds = insist(&mut rig, &mut model, &doomed);
    // And half of what is left, so that there is something to be won at any cost.
    let more = some(&mut rng, &present(&model), 50);
    insist(&mut rig, &mut model, &more);
    assert!((present(&model).len() as u64) < total);
    reached.note(&mut rig);
    takes_writes(&mut rig, &mut model);
    reached
}

/// What histories came to.
#[derive(Debug)]
struct Reached {
    least: u32,
    rounds: u32,
    extents: u64,
    left: u64,
}

impl Default for Reached {
    fn default() -> Reached {
        Reached {
            least: u32::MAX,
            rounds: 0,
            extents: 0,
            left: 0,
        }
    }
}

impl Reached {
    fn note(&mut self, rig: &mut Rig) {
        let figures = rig.engine().cleaned();
        self.extents += figures.extents;
        self.left += figures.left + figures.passed;
    }
}

#[test]
fn histories_at_the_brink() {
    let seeds = std::env::var("ASHLAR_BRINK").unwrap_or_else(|_| "1..6".into());
    let (from, to) = seeds.split_once("..").unwrap_or((&seeds, &seeds));
    let mut at_the_brink = 0;
    for seed in from.parse().unwrap()..=to.parse::<u64>().unwrap() {
        let reached = std::panic::catch_unwind(|| history(seed)).unwrap_or_else(|panic| {
            eprintln!("failed: ASHLAR_BRINK={seed}");
            std::panic::resume_unwind(panic)
        });
        println!("{seed}: {reached:?}");
        at_the_brink += u32::from(reached.least <= 1);
    }
    assert!(from != "1" || at_the_brink > 0);
}
