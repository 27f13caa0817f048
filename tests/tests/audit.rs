//! `ashlar audit --now`: what is rotten or missing is found, told by kind, and made again; and after that as many
//! devices may be lost as before.

use std::path::Path;

use ashlar_tests::folder;
use ashlar_tests::rig::{Options, Rig};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A pass, which ends well.
fn pass(rig: &Rig, more: &[&str]) -> Value {
    let args = [&["audit", "--now", "--wait", "--json"], more].concat();
    let said: Value = serde_json::from_str(&rig.ok(&args)).expect("it is told as JSON");
    eprintln!("{more:?}: {said}");
    said
}

fn bad(said: &Value) -> u64 {
    let kinds = said["bad"].as_object().expect("bad shards by kind");
    kinds.values().filter_map(Value::as_u64).sum()
}

/// Everything is what it was put as.
fn all_is_there(rig: &Rig, source: &Path, big: &Path) {
    let back = rig.scratch().join("back");
    if back.exists() {
        std::fs::remove_dir_all(&back).expect("it is ours");
    }
    rig.ok(&["get", "-r", "ashlar://data/tree/", text(&back)]);
    folder::assert_same(source, &back);
    let one = rig.scratch().join("one");
    // A file that is there is not written over.
    drop(std::fs::remove_file(&one));
    rig.ok(&["get", "ashlar://data/big", text(&one)]);
    let bytes = |path: &Path| std::fs::read(path).expect("readable");
    assert_eq!(
        crc32fast::hash(&bytes(big)),
        crc32fast::hash(&bytes(&one)),
        "the large one differs"
    );
}

#[test]
fn what_rots_or_goes_is_made_again() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://data"]);
    let source = rig.scratch().join("tree");
    folder::write_tree(&source, 150, 77);
    rig.ok(&["put", "-r", text(&source), "ashlar://data/tree/"]);
    let big = rig.scratch().join("big");
    folder::write_random(&big, 40 << 20, 78);
    rig.ok(&["put", text(&big), "ashlar://data/big"]);

    let first = pass(&rig, &[]);
    assert_eq!(
        (bad(&first), &first["mended"]),
        (0, &Value::from(0)),
        "nothing is wrong yet"
    );
    let margins = first["margin"].as_object().expect("margins");
    assert_eq!(
        margins.keys().collect::<Vec<_>>(),
        ["2"],
        "every object can lose two"
    );
    rig.fails(&["audit", "--now", "--bucket", "nobodys"], 1, &["nobodys"]);

    // Two devices rot, as many as may: not those of the journal, which has replicas of its own.
    let chain = rig.chain();
    let outside: Vec<u32> = rig
        .all()
        .into_iter()
        .filter(|node| !chain.contains(node))
        .collect();
    for (node, blocks) in [(outside[0], "2500"), (outside[1], "1500")] {
        rig.rig(&[
            "corrupt",
            &node.to_string(),
            "--blocks",
            blocks,
            "--seed",
            "9",
        ]);
    }
    let looked = pass(&rig, &["--look"]);
    assert!(bad(&looked) > 50, "little was found: {looked}");
    assert_eq!(looked["mended"], 0, "it only looks");
    // A restart reads the device anew: of records that cannot be found any more, the shards are missing then.
    rig.nodes("kill", &outside[..1]);
    rig.nodes("start", &outside[..1]);
    let mended = pass(&rig, &["--bucket", "data"]);
    assert_eq!(bad(&mended), bad(&looked), "as much is bad as was");
    assert_eq!(mended["mended"], bad(&mended));
    let kinds = mended["bad"].as_object().expect("kinds");
    assert!(
        kinds.contains_key("rot") && kinds.contains_key("missing"),
        "{kinds:?}"
    );
    assert_eq!(mended["failed"].as_array().map(Vec::len), Some(0));
    let again = pass(&rig, &[]);
    assert_eq!(
        (bad(&again), &again["margin"]),
        (0, &first["margin"]),
        "all is as it was"
    );

    // What was made again is durable, and as good as what it was made of: two others may go.
    rig.nodes("kill", &rig.all());
    rig.up_again();
    let gone: Vec<u32> = rig
        .all()
        .into_iter()
        .filter(|node| !outside[..2].contains(node))
        .collect();
    let follower = *gone
        .iter()
        .find(|n| chain.contains(n) && **n != rig.head())
        .expect("a chain of three");
    let gone = [outside[2], follower];
    rig.nodes("kill", &gone);
    all_is_there(&rig, &source, &big);
    let away = pass(&rig, &[]);
    assert_eq!(
        (bad(&away), &away["mended"]),
        (0, &Value::from(0)),
        "what is away is not touched"
    );
    // What was put while a device was slow has a shard less, and perhaps none on those that are gone.
    let (stripes, shards) = (away["stripes"].as_u64(), away["away"].as_u64());
    let most = stripes.map(|all| 2 * all);
    assert!(shards > stripes && shards <= most, "{away}");
    let margins = away["margin"].as_object().expect("margins");
    assert!(margins.contains_key("0"), "{away}");
    rig.nodes("start", &gone);
    all_is_there(&rig, &source, &big);
    assert_eq!(pass(&rig, &[])["margin"], first["margin"]);
}
