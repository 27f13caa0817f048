//! The demonstration: a tree and a large file go in and come back whole; two nodes die; a node rots.
//!
//! `ASHLAR_DEMO_MIB` is the size of the large file (64 by default; CI takes 384).

use std::path::PathBuf;

use ashlar_tests::content::{seed, setting};
use ashlar_tests::folder;
use ashlar_tests::rig::{Options, Rig};

const BIG_MIB: u64 = 64;

/// A real tree of thousands of files; a made one where the machine has no headers.
fn source_tree(rig: &Rig, seed: u64) -> PathBuf {
    let target = rig.scratch().join("tree");
    let headers = PathBuf::from("/usr/include");
    let count = if headers.is_dir() {
        folder::files(&headers).len()
    } else {
        0
    };
    if count >= 1000 {
        folder::copy(&headers, &target);
    } else {
        eprintln!(
            "/usr/include has {count} files: a tree of 2000 is made instead (install libc6-dev)"
        );
        folder::write_tree(&target, 2000, seed);
    }
    target
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

/// Gets the whole tree into a fresh folder and compares it.
fn tree_comes_back(rig: &Rig, source: &std::path::Path, name: &str) {
    let back = rig.scratch().join(name);
    rig.ok(&["get", "-r", "ashlar://demo/tree/", text(&back)]);
    folder::assert_same(source, &back);
    std::fs::remove_dir_all(&back).expect("removable");
}

fn file_comes_back(rig: &Rig, key: &str, source: &std::path::Path) {
    let back = rig.scratch().join("big.back");
    rig.ok(&["get", &format!("ashlar://demo/{key}"), text(&back)]);
    folder::assert_same_file(source, &back);
    std::fs::remove_file(&back).expect("removable");
}

#[test]
fn a_tree_and_a_large_file_survive_dead_nodes_and_rot() {
    let seed = seed("demonstration");
    let big_mib = setting("ASHLAR_DEMO_MIB", BIG_MIB);
    let size = if big_mib > 512 { "2G" } else { "512M" };
    let rig = Rig::up(Options {
        size,
        ..Options::default()
    });
    let tree = source_tree(&rig, seed);
    let big = rig.scratch().join("big");
    folder::write_random(&big, big_mib << 20, seed);

    // Put, list, get back.
    rig.ok(&["mb", "ashlar://demo"]);
    rig.ok(&["put", "-r", text(&tree), "ashlar://demo/tree/"]);
    rig.ok(&["put", text(&big), "ashlar://demo/big"]);
    let listed = rig.ok(&["ls", "-r", "ashlar://demo/tree/"]);
    let files = folder::files(&tree);
    let lines = listed
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    assert!(
        lines >= files.len(),
        "{lines} lines list {} files",
        files.len()
    );
    for path in files.keys() {
        let key = format!("tree/{}", path.display());
        assert!(
            listed.contains(&key) || listed.contains(text(path)),
            "{key} is not listed"
        );
    }
    tree_comes_back(&rig, &tree, "back");
    file_comes_back(&rig, "big", &big);

    // Two nodes die: the head of the chain, and one outside of it.
    let chain = rig.chain_by_role();
    let outside = rig
        .all()
        .into_iter()
        .find(|n| !chain.contains(n))
        .expect("six nodes, a chain of three");
    let dead = [chain[0], outside];
    eprintln!("chain {chain:?}, head first; killing {dead:?}");
    rig.nodes("kill", &dead);
    tree_comes_back(&rig, &tree, "back-degraded");
    file_comes_back(&rig, "big", &big);
    let fresh = rig.scratch().join("fresh");
    folder::write_random(&fresh, 9 << 20, seed ^ 1);
    rig.ok(&["put", text(&fresh), "ashlar://demo/fresh"]);
    file_comes_back(&rig, "fresh", &fresh);
    rig.nodes("start", &dead);
    file_comes_back(&rig, "fresh", &fresh);

    // A node rots: first one outside of the chain, then that of the head of now.
    for (victim, blocks) in [(outside, "4000"), (rig.head(), "2000")] {
        eprintln!("corrupting {blocks} blocks of node {victim}");
        rig.rig(&[
            "corrupt",
            &victim.to_string(),
            "--blocks",
            blocks,
            "--seed",
            &seed.to_string(),
        ]);
        tree_comes_back(&rig, &tree, "back-rotten");
        file_comes_back(&rig, "big", &big);
        file_comes_back(&rig, "fresh", &fresh);
        let findings = rig.findings(victim);
        assert!(
            findings.values().sum::<u64>() > 0,
            "node {victim} reports no findings: {findings:?}"
        );
        eprintln!("node {victim} found: {findings:?}");
    }

    // Everything at once dies, rot and all, and comes back.
    rig.nodes("kill", &rig.all());
    rig.up_again();
    tree_comes_back(&rig, &tree, "back-restarted");
    file_comes_back(&rig, "big", &big);
    file_comes_back(&rig, "fresh", &fresh);
    let status = rig.ok(&rig.rig_args(&["status"]));
    assert!(!status.trim().is_empty(), "rig status says nothing");
    rig.rig(&["down"]);
    assert!(rig.pids().is_empty(), "rig down left {:?}", rig.pids());
}
