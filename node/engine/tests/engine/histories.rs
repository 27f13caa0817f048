//! Random histories of writes, deletes, appends, shutdowns and crashes, held against the model.
//!
//! A failing run prints its seed: `ASHLAR_SEED=<seed> cargo test -p ashlar-node-engine replay`
//! runs that one alone, `ASHLAR_SEED=2000..9000` many. Seeds that once failed stay in [`REGRESSIONS`].
//! Seeds above [`WITH_INDEX`] are of histories with indexes and trimmed journals among all that; those above
//! [`WITH_CLEANING`], too, and they clean whatever is worth it; those above [`WITH_AUDITS`] are audited beside all
//! that.

use std::collections::{HashMap, HashSet};

use ashlar_node_engine::error::OpenError;

use crate::audits::Passes;
use crate::model::{Fate, Model};
use crate::rig::{Answer, Crash, Opened2, Rig};

/// What a disk does besides losing power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// Nothing.
    Honest,
    /// Calls durable what is not.
    Lying,
    /// Fails writes and flushes at times, and shows what it has dropped then.
    Failing,
}

/// From here on seeds are of histories with indexes.
const WITH_INDEX: u64 = 10_000;

/// From here on they clean.
const WITH_CLEANING: u64 = 20_000;

/// From here on they are audited, too.
const WITH_AUDITS: u64 = 30_000;

/// Seeds that found something once.
const REGRESSIONS: &[u64] = &[
    // An unsealed extent that was not the newest went on: a tombstone came to be older than its record.
    2335,
    // A partition of which nothing was left but a damaged root held that, and nobody was told to ask for it.
    13531,
];

/// The same, on a failing disk.
const FAILING_REGRESSIONS: &[u64] = &[
    // A checkpoint told of a header that was lost, and the one that was there seemed to be stale.
    5236,
    // A footer that was torn itself was taken to have named a shard that was torn long before.
    5287,
];

