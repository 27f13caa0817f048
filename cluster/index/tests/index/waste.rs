//! What is superseded gives the journal's space back, before it is much, or when it is wanted.

use ashlar_cluster_index::{Change, Limits, Object};
use ashlar_layout::ids::Term;
use ashlar_layout::manifest::{Body, Manifest};
use ashlar_layout::root::InlinePlace;

use crate::rig::{Rig, small};

const ENTRY: u64 = 5000;
const KEYS: u64 = 40;

fn limits(waste_bytes: u64) -> Limits {
    Limits {
        waste_bytes,
        fanout: 8,
        runs: 64,
        ..small()
    }
}

/// Puts the same keys again and again, each time with an entry of the journal; what runs point to at most.
fn overwritten(rig: &mut Rig, rounds: u64) -> u64 {
    let mut most = 0;
    for seq in 1..=rounds * KEYS {
        let place = InlinePlace {
            term: Term(1),
            at: seq * ENTRY,
            len: ENTRY as u32,
        };
        let change = Change::Put {
            bucket: "bucket".to_owned(),
            key: format!("key-{:04}", seq % KEYS),
            object: Object {
                modified_ms: seq,
                manifest: Manifest::plain(ENTRY - 100, 1, Body::Inline),
                tag: None,
                place: Some(place),
                payload: Default::default(),
            },
        };
        rig.apply(seq, change);
        if seq % KEYS == 0 {
            rig.freeze();
            rig.settle();
        }
        most = most.max(rig.index.stats().placed);
    }
    most
}

#[test]
fn the_same_keys_again_and_again_keep_little_of_the_journal() {
    let waste = 100 * ENTRY;
    let mut rig = Rig::new(3, limits(waste), 1 << 20);
    let most = overwritten(&mut rig, 120);
    // Once for each key, what may be wasted, and what comes while a merge is under way.
    let bound = KEYS * ENTRY + waste + 200 * ENTRY;
    assert!(most <= bound, "{most} bytes, at most {bound} are expected");
    assert!(
        most > 2 * KEYS * ENTRY,
        "nothing was ever superseded: {most}"
    );
}

#[test]
fn under_pressure_all_of_it_comes_back() {
    let mut rig = Rig::new(4, limits(u64::MAX), 1 << 20);
    overwritten(&mut rig, 20);
    rig.freeze();
    rig.settle();
    assert!(rig.index.stats().placed > KEYS * ENTRY);
    rig.index.press();
    rig.settle();
    assert_eq!(rig.index.stats().placed, KEYS * ENTRY);
    // With nothing to be had it ends as well.
    rig.index.press();
    rig.settle();
    assert!(!rig.index.wants_turn());
}
