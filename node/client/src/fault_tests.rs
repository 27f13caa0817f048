//! The client against nodes that misbehave, die, fill up and come back.

use std::time::{Duration, Instant};

use ashlar_layout::manifest::Body;

use crate::client_tests::{DRAIN, bytes, cluster, get, options, put};
use crate::fake::Mood;
use crate::{ByteRange, Client, Code, DATA_KEY_LEN, DataKey, GetOptions, ListOptions, PutOptions};

/// Two nodes that misbehave, in every way there is: everything still comes back, and right.
#[tokio::test]
async fn two_hostile_nodes_change_nothing() {
    for mood in Mood::HOSTILE {
        let (cluster, client) = cluster().await;
        let data = bytes(1_500_000, 6);
        put(&client, "before", &data).await.unwrap();
        client.drain(DRAIN).await;
        for node in &cluster.others()[..2] {
            cluster.mood(*node, mood);
        }
        let began = Instant::now();
        let read = get(&client, "before", None)
            .await
            .unwrap_or_else(|e| panic!("{mood:?}: {e}"));
        assert_eq!(read, data, "{mood:?}");
        let read = get(&client, "before", Some(ByteRange::FromTo(300_000, 301_000)))
            .await
            .unwrap();
        assert_eq!(read, &data[300_000..=301_000], "{mood:?}");
        put(&client, "after", &data)
            .await
            .unwrap_or_else(|e| panic!("{mood:?}: {e}"));
        assert_eq!(get(&client, "after", None).await.unwrap(), data, "{mood:?}");
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{mood:?}: {:?}",
            began.elapsed()
        );
    }
}

/// All nodes misbehave: an error in time, whatever they do.
#[tokio::test]
async fn a_wholly_hostile_cluster_gives_errors_in_time() {
    for mood in Mood::HOSTILE {
        let (cluster, client) = cluster().await;
        let data = bytes(300_000, 7);
        put(&client, "key", &data).await.unwrap();
        put(&client, "small", &bytes(100, 1)).await.unwrap();
        for node in cluster.others() {
            cluster.mood(node, mood);
        }
        cluster.mood(cluster.head(), mood);
        let began = Instant::now();
        let small = bytes(10, 1);
        let (a, b, c, d) = tokio::join!(
            get(&client, "key", None),
            put(&client, "key", &data),
            put(&client, "small", &small),
            client.list("bucket", ListOptions::default()),
        );
        // A reply with a damaged payload CRC has no payload to be wrong about for these.
        let bare = mood == Mood::PayloadCrc;
        assert!(a.is_err() && b.is_err(), "{mood:?}");
        assert!(bare || c.is_err() && d.is_err(), "{mood:?}");
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{mood:?}: {:?}",
            began.elapsed()
        );
    }
}

/// What is encrypted comes back to who has the key, in whole, in part, and of parts, with two nodes that misbehave; no
/// device holds any of it.
#[tokio::test]
async fn what_is_encrypted_is_on_no_device() {
    let key = |byte| DataKey::new(&[byte; DATA_KEY_LEN]);
    let (cluster, client) = cluster().await;
    let mut all = Vec::new();
    let mut parts = Vec::new();
    for (i, len) in [9usize, 1_500_000, 40].into_iter().enumerate() {
        let (name, data) = (format!("part{i}"), bytes(len, 31 + i as u64));
        let options = PutOptions {
            cipher: Some(key(5)),
            ..PutOptions::default()
        };
        let body = data.clone();
        // Both ways in.
        let put = match i {
            0 => client.put_bytes("bucket", &name, body, options).await,
            _ => client.put("bucket", &name, &body[..], options).await,
        };
        assert!(put.unwrap().stripes > 0, "it rides in the journal");
        parts.push(client.head("bucket", &name).await.unwrap().manifest);
        all.extend_from_slice(&data);
    }
    client
        .compose("bucket", "whole", parts, PutOptions::default())
        .await
        .unwrap();
    client.drain(DRAIN).await;
    for shard in cluster.store().shards.values() {
        for run in [&all[..9], &all[9..25], &all[1_000_000..1_000_016]] {
            assert!(!shard.windows(run.len()).any(|held| held == run));
        }
    }
    for node in &cluster.others()[..2] {
        cluster.mood(*node, Mood::Mute);
    }
    for (range, expected) in [
        (None, &all[..]),
        (Some(ByteRange::FromTo(5, 1_048_600)), &all[5..1_048_601]),
        (Some(ByteRange::Suffix(41)), &all[all.len() - 41..]),
    ] {
        let options = GetOptions {
            range,
            version: None,
        };
        let mut stream = client.get("bucket", "whole", options).await.unwrap();
        stream.decipher(key(5));
        let mut got = Vec::new();
        while let Some(piece) = stream.next().await {
            got.extend_from_slice(&piece.unwrap());
        }
        assert!(got == expected, "{range:?}");
    }
    assert_ne!(get(&client, "whole", None).await.unwrap(), all);
}

