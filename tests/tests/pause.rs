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
    let chain = rig.chain();
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
        // The middle of the chain, its tail, and a node that only stores shards.
        for (tag, stopped) in [(2, chain[1]), (3, chain[2]), (4, outside)] {
            rig.nodes("stop", &[stopped]);
            let longest = puts_go_on(&client, tag, 10).await;
            eprintln!("node {stopped} stopped: longest put {longest:?} (healthy {healthy:?})");
            rig.nodes("cont", &[stopped]);
            puts_go_on(&client, tag + 10, 3).await;
        }
    });
}

#[test]
fn what_was_acknowledged_past_a_stopped_node_survives_everything() {
    let seed = seed("pause");
    let rig = Rig::up(Options {
        size: "512M",
        ..Options::default()
    });
    let books: Books = Arc::new(Mutex::new(Model::default()));
    let chain = rig.chain();
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
        rig.nodes("stop", &[chain[1]]);
        load::run(
            &client,
            &books,
            BUCKET,
            load,
            seed,
            Duration::from_millis(700),
        )
        .await;
        // It wakes in the middle of things and must catch up from its predecessor.
        rig.nodes("cont", &[chain[1]]);
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
fn a_dead_head_is_an_error_that_says_so_and_nothing_is_lost() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://headless"]);
    let file = rig.scratch().join("file");
    std::fs::write(&file, b"before").expect("writable");
    let file = file.to_str().expect("UTF-8");
    rig.ok(&["put", file, "ashlar://headless/a"]);
    let head = rig.chain()[0];
    rig.nodes("kill", &[head]);
    rig.fails(&["put", file, "ashlar://headless/b"], 1, &["unavailable"]);
    // Unreadable is not absent.
    rig.fails(&["get", "ashlar://headless/a", "-"], 1, &["unavailable"]);
    rig.fails(&["ls", "ashlar://headless"], 1, &["unavailable"]);
    rig.nodes("start", &[head]);
    assert_eq!(rig.ok(&["get", "ashlar://headless/a", "-"]), "before");
    rig.ok(&["put", file, "ashlar://headless/b"]);
}