/// One history: block size, cache, and the weights of its steps all come from the seed.
fn history(seed: u64, steps: u64, disk: Disk) -> (Model, u64, Passes) {
    let mut rng = crate::disk::Rng(seed);
    let block_size = if rng.chance(70) { 4096 } else { 512 };
    let volatile = rng.chance(70);
    let mut rig = Rig::new(rng.next(), block_size, volatile);
    rig.disk.lying = disk == Disk::Lying;
    rig.disk.forgetful = disk == Disk::Failing;
    rig.clean_from = (seed > WITH_CLEANING).then_some(u32::MAX);
    let mut model = Model::default();
    let opened = rig.open();
    assert_eq!(
        (opened.journal.len(), opened.report.shards),
        (0, 0),
        "a fresh device is empty"
    );
    // Some histories are of small records, some fill the device.
    let large = [2, 10, 40][rng.below(3) as usize];
    let deletes = match rng.below(3) as usize {
        _ if seed > WITH_CLEANING => 80,
        some => [5, 30, 60][some],
    };
    let crashes = [1, 2, 5][rng.below(3) as usize];
    // And some keep little of their indexes, so that extents change hands.
    let mut side = crate::disk::Rng(seed ^ 0x1dec);
    let index = [10, 30, 60][side.below(3) as usize];
    let keep = [20, 90][side.below(2) as usize];
    let mut partitions = [0, 1, 2];
    let mut audits = (crate::disk::Rng(seed ^ 0xa0d1), Passes::default());
    let mut next = 1;
    let mut recoveries = 0;
    for _ in 0..steps {
        if seed > WITH_INDEX && side.chance(index) {
            index_step(&mut rig, &mut model, &mut side, &mut partitions, keep);
        }
        match rng.below(100) {
            0..30 => {
                let len = if rng.chance(large) {
                    rng.below(400_000)
                } else {
                    [0, 1, 300, 4000, 4096, 9000, 40_000][rng.below(7) as usize]
                };
                model.write(&mut rig, next, len as usize);
                next += 1;
            }
            30..35 => {
                if let Some(number) = model.pick(&mut rng, Fate::Present) {
                    model.write_again(&mut rig, number);
                }
            }
            35..55 => {
                if rng.chance(deletes)
                    && let Some(number) = model.pick(&mut rng, Fate::Present)
                {
                    model.delete(&mut rig, number);
                } else if rng.chance(5)
                    && let Some(number) = model.pick(&mut rng, Fate::Writing)
                {
                    model.delete(&mut rig, number);
                }
            }
            55..70 => {
                let len = if rng.chance(10) {
                    rng.below(200_000)
                } else {
                    rng.below(3000)
                };
                model.append(
                    &mut rig,
                    partitions[rng.below(3) as usize],
                    1 + rng.below(4),
                    len as usize,
                );
            }
            70..80 => {
                let fate = if rng.chance(80) {
                    Fate::Present
                } else {
                    Fate::Absent
                };
                if let Some(number) = model.pick(&mut rng, fate) {
                    let whole = model.shards[&number].len as u32;
                    let offset = rng.below(u64::from(whole) + 1) as u32;
                    let len = rng.below(u64::from(whole - offset) + 1) as u32;
                    let len = if rng.chance(30) { u32::MAX } else { len };
                    model.read(&mut rig, number, offset, len);
                }
            }
            80..95 => {
                rig.kick();
                for _ in 0..rng.below(12) {
                    rig.step();
                    if rng.chance(50) {
                        rig.kick();
                    }
                }
            }
            95..96 => rig.settle(),
            96 if rng.chance(30) => {
                rig.settle();
                model.hear(&mut rig);
                rig.fail_in = None;
                if rig.fenced.is_some() {
                    let opened = reopen(&mut rig, &mut model);
                    model.verify(&mut rig, &opened);
                }
                assert_eq!(rig.shutdown(), Answer::ShutDown);
                let opened = rig.open();
                assert!(opened.report.clean || rig.engine().stats().extents_free <= 2);
                model.verify(&mut rig, &opened);
            }
            97.. if rng.chance(crashes * 10) => {
                model.hear(&mut rig);
                model.count_cleaned(&mut rig);
                rig.fail_in = None;
                let how = if rng.chance(70) {
                    Crash::Power
                } else {
                    Crash::Kill
                };
                rig.crash(how);
                // Crash in recovery, too.
                while rng.chance(30) {
                    let after = if rng.chance(50) {
                        rng.below(300)
                    } else {
                        rng.below(30)
                    };
                    match rig.try_open(Some(after)) {
                        None => {}
                        Some(opened) => drop(opened.unwrap()),
                    }
                    rig.crash(if rng.chance(70) {
                        Crash::Power
                    } else {
                        Crash::Kill
                    });
                }
                let opened = rig.open();
                model.verify(&mut rig, &opened);
                recoveries += 1;
                if rng.chance(30) {
                    // Recovery of a recovery shows the same.
                    rig.settle();
                    rig.crash(Crash::Power);
                    let again = rig.open();
                    // (Heads of torn records that a failing disk only showed are not written again.)
                    if disk == Disk::Honest {
                        assert_eq!(again.report.shards, opened.report.shards);
                    }
                    model.verify(&mut rig, &again);
                }
            }
            _ => {}
        }
        if seed > WITH_AUDITS && audits.0.chance(50) {
            audits.1.go_on(&mut rig);
        }
        if disk == Disk::Failing && rig.fail_in.is_none() && rng.chance(3) {
            rig.fail_in = Some(rng.below(12));
        }
        if rig.fenced.is_some() {
            let opened = reopen(&mut rig, &mut model);
            model.verify(&mut rig, &opened);
            recoveries += 1;
            if rng.chance(50) {
                // What is served now has to outlive power.
                rig.fail_in = None;
                rig.settle();
                rig.crash(Crash::Power);
                let again = rig.open();
                model.verify(&mut rig, &again);
            }
        }
        model.hear(&mut rig);
    }
    rig.fail_in = None;
    rig.settle();
    if rig.fenced.is_some() {
        let opened = reopen(&mut rig, &mut model);
        model.verify(&mut rig, &opened);
    }
    model.hear(&mut rig);
    model.count_cleaned(&mut rig);
    assert_eq!(rig.shutdown(), Answer::ShutDown);
    let opened = rig.open();
    model.verify(&mut rig, &opened);
    model.reused = reused(&rig);
    model.verify_nothing_held(&mut rig);
    (model, recoveries, audits.1)
}