#[tokio::test]
async fn a_slow_shard_is_hedged() {
    let (cluster, client) = cluster().await;
    let data = bytes(1_000_000, 8);
    put(&client, "key", &data).await.unwrap();
    client.drain(DRAIN).await;
    for node in &cluster.others()[..2] {
        cluster.mood(*node, Mood::Slow(Duration::from_secs(5)));
    }
    let began = Instant::now();
    let mut stream = client
        .get("bucket", "key", GetOptions::default())
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(all, data);
    assert!(stream.rebuilt_shards() > 0);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn dead_nodes_make_the_class_smaller_and_nothing_else() {
    let (mut cluster, client) = cluster().await;
    let data = bytes(3_000_000, 9);
    put(&client, "old", &data).await.unwrap();
    client.drain(DRAIN).await;
    let others = cluster.others();
    for node in &others[..2] {
        cluster.kill(*node).await;
    }
    assert_eq!(get(&client, "old", None).await.unwrap(), data);
    let done = put(&client, "new", &data).await.unwrap();
    assert!(done.reduced_stripes > 0);
    assert_eq!(get(&client, "new", None).await.unwrap(), data);
    // A client that has yet to find out.
    let fresh = Client::connect(cluster.map.clone(), options()).unwrap();
    put(&fresh, "fresh", &data).await.unwrap();
    assert_eq!(get(&fresh, "fresh", None).await.unwrap(), data);
    // They come back, and are used again once a probe has found them.
    for node in &others[..2] {
        cluster.revive(*node).await;
    }
    let began = Instant::now();
    while put(&client, "back", &data).await.unwrap().reduced_stripes > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "nobody asks for them"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn too_many_dead_nodes_are_named() {
    let (mut cluster, client) = cluster().await;
    let data = bytes(1_000_000, 10);
    put(&client, "key", &data).await.unwrap();
    client.drain(DRAIN).await;
    let others = cluster.others();
    for node in &others[..4] {
        cluster.kill(*node).await;
    }
    let error = get(&client, "key", None).await.unwrap_err();
    assert_eq!(error.code(), Code::Unreadable);
    let error = put(&client, "key", &data).await.unwrap_err();
    assert_eq!(error.code(), Code::DevicesAway);
    for node in &others[..4] {
        assert!(
            error.to_string().contains(&format!("of node {node}:")),
            "{error}"
        );
    }
    // Small objects need the head only.
    put(&client, "small", &bytes(100, 1)).await.unwrap();
    // One is enough for reading, and for 1+2.
    cluster.revive(others[0]).await;
    cluster.revive(others[1]).await;
    assert_eq!(get(&client, "key", None).await.unwrap(), data);
}

#[tokio::test]
async fn a_dead_head_is_waited_for_and_then_named() {
    let (mut cluster, client) = cluster().await;
    let data = bytes(400_000, 11);
    put(&client, "key", &data).await.unwrap();
    client.drain(DRAIN).await;
    let head = cluster.head();
    cluster.kill(head).await;
    let began = Instant::now();
    let error = get(&client, "key", None).await.unwrap_err();
    assert_eq!(error.code(), Code::PartitionUnavailable);
    assert!(!error.is_uncertain());
    let text = error.to_string();
    let named = format!("of node {head} at 127.0.0.1:");
    assert!(text.contains(&named) && text.contains("refused"), "{text}");
    assert!(text.contains("it follows device"), "{text}");
    let waited = began.elapsed();
    assert!(
        waited >= Duration::from_secs(2) && waited < Duration::from_secs(4),
        "{waited:?}"
    );
    let error = put(&client, "new", &data).await.unwrap_err();
    assert_eq!(error.code(), Code::PartitionUnavailable);
    client.drain(DRAIN).await;
    assert!(
        cluster.store().shards.len() <= 2 * 6,
        "what was stored for it is freed"
    );
    // It comes back while somebody waits.
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { get(&client, "key", None).await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.revive(head).await;
    assert_eq!(waiting.await.unwrap().unwrap(), data);
}

#[tokio::test]
async fn a_full_cluster_refuses_writes_and_serves_reads() {
    let (cluster, client) = cluster().await;
    let data = bytes(600_000, 14);
    put(&client, "key", &data).await.unwrap();
    client.drain(DRAIN).await;
    for node in cluster.map.nodes.iter().map(|n| n.id) {
        cluster.mood(node, Mood::Full);
    }
    let error = put(&client, "new", &data).await.unwrap_err();
    assert_eq!(error.code(), Code::DeviceFull, "{error}");
    assert_eq!(get(&client, "key", None).await.unwrap(), data);
    assert_eq!(
        get(&client, "new", None).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn rotten_shards_are_rebuilt_and_reported() {
    let (cluster, client) = cluster().await;
    let data = bytes(900_000, 15);
    put(&client, "key", &data).await.unwrap();
    client.drain(DRAIN).await;
    let stripes = {
        let store = cluster.store();
        let (meta, _) = store.objects.values().next().unwrap();
        let Body::Stripes(stripes) = &meta.manifest.body else {
            panic!()
        };
        stripes.clone()
    };
    let mut harmed = Vec::new();
    for stripe in &stripes {
        let mut store = cluster.store();
        let at: Vec<_> = store
            .shards
            .keys()
            .filter(|(_, id)| id.stripe == stripe.id && id.index < 2)
            .copied()
            .collect();
        for at in at {
            let len = store.shards[&at].len();
            store.shards.insert(at, vec![0; len].into());
            harmed.push(at);
        }
    }
    let mut stream = client
        .get("bucket", "key", GetOptions::default())
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(all, data);
    assert_eq!(stream.rebuilt_shards(), harmed.len() as u64);
    // Reports wait for nobody: ask the nodes something to let them pass.
    for node in cluster.map.nodes.iter().map(|n| n.id) {
        client.node_status(node).await.unwrap();
    }
    let mut reported: Vec<_> = cluster.store().reports.iter().map(|r| (r.0, r.1)).collect();
    reported.sort_unstable();
    harmed.sort_unstable();
    assert_eq!(reported, harmed);
}

#[tokio::test]
async fn draining_says_what_is_unfinished() {
    let (cluster, client) = cluster().await;
    let slow = cluster.others()[0];
    cluster.mood(slow, Mood::Slow(Duration::from_secs(1)));
    put(&client, "key", &bytes(200_000, 16)).await.unwrap();
    assert_eq!(client.drain(Duration::from_millis(10)).await.unfinished, 1);
    assert_eq!(client.drain(DRAIN).await.unfinished, 0);
}
