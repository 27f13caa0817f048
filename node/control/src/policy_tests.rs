//! The replacement policy, decision by decision, and under random histories.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, History, MapChange};
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, Term};
use ashlar_layout::time::Instant;
use proptest::prelude::*;

use crate::out::OutLimits;
use crate::partitions::PartitionLimits;
use crate::policy::{ChainReport, Patience, Verdict, Watchman};
use crate::testing;

const PATIENCE: Patience = Patience {
    away_after: Duration::from_secs(2),
    replace_after: Duration::from_secs(10),
    out: OutLimits::DEFAULT,
    partitions: PartitionLimits::DEFAULT,
};

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

fn report(config: u64, members: &[u32]) -> ChainReport {
    ChainReport {
        partition: PartitionId(0),
        term: Term(1),
        config,
        members: members.iter().map(|n| DeviceNo(*n)).collect(),
        load: None,
    }
}

/// Six nodes in three zones, a device each; the chain on 1, 2, 3, one in each zone.
fn six() -> ClusterMap {
    let mut map = testing::map(6, 3);
    map.partitions[0].chain.devices = [1, 2, 3].map(DeviceNo).to_vec();
    map.partitions[0].founders = map.partitions[0].chain.devices.clone();
    map.validate().unwrap();
    map
}

/// A watchman who has heard the nodes at 0 s and, but for `silent`, at 20 s; with a report.
fn watchman(map: &ClusterMap, silent: &[u32], told: Option<ChainReport>) -> Watchman {
    let mut man = Watchman::new(PATIENCE, at(0));
    for node in &map.nodes {
        man.hear(
            at(0),
            map,
            node.id,
            told.clone().into_iter().collect(),
            None,
        );
        if !silent.contains(&node.id.0) {
            man.hear(at(20), map, node.id, Vec::new(), None);
        }
    }
    man
}

fn verdict(man: &Watchman, map: &ClusterMap, now: u64) -> Verdict {
    let verdicts = man.verdicts(at(now), map);
    assert_eq!(verdicts.len(), 1);
    verdicts[0].1.clone()
}

#[test]
fn a_spare_of_the_lost_zone_takes_the_place() {
    let map = six();
    let mut man = watchman(&map, &[2], Some(report(1, &[1, 2, 3])));
    // Node 5 stands in the zone of node 2.
    let want = Verdict::Replace {
        out: DeviceNo(2),
        with: DeviceNo(5),
        crowd: false,
    };
    assert_eq!(verdict(&man, &map, 20), want);
    let change = man.decide(at(20), &map).unwrap();
    let next = change.apply(&map, &History::default()).unwrap();
    assert_eq!(next.partitions[0].chain.devices, [1, 5, 3].map(DeviceNo));
    assert_eq!(next.partitions[0].founders, map.partitions[0].founders);
}

#[test]
fn patience_comes_first() {
    let map = six();
    let mut man = watchman(&map, &[2], Some(report(1, &[1, 2, 3])));
    assert_eq!(man.silence(at(9), NodeId(2)), Duration::from_secs(9));
    let waiting = Verdict::Waiting {
        member: DeviceNo(2),
    };
    assert_eq!(verdict(&man, &map, 9), waiting);
    assert_eq!(man.decide(at(9), &map), None);
    man.hear(at(19), &map, NodeId(2), Vec::new(), None);
    assert_eq!(verdict(&man, &map, 20), Verdict::Well);
}

#[test]
fn with_the_whole_zone_lost_another_zone_lends_a_spare() {
    let map = six();
    let mut man = watchman(&map, &[2, 5], Some(report(1, &[1, 2, 3])));
    let Verdict::Replace { out, with, crowd } = verdict(&man, &map, 20) else {
        panic!("{:?}", verdict(&man, &map, 20));
    };
    assert_eq!((out, crowd), (DeviceNo(2), true));
    assert!([4, 6].map(DeviceNo).contains(&with), "{with}");
    let next = man.decide(at(20), &map).unwrap();
    next.apply(&map, &History::default()).unwrap();
}

#[test]
fn with_most_of_the_chain_away_nothing_is_done() {
    let map = six();
    let mut man = watchman(&map, &[2, 3], Some(report(1, &[1, 2, 3])));
    let want = Verdict::MajorityAway {
        away: 2,
        members: 3,
    };
    assert_eq!(verdict(&man, &map, 20), want);
    assert_eq!(man.decide(at(20), &map), None);
    // While the chain changes over four, two away are too many.
    let man = watchman(&map, &[2, 5], Some(report(2, &[1, 2, 3, 5])));
    let want = Verdict::MajorityAway {
        away: 2,
        members: 4,
    };
    assert_eq!(verdict(&man, &map, 20), want);
}

#[test]
fn a_chain_that_is_changing_is_left_to_it() {
    let mut map = six();
    map.partitions[0].chain.devices = [1, 5, 3].map(DeviceNo).to_vec();
    let changing = Verdict::Changing {
        member: DeviceNo(3),
    };
    // Told to take in 5 for 2; 2 is there still. Before and in the midst of it, 3 goes away.
    for told in [report(1, &[1, 2, 3]), report(2, &[1, 2, 3, 5])] {
        let mut man = watchman(&map, &[3], Some(told));
        assert_eq!(verdict(&man, &map, 20), changing);
        assert_eq!(man.decide(at(20), &map), None);
    }
    let man = watchman(&map, &[3], Some(report(3, &[1, 5, 3])));
    let want = Verdict::Replace {
        out: DeviceNo(3),
        with: DeviceNo(6),
        crowd: false,
    };
    assert_eq!(verdict(&man, &map, 20), want);
}

