//! The wall clocks of nodes jump, while a load is recorded: by hours and by years, forward and back, the head's and
//! the followers'. What objects say of when they were made follows the head's clock, and with it what goes by age
//! (retentions, rules of lifecycles); nothing else does: nothing is lost, nothing stale is read, nothing is done twice,
//! and the load goes on.
//!
//! Nodes are told other times by libfaketime, which is loaded into them (the machine's own clock stays as it is), and
//! reads each node's file about once a second. Skipped, which is said, where it is not installed.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ashlar_node_client::{Client, ClientOptions, PutOptions};
use ashlar_tests::content::seed;
use ashlar_tests::history::{Clock, Outcome};
use ashlar_tests::linear;
use ashlar_tests::rig::{self, Options, PATIENCE, Rig};
use ashlar_tests::storm::{Shape, Storm};
use bytes::Bytes;

const BUCKET: &str = "clocks";
/// What is put to see what time it is told to be made at.
const TELLS: &str = "tells-the-time";
const NODES: u32 = 3;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Jumps of each node's clock, in seconds off the machine's.
const JUMPS: [i64; 4] = [DAY, -HOUR, 20 * 365 * DAY, -10 * 365 * DAY];
/// By how much the machine's own clock and what is read may differ, in seconds: a slow machine.
const NEAR: i64 = 20 * 60;

/// The library that tells processes other times.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists())
}

/// Where a node's clock is told.
fn file(rig: &Rig, node: u32) -> PathBuf {
    rig.scratch().join(format!("clock-{node}"))
}

/// Sets a node's clock, in seconds off the machine's.
fn set(rig: &Rig, node: u32, off: i64) {
    let path = file(rig, node);
    let made = path.with_extension("new");
    std::fs::write(&made, format!("{off:+}\n"))
        .and_then(|()| std::fs::rename(&made, &path))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Starts a node again, with a clock that can be set.
fn start(rig: &Rig, node: u32, library: &Path) {
    rig.nodes("kill", &[node]);
    set(rig, node, 0);
    let args = rig.rig_args(&["start".to_owned(), node.to_string()]);
    let output = rig
        .command(&args)
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", file(rig, node))
        .env("FAKETIME_CACHE_DURATION", "1")
        // Timers are the monotonic clock's, which does not jump on any machine.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_RESET", "1")
        .env("NO_FAKE_STAT", "1")
        .output()
        .unwrap_or_else(|e| panic!("no start: {e}"));
    assert!(
        output.status.success(),
        "node {node} does not start: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// By how many seconds what is made now is said to be made later than it is.
async fn told_off(client: &Client) -> i64 {
    let options = PutOptions::default();
    let put = client.put_bytes(TELLS, "now", Bytes::new(), options);
    put.await.unwrap_or_else(|e| panic!("no put: {e}"));
    let meta = client.head(TELLS, "now").await;
    let meta = meta.unwrap_or_else(|e| panic!("no head: {e}"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    (meta.modified_ms / 1000).cast_signed() - now.cast_signed()
}

#[test]
fn wall_clocks_that_jump_change_nothing_but_what_objects_say_of_when_they_were_made() {
    let Some(library) = faketime() else {
        eprintln!("skipped: clocks that jump (no libfaketime: install the package faketime)");
        return;
    };
    let seed = seed("clocks");
    let runtime = rig::runtime();
    let rig = Rig::up(Options {
        nodes: NODES,
        class: "2+1",
        ..Options::default()
    });
    for node in 1..=NODES {
        start(&rig, node, &library);
    }
    let storm = Storm::new(
        Shape {
            bucket: BUCKET.to_owned(),
            writers: 4,
            readers: 4,
            hot: 32,
            seed,
        },
        Clock::start(),
    );
    let (client, tasks) = runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        for bucket in [BUCKET, TELLS] {
            let made = client.create_bucket(bucket).await;
            made.unwrap_or_else(|e| panic!("no bucket: {e}"));
        }
        let tasks = storm.begin(std::slice::from_ref(&client));
        (client, tasks)
    });
    let mut jumps = 0;
    for off in JUMPS {
        // The head first: objects tell whether its clock has jumped. Then the others, one after the other; what they
        // read is nowhere to be seen, which is the point.
        let head = rig.head();
        let others = (1..=NODES).filter(|node| *node != head);
        for node in std::iter::once(head).chain(others) {
            set(&rig, node, off);
            rig::eventually("objects tell the head's time", PATIENCE, || {
                let told = runtime.block_on(told_off(&client));
                // Who is head may have changed on a slow machine: each node's clock is this one or the last.
                (told.abs_diff(off) < NEAR.unsigned_abs() || rig.head() != head).then_some(())
            });
            let (reads, writes) = storm.served();
            rig::eventually("the load goes on", PATIENCE, || {
                let (reads_now, writes_now) = storm.served();
                (reads_now > reads + 50 && writes_now > writes + 50).then_some(())
            });
            jumps += 1;
        }
    }
    let mut history = runtime.block_on(storm.end(tasks));
    let unknown = history.count(|o| o.outcome == Outcome::Unknown);
    let refused = history.count(|o| o.outcome == Outcome::Refused);
    let done = history.count(|o| o.served());
    history.merge(runtime.block_on(storm.look(&client)));
    // What was acknowledged under one clock is there after a start under another one.
    rig.nodes("kill", &rig.all());
    rig.up_again();
    let fresh = runtime.block_on(async { rig.client(ClientOptions::default()) });
    history.merge(runtime.block_on(storm.look(&fresh)));
    let mut wrong = linear::check_all(&history);
    println!("doubt: 1 histories checked");
    println!(
        "doubt: {} operations checked of real processes",
        history.operations.len()
    );
    wrong.extend(linear::listings(&history));
    eprintln!("{jumps} jumps; {done} operations served, {unknown} unknown, {refused} refused");
    linear::assert_right(&wrong, &format!("seed {seed}"));
    assert!(done > 500, "too little happened to prove anything");
}
