//! Everything dies at once, again and again, under concurrent puts, overwrites and deletes:
//! what was acknowledged is there, and every object is whole (P1, P4).
//!
//! `ASHLAR_CRASH_ROUNDS` rounds (6 by default; CI takes 12). Each prints its seed; `ASHLAR_SEED`
//! repeats a run's choices (not the kernel's).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ashlar_node_client::ClientOptions;
use ashlar_tests::content::{Random, seed, setting};
use ashlar_tests::load::{self, Books, Load};
use ashlar_tests::model::Model;
use ashlar_tests::rig::{self, Options, Rig};

const ROUNDS: u64 = 6;
const BUCKET: &str = "crash-loop";

#[test]
fn acknowledged_changes_survive_the_death_of_everything() {
    let seed = seed("crash");
    let rounds = setting("ASHLAR_CRASH_ROUNDS", ROUNDS);
    // Devices hold everything that is ever written: none is so full that requests are refused meanwhile.
    let size = if rounds > 12 { "4G" } else { "1G" };
    let rig = Rig::up(Options {
        size,
        ..Options::default()
    });
    let books: Books = Arc::new(Mutex::new(Model::default()));
    let runtime = rig::runtime();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        client
            .create_bucket(BUCKET)
            .await
            .unwrap_or_else(|e| panic!("no bucket: {e}"));
    });
    let mut random = Random::new(seed);
    for round in 1..=rounds {
        let round_seed = random.draw();
        let load = Load::any(&mut random);
        let time = Duration::from_millis(100 + random.below(900));
        eprintln!("round {round}/{rounds}: seed {round_seed}, {load:?}, death after {time:?}");
        let before = books.lock().expect("books").acknowledged;

        let death = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                rig::pause(time);
                let at = Instant::now();
                rig.nodes("kill", &rig.all());
                at.elapsed()
            });
            // The workers outlive the store a little, so that some changes meet its death.
            let over = time + Duration::from_millis(300);
            runtime.block_on(async {
                let client = rig.client(load::hasty());
                load::run(&client, &books, BUCKET, load, round_seed, over).await;
            });
            killer.join().expect("the killer ends")
        });
        assert!(rig.pids().is_empty(), "kill left {:?}", rig.pids());

        let start = Instant::now();
        rig.up_again();
        let up = start.elapsed();
        let wrong = runtime.block_on(async {
            let client = rig.client(ClientOptions::default());
            load::verify(&client, &books, BUCKET).await
        });
        let acknowledged = books.lock().expect("books").acknowledged - before;
        eprintln!("  {acknowledged} acknowledged, killed in {death:?}, up again in {up:?}");
        assert!(
            wrong.is_empty(),
            "round {round} (seed {round_seed}, run seed {seed}): {} keys are wrong:\n{}\n{}",
            wrong.len(),
            wrong.join("\n"),
            rig.logs()
        );
    }
    let books = books.lock().expect("books");
    eprintln!(
        "{rounds} rounds: {} changes acknowledged and kept, {} decided by a crash",
        books.acknowledged, books.unknown
    );
    assert!(
        books.acknowledged > rounds * 10,
        "too little happened to prove anything"
    );
    assert!(
        books.unknown > 0,
        "no change met a crash: the deaths came too late"
    );
}