#[test]
fn a_spare_that_never_came_is_given_up_for_another() {
    let mut map = six();
    map.partitions[0].chain.devices = [1, 5, 3].map(DeviceNo).to_vec();
    let man = watchman(&map, &[2, 5], Some(report(1, &[1, 2, 3])));
    let Verdict::Replace { out, with, .. } = verdict(&man, &map, 20) else {
        panic!("{:?}", verdict(&man, &map, 20));
    };
    assert_eq!(out, DeviceNo(5));
    assert!([4, 6].map(DeviceNo).contains(&with), "{with}");
}

#[test]
fn nothing_is_done_on_hearsay() {
    let map = six();
    let unreported = Verdict::Unreported {
        member: DeviceNo(2),
    };
    let man = watchman(&map, &[2], None);
    assert_eq!(verdict(&man, &map, 20), unreported);
    // Who is not in the chain cannot speak for it; an older word does not undo a newer one.
    let mut man = watchman(&map, &[2], None);
    man.hear(at(20), &map, NodeId(4), vec![report(1, &[1, 2, 3])], None);
    assert_eq!(verdict(&man, &map, 20), unreported);
    man.hear(
        at(20),
        &map,
        NodeId(1),
        vec![report(2, &[1, 2, 3, 5])],
        None,
    );
    man.hear(at(20), &map, NodeId(3), vec![report(1, &[1, 2, 3])], None);
    let changing = Verdict::Changing {
        member: DeviceNo(2),
    };
    assert_eq!(verdict(&man, &map, 20), changing);
}

#[test]
fn who_is_not_there_is_no_spare() {
    let map = six();
    let man = watchman(&map, &[2, 4, 5, 6], Some(report(1, &[1, 2, 3])));
    let want = Verdict::NoSpare {
        member: DeviceNo(2),
    };
    assert_eq!(verdict(&man, &map, 20), want);
}

#[test]
fn a_draining_node_gives_its_place_up() {
    let mut map = six();
    map.draining = vec![NodeId(3), NodeId(6)];
    let man = watchman(&map, &[], Some(report(1, &[1, 2, 3])));
    let Verdict::Replace { out, with, crowd } = verdict(&man, &map, 20) else {
        panic!("{:?}", verdict(&man, &map, 20));
    };
    assert_eq!((out, crowd), (DeviceNo(3), true));
    assert!([4, 5].map(DeviceNo).contains(&with), "{with}");
}

#[test]
fn a_new_leader_waits_before_it_judges() {
    let map = six();
    let mut man = Watchman::new(PATIENCE, at(100));
    assert_eq!(verdict(&man, &map, 101), Verdict::Well);
    let waiting = Verdict::Waiting {
        member: DeviceNo(1),
    };
    assert_eq!(verdict(&man, &map, 103), waiting);
    assert_eq!(man.decide(at(1000), &map), None, "nobody was ever heard");
}

/// What a random history leads to, checked against a count of our own. Whether a change was made.
fn judged(
    mut heard: Vec<(u32, u64)>,
    config: u64,
    members: &[u32],
    wanted: &[u32],
    draining: &[u32],
    now: u64,
) -> bool {
    let mut map = six();
    map.partitions[0].chain.devices = wanted.iter().map(|n| DeviceNo(*n)).collect();
    map.draining = draining.iter().map(|n| NodeId(*n)).collect();
    let mut man = Watchman::new(PATIENCE, at(0));
    let mut last = [None::<u64>; 7];
    heard.sort_by_key(|(_, when)| *when);
    for (node, when) in heard {
        man.hear(
            at(when),
            &map,
            NodeId(node),
            vec![report(config, members)],
            None,
        );
        last[node as usize] = Some(when);
    }
    let there = |n: u32| last[n as usize].is_some_and(|when| when + 2 > now);
    let Some(change) = man.decide(at(now), &map) else {
        return false;
    };
    let MapChange::ReplaceChainMember { out, with, .. } = change else {
        panic!("{change:?}");
    };
    let before: BTreeSet<u32> = wanted.iter().copied().collect();
    let current: BTreeSet<u32> = members.iter().copied().collect();
    assert_eq!(config % 2, 1);
    assert!(2 * members.iter().filter(|n| there(**n)).count() > members.len());
    assert!(before == current || !current.contains(&out.0));
    assert!(there(with.0) && !before.contains(&with.0) && !current.contains(&with.0));
    let silent = last[out.0 as usize].unwrap_or(0) + 10 <= now;
    assert!(silent || draining.contains(&out.0));
    assert!(!draining.contains(&with.0));
    change.apply(&map, &History::default()).unwrap();
    true
}

/// Whatever is heard from whom and when: a change is made only while most of the chain is there and at rest, it puts a
/// device in that is there, and the map takes it. And changes are made, in a good part of the histories.
#[test]
fn decisions_are_safe() {
    const CASES: u32 = 4000;
    let made = std::cell::Cell::new(0);
    let nodes = || vec![1u32, 2, 3, 4, 5, 6];
    // Many are heard just now, so that there is something to decide.
    let when = prop_oneof![0u64..40, 38u64..40];
    let history = (
        proptest::collection::vec((1u32..7, when), 0..20),
        1u64..4,
        proptest::sample::subsequence(nodes(), 3..5),
        proptest::option::of(proptest::sample::subsequence(nodes(), 3)),
        proptest::sample::subsequence(nodes(), 0..3),
        36u64..42,
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(CASES));
    let outcome = runner.run(
        &history,
        |(heard, config, members, wanted, draining, now)| {
            let wanted = wanted.unwrap_or_else(|| members[..3].to_vec());
            made.set(
                made.get() + u32::from(judged(heard, config, &members, &wanted, &draining, now)),
            );
            Ok(())
        },
    );
    outcome.unwrap();
    assert!(
        made.get() > CASES / 50,
        "only {} changes were made",
        made.get()
    );
}
