//! When newer journal entries are allowed.

use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, History, MapChange};
use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_layout::time::Instant;
use ashlar_layout::version::{ENTRY_VERSION, ENTRY_VERSION_LEAST};

use crate::policy::{Patience, Watchman};
use crate::testing;

const NEWEST: Option<u16> = Some(ENTRY_VERSION);

fn at(millis: u64) -> Instant {
    Instant(millis * 1_000_000)
}

/// Three nodes of a cluster of before there was anything that says what is read.
fn older() -> ClusterMap {
    let mut map = testing::map(3, 3);
    assert_eq!(
        map.entries, ENTRY_VERSION,
        "a new cluster begins with everything"
    );
    map.entries = ENTRY_VERSION_LEAST;
    map
}

fn watchman() -> Watchman {
    Watchman::new(Patience::default(), at(0))
}

fn hear(man: &mut Watchman, map: &ClusterMap, millis: u64, said: &[(u32, Option<u16>)]) {
    for (node, reads) in said {
        man.hear(at(millis), map, NodeId(*node), Vec::new(), Some(&[]));
        man.reads(NodeId(*node), *reads);
    }
}

fn raise(to: u16) -> Option<MapChange> {
    Some(MapChange::RaiseEntries { to })
}

#[test]
fn the_level_rises_when_all_nodes_are_there_and_read_more() {
    let (map, mut man) = (older(), watchman());
    let held = |man: &Watchman, millis| man.entries_held(at(millis), &map).unwrap_or_default();
    hear(&mut man, &map, 0, &[(1, NEWEST), (2, NEWEST)]);
    assert_eq!(man.decide(at(10), &map), None);
    assert!(held(&man, 10).contains("node 3 is not there"));
    // One of before says nothing of it.
    hear(&mut man, &map, 20, &[(3, None)]);
    assert_eq!(man.decide(at(30), &map), None);
    assert!(held(&man, 30).contains("node 3 does not say"));
    hear(&mut man, &map, 40, &[(3, Some(ENTRY_VERSION_LEAST))]);
    assert_eq!(man.decide(at(50), &map), None);
    let why = held(&man, 50);
    assert!(why.contains("node 3 reads them up to version 5"), "{why}");
    hear(&mut man, &map, 60, &[(3, NEWEST)]);
    let change = man.decide(at(70), &map);
    assert_eq!(change, raise(ENTRY_VERSION));
    let next = change.unwrap().apply(&map, &History::default()).unwrap();
    assert_eq!(next.entries, ENTRY_VERSION);
    assert_eq!(man.entries_held(at(80), &next), None);
    assert_eq!(man.decide(at(80), &next), None, "once is enough");
}

#[test]
fn what_the_least_of_them_reads_is_allowed() {
    let (map, mut man) = (older(), watchman());
    let least = ENTRY_VERSION_LEAST + 1;
    hear(
        &mut man,
        &map,
        0,
        &[(1, NEWEST), (2, Some(least)), (3, NEWEST)],
    );
    assert_eq!(man.decide(at(10), &map), raise(least));
    // More than this program knows is for a newer leader to allow.
    let newer = Some(ENTRY_VERSION + 1);
    hear(&mut man, &map, 20, &[(1, newer), (2, newer), (3, newer)]);
    assert_eq!(man.decide(at(30), &map), raise(ENTRY_VERSION));
}

#[test]
fn a_node_that_is_away_may_come_back_as_what_it_was() {
    let (mut map, mut man) = (older(), watchman());
    let all = [(1, NEWEST), (2, NEWEST), (3, NEWEST)];
    hear(&mut man, &map, 0, &all);
    hear(&mut man, &map, 5000, &all[..2]);
    assert_eq!(man.decide(at(5010), &map), None, "one is silent");
    // Draining or not makes no difference: it holds what it holds.
    map.draining.push(NodeId(3));
    assert_eq!(man.decide(at(5020), &map), None);
    // It comes back as an older one: what it said before does not count.
    hear(&mut man, &map, 5100, &[(3, None)]);
    assert_eq!(man.decide(at(5110), &map), None);
    hear(&mut man, &map, 5200, &[(3, NEWEST)]);
    assert_eq!(man.decide(at(5210), &map), raise(ENTRY_VERSION));
    // A leader that is stopped and goes on has heard nobody lately.
    let late = 5210 + Patience::default().away_after.as_millis() as u64;
    assert_eq!(man.decide(at(late), &map), None);
}

#[test]
fn a_node_that_joins_is_waited_for_and_one_that_left_is_not() {
    let (mut map, mut man) = (older(), watchman());
    let all = [(1, NEWEST), (2, NEWEST), (3, NEWEST)];
    let (node, devices) = testing::node(4, 3);
    map.nodes.push(node);
    map.devices.extend(devices);
    hear(&mut man, &map, 0, &all);
    assert_eq!(man.decide(at(10), &map), None, "it was never heard");
    hear(&mut man, &map, 20, &[(4, None)]);
    assert_eq!(man.decide(at(30), &map), None);
    let left = older();
    man.forget(&left);
    assert_eq!(man.decide(at(40), &left), raise(ENTRY_VERSION));
    // Another leader has heard nobody say anything.
    let mut other = Watchman::new(Patience::default(), at(50));
    assert_eq!(other.decide(at(50), &left), None);
    hear(&mut other, &left, 60, &all);
    assert_eq!(other.decide(at(60), &left), raise(ENTRY_VERSION));
    assert!(Patience::default().away_after > Duration::from_millis(100));
}

/// Three nodes have the chains, and a fourth one is dead.
#[test]
fn a_node_that_was_given_up_is_not_waited_for() {
    let (mut map, mut man) = (older(), watchman());
    let (node, devices) = testing::node(4, 3);
    map.nodes.push(node);
    map.devices.extend(devices);
    let all = [(1, NEWEST), (2, NEWEST), (3, NEWEST)];
    hear(&mut man, &map, 0, &all);
    assert_eq!(man.decide(at(10), &map), None);
    map.out.insert(DeviceNo(4));
    assert_eq!(man.entries_held(at(20), &map), None);
    assert_eq!(man.decide(at(20), &map), raise(ENTRY_VERSION));
    // One that chains go by is, out or not.
    map.out.insert(DeviceNo(3));
    hear(&mut man, &map, 5000, &all[..2]);
    assert_eq!(man.decide(at(5010), &map), None);
}

#[test]
fn nobody_is_passed_over_that_may_be_there() {
    let (map, mut man) = (older(), watchman());
    let less = |man: &Watchman, millis| man.reads_less(at(millis), &map, ENTRY_VERSION);
    assert_eq!(
        less(&man, 10),
        Some(ENTRY_VERSION_LEAST),
        "heard nobody yet"
    );
    hear(&mut man, &map, 20, &[(1, NEWEST), (2, Some(6))]);
    assert_eq!(less(&man, 30), Some(6));
    hear(&mut man, &map, 3000, &[(1, NEWEST), (2, NEWEST)]);
    assert_eq!(less(&man, 3010), None, "the third is away");
    hear(&mut man, &map, 3020, &[(3, None)]);
    assert_eq!(less(&man, 3030), Some(ENTRY_VERSION_LEAST));
}
