//! A node that is stopped, not dead: nothing tells the others, and everything goes on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ashlar_node_client::{ClientOptions, PutOptions};
use ashlar_tests::content::{Content, seed};
use ashlar_tests::load::{self, Books, Load};
use ashlar_tests::model::Model;
use ashlar_tests::rig::{self, Options, Rig};
use bytes::Bytes;

const BUCKET: &str = "pause";

/// Puts and reads back a small and a large object; the longest time that a put took.
async fn puts_go_on(client: &ashlar_node_client::Client, tag: u64, count: u64) -> Duration {
    let mut longest = Duration::ZERO;
    for i in 0..count {
        for len in [2_000, 3_000_000] {
            let content = Content {
                seed: tag << 32 | i,
                len,
            };
            let key = format!("{tag}-{i}-{len}");
            let start = Instant::now();
            let body = Bytes::from(content.bytes());
            let put = client
                .put_bytes(BUCKET, &key, body, PutOptions::default())
                .await;
            put.unwrap_or_else(|e| panic!("{key} cannot be put: {e}"));
            longest = longest.max(start.elapsed());
            let back = load::read(client, BUCKET, &key).await;
            let back = back.unwrap_or_else(|e| panic!("{key} cannot be read: {e}"));
            let (bytes, _) = back.unwrap_or_else(|| panic!("{key} is gone"));
            assert_eq!(
                content.difference(&bytes),
                None,
                "{key} came back different"
            );
        }
    }
    longest
}

#[test]
fn puts_and_gets_go_on_past_a_stopped_node() {
    let rig = Rig::up(Options {
        size: "512M",
        ..Options::default()
    });
    let chain = rig.chain_by_role();
    let outside = rig
        .all()
        .into_iter()
        .find(|n| !chain.contains(n))
        .expect("six nodes, a chain of three");
    let runtime = rig::runtime();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        client
            .create_bucket(BUCKET)
            .await
            .unwrap_or_else(|e| panic!("no bucket: {e}"));
        let healthy = puts_go_on(&client, 1, 10).await;
        // Each of the chain, its head first, and a node that only stores shards.
        let victims = [chain[0], chain[1], chain[2], outside];
        for (tag, stopped) in (2..).zip(victims) {
            rig.nodes("stop", &[stopped]);
            let longest = puts_go_on(&client, tag, 10).await;
            eprintln!("node {stopped} stopped: longest put {longest:?} (healthy {healthy:?})");
            rig.nodes("cont", &[stopped]);
            puts_go_on(&client, tag + 10, 3).await;
        }
    });
}

#[test]
fn what_was_acknowledged_past_a_stopped_follower_survives_everything() {
    survives_everything(|rig| rig.chain_by_role()[1]);
}

#[test]
fn what_was_acknowledged_past_a_stopped_head_survives_everything() {
    survives_everything(Rig::head);
}

/// A node stops in the middle of a load and wakes in the middle of another; then everything dies.
fn survives_everything(victim: impl Fn(&Rig) -> u32) {
    let seed = seed("pause");
    let rig = Rig::up(Options {
        size: "512M",
        ..Options::default()
    });
    let books: Books = Arc::new(Mutex::new(Model::default()));
    let victim = victim(&rig);
    let runtime = rig::runtime();
    let load = Load {
        workers: 8,
        keys: 40,
        len_max: 1 << 20,
        deletes: 20,
    };
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        client
            .create_bucket(BUCKET)
            .await
            .unwrap_or_else(|e| panic!("no bucket: {e}"));
        rig.nodes("stop", &[victim]);
        load::run(
            &client,
            &books,
            BUCKET,
            load,
            seed,
            Duration::from_millis(700),
        )
        .await;
        // It must catch up; if it was the head, it must see that it is none any more.
        rig.nodes("cont", &[victim]);
        load::run(
            &client,
            &books,
            BUCKET,
            load,
            seed ^ 1,
            Duration::from_millis(700),
        )
        .await;
    });
    rig.nodes("kill", &rig.all());
    rig.up_again();
    let wrong = runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        load::verify(&client, &books, BUCKET).await
    });
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    assert!(
        books.lock().expect("books").acknowledged > 20,
        "too little happened to prove anything"
    );
}

#[test]
fn a_dead_head_is_replaced_and_two_dead_replicas_are_an_error_that_says_so() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://headless"]);
    let file = rig.scratch().join("file");
    std::fs::write(&file, b"before").expect("writable");
    let file = file.to_str().expect("UTF-8");
    rig.ok(&["put", file, "ashlar://headless/one"]);
    let first = rig.head();
    rig.nodes("kill", &[first]);
    rig.ok(&["put", file, "ashlar://headless/two"]);
    assert_eq!(rig.ok(&["get", "ashlar://headless/one", "-"]), "before");
    let listed = rig.ok(&["ls", "ashlar://headless"]);
    assert!(listed.contains("one") && listed.contains("two"), "{listed}");
    let second = rig.head();
    assert_ne!(first, second, "a dead node is head");

    // One replica of three cannot tell what was committed, and does not try.
    rig.nodes("kill", &[second]);
    rig.fails(
        &["put", file, "ashlar://headless/three"],
        1,
        &["unavailable"],
    );
    // Unreadable is not absent.
    rig.fails(&["get", "ashlar://headless/one", "-"], 1, &["unavailable"]);
    rig.fails(&["ls", "ashlar://headless"], 1, &["unavailable"]);

    // The first one brings it back, though it has seen nothing of the second one's reign.
    rig.nodes("start", &[first]);
    for key in ["one", "two"] {
        let url = format!("ashlar://headless/{key}");
        assert_eq!(rig.ok(&["get", &url, "-"]), "before", "{key}");
    }
    rig.ok(&["put", file, "ashlar://headless/three"]);
    rig.nodes("start", &[second]);
    assert_eq!(rig.ok(&["get", "ashlar://headless/three", "-"]), "before");
}
