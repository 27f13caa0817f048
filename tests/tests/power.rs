//! The power of all nodes fails at once, again and again, under concurrent puts, overwrites and deletes: their disks
//! lose what was not flushed, sector by sector, and what was acknowledged is there (P1, P4).
//!
//! The disks are files of a file system in user space ([`ashlar_tests::power`]), which needs root and /dev/fuse:
//! without them these tests say so, and try nothing.
//!
//! `ASHLAR_POWER_ROUNDS` rounds (6 by default). Each prints its seed; `ASHLAR_SEED` repeats a run's choices.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ashlar_node_client::ClientOptions;
use ashlar_tests::content::{Random, seed, setting};
use ashlar_tests::load::{self, Books, Load};
use ashlar_tests::model::Model;
use ashlar_tests::power::{Cut, Disks, Fate};
use ashlar_tests::rig::{self, Options, PATIENCE, Rig};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use tokio::runtime::Runtime;

const ROUNDS: u64 = 6;
const BUCKET: &str = "power";

/// A rig on disks whose power can fail. They are unmounted before its folder goes, and after its nodes are gone.
struct Field {
    disks: Disks,
    rig: Rig,
    runtime: Runtime,
    books: Books,
}

/// Why there is no such rig here, if there is none.
fn missing() -> Option<&'static str> {
    if !rig::is_root() {
        return Some("this is not root, who alone may mount");
    }
    (!Path::new("/dev/fuse").exists()).then_some("there is no /dev/fuse")
}

impl Field {
    fn up() -> Field {
        let rig = Rig::up(Options {
            size: "1G",
            ..Options::default()
        });
        rig.rig(&["down"]);
        let files: Vec<PathBuf> = rig.all().iter().map(|node| rig.device(*node)).collect();
        let folder = rig.scratch().join("powered");
        let disks = Disks::behind(&folder, &files)
            .unwrap_or_else(|e| panic!("{} cannot be mounted: {e}", folder.display()));
        rig.up_again();
        let runtime = rig::runtime();
        runtime.block_on(async {
            let client = rig.client(ClientOptions::default());
            client
                .create_bucket(BUCKET)
                .await
                .unwrap_or_else(|e| panic!("no bucket: {e}"));
        });
        Field {
            disks,
            rig,
            runtime,
            books: Arc::new(Mutex::new(Model::default())),
        }
    }

    /// Works for a while, and then the power fails.
    fn cut(&self, load: Load, seed: u64, time: Duration, fate: Fate) -> Cut {
        let mut random = Random::new(seed);
        std::thread::scope(|scope| {
            let cut = scope.spawn(|| {
                rig::pause(time);
                self.disks
                    .fail(fate, &mut random, || self.kill(), || self.is_dead())
            });
            // The workers outlive the store a little, so that some changes meet its death.
            let over = time + Duration::from_millis(300);
            self.runtime.block_on(async {
                let client = self.rig.client(load::hasty());
                load::run(&client, &self.books, BUCKET, load, seed, over).await;
            });
            cut.join().expect("the power fails")
        })
    }

