//! The auditor that nobody asks: what rots is found, made again and counted in the ledger, as many as were made to rot,
//! whoever is killed meanwhile. What each kind of damage is found as, and what is lost: `findings.rs`.

use std::path::Path;

use ashlar_tests::folder;
use ashlar_tests::rig::{Options, PATIENCE, Rig, eventually};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn said(rig: &Rig, args: &[&str]) -> Value {
    let text = rig.ok(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// What the ledger has; none while it cannot be read, because its head has just been killed.
fn ledger(rig: &Rig) -> Option<Value> {
    let output = rig.run(&["durability", "--json"]);
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).expect("it is told as JSON"))
}

fn sum(kinds: &Value) -> u64 {
    let kinds = kinds.as_object().expect("counts by kind");
    kinds.values().filter_map(Value::as_u64).sum()
}

/// Of the ledger: bad shards that were found, those that were mended, and stripes that are lost.
fn counts(ledger: &Value) -> (u64, u64, u64) {
    let measured = &ledger["measured"];
    let number = |value: &Value| value.as_u64().expect("a count");
    (
        sum(&measured["counted"]["found"]),
        number(&measured["counted"]["repaired"]),
        number(&measured["lost_stripes"]),
    )
}

/// What is bad, as whoever looks at all of it finds; nothing is lost.
fn look(rig: &Rig) -> u64 {
    let said = said(rig, &["audit", "--now", "--look", "--json"]);
    sum(&said["bad"])
}

fn corrupt(rig: &Rig, node: u32, blocks: &str) {
    let node = node.to_string();
    rig.rig(&["corrupt", &node, "--blocks", blocks, "--seed", "5"]);
}

#[test]
fn what_rots_is_found_mended_and_counted_though_nobody_asks() {
    let mut rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://data"]);
    let source = rig.scratch().join("tree");
    folder::write_tree(&source, 150, 31);
    rig.ok(&["put", "-r", text(&source), "ashlar://data/tree/"]);
    let big = rig.scratch().join("big");
    folder::write_random(&big, 40 << 20, 32);
    rig.ok(&["put", text(&big), "ashlar://data/big"]);
    let empty = ledger(&rig).expect("it can be read");
    assert_eq!(
        (counts(&empty), &empty["measured"]["losses_at_most"]),
        ((0, 0, 0), &Value::Null)
    );

    // Two devices rot, as many as may: not those of the journal, which has replicas of its own.
    let chain = rig.chain();
    let outside = rig.all().into_iter().filter(|node| !chain.contains(node));
    let outside: Vec<u32> = outside.collect();
    corrupt(&rig, outside[0], "2500");
    corrupt(&rig, outside[1], "1500");
    let rotten = look(&rig);
    assert!(rotten > 50, "{rotten}");

    // Nodes that look by themselves find as many; and whoever does so is killed as soon as something was found.
    rig.again_with_audit(Some("5"));
    let mut last = 0;
    for kills in 0..4 {
        let before = eventually("something more is found", PATIENCE, || {
            ledger(&rig)
                .map(|it| counts(&it))
                .filter(|(found, ..)| *found > last || *found == rotten)
        });
        last = before.0;
        let head = rig.head();
        eprintln!("kill {kills}: node {head}, with {before:?} of {rotten}");
        rig.nodes("kill", &[head]);
        rig.nodes("start", &[head]);
    }
    let all = eventually("all is found and mended", PATIENCE, || {
        let it = ledger(&rig)?;
        (counts(&it).1 >= rotten).then_some(it)
    });
    assert_eq!(counts(&all), (rotten, rotten, 0), "{all}");
    let kinds = &all["measured"]["counted"]["found"];
    assert!(
        kinds["missing"].as_u64() > Some(0),
        "what could not be recovered is missing: {kinds}"
    );
    let settled = eventually("a pass sees that all is whole", PATIENCE, || {
        let it = said(&rig, &["repair", "status", "--json"]);
        let rows = it["partitions"].as_array()?;
        let whole = it["margin"]["stripes"].as_object()?.keys().eq(["2"]);
        let none = rows.iter().all(|row| {
            row["waiting"]
                .as_object()
                .is_some_and(serde_json::Map::is_empty)
        });
        (whole && none && !rows.is_empty()).then_some(it)
    });
    assert_eq!(
        settled["margin"]["groups"]
            .as_object()
            .map(|it| it.contains_key("2")),
        Some(true)
    );
    assert_eq!(look(&rig), 0, "all of it is as it was");
    // More passes count nothing of that again, and objects that stood give a bound.
    let later = eventually("objects have stood for a while", PATIENCE, || {
        let it = ledger(&rig)?;
        it["measured"]["losses_at_most"].as_f64().map(|_| it)
    });
    assert_eq!(counts(&later), (rotten, rotten, 0), "{later}");

    // With a node down it is told what is waited for.
    rig.nodes("kill", &outside[2..3]);
    let down = said(&rig, &["repair", "status", "--json"]);
    let node = outside[2].to_string();
    assert!(down["margin"]["silent"].get(&node).is_some(), "{down}");
    rig.nodes("start", &outside[2..3]);
}
