//! Parts of the device that cannot be read in one session, and can in the next: what was acknowledged meanwhile holds
//! all the same, with the cleaner at work whenever it may be.

use ashlar_layout::ids::ExtentNo;

use crate::disk::Rng;
use crate::model::{Fate, Model, go};
use crate::rig::{Crash, Rig};

/// Has some part of some of the extents in use fail.
fn go_blind(rig: &mut Rig, rng: &mut Rng, geometry: ashlar_layout::extent::Geometry) {
    for _ in 0..1 + rng.below(2) {
        let no = ExtentNo(rng.below(10) as u32);
        let (start, end) = (geometry.extent_start(no), geometry.extent_end(no));
        let (from, to) = match rng.below(4) {
            0 => (start, start + 4096),
            1 => (end - 4096, end),
            2 => (start + 40_960, start + 200_000),
            _ => (start, end),
        };
        rig.disk.bad.extend(from / 512..to / 512);
    }
}

/// Some writes, deletes, and writes of what is there already.
fn some_work(rig: &mut Rig, model: &mut Model, rng: &mut Rng, next: &mut u64, deletes: u64) {
    for _ in 0..10 + rng.below(60) {
        match rng.below(100) {
            0..45 => {
                let len = [0, 300, 9000, 60_000, 200_000][rng.below(5) as usize];
                model.write(rig, *next, len);
                *next += 1;
            }
            45..55 => {
                if let Some(number) = model.pick(rng, Fate::Present) {
                    model.write_again(rig, number);
                }
            }
            some if some < 55 + deletes => {
                if let Some(number) = model.pick(rng, Fate::Present) {
                    model.delete(rig, number);
                }
            }
            _ => {
                for _ in 0..rng.below(6) {
                    rig.kick();
                    rig.step();
                }
            }
        }
        if rng.chance(50) {
            go(rig, model);
        }
    }
    if rng.chance(70) {
        go(rig, model);
    }
    model.hear(rig);
}

/// How many openings were blind, and what was cleaned.
fn history(seed: u64) -> (u64, u64) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9));
    let mut rig = Rig::new(seed, 4096, rng.chance(70));
    rig.clean_from = Some(u32::MAX);
    rig.open();
    let geometry = rig.engine().geometry();
    let mut model = Model::default();
    let deletes = [20, 30, 40][rng.below(3) as usize];
    let (mut next, mut blind, mut cleaned) = (1, 0, 0);
    for _ in 0..12 {
        some_work(&mut rig, &mut model, &mut rng, &mut next, deletes);
        for _ in 0..rng.below(3) {
            cleaned += rig.engine().cleaned().extents;
            rig.crash(Crash::Power);
            go_blind(&mut rig, &mut rng, geometry);
            rig.open();
            blind += 1;
            some_work(&mut rig, &mut model, &mut rng, &mut next, deletes);
            if rng.chance(50) {
                rig.disk.bad.clear();
            }
        }
        cleaned += rig.engine().cleaned().extents;
        rig.crash(Crash::Power);
        rig.disk.bad.clear();
        let opened = rig.open();
        model.verify(&mut rig, &opened);
    }
    (blind, cleaned)
}

#[test]
fn histories_with_parts_that_are_not_seen() {
    let seeds = std::env::var("ASHLAR_UNSEEN").unwrap_or_else(|_| "1..12".into());
    let (from, to) = seeds.split_once("..").unwrap_or((&seeds, &seeds));
    let (mut blind, mut cleaned) = (0, 0);
    for seed in from.parse().unwrap()..=to.parse::<u64>().unwrap() {
        let (more, extents) = std::panic::catch_unwind(|| history(seed)).unwrap_or_else(|panic| {
            eprintln!("failed: ASHLAR_UNSEEN={seed}");
            std::panic::resume_unwind(panic)
        });
        blind += more;
        cleaned += extents;
    }
    assert!(
        from == to || (blind > 50 && cleaned > 30),
        "{blind} {cleaned}"
    );
}