/// One step of the replica of some partition.
fn index_step(
    rig: &mut Rig,
    model: &mut Model,
    rng: &mut crate::disk::Rng,
    partitions: &mut [u32; 3],
    keep: u64,
) {
    let slot = rng.below(3) as usize;
    let partition = partitions[slot];
    match rng.below(100) {
        0..40 => {
            let grains = if rng.chance(20) { 200 } else { 20 };
            model.write_chunk(rig, partition, 1 + rng.below(grains) as usize);
        }
        40..55 => model.sync(rig, partition),
        55..70 => model.write_root(rig, partition, rng, keep),
        70..85 => model.read_chunk(rig, rng),
        85..90 => model.speak(rig, partition),
        90..94 => model.speak_all(rig),
        94..97 => model.share(rig, partition, partitions[rng.below(3) as usize], rng),
        97..99 => model.give_up(rig, partition),
        _ if rng.chance(30) => {
            model.retire(rig, partition);
            partitions[slot] = 3 + partitions.iter().max().unwrap();
        }
        _ => {}
    }
}

/// The device is fenced: the process closes it and opens it again, which may fail, too, or end by a power cut.
fn reopen(rig: &mut Rig, model: &mut Model) -> Opened2 {
    while rig.step() {}
    model.hear(rig);
    rig.die();
    loop {
        let again = rig.rng.chance(40);
        rig.fail_in = again.then(|| rig.rng.below(8));
        let cut = rig.rng.chance(20).then(|| rig.rng.below(200));
        match rig.try_open(cut) {
            Some(Ok(opened)) => {
                rig.fail_in = None;
                return rig.install(opened);
            }
            Some(Err(OpenError::Write { .. } | OpenError::Doubtful { .. })) => drop(rig.die()),
            Some(Err(error)) => panic!("{error}"),
            None => {
                rig.crash(Crash::Power);
            }
        }
    }
}

/// How often an extent's header was written over.
fn reused(rig: &Rig) -> u64 {
    let geometry = rig.engine.as_ref().unwrap().geometry();
    let start = |no| geometry.extent_start(ashlar_layout::ids::ExtentNo(no));
    let starts: HashSet<u64> = (0..geometry.extent_count()).map(start).collect();
    let mut headers = HashMap::new();
    for (offset, ..) in rig
        .writes
        .iter()
        .filter(|(offset, ..)| starts.contains(offset))
    {
        *headers.entry(*offset).or_insert(0u64) += 1;
    }
    headers.values().map(|count| count - 1).sum()
}

/// What is done with a seed.
fn disk_of(seed: u64) -> Disk {
    match seed % WITH_INDEX {
        5001..6000 => Disk::Failing,
        _ => Disk::Honest,
    }
}

fn run(seed: u64, steps: u64) -> (Model, u64) {
    run_on(seed, steps, Disk::Honest)
}

fn run_on(seed: u64, steps: u64, disk: Disk) -> (Model, u64) {
    let (model, recoveries, _) = run_audited(seed, steps, disk);
    (model, recoveries)
}

fn run_audited(seed: u64, steps: u64, disk: Disk) -> (Model, u64, Passes) {
    let result = std::panic::catch_unwind(|| history(seed, steps, disk));
    result.unwrap_or_else(|panic| {
        eprintln!("history failed: ASHLAR_SEED={seed} ({steps} steps, {disk:?} disk)");
        std::panic::resume_unwind(panic)
    })
}

/// What histories with indexes came to.
#[derive(Debug, Default)]
struct Indexes {
    roots: u64,
    chunks: u64,
    trimmed: u64,
    pinned: u64,
    overtaken: u64,
}

impl Indexes {
    fn add(&mut self, model: &Model) {
        let replicas = &model.replicas;
        self.roots += replicas.roots_checked;
        self.chunks += replicas.chunks_checked;
        self.trimmed += replicas.trimmed;
        self.pinned += replicas.pinned;
        self.overtaken += replicas.overtaken;
    }
}

#[test]
fn short_histories() {
    let (mut acknowledged, mut recoveries, mut reads) = (0, 0, 0);
    let mut indexes = Indexes::default();
    for seed in (1..=120).chain(10_001..=10_150) {
        let (model, more) = run(seed, 300);
        acknowledged += model.acknowledged;
        recoveries += more;
        reads += model.reads_checked;
        indexes.add(&model);
    }
    // Sometimes-properties: the histories did what they are for.
    assert!(acknowledged > 20_000, "{acknowledged}");
    assert!(recoveries > 150, "{recoveries}");
    assert!(reads > 1000, "{reads}");
    assert!(
        indexes.roots > 1000 && indexes.chunks > 2000 && indexes.trimmed > 4000,
        "{indexes:?}"
    );
    assert!(
        indexes.pinned > 1000 && indexes.overtaken > 20,
        "{indexes:?}"
    );
}

