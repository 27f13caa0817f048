//! A node that is gone for good: what was on it is put onto the others, so that as many of them may be lost after it as
//! before it; and it comes back.

use std::collections::BTreeMap;

use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::NULL_VERSION;
use ashlar_node_client::{ClientOptions, GetOptions, Making, PutOptions, VersionsOptions};
use ashlar_tests::folder;
use ashlar_tests::rig::{Options, PATIENCE, Rig, eventually, runtime};
use bytes::Bytes;
use serde_json::Value;

fn said(rig: &Rig, args: &[&str]) -> Option<Value> {
    let output = rig.run(args);
    let told = output.status.success();
    told.then(|| serde_json::from_slice(&output.stdout).expect("it is told as JSON"))
}

fn sum(counts: &Value) -> u64 {
    let counts = counts.as_object().expect("counts");
    counts.values().filter_map(Value::as_u64).sum()
}

/// Puts two versions of an object, and says which they are.
fn versions(rig: &Rig) -> BTreeMap<u64, Bytes> {
    runtime().block_on(async {
        let client = rig.client(ClientOptions::default());
        let making = Making::Version {
            null: false,
            lock: Lock::NONE,
        };
        let mut all = BTreeMap::new();
        for byte in [7u8, 9] {
            let bytes = Bytes::from(vec![byte; 900_000]);
            let options = PutOptions {
                making,
                ..PutOptions::default()
            };
            let put = client.put_bytes("data", "kept", bytes.clone(), options);
            all.insert(put.await.expect("it is put").version.0, bytes);
        }
        all
    })
}

/// Reads all versions of it.
fn read_versions(rig: &Rig) -> BTreeMap<u64, Bytes> {
    runtime().block_on(async {
        let client = rig.client(ClientOptions::default());
        let page = client.list_versions("data", VersionsOptions::default());
        let mut all = BTreeMap::new();
        for entry in page.await.expect("they are listed").versions {
            let Some(tag) = entry.tag.filter(|tag| tag.slot() != NULL_VERSION) else {
                continue;
            };
            let options = GetOptions {
                version: Some(tag.slot()),
                ..GetOptions::default()
            };
            let mut read = client
                .get("data", "kept", options)
                .await
                .expect("it is read");
            let mut bytes = Vec::new();
            while let Some(piece) = read.next().await {
                bytes.extend_from_slice(&piece.expect("all of it is read"));
            }
            all.insert(tag.id.0, Bytes::from(bytes));
        }
        all
    })
}

#[test]
fn what_was_on_a_node_that_is_gone_is_as_safe_as_before() {
    let rig = Rig::up(Options {
        audit: Some("100000"),
        audit_wait: Some("2"),
        out_after: Some("3"),
        ..Options::default()
    });
    rig.ok(&["mb", "ashlar://data"]);
    let source = rig.scratch().join("tree");
    folder::write_tree(&source, 40, 61);
    let tree = source.to_str().expect("UTF-8");
    rig.ok(&["put", "-r", tree, "ashlar://data/tree/"]);
    let big = rig.scratch().join("big");
    folder::write_random(&big, 30 << 20, 62);
    rig.ok(&["put", big.to_str().expect("UTF-8"), "ashlar://data/big"]);
    let kept = versions(&rig);

    // Not those of the journal: its chains are another matter.
    let chain = rig.chain();
    let outside = rig.all().into_iter().filter(|node| !chain.contains(node));
    let outside: Vec<u32> = outside.collect();
    rig.nodes("kill", &outside[..1]);
    let done = eventually("what was on it is elsewhere", PATIENCE, || {
        let it = said(&rig, &["repair", "status", "--json"])?;
        let rows = it["partitions"].as_array()?;
        let absent: Vec<&Value> = rows
            .iter()
            .flat_map(|row| row["absent"].as_object())
            .flatten()
            .map(|(_, it)| it)
            .collect();
        let hunted = absent.iter().all(|it| it["hunted"] == true);
        let none = rows
            .iter()
            .all(|row| row["waiting"].as_object().is_some_and(|it| it.is_empty()));
        (hunted && none && !absent.is_empty() && absent.len() == rows.len()).then_some(it)
    });
    let moved = |it: &Value| -> u64 {
        let rows = it["partitions"].as_array().expect("rows");
        let absent = rows
            .iter()
            .flat_map(|row| row["absent"].as_object())
            .flatten();
        absent
            .map(|(_, it)| it["moved"].as_u64().expect("a count"))
            .sum()
    };
    assert!(moved(&done) > 10, "{done}");
    let ledger = said(&rig, &["durability", "--json"]).expect("it can be read");
    assert_eq!(ledger["measured"]["counted"]["moved"], moved(&done));
    assert_eq!(sum(&ledger["measured"]["counted"]["found"]), 0);

    // Two more go: with what was on the first one where it was, three would be too many.
    rig.nodes("kill", &outside[1..]);
    let again = rig.scratch().join("again");
    rig.ok(&["get", "ashlar://data/big", again.to_str().expect("UTF-8")]);
    folder::assert_same_file(&big, &again);
    let back = rig.scratch().join("back");
    rig.ok(&[
        "get",
        "-r",
        "ashlar://data/tree/",
        back.to_str().expect("UTF-8"),
    ]);
    folder::assert_same(&source, &back);
    assert_eq!(read_versions(&rig), kept);
    // And of so many, a person has to say what it is.
    eventually("it is told that a person is waited for", PATIENCE, || {
        let it = said(&rig, &["repair", "status", "--json"])?;
        let rows = it["partitions"].as_array()?;
        rows.iter().all(|row| row["held"].is_string()).then_some(())
    });

    rig.nodes("start", &outside);
    let look = said(&rig, &["audit", "--now", "--look", "--json"]).expect("it can be looked at");
    assert_eq!(
        (sum(&look["bad"]), &look["away"]),
        (0, &Value::from(0)),
        "{look}"
    );
    eventually("nobody is away any more", PATIENCE, || {
        let it = said(&rig, &["repair", "status", "--json"])?;
        let rows = it["partitions"].as_array()?;
        let none = |row: &Value| row["absent"].as_object().is_some_and(|it| it.is_empty());
        rows.iter().all(none).then_some(())
    });
}