    /// Starts all nodes, and the power fails before they are done with what the last cut left.
    fn cut_while_starting(&self, random: &mut Random, fate: Fate) -> Cut {
        let nodes = self.rig.all();
        let nodes: Vec<String> = nodes.iter().map(u32::to_string).collect();
        let mut words = vec!["start", "--wait", "1"];
        words.extend(nodes.iter().map(String::as_str));
        let mut start = self
            .rig
            .command(&self.rig.rig_args(&words))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("ashlar does not start: {e}"));
        rig::pause(Duration::from_millis(50 + random.below(350)));
        let gone = || {
            // It starts no more nodes then.
            start
                .wait()
                .unwrap_or_else(|e| panic!("ashlar does not end: {e}"));
            self.is_dead();
        };
        self.disks.fail(fate, random, || self.kill(), gone)
    }

    fn kill(&self) {
        for pid in self.rig.pids().into_values() {
            match kill_process(pid, Signal::KILL) {
                // It has died meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => panic!("cannot kill {pid:?}: {error}"),
            }
        }
    }

    fn is_dead(&self) {
        rig::eventually("all nodes are dead", PATIENCE, || {
            self.kill();
            self.rig.pids().is_empty().then_some(())
        });
    }

    /// Takes all of it away.
    fn end(self) {
        let folder = self.rig.scratch().to_owned();
        drop(self);
        assert!(!folder.exists(), "{} is left", folder.display());
    }

    /// What is not as it was acknowledged.
    fn wrong(&self) -> Vec<String> {
        self.runtime.block_on(async {
            let client = self.rig.client(ClientOptions::default());
            load::verify(&client, &self.books, BUCKET).await
        })
    }

    fn acknowledged(&self) -> u64 {
        self.books.lock().expect("books").acknowledged
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.is_dead();
    }
}

#[test]
fn acknowledged_changes_survive_the_loss_of_power() {
    if let Some(why) = missing() {
        eprintln!("NOT TRIED: power cuts: {why}");
        return;
    }
    let seed = seed("power");
    let rounds = setting("ASHLAR_POWER_ROUNDS", ROUNDS);
    let field = Field::up();
    let mut random = Random::new(seed);
    let (mut total, mut count) = (Cut::default(), 0);
    // A cut between two flushes takes nothing: there are more until one has.
    for round in 1..=5 * rounds {
        if round > rounds && total.lost > 0 {
            break;
        }
        let round_seed = random.draw();
        let load = Load::any(&mut random);
        let fates = [Fate::Chance, Fate::Lost, Fate::Chance, Fate::Kept];
        let fate = *random.pick(&fates);
        let time = Duration::from_millis(100 + random.below(900));
        eprintln!("round {round}/{rounds}: seed {round_seed}, {load:?}, {fate:?} after {time:?}");
        let before = field.acknowledged();
        let mut cuts = vec![field.cut(load, round_seed, time, fate)];
        if round % 2 == 0 {
            let fate = *random.pick(&fates);
            cuts.push(field.cut_while_starting(&mut random, fate));
        }
        let start = Instant::now();
        field.rig.up_again();
        let up = start.elapsed();
        let wrong = field.wrong();
        let acknowledged = field.acknowledged() - before;
        eprintln!("  {acknowledged} acknowledged; up again in {up:?}; {cuts:?}");
        for cut in &cuts {
            total.lost += cut.lost;
            total.loose += cut.loose;
            total.flushes += cut.flushes;
        }
        count += cuts.len();
        assert!(
            wrong.is_empty(),
            "round {round} (seed {round_seed}, run seed {seed}): {} keys are wrong:\n{}\n{}",
            wrong.len(),
            wrong.join("\n"),
            field.rig.logs()
        );
    }
    assert!(
        field.acknowledged() > rounds * 10,
        "too little happened to prove anything"
    );
    assert!(total.lost > 0, "no cut took anything: {total:?}");
    println!("doubt: {count} power cuts");
    println!("doubt: {} sectors lost by power cuts", total.lost);
    field.end();
}

/// The test above can fail: where flushes are answered and make nothing durable, what was acknowledged is gone.
#[test]
fn disks_that_lie_lose_what_was_acknowledged() {
    if let Some(why) = missing() {
        eprintln!("NOT TRIED: lying disks: {why}");
        return;
    }
    let field = Field::up();
    field.disks.lie(true);
    let load = Load {
        workers: 8,
        keys: 20,
        len_max: 64 << 10,
        deletes: 5,
    };
    field.cut(load, 1, Duration::from_millis(500), Fate::Lost);
    field.disks.lie(false);
    assert!(field.acknowledged() > 10, "too little happened to be lost");
    field.rig.up_again();
    assert!(
        !field.wrong().is_empty(),
        "everything is there, although no flush made anything durable"
    );
    field.end();
}