#[test]
fn long_histories_that_fill_the_device() {
    let (mut full, mut reused) = (0, 0);
    let mut indexes = Indexes::default();
    for seed in (1001..=1004).chain(11_001..=11_006) {
        let (model, _) = run(seed, 4000);
        full += model.full;
        reused += model.reused;
        indexes.add(&model);
    }
    assert!(
        indexes.roots > 400 && indexes.trimmed > 10_000,
        "{indexes:?}"
    );
    assert!(full > 0, "no history met the limit of the device");
    assert!(reused > 30, "{reused} extents were used again");
}

#[test]
fn a_failing_disk_that_shows_what_it_dropped() {
    let (mut recoveries, mut acknowledged, mut damaged) = (0, 0, 0);
    let mut indexes = Indexes::default();
    for seed in (5001..=5120).chain(15_001..=15_150) {
        let (model, more) = run_on(seed, 300, Disk::Failing);
        recoveries += more;
        acknowledged += model.acknowledged;
        damaged += model.damaged;
        indexes.add(&model);
    }
    assert!(indexes.roots > 500 && indexes.overtaken > 10, "{indexes:?}");
    assert!(recoveries > 500, "{recoveries}");
    assert!(acknowledged > 15_000, "{acknowledged}");
    assert!(damaged > 0, "no write was torn before a newer one");
}

#[test]
fn histories_that_clean() {
    let (mut extents, mut records, mut tombstones, mut recoveries) = (0, 0, 0, 0);
    let seeds = (20_001..=20_025).chain(25_001..=25_025);
    for (seed, disk) in seeds.map(|seed| (seed, disk_of(seed))) {
        let (model, more) = run_on(seed, 600, disk);
        extents += model.cleaned.extents;
        records += model.cleaned.records;
        tombstones += model.cleaned.tombstones;
        recoveries += more;
    }
    assert!(recoveries > 60, "{recoveries}");
    assert!(
        extents > 60 && records > 100 && tombstones > 5,
        "{extents} {records} {tombstones}"
    );
}

/// Beside writes, deletes, cleaning and crashes an audit finds nothing, for nothing is wrong.
#[test]
fn histories_that_are_audited() {
    let (mut passes, mut steps, mut left_out, mut recoveries, mut extents) = (0, 0, 0, 0, 0);
    let short = (30_001..=30_040).chain(35_001..=35_025);
    let seeds = short
        .map(|seed| (seed, 600))
        .chain([(31_001, 4000), (31_002, 4000)]);
    for (seed, long) in seeds {
        let (model, more, audits) = run_audited(seed, long, disk_of(seed));
        passes += audits.passes;
        steps += audits.steps;
        left_out += audits.left_out;
        recoveries += more;
        extents += model.cleaned.extents;
    }
    println!(
        "{passes} passes, {steps} steps, {left_out} left out, {recoveries} recoveries, {extents} cleaned"
    );
    assert!(
        passes > 100 && steps > 3000 && left_out > 0,
        "{passes} {steps} {left_out}"
    );
    assert!(recoveries > 60 && extents > 60, "{recoveries} {extents}");
}

/// A checker that cannot fail proves nothing: over a disk whose flushes and durable writes are lies,
/// histories have to end in panic.
#[test]
fn canary() {
    let caught = (1..=20)
        .filter(|seed| std::panic::catch_unwind(|| history(*seed, 300, Disk::Lying)).is_err());
    assert!(
        caught.count() >= 3,
        "loss of acknowledged writes goes unnoticed"
    );
}

#[test]
fn regressions() {
    for seed in REGRESSIONS {
        run(*seed, 300);
    }
    for seed in FAILING_REGRESSIONS {
        run_on(*seed, 300, Disk::Failing);
    }
}

#[test]
fn replay() {
    let Ok(seeds) = std::env::var("ASHLAR_SEED") else {
        return;
    };
    let (from, to) = seeds.split_once("..").unwrap_or((&seeds, &seeds));
    for seed in from.parse().unwrap()..=to.parse::<u64>().unwrap() {
        let steps = match seed % WITH_INDEX {
            1001..2000 => 4000,
            _ if seed > WITH_CLEANING => 600,
            _ => 300,
        };
        run_on(seed, steps, disk_of(seed));
    }
}
